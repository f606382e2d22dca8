"""Batches on their way to the device."""

from collections.abc import Iterable, Iterator
from typing import Protocol, Self, TypeVar

import torch


class Movable(Protocol):
    """A batch of any kind."""

    def to(self, device: torch.device | str) -> Self:
        """The same on a device, without waiting for the copies of pinned memory."""

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Whatever is on the device."""


B = TypeVar("B", bound=Movable)


def on_device(batches: Iterable[B], device: torch.device) -> Iterator[B]:
    """The same batches on `device`; on a CPU they are passed on as they are.

    CUDA copies run on a stream of their own: while the device computes a step, the CPU is already
    here again, and the next batch travels beside the computation. That needs pinned batches and a
    loop that doesn't wait for the device; then no look-ahead is needed, and no second buffer.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = batch.to(device)
        compute = torch.cuda.current_stream(device)
        compute.wait_stream(stream)
        for tensor in moved.tensors():
            # Its memory belongs to the other stream, which must not reuse it before we are done.
            tensor.record_stream(compute)
        yield moved
