"""From the items of two models on one task to the difference of a score.

What is compared has to be what was reported: each score is computed anew from the items, by the
code that scored them, and has to come out as the results say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from eval.class_scores import class_scores
from eval.metrics import Floats, Ints, rank
from eval.paired import (
    Difference,
    Outputs,
    Resampling,
    Statistic,
    difference,
    difference_of_means,
)
from eval.results import Record, read_items
from vlp.config import UserError

KEYS = ("auroc", "average_precision", "f1", "macro_f1", "mean_balanced_accuracy")
"""Scores that are no means of items, and that are had from labels and answers."""
PARTS = {
    "closed_accuracy": "closed",
    "open_accuracy": "closed",
    "accuracy_on_unseen_images": "seen_in_training",
}
"""Accuracies of some of the questions -> the column that says which."""
TOKENS = ("token_f1", "token_recall")
"""Columns of what open answers share with the right ones."""
TOLERANCE = 1e-6
"""Between a score of the results and the same from the items: float32 scores may tie."""


@dataclass(frozen=True)
class Side:
    """One model's results for a task, items in the order of their ids."""

    name: Path
    """Of its file, for errors."""
    record: Record
    items: dict[str, list[Any]]

    def take(self, rows: Ints) -> "Side":
        """Some of the items."""
        chosen = {key: [column[i] for i in rows] for key, column in self.items.items()}
        return Side(self.name, self.record, chosen)

    def floats(self, column: str) -> Floats:
        """[n] or [n, ...]."""
        return np.array(self.items[column], np.float64)


def open_side(folder: Path, record: Record) -> Side:
    """Read the items of a task.

    Raises:
        UserError: no items, or ids that aren't unique.
    """
    name = folder / f"{record['task']}.json"
    table: pa.Table | None = read_items(folder, record)
    if table is None:
        raise UserError(f"{name}: its items were not kept, so it can't be compared; score again")
    ids = table["id"].to_pylist()
    if len(set(ids)) != len(ids):
        raise UserError(f"{name}: items with the same id, so models can't be compared on them")
    table = table.sort_by("id")
    return Side(name, record, table.to_pydict())


def check_same_items(a: Side, b: Side) -> None:
    """Whether both models were scored on the same items of the same data.

    Raises:
        UserError: names both files and what isn't equal.
    """
    both = f"{a.name} and {b.name}"
    leave = "leave it out with only=[...], or score again on the same data"
    if a.record["kind"] != b.record["kind"]:
        raise UserError(f"{both}: a task of another kind; {leave}")
    first, second = a.record["data"], b.record["data"]
    for key, what in (
        ("split", "another split"),
        ("labels_sha256", "other names, captions or labels"),
        ("images_sha256", "other image files"),
    ):
        if first[key] != second[key]:
            raise UserError(f"{both}: {what} ({key} differs); {leave}")
    for column, what in (("id", "other items"), ("cluster", "other clusters")):
        if a.items[column] != b.items[column]:
            raise UserError(f"{both}: {what}; {leave}")
    if a.items.get("label") != b.items.get("label"):
        raise UserError(f"{both}: other right answers; {leave}")


@dataclass(frozen=True)
class Compared:
    """A score's difference, and on how many items it rests."""

    difference: Difference
    n: int
    clusters: int


def compare_score(key: str, a: Side, b: Side, resampling: Resampling) -> Compared | None:
    """The difference b - a of one score; None for one that can't be had from the items.

    Raises:
        UserError: the items give another score than the results say.
    """
    rows = _rows_of(key, a)
    a, b = a.take(rows), b.take(rows)
    found = _difference(key, a, b, resampling)
    if found is None:
        return None
    return Compared(found, len(rows), len(set(a.items["cluster"])))


def why_not(key: str, side: Side) -> str:
    """Why `compare_score` can't compare a score."""
    if key.endswith(("_shot", "_shots")):
        return "is a mean over draws of training images, whose answers aren't kept"
    if key.startswith("zero_shot_"):
        return "is that of the suite without training; compare the folders above `probe`"
    return f"can't be had from the items of {side.name.name}"


def _difference(key: str, a: Side, b: Side, resampling: Resampling) -> Difference | None:
    if not a.items["id"]:
        return None
    _, clusters = np.unique(a.items["cluster"], return_inverse=True)
    first, second = _means(key, a), _means(key, b)
    if first is not None and second is not None:
        strata = _strata(key, a)
        for side, own in ((a, first), (b, second)):
            _check(key, side, _mean(own, strata))
        return difference_of_means(first, second, clusters, strata, resampling)
    builder = BUILDERS.get(_kind(a))
    if builder is None or key not in KEYS:
        return None
    score, outputs = builder(key, a)
    once = np.ones(len(clusters), np.int64)
    for side in (a, b):
        _check(key, side, score(outputs(side))(once))
    return difference(score, outputs(a), outputs(b), clusters, resampling)


