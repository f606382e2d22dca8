"""Checkpoints: written atomically, rotated, loaded without pickle.

Everything that a run carries from step to step is in them: weights, optimiser and the step. The
data order and all randomness are functions of the seed and the step.
"""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from vlp.config import UserError

_NAME = re.compile(r"step-(\d{9})\.pt")


def save(folder: str | Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `state` as the checkpoint after `step` steps and delete all but the newest `keep`.

    A process killed at any moment leaves the earlier checkpoints whole and at most a `.tmp` file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    for old in steps(folder)[:-keep]:
        (folder / f"step-{old:09d}.pt").unlink()
    for stray in folder.glob("*.tmp"):
        stray.unlink()
    return path


def steps(folder: str | Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending; empty if there is no folder."""
    names = (_NAME.fullmatch(path.name) for path in Path(folder).glob("step-*.pt"))
    return sorted(int(match[1]) for match in names if match)


def load(folder: str | Path, step: int) -> tuple[Path, dict[str, Any]]:
    """The checkpoint after `step` steps, on the CPU.

    Raises:
        UserError: it can't be read.
    """
    path = Path(folder) / f"step-{step:09d}.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: not readable ({reason}); delete it to resume from the one before"
        ) from None
    return path, dict(state)
