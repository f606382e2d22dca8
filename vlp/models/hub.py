"""Model folders that open_clip loads, and loading them back into packed towers.

A folder holds open_clip_config.json, open_clip_model.safetensors, the tokenizer and config.json,
which is the BERT's configuration. open_clip builds the text tower from
`AutoConfig.from_pretrained(text_cfg.hf_model_name)`, which takes a path or a hub id, but nothing
relative to the folder. Hence:

    runs/NAME/model        hf_model_name is the folder's absolute path: loads where it was written
    after moving it        python -m vlp.models.hub folder=NEW_PLACE
    before an upload       python -m vlp.models.hub folder=FOLDER hub_id=ORG/NAME

`load_pretrained`, hence `python -m eval`, reads config.json beside the weights: it needs none of
this.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file

from vlp.config import UserError, load_config, run_program
from vlp.data.text import CaptionTokenizer
from vlp.models.dual_encoder import DualEncoder, ModelConfig
from vlp.models.text_tower import TextConfig
from vlp.models.vision_tower import OPENAI_MEAN, OPENAI_STD, ImageConfig
from vlp.models.weights import load_weights, read_tensors

HUB = "hf-hub:"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
OLD_WEIGHTS = "open_clip_pytorch_model.bin"
"""As open_clip wrote them before safetensors; BiomedCLIP's are."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Pretrained:
    """A model ready to embed.

    Attributes:
        model: in evaluation mode, fp32.
        tokenizer: captions -> PackedText.
        preprocess: open_clip's preprocess_cfg (size, mean, std, interpolation, resize_mode).
        config: the towers.
    """

    model: DualEncoder
    tokenizer: CaptionTokenizer
    preprocess: dict[str, Any]
    config: ModelConfig

    @property
    def context_length(self) -> int:
        return self.config.text.context_length


def save_pretrained(
    folder: str | Path,
    model: DualEncoder | Mapping[str, torch.Tensor],
    config: ModelConfig,
    tokenizer: CaptionTokenizer,
) -> None:
    """Write a model, or its state dict, as a folder. Each file is replaced at once, the weights
    last."""
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (tokenizer.folder / name).is_file():
            shutil.copyfile(tokenizer.folder / name, folder / (name + ".tmp"))
            os.replace(folder / (name + ".tmp"), folder / name)
    if config.text.kind == "bert":
        _write_json(folder / "config.json", config.text.hugging_face(tokenizer.pad_id))
    end_id = int(tokenizer([""]).input_ids[-1])
    _write_json(folder / CONFIG, open_clip_config(config, str(folder), end_id))
    state = model.state_dict() if isinstance(model, DualEncoder) else model
    weights = {key: value.detach().contiguous().cpu() for key, value in state.items()}
    save_file(weights, folder / (WEIGHTS + ".tmp"), metadata={"format": "pt"})
    (folder / (WEIGHTS + ".tmp")).chmod(0o644)  # safetensors makes it private to its owner
    os.replace(folder / (WEIGHTS + ".tmp"), folder / WEIGHTS)


