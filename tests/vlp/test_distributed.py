"""Several machines, shards of the model, batch schedules, and a run that is only planned."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.vlp.ranks import ROOT, Ranks, arguments, make_home, meeting_port, numbers
from vlp.config import UserError, load_config
from vlp.data.loader import RankPositions
from vlp.data.schedule import BatchSchedule
from vlp.dry_run import dry_run
from vlp.models.hub import load_pretrained
from vlp.settings import Config
from vlp.trainer import Trainer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("distributed"))


def run(home: Path, name: str, *overrides: str, size: int = 2) -> None:
    command = arguments(home, f"name={name}", "data.workers=0", *overrides)
    ranks = Ranks(home / "logs" / name, command, size)
    assert ranks.wait() == [0] * size, ranks.output()


def losses(home: Path, name: str) -> list[float]:
    return [row["train/loss"] for row in numbers(home, name) if "train/loss" in row]


def test_two_machines_of_two_ranks(home: Path) -> None:
    """Two torchruns that meet over the network; the same numbers as four ranks on one machine."""
    port = str(meeting_port())
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run"),
                *("--nnodes=2", f"--node-rank={node}", "--nproc-per-node=2"),
                *("--master-addr=127.0.0.1", f"--master-port={port}", "train.py"),
                *arguments(home, "name=nodes", "data.workers=0", "train.steps=6"),
            ],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (0, 1)
    ]
    outputs = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    assert "4 x cpu" in outputs[0]
    run(home, "one-machine", "train.steps=6", size=4)
    assert numbers(home, "nodes") == numbers(home, "one-machine")


def test_shards_of_the_model_train_as_copies_do(home: Path) -> None:
    """FSDP2 against DDP: sums in another order move the weights by 1e-6 a step at most."""
    run(home, "copies", "train.ema_decay=0.9")
    run(home, "shards", "train.ema_decay=0.9", "train.parallel=fsdp")
    assert losses(home, "shards") == pytest.approx(losses(home, "copies"), abs=1e-4)
    first, second = (
        load_pretrained(home / "runs" / name / "model").model.state_dict()
        for name in ("copies", "shards")
    )
    assert first.keys() == second.keys()
    assert max((first[key] - second[key]).abs().max() for key in first) < 1e-3


def test_shards_go_on_as_copies(home: Path) -> None:
    """A checkpoint is the same whichever way it was written: 2 shards -> 1 copy -> 4 shards."""
    for size, kind in ((2, "fsdp"), (1, "ddp"), (4, "fsdp")):
        done = {2: 4, 1: 8, 4: 12}[size]
        steps = ["optimizer.schedule=constant", f"train.steps={done}"]
        run(home, "moves", *steps, f"train.parallel={kind}", size=size)
    run(home, "constant", "optimizer.schedule=constant", "train.steps=12", size=1)
    assert losses(home, "moves") == pytest.approx(losses(home, "constant"), abs=1e-4)


def test_checkpointing_and_micro_batches_change_nothing(home: Path) -> None:
    """Both compute the same sums again: the losses agree to rounding."""
    run(home, "plain", size=1)
    run(home, "checkpointing", "train.activation_checkpointing=true", size=1)
    run(home, "micro", "train.micro_batch=3", size=1)
    for name in ("checkpointing", "micro"):
        assert losses(home, name) == pytest.approx(losses(home, "plain"), abs=1e-4)


def test_batches_that_grow() -> None:
    """Every position is taken once, in order, whatever the sizes; the ends are where epochs end."""
    schedule = BatchSchedule(8, {2: 16, 4: 24}, epoch_size=100, epochs=6)
    assert [stage.batch for stage in schedule.stages] == [8, 16, 24]
    assert [stage.position for stage in schedule.stages] == [0, 200, 392]
    taken = [
        position
        for step in range(schedule.steps)
        for rank in range(4)
        for position in next(iter(RankPositions(step, schedule.steps, schedule, rank, 4)))
    ]
    assert taken == list(range(len(taken)))
    assert abs(len(taken) - 600) <= 12
    assert schedule.batch(24) == 8
    assert schedule.batch(25) == 16
    assert str(schedule) == "8, from step 25 on 16, from step 37 on 24"
    with pytest.raises(UserError, match=r"batch_size=200 is more than the 100 training samples"):
        BatchSchedule(8, {2: 200}, 100, 4)
    with pytest.raises(UserError, match=r"batch_size=9 is not divisible by 2 processes"):
        RankPositions(0, 1, BatchSchedule(8, {1: 9}, 100, 2), 0, 2)


def test_dry_run_tells_and_trains_nothing(home: Path) -> None:
    config = load_config(Config, arguments(home, "name=dry", "data.workers=0"))
    trainer = Trainer(config)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    lines = list(dry_run(trainer))
    text = "\n".join(lines)
    assert "data: a: 23 samples, 23 in an epoch" in text
    assert "validation: 7 pairs" in text
    assert "steps: 12 of 8; 4.17 epochs of 23; warm-up 2" in text
    for begin in ("model: 0.3 M parameters", "memory of each of 1 x cpu: ", "time: about "):
        assert any(line.startswith(begin) for line in lines), text
    assert all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert not (home / "runs" / "dry" / "metrics.jsonl").exists()
    assert not list((home / "runs" / "dry").glob("checkpoints/*"))
