"""Zero-shot scores of findings that may occur together: each is a question of its own.

With prompt pairs, the score of a finding is how much nearer the image is to its positive prompts
than to its negative ones: the softmax over the two (CheXzero, Tiu et al. 2022, Methods) or the
difference of the cosines (BioViL, Boecking et al. 2022). Without negative prompts it is the cosine
to the positive ones (CLIP_benchmark's multi-label sets), and nothing is decided.

Every score is computed by finding, over the images whose label of it is known, and averaged over
the findings. One that has no positives, or no negatives, has no AUROC and is left out of the mean
(CLIP_benchmark counts its average precision as 0). A tie between the prompts is a "no".
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import expit

from eval import metrics
from eval.calibration import as_questions, calibration
from eval.class_scores import mean_of_known
from eval.config import TaskConfig
from eval.metrics import Bools, Floats, Interval, Ints
from eval.prompts import check_own_files, class_names, embed, fill
from eval.readers import Dataset
from eval.tables import Row, text, texts
from eval.tasks import (
    Answer,
    Example,
    Inputs,
    Item,
    Result,
    Score,
    broken_items,
    cluster_indices,
    drop,
    identities,
    select,
)
from vlp.config import UserError

UNKNOWN = -1
"""A label that doesn't count: uncertain, or not given."""
SEVERAL_LABELS = "rows with different labels"
NO_LABEL = "no label"
EXAMPLES = 6


def check(where: str, task: TaskConfig, dataset: Dataset) -> None:
    """Compare the suite's findings and the data's labels, before any model runs.

    Raises:
        UserError: a column that the data lacks, or a label that says nothing known.
    """
    check_own_files(where, task, dataset)
    classes = list(class_names(task, dataset))
    columns = task.multilabel.labels == "columns"
    needed = {c: f"classes.{c}" for c in classes} if columns else {task.label: "label"}
    for item in select(where, task, dataset, needed):
        try:
            labels_of(task, item.row, classes)
        except ValueError as error:
            name = dataset.samples[item.sample].image
            raise UserError(f"{where}: image '{name}': {error}") from None


def labels_of(task: TaskConfig, row: Row, classes: Sequence[str]) -> list[int]:
    """1 (present), 0 (absent) or UNKNOWN for each class.

    Raises:
        ValueError: a cell that says nothing known.
    """
    if task.multilabel.labels == "columns":
        return [_cell(task, row, column) for column in classes]
    value = row.get(task.label)
    if not isinstance(value, list | np.ndarray) and not text(value):
        return [UNKNOWN] * len(classes)  # an empty cell; an empty list says that there is nothing
    if task.multilabel.labels == "vector":
        cells = texts(value.tolist() if isinstance(value, np.ndarray) else value)
        if len(cells) != len(classes) or not set(cells) <= {"0", "1"}:
            raise ValueError(f"'{task.label}' needs a 0 or 1 for each of {len(classes)} classes")
        return [int(cell) for cell in cells]
    if not isinstance(value, list | np.ndarray):
        value = text(value).split(task.multilabel.separator)
    found = {name for name in map(text, value) if name} - set(task.multilabel.ignore)
    if unknown := sorted(found - set(classes)):
        raise ValueError(
            f"'{task.label}' has '{unknown[0]}', which is no class; add it, or name it in "
            f"multilabel.ignore; the classes are {', '.join(classes)}"
        )
    return [int(name in found) for name in classes]


