"""Paired differences against exhaustive and slow computations, and how often they are wrong."""

import numpy as np
import pytest
from scipy.stats import permutation_test

from eval.paired import (
    Resampling,
    benjamini_hochberg,
    difference,
    difference_of_means,
    holm,
)


def drawn(n: int, clusters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Credits of two models, and the cluster of each item; every cluster has an item."""
    generator = np.random.default_rng(seed)
    a, b = (generator.random((2, n)) < [[0.5], [0.7]]).astype(np.float64)
    cluster = np.r_[np.arange(clusters), generator.integers(clusters, size=n - clusters)]
    return a, b, cluster


def mean_of(outputs: dict) -> object:
    return lambda weights: float(np.average(outputs["value"], weights=weights))


def test_interval_is_that_of_resampled_clusters() -> None:
    """Against lists of items drawn one by one, from the same random numbers."""
    a, b, cluster = drawn(40, 12)
    found = difference_of_means(a, b, cluster, None, Resampling(7, 300, 100))
    generator = np.random.default_rng(7)
    changes = []
    for _ in range(300):
        items = [i for c in generator.integers(12, size=12) for i in np.flatnonzero(cluster == c)]
        changes.append(b[items].mean() - a[items].mean())
    assert found.value == pytest.approx((b - a).mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(changes, [0.025, 0.975])))


@pytest.mark.parametrize("strata", [False, True])
def test_the_way_for_means_is_that_for_any_statistic(strata: bool) -> None:
    a, b, cluster = drawn(40, 12)
    group = np.arange(40) % 3 if strata else None

    def score(outputs: dict) -> object:
        if group is None:
            return mean_of(outputs)
        parts = [np.flatnonzero(group == g) for g in range(3)]
        return lambda w: np.mean([np.average(outputs["value"][p], weights=w[p]) for p in parts])

    resampling = Resampling(0, 100, 4000)
    fast = difference_of_means(a, b, cluster, group, resampling)
    slow = difference(score, {"value": a}, {"value": b}, cluster, resampling)
    assert fast.value == pytest.approx(slow.value)
    if group is None:  # a resample without a stratum is undefined in this slow score
        assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high))
    error = 4 * np.sqrt(2 * 0.25 / 4000)  # four standard errors of a difference of two shares
    assert fast.p == pytest.approx(slow.p, abs=error)


def test_p_value_of_means_is_that_of_all_exchanges() -> None:
    """SciPy goes through all 2 ** 12 exchanges of single items."""
    a, b = np.random.default_rng(3).normal([[0], [0.5]], size=(2, 12))
    exact = permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    found = difference_of_means(a, b, np.arange(12), None, Resampling(0, 100, 20_000))
    assert 0.02 < exact.pvalue < 0.98
    assert found.p == pytest.approx(exact.pvalue, abs=4 * np.sqrt(0.25 / 20_000))


def test_p_value_of_auroc_is_that_of_all_exchanges() -> None:
    generator = np.random.default_rng(1)
    true = np.arange(10) % 2
    a = generator.permutation(10).astype(np.float64)
    b = (2 * generator.random(10) + true).argsort().argsort().astype(np.float64)

    def area(ranks: np.ndarray, weights: np.ndarray | float = 1) -> float:
        """AUROC by its definition: pairs in the right order, ties counting half."""
        x, y = ranks[true == 1][:, None], ranks[true == 0]
        pairs = np.outer(*(np.broadcast_to(weights, 10)[true == t] for t in (1, 0)))
        return float((pairs * ((x > y) + (x == y) / 2)).sum() / max(pairs.sum(), 1))

    exact = permutation_test(
        (b, a), lambda x, y: area(x) - area(y), permutation_type="samples", n_resamples=np.inf
    )
    found = difference(
        lambda outputs: lambda w: area(outputs["ranks"], w),
        {"ranks": a},
        {"ranks": b},
        np.arange(10),
        Resampling(0, 100, 4000),
    )
    assert found.value == pytest.approx(area(b) - area(a))
    assert 0.01 < exact.pvalue < 0.99
    assert found.p == pytest.approx(exact.pvalue, abs=4 * np.sqrt(0.25 / 4000))


def test_copies_of_an_item_are_no_evidence() -> None:
    a, b, _ = drawn(30, 30)
    once = difference_of_means(a, b, np.arange(30), None, Resampling())
    four = difference_of_means(
        np.repeat(a, 4), np.repeat(b, 4), np.repeat(np.arange(30), 4), None, Resampling()
    )
    assert once == four
    as_if_new = difference_of_means(
        np.repeat(a, 4), np.repeat(b, 4), np.arange(120), None, Resampling()
    )
    assert as_if_new.high - as_if_new.low < 0.7 * (once.high - once.low)
    assert as_if_new.p < once.p


def test_equal_models_do_not_differ() -> None:
    a, _, cluster = drawn(40, 12)
    found = difference_of_means(a, a, cluster, None, Resampling())
    assert vars(found) == {"value": 0, "low": 0, "high": 0, "p": 1}


def test_rate_of_false_findings() -> None:
    """400 pairs of models that are equally good: about 5% of p-values are below 5%, and about 95%
    of the intervals hold 0. Both within four standard errors, with 1 point for the bootstrap's
    known undercoverage at 60 clusters."""
    wrong = missed = 0
    for seed in range(400):
        generator = np.random.default_rng(seed)
        cluster = np.repeat(np.arange(60), 3)
        hard = generator.random(60)[cluster]  # items of a patient are alike
        a, b = (generator.random((2, 180)) < hard).astype(np.float64)
        found = difference_of_means(a, b, cluster, None, Resampling(seed, 200, 400))
        wrong += found.p < 0.05
        missed += not found.low <= 0 <= found.high
    error = 4 * np.sqrt(0.05 * 0.95 / 400)
    assert wrong / 400 < 0.05 + error
    assert missed / 400 < 0.05 + error + 0.01
    assert wrong > 0
    assert missed > 0


def test_holm() -> None:
    """By hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, then never less than the one before."""
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([0.02])) == pytest.approx([0.02])


def test_benjamini_hochberg() -> None:
    """By hand: 0.005 x 4/1, 0.01 x 4/2, 0.03 x 4/3, 0.04 x 4/4, none above the one after."""
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
