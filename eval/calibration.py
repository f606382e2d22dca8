"""Whether the model's probabilities can be believed, and what is won by answering only the surest.

The probability of a class is the softmax over the classes of the cosines times the model's own
scale (its inverse temperature), and the confidence of an answer is the highest of them. Findings
that may occur together are as many yes-no questions: each known label of an image is one answer.

- Expected calibration error and reliability diagram: Guo et al. 2017 (arXiv 1706.04599), section 2,
  bins of equal width. The error is a sum of absolute values, so that even a perfectly calibrated
  model's is above 0; what it would be with these very confidences stands beside it as `perfect`.
- Temperature scaling: the same, section 4.2. One scale, fitted by log-likelihood on labelled items
  of another split (`calibration.split`), judged on the scored ones. It changes no answer.
- Risk-coverage curve and its area: Geifman and El-Yaniv 2017 (arXiv 1705.08500). Answers of equal
  confidence come in random order; the curve is the expectation over it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from eval.metrics import Bools, Floats, Interval, Ints
from eval.tasks import Inputs

SCALES = (1e-2, 1e5)
"""Bounds of a fitted scale: with separable items there is no best one."""
SIMULATIONS = 200
POINTS = 100
"""Of the risk-coverage curve that is kept."""


class Answered(NamedTuple):
    """Answers to judge, or to fit a temperature on."""

    cosines: Floats
    """float64 [n, classes]; for a yes-no question 0 and the margin of yes over no."""
    true: Ints
    """int64 [n]."""


@dataclass(frozen=True)
class Reliability:
    """Answers in bins of their confidence."""

    count: Ints
    """[bins]"""
    confidence: Floats
    """[bins]: mean; NaN in an empty bin."""
    accuracy: Floats
    """[bins]: NaN in an empty bin."""

    @property
    def error(self) -> float:
        """Expected calibration error: the mean gap, weighted by the bins' counts."""
        filled = self.count > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float(gaps @ self.count[filled] / self.count.sum())

    def rows(self) -> list[dict[str, Any]]:
        """The filled bins as the results hold them."""
        edges = np.linspace(0, 1, len(self.count) + 1)
        return [
            {
                "low": float(edges[i]),
                "high": float(edges[i + 1]),
                "n": int(self.count[i]),
                "confidence": float(self.confidence[i]),
                "accuracy": float(self.accuracy[i]),
            }
            for i in np.flatnonzero(self.count)
        ]


