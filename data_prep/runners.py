"""Runs units of work on all cores of this machine, with a progress bar.

A runner only executes: what a unit does, and that a finished one is skipped, is build.py's matter.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vlp.config import UserError

T = TypeVar("T")
R = TypeVar("R")
C = TypeVar("C", bound="Counted")


class Counted(Protocol):
    """What a unit of work reports of itself."""

    @property
    def samples(self) -> int:
        """Samples written."""
        ...

    @property
    def rejected(self) -> int:
        """Figures dropped."""
        ...


def core_count() -> int:
    """The cores that this process may use, which a batch system often makes fewer than all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_units(
    work: Callable[[T], C], units: Sequence[T], workers: int, console: Console
) -> Iterator[C]:
    """Reports of `work(unit)` as they come; the bar counts units, samples a second and rejects."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} units"),
        TextColumn("{task.fields[samples]:,} samples ({task.fields[rate]:,.0f}/s)"),
        TextColumn("{task.fields[rejected]:,} rejects"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        samples = rejected = 0
        bar = progress.add_task("shards", total=len(units), samples=0, rate=0.0, rejected=0)
        for report in map_unordered(work, units, workers):
            samples, rejected = samples + report.samples, rejected + report.rejected
            elapsed = progress.tasks[bar].elapsed or 0.0
            rate = samples / elapsed if elapsed else 0.0
            progress.update(bar, advance=1, samples=samples, rate=rate, rejected=rejected)
            yield report


def map_unordered(work: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Results of `work(item)` as they come; one worker works in this process.

    Raises:
        UserError: a worker process was killed.
    """
    if workers == 1 or len(items) < 2:
        yield from map(work, items)
        return
    # Not fork: the progress bar has a thread, and a forked copy of its lock can stay locked.
    context = multiprocessing.get_context("spawn")
    count = min(workers, len(items))
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker)
    try:
        waiting: set[Future[R]] = {pool.submit(work, item) for item in items}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most often for want of memory; "
            "run the same command again to continue, with fewer workers (workers=1)"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the main process has been killed: nobody else would end it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