def open_clip_config(config: ModelConfig, text_name: str, end_id: int = 0) -> dict[str, Any]:
    """The content of open_clip_config.json.

    Args:
        config: the towers.
        text_name: where the text tower's configuration and tokenizer are looked up.
        end_id: last token of every caption, which a `gpt` is read at.
    """
    text = config.text
    bias = {} if config.init_bias is None else {"init_logit_bias": config.init_bias}
    text_cfg: dict[str, Any] = {
        "context_length": text.context_length,
        "hf_tokenizer_name": text_name,
    }
    if text.kind == "bert":
        text_cfg |= {
            "hf_model_name": text_name,
            "hf_model_pretrained": False,
            "hf_proj_type": text.proj,
            "hf_pooler_type": "cls_last_hidden_state_pooler",
        }
    else:
        text_cfg |= {
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            # open_clip truncates width * mlp_ratio to an integer; half a row guards the rounding.
            "mlp_ratio": (text.mlp_width + 0.5) / text.width,
            "pool_type": "eos",
            "eos_id": end_id,
        }
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            **bias,
            # Without it open_clip would give a model with its own text tower CLIP's flat names.
            **({"custom_text": True, "quick_gelu": text.quick_gelu} if text.kind == "gpt" else {}),
            "vision_cfg": {
                "timm_model_name": config.image.name,
                "timm_model_pretrained": False,
                "timm_pool": config.image.pool,
                "timm_proj": "linear",
                "image_size": config.image.size,
            },
            "text_cfg": text_cfg,
        },
        "preprocess_cfg": {
            "size": config.image.size,
            "mode": "RGB",
            "mean": list(config.image.mean),
            "std": list(config.image.std),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def load_pretrained(folder: str | Path, device: str | torch.device = "cpu") -> Pretrained:
    """Load a model folder into packed towers.

    Raises:
        UserError: not such a folder, or one whose towers are built otherwise (open_clip may still
            load it).
    """
    folder = Path(folder)
    config, preprocess = read_config(folder)
    tokenizer = CaptionTokenizer(folder, config.text.context_length)
    model = DualEncoder(config, tokenizer.pad_id)
    load_weights(model, *folder_weights(folder))
    return Pretrained(model.to(device).eval(), tokenizer, preprocess, config)


def folder_weights(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """(weights, their file) of a model folder.

    Raises:
        UserError: none there, or not readable.
    """
    for name in (WEIGHTS, OLD_WEIGHTS):
        if (folder / name).is_file():
            return read_tensors(folder / name), str(folder / name)
    raise UserError(f"{folder / WEIGHTS}: no weights in this model folder")


def read_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """(towers, preprocess_cfg) of a model folder.

    Raises:
        UserError: not a model folder, or one of towers that aren't built here.
    """
    whole = read_settings(folder / CONFIG)
    try:
        model, preprocess = whole["model_cfg"], whole.get("preprocess_cfg", {})
        vision = model["vision_cfg"]
        image = ImageConfig(
            name=vision["timm_model_name"],
            size=vision.get("image_size", 224),
            pool=vision.get("timm_pool", "avg"),
            mean=tuple(preprocess.get("mean") or OPENAI_MEAN),
            std=tuple(preprocess.get("std") or OPENAI_STD),
        )
        text = _bert_config(folder, model) if _is_bert(model) else _gpt_config(folder, model)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG}: not a timm + BERT model: {error!r}") from None
    bias = model.get("init_logit_bias")
    config = ModelConfig(embed_dim=model["embed_dim"], image=image, text=text, init_bias=bias)
    return config, preprocess


def fetch(source: str) -> Path | None:
    """The folder of a source of weights, downloaded if it is `hf-hub:ORG/NAME`.

    Returns:
        None for anything that is neither a folder nor on a hub.

    Raises:
        UserError: a checkpoint; or the hub doesn't have it or can't be reached.
    """
    if not source.startswith(HUB):
        folder = Path(source)
        if (folder / "checkpoint.json").is_file():
            raise UserError(
                f"{source}: a checkpoint, which its own run resumes from; the weights to start "
                f"another run from are in {folder.parent.parent / 'model'}"
            )
        # A run's folder stands for the model in it: a dual encoder, or a text encoder alone.
        within = folder / "model"
        if any((within / name).is_file() for name in (CONFIG, "config.json")):
            return within
        return folder if folder.is_dir() else None
    wanted = ["*.json", "vocab.txt", "*.safetensors", "*.bin"]
    try:
        return Path(snapshot_download(source.removeprefix(HUB), allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{source}: can't be fetched: {reason}") from None


def fetch_bert(source: str, key: str = "model.text.init") -> Path:
    """The folder of a BERT in Hugging Face's format: a folder, ORG/NAME or `hf-hub:ORG/NAME`.

    `key` is the setting that names it, for errors.

    Raises:
        UserError: no such folder, or the hub doesn't have it or can't be reached.
    """
    folder = fetch(source)
    if folder is None and source.count("/") == 1 and not source.startswith((".", "/", "~")):
        try:
            folder = fetch(HUB + source)
        except UserError as error:
            raise UserError(f"{key}={source}: no such folder; {error}") from None
    if folder is None:
        raise UserError(f"{key}={source}: no such folder; a hub's is ORG/NAME")
    return folder


def _is_bert(model: dict[str, Any]) -> bool:
    return "hf_model_name" in model["text_cfg"]


def _bert_config(folder: Path, model: dict[str, Any]) -> TextConfig:
    """A text tower from Hugging Face."""
    text = model["text_cfg"]
    bert, origin = bert_settings(folder, text["hf_model_name"])
    if text["hf_pooler_type"] != "cls_last_hidden_state_pooler":
        raise UserError(f"{folder / CONFIG}: pooler '{text['hf_pooler_type']}' is not BERT's CLS")
    return bert_text_config(
        bert,
        origin,
        tokenizer=str(folder),
        context_length=text["context_length"],
        proj=text.get("hf_proj_type", "mlp"),
    )


def bert_settings(folder: Path, name: str) -> tuple[dict[str, Any], str]:
    """(config.json of the BERT, where it is): beside the weights, or where open_clip looks."""
    if (folder / "config.json").is_file():
        return read_settings(folder / "config.json"), str(folder / "config.json")
    if Path(name).is_dir():
        return read_settings(Path(name) / "config.json"), str(Path(name) / "config.json")
    try:
        path = Path(hf_hub_download(name, "config.json"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{folder / 'config.json'}: missing, and '{name}', whose text tower this is, can't be "
            f"fetched: {reason}"
        ) from None
    return read_settings(path), name


def bert_text_config(bert: dict[str, Any], origin: str, **rest: Any) -> TextConfig:
    """The text tower that a BertConfig describes; `rest` is what it doesn't say.

    Raises:
        UserError: another architecture.
    """
    if (
        bert.get("model_type") != "bert"
        or bert.get("hidden_act", "gelu") != "gelu"
        or bert.get("position_embedding_type", "absolute") != "absolute"
    ):
        raise UserError(f"{origin}: not a BERT with exact GELU and a table of positions")
    return TextConfig(
        vocab_size=bert["vocab_size"],
        max_positions=bert["max_position_embeddings"],
        width=bert["hidden_size"],
        layers=bert["num_hidden_layers"],
        heads=bert["num_attention_heads"],
        mlp_width=bert["intermediate_size"],
        layer_norm_eps=bert.get("layer_norm_eps", 1e-12),
        **rest,
    )


def _gpt_config(folder: Path, model: dict[str, Any]) -> TextConfig:
    """open_clip's own text transformer, where it has none of the options unknown here."""
    text = model["text_cfg"]
    known = {"context_length", "vocab_size", "hf_tokenizer_name", "width", "heads", "layers"}
    known |= {"mlp_ratio", "pool_type", "eos_id"}
    if unknown := sorted(set(text) - known):
        raise UserError(f"{folder / CONFIG}: text_cfg.{unknown[0]} is not built here")
    return TextConfig(
        kind="gpt",
        tokenizer=str(folder),
        vocab_size=text["vocab_size"],
        context_length=text["context_length"],
        max_positions=max(text["context_length"], TextConfig.max_positions),
        width=text["width"],
        layers=text["layers"],
        heads=text["heads"],
        mlp_width=int(text["width"] * text.get("mlp_ratio", 4.0)),
        proj="linear",
        quick_gelu=model.get("quick_gelu", False),
    )


@dataclass(frozen=True, kw_only=True)
class RelocateConfig:
    """Make a model folder loadable by open_clip at its present place, or from a hub."""

    folder: str
    """The model folder."""
    hub_id: str = ""
    """ORG/NAME under which it will be uploaded; empty: the folder's present path is written."""


def relocate(config: RelocateConfig) -> str:
    """Rewrite where open_clip finds the text tower's configuration; returns what was written."""
    folder = Path(config.folder).absolute()
    content = read_settings(folder / CONFIG)
    name = config.hub_id or str(folder)
    text = content.get("model_cfg", {}).get("text_cfg", {})
    keys = [key for key in ("hf_model_name", "hf_tokenizer_name") if key in text]
    if not keys:
        raise UserError(f"{folder / CONFIG}: nothing from Hugging Face in it, nothing to relocate")
    text |= dict.fromkeys(keys, name)
    _write_json(folder / CONFIG, content)
    return name


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: missing, or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; a model folder holds {CONFIG} and config.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def main(argv: list[str]) -> None:
    """`python -m vlp.models.hub folder=FOLDER [hub_id=ORG/NAME]`."""
    name = relocate(load_config(RelocateConfig, argv, "python -m vlp.models.hub"))
    print(f"text tower and tokenizer are now looked up at {name}")  # noqa: T201


if __name__ == "__main__":
    run_program(main)
