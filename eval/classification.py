"""Zero-shot classification: the class whose prompts are nearest to the image.

As in CLIP and CLIP_benchmark: per class, each prompt is embedded and normalised, the mean of them
is normalised again, and the class with the highest cosine is the answer. With `pool: max` that is
done per name of a class, and its nearest name speaks for the class.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from eval import metrics
from eval.config import TaskConfig, label_columns, template_problem
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
    keep,
    select,
)
from vlp.config import UserError

NO_LABEL = "no label"
SEVERAL_LABELS = "several different labels"
EXAMPLES = 6


def check(where: str, task: TaskConfig, dataset: Dataset) -> None:
    """Compare the suite's classes and the data's labels, before any model runs.

    Raises:
        UserError: a label without a class, or a class that no row of any split has.
    """
    items = select(where, task, dataset, dict.fromkeys(label_columns(task.label), "label"))
    _check_own_files(where, task, dataset)
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


def prompts(task: TaskConfig, dataset: Dataset) -> dict[str, list[str]]:
    """Label -> every text that is averaged for it."""
    templates = list(task.templates) or dataset.templates
    return {
        label: [template.format(c=name) for name in names for template in templates]
        for label, names in class_names(task, dataset).items()
    }


def class_names(task: TaskConfig, dataset: Dataset) -> dict[str, list[str]]:
    """Label -> names of the class in prompts."""
    return dict(task.classes) or {label: [label] for label in dataset.classes}


def mean_embeddings(per_text: Tensor, counts: Sequence[int]) -> Tensor:
    """Unit rows of all prompts [P, D] -> unit rows [len(counts), D].

    Args:
        counts: how many consecutive prompts make one mean.
    """
    means = [rows.mean(dim=0) for rows in per_text.split(list(counts))]
    return normalize(torch.stack(means), dim=1)


def class_cosines(
    images: Tensor, per_text: Tensor, prompts: Sequence[int], names: Sequence[int]
) -> Tensor:
    """Cosine of each image to each class [n, C].

    Args:
        images: unit rows [n, D].
        per_text: unit rows of all prompts [P, D], class by class, name by name.
        prompts: how many prompts each name has.
        names: how many names each class has.
    """
    cosines = images @ mean_embeddings(per_text, prompts).T  # [n, names]
    return torch.stack([own.amax(dim=1) for own in cosines.split(list(names), dim=1)], dim=1)


def evaluate(inputs: Inputs) -> Result:
    """Accuracy and mean per-class recall of a task that `check` has passed."""
    task = inputs.task
    texts = prompts(task, inputs.dataset)
    labels = list(texts)
    items, excluded = _scored_items(inputs, labels)
    true = np.array([labels.index(label_of(task, item.row)) for item in items])

    per_text = inputs.embedder.texts([t for group in texts.values() for t in group], inputs.name)
    rows = inputs.images.features[[item.sample for item in items]]  # [n, D]
    names = [len(own) for own in class_names(task, inputs.dataset).values()]
    per_name = len(per_text) // sum(names)  # every name is put into every template
    if task.pool == "max":
        cosines = class_cosines(rows, per_text, [per_name] * sum(names), names)
    else:
        cosines = class_cosines(rows, per_text, [per_name * n for n in names], [1] * len(names))
    predicted = cosines.argmax(dim=1).numpy()

    confusion = metrics.confusion_matrix(true, predicted, len(labels))
    right = (true == predicted).astype(np.float64)
    clusters, count = cluster_indices(items, task.cluster)
    chance, interval = 1 / len(labels), inputs.interval(right, clusters)
    balanced = inputs.interval(right, clusters, strata=true)
    mean_recall, recalls = (
        metrics.mean_per_class_recall(confusion),
        metrics.per_class_recall(confusion),
    )
    totals = confusion.sum(axis=1)
    return Result(
        n=len(items),
        scores={
            "accuracy": Score(metrics.accuracy(confusion), *interval, chance),
            "mean_per_class_recall": Score(mean_recall, *balanced, chance),
        },
        headline=[task.metric],
        excluded=dict(excluded),
        clusters=count,
        details={
            "classes": labels,
            "prompts": texts,
            "pool": task.pool,
            "confusion": confusion.tolist(),
            "per_class": {
                label: {"n": int(n), "recall": None if n == 0 else float(recall)}
                for label, n, recall in zip(labels, totals, recalls, strict=True)
            },
            "majority_share": metrics.majority_share(true),
        },
        examples=_examples(items, true, cosines, labels, inputs),
        notes=[
            f"class '{label}' has no item in this split"
            for label, n in zip(labels, totals, strict=True)
            if n == 0
        ],
    )


def _scored_items(inputs: Inputs, labels: list[str]) -> tuple[list[Item], Counter[str]]:
    """One item per image that has exactly one label, and why the others are left out."""
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


def _check_own_files(where: str, task: TaskConfig, dataset: Dataset) -> None:
    """What the suite leaves to the dataset's own files has to be there, and right."""
    if not task.classes and not dataset.classes:
        raise UserError(f"{where}.classes: is empty, and so is classnames.txt; write the classes")
    if not task.templates and not dataset.templates:
        raise UserError(
            f"{where}.templates: is empty, and so is zeroshot_classification_templates.txt; "
            "write at least one prompt with {c}"
        )
    for template in () if task.templates else dataset.templates:
        if problem := template_problem(template, {"c"}, {"c"}):
            raise UserError(f"{where}: zeroshot_classification_templates.txt: {problem}")
