"""Masks for masked-language modelling: 15% of the pieces, one by one or whole words together.

Of the chosen pieces 80% read [MASK], 10% a random piece, 10% themselves (Devlin et al. 2019). Whole
words are chosen as in BERT's later release: words in random order until the budget is used up,
which counts pieces; a word that is too long for what is left of it is passed over. Thus both
units predict the same number of pieces. Special tokens are never chosen.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vlp.config import UserError
from vlp.data.text import SPECIAL_TOKENS

Ids = NDArray[np.int64]

IGNORE = -100
"""Label of a piece that is not to be predicted: torch's default for cross entropy."""

SPECIAL = -1
"""Word of a special token."""


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Which pieces are hidden."""

    unit: Literal["subword", "whole_word"] = "whole_word"
    """Choose pieces one by one, or all pieces of a word together."""
    share: float = 0.15
    """Share of the pieces that are to be predicted."""
    masked: float = 0.8
    """Share of those that read [MASK]."""
    random: float = 0.1
    """Share of those that read a random piece; the rest stay as they are."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share: set it between 0 and 1, got {self.share}")
        if min(self.masked, self.random) < 0 or self.masked + self.random > 1:
            raise ValueError("masked, random: set shares of 0 or more with a sum of at most 1")


def mask_tokens(
    ids: Ids, words: Ids, config: MaskingConfig, vocabulary: "Words", rng: np.random.Generator
) -> tuple[Ids, Ids]:
    """What the model reads and what it is to predict: a pure function of what it is given.

    Args:
        ids: int64 [T], packed sequences with their special tokens.
        words: int64 [T], the number of each piece's word, ascending; SPECIAL for special tokens.
        config: shares and unit.
        vocabulary: for the id of [MASK] and the number of pieces.
        rng: a generator that depends on the batch's place, as of vlp.data.order.generator.

    Returns:
        int64 [T], ids with some of them hidden; int64 [T], labels, IGNORE where nothing is.
    """
    places = np.flatnonzero(words != SPECIAL)
    if config.unit == "subword":
        starts = np.arange(len(places))
    else:
        inner = words[places]
        starts = np.flatnonzero(np.diff(inner, prepend=inner[:1] - 1))
    lengths = np.diff(starts, append=len(places))
    taken = _choose(lengths, round(config.share * len(places)), rng)
    chosen = places[np.repeat(taken, lengths)]
    draw = rng.random(len(chosen))
    other = rng.integers(vocabulary.size, size=len(chosen))
    inputs, labels = ids.copy(), np.full_like(ids, IGNORE)
    labels[chosen] = ids[chosen]
    masked = draw < config.masked
    swapped = ~masked & (draw < config.masked + config.random)
    inputs[chosen[masked]] = vocabulary.mask_id
    inputs[chosen[swapped]] = other[swapped]
    return inputs, labels


def _choose(lengths: Ids, budget: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """bool [W]: words in random order, each taken if it fits into what is left of the budget."""
    order = rng.permutation(len(lengths))
    ends = np.cumsum(lengths[order])
    whole = int(np.searchsorted(ends, budget, side="right"))  # they fit for sure
    taken = np.zeros(len(lengths), dtype=bool)
    taken[order[:whole]] = True
    left = budget - (int(ends[whole - 1]) if whole else 0)
    for word in order[whole:].tolist():
        if not left:
            break
        if lengths[word] <= left:
            taken[word] = True
            left -= int(lengths[word])
    return taken


class Words:
    """Where words begin in packed ids: tables over the vocabulary, so it takes no text.

    WordPiece marks the pieces inside words (##). Byte-level BPE (Ġ) and unigram (▁) mark blanks;
    there, as in BERT's splitting, punctuation is a word of its own, too.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises UserError for tokenizers without BERT's special tokens or of another kind."""
        tokens = tokenizer.get_vocab()
        if missing := [name for name in SPECIAL_TOKENS if name not in tokens]:
            raise UserError(
                f"tokenizer: it has no {missing[0]}, which masking needs; take one of BERT's kind"
            )
        self.size = max(tokens.values()) + 1
        self.mask_id = tokens["[MASK]"]
        self.special = np.zeros(self.size, dtype=bool)
        self.special[[tokens[name] for name in SPECIAL_TOKENS if name != "[UNK]"]] = True
        self.begins = np.zeros(self.size, dtype=bool)
        self.blank = np.zeros(self.size, dtype=bool)
        self.first_letter = np.ones(self.size, dtype=bool)
        self.last_letter = np.ones(self.size, dtype=bool)
        kind = type(tokenizer.model).__name__
        marks = {"WordPiece": "##", "BPE": "Ġ", "Unigram": "▁"}
        if kind not in marks:
            raise UserError(f"tokenizer: words of a {kind} are unknown; take {', '.join(marks)}")
        mark = marks[kind]
        for token, number in tokens.items():
            marked = token.startswith(mark)
            self.begins[number] = marked != (kind == "WordPiece")
            self.blank[number] = token == mark
            if kind != "WordPiece" and (rest := token.removeprefix(mark)):
                self.first_letter[number] = _is_letter(rest[0], kind)
                self.last_letter[number] = _is_letter(rest[-1], kind)

    def number(self, ids: Ids) -> Ids:
        """int64 [T] packed ids -> int64 [T] word numbers from 0, SPECIAL for special tokens."""
        special = self.special[ids]
        before = np.roll(ids, 1)
        new = self.begins[ids] | ~self.first_letter[ids] | ~self.last_letter[before]
        new &= self.begins[ids] | ~self.blank[before]  # a blank belongs to what follows it
        new |= np.roll(special, 1)  # the first of a sequence, whatever it is
        return np.where(special, SPECIAL, np.cumsum(new & ~special) - 1)


def _is_letter(character: str, kind: str) -> bool:
    if kind == "BPE":
        # ASCII's signs stand for themselves. Other bytes count as letters: nearly all are of é, β,
        # or of other scripts.
        return character.isalnum() or not "!" <= character <= "~"
    return character.isalnum()
