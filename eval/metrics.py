"""Scores as pure functions of arrays, and the interval that stands beside each of them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


def confusion_matrix(true: Ints, predicted: Ints, classes: int) -> Ints:
    """Counts [classes, classes]: row = true class, column = predicted class."""
    flat = np.bincount(true * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def accuracy(confusion: Ints) -> float:
    """Share of right answers."""
    return float(np.trace(confusion) / confusion.sum())


def per_class_recall(confusion: Ints) -> Floats:
    """[classes]: share of each true class that was recognised; NaN for a class without items."""
    totals = confusion.sum(axis=1)
    right = np.diagonal(confusion).astype(np.float64)
    recall: Floats = np.full(len(totals), np.nan)
    np.divide(right, totals, out=recall, where=totals > 0)
    return recall


def mean_per_class_recall(confusion: Ints) -> float:
    """Balanced accuracy: the mean recall of the classes that have items, as in scikit-learn."""
    return float(np.nanmean(per_class_recall(confusion)))


def majority_share(true: Ints) -> float:
    """Accuracy of always answering the most frequent class, chosen on these very items."""
    return float(np.bincount(true).max() / len(true))


def chance_recall(k: int, right: Ints, candidates: int) -> float:
    """Expected recall@k of a random order.

    Args:
        k: the cut-off.
        right: [queries], how many of the candidates are right for each query.
        candidates: how many there are.

    Returns:
        Mean over queries of 1 - C(candidates - right, k) / C(candidates, k).
    """
    steps = np.arange(min(k, candidates))
    wrong = np.maximum(candidates - right[:, None] - steps, 0) / (candidates - steps)
    return float(np.mean(1 - wrong.prod(axis=1)))


def bootstrap_interval(
    values: Floats,
    *,
    seed: int,
    strata: Ints | None = None,
    clusters: Ints | None = None,
    replicates: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of a mean, or of a mean of means.

    Args:
        values: [n], one number per item, such as 1 for right and 0 for wrong.
        seed: of the resampling.
        strata: int [n] from 0; then the statistic is the mean over strata of the means within
            them: with the true classes as strata, balanced accuracy. A stratum that a resample
            misses keeps its own mean; left out, small classes would pull the interval off the
            score. Without: the plain mean.
        clusters: int [n] from 0; items of one cluster (patient, article) are drawn together, since
            they aren't independent. Without: every item by itself.
        replicates: how many resamples.
        level: coverage.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value")
    stratum = np.zeros(len(values), np.int64) if strata is None else strata
    cluster = np.arange(len(values)) if clusters is None else clusters
    groups, count = int(stratum.max()) + 1, int(cluster.max()) + 1
    # A resample is how often each cluster was drawn, so sums per (stratum, cluster) are enough.
    cell = stratum * count + cluster
    shape = (groups, count)
    sums = np.bincount(cell, weights=values, minlength=groups * count).reshape(shape)
    sizes = np.bincount(cell, minlength=groups * count).reshape(shape).astype(np.float64)
    filled = sizes.sum(axis=1) > 0  # a class without items has no mean
    sums, sizes = sums[filled], sizes[filled]
    means = sums.sum(axis=1) / sizes.sum(axis=1)
    generator = np.random.default_rng(seed)
    statistics = np.empty(replicates)
    for i in range(replicates):
        drawn = np.bincount(generator.integers(count, size=count), minlength=count)
        size = sizes @ drawn
        statistics[i] = np.where(size > 0, sums @ drawn / np.maximum(size, 1), means).mean()
    tail = (1 - level) / 2
    low, high = np.quantile(statistics, [tail, 1 - tail])
    return Interval(float(low), float(high))


def bootstrap(
    statistics: Callable[[Ints], Floats],
    clusters: Ints,
    *,
    seed: int,
    replicates: int = 1000,
    level: float = 0.95,
) -> list[Interval]:
    """Percentile bootstrap intervals of any statistics of weighted items: AUROC, F1, ...

    For a mean `bootstrap_interval` draws the same resamples and is much faster.

    Args:
        statistics: int64 [n], how often a resample holds each item -> [m], the values. All that
            are wanted in one call, so that they share their resamples. NaN is a statistic that a
            resample leaves undefined, such as the AUROC of items of one class; that resample
            doesn't count for it.
        clusters: int [n] from 0; items of one cluster (patient, article) are drawn together.
        seed: of the resampling.
        replicates: how many resamples.
        level: coverage.

    Returns:
        m intervals; their bounds are NaN where no resample defines the statistic.

    Raises:
        ValueError: no items.
    """
    if not len(clusters):
        raise ValueError("an interval needs at least one item")
    count = int(clusters.max()) + 1
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(count, size=count) for _ in range(replicates))
    found = np.stack([statistics(np.bincount(d, minlength=count)[clusters]) for d in drawn])
    tail = (1 - level) / 2
    intervals = []
    for values in found.T:
        known = values[~np.isnan(values)]
        bounds = np.quantile(known, [tail, 1 - tail]) if len(known) else (np.nan, np.nan)
        intervals.append(Interval(float(bounds[0]), float(bounds[1])))
    return intervals
