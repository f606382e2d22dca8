"""All scores of a choice between classes, as functions of how often each item counts.

One object gives the scores of the items and, called with a resample's weights, those of the
resample: what the bootstrap varies is exactly what is reported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eval import metrics
from eval.metrics import Floats, Interval, Ints, Ranking

PER_CLASS = ("recall", "f1", "auroc", "average_precision")


@dataclass(frozen=True)
class ClassScores:
    """Accuracy, and recall, F1, AUROC and average precision by class and in the mean."""

    true: Ints
    """[n] from 0."""
    predicted: Ints
    """[n] from 0."""
    ranking: Ranking
    """Each class against the rest, by its log-probability."""
    classes: int
    positive: int | None = None
    """Of two classes the one whose F1 and average precision stand for the task."""

    @property
    def totals(self) -> Ints:
        """[classes]: items of each true class."""
        return np.bincount(self.true, minlength=self.classes).astype(np.int64)

    def per_class(self, weights: Ints | None = None) -> Floats:
        """[4, classes]: PER_CLASS; NaN where a class has no items (or for F1, no answers)."""
        confusion = metrics.confusion_matrix(self.true, self.predicted, self.classes, weights)
        recall, f1 = metrics.per_class_recall(confusion), metrics.per_class_f1(confusion)
        return np.stack([recall, f1, *metrics.areas(self.ranking, weights)])

    def overall(self) -> dict[str, float]:
        """The scores of the task; without those that the items leave undefined."""
        values = self._overall(None, self.per_class())
        names = self.names
        return {name: float(v) for name, v in zip(names, values, strict=True) if not np.isnan(v)}

    def chance(self) -> dict[str, float]:
        """What answers drawn evenly from the classes give, by score."""
        totals, n = self.totals, len(self.true)
        precision = [metrics.chance_average_precision(int(k), n) if k else np.nan for k in totals]
        f1 = metrics.chance_f1(totals)
        found = {
            "accuracy": 1 / self.classes,
            "mean_per_class_recall": 1 / self.classes,
            "macro_f1": float(f1.mean()),
            "auroc": 0.5,
            "average_precision": float(np.nanmean(precision)),
        }
        if self.positive is not None:
            found["f1"] = float(f1[self.positive])
            found["average_precision"] = precision[self.positive]
        return found

    def intervals(
        self, bootstrap: Callable[[Callable[[Ints], Floats]], list[Interval]]
    ) -> tuple[dict[str, Interval], list[list[Interval]]]:
        """(score -> interval, [4][classes] intervals of `per_class`).

        Args:
            bootstrap: statistics of weights -> their intervals, as metrics.bootstrap.
        """
        names, whole = self.names, self._whole
        found = bootstrap(self.resampled)
        values = self._overall(None, whole)
        scores = {
            name: quantiles.around(name, float(value))
            for name, quantiles, value in zip(names, found, values, strict=False)
        }
        rest = iter(found[len(names) :])
        table = [
            [next(rest).around(name, float(value)) for value in row]
            for name, row in zip(PER_CLASS, whole, strict=True)
        ]
        return scores, table

    def resampled(self, weights: Ints) -> Floats:
        """The scores of a resample, in the order of `names`, then `per_class` row by row."""
        found = self.per_class(weights)
        # A class that a resample misses keeps its own score: left out of the mean, small classes
        # would pull the interval off the score.
        kept = np.where(np.isnan(found), self._whole, found)
        return np.concatenate([self._overall(weights, kept), found.ravel()])

    @cached_property
    def _whole(self) -> Floats:
        return self.per_class()

    @property
    def names(self) -> list[str]:
        """Names of the scores of the task."""
        own = ["f1"] if self.positive is not None else []
        return [
            *("accuracy", "mean_per_class_recall", "macro_f1"),
            *own,
            *("auroc", "average_precision"),
        ]

    def _overall(self, weights: Ints | None, per_class: Floats) -> Floats:
        """The scores in the order of `names`."""
        right = self.true == self.predicted
        accuracy = np.average(right, weights=weights)
        recall, macro_f1, auroc, precision = map(mean_of_known, per_class)
        if self.positive is None:
            return np.array([accuracy, recall, macro_f1, auroc, precision])
        _, f1, auroc, precision = per_class[:, self.positive]
        return np.array([accuracy, recall, macro_f1, f1, auroc, precision])


def class_scores(
    true: Ints, log_probabilities: Floats, predicted: Ints, positive: int | None = None
) -> ClassScores:
    """Scores of n items.

    Args:
        true: int64 [n] from 0.
        log_probabilities: [n, classes]; their logarithm, since probabilities near 1 would tie.
        predicted: int64 [n].
        positive: of two classes the one that is looked for.
    """
    classes = log_probabilities.shape[1]
    ranking = metrics.rank(log_probabilities.T, np.arange(classes)[:, None] == true)
    return ClassScores(true, predicted, ranking, classes, positive)


def mean_of_known(values: Floats) -> float:
    """Mean of what is defined; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan
