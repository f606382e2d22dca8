"""Selection by cells against the slow choice, item by item, from the definition."""

import math
from collections import Counter

import numpy as np
import pytest

from data_prep.selection import (
    UNIT,
    Codes,
    entropy,
    entropy_table,
    gap,
    select,
    tag_order,
)


def random_tags(count: int, sizes: list[int], seed: int) -> list[Codes]:
    """Skewed tags that use every code."""
    rng = np.random.default_rng(seed)
    tags = []
    for size in sizes:
        codes = np.minimum(rng.geometric(2 / (size + 1), count) - 1, size - 1)
        codes[rng.permutation(count)[:size]] = np.arange(size)
        tags.append(codes.astype(np.int64))
    return tags


def slow_select(tags: list[Codes], budget: int) -> list[int]:
    """Every remaining item is tried at every step, and all entropies are computed anew."""
    sizes = [int(codes.max()) + 1 for codes in tags]
    order = tag_order(sizes)
    table, chosen = entropy_table(budget + 1), []
    for n in range(1, budget + 1):
        best = None
        for item in range(len(tags[0])):
            if item in chosen:
                continue
            score = 0.0
            for k in order:
                counts = Counter(tags[k][[*chosen, item]].tolist())
                total = sum(int(table[c]) for c in counts.values())
                score += float(gap(n, total, float(np.log(sizes[k]))))
            long = tags[order[-1]]
            others = [int(tags[k][item]) for k in order[:-1]]
            rarity = int((long[chosen] == long[item]).sum())
            key = (score, others, rarity, int(long[item]), item)
            best = key if best is None else min(best, key)
        assert best is not None
        chosen.append(best[-1])
    return chosen


@pytest.mark.parametrize(
    "sizes", [[2], [7], [3, 3], [5, 2], [2, 5], [2, 9, 3], [4, 4, 4], [1, 3], [3, 12, 4, 2]]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_cells_equal_items(sizes: list[int], seed: int) -> None:
    tags = random_tags(70, sizes, seed)
    assert select(tags, 45).items.tolist() == slow_select(tags, 45)


def test_choosing_everything_chooses_everything() -> None:
    tags = random_tags(200, [4, 30], 0)
    assert sorted(select(tags, 200).items.tolist()) == list(range(200))
    assert select(tags, 0).items.tolist() == []


def test_a_smaller_budget_is_the_beginning_of_a_larger_one() -> None:
    tags = random_tags(500, [4, 30, 6], 1)
    assert select(tags, 50).items.tolist() == select(tags, 300).items[:50].tolist()


def test_entropy_is_the_textbook_one() -> None:
    counts = [5, 1, 3, 90]
    n, total = sum(counts), sum(int(entropy_table(90)[c]) for c in counts)
    expected = -sum(c / n * math.log(c / n) for c in counts)
    assert entropy(n, total) == pytest.approx(expected, abs=1e-9)
    assert entropy_table(3).tolist()[:2] == [0, 0]
    assert UNIT * 1e8 * math.log(1e8) < 2**63


def test_tags_come_out_even() -> None:
    """Far more even than a random choice of the same size, and near the bound."""
    tags = random_tags(3000, [6, 40], 2)
    chosen = select(tags, 200)
    drawn = np.random.default_rng(0).permutation(3000)[:200]
    for k, codes in enumerate(tags):
        share = np.bincount(codes[chosen.items]) / 200
        measured = -sum(p * math.log(p) for p in share if p)
        assert chosen.entropies[k] == pytest.approx(measured, abs=1e-9)
        share = np.bincount(codes[drawn]) / 200
        random = -sum(p * math.log(p) for p in share if p)
        assert chosen.bounds[k] - measured < 0.5 * (chosen.bounds[k] - random)


@pytest.mark.parametrize("budget", [-1, 11])
def test_impossible_budgets_are_refused(budget: int) -> None:
    with pytest.raises(ValueError, match=f"budget={budget}: set 0 to 10"):
        select([np.arange(10)], budget)
