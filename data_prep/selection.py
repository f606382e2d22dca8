"""Which pairs to keep under a budget: those whose tags are spread most evenly.

Greedy entropy-maximising selection (Delmas et al. 2023, arXiv 2311.06364): always take the item
with which the entropies of all tags come nearest to their upper bounds,

    argmin_d  sum_k (log |V_k| - H_k(S + d))^2 ,   H_k(S) = log n - 1/n sum_v c_v log c_v ,

where c_v counts value v of tag k among the n items chosen so far. Items with equal tags are
exchangeable, so the choice is made among cells of them. And the rarer a value so far, the more it
gains: of cells that differ in one tag only, the rarest value wins. So a step compares groups of
cells that share all tags but the longest, each with its cells in a heap by rarity, and 5 million
items in 10,000 journals take seconds.

No rounding decides a tie: c log c is a table of integers, so that equal counts give equal entropies
in whatever order they arose.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNIT = 2**32
"""c log c is counted in units of 1 / UNIT: 64-bit sums hold for 100 million items."""

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """What was chosen."""

    items: Codes
    """Indices in the order in which they were chosen [budget]."""
    entropies: NDArray[np.float64]
    """Entropy of each tag among the chosen ones, in nats [tags]."""
    bounds: NDArray[np.float64]
    """The most that it could be: log of the tag's number of values [tags]."""


def select(tags: Sequence[Codes], budget: int) -> Selection:
    """Choose `budget` items.

    Of cells with equal sums the first wins in the order of the tags, the longest tag (the one with
    the most values) looked at last and there the rarer value before the lower code; within a cell
    the first item.

    Args:
        tags: for each tag the value of every item as a code 0, 1, ... [N]; no code is left out.
        budget: how many, at most N.
    """
    if not tags:
        raise ValueError("tags: give at least one")
    if not 0 <= budget <= len(tags[0]):
        raise ValueError(f"budget={budget}: set 0 to {len(tags[0])}")
    sizes = [int(codes.max(initial=-1)) + 1 for codes in tags]
    order = tag_order(sizes)
    chooser = _Chooser([tags[k] for k in order], [sizes[k] for k in order], budget)
    items = np.fromiter((chooser.take() for _ in range(budget)), np.int64, budget)
    entropies = np.empty(len(tags))
    entropies[order] = [entropy(budget, total) for total in chooser.totals]
    return Selection(items, entropies, np.log(np.maximum(sizes, 1)))


def tag_order(sizes: Sequence[int]) -> list[int]:
    """The tags' numbers as given, save that the one with the most values comes last."""
    longest = max(range(len(sizes)), key=lambda k: sizes[k])
    return [*(k for k in range(len(sizes)) if k != longest), longest]


def entropy_table(count: int) -> Codes:
    """c log c for c = 0 ... count, in units of 1 / UNIT, rounded."""
    c = np.arange(count + 1, dtype=np.float64)
    return np.rint(c * np.log(np.maximum(c, 1)) * UNIT).astype(np.int64)


def entropy(n: int, total: Any) -> Any:
    """The entropy of counts that sum to n, from the sum of their c log c in units of 1 / UNIT."""
    return math.log(max(n, 1)) - total / (float(max(n, 1)) * UNIT)


def gap(n: int, total: Any, bound: float) -> Any:
    """The squared distance of an entropy from its upper bound; of arrays, too."""
    short = np.maximum(bound - entropy(n, total), 0.0)
    return short * short


class _Chooser:
    """The state of a selection; the last tag is the longest."""

    def __init__(self, tags: list[Codes], sizes: list[int], budget: int) -> None:
        self.totals = [0] * len(tags)  # of each tag, the sum of c log c
        self._n = 0
        self._bounds = np.log(np.maximum(sizes, 1))
        self._gain = np.diff(entropy_table(budget + 1))  # of c log c when c goes up by one
        self._counts = [np.zeros(size, dtype=np.int64) for size in sizes]
        self._items = np.lexsort(tuple(reversed(tags)))  # cell after cell; stable
        table = np.stack([codes[self._items] for codes in tags], 1)
        starts = _starts(table)
        self._cells = table[starts]
        self._next, self._end = starts, np.append(starts[1:], len(table))
        groups = _starts(self._cells[:, :-1])  # cells of a group stand next to each other
        self._columns = [np.ascontiguousarray(self._cells[groups, k]) for k in range(len(tags) - 1)]
        ends = np.append(groups[1:], len(self._cells))
        # (count of the cell's last tag when it was last looked at, cell): sorted, hence a heap
        self._heaps = [
            [(0, cell) for cell in range(start, end)]
            for start, end in zip(groups.tolist(), ends.tolist(), strict=True)
        ]
        self._least = np.zeros(len(groups), dtype=np.int64)  # the count on top of each heap
        self._closed = np.zeros(len(groups))  # infinite for groups without items
        # Lists, from which single numbers are read several times as fast as from arrays.
        self._gains: list[int] = self._gain.tolist()
        self._last_values: list[int] = self._cells[:, -1].tolist()
        self._last_counts = [0] * sizes[-1]

    def take(self) -> int:
        """Choose one more item."""
        self._n += 1
        group = self._best_group()
        heap = self._heaps[group]
        cell = heap[0][1]
        item = int(self._items[self._next[cell]])
        self._next[cell] += 1
        for k, value in enumerate(self._cells[cell].tolist()):
            self.totals[k] += int(self._gain[self._counts[k][value]])
            self._counts[k][value] += 1
        self._last_counts[self._last_values[cell]] += 1
        if self._next[cell] == self._end[cell]:
            heapq.heappop(heap)
            if heap:
                self._least[group] = heap[0][0]
            else:
                self._closed[group] = np.inf
        return item

    def _best_group(self) -> int:
        """The group that holds the best cell, which is then on top of its heap."""
        n, gain = self._n, self._gain
        base = self._closed.copy()
        for k, column in enumerate(self._columns):
            base += gap(n, self.totals[k] + gain[self._counts[k]], self._bounds[k])[column]
        total, bound = self.totals[-1], float(self._bounds[-1])
        scores = base + gap(n, total + gain[self._least], bound)
        counts, values = self._last_counts, self._last_values
        while True:
            # Counts only grow, so a score from an old count is too low, never too high: if the
            # best is up to date, it is the best.
            group = int(scores.argmin())
            heap = self._heaps[group]
            seen, cell = heap[0]
            if counts[values[cell]] == seen:
                return group
            while (count := counts[values[cell]]) != seen:
                heapq.heapreplace(heap, (count, cell))
                seen, cell = heap[0]
            self._least[group] = seen
            # The same as gap(), but ten times as fast for one number.
            short = max(bound - entropy(n, total + self._gains[seen]), 0.0)
            scores[group] = base[group] + short * short


def _starts(table: Codes) -> Codes:
    """Where runs of equal rows begin."""
    begins = np.ones(len(table), dtype=bool)
    begins[1:] = (table[1:] != table[:-1]).any(1)
    return np.flatnonzero(begins)
