"""Zero-shot classification: the class whose prompts are nearest to the image.

How prompts become the embedding of a class stands in eval/prompts.py; with `pool: max` each name of
a class has its own, and the nearest one speaks for the class. AUROC and average precision rank
items by the class's log-probability: the softmax over the classes at the model's own temperature.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor

from eval import metrics
from eval.calibration import Answered, calibration
from eval.class_scores import PER_CLASS, ClassScores, class_scores
from eval.config import TaskConfig, label_columns
from eval.metrics import Floats, Interval, Ints
from eval.prompts import check_own_files, class_cosines, class_names, embed, prompts
from eval.readers import Dataset
from eval.tables import Row, text
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
    keep,
    select,
)
from vlp.config import UserError

NO_LABEL = "no label"
SEVERAL_LABELS = "several different labels"
EXAMPLES = 6
FEW = 5
"""Items of a class below which its recall hardly varies between resamples, whatever it is worth."""


def check(where: str, task: TaskConfig, dataset: Dataset) -> None:
    """Compare the suite's classes and the data's labels, before any model runs.

    Raises:
        UserError: a label without a class, or a class that no row of any split has.
    """
    items = select(where, task, dataset, dict.fromkeys(label_columns(task.label), "label"))
    check_own_files(where, task, dataset)
    classes = list(task.classes) or dataset.classes
    known = {label_of(task, row) for row in dataset.every_row if keep(row, task.where)}
    known |= {label_of(task, item.row) for item in items}
    known.discard("")
    for label in classes:
        if label not in known:
            raise UserError(
                f"{where}.classes.{label}: no row has the label '{label}'; "
                f"there are {', '.join(sorted(known))}"
            )
    for label in sorted(known):
        if label not in classes:
            raise UserError(
                f"{where}.classes: the data has the label '{label}', the suite has only "
                f"{', '.join(classes)}; add the class or leave its rows out with `where`"
            )


def label_of(task: TaskConfig, row: Row) -> str:
    """The label of a row; '' where a column that makes it is empty."""
    parts = {column: text(row.get(column)) for column in label_columns(task.label)}
    if not all(parts.values()):
        return ""
    return task.label.format(**parts) if "{" in task.label else parts[task.label]


def evaluate(inputs: Inputs) -> Result:
    """All scores of a task that `check` has passed.

    Raises:
        UserError: nothing to score, or too few classes for the task's metric.
    """
    texts = prompts(inputs.task, inputs.dataset)
    labels = list(texts)
    items, excluded = scored_items(inputs)
    cosines, true = _answered(inputs, texts, items)
    log_probabilities = log_softmax(inputs.embedder.model.scale * cosines, axis=1)

    positive = labels.index(inputs.task.positive) if inputs.task.positive else None
    scored = class_scores(true, log_probabilities, cosines.argmax(axis=1), positive)
    clusters, count = cluster_indices(items, inputs.task.cluster)
    values, chance = scored.overall(), scored.chance()
    if inputs.task.metric not in values:
        raise UserError(
            f"tasks.{inputs.name}.metric: {inputs.task.metric} needs items of two classes or more"
        )
    intervals, bounds = scored.intervals(lambda f: inputs.intervals(f, clusters))
    return Result(
        n=len(items),
        scores={key: Score(value, *intervals[key], chance[key]) for key, value in values.items()},
        headline=[inputs.task.metric],
        excluded=dict(excluded),
        clusters=count,
        details={
            "classes": labels,
            "prompts": texts,
            "pool": inputs.task.pool,
            "ensemble": inputs.task.ensemble,
            "confusion": metrics.confusion_matrix(true, scored.predicted, len(labels)).tolist(),
            "per_class": per_class_table(scored, labels, bounds),
            "majority_share": metrics.majority_share(true),
            "calibration": calibration(
                inputs, Answered(cosines, true), clusters, _labelled(inputs, texts)
            ),
        },
        examples=_examples(items, true, torch.from_numpy(cosines), labels, inputs),
        notes=_size_notes(labels, scored.totals),
        items=[
            {
                **identity,
                "value": float(answer == label),
                "label": labels[label],
                "predicted": labels[answer],
                "scores": row,
            }
            for identity, label, answer, row in zip(
                identities(items, inputs),
                true,
                scored.predicted,
                log_probabilities.tolist(),
                strict=True,
            )
        ],
    )


def _answered(inputs: Inputs, texts: dict[str, list[str]], items: list[Item]) -> Answered:
    """Cosines to each class, and the right one."""
    numbers = {label: i for i, label in enumerate(texts)}
    true = [numbers[label_of(inputs.task, item.row)] for item in items]
    return Answered(_cosines(inputs, texts, items), np.array(true, dtype=np.int64))


def _size_notes(labels: Sequence[str], totals: Ints) -> list[str]:
    """What has to be known of classes with hardly any item."""
    sizes = dict(zip(labels, totals.tolist(), strict=True))
    notes = [f"class '{label}' has no item in this split" for label, n in sizes.items() if not n]
    few = [f"'{label}' {n}" for label, n in sizes.items() if 0 < n < FEW]
    if few:
        notes.append(
            f"few items of {', '.join(few)}: class means are less sure than their intervals"
        )
    return notes


def _labelled(inputs: Inputs, texts: dict[str, list[str]]) -> Answered | None:
    """What a temperature is fitted on."""
    if inputs.labelled is None:
        return None
    return _answered(inputs.labelled, texts, scored_items(inputs.labelled)[0])


def _cosines(inputs: Inputs, texts: dict[str, list[str]], items: list[Item]) -> Floats:
    """Cosine of each item to each class, float64 [n, C]."""
    rows = inputs.images.features[[item.sample for item in items]]  # [n, D]
    groups = list(texts.values())
    names = [1] * len(groups)
    if inputs.task.pool == "max":  # an embedding per name
        names = [len(own) for own in class_names(inputs.task, inputs.dataset).values()]
        size = sum(map(len, groups)) // sum(names)  # every name is put into every template
        groups = [group[i : i + size] for group in groups for i in range(0, len(group), size)]
    cosines: Floats = class_cosines(rows, embed(inputs, groups), names).double().numpy()
    return cosines


def per_class_table(
    scored: ClassScores, labels: list[str], bounds: list[list[Interval]]
) -> dict[str, dict[str, Any]]:
    """Label -> n, and of each score its value and interval."""
    table: dict[str, dict[str, Any]] = {
        label: {"n": int(n)} for label, n in zip(labels, scored.totals, strict=True)
    }
    for name, values, intervals in zip(PER_CLASS, scored.per_class(), bounds, strict=True):
        for row, value, interval in zip(table.values(), values, intervals, strict=True):
            known = not np.isnan(value)
            row[name] = float(value) if known else None
            row[f"{name}_interval"] = list(interval) if known else None
    return table


def scored_items(inputs: Inputs) -> tuple[list[Item], Counter[str]]:
    """One item per image that has exactly one label, and why the others are left out.

    Raises:
        UserError: no item.
    """
    excluded: Counter[str] = Counter()
    samples = inputs.dataset.samples
    if unjoined := sum(not sample.rows for sample in samples):
        excluded["no row in the table of labels"] = unjoined
    by_sample: dict[int, list[Item]] = {}
    for item in select(inputs.name, inputs.task, inputs.dataset, {}):
        by_sample.setdefault(item.sample, []).append(item)
    items: list[Item] = []
    reasons = {}
    for group in by_sample.values():
        labelled = {label_of(inputs.task, item.row): item for item in reversed(group)}
        labelled.pop("", None)
        if len(labelled) != 1:
            reasons[len(items)] = SEVERAL_LABELS if labelled else NO_LABEL
        items.append(next(iter(labelled.values()), group[0]))
    items = drop(items, reasons, excluded)
    items = drop(items, broken_items(items, inputs.images), excluded)
    if not items:
        raise UserError(f"tasks.{inputs.name}: nothing to score: {dict(excluded)}")
    return items, excluded


def _examples(
    items: list[Item], true: np.ndarray, cosines: Tensor, labels: list[str], inputs: Inputs
) -> list[Example]:
    """The surest mistakes, one for each pair of classes that is mixed up."""
    right_score = cosines[torch.arange(len(items)), torch.from_numpy(true)]
    margin = cosines.max(dim=1).values - right_score
    answers = cosines.argmax(dim=1).tolist()
    worst: dict[tuple[int, int], int] = {}
    for i in margin.argsort(descending=True, stable=True).tolist():
        if margin[i] > 0:
            worst.setdefault((int(true[i]), answers[i]), i)
    return [
        Example(
            group="surest mistakes",
            title=inputs.dataset.samples[items[i].sample].image,
            text=f"true class: {labels[true[i]]}",
            image=items[i].sample,
            answers=[
                Answer(labels[j], None, float(cosines[i, j]), bool(j == true[i]), rank)
                for rank, j in enumerate(cosines[i].argsort(descending=True).tolist()[:3], 1)
            ],
            right=False,
        )
        for i in list(worst.values())[:EXAMPLES]
    ]
