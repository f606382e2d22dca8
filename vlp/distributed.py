"""Ranks, and collectives with gradient; everything works on one process without a group."""

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vlp.config import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all.

    Attributes:
        rank: 0-based number of this process; 0 writes files and reports.
        size: number of processes.
        device: where this process computes.
        store: keys and values that all processes see.
    """

    rank: int
    size: int
    device: torch.device
    store: dist.Store

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start(device: str = "auto", timeout: float = 600) -> World:
    """Join the group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe, as torchrun sets
    them; alone without them.

    Args:
        device: `cpu`, `cuda`, or `auto` (CUDA where there is one).
        timeout: seconds after which a collective operation gives up.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(local)
    else:
        local = torch.device(device)
    if size == 1:
        return World(rank, size, local, dist.HashStore())
    if not dist.is_initialized():
        backend = "nccl" if local.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    return World(rank, size, local, _store())


def _store() -> dist.Store:
    """A connection of our own to the group's store: a thread may wait on it without being in the
    way of collectives."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    connection = dist.TCPStore(host, port, is_master=False, wait_for_workers=False)
    # torchrun's store outlives the ranks that it starts again.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    # What one run of this program has told the others must not be heard by its next run.
    return dist.PrefixStore(f"biovlp-{attempt}-{next(_starts)}", connection)


_starts = itertools.count()


def stop() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def session() -> Iterator[None]:
    """What a training program does within it, and how it leaves: the group is left in any case, and
    rank 0 is the first to tell what a user has to put right.

    Most faults are common to all ranks. Rank 0 tells, torchrun then stops the others; what only
    another rank sees is told by that rank, after a pause.
    """
    try:
        yield
    except UserError:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(5)
        raise
    finally:
        stop()


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    """all_gather along dim 0, whose backward sums every rank's gradient of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        if dist.get_backend() == "nccl":
            own = torch.empty_like(gradient[: len(gradient) // size()])
            dist.reduce_scatter_tensor(own, gradient)
            return own
        dist.all_reduce(gradient)  # gloo on older torch has no reduce_scatter
        return gradient.chunk(size())[rank()]


def gather(local: Tensor) -> Tensor:
    """[b, ...] of each rank, equal b -> [ranks * b, ...] on all, differentiable."""
    return local if size() == 1 else torch.as_tensor(_Gather.apply(local))


def mean(value: Tensor) -> Tensor:
    """Mean over the ranks, without gradient."""
    value = value.detach().clone()
    if size() > 1:
        dist.all_reduce(value)
        value /= size()
    return value


def gather_objects(value: Any) -> list[Any]:
    """Any picklable object of each rank, in rank order, on all ranks."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: T) -> T:
    """Rank 0's value, which can be pickled, on all ranks."""
    return value if size() == 1 else gather_objects(value if rank() == 0 else None)[0]


def highest(value: int, group: dist.ProcessGroup | None) -> int:
    """The largest of the ranks' integers; `group` is one of `cpu_group`."""
    if size() == 1:
        return value
    largest = torch.tensor(value)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    return int(largest)


def cpu_group() -> dist.ProcessGroup | None:
    """A new group of all ranks for messages between their CPUs; None on one process."""
    if size() == 1:
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # every rank is a member
    return group


def lost_rank(error: RuntimeError) -> UserError | None:
    """What the error of a collective operation says about another process; None if nothing."""
    text = str(error)
    if not isinstance(error, dist.DistError) and "onnection" not in text:
        return None
    return UserError(
        f"another process of the run is gone, or can't be reached ({text.splitlines()[0]}); its "
        "own output says why; start again to go on from the last checkpoint"
    )


def barrier() -> None:
    if size() > 1:
        dist.barrier()
