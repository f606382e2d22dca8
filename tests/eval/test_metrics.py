"""Metrics against scikit-learn, intervals against known answers."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom
from sklearn import metrics as sk

from eval import metrics


@pytest.mark.parametrize("seed", range(5))
def test_equals_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = rng.choice(7, size=200, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05, 0])  # class 6 has no item
    predicted = np.where(rng.random(200) < 0.5, true, rng.integers(0, 7, size=200))
    confusion = metrics.confusion_matrix(true, predicted, 7)
    assert np.array_equal(confusion, sk.confusion_matrix(true, predicted, labels=range(7)))
    assert metrics.accuracy(confusion) == pytest.approx(sk.accuracy_score(true, predicted))
    recalls = sk.recall_score(true, predicted, labels=range(6), average=None)
    assert metrics.per_class_recall(confusion)[:6] == pytest.approx(recalls)
    assert math.isnan(metrics.per_class_recall(confusion)[6])
    with pytest.warns(UserWarning, match="not in y_true"):
        balanced = sk.balanced_accuracy_score(true, predicted)
    assert metrics.mean_per_class_recall(confusion) == pytest.approx(balanced)


def test_majority_share() -> None:
    assert metrics.majority_share(np.array([0, 2, 2, 1])) == 0.5


def test_chance_recall_by_enumeration() -> None:
    candidates, k = 6, 2
    for right in range(1, 6):
        draws = list(itertools.combinations(range(candidates), k))
        expected = sum(min(draw) < right for draw in draws) / len(draws)
        found = metrics.chance_recall(k, np.array([right]), candidates)
        assert found == pytest.approx(expected)
    assert metrics.chance_recall(1, np.array([1]), 10) == pytest.approx(0.1)
    assert metrics.chance_recall(99, np.array([1, 2]), 10) == 1.0


def test_interval_of_a_proportion_is_binomial() -> None:
    """Resampling n answers of which k are right draws from Binomial(n, k / n)."""
    n, k = 200, 62
    values = np.r_[np.ones(k), np.zeros(n - k)]
    found = metrics.bootstrap_interval(values, seed=0, replicates=20_000)
    low, high = binom.ppf([0.025, 0.975], n, k / n) / n
    assert found.low == pytest.approx(low, abs=1.01 / n)
    assert found.high == pytest.approx(high, abs=1.01 / n)


def test_clusters_count_and_not_items() -> None:
    """50 patients with four equal images each are as uncertain as 50 images."""
    values = (np.random.default_rng(3).random(50) < 0.4).astype(float)
    alone = metrics.bootstrap_interval(values, seed=1)
    repeated = np.repeat(values, 4)
    together = metrics.bootstrap_interval(repeated, seed=1, clusters=np.repeat(np.arange(50), 4))
    naive = metrics.bootstrap_interval(repeated, seed=1)
    assert together == pytest.approx(alone)
    assert naive.high - naive.low < 0.7 * (alone.high - alone.low)


def test_strata_give_the_interval_of_balanced_accuracy() -> None:
    """Against a direct bootstrap of scikit-learn's balanced accuracy, classes large enough."""
    rng = np.random.default_rng(5)
    true = np.r_[np.zeros(150, int), np.ones(50, int)]
    predicted = np.where(rng.random(200) < 0.8, true, 1 - true)
    right = (true == predicted).astype(float)
    found = metrics.bootstrap_interval(right, seed=2, strata=true, replicates=2000)
    draws = (rng.integers(0, 200, size=200) for _ in range(500))
    direct = [sk.balanced_accuracy_score(true[drawn], predicted[drawn]) for drawn in draws]
    assert found == pytest.approx(np.quantile(direct, [0.025, 0.975]), abs=0.015)


def test_small_and_empty_strata_keep_the_interval_around_the_score() -> None:
    """Many resamples miss the classes with one item; class 3 has none at all."""
    true = np.r_[np.zeros(20, int), [1, 2, 4]]
    right = np.r_[np.tile([1.0, 0.0], 10), [1.0, 0.0, 1.0]]
    score = np.mean([0.5, 1.0, 0.0, 1.0])
    found = metrics.bootstrap_interval(right, seed=0, strata=true, replicates=2000)
    assert found.low < score < found.high
    # Only class 0 varies: a quarter of the binomial spread of 20 items.
    assert (found.low + found.high) / 2 == pytest.approx(score, abs=0.02)


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(0).random(30)
    first = metrics.bootstrap_interval(values, seed=4)
    assert first == metrics.bootstrap_interval(values, seed=4)
    assert first != metrics.bootstrap_interval(values, seed=5)


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        metrics.bootstrap_interval(np.empty(0), seed=0)
