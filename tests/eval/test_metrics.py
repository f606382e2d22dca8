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
    assert np.nanmean(metrics.per_class_recall(confusion)) == pytest.approx(balanced)


@pytest.mark.parametrize("seed", range(5))
def test_f1_equals_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = rng.choice(6, size=150, p=[0.5, 0.3, 0.1, 0.1, 0, 0])
    predicted = rng.integers(0, 5, size=150)  # class 4 only predicted, 5 neither
    found = metrics.per_class_f1(metrics.confusion_matrix(true, predicted, 6))
    assert found[:5] == pytest.approx(sk.f1_score(true, predicted, average=None))
    assert math.isnan(found[5])
    assert np.nanmean(found) == pytest.approx(sk.f1_score(true, predicted, average="macro"))


@pytest.mark.parametrize("decimals", [0, 1, 6])  # of the scores: from mostly ties to none
@pytest.mark.parametrize("seed", range(4))
def test_areas_equal_scikit_learn(seed: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(3, 120)).round(decimals)
    positive = rng.random((3, 120)) < [[0.5], [0.1], [0.02]]
    positive[:, 0] = True
    scores[1] += positive[1]  # one question that is partly answered
    auroc, precision = metrics.areas(metrics.rank(scores, positive))
    for i in range(3):
        assert auroc[i] == pytest.approx(sk.roc_auc_score(positive[i], scores[i]))
        assert precision[i] == pytest.approx(sk.average_precision_score(positive[i], scores[i]))


def test_weights_repeat_items() -> None:
    """A resample's weights give what the drawn items themselves give, and what scikit-learn gives
    with them as sample weights."""
    rng = np.random.default_rng(7)
    scores, positive = rng.normal(size=(2, 60)).round(1), rng.random((2, 60)) < 0.3
    weights = np.bincount(rng.integers(60, size=60), minlength=60)
    drawn = np.repeat(np.arange(60), weights)
    found = metrics.areas(metrics.rank(scores, positive), weights)
    repeated = metrics.areas(metrics.rank(scores[:, drawn], positive[:, drawn]))
    assert np.array(found) == pytest.approx(np.array(repeated))
    theirs = sk.average_precision_score(positive[0], scores[0], sample_weight=weights)
    assert found[1][0] == pytest.approx(theirs)
    assert found[0][1] == pytest.approx(
        sk.roc_auc_score(positive[1], scores[1], sample_weight=weights)
    )
    true, predicted = rng.integers(0, 4, (2, 60))
    assert np.array_equal(
        metrics.confusion_matrix(true, predicted, 4, weights),
        sk.confusion_matrix(true[drawn], predicted[drawn], labels=range(4)),
    )


def test_items_whose_label_is_unknown_do_not_count() -> None:
    rng = np.random.default_rng(8)
    scores, known = rng.normal(size=(2, 80)).round(1), rng.random((2, 80)) < 0.7
    positive = known & (rng.random((2, 80)) < 0.4)
    auroc, precision = metrics.areas(metrics.rank(scores, positive, known & ~positive))
    for i in range(2):
        part = positive[i][known[i]], scores[i][known[i]]
        assert auroc[i] == pytest.approx(sk.roc_auc_score(*part))
        assert precision[i] == pytest.approx(sk.average_precision_score(*part))


def test_areas_by_hand() -> None:
    # Rising: negative .1, positive .4 = negative .4, positive .9.
    scores, positive = np.array([[0.9, 0.4, 0.1, 0.4]]), np.array([[True, True, False, False]])
    auroc, precision = metrics.areas(metrics.rank(scores, positive))
    assert auroc[0] == (2 + 1.5) / 4  # .9 beats both, .4 beats one and ties with the other
    assert precision[0] == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_areas_of_one_class_are_undefined() -> None:
    scores = np.zeros((2, 3))
    positive = np.array([[True, True, True], [False, False, False]])
    auroc, precision = metrics.areas(metrics.rank(scores, positive))
    assert np.isnan(auroc).all()
    assert precision[0] == 1
    assert math.isnan(precision[1])


@pytest.mark.parametrize(("positives", "n"), [(1, 1), (1, 5), (2, 6), (5, 6), (6, 6)])
def test_chance_average_precision_by_enumeration(positives: int, n: int) -> None:
    orders = list(itertools.combinations(range(1, n + 1), positives))  # ranks of the positives
    precisions = [np.mean([i / k for i, k in enumerate(ranks, 1)]) for ranks in orders]
    found = metrics.chance_average_precision(positives, n)
    assert found == pytest.approx(np.mean(precisions))


