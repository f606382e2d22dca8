"""Labelled sentences as packed pieces, and the rows of an encoder that stand for their words."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from vlp.data.text import PackedText, clean
from vlp.models.text_tower import PackedBert
from vlp.text.labelled import Labelled, Task

Ints = NDArray[np.int64]


class Encoded(NamedTuple):
    """A sentence as pieces.

    Attributes:
        ids: int64 [T], with [CLS] and [SEP].
        units: int64 [R], the words that have a piece within `length`; [0] for a sentence.
        places: int64 [R], where the first piece of each is; 0, [CLS], for a sentence.
        targets: int64 [R], numbers of their labels; 0 for one that training doesn't have.
    """

    ids: Ints
    units: Ints
    places: Ints
    targets: Ints


def encode(
    tokenizer: Tokenizer, sentences: Sequence[Labelled], task: Task, labels: Sequence[str]
) -> list[Encoded]:
    """Sentences as pieces, cut where the tokenizer truncates."""
    number = {label: place for place, label in enumerate(labels)}
    whole = task == "sentences"
    texts: list[Any] = [
        clean(one.text) if whole else [clean(word) for word in one.words] for one in sentences
    ]
    found = []
    encoded = tokenizer.encode_batch(texts, is_pretokenized=not whole)
    for one, pieces in zip(sentences, encoded, strict=True):
        units = places = np.zeros(1, dtype=np.int64)
        if not whole:
            words = np.array([-1 if word is None else word for word in pieces.word_ids])
            units, places = np.unique(words, return_index=True)
            units, places = units[units >= 0], places[units >= 0]
        targets = [number.get(one.labels[unit], 0) for unit in units.tolist()]
        ids = np.array(pieces.ids, dtype=np.int64)
        found.append(Encoded(ids, units, places, np.array(targets, dtype=np.int64)))
    return found


def pack(chosen: Sequence[Encoded], length: int) -> tuple[PackedText, Tensor]:
    """Sentences as one batch without padding, and the rows of all their places [R]."""
    starts = np.zeros(len(chosen) + 1, dtype=np.int32)
    np.cumsum([len(one.ids) for one in chosen], out=starts[1:])
    ids = np.concatenate([one.ids for one in chosen])
    rows = np.concatenate([one.places + s for one, s in zip(chosen, starts[:-1], strict=True)])
    return PackedText(torch.from_numpy(ids), torch.from_numpy(starts), length), torch.tensor(rows)


class Encoder(nn.Module):
    """A BERT whose rows stand for words or sentences."""

    def __init__(self, bert: PackedBert, mean: bool, length: int) -> None:
        super().__init__()
        self.bert, self.mean, self.length = bert, mean, length

    def forward(self, chosen: Sequence[Encoded]) -> Tensor:
        """B sentences -> [R, width], fp32: their places, or with `mean` their means, R = B."""
        device = self.bert.embeddings.word_embeddings.weight.device
        packed, rows = pack(chosen, self.length)
        text = packed.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            states = self.bert.states(text).float()
        if not self.mean:
            return states[rows.to(device)]
        lengths = text.cu_seqlens.diff()
        sentence = torch.repeat_interleave(lengths, output_size=len(states))
        sums = states.new_zeros(len(lengths), states.shape[1]).index_add(0, sentence, states)
        return sums / lengths[:, None]


Features = Callable[[Sequence[int]], Tensor]
"""Numbers of sentences -> the rows [R, width] of their words, or of themselves."""


@torch.no_grad()
def compute_once(encoder: Encoder, sentences: Sequence[Encoded], batch: int) -> Features:
    """The rows of a frozen encoder, kept: 4 bytes x width for each word."""
    kept: list[Tensor] = []
    for start in range(0, len(sentences), batch):
        chosen = sentences[start : start + batch]
        kept += encoder(chosen).split([len(one.units) for one in chosen])
    return lambda numbers: torch.cat([kept[number] for number in numbers])


def compute_each_time(encoder: Encoder, sentences: Sequence[Encoded]) -> Features:
    """The rows of an encoder that changes."""
    return lambda numbers: encoder([sentences[number] for number in numbers])
