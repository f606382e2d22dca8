"""Things that break during training: each ends in a clear message, none in silence."""

import os
import resource
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.vlp.ranks import Ranks, arguments, children, make_home, numbers
from vlp import checkpoint


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(tmp_path)


def train(home: Path, *overrides: str, hook: Any = None, size: int = 2) -> Ranks:
    return Ranks(home / "logs", arguments(home, *overrides), size, hook)


def at_step(step: int, action: Any, rank: int) -> None:
    """Do something on one rank in the forward pass after so many steps."""
    from vlp.trainer import Trainer

    forward = Trainer.gradients

    def faulty(self: Trainer, batch: Any) -> Any:
        self.watchdog.at(self.step, "forward")
        if self.step == step and self.world.rank == rank:
            action()
        return forward(self, batch)

    Trainer.gradients = faulty


def hang_for_ever() -> None:
    time.sleep(1000)


def test_a_rank_that_hangs_is_named_with_step_and_stack(home: Path) -> None:
    hook = partial(at_step, 3, hang_for_ever, 1)
    ranks = train(home, "train.timeout=10", "data.workers=0", hook=hook)
    assert ranks.wait() == [70, 70], ranks.output()
    told = ranks.logs[0].read_text()
    assert (
        "no rank got on for 10 s (train.timeout): rank 1 is behind, after step 3, in 'forward'"
        in told
    )
    assert "in hang_for_ever" in ranks.logs[1].read_text()
    stacks = home / "runs" / "run" / "stacks"
    assert "in hang_for_ever" in (stacks / "rank-1.txt").read_text()
    assert "after step 3" in (stacks / "rank-0.txt").read_text()


def test_a_frozen_rank_is_named_by_the_others(home: Path) -> None:
    ranks = train(home, "train.timeout=10", "train.steps=500", "data.workers=0")
    assert ranks.wait_for(lambda: len(numbers(home, "run")) > 5)
    os.kill(ranks.processes[1].pid, signal.SIGSTOP)
    ranks.processes[0].join(90)
    os.kill(ranks.processes[1].pid, signal.SIGKILL)
    assert ranks.processes[0].exitcode == 70
    assert "rank 1 gives no sign of life: frozen, or its machine is gone" in ranks.output()


def test_a_rank_that_dies_ends_the_others(home: Path) -> None:
    ranks = train(home, "train.steps=500")
    assert ranks.wait_for(lambda: len(numbers(home, "run")) > 5)
    ranks.processes[1].kill()
    assert ranks.wait(30) == [2, -signal.SIGKILL]
    assert "error: another process of the run is gone" in ranks.output()


def test_a_loader_process_that_dies_ends_the_run(home: Path) -> None:
    ranks = train(home, "train.steps=500", size=1)
    assert ranks.wait_for(lambda: len(numbers(home, "run")) > 5)
    for child in children(ranks.processes[0].pid):
        os.kill(child, signal.SIGKILL)
    assert ranks.wait(30) == [2]
    assert "error: a loader process died (" in ranks.output()


def full_disk(rank: int, first: int, last: int) -> None:
    """Between two steps no file of this rank grows beyond 16 kB: a real error of write()."""
    from vlp.trainer import Trainer

    take = Trainer._train_step
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(self: Trainer, batch: Any) -> Any:
        if self.world.rank == rank and self.step in (first, last):
            if self.checkpoints.pending is not None:  # the one before is to be whole
                self.checkpoints.pending.result()
            size = 16384 if self.step == first else hard
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        return take(self, batch)

    Trainer._train_step = limited


def test_disk_full_while_saving(home: Path) -> None:
    """The checkpoint after step 8 fails on rank 1; those after 4 and 12 are written."""
    ranks = train(home, "train.keep_checkpoints=3", hook=partial(full_disk, 1, 6, 10))
    assert ranks.wait() == [0, 0], ranks.output()
    told = ranks.logs[0].read_text()
    assert "CHECKPOINT NOT WRITTEN after step 8: rank 1: [Errno 27] File too large" in told
    folder = home / "runs" / "run" / "checkpoints"
    assert checkpoint.steps(folder) == [4, 12]
    for step in (4, 12):
        assert isinstance(checkpoint.verify(folder / f"step-{step:09d}"), dict)
    assert not list(folder.glob("*.tmp"))
    assert len(numbers(home, "run")) == 14


def test_disk_full_at_the_last_checkpoint(home: Path) -> None:
    """Nothing is lost but the last steps, and nobody is told that the run is complete."""
    ranks = train(home, "data.workers=0", hook=partial(full_disk, 0, 9, 1000))
    assert ranks.wait() == [2, 2], ranks.output()
    told = ranks.logs[0].read_text()
    assert "error: the last checkpoint, after step 12, could not be written: model folder: " in told
    assert "rank 0: [Errno 27] File too large; make room, then run the same command again" in told
    assert checkpoint.steps(home / "runs" / "run" / "checkpoints") == [4, 8]
    again = train(home)
    assert again.wait() == [0, 0], again.output()
    assert "resumed after step 8" in again.output()


def test_signal_to_the_whole_process_group(home: Path) -> None:
    """Slurm signals loader processes too: they go on until the step is saved."""
    ranks = train(home, "train.steps=500", "data.workers=2")
    assert ranks.wait_for(lambda: len(numbers(home, "run")) > 5)
    for process in ranks.processes:
        for pid in (*children(process.pid), process.pid):
            os.kill(pid, signal.SIGUSR1)
    assert ranks.wait(60) == [75, 75], ranks.output()
    assert "stopped by SIGUSR1 after step" in ranks.output()
