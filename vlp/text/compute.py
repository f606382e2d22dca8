"""Floating-point operations of pretraining: of a step, and of a whole run before it begins.

Useful operations only, as in vlp/flops.py: products of matrices in forward and backward, of real
tokens; not what activation checkpointing or the vocabulary's tiles compute again. Which rows a step
takes is a pure function of the settings, so a run's sum is known exactly beforehand, and arms of an
experiment can be given the same compute (`train.flops`) whatever their vocabularies.
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vlp.data.text import PackedText
from vlp.models.text_tower import TextConfig
from vlp.text.cache import PackedCorpora
from vlp.text.settings import LoraConfig

if TYPE_CHECKING:  # the modules of objectives aren't needed to count what others draw
    from vlp.text.objectives import Objective

_CHUNK = 2**20
"""Rows that are looked up at a time."""
_DRAWS, _TEXTS = 16, 1024
"""Steps whose further texts are looked at; fewer, if so many texts have been seen."""


@dataclass(frozen=True)
class Costs:
    """Operations of forward and backward of one sequence of L tokens, of which M are predicted:
    sequence + token L + square L^2 + masked M."""

    sequence: float
    token: float
    square: float
    masked: float

    def of(self, lengths: Sequence[int] | NDArray[Any], masked: int = 0) -> float:
        """Operations of sequences of these lengths with `masked` predicted tokens in all."""
        counts = np.asarray(lengths, dtype=np.float64)
        tokens = self.token * counts.sum() + self.square * (counts**2).sum()
        return float(self.sequence * len(counts) + tokens + self.masked * masked)


class Spent(NamedTuple):
    """What some steps take."""

    tokens: int
    """Tokens that are read, [CLS] and [SEP] included."""
    masked: int
    """Tokens that are predicted, at most: whole words may leave the last few of a budget."""
    flops: float
    """Operations."""


def costs_of(config: TextConfig, lora: LoraConfig, cls_only: bool = False) -> Costs:
    """Operations of an encoder and its head.

    A product of matrices is computed once in forward, once for the gradient of its inputs and once
    for that of its weights; the latter two only where something is learnt.

    Args:
        config: the encoder.
        lora: with a rank above 0 all weights are frozen but the changes and the head's own.
        cls_only: nothing but [CLS] is read, so the last layer computes nothing else.
    """
    frozen, width = lora.rank > 0, config.width
    sequence = token = square = 0.0
    entering = not frozen  # whether a layer's inputs have a gradient
    for layer in range(config.layers):
        asking, known, pair, entering = _layer(config, lora, entering)
        token += known
        if cls_only and layer == config.layers - 1:
            sequence, token = sequence + asking, token + pair
        else:
            token, square = token + asking, square + pair
    words = (2 if frozen else 3) * 2 * width * config.vocab_size
    return Costs(sequence, token, square, 3 * 2 * width**2 + words)


def _layer(
    config: TextConfig, lora: LoraConfig, entering: bool
) -> tuple[float, float, float, bool]:
    """One layer's operations: per token that asks, per token that is known, per pair of them; and
    whether its outputs have a gradient."""
    width, hidden = config.width, config.mlp_width
    grads = {name: entering or name in lora.targets for name in ("query", "key", "value")}
    grads = {name: grads[name] or not lora.rank for name in grads}
    scores = grads["query"] or grads["key"]
    attended = any(grads.values())
    # Scores of queries and keys, then the mean of values; each with a gradient for both sides.
    products = (1 + grads["query"] + grads["key"]) + (1 + scores + grads["value"])
    changed = lora.rank > 0 and "dense" in lora.targets
    between = entering or attended or changed  # after attention, with what went past it
    asking = (
        _linear(width, width, "query", lora, entering)
        + _linear(width, width, "dense", lora, attended)
        + _linear(width, hidden, "dense", lora, between)
        + _linear(hidden, width, "dense", lora, between)
    )
    known = sum(_linear(width, width, name, lora, entering) for name in ("key", "value"))
    return asking, known, 2 * width * products, between


def _linear(inputs: int, outputs: int, name: str, lora: LoraConfig, entering: bool) -> float:
    """A linear layer's operations per row; `entering`: its inputs have a gradient."""
    passes = 1 + entering + (lora.rank == 0)
    rank = lora.rank if name in lora.targets else 0
    change = 2 * rank * (inputs * (2 + entering) + outputs * 3)
    return 2 * inputs * outputs * passes + change


