"""Loader processes: what they do about signals, and what the run says when one is lost.

Signals reach them that are not meant for them. Slurm tells every process of a job that its time is
up, torchrun and a terminal tell a whole process group. Only the training process may act on them:
it takes a checkpoint at the end of its step, and needs batches until then.
"""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vlp.config import UserError

_MEANT_FOR_THE_RUN = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


def start_worker(_: int) -> None:
    """Prepare a loader process; its number doesn't matter."""
    # Workers share the cores with each other: more threads in each only get in the way.
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        # Blocked, not ignored: a thread takes them and looks who sent them.
        signal.pthread_sigmask(signal.SIG_BLOCK, _MEANT_FOR_THE_RUN)
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    """End the process when the training process says so, and only then."""
    while True:
        received = signal.sigwaitinfo(_MEANT_FOR_THE_RUN)
        if received.si_signo == signal.SIGTERM and received.si_pid == parent:
            os._exit(0)


@contextmanager
def _held_back() -> Iterator[None]:
    """Within it the signals wait, for this thread and for the processes that it starts.

    A forked process in which torch has had several threads starts some anew, before `start_worker`
    is called there. One that doesn't block a signal takes it, and the process dies of it.
    """
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _MEANT_FOR_THE_RUN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Guarded(Dataset[Any]):
    """A data set whose UserErrors reach the training process as what they are.

    DataLoader would raise them there with the worker's traceback in their text.
    """

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __getitems__(self, indices: list[int]) -> Any:
        try:
            return self.samples.__getitems__(indices)
        except UserError as error:
            return error


class Batches:
    """What a DataLoader over `Guarded` samples yields, in order; faults are UserErrors."""

    def __init__(self, loader: "DataLoader[Any]") -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        with _held_back():
            items = iter(self.loader)
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except RuntimeError as error:
                raise lost_worker(error) or error from None
            if isinstance(item, UserError):
                raise item
            yield item


def lost_worker(error: RuntimeError) -> UserError | None:
    """What a RuntimeError says about a loader process, in words; None if it is about other things.

    A process that dies is noticed at once, wherever the training process is: torch raises from a
    signal handler. So it may come out of any line of the loop, not only of the one that waits.
    """
    text = f"{error} {error.__cause__ or ''}"
    if "DataLoader worker" in text:
        # "... (pid(s) 7) exited unexpectedly" may come first, and the reason with its cause.
        how = re.search(r"killed by signal: [\w ]+", text) or re.search(r"exit[\w ]+", text)
        return UserError(
            f"a loader process died ({how[0].strip() if how else text}): often for lack of memory, "
            "then lower data.workers or data.prefetch; start again to go on from the last "
            "checkpoint"
        )
    if "DataLoader timed out" in text:
        seconds = re.search(r"[\d.]+", text)
        return UserError(
            f"no batch came for {seconds[0] if seconds else '?'} s: the storage hangs, or "
            "data.workers are too few; raise data.timeout if batches do take that long"
        )
    return None