def _kind(side: Side) -> str:
    """What is asked: a probe answers what its task asks."""
    kind = side.record["kind"]
    return str(side.record["config"]["kind"] if kind == "probe" else kind)


def _rows_of(key: str, side: Side) -> Ints:
    """The items that a score is about."""
    items = side.items
    about = np.ones(len(items["id"]), bool)
    if "direction" in items:
        about = np.array(items["direction"]) == key.partition("_recall@")[0]
    elif "closed" in items and key.startswith(("closed_", "open_")):
        about = np.array(items["closed"], bool) == key.startswith("closed_")
    elif "seen_in_training" in items and key == "accuracy_on_unseen_images":
        about = ~np.array(items["seen_in_training"], bool)
    return np.flatnonzero(about)


def _means(key: str, side: Side) -> Floats | None:
    """[n]: each item's part of a score that is a mean; None for another score."""
    if "_recall@" in key and "rank" in side.items:
        return (side.floats("rank") <= int(key.rpartition("@")[2])).astype(np.float64)
    if key in ("accuracy", "mean_per_class_recall"):
        return side.floats("value")
    if key in PARTS and PARTS[key] in side.items:
        return side.floats("value")
    column = key.removeprefix("open_")
    if column in TOKENS and column in side.items:
        return side.floats(column)
    if side.record["kind"] == "grounding" and key in side.items:
        return side.floats(key)
    return None


def _strata(key: str, side: Side) -> Ints | None:
    """Groups over whose means a score is the mean."""
    if key == "mean_per_class_recall":
        column = "label"
    elif side.record["kind"] == "grounding":
        column = "category"
    else:
        return None
    _, strata = np.unique(side.items[column], return_inverse=True)
    return strata


def _mean(values: Floats, strata: Ints | None) -> float:
    if strata is None:
        return float(values.mean())
    return float((np.bincount(strata, values) / np.bincount(strata)).mean())


def _check(key: str, side: Side, found: float) -> None:
    told = side.record["scores"][key]["value"]
    if told is None or not abs(found - told) <= TOLERANCE:
        raise UserError(
            f"{side.name}: {key} is {told}, but its items give {found:.6f}; score again"
        )


# --- scores that are no means: a builder gives (outputs -> statistic, side -> outputs) -------

Built = tuple[Callable[[Outputs], Statistic], Callable[[Side], Outputs]]


def _classification(key: str, side: Side) -> Built:
    classes = side.record["details"]["classes"]
    number = {label: i for i, label in enumerate(classes)}
    true = np.array([number[label] for label in side.items["label"]])
    positive = number.get(side.record["config"]["positive"])

    def score(outputs: Outputs) -> Statistic:
        found = class_scores(true, outputs["ranks"], outputs["predicted"], positive)
        index = found.names.index(key)
        return lambda weights: float(found.resampled(weights)[index])

    def outputs(of: Side) -> Outputs:
        predicted = np.array([number[label] for label in of.items["predicted"]])
        return {"predicted": predicted, "ranks": _ranks(of.floats("scores"))}

    return score, outputs


def _multilabel(key: str, side: Side) -> Built:
    from eval.multilabel import FindingScores  # imports torch

    labels = np.array([[np.nan if v is None else v for v in row] for row in side.items["label"]])
    positive, negative = labels == 1, labels == 0
    details = side.record["details"]

    def score(outputs: Outputs) -> Statistic:
        ranking = rank(outputs["ranks"].T, positive.T, negative.T)
        decides = side.record["kind"] == "probe" or details["score"] != "cosine"
        found = FindingScores(positive, negative, outputs["said"], ranking, decides)
        index = found.names.index(key)
        return lambda weights: float(found(weights)[index])

    def outputs(of: Side) -> Outputs:
        scores = of.floats("scores")
        # A probe's scores are margins, whatever its task's zero-shot scores are.
        is_share = of.record["kind"] != "probe" and of.record["details"]["score"] == "softmax"
        middle = 0.5 if is_share else 0.0
        return {"said": scores > middle, "ranks": _ranks(scores)}

    return score, outputs


def _ranks(scores: Floats) -> Floats:
    """Ranks of the items for each class [n, C]: the one scale on which two models' scores can be
    exchanged; areas under curves depend on nothing else."""
    from scipy.stats import rankdata  # takes a second to import

    ranks: Floats = rankdata(scores, axis=0)
    return ranks


BUILDERS: dict[str, Callable[[str, Side], Built]] = {
    "classification": _classification,
    "multilabel": _multilabel,
}
