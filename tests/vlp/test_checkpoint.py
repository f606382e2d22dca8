"""Checkpoints on one process: written whole or not at all, and verified before they are used."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from vlp import checkpoint
from vlp.checkpoint import Checkpoints
from vlp.config import UserError


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    half = torch.ones(3).bfloat16()
    return {"w": torch.full((40, 5), value), "scale": torch.tensor(value), "half": half}


def write(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, tensors(step), {"note": f"step {step}"})
    saved = checkpoints.wait()
    assert saved is not None
    assert (saved.step, saved.error) == (steps[-1], "")
    return checkpoints


def test_rotation_and_what_is_read_back(tmp_path: Path) -> None:
    for stray in ("step-000000001.tmp", "step-000000000.old"):
        (tmp_path / stray).mkdir(parents=True)
    checkpoints = write(tmp_path, 2, 4, 6)
    assert checkpoint.steps(tmp_path) == [4, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000004", "step-000000006"]
    found = checkpoints.newest()
    assert found is not None
    assert (found.step, found.facts, found.damaged) == (6, {"note": "step 6"}, [])
    target = tensors(0.0)
    checkpoints.load(found, target)
    for name, value in tensors(6.0).items():
        assert torch.equal(target[name], value)
    assert Checkpoints(tmp_path / "none", 1).newest() is None


def test_training_goes_on_while_the_copy_is_written(tmp_path: Path) -> None:
    """What changes after `save` returns is not in the checkpoint."""
    checkpoints, live = Checkpoints(tmp_path, 1), tensors(1.0)
    checkpoints.save(1, live, {})
    live["w"].zero_()
    checkpoints.wait()
    found, target = checkpoints.newest(), tensors(0.0)
    assert found is not None
    checkpoints.load(found, target)
    assert torch.equal(target["w"], tensors(1.0)["w"])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-11] ^= 4
    path.write_bytes(data)


def version(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("*.safetensors", truncate, "safetensors has 1"),
        ("*.safetensors", flip, "was changed after it was written (its SHA-256 differs)"),
        ("*.safetensors", Path.unlink, "safetensors is missing"),
        ("checkpoint.json", truncate, "checkpoint.json is damaged"),
        ("checkpoint.json", Path.unlink, "checkpoint.json is missing"),
        ("checkpoint.json", version, "checkpoint.json is of version 99, this code reads 1"),
    ],
)
def test_damaged_checkpoints_give_way_to_the_one_before(
    tmp_path: Path, name: str, damage: Any, reason: str
) -> None:
    checkpoints = write(tmp_path, 2, 4)
    damage(next((tmp_path / "step-000000004").glob(name)))
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 2
    (told,) = found.damaged
    assert str(tmp_path / "step-000000004") in told
    assert reason in told
    assert (tmp_path / "step-000000004.damaged").is_dir()  # for a person to look at
    write(tmp_path, 4)  # and training writes it again
    assert checkpoint.steps(tmp_path) == [2, 4]


def test_no_whole_checkpoint_is_no_new_start(tmp_path: Path) -> None:
    checkpoints = write(tmp_path, 2)
    flip(next((tmp_path / "step-000000002").glob("*.safetensors")))
    with pytest.raises(UserError, match="no whole checkpoint is left: copy one back to"):
        checkpoints.newest()


def test_a_write_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoints = write(tmp_path, 2)
    (tmp_path / "step-000000004.tmp").write_text("a file where the folder should be")
    checkpoints.save(4, tensors(), {})
    saved = checkpoints.wait()
    assert saved is not None
    assert "rank 0: [Errno" in saved.error
    assert checkpoint.steps(tmp_path) == [2]


def test_tensors_of_something_else(tmp_path: Path) -> None:
    checkpoints = write(tmp_path, 2)
    found = checkpoints.newest()
    assert found is not None
    other = {"w": torch.zeros(40, 6), "scale": torch.tensor(0.0), "new": torch.zeros(1)}
    with pytest.raises(UserError) as caught:
        checkpoints.load(found, other)
    assert str(caught.value) == (
        f"{tmp_path}/step-000000002: of another model or optimiser (1 missing: new; 1 unexpected: "
        "half; 1 of another shape: w (40, 5) (here (40, 6))); use the settings that it was made "
        "with, or choose another name"
    )


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    write(tmp_path, 2)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in files) == [".json", ".safetensors"]
    shutil.rmtree(tmp_path)
