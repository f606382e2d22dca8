"""Two models on the same items: how sure their difference is, and how sure over many tasks.

Interval: both models are scored on the same bootstrap resamples of clusters, so what makes an item
hard for both cancels. P-value: under the null hypothesis it doesn't matter which model gave which
answers, so those of a cluster are exchanged by a coin (for a mean this is Fisher's sign-flip test;
for ranks the test of Bandos, Rockette and Gur, Statistics in Medicine 2005).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.metrics import Floats, Interval, Ints, bootstrap, bootstrap_interval

Outputs = Mapping[str, np.ndarray]
"""What a model made of the items: name -> array [n, ...]."""
Statistic = Callable[[Ints], float]
"""int64 [n], how often each item counts -> the score."""

ROUNDING = 1e-12
"""Differences that are equal but for the order of their sums count as equal."""
BLOCK = 1 << 22
"""Coins tossed at a time."""


@dataclass(frozen=True)
class Resampling:
    """How often, and from which seed."""

    seed: int = 0
    replicates: int = 1000
    """Bootstrap resamples."""
    permutations: int = 2000
    """Exchanges behind a p-value, which can't be smaller than 1 / (permutations + 1)."""


@dataclass(frozen=True)
class Difference:
    """The score of b less that of a, on the same items."""

    value: float
    low: float
    """Lower bound of the 95% bootstrap interval."""
    high: float
    p: float
    """Two-sided; of no difference."""


def difference_of_means(
    a: Floats, b: Floats, clusters: Ints, strata: Ints | None, resampling: Resampling
) -> Difference:
    """The difference of two means of items, or of two means of means.

    Args:
        a: [n], each item's credit under the first model; b: under the second.
        clusters: int [n] from 0; items of one cluster are drawn and exchanged together.
        strata: int [n] from 0, for the mean over strata of the means within them (with the true
            classes as strata, balanced accuracy); None for the plain mean.
    """
    change = b - a
    interval = bootstrap_interval(
        change,
        seed=resampling.seed,
        clusters=clusters,
        strata=strata,
        replicates=resampling.replicates,
    )
    if strata is None:
        weighted = change / len(change)
    else:
        sizes = np.bincount(strata)
        weighted = change / (sizes[strata] * np.count_nonzero(sizes))
    per_cluster = np.bincount(clusters, weights=weighted)
    value = float(per_cluster.sum())
    extreme = 0
    generator = np.random.default_rng(resampling.seed)
    for count in _blocks(resampling.permutations, len(per_cluster)):
        coins = generator.integers(2, size=(count, len(per_cluster)), dtype=np.int8)
        exchanged = (1 - 2 * coins) @ per_cluster
        extreme += int((np.abs(exchanged) >= abs(value) - ROUNDING).sum())
    return Difference(value, *interval, _p_value(extreme, resampling.permutations))


def difference(
    score: Callable[[Outputs], Statistic],
    a: Outputs,
    b: Outputs,
    clusters: Ints,
    resampling: Resampling,
) -> Difference:
    """The difference of any statistic: AUROC, F1, ...

    Args:
        score: a model's outputs -> its statistic as a function of how often each item counts.
            Scores of two models can only be exchanged on a common scale, such as their ranks.
        clusters: as in `difference_of_means`.
    """
    first, second = score(a), score(b)

    def change(weights: Ints) -> Floats:
        return np.array([second(weights) - first(weights)])

    (interval,) = _bootstrap(change, clusters, resampling)
    once, count = np.ones(len(clusters), np.int64), int(clusters.max()) + 1
    value = second(once) - first(once)
    extreme = 0
    generator = np.random.default_rng(resampling.seed)
    for _ in range(resampling.permutations):
        exchange = generator.integers(2, size=count, dtype=np.int8).astype(bool)[clusters]
        mixed = score(_mix(a, b, exchange))(once), score(_mix(b, a, exchange))(once)
        extreme += abs(mixed[1] - mixed[0]) >= abs(value) - ROUNDING
    return Difference(value, *interval, _p_value(extreme, resampling.permutations))


def holm(p: Floats) -> Floats:
    """Adjusted p-values [m] that bound the chance of any false finding among them (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1)
    return adjusted


def benjamini_hochberg(p: Floats) -> Floats:
    """Adjusted p-values [m] that bound the expected share of false findings (1995)."""
    from scipy.stats import false_discovery_control  # takes a second to import

    adjusted: Floats = false_discovery_control(p)
    return adjusted


def _bootstrap(
    statistics: Callable[[Ints], Floats], clusters: Ints, resampling: Resampling
) -> list[Interval]:
    return bootstrap(statistics, clusters, seed=resampling.seed, replicates=resampling.replicates)


def _mix(a: Outputs, b: Outputs, exchange: np.ndarray) -> dict[str, Any]:
    """a's outputs, those of b where `exchange` [n] says so."""
    mixed = {}
    for name, values in a.items():
        across = exchange.reshape(-1, *[1] * (values.ndim - 1))
        mixed[name] = np.where(across, b[name], values)
    return mixed


def _p_value(extreme: int, permutations: int) -> float:
    """The share of exchanges as extreme as the data, the data themselves counted as one of them
    (Phipson and Smyth 2010): never 0."""
    return (1 + extreme) / (1 + permutations)


def _blocks(total: int, width: int) -> list[int]:
    """How many of `total` rows of `width` coins to toss at a time."""
    size = max(1, BLOCK // width)
    return [min(size, total - start) for start in range(0, total, size)]