def evaluate(inputs: Inputs) -> Result:
    """AUROC, average precision and, with prompt pairs, F1 and balanced accuracy, by finding.

    Raises:
        UserError: nothing to score, or no finding that has both positives and negatives.
    """
    task = inputs.task
    classes = list(class_names(task, inputs.dataset))
    items, labels, excluded = scored_items(inputs, classes)
    asked = _prompts(task, inputs.dataset)
    margins = _margins(inputs, asked, items)  # [n, C]
    scored = FindingScores.of(labels, margins, decides=bool(task.multilabel.negative))
    clusters, count = cluster_indices(items, task.cluster)

    values, chance = scored.overall(), scored.chance()
    if task.multilabel.metric not in values:
        raise UserError(
            f"tasks.{inputs.name}: {task.multilabel.metric} needs a class that some images have "
            "and some lack"
        )
    found = inputs.intervals(scored, clusters)
    softmax = task.multilabel.score == "softmax" and scored.decides
    shown = expit(inputs.embedder.model.scale * margins) if softmax else margins
    return Result(
        n=len(items),
        scores={
            key: Score(values[key], *quantiles.around(key, values[key]), chance[key])
            for key, quantiles in zip(scored.names, found, strict=False)
            if key in values
        },
        headline=[task.multilabel.metric],
        excluded=dict(excluded),
        clusters=count,
        details={
            "classes": classes,
            "prompts": {label: pair[0] for label, pair in asked.items()},
            "negative_prompts": {label: pair[1] for label, pair in asked.items()},
            "ensemble": task.ensemble,
            "score": task.multilabel.score if scored.decides else "cosine",
            "per_class": scored.table(classes, found[len(scored.names) :]),
            **_calibration(inputs, asked, (labels, margins), clusters),
        },
        examples=_examples(inputs, items, labels, margins, classes) if scored.decides else [],
        notes=[
            f"class '{label}' has no {'positives' if not n else 'negatives'} in this split"
            for label, n, total in zip(classes, *scored.counts, strict=True)
            if n in (0, total)
        ],
        items=[
            {**identity, "value": value, "label": label, "scores": row}
            for identity, value, label, row in zip(
                identities(items, inputs),
                scored.credits() if scored.decides else [None] * len(items),
                [[None if v == UNKNOWN else v for v in row] for row in labels.tolist()],
                shown.tolist(),
                strict=True,
            )
        ],
    )


