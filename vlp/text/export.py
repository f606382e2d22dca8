"""A trained encoder as a folder that transformers loads, and the CLIP trainer by `model.text.init`.

config.json, model.safetensors, the tokenizer, and pretraining.json: what the encoder was trained
on, for how long, with which settings and versions.
"""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vlp.config import write_text
from vlp.data.text import CaptionTokenizer
from vlp.models.hub import TOKENIZER_FILES
from vlp.models.text_tower import TextConfig

FACTS = "pretraining.json"
WEIGHTS = "model.safetensors"


def save_encoder(
    folder: str | Path,
    weights: Mapping[str, Tensor],
    config: TextConfig,
    tokenizer: CaptionTokenizer,
    facts: Mapping[str, Any],
) -> None:
    """Write a masked language model. Each file is replaced at once, the weights last.

    Args:
        folder: made if need be.
        weights: by the names of MaskedLM, which are BertForMaskedLM's.
        config: the encoder.
        tokenizer: that of its vocabulary.
        facts: JSON values for pretraining.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (tokenizer.folder / name).is_file():
            shutil.copyfile(tokenizer.folder / name, folder / (name + ".tmp"))
            os.replace(folder / (name + ".tmp"), folder / name)
    bert = {**config.hugging_face(tokenizer.pad_id), "architectures": ["BertForMaskedLM"]}
    write_text(folder / "config.json", json.dumps(bert, indent=2) + "\n")
    write_text(folder / FACTS, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    tensors = {name: value.detach().contiguous().cpu() for name, value in weights.items()}
    unfinished = folder / (WEIGHTS + ".tmp")
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)  # safetensors makes it private to its owner
    os.replace(unfinished, folder / WEIGHTS)


def versions() -> dict[str, str]:
    """What the numbers may depend on: Python, libraries, and the commit of this code, if known."""
    found = {"python": platform.python_version()}
    found |= {name: version(name) for name in ("torch", "tokenizers", "numpy")}
    checkout = Path(__file__).parents[2]
    if (checkout / ".git").exists() and shutil.which("git"):
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
        git = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
        found["commit"] = git.stdout.strip() or "unknown"
    return found
