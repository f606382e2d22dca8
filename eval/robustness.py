"""The scores of a task again, on corrupted images.

A corrupted data set is a data set like any other: its images come out of `read` corrupted, and its
fingerprint is another. So every kind of task, the cache and the examples of the report work on it
as they do on the clean one.
"""

import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eval.console import shown
from eval.corruptions import Corruption
from eval.options import RobustnessConfig
from eval.readers import Dataset, ImageSource
from eval.tasks import Inputs, Result
from vlp.data.image import open_rgb


def conditions(config: RobustnessConfig) -> list[Corruption]:
    """The clean images, reduced to `side`, then every corruption at every severity."""
    severities = sorted(set(config.severities))
    corrupted = [Corruption(name, s, config.side) for name in config.names for s in severities]
    return [Corruption("clean", 0, config.side), *corrupted] if corrupted else []


def corrupted(dataset: Dataset, corruption: Corruption) -> Dataset:
    """The data set with its images corrupted as they are read."""
    what = f"{dataset.fingerprint}\0{corruption}\0{corruption.amount}"
    digest = hashlib.sha256(what.encode()).hexdigest()
    return replace(dataset, fingerprint=digest, images=_Corrupted(dataset.images, corruption))


def stored_images(images: ImageSource) -> ImageSource:
    """The images before they were corrupted: boxes are in their pixels."""
    return images.images if isinstance(images, _Corrupted) else images


def corrupted_sets(datasets: Iterable[Dataset], config: RobustnessConfig) -> list[Dataset]:
    """All that `with_curves` will embed."""
    return [corrupted(dataset, c) for dataset in datasets for c in conditions(config)]


def with_curves(
    result: Result,
    inputs: Inputs,
    evaluate: Callable[[Inputs], Result],
    config: RobustnessConfig,
) -> Result:
    """A task's result with its scores under corruption: `details["robustness"]`, and a note.

    `details["robustness"]` is {side, metric, clean, mean, conditions}. All scores in it are of
    `metric`, the task's first headline. `conditions` is a list of {corruption, severity, amount,
    score}; `clean` and each `score` are a Score as a dictionary; `mean` is the plain mean over the
    conditions.

    Args:
        result: of the task on its own images.
        evaluate: the task's kind.
    """
    if not config.names:
        return result
    if inputs.task.kind == "grounding":  # reduced images have other sizes than those of the boxes
        return replace(result, notes=[*result.notes, "not scored on corrupted images"])
    metric = result.headline[0]
    scores = []
    for condition in conditions(config):
        dataset = corrupted(inputs.dataset, condition)
        images = inputs.embedder.images(dataset, _label(inputs.name, condition))
        there = evaluate(replace(inputs, dataset=dataset, images=images))
        scores.append(there.score_rows()[metric])
    clean, *rest = scores
    found: list[dict[str, Any]] = [
        {
            "corruption": condition.name,
            "severity": condition.severity,
            "amount": condition.amount,
            "score": score,
        }
        for condition, score in zip(conditions(config)[1:], rest, strict=True)
    ]
    mean = float(np.mean([score["value"] for score in rest]))
    worst = min(found, key=lambda entry: entry["score"]["value"])
    details: dict[str, Any] = {
        "side": config.side,
        "metric": metric,
        "clean": clean,
        "mean": mean,
        "conditions": found,
    }
    name = metric.replace("_", " ")
    note = (
        f"corrupted images: {name} {shown(metric, mean)} in the mean of {len(found)} "
        f"conditions, lowest {shown(metric, worst['score']['value'])} ({worst['corruption']} "
        f"{worst['severity']}); clean at {config.side} px {shown(metric, clean['value'])}"
    )
    return replace(
        result,
        details={**result.details, "robustness": details},
        notes=[*result.notes, note],
    )


def _label(task: str, condition: Corruption) -> str:
    return f"{task}, {condition.name}" + (f" {condition.severity}" if condition.severity else "")


@dataclass(frozen=True)
class _Corrupted:
    """Image files whose pixels are corrupted; PNG keeps what came out."""

    images: ImageSource
    corruption: Corruption

    def read(self, index: int) -> bytes:
        data = self.images.read(index)
        buffer = io.BytesIO()
        self.corruption(open_rgb(data), data).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