@dataclass(frozen=True)
class FindingScores:
    """Scores by finding and in the mean, as functions of how often each item counts."""

    positive: Bools
    """[n, C]"""
    negative: Bools
    """[n, C]"""
    said: Bools
    """[n, C]: the margin is above 0."""
    ranking: metrics.Ranking
    decides: bool

    @classmethod
    def of(cls, labels: Ints, margins: Floats, decides: bool) -> "FindingScores":
        """From labels [n, C] (1, 0, UNKNOWN) and margins [n, C]."""
        positive, negative = labels == 1, labels == 0
        ranking = metrics.rank(margins.T, positive.T, negative.T)
        return cls(positive, negative, margins > 0, ranking, decides)

    @property
    def names(self) -> tuple[str, ...]:
        """Scores that are computed."""
        areas = ("auroc", "average_precision")
        return (*areas, "macro_f1", "mean_balanced_accuracy") if self.decides else areas

    @property
    def counts(self) -> tuple[Ints, Ints]:
        """(positives [C], known labels [C])."""
        positives = self.positive.sum(axis=0)
        return positives, positives + self.negative.sum(axis=0)

    def per_class(self, weights: Ints | None = None) -> Floats:
        """[2 or 4, C], in the order of `names`; NaN where a finding leaves a score undefined."""
        areas = metrics.areas(self.ranking, weights)
        if not self.decides:
            return np.stack(areas)
        weight = np.ones(len(self.said), np.int64) if weights is None else weights
        hits, false_alarms = (
            weight @ (self.positive & self.said),
            weight @ (self.negative & self.said),
        )
        positives, negatives = weight @ self.positive, weight @ self.negative
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: undefined
            f1 = 2 * hits / (positives + hits + false_alarms)
            balanced = (hits / positives + 1 - false_alarms / negatives) / 2
        return np.stack([*areas, f1, balanced])

    @cached_property
    def whole(self) -> Floats:
        """`per_class` of the items as they are."""
        return self.per_class()

    def overall(self) -> dict[str, float]:
        """Means over findings; without those that no finding defines."""
        found = zip(self.names, map(mean_of_known, self.whole), strict=True)
        return {name: value for name, value in found if not np.isnan(value)}

    def __call__(self, weights: Ints) -> Floats:
        """Means, then `per_class` row by row. A finding that a resample leaves undefined keeps its
        own score in the means."""
        found = self.per_class(weights)
        kept = np.where(np.isnan(found), self.whole, found)
        return np.array([*map(mean_of_known, kept), *found.ravel()])

    def chance(self) -> dict[str, float]:
        """What a random order, or for decisions a coin, gives."""
        counts = [(int(k), int(n)) for k, n in zip(*self.counts, strict=True) if k]
        precision = [metrics.chance_average_precision(k, n) for k, n in counts]
        f1 = [metrics.chance_f1(np.array([n - k, k]))[1] for k, n in counts]
        return {
            "auroc": 0.5,
            "average_precision": float(np.mean(precision)) if counts else np.nan,
            "macro_f1": float(np.mean(f1)) if counts else np.nan,
            "mean_balanced_accuracy": 0.5,
        }

    def credits(self) -> list[float]:
        """Per item, the share of its known findings that is decided rightly."""
        right = (self.positive & self.said) | (self.negative & ~self.said)
        known = self.positive | self.negative
        shares: list[float] = (right.sum(axis=1) / known.sum(axis=1)).tolist()
        return shares

    def table(self, classes: list[str], quantiles: list[Interval]) -> dict[str, dict[str, Any]]:
        """Class -> how many labels, and of each score its value and interval.

        Args:
            quantiles: of the resamples, as this object's call orders them behind the means.
        """
        positives, known = self.counts
        rows: dict[str, dict[str, Any]] = {
            label: {"n": int(n), "positives": int(k)}
            for label, k, n in zip(classes, positives, known, strict=True)
        }
        for i, values in enumerate(self.whole):
            name = {"macro_f1": "f1"}.get(self.names[i], self.names[i].removeprefix("mean_"))
            own = quantiles[i * len(classes) : (i + 1) * len(classes)]
            for row, value, drawn in zip(rows.values(), values, own, strict=True):
                defined = not np.isnan(value)
                bounds = list(drawn.around(name, float(value)))
                row[name] = float(value) if defined else None
                row[f"{name}_interval"] = bounds if defined else None
        return rows


def _cell(task: TaskConfig, row: Row, column: str) -> int:
    settings = task.multilabel
    value = text(row.get(column)).lower()
    blank = UNKNOWN if settings.blank == "exclude" else 0
    uncertain = {"exclude": UNKNOWN, "positive": 1, "negative": 0}[settings.uncertain]
    known = {"1": 1, "true": 1, "0": 0, "false": 0, "-1": uncertain, "": blank}
    # CheXpert writes 1.0, and a CSV's cells are texts.
    number = value.removesuffix(".0")
    if number not in known:
        raise ValueError(f"'{column}' is '{value}', not 1, 0, -1 or empty")
    return known[number]


def _prompts(task: TaskConfig, dataset: Dataset) -> dict[str, tuple[list[str], list[str]]]:
    """Class -> (positive prompts, negative prompts)."""
    templates = list(task.templates) or dataset.templates
    asked = {
        label: (fill(templates, names), fill(task.multilabel.negative, names))
        for label, names in class_names(task, dataset).items()
    }
    own = {
        label: (list(pair.positive), list(pair.negative))
        for label, pair in task.multilabel.prompts.items()
    }
    return {label: own.get(label, pair) for label, pair in asked.items()}