def objective_flops(
    objectives: Mapping[str, "Objective"], encoder: TextConfig, lora: LoraConfig
) -> float:
    """Operations per step, over all ranks, of what is learnt besides masked tokens: the mean of the
    first draws. Each text is read for its [CLS], which goes through the head's linear layers."""
    costs, total = costs_of(encoder, lora, cls_only=True), 0.0
    for objective in objectives.values():
        layers = [m for m in objective.head.modules() if isinstance(m, nn.Linear)]
        head = 3 * 2 * sum(layer.weight.numel() for layer in layers)
        spent, seen, step = 0.0, 0, 0
        while step < _DRAWS and seen < _TEXTS:
            drawn = objective.drawer.draw(step, 0, 1)
            for text in (part for part in drawn if isinstance(part, PackedText)):
                lengths = text.cu_seqlens.diff().numpy()
                spent += costs.of(lengths) + head * len(lengths)
                seen += len(lengths)
            step += 1
        total += spent / step
    return total


class RunCosts:
    """What the steps of a run take, step by step or all at once."""

    def __init__(
        self,
        corpora: PackedCorpora,
        costs: Costs,
        share: float,
        batch: int,
        extra: float = 0.0,
    ) -> None:
        """Look at the lengths of all rows.

        Args:
            corpora: the stream.
            costs: of the encoder.
            share: of the pieces that are predicted.
            batch: rows per step over all ranks.
            extra: operations per step of what is learnt besides, on average.
        """
        self.sampler, self.batch, self.extra = corpora.sampler, batch, extra
        self._lengths = corpora.lengths
        self._rows = {
            length: [_row_amounts(*cut, costs, share) for cut in cuts]
            for length, cuts in corpora.cuts.items()
        }
        self._sums = {length: [a.sum(0) for a in rows] for length, rows in self._rows.items()}

    def spent(self, steps: int) -> Spent:
        """The sums over the first `steps` steps."""
        end = steps * self.batch
        stops = [*self.sampler.starts[1:], end]
        total = np.zeros(3)
        for stage, (start, stop) in enumerate(zip(self.sampler.starts, stops, strict=True)):
            total += self._of_stage(stage, max(0, min(stop, end) - start))
        tokens, masked, flops = total.tolist()
        return Spent(round(tokens), round(masked), flops + self.extra * steps)

    def steps_for(self, flops: float) -> int:
        """The number of steps, at least one, whose operations are nearest to a budget."""
        most = 1
        while self.spent(most).flops < flops:
            most *= 2
        steps = bisect.bisect_left(
            range(most), flops, lo=most // 2, key=lambda steps: self.spent(steps).flops
        )
        before, after = (self.spent(n).flops for n in (steps - 1, steps))
        return max(1, steps - (flops - before < after - flops))

    def _of_stage(self, stage: int, count: int) -> NDArray[np.float64]:
        """[3]: the sums over a stage's first `count` rows."""
        order, members = self.sampler.orders[stage], self.sampler.members[stage]
        length, total = self._lengths[stage], np.zeros(3)
        for source, taken in enumerate(order.taken(count)):
            rows = self._rows[length][members[source]]
            passes, rest = divmod(taken, len(rows))
            # Whole passes hold each row once; only the one that is broken off has to be looked at.
            total += passes * self._sums[length][members[source]]
            for start in range(taken - rest, taken, _CHUNK):
                ranks = np.arange(start, min(start + _CHUNK, taken))
                total += rows[order.of_source(source, ranks)].sum(0)
        return total


def _row_amounts(
    spans: NDArray[np.int64], rows: NDArray[np.int64], costs: Costs, share: float
) -> NDArray[np.float64]:
    """[R, 3]: tokens, predicted tokens and operations of each row."""
    lengths = (spans[:, 1] - spans[:, 0] + 2).astype(np.float64)
    ends = np.concatenate([np.zeros((1, 2)), np.stack([lengths, lengths**2], 1).cumsum(0)])
    tokens, squares = np.diff(ends[rows], axis=0).T
    sequences = np.diff(rows)
    masked = np.rint(share * (tokens - 2 * sequences))  # as round() does in vlp.text.masking
    flops = costs.sequence * sequences + costs.token * tokens + costs.square * squares
    return np.stack([tokens, masked, flops + costs.masked * masked], 1)
