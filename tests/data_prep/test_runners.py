"""Runners: failures stop nothing else, killed workers are replaced, two runs do not mix."""

import io
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from data_prep import progress
from data_prep.build import fingerprint
from data_prep.locks import FolderLock
from data_prep.progress import Display, Meter
from data_prep.runners import (
    Done,
    Failed,
    Problem,
    Processes,
    Task,
    attempt_all,
    local_workers,
    map_unordered,
)
from data_prep.units import UnitReport
from tests.data_prep.factories import manifest_of, rejects_of, rows_of, tree
from tests.data_prep.synthetic import REPOSITORY, Item, command, run_synthetic
from vlp.config import UserError

IN_USE = "another run is working in this folder; wait for its end or stop it, or choose another out"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_synthetic(out, "workers=1")
    assert manifest_of(out)["samples"] == len(rows_of(out)) == 45
    assert [row["phash"] for row in rows_of(out)] == [
        int(row["key"][1:]) << 58 for row in rows_of(out)
    ]
    assert len(rejects_of(out)) == 16
    return tree(out)


def faults(folder: Path, **of_units: str) -> str:
    folder.mkdir(exist_ok=True)
    for unit, fault in of_units.items():
        (folder / unit.replace("_", "-")).write_text(fault)
    return f"faults={folder}"


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_unit_stops_no_other(
    undisturbed: dict[str, bytes], tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "out"
    bad = faults(tmp_path / "faults", train_00003="raise 99", val_00000="user 99")
    result = run_synthetic(out, bad, f"workers={workers}", "retries=1", status=1)
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: 2 of 12 units failed, so no manifest was written; ")
    assert lines[1:] == [
        "  train-00003: ValueError: two; lines (2 attempts)",
        "  val-00000: the user's fault (1 attempts)",
    ]
    for name in ("manifest.json", "index.parquet", "rejects.parquet"):
        assert not (out / name).exists()
    done = times(out)
    assert len(done) == 10
    report = json.loads((out / "units/train-00003.error").read_text())
    assert report["unit"] == "train-00003"
    assert "in _strike" in report["details"]

    run_synthetic(out, f"workers={workers}")
    assert tree(out) == undisturbed
    assert done.items() < times(out).items(), "finished units were made again"


def test_a_unit_that_fails_once_is_tried_again(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    bad = faults(tmp_path / "faults", train_00001="raise 2", train_00002="raise 1")
    result = run_synthetic(tmp_path / "out", bad, "workers=2")
    said = re.findall(r"^attempt (\d) at (\S+) failed: (.*)$", result.stdout, re.MULTILINE)
    assert sorted(said) == [
        ("1", "train-00001", "ValueError: two; lines"),
        ("1", "train-00002", "ValueError: two; lines"),
        ("2", "train-00001", "ValueError: two; lines"),
    ]
    assert "0 failed, 3 retried" in result.stdout
    assert tree(tmp_path / "out") == undisturbed


def test_a_killed_worker_is_replaced(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    bad = faults(
        tmp_path / "faults", train_00000="kill 1", train_00001="kill 1", train_00005="kill 2"
    )
    result = run_synthetic(tmp_path / "out", bad, "workers=2")
    assert result.stdout.count("worker process killed by SIGKILL") == 4
    assert tree(tmp_path / "out") == undisturbed


def test_a_unit_that_kills_its_worker_is_reported(tmp_path: Path) -> None:
    bad = faults(tmp_path / "faults", train_00004="kill 99")
    result = run_synthetic(tmp_path / "out", bad, "workers=2", status=1)
    line = result.stderr.splitlines()[1]
    assert line.startswith("  train-00004: worker process killed by SIGKILL; most often memory")
    assert line.endswith("(3 attempts)")
    assert len(times(tmp_path / "out")) == 11
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_killed_main_process_leaves_no_worker_behind(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """A rerun waits for the workers of the dead run: they hold its lock until they have ended."""
    out = tmp_path / "out"
    first = subprocess.Popen(
        command(out, "workers=2", "delay=0.05"), cwd=REPOSITORY, stdout=subprocess.DEVNULL
    )
    while not list(out.glob("units/*.json")):
        assert first.poll() is None
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    with FolderLock(out / "units" / "LOCK"):
        before = sorted(out.glob("*.tmp"))
        time.sleep(0.3)
        assert sorted(out.glob("*.tmp")) == before
        assert not (out / "manifest.json").exists()
    run_synthetic(out, "workers=2")
    assert tree(out) == undisturbed


def test_two_runs_at_once(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """The second waits for the first, then finds all units done; or it is told after seconds."""
    out = tmp_path / "out"
    run = partial(subprocess.Popen, command(out, "workers=2"), cwd=REPOSITORY, text=True)
    runs = [run(stderr=subprocess.PIPE) for _ in range(2)]
    ends = sorted((run.communicate()[1], run.returncode) for run in runs)
    assert ends[0] == ("", 0)
    assert ends[1] in (("", 0), (f"error: {out}: {IN_USE}\n", 2))
    assert tree(out) == undisturbed


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    released, first = threading.Event(), FolderLock(tmp_path / "LOCK")

    def release() -> None:
        released.set()
        first.__exit__()

    first.__enter__()
    threading.Timer(0.3, release).start()
    with FolderLock(tmp_path / "LOCK", patience=60):
        assert released.is_set()


def test_a_folder_in_use_is_left_alone(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    run_synthetic(tmp_path, "workers=2")
    with FolderLock(tmp_path / "units" / "LOCK", shared=True):
        second = run_synthetic(tmp_path, "size=100", status=2)
    assert second.stderr == f"error: {tmp_path}: {IN_USE}\n"
    assert tree(tmp_path) == undisturbed


def test_a_killed_run_and_other_settings(tmp_path: Path) -> None:
    """A shard without a sidecar, left by a kill, is known to be ours under any later plan."""
    out = tmp_path / "out"
    run_synthetic(out)
    (out / "units" / "train-00009.json").unlink()
    run_synthetic(out, "per_unit=20")
    run_synthetic(tmp_path / "fresh", "per_unit=20")
    assert tree(out) == tree(tmp_path / "fresh")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_broken_sidecar_is_made_again(
    undisturbed: dict[str, bytes], tmp_path: Path, content: bytes
) -> None:
    run_synthetic(tmp_path, "workers=1")
    (tmp_path / "units" / "train-00002.json").write_bytes(content)
    run_synthetic(tmp_path, "workers=1")
    assert tree(tmp_path) == undisturbed


@pytest.mark.parametrize("name", ["train-00002.parquet", "train-00002.rejects.parquet"])
def test_a_table_without_its_content_is_made_again(
    undisturbed: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    run_synthetic(tmp_path, "workers=1")
    (tmp_path / "units" / name).write_bytes(b"")
    run_synthetic(tmp_path, "workers=1")
    assert tree(tmp_path) == undisturbed


def square(number: int) -> int:
    """Work for a pool; the parent's monkeypatching does not reach it."""
    if number < 0:
        raise UserError(f"{number} is below 0")
    return number * number


def die_if_odd(number: int) -> int:
    """Work that kills its process now and then."""
    if number % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


class Unloadable:
    """Work that ends every process that loads it."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return os._exit, (7,)

    def __call__(self, _: int) -> int:
        return 0


@pytest.mark.parametrize("workers", [1, 2])
def test_map_unordered(workers: int) -> None:
    assert sorted(map_unordered(square, range(20), workers)) == [n * n for n in range(20)]
    with pytest.raises(UserError, match=r"^-3 is below 0$"):
        list(map_unordered(square, [1, 2, -3, 4], workers))


def test_large_items_pass() -> None:
    """Larger than a pipe holds, sent before the process listens."""
    workers = Processes(len, 2)
    outcomes = list(attempt_all(workers, [bytes(5_000_000)] * 3, retries=0))
    assert [o.result for o in outcomes if isinstance(o, Done)] == [5_000_000] * 3


def test_every_second_worker_dies() -> None:
    outcomes = list(attempt_all(Processes(die_if_odd, 2), range(8), retries=1))
    assert {o.item for o in outcomes if isinstance(o, Done)} == {0, 2, 4, 6}
    failed = sorted((o.item, o.attempts, o.final) for o in outcomes if isinstance(o, Failed))
    assert failed == [(n, k, k == 2) for n in (1, 3, 5, 7) for k in (1, 2)]


def test_an_idle_worker_that_was_killed_is_replaced() -> None:
    workers = Processes(square, 1)
    outcomes = attempt_all(workers, [2, 3], retries=0)
    assert next(outcomes) == Done(2, 4)
    os.kill(workers._workers[0].process.pid or 0, signal.SIGKILL)
    workers._workers[0].process.join()
    assert list(outcomes) == [Done(3, 9)]


def test_workers_that_cannot_start_are_an_error() -> None:
    with pytest.raises(UserError, match="cannot start: the last ended with status 7"):
        list(attempt_all(Processes(Unloadable(), 2), [1, 2, 3], retries=5))


class Scripted:
    """Workers that end all they have at each wait, and kill the item 1 in its first attempt."""

    def __init__(self) -> None:
        self.running: list[Task[int]] = []
        self.companies: list[list[int]] = []

    def has_room(self) -> bool:
        return len(self.running) < 2

    def is_busy(self) -> bool:
        return bool(self.running)

    def start(self, task: Task[int]) -> None:
        self.running.append(task)

    def wait(self) -> Iterable[tuple[Task[int], int | Problem]]:
        ended, self.running = self.running, []
        self.companies.append([task.item for task in ended])
        for task in ended:
            yield task, Problem("killed", killed=True) if task == Task(1, 1) else task.item

    def close(self) -> None:
        pass


def test_a_killed_unit_is_tried_again_alone() -> None:
    workers = Scripted()
    outcomes = list(attempt_all(workers, range(5), retries=1))
    assert workers.companies == [[0, 1], [2, 3], [4], [1]]
    assert outcomes[1] == Failed(1, Problem("killed", killed=True), 1, False)
    assert outcomes[-1] == Done(1, 1)


def test_one_worker_is_this_process() -> None:
    outcomes = list(attempt_all(local_workers(lambda _: os.getpid(), 1), [0], retries=0))
    assert outcomes == [Done(0, os.getpid())]


def test_lock_shared_and_exclusive(tmp_path: Path) -> None:
    path = tmp_path / "units" / "LOCK"
    path.parent.mkdir()
    for first, second, free in [(1, 1, True), (1, 0, False), (0, 1, False), (0, 0, False)]:
        with FolderLock(path, shared=bool(first)):
            other = FolderLock(path, shared=bool(second), patience=0)
            if free:
                with other:
                    pass
            else:
                with pytest.raises(UserError, match="another run is working"):
                    other.__enter__()


def test_progress_says_rates_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 110.0, 120.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    meter = Meter(40, "articles")
    assert meter.text().endswith("0 rejects, 0:00:10 gone, unknown left")
    for _ in range(9):
        meter.add(UnitReport(items=256, bytes=50_000_000, samples=1000, rejected=24))
    meter.failed, meter.retried = 1, 3
    assert meter.text() == (
        "9/40 units, 2,304 articles (115.2/s), 450 MB (22.5/s), 9,000 samples, 216 rejects, "
        "1 failed, 3 retried, 0:00:20 gone, 0:01:00 left"
    )


def test_progress_is_plain_lines_without_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=40)
    with Display(Meter(4, "rows"), console, every=0.05) as display:
        time.sleep(0.18)
        display.meter.add(UnitReport(1, 2, 3, 4))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert 3 <= len(lines) <= 5
    assert all(re.fullmatch(r"[01]/4 units, .* left", line) for line in lines)
    assert lines[-1].startswith("1/4 units, 1 rows (")


def test_progress_is_a_bar_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    with Display(Meter(1, "rows"), console, every=0.01) as display:
        display.meter.add(UnitReport(1, 2, 3, 4))
        display.refresh()
    assert "1/1 units, 1 rows" in console.file.getvalue()  # type: ignore[attr-defined]


def test_fingerprint_of_dataclasses_is_that_of_dictionaries() -> None:
    items = [Item(1), Item(2)]
    slow = fingerprint({"a": [asdict(item) for item in items]})
    assert fingerprint({"a": tuple(items)}) == slow
    assert fingerprint({"a": items[:1]}) != slow
    with pytest.raises(TypeError, match="set has no JSON form"):
        fingerprint({1})
