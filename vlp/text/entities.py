"""Scores of predicted labels: exact entities of IOB tags, classes of sentences, and intervals.

Both come down to counts of what was right, predicted and true, by sentence and kind. Tags are
compared word by word at their places: a word that occurs twice counts twice, which scorers that key
by the word itself lose.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
"""[..., kinds, 3]: right, predicted, true. Sums of counts are counts."""
Floats = NDArray[np.float64]

OUTSIDE = "O"
_CHUNK = 2**24
"""Numbers of a bootstrap that are in memory at a time."""


class Entity(NamedTuple):
    """The words `first` to `last`, inclusive, of one kind."""

    kind: str
    first: int
    last: int


def is_tag(tag: str) -> bool:
    """Whether it is O, B-KIND or I-KIND."""
    return tag == OUTSIDE or (tag[:2] in ("B-", "I-") and len(tag) > 2)


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of a sentence's IOB tags.

    An I-KIND that continues nothing of its kind begins an entity, as for CoNLL's conlleval and for
    seqeval; so IOB1 and IOB2 give the same entities but where two of a kind touch.
    """
    found: set[Entity] = set()
    kind, first = "", 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        if kind and tag != f"I-{kind}":
            found.add(Entity(kind, first, place - 1))
            kind = ""
        if not kind and tag != OUTSIDE:
            kind, first = tag[2:], place
    return found


def count_entities(
    true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], kinds: Sequence[str]
) -> Counts:
    """[sentences, kinds, 3]: an entity is right if its kind and both of its ends are.

    Raises:
        ValueError: a sentence with another number of predicted than of true tags.
    """
    column = {kind: number for number, kind in enumerate(kinds)}
    counts = np.zeros((len(true), len(kinds), 3), dtype=np.int64)
    for row, tags, guesses in zip(counts, true, predicted, strict=True):
        if len(tags) != len(guesses):
            raise ValueError(f"{len(guesses)} predicted tags for {len(tags)} words")
        wanted, guessed = entities(tags), entities(guesses)
        for which, group in enumerate((wanted & guessed, guessed, wanted)):
            for entity in group:
                row[column[entity.kind], which] += 1
    return counts


def count_classes(true: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> Counts:
    """[sentences, classes, 3]; of sums over the classes `micro_f1` is the accuracy."""
    column = {name: number for number, name in enumerate(classes)}
    counts = np.zeros((len(true), len(classes), 3), dtype=np.int64)
    rows = np.arange(len(true))
    wanted = np.array([column[name] for name in true], dtype=np.int64)
    guessed = np.array([column[name] for name in predicted], dtype=np.int64)
    counts[rows[wanted == guessed], wanted[wanted == guessed], 0] = 1
    counts[rows, guessed, 1] = 1
    counts[rows, wanted, 2] = 1
    return counts


def f1(counts: Counts) -> Floats:
    """[..., 3] -> [...]: 2 right / (predicted + true); 0 where there is neither."""
    right, total = counts[..., 0], counts[..., 1] + counts[..., 2]
    return 2 * right / np.maximum(total, 1)


def micro_f1(counts: Counts) -> Floats:
    """[..., kinds, 3] -> [...]: all kinds together."""
    return f1(counts.sum(-2))


def macro_f1(counts: Counts) -> Floats:
    """[..., kinds, 3] -> [...]: the mean over kinds that are predicted or true."""
    occurs = counts[..., 1:].any(-1)
    return (f1(counts) * occurs).sum(-1) / np.maximum(occurs.sum(-1), 1)


class Score(NamedTuple):
    """A score, the mean over seeds.

    Attributes:
        value: of all sentences.
        low: 2.5% bound over resampled sentences, the same for all seeds.
        high: 97.5% bound.
        seeds: the score of each seed: what training anew changes.
    """

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]


def score(counts: Counts, of: Callable[[Counts], Floats], resamples: int, seed: int = 0) -> Score:
    """A score with its bootstrap interval over sentences (Efron 1979, basic).

    The interval is the reflection of the resamples' quantiles on the value: it takes the bias of
    resampled macro F1 back, and the F1 of many sentences has none.

    Args:
        counts: [seeds, sentences, kinds, 3].
        of: counts [..., kinds, 3] -> [...].
        resamples: how often sentences are drawn, each time as many as there are.
        seed: of the draw.
    """
    seeds, sentences = counts.shape[:2]
    flat = counts.swapaxes(0, 1).reshape(sentences, -1).astype(np.float64)
    rng = np.random.default_rng(seed)
    drawn: list[Floats] = []
    at_a_time = max(1, _CHUNK // sentences)
    for start in range(0, resamples, at_a_time):
        number = min(at_a_time, resamples - start)
        times = rng.multinomial(sentences, np.full(sentences, 1 / sentences), size=number)
        # Counts below 2^53 are exact in float64, whose product is BLAS's.
        sums = (times.astype(np.float64) @ flat).astype(np.int64)
        drawn.append(of(sums.reshape(number, seeds, *counts.shape[2:])).mean(1))
    each = of(counts.sum(1))
    value = float(each.mean())
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    below, above = (min(max(2 * value - float(bound), 0.0), 1.0) for bound in (high, low))
    return Score(value, below, above, tuple(each.tolist()))
