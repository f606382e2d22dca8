"""How much of each corpus is seen, and when: one sampler for vocabularies and for pretraining.

A weight is the number of passes over a corpus in one epoch of the mixture, so it means the same
whether documents are drawn (for a vocabulary) or rows of tokens (for pretraining). `auto` is the
amplification of ouBioBERT (Wada et al. 2020, arXiv:2005.07202): the bytes of the largest corpus by
those of this one, rounded, so that each gets about the same share.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vlp.config import UserError
from vlp.data.order import Order, Positions, Source
from vlp.text.documents import Document
from vlp.text.store import TextStore

BLOCK = 1024
"""Units that lie side by side and are shuffled together with those of `WINDOW` - 1 other blocks."""
WINDOW = 64

DOCUMENTS = 256
"""Documents that are looked up at a time for a vocabulary."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A mixture that holds for some steps."""

    weights: dict[str, str] = field(default_factory=dict)
    """Passes per epoch by corpus, or `auto`; corpora that are not named are left out. Empty: each
    corpus once."""
    steps: int = 0
    """Steps that the stage takes; 0: all that are left, for the last stage only."""
    length: int = 0
    """Tokens of a sequence at most, if it is to be fewer than `model.length`: short sequences first
    is BERT's own way (Devlin et al. 2019, appendix A.2). Rows stay `model.length` tokens long and
    hold more sequences. 0: `model.length`. No matter for vocabularies."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps: set 0 or more, got {self.steps}")
        if self.length and self.length < 3:
            raise ValueError(f"length: with [CLS] and [SEP] set 3 or more, got {self.length}")
        for name, weight in self.weights.items():
            if weight != AUTO and not 0 < _number(weight) < math.inf:
                raise ValueError(f"weights.{name}={weight}: set a positive number or `{AUTO}`")


AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Stages one after the other: general text first, then the domain's, or all at once."""

    stages: list[StageConfig] = field(default_factory=lambda: [StageConfig()])
    """In their order."""
    seed: int = 0
    """Another seed shuffles otherwise."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages: a mixture needs at least one")
        if any(not stage.steps for stage in self.stages[:-1]):
            raise ValueError("stages: all but the last need their number of steps")
        if self.stages[-1].steps:
            raise ValueError("stages: the last takes the steps that are left; set its steps=0")

    def distinct(self) -> list[int]:
        """The stages that a vocabulary is trained on: of those with equal weights the first."""
        weights = [stage.weights for stage in self.stages]
        return [number for number, each in enumerate(weights) if each not in weights[:number]]


def passes(weights: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, float]:
    """Passes per epoch over each corpus that is used.

    Args:
        weights: as in StageConfig.
        sizes: bytes of each corpus.

    Raises:
        UserError: a weight for a corpus that there isn't, or that is empty.
    """
    weights = weights or dict.fromkeys(sizes, "1")
    for name in weights:
        if name not in sizes:
            raise UserError(f"weights.{name}: no such corpus; there are {', '.join(sizes)}")
        if not sizes[name]:
            raise UserError(f"corpus {name}: no training text; take it out of the mixture")
    largest = max(sizes[name] for name in weights)
    return {
        # Python rounds halves to even, which is what the original does, too.
        name: float(round(largest / sizes[name])) if weight == AUTO else _number(weight)
        for name, weight in weights.items()
    }


def _number(weight: str) -> float:
    try:
        return float(weight)
    except ValueError:
        return math.nan


@dataclass(frozen=True)
class Sampler:
    """The endless stream of units of a mixture with its stages.

    Attributes:
        names: the corpora.
        orders: that of each stage over all of its corpora.
        members: [stages][corpora of the stage], indices into `names`.
        starts: [stages] position at which each stage begins.
    """

    names: tuple[str, ...]
    orders: tuple[Order, ...]
    members: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]

    @classmethod
    def open(
        cls,
        config: MixtureConfig,
        units: Mapping[str, int] | Sequence[Mapping[str, int]],
        sizes: Mapping[str, int],
        batch: int = 1,
    ) -> "Sampler":
        """The sampler over `units` documents or rows of each corpus.

        Args:
            config: the mixture.
            units: how many each corpus has; where stages differ in that, of each stage.
            sizes: bytes of each corpus' training text.
            batch: positions per step, for the lengths of the stages.

        Raises:
            UserError: see `passes`.
        """
        of_stages = [units] * len(config.stages) if isinstance(units, Mapping) else units
        names = tuple(of_stages[0])
        orders, members, starts, start = [], [], [], 0
        for number, (stage, counts) in enumerate(zip(config.stages, of_stages, strict=True)):
            weights = passes(stage.weights, sizes)
            sources = {name: Source(_blocks(counts[name]), w) for name, w in weights.items()}
            try:
                orders.append(Order(sources, seed=config.seed + number, window=WINDOW))
            except ValueError as error:
                raise UserError(f"mixture, stage {number + 1}: {error}") from None
            members.append(tuple(names.index(name) for name in weights))
            starts.append(start)
            start += stage.steps * batch
        return cls(names, tuple(orders), tuple(members), tuple(starts))

    def stage(self, positions: Sequence[int] | Positions) -> Positions:
        """[N] positions of the stream -> [N] the stage of each, from 0."""
        return np.searchsorted(self.starts, positions, side="right") - 1

    def samples(self, positions: Sequence[int] | Positions) -> tuple[Positions, Positions]:
        """[N] positions of the stream -> corpus [N], index into `names`; unit [N] of it."""
        where = np.asarray(positions, dtype=np.int64)
        stage = self.stage(where)
        corpus, unit = np.empty_like(where), np.empty_like(where)
        for number in np.unique(stage).tolist():
            mine = stage == number
            source, unit[mine] = self.orders[number].samples(where[mine] - self.starts[number])
            corpus[mine] = np.array(self.members[number], dtype=np.int64)[source]
        return corpus, unit

    def epoch(self, stage: int) -> tuple[Positions, Positions]:
        """One epoch of a stage, whatever its number of steps: corpus [N], unit [N]."""
        order = self.orders[stage]
        source, unit = order.samples(np.arange(order.epoch_size))
        return np.array(self.members[stage], dtype=np.int64)[source], unit


def _blocks(units: int) -> tuple[int, ...]:
    whole, rest = divmod(units, BLOCK)
    return (BLOCK,) * whole + ((rest,) if rest else ())


@dataclass(frozen=True)
class MixedTexts:
    """The texts that a vocabulary is trained on: one epoch of each stage of the mixture, but one of
    all those with the same weights.

    It can be gone through any number of times, with the same texts in the same order.
    """

    stores: Mapping[str, TextStore]
    config: MixtureConfig

    def __iter__(self) -> Iterator[str]:
        numbers = {name: store.numbers("train") for name, store in self.stores.items()}
        units = {name: len(of_split) for name, of_split in numbers.items()}
        sizes = {name: store.bytes() for name, store in self.stores.items()}
        sampler = Sampler.open(self.config, units, sizes)
        for stage in self.config.distinct():
            corpora, documents = sampler.epoch(stage)
            for start in range(0, len(corpora), DOCUMENTS):
                chunk = slice(start, start + DOCUMENTS)
                readers = {
                    corpus: self._read(sampler, numbers, corpus, documents[chunk][mine])
                    for corpus in np.unique(corpora[chunk]).tolist()
                    for mine in [corpora[chunk] == corpus]
                }
                for corpus in corpora[chunk].tolist():
                    for section in next(readers[corpus]).sections:
                        yield from section.text.split("\n")

    def _read(
        self, sampler: Sampler, numbers: Mapping[str, Positions], corpus: int, units: Positions
    ) -> Iterator[Document]:
        name = sampler.names[corpus]
        return self.stores[name].documents(numbers[name][units])
