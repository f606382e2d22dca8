"""Killed at random moments with all its processes, a run still comes to the same bytes."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data_prep.factories import tree, write_pmc
from tests.data_prep.synthetic import REPOSITORY, command

SEED = int(os.environ.get("KILL_SEED", time.time_ns() % 1_000_000))


def kill_and_finish(
    program: Callable[[Path], list[str]], folder: Path, kills: int, seed: int
) -> list[str]:
    """Kill runs of `program` at random moments; return how many units were done at each kill.

    A moment is a random count of further units and a random time after it: some kills hit a run
    that starts, or one that writes index and manifest. When all units are done the next run goes
    to its end and is compared with the undisturbed one; then a new round begins.
    """
    rng = random.Random(seed)
    undisturbed = program(folder / "undisturbed")
    subprocess.run(undisturbed, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    expected = tree(folder / "undisturbed")
    total = count(folder / "undisturbed")
    killed: list[str] = []
    round_number = 0
    while True:
        out = folder / str(round_number)
        to_its_end = len(killed) == kills or count(out) == total
        process = subprocess.Popen(
            program(out), cwd=REPOSITORY, stdout=subprocess.DEVNULL, start_new_session=True
        )
        if not to_its_end:
            further = rng.randint(1, total // 3) if rng.random() < 0.9 else 0
            goal = min(count(out) + further, total)
            while process.poll() is None and count(out) < goal:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.1))
        if not to_its_end and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed.append(f"{round_number}: {count(out)}")
            continue
        assert process.wait() == 0
        assert tree(out) == expected
        if len(killed) == kills:
            return killed
        round_number += 1


def count(out: Path) -> int:
    """Units that are done."""
    return len(list(out.glob("units/*.json")))


def test_twenty_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workers = itertools.cycle("112")  # starting processes takes most of the time

    def program(out: Path) -> list[str]:
        return command(out, f"workers={next(workers)}", "items=300", "delay=0.003")

    killed = kill_and_finish(program, tmp_path, 20, SEED)
    with capsys.disabled():
        print(f"\nKILL_SEED={SEED}; round and units done at each kill: {', '.join(killed)}")
    assert len(killed) == 20


def test_kills_of_the_pmc_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_pmc(tmp_path / "in", articles=120, figures=3)

    def program(out: Path) -> list[str]:
        stage = [sys.executable, "-m", "data_prep", "pmc", f"source={source}", f"out={out}"]
        return [*stage, "articles_per_shard=3", "workers=2"]

    killed = kill_and_finish(program, tmp_path, 3, SEED)
    with capsys.disabled():
        print(f"\nKILL_SEED={SEED}; round and units done at each kill: {', '.join(killed)}")
    assert len(killed) == 3