def test_chance_f1_by_simulation() -> None:
    rng = np.random.default_rng(0)
    totals = np.array([300, 80, 20])
    true = np.repeat(np.arange(3), totals)
    draws = [
        metrics.per_class_f1(metrics.confusion_matrix(true, rng.integers(0, 3, 400), 3))
        for _ in range(500)
    ]
    # Standard error of the simulated means is below .002; the approximation adds up to .002.
    assert metrics.chance_f1(totals) == pytest.approx(np.mean(draws, axis=0), abs=0.006)


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


def test_bootstrap_of_a_mean_is_the_interval_of_means() -> None:
    """The general and the fast way draw the same resamples."""
    rng = np.random.default_rng(2)
    values, clusters = rng.random(90), rng.integers(0, 30, 90)
    clusters[:30] = np.arange(30)
    (found,) = metrics.bootstrap(
        lambda weights: np.array([np.average(values, weights=weights)]), clusters, seed=6
    )
    assert found == pytest.approx(metrics.bootstrap_interval(values, seed=6, clusters=clusters))


def test_bootstrap_of_auroc_equals_a_direct_one() -> None:
    rng = np.random.default_rng(4)
    positive, patients = rng.random(80) < 0.4, np.repeat(np.arange(40), 2)
    scores = rng.normal(size=80) + positive
    ranking = metrics.rank(scores[None], positive[None])
    (found,) = metrics.bootstrap(
        lambda weights: metrics.areas(ranking, weights)[0], patients, seed=1, replicates=300
    )
    generator, direct = np.random.default_rng(1), []
    for _ in range(300):
        drawn = generator.integers(40, size=40)
        items = np.concatenate([2 * drawn, 2 * drawn + 1])  # both images of each patient
        direct.append(sk.roc_auc_score(positive[items], scores[items]))
    assert found == pytest.approx(np.quantile(direct, [0.025, 0.975]))


def test_the_basic_interval_of_average_precision_holds_the_truth_more_often() -> None:
    """Twelve classes with eight positives of 100 each, for which a percentile interval is too high.

    Of 60 sets the two hold it in about 30 and 46, with a deviation of 4 each.
    """
    rng = np.random.default_rng(0)

    def draw(classes: int, n: int) -> metrics.Ranking:
        positive = rng.random((classes, n)) < 0.08
        return metrics.rank(rng.normal(size=(classes, n)) + 1.5 * positive, positive)

    truth = metrics.areas(draw(1, 200_000))[1][0]
    held = np.zeros(2)
    for seed in range(60):
        ranking = draw(12, 100)
        found = metrics.bootstrap(
            lambda weights, ranking=ranking: np.array(
                [np.nanmean(metrics.areas(ranking, weights)[1])]
            ),
            np.arange(100),
            seed=seed,
            replicates=100,
        )[0]
        value = float(np.nanmean(metrics.areas(ranking)[1]))
        for i, (low, high) in enumerate([found, found.around("average_precision", value)]):
            held[i] += low <= truth <= high
    assert held[1] >= 40
    assert held[1] >= held[0] + 5


def test_basic_intervals_are_reflections_within_bounds() -> None:
    found = metrics.Interval(0.5, 0.9).basic(0.6)
    assert found == pytest.approx((0.3, 0.7))
    assert metrics.Interval(0.7, 0.95).basic(0.9) == pytest.approx((0.85, 1.0))
    assert metrics.Interval(0.5, 0.9).around("accuracy", 0.6) == (0.5, 0.9)


def test_resamples_that_leave_a_statistic_undefined_do_not_count() -> None:
    """One positive of six: a third of the resamples hold none of it."""
    positive = np.array([[True, False, False, False, False, False]])
    ranking = metrics.rank(np.array([[3.0, 1, 2, 4, 5, 6]]), positive)
    never = np.array([np.nan])
    auroc, nothing = metrics.bootstrap(
        lambda weights: np.r_[metrics.areas(ranking, weights)[0], never], np.arange(6), seed=0
    )
    assert 0 <= auroc.low < 0.4 < auroc.high <= 1
    assert math.isnan(nothing.low)
    assert math.isnan(nothing.high)


def test_a_bootstrap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        metrics.bootstrap(lambda weights: weights, np.empty(0, np.int64), seed=0)
