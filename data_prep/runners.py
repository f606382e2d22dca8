"""Runs units of work, retries those that fail, and goes on without those that keep failing.

A runner only executes: what a unit does, and that a finished one is skipped, is the matter of
units.py. Here are the runners on this machine; ray_runner.py and slurm.py have the others.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from rich.console import Console

from data_prep.progress import Counted, Display, Meter
from vlp.config import UserError

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
C = TypeVar("C", bound=Counted)

_MAX_FAILED_STARTS = 3
_PRELOADED = ("data_prep", "vlp", "numpy", "PIL", "lxml", "pyarrow")


class UnitsFailed(Exception):
    """Some units could not be made; the message names them. The program's exit status is 1."""


@dataclass(frozen=True)
class Done(Generic[T, R]):
    """A unit that was done, and what it returned."""

    item: T
    result: R


@dataclass(frozen=True)
class Problem:
    """Why an attempt failed, in a form that crosses the border of a process."""

    error: str
    """One line: type, message and notes of the exception, or the signal that ended the worker."""
    details: str = ""
    """The traceback."""
    killed: bool = False
    """The worker process ended; most often memory was short."""
    users: bool = False
    """A UserError: another attempt would meet the same."""


@dataclass(frozen=True)
class Failed(Generic[T]):
    """An attempt at a unit that failed."""

    item: T
    problem: Problem
    attempts: int
    final: bool
    """No further attempt follows."""


Outcome: TypeAlias = Done[T, R] | Failed[T]
Outcomes: TypeAlias = Generator[Outcome[T, R], None, None]
"""To be closed by whoever stops early: that ends the workers."""


@dataclass(frozen=True)
class Task(Generic[T]):
    """A unit on its way to a worker."""

    item: T
    attempt: int = 1


class Workers(Protocol[T, R_co]):
    """Something that works on tasks, several at a time."""

    def has_room(self) -> bool:
        """Whether another task may be started."""
        ...

    def is_busy(self) -> bool:
        """Whether any task is being worked on."""
        ...

    def start(self, task: Task[T]) -> None:
        """Hand a task to a free worker."""
        ...

    def wait(self) -> Iterable[tuple[Task[T], R_co | Problem]]:
        """Wait until at least one task has ended, or nothing can be waited for."""
        ...

    def close(self) -> None:
        """End the workers at once."""
        ...


def core_count() -> int:
    """The cores that this process may use, which a batch system often makes fewer than all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def attempt_all(workers: Workers[T, R], items: Iterable[T], retries: int) -> Outcomes[T, R]:
    """Every item's outcome as it comes, failed attempts included.

    A failed item is tried again after all others that wait. One whose worker was killed is tried
    again when nothing else runs, since the usual cause is that memory did not suffice for several.
    """
    queue, alone = deque(Task(item) for item in items), deque[Task[T]]()
    try:
        while queue or alone or workers.is_busy():
            while queue and workers.has_room():
                workers.start(queue.popleft())
            if alone and not queue and not workers.is_busy():
                workers.start(alone.popleft())
            for task, result in workers.wait():
                if not isinstance(result, Problem):
                    yield Done(task.item, result)
                    continue
                final = task.attempt > retries or result.users
                if not final:
                    later = alone if result.killed else queue
                    later.append(Task(task.item, task.attempt + 1))
                yield Failed(task.item, result, task.attempt, final)
    finally:
        workers.close()


def shown(outcomes: Outcomes[T, C], meter: Meter, console: Console, every: float) -> Outcomes[T, C]:
    """The same outcomes, counted and displayed as they pass."""
    with contextlib.closing(outcomes), Display(meter, console, every) as display:
        for outcome in outcomes:
            if isinstance(outcome, Done):
                meter.add(outcome.result)
            else:
                meter.failed += outcome.final
                meter.retried += not outcome.final
                said = f"attempt {outcome.attempts} at {outcome.item} failed"
                display.say(f"{said}: {outcome.problem.error}")
            display.refresh()
            yield outcome


def results(outcomes: Outcomes[T, R]) -> Iterator[R]:
    """Results alone, for work of which all must succeed.

    Raises:
        UserError: an item failed.
    """
    with contextlib.closing(outcomes):
        for outcome in outcomes:
            if isinstance(outcome, Done):
                yield outcome.result
            elif outcome.final and (outcome.problem.users or outcome.problem.killed):
                raise UserError(outcome.problem.error)
            elif outcome.final:
                raise RuntimeError(outcome.problem.details)


def map_unordered(work: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Results of `work(item)` as they come; one worker works in this process.

    Raises:
        UserError: the work raised one, or a worker process was killed.
    """
    count = 1 if len(items) < 2 else workers
    return results(attempt_all(local_workers(work, count), items, retries=0))


def local_workers(work: Callable[[T], R], workers: int) -> Workers[T, R]:
    """For 1 this process itself, which suits debuggers; else processes, for 0 one on each core."""
    return ThisProcess(work) if workers == 1 else Processes(work, workers or core_count())


