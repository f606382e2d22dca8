"""What every kind of task shares: choosing rows, counting what is left out, and the result."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from eval.config import TaskConfig
from eval.embed import Embedder, ImageFeatures
from eval.metrics import Floats, Interval, Ints, bootstrap, bootstrap_interval
from eval.readers import Dataset
from eval.tables import Row, columns, text
from vlp.config import UserError

BROKEN = "image can't be read"


@dataclass(frozen=True)
class Score:
    """One number with how sure it is and what guessing gives."""

    value: float
    low: float
    """Lower bound of the 95% bootstrap interval."""
    high: float
    chance: float
    """Expected value of random guessing."""
    n: int | None = None
    """Items behind it, where they are fewer than the task's."""


@dataclass(frozen=True)
class Example:
    """A query for the report: an image or a text, and what the model made of it."""

    group: str
    """Examples of one group stand together, under this heading."""
    title: str
    text: str
    image: int | None
    """Index of the sample whose image is shown; None where the query is a text."""
    answers: list["Answer"]
    right: bool
    place: "Place | None" = None
    """Of a phrase: where in the image the model finds it, and where it is."""


@dataclass(frozen=True)
class Place:
    """A phrase's map over the patches of an image, and its boxes."""

    map: list[list[float]]
    """[h][w]: smoothed cosines, as they are scored."""
    smooth: bool
    """Whether they are interpolated between patches, or each patch is one colour."""
    seen: tuple[float, float, float, float]
    """Left, top, right, bottom of the model's input, in pixels of the stored image."""
    boxes: list[tuple[float, float, float, float]]
    size: tuple[int, int]
    """Width and height of the stored image."""
    contrast: float
    """The contrast-to-noise ratio with its sign: negative where the map is lower in the boxes."""
    iou: float
    pointing: float


@dataclass(frozen=True)
class Answer:
    """One candidate: a caption, an option or an image."""

    text: str
    image: int | None
    score: float
    """The model's cosine."""
    right: bool
    rank: int


@dataclass(frozen=True)
class Result:
    """What a task gave."""

    n: int
    """Items that were scored."""
    scores: dict[str, Score]
    headline: list[str]
    """Which scores stand for the task in tables and plots."""
    excluded: dict[str, int]
    """Reason -> how many items were left out."""
    clusters: int
    """Independent units of the bootstrap."""
    details: dict[str, Any] = field(default_factory=dict)
    """What only this kind of task has; goes into TASK.json as it is."""
    examples: list[Example] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    """One row per scored item, JSON-able: `id` (unique within the task), `cluster` (what the
    bootstrap draws together), `value` (the item's credit, whose mean is the first score; None where
    there is no such number), and what the kind of task adds, such as `label` and `scores`."""

    def score_rows(self) -> dict[str, dict[str, float | None]]:
        """Scores as TASK.json has them, each with its own n."""
        return {
            name: {**asdict(score), "n": self.n if score.n is None else score.n}
            for name, score in self.scores.items()
        }


@dataclass(frozen=True)
class Inputs:
    """What `evaluate` of each kind gets."""

    task: TaskConfig
    dataset: Dataset
    images: ImageFeatures
    embedder: Embedder
    name: str
    seed: int
    replicates: int
    labelled: "Inputs | None" = None
    """The few images of another split on which a temperature is fitted; see eval/labelled.py."""

    def interval(self, values: Floats, clusters: Ints, strata: Ints | None = None) -> Interval:
        """The bootstrap interval of a mean, or of the mean over strata."""
        return bootstrap_interval(
            values,
            seed=self.seed,
            strata=strata,
            clusters=clusters,
            replicates=self.replicates,
        )

    def intervals(self, statistics: Callable[[Ints], Floats], clusters: Ints) -> list[Interval]:
        """The bootstrap intervals of any statistics of weighted items; see metrics.bootstrap."""
        return bootstrap(statistics, clusters, seed=self.seed, replicates=self.replicates)


@dataclass(frozen=True)
class Item:
    """One row of one sample."""

    sample: int
    row: Row


def keep(row: Row, where: dict[str, list[str]]) -> bool:
    """Whether a row passes the suite's `where`."""
    return all(text(row.get(column)) in values for column, values in where.items())


def select(where: str, task: TaskConfig, dataset: Dataset, needed: dict[str, str]) -> list[Item]:
    """The rows that the task is about, in the order of the samples.

    Args:
        where: suite and task, for errors.
        needed: column -> the key of the task that names it.

    Raises:
        UserError: a column that the data doesn't have, or nothing left.
    """
    items = [Item(i, row) for i, s in enumerate(dataset.samples) for row in s.rows]
    check_columns(where, task, columns(item.row for item in items), needed)
    items = [item for item in items if keep(item.row, task.where)]
    if not items:
        raise UserError(f"{where}.where: leaves no row of split '{task.data.split}'")
    return items


def check_columns(where: str, task: TaskConfig, exist: list[str], needed: dict[str, str]) -> None:
    """Whether the columns that the task needs, and those of `where` and `cluster`, exist.

    Raises:
        UserError: names the key, the column and those that there are.
    """
    named = {**needed, **{column: f"where.{column}" for column in task.where}}
    if task.cluster:
        named[task.cluster] = "cluster"
    for column, key in named.items():
        if column not in exist:
            raise UserError(f"{where}.{key}: no column '{column}'; there are {', '.join(exist)}")


def cluster_indices(items: list[Item], column: str) -> tuple[Ints, int]:
    """(int64 [n] from 0, their number): which items the bootstrap draws together."""
    if not column:
        return np.arange(len(items)), len(items)
    # An item without a cluster's name stands for itself.
    names = [text(item.row.get(column)) or f"\0{i}" for i, item in enumerate(items)]
    _, indices = np.unique(names, return_inverse=True)
    return indices.astype(np.int64), int(indices.max()) + 1


def identities(
    items: list[Item], inputs: Inputs, column: str | None = None
) -> list[dict[str, Any]]:
    """`id` and `cluster` of each item, for tasks with one item per image.

    Args:
        column: of the cluster's name, '' for items that are their own. Without: the task's.
    """
    column = inputs.task.cluster if column is None else column
    names = [inputs.dataset.samples[item.sample].image for item in items]
    return [
        {"id": name, "cluster": text(item.row.get(column)) or name if column else name}
        for name, item in zip(names, items, strict=True)
    ]


def drop(items: list[Item], reasons: dict[int, str], counts: Counter[str]) -> list[Item]:
    """Items without those at the positions in `reasons`, which are added to the counts."""
    counts.update(reasons.values())
    return [item for i, item in enumerate(items) if i not in reasons]


def broken_items(items: list[Item], images: ImageFeatures) -> dict[int, str]:
    """Position -> reason, for items whose image couldn't be decoded."""
    return {i: BROKEN for i, item in enumerate(items) if item.sample in images.broken}
