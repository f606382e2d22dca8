"""Any CLIP model behind two methods: pixels to embeddings, texts to embeddings."""

import difflib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from eval.answers import PREFIXES, load_answers
from eval.tokens import patch_states, project
from vlp.config import UserError

CONFIG = "open_clip_config.json"
TOWERS = ("vision_cfg", "text_cfg")


class Model:
    """A dual encoder with its tokenizer and its evaluation transform.

    Attributes:
        name: as the user gave it.
        folder: where it lies, if it lies in a folder.
        sha256: over the names, shapes and values of all weights; two copies have the same.
        preprocess: open_clip's preprocess_cfg: size, mean, std, interpolation, resize_mode.
        notes: what a reader of its scores should know.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Callable[[list[str]], Any],
        preprocess: dict[str, Any],
        name: str,
        folder: Path | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        # Any: nn.Module's attributes, encode_image among them, have no types.
        self.network: Any = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        defaults = open_clip.transform.PreprocessCfg()
        self.preprocess = open_clip.transform.merge_preprocess_dict(defaults, preprocess)
        self.name, self.folder, self.notes = name, folder, list(notes)
        self.transform = open_clip.transform.image_transform_v2(
            open_clip.transform.PreprocessCfg(**self.preprocess), is_train=False
        )
        """PIL image -> float32 [3, H, W], normalised; runs in the workers that decode."""
        self.device = next(network.parameters()).device
        temperature: Any = network.logit_scale
        self.scale = float(temperature.exp())
        """What the model multiplies cosines with before a softmax: its inverse temperature."""
        self.sha256 = _hash_weights(network)

    @torch.inference_mode()
    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Transformed images float32 [B, 3, H, W] -> unit rows float32 [B, D], on the CPU."""
        features = self.network.encode_image(pixels.to(self.device))
        return normalize(features.float(), dim=1).cpu()

    @torch.inference_mode()
    def embed_patches(self, pixels: Tensor) -> Tensor:
        """Transformed images [B, 3, H, W] -> unit rows float32 [B, h, w, D], on the CPU.

        A patch's row is what pooling and projection make of this patch alone (eval/tokens.py), so
        that its product with a text's row is their cosine. Rows of patches run from the upper left.

        Raises:
            UserError: an image tower whose patches aren't known.
        """
        visual = self.network.visual
        states = patch_states(visual, pixels.to(self.device), alone=True)
        return normalize(project(visual, states).float(), dim=-1).cpu()

    @torch.inference_mode()
    def embed_tokens(self, tokens: Any, unit: bool = True) -> Tensor:
        """What `tokenize` gave for B texts -> rows float32 [B, D], on the CPU.

        Args:
            unit: rows of length 1; otherwise as the tower gives them.
        """
        features = self.network.encode_text(tokens.to(self.device), normalize=False).float()
        return (normalize(features, dim=1) if unit else features).cpu()

    def embed_texts(self, texts: Sequence[str], unit: bool = True) -> Tensor:
        """Texts -> rows float32 [B, D], on the CPU; of length 1 unless `unit` is false."""
        return self.embed_tokens(self.tokenize(texts), unit)

    def tokenize(self, texts: Sequence[str]) -> Any:
        """Token ids: int64 [B, L] for open_clip's models, PackedText for ours."""
        return self.tokenizer(list(texts))


def load_model(name: str, device: str = "auto", seed: int = 0) -> Model:
    """Load a folder with open_clip_config.json or any model that open_clip knows.

    Args:
        name: a folder, `local-dir:FOLDER`, `hf-hub:ORG/NAME`, `NAME@PRETRAINED`, or `NAME` alone
            for random weights (a baseline; drawn with `seed`). Or a generative model, as
            eval/answers.py says, which only has what visual questions need.
        device: as torch names it, or `auto` for cuda where there is one.

    Raises:
        UserError: no such folder, name or device, or files that don't load.
    """
    if name.startswith(PREFIXES):
        return cast(Model, load_answers(name))
    device = _device(device)
    path = Path(name.removeprefix("local-dir:"))
    if name.startswith("local-dir:") or path.is_dir() or _looks_like_a_path(name):
        if not path.is_dir():
            raise UserError(f"model={name}: no such folder; give a folder with {CONFIG}")
        config = _read_config(path / CONFIG)
        if _is_ours(config, path):
            return _load_ours(path, name, device)
        return _load_open_clip(f"local-dir:{path}", None, name, device, folder=path)
    if name.startswith("hf-hub:"):
        return _load_open_clip(name, None, name, device)
    architecture, _, pretrained = name.partition("@")
    if architecture not in open_clip.list_models():
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3, cutoff=0.4)
        raise UserError(
            f"model={name}: neither a folder nor a model of open_clip; "
            f"close names: {', '.join(near) or 'none'}; `hf-hub:ORG/NAME` takes one from the hub"
        )
    torch.manual_seed(seed)
    return _load_open_clip(architecture, pretrained or None, name, device)


def _load_ours(folder: Path, name: str, device: str) -> Model:
    """A model with a packed text tower, as train.py writes it (BiomedCLIP's architecture)."""
    from vlp.models.hub import load_pretrained

    loaded = load_pretrained(folder, device=device)
    return Model(loaded.model, loaded.tokenizer, loaded.preprocess, name, folder)


def _load_open_clip(
    source: str, pretrained: str | None, name: str, device: str, folder: Path | None = None
) -> Model:
    random = folder is None and pretrained is None and not source.startswith("hf-hub:")
    try:
        network = open_clip.create_model(
            source,
            pretrained=pretrained,
            device=device,
            # Otherwise a folder without weights is a warning, and its random scores are believed.
            require_pretrained=not random,
        )
        tokenizer = open_clip.get_tokenizer(source)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"model={name}: open_clip can't load it: {reason}") from None
    notes = [f"random weights: write {name}@PRETRAINED for trained ones"] if random else []
    return Model(network, tokenizer, network.visual.preprocess_cfg, name, folder, notes)


def _is_ours(config: dict[str, Any], folder: Path) -> bool:
    """Whether `vlp.models` builds these towers: a timm image tower and a BERT read at its CLS.

    Its own configuration beside the weights also loads after the folder was moved, which open_clip
    can't; other towers are left to open_clip.
    """
    vision, text = config["model_cfg"]["vision_cfg"], config["model_cfg"]["text_cfg"]
    return (
        vision.get("timm_proj") == "linear"
        and "timm_model_name" in vision
        and text.get("hf_pooler_type") == "cls_last_hidden_state_pooler"
        and (folder / "config.json").is_file()
        and _read_json(folder / "config.json").get("model_type") == "bert"
    )


def _read_config(path: Path) -> dict[str, Any]:
    config = _read_json(path)
    model = config.get("model_cfg")
    towers = [model.get(key) if isinstance(model, dict) else None for key in TOWERS]
    if not all(isinstance(tower, dict) for tower in towers):
        raise UserError(f"{path}: no model_cfg with {' and '.join(TOWERS)}; not open_clip's")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; a model's folder holds {CONFIG} and weights") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def _looks_like_a_path(name: str) -> bool:
    return not name.startswith("hf-hub:") and ("/" in name.partition("@")[0] or name[:1] == ".")


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={device}: not usable here: {reason}") from None
    return device


def _hash_weights(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        # Bytes as they are: bfloat16 has no NumPy type.
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
