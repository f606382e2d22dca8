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
) -> list[int]:
    """Kill runs of `program` at random times; return how many units were done at each kill.

    A run that ends before it is killed is compared with the undisturbed one, and the next begins
    anew: all kills hit a living run, at moments spread over its whole length.
    """
    rng = random.Random(seed)
    start = time.monotonic()
    subprocess.run(
        program(folder / "undisturbed"), cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL
    )
    duration = time.monotonic() - start
    expected = tree(folder / "undisturbed")
    done, round_number = [], 0
    while len(done) < kills or not (folder / str(round_number) / "manifest.json").is_file():
        out = folder / str(round_number)
        process = subprocess.Popen(
            program(out), cwd=REPOSITORY, stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            last = None if len(done) == kills else rng.uniform(0.2, 1.0) * duration
            assert process.wait(last) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done.append(len(list(out.glob("units/*.json"))))
            continue
        assert tree(out) == expected
        if len(done) < kills:
            round_number += 1
    return done


def test_twenty_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workers = itertools.cycle("112")  # starting processes takes most of the time

    def program(out: Path) -> list[str]:
        return command(out, f"workers={next(workers)}", "items=300", "delay=0.003")

    done = kill_and_finish(program, tmp_path, 20, SEED)
    with capsys.disabled():
        print(f"\nseed {SEED}: killed with {done} of 60 units done")
    assert len(done) == 20


def test_kills_of_the_pmc_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_pmc(tmp_path / "in", articles=120, figures=3)

    def program(out: Path) -> list[str]:
        stage = [sys.executable, "-m", "data_prep", "pmc", f"source={source}", f"out={out}"]
        return [*stage, "articles_per_shard=3", "workers=2"]

    done = kill_and_finish(program, tmp_path, 3, SEED)
    with capsys.disabled():
        print(f"\nseed {SEED}: killed with {done} of about 40 units done")
    assert len(done) == 3
