"""Logistic regression against scikit-learn, and the choice of its strength."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from eval.logistic import STRENGTHS, Labelled, draw, fit, path
from tests.eval.tiny import fails


def blobs(count: int, classes: int = 3, seed: int = 0, spread: float = 2.0) -> Labelled:
    """Unit rows in a narrow cone, as the embeddings of CLIP models are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, 8))
    labels = rng.permutation(np.arange(count) % classes)
    rows = 10 + centres[labels] + spread * rng.normal(size=(count, 8))
    return Labelled(rows / np.linalg.norm(rows, axis=1, keepdims=True), labels)


def accuracy(true: np.ndarray, log_probabilities: np.ndarray) -> float:
    return float((log_probabilities.argmax(axis=1) == true).mean())


@pytest.mark.parametrize("classes", [2, 3])
def test_each_probe_of_the_path_equals_a_fit_of_its_own(classes: int) -> None:
    train, test = blobs(60, classes), blobs(20, classes, seed=1)
    mean = train.features.mean(axis=0)
    scale = np.sqrt(np.mean((train.features - mean) ** 2))
    probes = list(path(train, classes))
    assert [probe.strength for probe in probes] == STRENGTHS.tolist()
    for probe in probes[::4]:
        peer = LogisticRegression(C=1 / (probe.strength * 60), max_iter=10_000, tol=1e-8)
        peer.fit((train.features - mean) / scale, train.labels)
        expected = peer.predict_log_proba((test.features - mean) / scale)
        # L-BFGS stops at a gradient of 1e-5, here at 1e-8: at weak strengths both are far out on
        # a flat plain.
        tolerance = 1e-3 if probe.strength > 1e-3 else 0.1
        np.testing.assert_allclose(
            probe.log_probabilities(test.features), expected, atol=tolerance, rtol=tolerance
        )


def test_the_offset_and_the_scale_of_embeddings_change_nothing() -> None:
    train, val, test = blobs(60), blobs(30, seed=1), blobs(30, seed=2)
    probe = fit(train, val, 3, accuracy)

    def moved(data: Labelled) -> Labelled:
        return Labelled(7 * data.features + 3, data.labels)

    other = fit(moved(train), moved(val), 3, accuracy)
    assert other.strength == probe.strength
    np.testing.assert_allclose(
        other.log_probabilities(moved(test).features),
        probe.log_probabilities(test.features),
        atol=1e-4,  # the tolerance of L-BFGS: rounding takes another path to the optimum
    )


def test_probabilities_sum_to_one() -> None:
    probe = fit(blobs(60), blobs(30, seed=1), 3, accuracy)
    sums = np.exp(probe.log_probabilities(blobs(30, seed=2).features)).sum(axis=1)
    np.testing.assert_allclose(sums, 1)


def test_the_validation_items_choose_the_strength() -> None:
    train, val = blobs(40), blobs(200, seed=1)
    scores = [accuracy(val.labels, each.log_probabilities(val.features)) for each in path(train, 3)]
    probe = fit(train, val, 3, accuracy)
    assert probe.strength == STRENGTHS[int(np.argmax(scores))], "of several the strongest"
    assert max(scores) > min(scores), "otherwise nothing was chosen"
    assert fit(train, val, 3, lambda *_: 0.5).strength == STRENGTHS[0]


def test_a_class_without_training_items_is_never_answered() -> None:
    full = blobs(60)
    train = full.take(np.flatnonzero(full.labels != 1))
    found = fit(train, full, 3, accuracy).log_probabilities(full.features)
    assert np.isneginf(found[:, 1]).all()
    assert set(found.argmax(axis=1)) == {0, 2}
    with fails("all training items are of one class"):
        fit(full.take(np.flatnonzero(full.labels == 1)), full, 3, accuracy)


def test_a_score_that_is_undefined_on_the_validation_items() -> None:
    with fails("the validation items have no score"):
        fit(blobs(30), blobs(30), 3, lambda *_: np.nan)


def test_draws_are_nested_and_balanced() -> None:
    labels = np.array([0] * 50 + [1] * 20 + [2] * 3)
    drawn = {k: draw(labels, k, np.random.default_rng([0, 1])) for k in (1, 2, 4, 8)}
    for shots, items in drawn.items():
        expected = [shots, shots, min(shots, 3)]
        assert np.bincount(labels[items], minlength=3).tolist() == expected
    assert set(drawn[1]) < set(drawn[2]) < set(drawn[4]) < set(drawn[8])
    again = draw(labels, 8, np.random.default_rng([0, 1]))
    assert again.tolist() == drawn[8].tolist()
    assert draw(labels, 8, np.random.default_rng([0, 2])).tolist() != drawn[8].tolist()
