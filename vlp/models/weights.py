"""Tensors from files, without executing what is in them, and into models they fit exactly."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vlp.config import UserError

# transformers before 4.31 saved this buffer; it holds arange and is computed here.
IGNORED_KEYS = {"text.transformer.embeddings.position_ids", "embeddings.position_ids"}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of one that torch.save wrote.

    Of the latter only tensors and plain containers are read (`weights_only`), and the usual wrapper
    `state_dict` or `model` is taken off.

    Raises:
        UserError: no such file, not readable, or no tensors in it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        kind = "safetensors" if path.suffix == ".safetensors" else "tensors"
        raise UserError(f"{path}: not readable as {kind}: {str(error).splitlines()[0]}") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not named tensors")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Copy weights into a model; they must fit it exactly.

    Raises:
        UserError: names the first missing, unexpected and misshapen keys.
    """
    weights = {key: value for key, value in weights.items() if key not in IGNORED_KEYS}
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if found := differences(own, {key: tuple(value.shape) for key, value in weights.items()}):
        raise UserError(
            f"{origin}: weights of another architecture ({found}); "
            "use the model settings that they were made with"
        )
    model.load_state_dict(weights)


def differences(own: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """How tensors' names and shapes differ from one's own, the first of each kind; '' for equal."""
    misshapen = [
        f"{name} {found[name]} (here {own[name]})"
        for name in own
        if name in found and found[name] != own[name]
    ]
    kinds = {
        "missing": [name for name in own if name not in found],
        "unexpected": [name for name in found if name not in own],
        "of another shape": misshapen,
    }
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}"
        for kind, names in kinds.items()
        if names
    )