def _margins(
    inputs: Inputs, asked: dict[str, tuple[list[str], list[str]]], items: list[Item]
) -> Floats:
    """Positive cosine less the negative one, if there is one; float64 [n, C]."""
    images = inputs.images.features[[item.sample for item in items]]  # [n, D]
    pairs = list(asked.values())
    groups = [positive for positive, _ in pairs]
    if inputs.task.multilabel.negative:
        groups += [negative for _, negative in pairs]
    cosines: Floats = (images @ embed(inputs, groups).T).double().numpy()  # [n, C] or [n, 2 C]
    if not inputs.task.multilabel.negative:
        return cosines
    return cosines[:, : len(pairs)] - cosines[:, len(pairs) :]


def _calibration(
    inputs: Inputs,
    asked: dict[str, tuple[list[str], list[str]]],
    scored: tuple[Ints, Floats],
    clusters: Ints,
) -> dict[str, Any]:
    """`calibration` of the answers to each finding's question; {} where nothing is decided."""
    if not inputs.task.multilabel.negative:
        return {}
    labelled = None
    if inputs.labelled is not None:
        items, labels, _ = scored_items(inputs.labelled, list(asked))
        labelled = as_questions(labels, _margins(inputs.labelled, asked, items))
    known = (scored[0] != UNKNOWN).sum(axis=1)
    found = calibration(inputs, as_questions(*scored), np.repeat(clusters, known), labelled)
    return {"calibration": found}


def scored_items(inputs: Inputs, classes: list[str]) -> tuple[list[Item], Ints, Counter[str]]:
    """(one item per image, labels int64 [n, C], why others are left out).

    Raises:
        UserError: no item.
        ValueError: a label that says nothing known, in data that `check` hasn't seen.
    """
    excluded: Counter[str] = Counter()
    if unjoined := sum(not sample.rows for sample in inputs.dataset.samples):
        excluded["no row in the table of labels"] = unjoined
    by_sample: dict[int, list[Item]] = {}
    for item in select(inputs.name, inputs.task, inputs.dataset, {}):
        by_sample.setdefault(item.sample, []).append(item)
    items = [group[0] for group in by_sample.values()]
    reasons = broken_items(items, inputs.images)
    labels = []
    for i, group in enumerate(by_sample.values()):
        found = {tuple(labels_of(inputs.task, item.row, classes)) for item in group}
        labels.append(min(found))
        if len(found) > 1:
            reasons.setdefault(i, SEVERAL_LABELS)
        elif set(labels[-1]) == {UNKNOWN}:
            reasons.setdefault(i, NO_LABEL)
    kept = [i for i in range(len(items)) if i not in reasons]
    items = drop(items, reasons, excluded)
    if not items:
        raise UserError(f"tasks.{inputs.name}: nothing to score: {dict(excluded)}")
    return items, np.array(labels, dtype=np.int64)[kept], excluded


def _examples(
    inputs: Inputs, items: list[Item], labels: Ints, margins: Floats, classes: list[str]
) -> list[Example]:
    """The surest mistake of each finding, the surest findings first."""
    wrong = np.where((labels == 1) & (margins <= 0) | (labels == 0) & (margins > 0), 1, 0)
    surest = (wrong * np.abs(margins)).argmax(axis=0)  # [C]: an item for each finding
    strength = (wrong * np.abs(margins)).max(axis=0)
    examples = []
    for c in np.argsort(-strength, kind="stable")[:EXAMPLES].tolist():
        i = int(surest[c])
        if not wrong[i, c]:
            continue
        order = np.argsort(-margins[i], kind="stable")[:3].tolist()
        said = "found" if margins[i, c] > 0 else "missed"
        present = [name for name, label in zip(classes, labels[i], strict=True) if label == 1]
        examples.append(
            Example(
                group="surest mistakes",
                title=inputs.dataset.samples[items[i].sample].image,
                text=f"{classes[c]} {said}; present: {', '.join(present) or 'none'}",
                image=items[i].sample,
                answers=[
                    Answer(classes[j], None, float(margins[i, j]), bool(labels[i, j] == 1), rank)
                    for rank, j in enumerate(order, 1)
                ],
                right=False,
            )
        )
    return examples
