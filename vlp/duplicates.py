"""Near-duplicates among 64-bit perceptual hashes: every pair within a few bits, and groups of them.

Cut a hash into m bands. Two hashes that differ in at most k bits agree in all of some m - k bands,
so sorting by every choice of m - k bands brings each such pair together at least once (Manku et al.
2007, "Detecting near-duplicates for web crawling"). Equal hashes are joined only once.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]
Same = Callable[[int, Indices], NDArray[np.bool_]]
"""Of item i and earlier items [n]: which of them are the same image, looked at more closely?"""

MAX_BITS = 16
"""More differing bits than this say nothing: unrelated images differ in about 32."""

_COMPARE, _SORT = 4, 8  # relative cost of comparing a candidate, and of sorting one hash


def near_pairs(hashes: Hashes, bits: int) -> Indices:
    """All pairs of items whose hashes differ in at most `bits` bits.

    n equal hashes are n (n - 1) / 2 pairs: `leaders` copes with many of them, this does not.

    Args:
        hashes: uint64 [N], in any order.
        bits: at most 16.

    Returns:
        int64 [P, 2], each row i < j, the rows sorted.
    """
    values, members, starts = _classes(hashes)
    sizes = np.diff(starts)
    pairs = near_values(values, bits)
    twins = np.flatnonzero(sizes > 1)
    pairs = np.concatenate([pairs, np.stack([twins, twins], 1)])
    # Every member of the left class with every member of the right one.
    count = sizes[pairs[:, 0]] * sizes[pairs[:, 1]]
    row = np.repeat(np.arange(len(pairs)), count)
    within = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    left, right = pairs[row, 0], pairs[row, 1]
    i = members[starts[left] + within // sizes[right]]
    j = members[starts[right] + within % sizes[right]]
    keep = (left != right) | (i < j)
    return _sorted_pairs(np.minimum(i, j)[keep], np.maximum(i, j)[keep], len(hashes))


def leaders(hashes: Hashes, bits: int, same: Same | None = None) -> Indices:
    """For each item the one that stands for it: itself, or an earlier item that it duplicates.

    Item i joins the first of the leaders before it that is within `bits` of it (and that `same`
    confirms); without one it leads. Every member is thus within `bits` of its leader, so
    a chain of small steps, as through blank plots, cannot join images that differ.

    Args:
        hashes: uint64 [N]; the order decides who leads, so put the items to keep first.
        bits: at most 16.
        same: a closer look at the candidates; None believes the hash.

    Returns:
        int64 [N]; `result[i] == i` says that i leads.
    """
    return Neighbourhood(hashes, bits).leaders(same)


class Neighbourhood:
    """The items of a set that have others near them; `leaders` says more."""

    def __init__(self, hashes: Hashes, bits: int) -> None:
        values, members, starts = _classes(hashes)
        self._count = len(hashes)
        self._near: dict[int, list[int]] = defaultdict(list)
        for left, right in near_values(values, bits).tolist():
            self._near[left].append(right)
            self._near[right].append(left)
        crowded = np.diff(starts) > 1
        crowded[np.fromiter(self._near, np.int64)] = True
        value_of = np.repeat(np.arange(len(values)), np.diff(starts))
        busy = crowded[value_of]
        order = np.argsort(members[busy])
        self.items: Indices = members[busy][order]
        """Those with a neighbour, ascending."""
        self._values = value_of[busy][order]

    def leaders(self, same: Same | None) -> Indices:
        """See the function `leaders`."""
        result = np.arange(self._count)
        leading: dict[int, list[int]] = defaultdict(list)
        for item, value in zip(self.items.tolist(), self._values.tolist(), strict=True):
            near = (value, *self._near.get(value, ()))
            found = sorted(leader for v in near for leader in leading.get(v, ()))
            if found and same is not None:
                candidates = np.array(found)
                found = candidates[same(item, candidates)].tolist()
            if found:
                result[item] = found[0]
            else:
                leading[value].append(item)
        return result


def nearest_in(reference: Hashes, hashes: Hashes, bits: int) -> tuple[Indices, Indices]:
    """Which items are near one of a reference set.

    Args:
        reference: uint64 [R].
        hashes: uint64 [N].
        bits: at most 16.

    Returns:
        The items that are, ascending int64 [M], and for each the index in `reference` of its
        nearest (of several the first) int64 [M].
    """
    together = np.concatenate([reference, hashes])
    values, members, starts = _classes(together)
    first = members[starts[:-1]]  # the lowest index with this hash: below R if in the reference
    pairs = near_values(values, bits)
    known = np.flatnonzero(first < len(reference))
    pairs = np.concatenate([pairs, pairs[:, ::-1], np.stack([known, known], 1)])
    pairs = pairs[first[pairs[:, 0]] < len(reference)]
    distance = np.bitwise_count(values[pairs[:, 0]] ^ values[pairs[:, 1]])
    order = np.lexsort((first[pairs[:, 0]], distance, pairs[:, 1]))
    pairs = pairs[order]
    best = pairs[np.unique(pairs[:, 1], return_index=True)[1]]
    match = np.full(len(values), -1)
    match[best[:, 1]] = first[best[:, 0]]
    of_item = np.empty(len(together), dtype=np.int64)
    of_item[members] = np.repeat(match, np.diff(starts))
    of_item = of_item[len(reference) :]
    items = np.flatnonzero(of_item >= 0)
    return items, of_item[items]


def near_values(values: Hashes, bits: int) -> Indices:
    """All pairs among distinct, sorted hashes that differ in at most `bits` bits.

    Args:
        values: uint64 [N], ascending, no two equal.
        bits: at most 16.

    Returns:
        int64 [P, 2], each row i < j, the rows sorted.
    """
    if not 0 <= bits <= MAX_BITS:
        raise ValueError(f"bits={bits}: set 0 to {MAX_BITS}")
    if bits == 0 or len(values) < 2:
        return np.empty((0, 2), dtype=np.int64)
    kept = _bands_kept(len(values), bits)
    edges = np.linspace(0, 64, bits + kept + 1).round().astype(int)
    bands = list(itertools.pairwise(edges.tolist()))
    lower, upper = [values[:0]], [values[:0]]
    for key_bands in itertools.combinations(bands, kept):
        order = [*key_bands, *(band for band in bands if band not in key_bands)]
        arranged = _arrange(values, order)
        arranged.sort()
        width = sum(end - start for start, end in key_bands)
        for left, right in _candidates(arranged, 64 - width):
            near = np.bitwise_count(left ^ right) <= bits
            lower.append(_restore(left[near], order))
            upper.append(_restore(right[near], order))
    i = np.searchsorted(values, np.concatenate(lower))
    j = np.searchsorted(values, np.concatenate(upper))
    return _sorted_pairs(np.minimum(i, j), np.maximum(i, j), len(values))


def _classes(hashes: Hashes) -> tuple[Hashes, Indices, Indices]:
    """Distinct hashes [V]; items by hash, then by index [N]; where each hash begins [V + 1]."""
    members = np.argsort(hashes, kind="stable")
    ordered = hashes[members]
    begins = np.ones(len(hashes), dtype=bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(begins)
    return ordered[starts], members, np.append(starts, len(hashes))


def _sorted_pairs(i: Indices, j: Indices, count: int) -> Indices:
    """Distinct rows (i, j), sorted."""
    return np.stack(np.divmod(np.unique(i * np.int64(count) + j), count), 1)


def _bands_kept(count: int, bits: int) -> int:
    """How many bands a sort key takes: few sorts of long runs, or many sorts of short ones."""

    def cost(kept: int) -> float:
        key = 64 * kept / (bits + kept)
        candidates = count * count / 2 / 2**key
        return math.comb(bits + kept, kept) * (_SORT * count + _COMPARE * candidates)

    return min(range(1, 7), key=cost)


def _arrange(values: Hashes, bands: list[tuple[int, int]]) -> Hashes:
    """The hashes with their bits moved: the first band comes to stand highest."""
    result = np.zeros_like(values)
    for start, end in bands:
        width = end - start
        result <<= np.uint64(width)
        result |= (values >> np.uint64(start)) & np.uint64((1 << width) - 1)
    return result


def _restore(arranged: Hashes, bands: list[tuple[int, int]]) -> Hashes:
    """What `_arrange` did, undone."""
    result = np.zeros_like(arranged)
    rest = arranged.copy()
    for start, end in reversed(bands):
        width = end - start
        result |= (rest & np.uint64((1 << width) - 1)) << np.uint64(start)
        rest >>= np.uint64(width)
    return result


def _candidates(arranged: Hashes, shift: int) -> Iterator[tuple[Hashes, Hashes]]:
    """All pairs of sorted hashes that agree above `shift` bits, by their distance in the order."""
    keys = arranged >> np.uint64(shift)
    left = np.flatnonzero(keys[1:] == keys[:-1])
    offset = 1
    while len(left):
        yield arranged[left], arranged[left + offset]
        offset += 1
        left = left[left + offset < len(keys)]
        left = left[keys[left] == keys[left + offset]]
