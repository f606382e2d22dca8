"""Training in real processes that can be killed, stopped and looked at.

The processes are forked from a server that has imported everything, so that one starts in a second
instead of ten. Each rank's output goes to a file.
"""

import contextlib
import importlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Hook = Callable[[], None]
"""Runs in a rank before training; what it changes there is the fault that is tested."""


def meeting_port() -> int:
    """For MASTER_PORT. Below 32768: above it systems hand out ports to anyone at any time."""
    return random.randint(10000, 32000)


def _context() -> Any:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "tests.vlp.ranks", "vlp.models.init"])
    return context


class Ranks:
    """One run of train.py, or of another program, on `size` ranks.

    Attributes:
        processes: by rank.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        size: int = 2,
        hook: Hook | None = None,
        program: str = "train",
    ) -> None:
        """Start the module `program`; `folder` gets rank-N.log."""
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"rank-{rank}.log" for rank in range(size)]
        for log in self.logs:
            log.unlink(missing_ok=True)  # of the start before
        port = meeting_port()
        context = _context()
        self.processes = []
        for rank in range(size):
            place = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            process = context.Process(
                target=_run, args=(place, self.logs[rank], list(arguments), hook, program)
            )
            process.start()
            self.processes.append(process)

    def wait(self, seconds: float = 200) -> list[int | None]:
        """Exit statuses, negative for signals."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        statuses = [process.exitcode for process in self.processes]
        if None in statuses:
            output = self.output()
            self.kill()
            raise AssertionError(f"still running after {seconds} s: {statuses}\n{output}")
        return statuses

    def wait_for(self, condition: Callable[[], bool], seconds: float = 200) -> bool:
        """Wait until something is so; False if the ranks end before."""
        deadline = time.monotonic() + seconds
        while not condition():
            if not all(process.is_alive() for process in self.processes):
                return condition()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.01)
        return True

    def kill(self) -> None:
        """kill -9 for all ranks and what they have started, at once."""
        doomed = [process.pid for process in self.processes if process.is_alive()]
        for one in [*doomed, *(child for pid in doomed for child in children(pid))]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        for process in self.processes:
            process.join()

    def output(self) -> str:
        return "\n".join(log.read_text() for log in self.logs if log.is_file())


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def _run(
    place: dict[str, str], log: Path, arguments: list[str], hook: Hook | None, program: str
) -> None:
    from vlp.config import run_program

    main = importlib.import_module(program).main
    os.environ.update(place)
    os.chdir(ROOT)
    # Loader processes start as they do under torchrun, and not from a server again.
    multiprocessing.set_start_method("fork", force=True)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    if hook is not None:
        hook()
    run_program(main, arguments)


def arguments(home: Path, *overrides: str) -> list[str]:
    """The command line of a run in `home`, which `make_home` has made."""
    return [
        str(home / "c.yaml"),
        f"runs={home / 'runs'}",
        f"data.sources.a.path={home / 'shards'}",
        *overrides,
    ]


def make_home(folder: Path) -> Path:
    """A folder with a configuration and 23 samples to train on."""
    from tests.shard_factory import make_shards
    from tests.vlp.tiny import RUN

    make_shards(folder / "shards", (9, 8, 5, 1), val=(7,), width=64, height=64)
    (folder / "c.yaml").write_text(RUN)
    return folder


def numbers(home: Path, run: str) -> list[dict[str, Any]]:
    """The metrics of a run without timings."""
    from vlp.curves import read_metrics

    path = home / "runs" / run / "metrics.jsonl"
    rows = read_metrics(path) if path.is_file() else []
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]