def start_server() -> None:
    """Begin to start the process that worker processes are forked from, unless it runs.

    It imports what this process has imported until now, at the same time as this one goes on to
    plan. Not plain fork: the display has a thread, and a forked copy of its lock can stay locked.
    The server has no thread, and replaces a worker in no time.
    """
    names = (name for name in sys.modules if name.partition(".")[0] in _PRELOADED)
    multiprocessing.set_forkserver_preload(sorted(names))
    forkserver.ensure_running()


def call(work: Callable[[T], R], item: T) -> R | Problem:
    """`work(item)`, or what went wrong."""
    try:
        return work(item)
    except Exception as error:  # noqa: BLE001 -- whatever a unit raises is that unit's problem
        return problem_of(error)


def problem_of(error: BaseException) -> Problem:
    """An exception as a Problem."""
    users = isinstance(error, UserError)
    text = str(error) if users else "".join(traceback.format_exception_only(error))
    details = "".join(traceback.format_exception(error))
    return Problem("; ".join(text.strip().splitlines()), details, users=users)


class ThisProcess(Generic[T, R]):
    """One worker that is this process."""

    def __init__(self, work: Callable[[T], R]) -> None:
        self._work = work
        self._task: Task[T] | None = None

    def has_room(self) -> bool:
        """See Workers."""
        return self._task is None

    def is_busy(self) -> bool:
        """See Workers."""
        return self._task is not None

    def start(self, task: Task[T]) -> None:
        """See Workers."""
        self._task = task

    def wait(self) -> Iterable[tuple[Task[T], R | Problem]]:
        """See Workers."""
        task, self._task = self._task, None
        return [] if task is None else [(task, call(self._work, task.item))]

    def close(self) -> None:
        """See Workers."""


class Processes(Generic[T, R]):
    """Worker processes. One that dies takes its own task with it and nothing else.

    concurrent.futures cannot serve here: it gives up all tasks when one process dies, and doesn't
    tell which task that process had.
    """

    def __init__(self, work: Callable[[T], R], count: int) -> None:
        start_server()
        self._context = multiprocessing.get_context("forkserver")
        self._work, self._count = work, count
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def has_room(self) -> bool:
        """See Workers."""
        return sum(worker.task is not None for worker in self._workers) < self._count

    def is_busy(self) -> bool:
        """See Workers."""
        return any(worker.task is not None for worker in self._workers)

    def start(self, task: Task[T]) -> None:
        """See Workers."""
        for worker in [worker for worker in self._workers if worker.task is None]:
            with contextlib.suppress(BrokenPipeError):  # killed while it had nothing to do
                worker.give(task)
                return
            self._remove(worker)
        worker = _Worker(self._context, self._work)
        self._workers.append(worker)
        worker.give(task)

    def wait(self) -> Iterable[tuple[Task[T], R | Problem]]:
        """See Workers."""
        busy: dict[Any, _Worker] = {w.pipe: w for w in self._workers if w.task is not None}
        ended = []
        for pipe in wait(list(busy)):
            worker = busy[pipe]
            try:
                message = worker.pipe.recv()
            except (EOFError, ConnectionError):
                ended += self._bury(worker)
                continue
            if worker.started:
                ended.append((worker.task, message))
                worker.task = None
            else:
                self._failed_starts = 0
                worker.begin()
        return ended

    def close(self) -> None:
        """See Workers."""
        for worker in self._workers:
            worker.pipe.close()  # an idle worker ends when it sees this
            if worker.task is not None:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
        self._workers = []

    def _bury(self, worker: "_Worker") -> list[tuple[Task[T], Problem]]:
        """The task of a worker that has died, as a failed one; a new worker takes the next."""
        self._remove(worker)
        code = worker.process.exitcode or 0
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"ended with status {code}"
        if worker.started:
            text = f"worker process {how}; most often memory is short: try fewer workers"
            return [(worker.task, Problem(text, killed=True))]
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise UserError(f"worker processes cannot start: the last {how} before its first unit")
        self.start(worker.task)
        return []

    def _remove(self, worker: "_Worker") -> None:
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join()


class _Worker:
    """One process, and the task that it has."""

    def __init__(self, context: Any, work: Callable[[Any], Any]) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends with the process
        self.started = False
        self.task: Any = None

    def give(self, task: Task[Any]) -> None:
        """Send a task, or keep it until the process has started: a large one fills the pipe."""
        if self.started:
            self.pipe.send(task.item)
        self.task = task

    def begin(self) -> None:
        """The process has started."""
        self.started = True
        with contextlib.suppress(BrokenPipeError):  # the next wait() finds that it died
            self.pipe.send(self.task.item)


def _signal_name(number: int) -> str:
    return next((s.name for s in signal.Signals if s == number), f"signal {number}")


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """What a worker process does: first a word that it has started, then item after item."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):  # the parent wants no more
        pipe.send(None)
        while True:
            pipe.send(call(work, pipe.recv()))


def _end_with_parent() -> None:
    """End this worker when the main process has been killed: nobody else would end it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
