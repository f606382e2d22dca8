"""Batches for masked language models: functions of seed and position, however they are shared."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from tests.vlp.text.tiny import make_home, settings
from vlp.data.text import PackedText
from vlp.text.batches import TextBatch, TextSamples, split_rows
from vlp.text.trainer import TextTrainer


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> TextSamples:
    return TextTrainer(settings(make_home(tmp_path_factory.mktemp("batches")))).samples


def rows(batch: TextBatch) -> list[tuple[str, list[list[int]], list[tuple[int, int]]]]:
    """Each row: its key, its sequences, and (place in the row, target) of what is to be guessed."""
    edges, found = batch.text.cu_seqlens.tolist(), []
    for number, key in enumerate(batch.keys):
        first, last = batch.starts[number : number + 2]
        low, high = edges[first], edges[last]
        sequences = [
            batch.text.input_ids[edges[i] : edges[i + 1]].tolist() for i in range(first, last)
        ]
        hidden = [
            (place - low, target)
            for place, target in zip(batch.places.tolist(), batch.targets.tolist(), strict=True)
            if low <= place < high
        ]
        found.append((key, sequences, hidden))
    return found


def test_what_is_hidden_stood_there(samples: TextSamples) -> None:
    batch = samples.__getitems__(list(range(8)))
    whole = samples.corpora.batch(range(8))
    restored = batch.text.input_ids.clone()
    restored[batch.places] = batch.targets
    assert torch.equal(restored, whole.input_ids)
    assert torch.equal(batch.text.cu_seqlens, whole.cu_seqlens)
    pieces = len(restored) - 2 * (len(whole.cu_seqlens) - 1)
    assert 0.1 * pieces < len(batch.places) <= 0.2 * pieces
    special = torch.from_numpy(samples.words.special)
    assert not special[batch.targets].any()


def test_ranks_and_micro_batches_hide_the_same(samples: TextSamples) -> None:
    whole = rows(samples.__getitems__(list(range(8, 16))))
    for size in (1, 2, 3, 8):
        chunks = split_rows(samples.__getitems__(list(range(8, 16))), size)
        assert [row for chunk in chunks for row in rows(chunk)] == whole
        assert [len(chunk.keys) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    ranks = [samples.__getitems__(list(range(start, start + 4))) for start in (8, 12)]
    assert [row for rank in ranks for row in rows(rank)] == whole


def test_a_row_that_comes_again_has_another_mask(samples: TextSamples) -> None:
    epoch = samples.corpora.sampler.orders[0].epoch_size
    found: dict[str, set[str]] = {}
    for start in range(0, 2 * epoch, 8):
        for key, _, hidden in rows(samples.__getitems__(list(range(start, start + 8)))):
            found.setdefault(key, set()).add(str(hidden))
    assert len(found) == epoch
    assert sum(len(masks) > 1 for masks in found.values()) > 0.9 * epoch  # some rows are short


def test_another_seed_hides_something_else(samples: TextSamples) -> None:
    other = TextSamples(samples.corpora, samples.masking, samples.words, 1, 8, {})
    first, second = (each.__getitems__([0, 1, 2, 3]) for each in (samples, other))
    assert first.keys == second.keys
    assert first.places.tolist() != second.places.tolist()


class Step:
    """Draws its arguments."""

    def draw(self, step: int, rank: int, ranks: int) -> tuple[int, int, int]:
        return step, rank, ranks


def test_objectives_draw_for_the_step_and_rank(samples: TextSamples) -> None:
    drawing = TextSamples(samples.corpora, samples.masking, samples.words, 0, 8, {"o": Step()})
    assert drawing.__getitems__([4, 5, 6, 7]).extra == {"o": (0, 1, 2)}
    assert drawing.__getitems__(list(range(24, 32))).extra == {"o": (3, 0, 1)}
    chunks = split_rows(drawing.__getitems__([30, 31]), 1)
    assert [chunk.extra for chunk in chunks] == [{}, {"o": (3, 3, 4)}]  # with the last chunk alone


class Drawn(NamedTuple):
    """As objectives draw it."""

    text: PackedText
    labels: Tensor

    def to(self, device: torch.device | str) -> "Drawn":
        return Drawn(self.text.to(device), self.labels.to(device))


def test_everything_travels_to_the_device(
    samples: TextSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What objectives drew, too; and the loader's thread that pins memory keeps the types."""
    batch = samples.__getitems__([0, 1, 2])
    batch = batch._replace(extra={"o": Drawn(batch.text, torch.ones(3))})
    assert len(batch.tensors()) == 2 + 1 + 1 + 2 + 1
    assert all(tensor.is_meta for tensor in batch.to("meta").tensors())
    pinned = list[Tensor]()

    def pin(tensor: Tensor, device: object = None) -> Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    moved = pin_memory(batch)
    assert isinstance(moved, TextBatch)
    assert isinstance(moved.extra["o"], Drawn)
    assert len(pinned) == len(batch.tensors())
    assert rows(moved) == rows(batch)
    assert moved.text.max_length == batch.text.max_length
