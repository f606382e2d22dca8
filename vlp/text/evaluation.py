"""Bits per character of held-out text: a number that vocabularies can be compared by.

Every word is hidden once, whole, in one of seven passes, each of which hides a seventh of the words
and reads the others. So nothing is left to chance, and nothing depends on how a model was trained.
What is summed is a pseudo-likelihood (Salazar et al. 2020, with a seventh of the words hidden at a
time instead of one): between models with one vocabulary it is exact; between vocabularies print the
floor of piece frequencies beside it, and nats per piece never alone.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from vlp import distributed
from vlp.config import UserError
from vlp.data.order import generator
from vlp.data.text import CaptionTokenizer, PackedText
from vlp.text.cache import TokenStore, pack, row_starts
from vlp.text.masking import SPECIAL, Ids, Words

PASSES = 7
"""ceil(1 / 0.15): as many words are hidden at a time as in training."""

SummedLoss = Callable[[PackedText, Tensor, Tensor], Tensor]
"""Packed sequences, places [M] and targets [M] -> summed cross-entropy in nats, as MaskedLM."""


class Score(NamedTuple):
    """What the held-out text costs.

    Attributes:
        bits_per_character: over all characters, blanks included.
        nats_per_piece: comparable within a vocabulary only; its exponential is the perplexity.
        pieces: how many were hidden: all.
        characters: of the cleaned text.
        unknown: share of [UNK] among the pieces: cheap to guess, and text that is lost.
    """

    bits_per_character: float
    nats_per_piece: float
    pieces: int
    characters: int
    unknown: float


@torch.no_grad()
def bits_per_character(
    loss: SummedLoss,
    store: TokenStore,
    tokenizer: CaptionTokenizer,
    device: torch.device | str = "cpu",
    rows: int = 32,
) -> Score:
    """Score a model in evaluation mode on a split; all ranks call it, each takes its share of it.

    Args:
        loss: the model: a MaskedLM, or what calls one.
        store: the split.
        tokenizer: the one that made it; its context length is that of the sequences.
        device: where the model is.
        rows: rows of sequences that are computed at a time; the result doesn't depend on it.

    Raises:
        UserError: the split has no text.
    """
    if not len(store.ids):
        raise UserError("no text is held out; raise split.val_fraction")
    nats = torch.zeros((), dtype=torch.float64, device=device)
    pieces = torch.zeros((), dtype=torch.int64, device=device)
    words = Words(tokenizer.tokenizer)
    for text, turns, counts in _turns(store, tokenizer, words, rows):
        text, turns = text.to(device), turns.to(device)
        for turn in range(PASSES):
            hidden = turns == turn
            places = hidden.nonzero().squeeze(1)
            inputs = text.input_ids.masked_fill(hidden, words.mask_id)
            found = loss(text._replace(input_ids=inputs), places, text.input_ids[places])
            if counts:
                nats += found.double()
                pieces += len(places)
    if distributed.size() > 1:
        dist.all_reduce(nats)
        dist.all_reduce(pieces)
    count, characters = int(pieces), int(store.meta["characters"])
    unknown = int((store.ids == tokenizer.tokenizer.token_to_id("[UNK]")).sum())
    return Score(
        nats.item() / math.log(2) / characters,
        nats.item() / count,
        count,
        characters,
        unknown / count,
    )


def _turns(
    store: TokenStore, tokenizer: CaptionTokenizer, words: Words, rows: int
) -> Iterator[tuple[PackedText, Tensor, bool]]:
    """This rank's parts of the split: text, pass that hides each piece [T], whether it counts.

    All ranks get as many, since sharded models compute together: who would have one less takes the
    first part again, in vain.
    """
    vocabulary = tokenizer.tokenizer.get_vocab()
    length, ends = tokenizer.context_length, (vocabulary["[CLS]"], vocabulary["[SEP]"])
    spans = store.sequences(length)
    starts = row_starts(spans, length)
    parts = range(0, len(starts) - 1, rows)
    rank, ranks = distributed.rank(), distributed.size()
    for number in range(rank, -(-len(parts) // ranks) * ranks, ranks):
        first = parts[number if number < len(parts) else 0]
        of_part = starts[first : first + rows + 1]
        text = pack(store.ids, spans[of_part[0] : of_part[-1]], length, ends)
        edges = text.cu_seqlens[of_part - of_part[0]].tolist()
        numbers = words.number(text.input_ids.numpy())
        turns = [
            _turns_of_row(numbers[start:end], first + row)
            for row, (start, end) in enumerate(pairwise(edges))
        ]
        yield text, torch.from_numpy(np.concatenate(turns)), number < len(parts)


def _turns_of_row(words: Ids, row: int) -> NDArray[np.int64]:
    """Word of each piece int64 [T] -> the pass that hides it, SPECIAL for special tokens."""
    inside = words != SPECIAL
    numbers = words[inside]
    turn_of_word = generator(row).permutation(numbers[-1] - numbers[0] + 1) % PASSES
    turns = np.full_like(words, SPECIAL)
    turns[inside] = turn_of_word[numbers - numbers[0]]
    return turns
