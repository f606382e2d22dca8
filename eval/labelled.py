"""A few labelled images of another split than the scored one, to fit a temperature on."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval import classification, multilabel
from eval.config import TaskConfig
from eval.prompts import class_names
from eval.readers import Dataset, ImageSource
from eval.readers.base import Sample
from eval.tables import Row, text
from eval.tasks import keep
from vlp.config import UserError


def labelled_part(
    where: str, task: TaskConfig, scored: Dataset, other: Dataset, seed: int
) -> Dataset:
    """`calibration.labelled` images of `other`, drawn by the seed, that have a known label.

    Images of a cluster that is scored, too, are not drawn.

    Args:
        where: suite and task, for errors.
        scored: the data of `data.split`.
        other: the data of `calibration.split`.

    Raises:
        UserError: the same images, or none that can be drawn.
    """
    settings = task.calibration
    if other.fingerprint == scored.fingerprint:
        raise UserError(f"{where}.calibration.split: '{settings.split}' holds the scored images")
    taken = {name for sample in scored.samples for name in _clusters(task, sample)}
    is_labelled = _known_label(where, task, scored)
    candidates = [
        i
        for i, sample in enumerate(other.samples)
        if any(keep(row, task.where) and is_labelled(row) for row in sample.rows)
        and taken.isdisjoint(_clusters(task, sample))
    ]
    if not candidates:
        raise UserError(
            f"{where}.calibration.split: '{settings.split}' has no image with a known label"
            + (f" whose {task.cluster} isn't scored" if task.cluster else "")
        )
    order = np.random.default_rng(seed).permutation(candidates)
    return some_of(other, np.sort(order[: settings.labelled]).tolist())


def some_of(dataset: Dataset, chosen: Sequence[int]) -> Dataset:
    """The data set with only these samples."""
    what = f"{dataset.fingerprint}\0{list(chosen)}"
    return replace(
        dataset,
        samples=[dataset.samples[i] for i in chosen],
        fingerprint=hashlib.sha256(what.encode()).hexdigest(),
        images=_Some(dataset.images, chosen),
    )


def _clusters(task: TaskConfig, sample: Sample) -> set[str]:
    """Patients or articles that a sample belongs to; none where the task names no column."""
    if not task.cluster:
        return set()
    return {name for row in sample.rows if (name := text(row.get(task.cluster)))}


def _known_label(where: str, task: TaskConfig, scored: Dataset) -> Callable[[Row], bool]:
    """Whether a row says something of the task's classes."""
    classes = list(class_names(task, scored))
    if task.kind == "classification":
        return lambda row: classification.label_of(task, row) in classes

    def known(row: Row) -> bool:
        try:
            return set(multilabel.labels_of(task, row, classes)) != {multilabel.UNKNOWN}
        except ValueError as error:
            split = task.calibration.split
            raise UserError(f"{where}.calibration.split: '{split}': {error}") from None

    return known


@dataclass(frozen=True)
class _Some:
    """Some of a data set's images."""

    images: ImageSource
    chosen: Sequence[int]

    def read(self, index: int) -> bytes:
        return self.images.read(self.chosen[index])
