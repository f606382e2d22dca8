"""Language-model pretraining in several processes, killed, stopped and started again."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.vlp.ranks import Ranks, numbers
from tests.vlp.text.tiny import arguments, make_home

PROGRAM = "vlp.text_pretrain"
SLOW = ["train.steps=24", "train.eval_every=12", "train.checkpoint_every=5", "train.workers=1"]
OBJECTIVES = [
    *("objectives.next_sentence=0.5", "objectives.next_sentence_pairs=4"),
    *("objectives.sections.weight=0.5", "objectives.sections.corpus=a"),
    *("objectives.sections.first=text", "objectives.sections.second=summary"),
    *("objectives.sections.pairs=4", "objectives.sections.width=8"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("text-processes"))


def start(home: Path, name: str, *overrides: str, size: int = 1) -> Ranks:
    command = arguments(home, f"name={name}", *overrides)
    return Ranks(home / "logs" / name, command, size, program=PROGRAM)


def run(home: Path, name: str, *overrides: str, size: int = 1) -> list[dict[str, Any]]:
    """A whole run; its metrics."""
    ranks = start(home, name, *overrides, size=size)
    assert ranks.wait() == [0] * size, ranks.output()
    return numbers(home, name)


def weights(home: Path, name: str) -> dict[str, Tensor]:
    return load_file(home / "runs" / name / "model" / "model.safetensors")


def test_killed_and_stopped_equals_uninterrupted(home: Path) -> None:
    """kill -9, then SIGTERM, then to the end, with two ranks: the same bits."""
    want = run(home, "whole", *SLOW, *OBJECTIVES, size=2)
    cut = start(home, "cut", *SLOW, *OBJECTIVES, size=2)
    assert cut.wait_for(lambda: len(numbers(home, "cut")) >= 7)
    cut.kill()
    stopped = start(home, "cut", *SLOW, *OBJECTIVES, size=2)
    assert stopped.wait_for(lambda: len(numbers(home, "cut")) >= 10)
    os.kill(stopped.processes[1].pid, signal.SIGTERM)
    assert stopped.wait() == [75, 75], stopped.output()
    assert "stopped by SIGTERM after step" in stopped.output()
    assert len(numbers(home, "cut")) < len(want)
    assert run(home, "cut", *SLOW, *OBJECTIVES, size=2) == want
    first, second = weights(home, "whole"), weights(home, "cut")
    assert all(torch.equal(first[name], second[name]) for name in first)
    whole, again = (
        json.loads((home / f"runs/{name}/model/pretraining.json").read_text())
        for name in ("whole", "cut")
    )
    assert whole["tokens"] == again["tokens"]
    assert whole["flops"] == again["flops"]


def test_any_number_of_ranks_learns_the_same(home: Path) -> None:
    """1 rank; 2 copies and 2 shards, in micro-batches. The ranks have different numbers of masked
    tokens. Sums in another order, which 12 steps of Adam amplify from 1e-7 to less than 1e-4."""
    one = run(home, "one", *OBJECTIVES)
    copies = run(home, "copies", "train.micro_batch=3", *OBJECTIVES, size=2)
    shards = run(home, "shards", "train.parallel=fsdp", "train.micro_batch=2", *OBJECTIVES, size=2)
    assert one[-1]["val/bits_per_character/a"] > 0
    for other in (copies, shards):
        assert [row.keys() for row in other] == [row.keys() for row in one]
        for row, want in zip(other, one, strict=True):
            assert row == pytest.approx(want, abs=2e-4, rel=2e-4)
    assert max(row.get("train/loss", 0.0) for row in one) - one[-2]["train/loss"] > 0.2


def test_ranks_wait_for_what_rank_0_prepares(home: Path) -> None:
    """The cache is made once, whatever takes longer: nobody else prepares anything."""
    ranks = start(home, "prepare", f"cache={home / 'fresh'}", "train.steps=2", size=2)
    assert ranks.wait() == [0, 0], ranks.output()
    first, second = (log.read_text() for log in ranks.logs)
    assert first.count("training a vocabulary") == 1
    assert "documents:" in first
    assert second == ""
    assert not list((home / "fresh").glob("*.tmp"))


def test_faults_reach_the_user_once(home: Path) -> None:
    ranks = start(home, "fault", "corpora.a.fields=[body]", size=2)
    assert ranks.wait(60) == [2, 2]  # torchrun stops rank 1 before it says anything
    (line,) = ranks.logs[0].read_text().splitlines()
    assert line.startswith("error: ")
    assert "body" in line
    assert "rank 0 could not make" in ranks.logs[1].read_text()
