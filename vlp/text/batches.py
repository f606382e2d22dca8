"""Batches of language-model pretraining, made by loader processes: functions of seed and step.

Masks are drawn row by row, from the seed and the row's position in the stream. So the same pieces
are hidden whatever the number of ranks, of loader processes and of micro-batches; and a row that
comes again in the next epoch stands at another position and gets another mask.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlp.data.loader import Broken
from vlp.data.order import generator
from vlp.data.text import PackedText
from vlp.text.cache import PackedCorpora
from vlp.text.masking import IGNORE, MaskingConfig, Words, mask_tokens

_MASKS = 1
"""Keeps the draws of masks apart from others of the same seed."""


class Drawer(Protocol):
    """Draws what an objective needs for a step; can be pickled."""

    def draw(self, step: int, rank: int, ranks: int) -> Any:
        """A rank's share of a step, a NamedTuple of tensors: a pure function of seed and step."""


class TextBatch(NamedTuple):
    """R rows of one rank.

    Attributes:
        text: their sequences, with [MASK] and the like in them.
        places: int64 [M], rows of `text.input_ids` that are to be guessed, ascending.
        targets: int64 [M], what was there.
        extra: what each further objective drew for this step, by its name.
        starts: [R + 1], the number of the sequence that each row begins with.
        keys: [R], "corpus/row".
    """

    text: PackedText
    places: Tensor
    targets: Tensor
    extra: dict[str, Any]
    starts: list[int]
    keys: list[str]

    @property
    def broken(self) -> list[Broken]:
        """None: the cache has no broken rows."""
        return []

    def to(self, device: torch.device | str) -> "TextBatch":
        """The same on a device, without waiting for the copies of pinned memory."""
        return self._replace(
            text=self.text.to(device, non_blocking=True),
            places=self.places.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            extra={name: drawn.to(device) for name, drawn in self.extra.items()},
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Whatever is on the device."""
        return tuple(_tensors((self.text, self.places, self.targets, *self.extra.values())))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)


class TextSamples(Dataset[TextBatch]):
    """Positions of the stream -> one TextBatch."""

    def __init__(
        self,
        corpora: PackedCorpora,
        masking: MaskingConfig,
        words: Words,
        seed: int,
        batch: int,
        drawers: Mapping[str, Drawer],
    ) -> None:
        """`batch`: rows per step over all ranks."""
        self.corpora, self.masking, self.words = corpora, masking, words
        self.seed, self.batch, self.drawers = seed, batch, drawers

    def __getitems__(self, positions: list[int]) -> TextBatch:
        """The batch of a rank: `positions` are its share of a step's, one after the other."""
        rows = self.corpora.read(positions)
        ids = rows.text.input_ids.numpy()
        numbers = self.words.number(ids)
        inputs, labels = np.empty_like(ids), np.empty_like(ids)
        edges = rows.text.cu_seqlens[rows.starts].tolist()
        for position, (start, end) in zip(positions, pairwise(edges), strict=True):
            rng = generator(self.seed, position, _MASKS)
            inputs[start:end], labels[start:end] = mask_tokens(
                ids[start:end], numbers[start:end], self.masking, self.words, rng
            )
        places = np.flatnonzero(labels != IGNORE)
        return TextBatch(
            rows.text._replace(input_ids=torch.from_numpy(inputs)),
            torch.from_numpy(places),
            torch.from_numpy(labels[places]),
            self._draw(positions),
            rows.starts,
            rows.names,
        )

    def _draw(self, positions: list[int]) -> dict[str, Any]:
        step, first = divmod(positions[0], self.batch)
        rank, ranks = first // len(positions), self.batch // len(positions)
        return {name: drawer.draw(step, rank, ranks) for name, drawer in self.drawers.items()}


def split_rows(batch: TextBatch, size: int) -> list[TextBatch]:
    """Chunks of `size` rows, the last one smaller if need be; what else was drawn is in the last.

    Reads where sequences begin: split on the host, since on CUDA this would wait for the device.
    """
    edges, places = batch.text.cu_seqlens.tolist(), batch.places.tolist()
    count, chunks = len(batch.keys), []
    for first in range(0, count, size):
        end = min(first + size, count)
        sequences = slice(batch.starts[first], batch.starts[end] + 1)
        low, high = edges[sequences.start], edges[sequences.stop - 1]
        inside = slice(bisect_left(places, low), bisect_left(places, high))
        starts = batch.text.cu_seqlens[sequences] - low
        text = PackedText(batch.text.input_ids[low:high], starts, batch.text.max_length)
        chunks.append(
            TextBatch(
                text,
                batch.places[inside] - low,
                batch.targets[inside],
                batch.extra if end == count else {},
                [start - sequences.start for start in batch.starts[first : end + 1]],
                batch.keys[first:end],
            )
        )
    return chunks
