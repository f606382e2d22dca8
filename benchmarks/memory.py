"""Bytes that live at the same time, counted tensor by tensor.

The resident size of a process depends on its allocator; what PyTorch's operations allocate does
not. Counting works on the CPU, on CUDA and on fake tensors, which have shapes and no memory: so the
need of a computation that fits no machine at hand is known exactly, too. Scratch memory inside an
operation is not seen.
"""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class LiveMemory(TorchDispatchMode):
    """A context that counts the storages made by operations in it, backward included.

    Attributes:
        peak: bytes, the most that lived at any time.
        live: bytes that live now.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if id(storage) not in given and storage not in self._seen:
                self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        count = storage.nbytes()
        self._seen.add(storage)
        self.live += count
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, count)

    def _drop(self, count: int) -> None:
        self.live -= count


def simulated_peak(make: Callable[[], Callable[[], object]]) -> int:
    """Peak bytes of the function that `make` returns, on fake tensors: nothing is computed.

    Args:
        make: makes the inputs, which are not counted, and returns what is to be measured.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        function = make()
        with LiveMemory() as memory:
            function()
    return memory.peak


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
