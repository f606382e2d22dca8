"""Calibration against hand-computed cases and simulated models whose calibration is known."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve

from eval import calibration as cal
from eval.config import CalibrationConfig, DataConfig, TaskConfig
from eval.tasks import Inputs


def drawn(scale: float, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(cosines [n, 4], true [n]) of a model whose probabilities at this scale are right."""
    rng = np.random.default_rng(seed)
    cosines = rng.uniform(-0.3, 0.3, (n, 4))
    true = [rng.choice(4, p=p) for p in softmax(scale * cosines, axis=1)]
    return cosines, np.array(true)


def test_error_by_hand() -> None:
    # Upper edges belong to their bin: .5 to the second of four, .75 to the third.
    confidence = np.array([0.5, 0.4, 0.75, 0.9, 1.0, 0.95])
    right = np.array([True, False, False, True, True, False])
    found = cal.reliability(confidence, right, bins=4)
    assert found.count.tolist() == [0, 2, 1, 3]
    assert found.confidence[1:] == pytest.approx([0.45, 0.75, 0.95])
    assert found.accuracy[1:] == pytest.approx([0.5, 0.0, 2 / 3])
    gaps = [0.05, 0.75, 0.95 - 2 / 3]
    assert found.error == pytest.approx((2 * gaps[0] + gaps[1] + 3 * gaps[2]) / 6)
    assert found.rows()[0] == {
        "low": 0.25,
        "high": 0.5,
        "n": 2,
        "confidence": pytest.approx(0.45),
        "accuracy": 0.5,
    }


def test_diagram_equals_scikit_learn() -> None:
    """scikit-learn's curve is of a binary probability, which a confidence of being right is."""
    rng = np.random.default_rng(3)
    confidence, right = rng.random(300), rng.random(300) < 0.6
    found = cal.reliability(confidence, right, bins=10)
    accuracy, mean = calibration_curve(right, confidence, n_bins=10)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.confidence == pytest.approx(mean)


def test_weights_repeat_answers() -> None:
    rng = np.random.default_rng(5)
    confidence, right = rng.random(50).round(1), rng.random(50) < 0.5
    weights = np.bincount(rng.integers(50, size=50), minlength=50)
    items = np.repeat(np.arange(50), weights)
    weighted = cal.reliability(confidence, right, 7, weights)
    assert weighted.error == pytest.approx(
        cal.reliability(confidence[items], right[items], 7).error
    )
    risk = cal.risk_coverage(confidence, right, weights)
    assert risk == pytest.approx(cal.risk_coverage(confidence[items], right[items]))


def test_a_perfect_model_has_the_error_that_is_told() -> None:
    errors = []
    for seed in range(30):
        cosines, true = drawn(10, 400, seed)
        confidence = softmax(10 * cosines, axis=1).max(axis=1)
        right = cosines.argmax(axis=1) == true
        errors.append(cal.reliability(confidence, right, 15).error)
    # The deviation of one error is about .01, that of the mean of 30 about .002.
    assert cal.perfect_error(confidence, 15, seed=0) == pytest.approx(np.mean(errors), abs=0.006)
    assert np.mean(errors) > 0.02  # far from 0, although nothing is wrong


def test_the_fitted_scale_is_the_one_that_made_the_labels() -> None:
    cosines, true = drawn(12, 20_000)
    found = cal.fit_scale(cosines, true)
    assert found == pytest.approx(12, rel=0.05)
    best = cal.negative_log_likelihood(found * cosines, true)
    for other in (0.9 * found, 1.1 * found):
        assert cal.negative_log_likelihood(other * cosines, true) > best
    expected = -log_softmax(found * cosines, axis=1)[np.arange(len(true)), true].mean()
    assert best == pytest.approx(expected)


def test_separable_items_have_a_bounded_scale() -> None:
    cosines, true = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
    assert np.isfinite(cal.fit_scale(cosines, true))


def test_risk_coverage_by_hand() -> None:
    confidence = np.array([0.2, 0.9, 0.6, 0.8])
    right = np.array([False, True, True, False])
    assert cal.risk_coverage(confidence, right) == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])


def test_ties_are_the_mean_over_their_orders() -> None:
    confidence = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    right = np.array([True, False, True, True, False])
    curves = []
    for order in itertools.permutations([1, 2, 3]):
        wrong = ~right[[0, *order, 4]]
        curves.append(np.cumsum(wrong) / np.arange(1, 6))
    assert cal.risk_coverage(confidence, right) == pytest.approx(np.mean(curves, axis=0))
    # Confidences that are all equal tell nothing: the risk is the error rate throughout.
    assert cal.risk_coverage(np.ones(5), right) == pytest.approx(np.full(5, 0.4))


def test_labelled_items_are_whole_clusters() -> None:
    clusters = np.random.default_rng(0).integers(0, 40, 200)
    chosen = cal._labelled(60, clusters, seed=1)
    assert 40 < chosen.sum() <= 60
    assert not set(clusters[chosen]) & set(clusters[~chosen])
    assert cal._labelled(10_000, clusters, seed=1).sum() <= 100
    assert not cal._labelled(0, clusters, seed=1).any()
    assert not cal._labelled(50, np.zeros(200, int), seed=1).any()  # one cluster of all


def report(scale: float, labelled: int = 200) -> dict:
    """What is said of items made at scale 12 by a model that believes in another one."""
    cosines, true = drawn(12, 1000)
    task = TaskConfig(
        kind="classification",
        source="test",
        data=DataConfig(reader="table", path="x"),
        calibration=CalibrationConfig(labelled=labelled),
    )
    embedder = SimpleNamespace(model=SimpleNamespace(scale=scale))
    inputs = Inputs(task, None, None, embedder, "it", 0, 200)
    return cal.calibration(inputs, cosines, true, np.arange(1000))


def test_an_overconfident_model_is_found_and_mended() -> None:
    found = report(scale=60)
    error, gain = found["ece"], found["temperature"]
    assert error["value"] > 0.2
    assert error["low"] < error["value"] < error["high"]
    assert error["perfect"] < 0.05
    assert gain["scale"] == pytest.approx(12, rel=0.2)
    assert gain["ece_after"] < 0.08 < 0.2 < gain["ece_before"]
    assert gain["nll_after"] < gain["nll_before"]
    assert (gain["labelled"], gain["n"]) == (200, 800)
    assert sum(row["n"] for row in found["bins"]) == 1000


def test_a_calibrated_model_is_left_in_peace() -> None:
    found = report(scale=12)
    assert found["ece"]["low"] <= found["ece"]["perfect"]
    assert found["ece"]["value"] < 2 * found["ece"]["perfect"]
    curve = found["risk_coverage"]
    assert curve["best"] < curve["area"] < curve["chance"]
    assert curve["low"] < curve["area"] < curve["high"]
    assert curve["risk"][-1] == pytest.approx(curve["chance"])
    assert curve["coverage"][-1] == 1
    assert len(curve["risk"]) == len(curve["coverage"]) == 100
    assert report(scale=12, labelled=0)["temperature"] is None


def test_area_of_the_best_confidences_by_hand() -> None:
    """Two of four wrong: risks 0, 0, 1/3, 1/2."""
    right = np.array([False, True, True, False])
    assert cal._curve(cal.risk_coverage(np.ones(4), right), right, cal.Interval(0, 1))[
        "best"
    ] == pytest.approx((1 / 3 + 1 / 2) / 4)


@pytest.mark.parametrize(("key", "value"), [("bins", 1), ("labelled", -1)])
def test_impossible_settings_are_refused(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"calibration.{key}={value}"):
        CalibrationConfig(**{key: value})