def reliability(
    confidence: Floats, right: Bools, bins: int, weights: Ints | None = None
) -> Reliability:
    """Answers in bins of equal width, each with its upper edge: (0, 1/bins], (1/bins, 2/bins], ...

    Args:
        confidence: [n] in 0 to 1.
        right: [n].
        weights: int64 [n], how often each item counts. Without: once.
    """
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    weight = np.ones(len(index), np.int64) if weights is None else weights
    count = np.bincount(index, weight, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 in empty bins
        means = [
            np.bincount(index, weight * v, minlength=bins) / count for v in (confidence, right)
        ]
    return Reliability(count.astype(np.int64), *means)


def perfect_error(confidence: Floats, bins: int, seed: int) -> float:
    """Mean calibration error if each answer were right with just its confidence's probability."""
    generator = np.random.default_rng(seed)
    draws = (generator.random(len(confidence)) < confidence for _ in range(SIMULATIONS))
    return float(np.mean([reliability(confidence, right, bins).error for right in draws]))


def fit_scale(cosines: Floats, true: Ints) -> float:
    """The scale with the highest likelihood; it is unique, since the likelihood is log-concave.

    Args:
        cosines: [n, classes].
        true: int64 [n].
    """
    low, high = np.log(SCALES)
    found = minimize_scalar(
        lambda log_scale: negative_log_likelihood(np.exp(log_scale) * cosines, true),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def negative_log_likelihood(logits: Floats, true: Ints) -> float:
    """Mean over items, in nats."""
    return float(-log_softmax(logits, axis=1)[np.arange(len(true)), true].mean())


def risk_coverage(confidence: Floats, right: Bools, weights: Ints | None = None) -> Floats:
    """[items]: share of wrong answers among the k surest, for k = 1, 2, ..., all.

    Within a run of equal confidence the expectation over its random orders.

    Args:
        weights: int64 [n], how often each item counts. Without: once.
    """
    order = np.argsort(-confidence, kind="stable")
    if weights is not None:
        order = np.repeat(order, weights[order])
    sure, wrong = confidence[order], ~right[order]
    starts = np.flatnonzero(np.r_[True, sure[1:] != sure[:-1]])
    sizes = np.diff(np.r_[starts, len(sure)])
    shares = np.add.reduceat(wrong.astype(np.float64), starts) / sizes
    expected: Floats = np.cumsum(np.repeat(shares, sizes))
    return expected / np.arange(1, len(sure) + 1)


def calibration(
    inputs: Inputs, scored: Answered, clusters: Ints, labelled: Answered | None = None
) -> dict[str, Any]:
    """What the results say of a task's probabilities.

    Args:
        clusters: int64 [n] from 0, of the scored answers.
        labelled: of `calibration.split`, to fit a temperature on; None fits none.

    Returns:
        scale: the model's; ece: value, low, high and what a `perfect` model has; bins: the
        reliability diagram; risk_coverage: coverage and risk, their area with its interval,
        `chance` (the area of random confidences, which is the share of wrong answers) and `best`
        (of confidences that put all wrong answers last); temperature: what a fitted scale changes.
    """
    settings, scale = inputs.task.calibration, inputs.embedder.model.scale
    cosines, true = scored
    order = np.argsort(-_confidence(scale, cosines), kind="stable")  # so resamples are sorted
    confidence = _confidence(scale, cosines)[order]
    right = (cosines.argmax(axis=1) == true)[order]

    def resampled(drawn: Ints) -> Floats:
        weights = drawn[order]
        error = reliability(confidence, right, settings.bins, weights).error
        return np.array([error, risk_coverage(confidence, right, weights).mean()])

    found = reliability(confidence, right, settings.bins)
    error_bounds, area_bounds = inputs.intervals(resampled, clusters)
    low, high = error_bounds.basic(found.error)  # resampling moves the error up
    return {
        "scale": scale,
        "ece": {
            "value": found.error,
            "low": low,
            "high": high,
            "perfect": perfect_error(confidence, settings.bins, inputs.seed),
        },
        "bins": found.rows(),
        "risk_coverage": _curve(risk_coverage(confidence, right), right, area_bounds),
        "temperature": _temperature(inputs, scored, clusters, labelled),
    }


def as_questions(labels: Ints, margins: Floats) -> Answered:
    """Findings of images as yes-no questions, those whose label is known; image by image.

    Args:
        labels: [n, C]: 1, 0, or negative for unknown.
        margins: [n, C]: cosine of yes less that of no.
    """
    known = labels >= 0
    yes = margins[known]
    return Answered(np.stack([np.zeros_like(yes), yes], axis=1), labels[known])


def _curve(risk: Floats, right: Bools, area: Interval) -> dict[str, Any]:
    n = len(risk)
    kept = np.unique(np.linspace(1, n, min(POINTS, n)).round().astype(np.int64))  # numbers answered
    return {
        "coverage": (kept / n).tolist(),
        "risk": risk[kept - 1].tolist(),
        "area": float(risk.mean()),
        "low": area.low,
        "high": area.high,
        "chance": float(1 - right.mean()),
        "best": float(risk_coverage(right.astype(np.float64), right).mean()),
    }


def _temperature(
    inputs: Inputs, scored: Answered, clusters: Ints, labelled: Answered | None
) -> dict[str, Any] | None:
    """Fit on labelled items that aren't scored, judge on those that are."""
    if labelled is None:
        return None
    settings, scale = inputs.task.calibration, inputs.embedder.model.scale
    fitted = fit_scale(*labelled)
    cosines, true = scored
    right = cosines.argmax(axis=1) == true
    confidence = _confidence(fitted, cosines)

    def resampled(weights: Ints) -> Floats:
        return np.array([reliability(confidence, right, settings.bins, weights).error])

    before = reliability(_confidence(scale, cosines), right, settings.bins)
    after = reliability(confidence, right, settings.bins)
    low, high = inputs.intervals(resampled, clusters)[0].basic(after.error)
    return {
        "split": settings.split,
        "labelled": len(labelled.true),
        "n": len(true),
        "scale": fitted,
        "ece_before": before.error,
        "ece_after": after.error,
        "ece_after_low": low,
        "ece_after_high": high,
        "nll_before": negative_log_likelihood(scale * cosines, true),
        "nll_after": negative_log_likelihood(fitted * cosines, true),
        "bins": after.rows(),
    }


def _confidence(scale: float, cosines: Floats) -> Floats:
    highest: Floats = np.exp(log_softmax(scale * cosines, axis=1)).max(axis=1)
    return highest
