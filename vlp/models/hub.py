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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlp.config import UserError, load_config, run_program
from vlp.data.text import CaptionTokenizer
from vlp.models.dual_encoder import DualEncoder, ModelConfig
from vlp.models.text_tower import TextConfig
from vlp.models.vision_tower import OPENAI_MEAN, OPENAI_STD, ImageConfig

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

# transformers before 4.31 saved this buffer; it holds arange and is computed here.
IGNORED_KEYS = {"text.transformer.embeddings.position_ids"}


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
    folder: str | Path, model: DualEncoder, config: ModelConfig, tokenizer: CaptionTokenizer
) -> None:
    """Write a model folder. Each file is replaced at once, the weights last."""
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (tokenizer.folder / name).is_file():
            shutil.copyfile(tokenizer.folder / name, folder / (name + ".tmp"))
            os.replace(folder / (name + ".tmp"), folder / name)
    _write_json(folder / "config.json", config.text.hugging_face(tokenizer.pad_id))
    _write_json(folder / CONFIG, open_clip_config(config, str(folder)))
    weights = {key: value.detach().contiguous().cpu() for key, value in model.state_dict().items()}
    save_file(weights, folder / (WEIGHTS + ".tmp"), metadata={"format": "pt"})
    (folder / (WEIGHTS + ".tmp")).chmod(0o644)  # safetensors makes it private to its owner
    os.replace(folder / (WEIGHTS + ".tmp"), folder / WEIGHTS)


def open_clip_config(config: ModelConfig, text_name: str) -> dict[str, Any]:
    """The content of open_clip_config.json; `text_name` is what AutoConfig will be given."""
    bias = {} if config.init_bias is None else {"init_logit_bias": config.init_bias}
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            **bias,
            "vision_cfg": {
                "timm_model_name": config.image.name,
                "timm_model_pretrained": False,
                "timm_pool": config.image.pool,
                "timm_proj": "linear",
                "image_size": config.image.size,
            },
            "text_cfg": {
                "hf_model_name": text_name,
                "hf_tokenizer_name": text_name,
                "hf_model_pretrained": False,
                "hf_proj_type": config.text.proj,
                "hf_pooler_type": "cls_last_hidden_state_pooler",
                "context_length": config.text.context_length,
            },
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
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path}: no weights in this model folder")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not readable as safetensors: {error}") from None
    load_weights(model, weights, str(path))
    return Pretrained(model.to(device).eval(), tokenizer, preprocess, config)


def read_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """(towers, preprocess_cfg) of a model folder."""
    whole = _read_json(folder / CONFIG)
    bert = _read_json(folder / "config.json")
    try:
        model, preprocess = whole["model_cfg"], whole.get("preprocess_cfg", {})
        vision, text = model["vision_cfg"], model["text_cfg"]
        if text["hf_pooler_type"] != "cls_last_hidden_state_pooler":
            raise UserError(
                f"{folder / CONFIG}: pooler '{text['hf_pooler_type']}' is not BERT's CLS"
            )
        if bert["model_type"] != "bert" or bert.get("hidden_act", "gelu") != "gelu":
            raise UserError(f"{folder / 'config.json'}: not a BERT with exact GELU")
        image = ImageConfig(
            name=vision["timm_model_name"],
            size=vision.get("image_size", 224),
            pool=vision.get("timm_pool", "avg"),
            mean=tuple(preprocess.get("mean") or OPENAI_MEAN),
            std=tuple(preprocess.get("std") or OPENAI_STD),
        )
        towers = TextConfig(
            tokenizer=str(folder),
            vocab_size=bert["vocab_size"],
            context_length=text["context_length"],
            max_positions=bert["max_position_embeddings"],
            width=bert["hidden_size"],
            layers=bert["num_hidden_layers"],
            heads=bert["num_attention_heads"],
            mlp_width=bert["intermediate_size"],
            layer_norm_eps=bert.get("layer_norm_eps", 1e-12),
            proj=text.get("hf_proj_type", "mlp"),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG}: not a timm + BERT model: {error!r}") from None
    bias = model.get("init_logit_bias")
    config = ModelConfig(embed_dim=model["embed_dim"], image=image, text=towers, init_bias=bias)
    return config, preprocess


def load_weights(model: DualEncoder, weights: dict[str, Tensor], origin: str) -> None:
    """Copy weights into a model; they must fit it exactly.

    Raises:
        UserError: names the first missing, unexpected and misshapen keys.
    """
    weights = {key: value for key, value in weights.items() if key not in IGNORED_KEYS}
    own = model.state_dict()
    misshapen = [
        f"{key} {tuple(weights[key].shape)} (here {tuple(own[key].shape)})"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    differences = [
        f"{len(keys)} {kind}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for kind, keys in (
            ("missing", [key for key in own if key not in weights]),
            ("unexpected", [key for key in weights if key not in own]),
            ("of another shape", misshapen),
        )
        if keys
    ]
    if differences:
        raise UserError(
            f"{origin}: weights of another architecture ({'; '.join(differences)}); "
            "use the model settings that they were made with"
        )
    model.load_state_dict(weights)


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
    content = _read_json(folder / CONFIG)
    name = config.hub_id or str(folder)
    text = content.get("model_cfg", {}).get("text_cfg", {})
    if "hf_model_name" not in text:
        raise UserError(f"{folder / CONFIG}: no text tower from Hugging Face, nothing to relocate")
    text["hf_model_name"] = text["hf_tokenizer_name"] = name
    _write_json(folder / CONFIG, content)
    return name


def _read_json(path: Path) -> dict[str, Any]:
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
