"""What a probe of classes and a probe of findings differ in: labels, fits, scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from eval import classification, logistic, metrics
from eval.class_scores import ClassScores, class_scores, mean_of_known
from eval.logistic import Labelled
from eval.metrics import Floats, Ints
from eval.multilabel import UNKNOWN, FindingScores
from eval.probe_data import Items
from eval.prompts import class_names
from eval.tasks import Score, cluster_indices, identities
from vlp.config import UserError

Statistic = Callable[[Ints | None], float]
"""How often each item counts, or None for once -> a score."""
Judged = tuple[dict[str, Score], dict[str, Any], list[dict[str, Any]]]
"""Scores, details and items of a Result."""


@dataclass(frozen=True)
class Answers:
    """What a probe says of the test items."""

    outputs: Floats
    """[n, C]: log-probabilities of classes, or margins of findings."""
    strengths: list[float | None]
    """Of the penalty: one, or one for each finding; None where nothing could be fitted."""
    notes: list[str]


class Bench(Protocol):
    """The items of one task, and how probes of them are fitted and judged."""

    metric: str
    """The score that stands for the task."""
    train: Labelled
    val: Labelled
    clusters: Ints
    """Of the test items, for the bootstrap."""

    def draw(self, data: Labelled, shots: int, rng: np.random.Generator) -> Labelled:
        """So many items of each class, or with and without each finding."""
        ...

    def fit(self, train: Labelled, val: Labelled) -> Answers:
        """A probe, its strength chosen on `val`, and its answers for the test items."""
        ...

    def statistic(self, outputs: Floats) -> Statistic:
        """The task's score of some outputs."""
        ...

    def judged(self, outputs: Floats) -> Judged:
        """All scores of some outputs."""
        ...

    def chance(self) -> float:
        """Chance level of the task's score."""
        ...

    def scarce(self, shots: int) -> list[str]:
        """Notes on classes with fewer training images than that."""
        ...


class ClassBench:
    """One class of several for each image."""

    def __init__(self, test: Items, train: Labelled, val: Labelled) -> None:
        task = test.inputs.task
        self.test, self.train, self.val = test, train, val
        self.labels = list(class_names(task, test.inputs.dataset))
        self.metric: str = task.metric
        self.positive = self.labels.index(task.positive) if task.positive else None
        self.clusters, _ = cluster_indices(test.items, task.cluster)

    def draw(self, data: Labelled, shots: int, rng: np.random.Generator) -> Labelled:
        """See Bench."""
        return data.take(logistic.draw(data.labels, shots, rng))

    def fit(self, train: Labelled, val: Labelled) -> Answers:
        """See Bench."""

        def value(true: Ints, log_probabilities: Floats) -> float:
            return class_statistic(self._scores(true, log_probabilities), self.metric)(None)

        probe = logistic.fit(train, val, len(self.labels), value)
        notes = [] if probe.converged else [UNCONVERGED]
        outputs = probe.log_probabilities(self.test.data.features)
        return Answers(outputs, [probe.strength], notes)

    def statistic(self, outputs: Floats) -> Statistic:
        """See Bench."""
        return class_statistic(self._scores(self.test.data.labels, outputs), self.metric)

    def judged(self, outputs: Floats) -> Judged:
        """See Bench."""
        true = self.test.data.labels
        scored = self._scores(true, outputs)
        values, chance = scored.overall(), scored.chance()
        inputs = self.test.inputs
        intervals, bounds = scored.intervals(lambda f: inputs.intervals(f, self.clusters))
        scores = {key: Score(v, *intervals[key], chance[key]) for key, v in values.items()}
        confusion = metrics.confusion_matrix(true, scored.predicted, len(self.labels))
        details = {
            "confusion": confusion.tolist(),
            "per_class": classification.per_class_table(scored, self.labels, bounds),
            "majority_share": metrics.majority_share(true),
        }
        items = [
            {
                **identity,
                "value": float(answer == label),
                "label": self.labels[label],
                "predicted": self.labels[answer],
                "scores": row,
            }
            for identity, label, answer, row in zip(
                identities(self.test.items, inputs),
                true,
                scored.predicted,
                outputs.tolist(),
                strict=True,
            )
        ]
        return scores, details, items

    def chance(self) -> float:
        """See Bench."""
        true = self.test.data.labels
        return self._scores(true, np.zeros((len(true), len(self.labels)))).chance()[self.metric]

    def scarce(self, shots: int) -> list[str]:
        """See Bench."""
        counts = np.bincount(self.train.labels, minlength=len(self.labels))
        return [
            f"class '{label}' has only {count} training images"
            for label, count in zip(self.labels, counts, strict=True)
            if count < shots
        ]

    def _scores(self, true: Ints, log_probabilities: Floats) -> ClassScores:
        predicted = log_probabilities.argmax(axis=1)
        return class_scores(true, log_probabilities, predicted, self.positive)


