"""Logistic regression on embeddings, its regularisation chosen on held-out items.

As in CLIP (Radford et al. 2021, section 3.2 and appendix A.3): multinomial, L2, L-BFGS, with the
strength taken from a grid by the score on a validation split. Embeddings are centred on the
training items and scaled by one number. That changes no class of models, and lets one grid serve
all of them: those of CLIP models lie in a narrow cone.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from eval.metrics import Floats, Ints
from vlp.config import UserError, need

STRENGTHS = np.logspace(2, -6, 17)
"""Weights of the penalty beside the mean loss, half a decade apart, the strongest first."""
ITERATIONS = 1000
TOLERANCE = 1e-5
"""L-BFGS stops where no partial derivative of the mean loss is larger."""


class Labelled(NamedTuple):
    """Items to fit to, or to choose on."""

    features: Floats
    """[n, D]."""
    labels: Ints
    """[n] from 0; of findings [n, C]: 1, 0, or -1 where it isn't known."""

    def take(self, items: Ints) -> "Labelled":
        """Some of the items."""
        return Labelled(self.features[items], self.labels[items])


@dataclass(frozen=True)
class Probe:
    """A linear classifier."""

    weights: Floats
    """[classes, D], of embeddings as they come."""
    biases: Floats
    """[classes]; minus infinity for a class without training items."""
    strength: float
    """Of the penalty."""
    converged: bool
    """Whether L-BFGS reached its tolerance."""

    def log_probabilities(self, features: Floats) -> Floats:
        """[n, D] -> [n, classes]."""
        logits = features @ self.weights.T + self.biases
        logits -= logits.max(axis=1, keepdims=True)
        return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def fit(
    train: Labelled, val: Labelled, classes: int, score: Callable[[Ints, Floats], float]
) -> Probe:
    """The probe of the grid that scores best on the validation items; of several the strongest.

    Args:
        classes: how many there are; some may have no items.
        score: (true classes [n], log-probabilities [n, classes]) -> what to maximise.

    Raises:
        UserError: the training items have one class only, or scikit-learn isn't installed.
    """
    best, highest = None, -np.inf
    for probe in path(train, classes):
        found = score(val.labels, probe.log_probabilities(val.features))
        if found > highest:
            best, highest = probe, found
    if best is None:
        raise UserError("the validation items have no score; they may all be of one class")
    return best


def path(train: Labelled, classes: int) -> Iterator[Probe]:
    """A probe for each strength, the strongest first; each starts where the one before ended.

    Raises:
        UserError: the training items have one class only, or scikit-learn isn't installed.
    """
    need("sklearn", "a probe")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = np.unique(train.labels)
    if len(present) < 2:
        raise UserError("all training items are of one class; a probe needs two")
    mean = train.features.mean(axis=0)
    centred = train.features - mean
    scale = float(np.sqrt(np.mean(centred**2))) or 1.0
    centred /= scale
    model = LogisticRegression(max_iter=ITERATIONS, tol=TOLERANCE, warm_start=True)
    for strength in STRENGTHS:
        model.set_params(C=1 / (strength * len(centred)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` says so
            model.fit(centred, train.labels)
        coefficients, intercepts = model.coef_, model.intercept_
        if len(present) == 2:  # scikit-learn keeps only the second class's
            coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
            intercepts = np.concatenate([np.zeros(1), intercepts])
        weights = np.zeros((classes, centred.shape[1]))
        biases = np.full(classes, -np.inf)
        weights[present] = coefficients / scale
        biases[present] = intercepts - weights[present] @ mean
        converged = bool(np.max(model.n_iter_) < ITERATIONS)
        yield Probe(weights, biases, float(strength), converged)


def draw(labels: Ints, shots: int, rng: np.random.Generator) -> Ints:
    """Indices of `shots` items of each class, ascending; all of a class that has fewer.

    The same state of `rng` gives nested draws: those for 2 shots are among those for 4.
    """
    order = rng.permutation(len(labels))
    taken = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(taken)).astype(np.int64)
