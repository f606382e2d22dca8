"""A suite from its configuration to its results: check everything, embed once, score."""

import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eval import classification, retrieval_task, vqa
from eval.config import DataConfig, EvalConfig, TaskConfig, chosen_tasks
from eval.embed import Embedder, ImageFeatures
from eval.readers import Dataset, open_dataset
from eval.tasks import Inputs, Result
from vlp.config import UserError, save_config

if TYPE_CHECKING:
    from eval.model import Model

KINDS: dict[str, ModuleType] = {
    "classification": classification,
    "retrieval": retrieval_task,
    "vqa": vqa,
}
"""Each has `check(where, task, dataset)` and `evaluate(inputs) -> Result`."""


@dataclass(frozen=True)
class TaskRun:
    """A task that was scored."""

    task: TaskConfig
    dataset: Dataset
    images: ImageFeatures
    result: Result


@dataclass(frozen=True)
class Run:
    """A suite that was scored."""

    config: EvalConfig
    suite: str
    """The suite's file."""
    command: str
    """How to repeat it."""
    model: "Model"
    out: Path
    tasks: dict[str, TaskRun]


def run_suite(config: EvalConfig, suite: str, command: str) -> Run:
    """Score a model on the tasks of a suite.

    Args:
        suite: the suite's file, for errors.
        command: how to repeat this, for the results.

    Raises:
        UserError: a suite, data or model that doesn't fit; all of the suite is checked before the
            model is loaded.
    """
    tasks, datasets = prepare(config, suite)

    # open_clip takes seconds to import: a mistake in the suite is told before.
    from eval.model import load_model

    model = load_model(config.model, config.device, config.seed)
    out = Path(config.out) if config.out else default_out(model, config.name)
    out.mkdir(parents=True, exist_ok=True)
    save_config(config, out / "config.yaml")
    cache = Path(config.cache) if config.cache else out / "cache"
    with _progress() as progress:
        embedder = Embedder(model, cache, config.batch_size, config.workers, progress)
        scored = score(config, tasks, datasets, embedder)
    return Run(config, suite, command, model, out, scored)


def prepare(
    config: EvalConfig, suite: str
) -> tuple[dict[str, TaskConfig], dict[DataConfig, Dataset]]:
    """The tasks of a suite and their data, checked; no model is needed.

    Raises:
        UserError: a suite or data that don't fit.
    """
    tasks = chosen_tasks(config, suite)
    datasets = _open_datasets(tasks, Path(config.data_root), suite)
    for name, task in tasks.items():
        KINDS[task.kind].check(f"{suite}: tasks.{name}", task, datasets[task.data])
    return tasks, datasets


def score(
    config: EvalConfig,
    tasks: dict[str, TaskConfig],
    datasets: dict[DataConfig, Dataset],
    embedder: Embedder,
) -> dict[str, TaskRun]:
    """Score what `prepare` gave; tasks that differ in their labels only share the images' pass."""
    features: dict[str, ImageFeatures] = {}
    for data, dataset in datasets.items():
        if dataset.fingerprint not in features:
            features[dataset.fingerprint] = embedder.images(dataset, data.path)
    runs = {}
    for name, task in tasks.items():
        dataset = datasets[task.data]
        images = features[dataset.fingerprint]
        inputs = Inputs(task, dataset, images, embedder, name, config.seed, config.replicates)
        runs[name] = TaskRun(task, dataset, images, KINDS[task.kind].evaluate(inputs))
    return runs


def default_out(model: "Model", suite: str) -> Path:
    """Beside the model's folder, so that scores travel with the run."""
    if model.folder is not None:
        return model.folder.resolve().parent / "eval" / suite
    return Path("eval-results") / re.sub(r"[^A-Za-z0-9._-]+", "_", model.name) / suite


def _open_datasets(
    tasks: dict[str, TaskConfig], root: Path, suite: str
) -> dict[DataConfig, Dataset]:
    datasets: dict[DataConfig, Dataset] = {}
    for name, task in tasks.items():
        if task.data in datasets:
            continue
        try:
            datasets[task.data] = open_dataset(task.data, root)
        except UserError as error:
            raise UserError(f"{suite}: tasks.{name}.data: {error}") from None
    return datasets


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
