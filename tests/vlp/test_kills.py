"""Stopped at any moment, in any way, and started again: the run is the one that was never stopped.

Everything here compares with `==`, except across world sizes, where sums have another order.
"""

import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vlp.ranks import Ranks, arguments, make_home, numbers
from vlp import checkpoint
from vlp.models.hub import load_pretrained

STEPS = 60
LONG = [f"train.steps={STEPS}", "train.eval_every=20", "train.checkpoint_every=3"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("kills"))


def train(home: Path, name: str, *overrides: str, size: int = 2, hook: Any = None) -> Ranks:
    return Ranks(home / "logs" / name, arguments(home, f"name={name}", *overrides), size, hook)


def slow_checkpoints() -> None:
    """Writing takes long enough to be interrupted at every stage of it."""
    facts = checkpoint._file_facts

    def slow(path: Path) -> dict[str, Any]:
        time.sleep(0.15)
        return facts(path)

    checkpoint._file_facts = slow


def interrupt(ranks: Ranks, home: Path, kind: str, rng: random.Random) -> None:
    """Wait for the moment, then stop the run in one of four ways."""
    folder, before = home / "runs" / "cut", len(numbers(home, "cut"))
    if kind == "while saving":
        ranks.wait_for(lambda: any((folder / "checkpoints").glob("*.tmp/*")))
        time.sleep(rng.uniform(0, 0.2))
        ranks.kill()
        return
    rows = before + rng.randint(-2, 6)  # after a kill the run begins by taking rows back
    if kind == "SIGKILL":
        ranks.wait_for(lambda: len(numbers(home, "cut")) >= rows)
        time.sleep(rng.uniform(0, 1))
        ranks.kill()
        return
    ranks.wait_for(lambda: "samples an epoch" in ranks.output())
    ranks.wait_for(lambda: len(numbers(home, "cut")) >= rows)
    time.sleep(rng.uniform(0, 0.1))
    os.kill(ranks.processes[rng.randrange(2)].pid, getattr(signal, kind))  # one rank hears it
    statuses = ranks.wait()
    assert statuses in ([75, 75], [0, 0]), ranks.output()


@pytest.mark.timeout(900)  # 21 starts of two ranks
def test_twenty_interruptions_change_nothing(home: Path) -> None:
    """SIGTERM, SIGUSR1, kill -9, kill -9 during a checkpoint, at random moments, on two ranks."""
    whole = train(home, "whole", *LONG)
    assert whole.wait() == [0, 0], whole.output()

    rng = random.Random(4)
    kinds = 5 * ["SIGTERM", "SIGUSR1", "SIGKILL", "while saving"]
    rng.shuffle(kinds)
    unfinished = 0
    for kind in kinds:
        ranks = train(home, "cut", *LONG, hook=slow_checkpoints)
        interrupt(ranks, home, kind, rng)
        unfinished += any((home / "runs/cut/checkpoints").glob("*.tmp"))
    assert unfinished >= 3  # kills did hit half-written checkpoints
    last = train(home, "cut", *LONG)
    assert last.wait() == [0, 0], last.output()

    assert numbers(home, "cut") == numbers(home, "whole")
    assert len(numbers(home, "whole")) == STEPS + 3
    assert not list((home / "runs/cut/checkpoints").glob("*.tmp"))
    first, second = (
        load_pretrained(home / "runs" / name / "model").model.state_dict()
        for name in ("cut", "whole")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def record_keys(folder: Path, stop_after: int) -> None:
    """Write down the samples of every step, and stop as Slurm would after one of them."""
    from vlp.trainer import Trainer

    take, rank = Trainer._train_step, int(os.environ["RANK"])

    def recorded(self: Trainer, batch: Any) -> Any:
        with (folder / f"{self.world.size}-{rank}.txt").open("a") as file:
            file.write(f"{self.step} {' '.join(batch.keys)}\n")
        if self.step + 1 == stop_after and rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, batch)

    Trainer._train_step = recorded


