"""Training, validation and test items of a probe, from the splits of a task with labels."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from eval import classification, multilabel
from eval.config import DataConfig, EvalConfig, TaskConfig
from eval.logistic import Labelled
from eval.metrics import Ints
from eval.prompts import class_names
from eval.readers import Dataset, open_dataset
from eval.tables import text
from eval.tasks import Inputs, Item
from vlp.config import UserError

HELD_OUT = 5
"""One of so many clusters of the training split is held out where there is no validation split."""


@dataclass(frozen=True)
class Splits:
    """The data sets of one task."""

    train: Dataset
    val: Dataset | None
    """None: a part of `train` is held out."""
    test: Dataset
    notes: list[str] = field(default_factory=list)

    def sets(self) -> dict[str, Dataset]:
        """Those that there are, by name; the test split is last."""
        found = {"train": self.train, "val": self.val, "test": self.test}
        return {name: dataset for name, dataset in found.items() if dataset is not None}


@dataclass(frozen=True)
class Items:
    """The items of one split."""

    inputs: Inputs
    """What the task's kind gets for this split."""
    items: list[Item]
    data: Labelled
    excluded: Counter[str]

    def groups(self) -> list[str]:
        """What is held out, or resampled, together: the cluster's name, else the image's."""
        column = self.inputs.task.cluster
        images = [self.inputs.dataset.samples[item.sample].image for item in self.items]
        if not column:
            return images
        return [
            text(item.row.get(column)) or image
            for item, image in zip(self.items, images, strict=True)
        ]


def open_splits(
    config: EvalConfig, tasks: dict[str, TaskConfig], suite: str
) -> tuple[dict[str, Splits], dict[str, str]]:
    """(task -> its data sets, task -> why it can't be probed).

    Args:
        suite: the suite's file, for errors.

    Raises:
        UserError: test data that don't fit, no task left, or one of `only` that can't be probed.
    """
    known: dict[DataConfig, Dataset] = {}
    opened, left_out = {}, {}
    for name, task in tasks.items():
        if task.kind not in ("classification", "multilabel"):
            left_out[name] = f"probes need labels, this is {task.kind}"
            continue
        where = f"{suite}: tasks.{name}"
        test = _open(task.data, config, known, where)
        kind = multilabel if task.kind == "multilabel" else classification
        kind.check(where, task, test)
        try:
            train = _other(task.data.train_split, task, [test], config, known)
        except UserError as error:
            left_out[name] = f"no training split: {error}"
            continue
        opened[name] = _with_validation(task, train, test, config, known)
    for name in config.only:
        if name in left_out:
            raise UserError(f"{suite}: only: {name}: {left_out[name]}")
    if not opened:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"{suite}: no task can be probed: {reasons}")
    return opened, left_out


def items_of(inputs: Inputs) -> Items:
    """The items of one split that have an image and labels.

    Raises:
        UserError: no item, or a label that the suite doesn't name.
    """
    classes = list(class_names(inputs.task, inputs.dataset))
    if inputs.task.kind == "multilabel":
        try:
            items, labels, excluded = multilabel.scored_items(inputs, classes)
        except ValueError as error:
            raise UserError(f"tasks.{inputs.name}: the training data: {error}") from None
    else:
        items, excluded = classification.scored_items(inputs)
        labels = _class_numbers(inputs, items, classes)
    rows = inputs.images.features[[item.sample for item in items]].double().numpy()
    return Items(inputs, items, Labelled(rows, labels), excluded)


def _class_numbers(inputs: Inputs, items: list[Item], classes: list[str]) -> Ints:
    names = [classification.label_of(inputs.task, item.row) for item in items]
    if unknown := sorted(set(names) - set(classes)):
        raise UserError(
            f"tasks.{inputs.name}.classes: the training data has the label '{unknown[0]}', the "
            f"suite has only {', '.join(classes)}; add it or leave its rows out with `where`"
        )
    return np.array([classes.index(name) for name in names], dtype=np.int64)


def hold_out(train: Items, seed: int) -> tuple[Labelled, Labelled]:
    """(training part, validation part): whole clusters, one in HELD_OUT, are held out."""
    _, group = np.unique(train.groups(), return_inverse=True)
    count = int(group.max()) + 1
    held = np.random.default_rng(seed).permutation(count)[: max(1, count // HELD_OUT)]
    is_held = np.isin(group, held)
    return train.data.take(_where(~is_held)), train.data.take(_where(is_held))


def shared_notes(train: Items, test: Items) -> list[str]:
    """What the training and the test items share that they shouldn't."""
    notes = []
    column = test.inputs.task.cluster
    if column:
        here, there = set(test.groups()), set(train.groups())
        if shared := len(here & there):
            notes.append(f"{shared} of {len(here)} {column}s of the test split are in training too")
    seen = {row.tobytes() for row in train.data.features}
    if same := sum(row.tobytes() in seen for row in test.data.features):
        notes.append(f"at least {same} test images have the embedding of a training image")
    return notes


def _with_validation(
    task: TaskConfig,
    train: Dataset,
    test: Dataset,
    config: EvalConfig,
    known: dict[DataConfig, Dataset],
) -> Splits:
    held = f"regularisation chosen on a {HELD_OUT}th of the training split, held out"
    if not task.data.val_split:
        return Splits(train, None, test, [held])
    try:
        val = _other(task.data.val_split, task, [train, test], config, known)
    except UserError as error:
        return Splits(train, None, test, [f"{held}; no validation split: {error}"])
    return Splits(train, val, test)


def _other(
    split: str,
    task: TaskConfig,
    others: Iterable[Dataset],
    config: EvalConfig,
    known: dict[DataConfig, Dataset],
) -> Dataset:
    """Another split of a task's data.

    Raises:
        UserError: there is none, or it is the same as one that serves for something else.
    """
    if not task.data.split or not split:
        raise UserError("the task is scored on all of its data")
    found = _open(replace(task.data, split=split), config, known, "")
    if any(found.fingerprint == other.fingerprint for other in others):
        raise UserError(f"split '{split}' holds the same images as another one")
    return found


def _open(
    data: DataConfig, config: EvalConfig, known: dict[DataConfig, Dataset], where: str
) -> Dataset:
    if data not in known:
        try:
            known[data] = open_dataset(data, Path(config.data_root))
        except UserError as error:
            raise UserError(f"{where}.data: {error}" if where else str(error)) from None
    return known[data]


def _where(mask: np.ndarray) -> Ints:
    return np.flatnonzero(mask).astype(np.int64)