class FindingBench:
    """Findings that may occur together: a probe for each, fitted where its label is known."""

    def __init__(self, test: Items, train: Labelled, val: Labelled) -> None:
        task = test.inputs.task
        self.test, self.train, self.val = test, train, val
        self.findings = list(class_names(task, test.inputs.dataset))
        self.metric: str = task.multilabel.metric
        self.clusters, _ = cluster_indices(test.items, task.cluster)

    def draw(self, data: Labelled, shots: int, rng: np.random.Generator) -> Labelled:
        """So many with and so many without each finding; the labels of the others are hidden."""
        labels = np.full_like(data.labels, UNKNOWN)
        for c, own in enumerate(data.labels.T):
            known = np.flatnonzero(own != UNKNOWN)
            taken = known[logistic.draw(own[known], shots, rng)] if len(known) else known
            labels[taken, c] = own[taken]
        return Labelled(data.features, labels)

    def fit(self, train: Labelled, val: Labelled) -> Answers:
        """See Bench; a finding that no training image has, or all have, gets no answer but 0."""
        outputs = np.zeros((len(self.test.items), len(self.findings)))
        strengths: list[float | None] = []
        notes = []
        for c, finding in enumerate(self.findings):
            own = _of_finding(train, c)
            if len(np.unique(own.labels)) < 2:
                strengths.append(None)
                notes.append(f"class '{finding}': training needs images with and without it")
                continue
            probe = logistic.fit(own, _of_finding(val, c), 2, self._value)
            strengths.append(probe.strength)
            found = probe.log_probabilities(self.test.data.features)
            outputs[:, c] = found[:, 1] - found[:, 0]
            if not probe.converged:
                notes.append(f"class '{finding}': {UNCONVERGED}")
        return Answers(outputs, strengths, notes)

    def statistic(self, outputs: Floats) -> Statistic:
        """See Bench."""
        return finding_statistic(self._scores(outputs), self.metric)

    def judged(self, outputs: Floats) -> Judged:
        """See Bench."""
        scored, inputs = self._scores(outputs), self.test.inputs
        values, chance = scored.overall(), scored.chance()
        found = inputs.intervals(scored, self.clusters)
        scores = {
            key: Score(values[key], *quantiles.around(key, values[key]), chance[key])
            for key, quantiles in zip(scored.names, found, strict=False)
            if key in values
        }
        table = scored.table(self.findings, found[len(scored.names) :])
        labels = self.test.data.labels.tolist()
        items = [
            {**identity, "value": value, "label": label, "scores": row}
            for identity, value, label, row in zip(
                identities(self.test.items, inputs),
                scored.credits(),
                [[None if v == UNKNOWN else v for v in row] for row in labels],
                outputs.tolist(),
                strict=True,
            )
        ]
        return scores, {"per_class": table}, items

    def chance(self) -> float:
        """See Bench."""
        return self._scores(np.zeros(self.test.data.labels.shape)).chance()[self.metric]

    def scarce(self, shots: int) -> list[str]:
        """See Bench."""
        counts = (self.train.labels == 1).sum(axis=0)
        return [
            f"class '{finding}' has only {count} training images"
            for finding, count in zip(self.findings, counts, strict=True)
            if count < shots
        ]

    def _scores(self, outputs: Floats) -> FindingScores:
        return FindingScores.of(self.test.data.labels, outputs, decides=True)

    def _value(self, true: Ints, log_probabilities: Floats) -> float:
        """The score of one finding; its log-likelihood where validation lacks it."""
        if not len(true):
            raise UserError("a class has no validation image with a label")
        margins = (log_probabilities[:, 1] - log_probabilities[:, 0])[:, None]
        scored = FindingScores.of(true[:, None], margins, decides=True)
        value = finding_statistic(scored, self.metric)(None)
        likelihood = log_probabilities[np.arange(len(true)), true].mean()
        return float(likelihood if np.isnan(value) else value)


BENCHES: dict[str, type[ClassBench] | type[FindingBench]] = {
    "classification": ClassBench,
    "multilabel": FindingBench,
}
"""Kind of task -> how it is probed."""
UNCONVERGED = "the probe of the whole training split didn't converge"


def class_statistic(scores: ClassScores, metric: str) -> Statistic:
    """One score of a choice between classes.

    A class that a resample misses keeps its own score, as in ClassScores.intervals.
    """
    whole = _per_class(scores, metric, None)
    positive = None if metric in ("mean_per_class_recall", "macro_f1") else scores.positive

    def value(weights: Ints | None) -> float:
        if metric == "accuracy":
            return float(np.average(scores.true == scores.predicted, weights=weights))
        found = _per_class(scores, metric, weights)
        kept = np.where(np.isnan(found), whole, found)
        return float(mean_of_known(kept) if positive is None else kept[positive])

    return value


def finding_statistic(scores: FindingScores, metric: str) -> Statistic:
    """The mean of one score over findings; one that a resample misses keeps its own."""
    row = scores.names.index(metric)

    def value(weights: Ints | None) -> float:
        found = scores.per_class(weights)[row]
        return float(mean_of_known(np.where(np.isnan(found), scores.whole[row], found)))

    return value


def _per_class(scores: ClassScores, metric: str, weights: Ints | None) -> Floats:
    """[classes]: what `metric` is the mean of; NaN where it is undefined."""
    if metric in ("auroc", "average_precision"):
        return metrics.areas(scores.ranking, weights)[int(metric == "average_precision")]
    confusion = metrics.confusion_matrix(scores.true, scores.predicted, scores.classes, weights)
    if metric in ("accuracy", "mean_per_class_recall"):
        return metrics.per_class_recall(confusion)
    return metrics.per_class_f1(confusion)


def _of_finding(data: Labelled, c: int) -> Labelled:
    """The items whose label of one finding is known, with it."""
    known = np.flatnonzero(data.labels[:, c] != UNKNOWN)
    return Labelled(data.features[known], data.labels[known, c])