def keys_of(folder: Path) -> dict[int, list[str]]:
    """Step -> the samples of its global batch, rank by rank."""
    steps: dict[int, list[str]] = {}
    for path in sorted(folder.glob("*.txt")):
        for line in path.read_text().splitlines():
            step, *keys = line.split()
            steps.setdefault(int(step), []).extend(keys)
    return steps


def test_one_two_four_ranks_see_the_same_batches(home: Path) -> None:
    """A run that moves from 1 rank to 2 to 4 and one that stays on 2, with a batch that grows.

    The samples of every step are the same, in the same order. The losses, of 2 to 3, differ by the
    order of sums, which 20 steps of training amplify from 1e-7 to less than 1e-4.
    """
    growing = ["train.batch_schedule={2: 16}", "train.steps=12", "data.workers=0"]
    logs = {name: home / "keys" / name for name in ("stays", "moves")}
    for folder in logs.values():
        folder.mkdir(parents=True)
    stays = train(home, "stays", *growing, hook=partial(record_keys, logs["stays"], 0))
    assert stays.wait() == [0, 0], stays.output()
    for size, stop in ((1, 4), (2, 8), (4, 0)):
        hook = partial(record_keys, logs["moves"], stop)
        moves = train(home, "moves", *growing, size=size, hook=hook)
        assert set(moves.wait()) == ({75} if stop else {0}), moves.output()

    keys = keys_of(logs["stays"])
    assert keys == keys_of(logs["moves"])
    assert [len(keys[step]) for step in range(12)] == 6 * [8] + 6 * [16]
    stream = [key for step in range(12) for key in keys[step]]
    for epoch in range(len(stream) // 23):  # each sample once per epoch, also where batches grow
        assert len(set(stream[epoch * 23 : (epoch + 1) * 23])) == 23
    for one, other in zip(numbers(home, "stays"), numbers(home, "moves"), strict=True):
        assert one["step"] == other["step"]
        if "train/loss" in one:
            assert one["train/loss"] == pytest.approx(other["train/loss"], abs=1e-4)


def test_more_than_two_ranks_resume_bit_for_bit(home: Path) -> None:
    """From three ranks on the order of a sum depends on DDP's buckets (Trainer._settle)."""
    short = ["train.steps=6", "data.workers=0", "train.eval_every=0"]
    whole = train(home, "four", *short, size=4)
    assert whole.wait() == [0] * 4, whole.output()
    (home / "keys" / "four").mkdir(parents=True)
    hook = partial(record_keys, home / "keys" / "four", 3)
    cut = train(home, "four-cut", *short, size=4, hook=hook)
    assert cut.wait() == [75] * 4, cut.output()
    assert "stopped by SIGTERM after step 3, saved" in cut.output()
    rest = train(home, "four-cut", *short, size=4)
    assert rest.wait() == [0] * 4, rest.output()
    assert numbers(home, "four-cut") == numbers(home, "four")


@pytest.mark.parametrize("option", ["train.parallel=fsdp", "train.micro_batch=2"])
def test_other_ways_to_train_resume_bit_for_bit(home: Path, option: str) -> None:
    """Shards, and GradCache, both with averaged weights and random depth."""
    name = option.partition("=")[2]
    extras = [option, "train.ema_decay=0.9", "model.image.drop_path=0.2", "data.workers=0"]
    whole = train(home, name, *extras, "train.steps=6")
    assert whole.wait() == [0, 0], whole.output()
    (home / "keys" / name).mkdir(parents=True)
    hook = partial(record_keys, home / "keys" / name, 3)
    cut = train(home, f"{name}-cut", *extras, "train.steps=6", hook=hook)
    assert cut.wait() == [75, 75], cut.output()
    rest = train(home, f"{name}-cut", *extras, "train.steps=6")
    assert rest.wait() == [0, 0], rest.output()
    assert numbers(home, f"{name}-cut") == numbers(home, name)
