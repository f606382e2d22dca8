"""A suite from its configuration to its results: check everything, embed once, score."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eval import classification, grounding, multilabel, retrieval_task, vqa
from eval.catalogue import with_data
from eval.config import DataConfig, EvalConfig, TaskConfig, chosen_tasks
from eval.embed import Embedder, ImageFeatures
from eval.extras import Extras
from eval.labelled import labelled_part
from eval.leakage import training_sha256
from eval.readers import Dataset, open_dataset
from eval.results import Record, finished, labels_sha256, run_header, task_header, write_task
from eval.robustness import corrupted_sets
from eval.tasks import Inputs, Result
from eval.team import check_same_model, join
from vlp.config import UserError, save_config

if TYPE_CHECKING:
    from eval.model import Model

KINDS: dict[str, ModuleType] = {
    "classification": classification,
    "multilabel": multilabel,
    "retrieval": retrieval_task,
    "vqa": vqa,
    "grounding": grounding,
}
"""Each has `check(where, task, dataset)` and `evaluate(inputs) -> Result`."""


Prepared = tuple[dict[str, TaskConfig], dict[DataConfig, Dataset]]
"""Tasks by name, and the data of each and of its calibration.split."""


@dataclass(frozen=True)
class TaskRun:
    """A task that was scored, now or before."""

    task: TaskConfig
    dataset: Dataset
    record: Record
    """What its TASK.json says."""


@dataclass(frozen=True)
class Run:
    """A suite that was scored."""

    config: EvalConfig
    model: "Model"
    out: Path
    tasks: dict[str, TaskRun]


def run_suite(config: EvalConfig, suite: str, command: str) -> Run | None:
    """Score a model on the tasks of a suite; each task's files are written as soon as it is done.

    A task that was scored in just this way before is left as it is. Under torchrun all ranks embed.

    Args:
        suite: the suite's file, for errors.
        command: how to repeat this, for the results.

    Returns:
        The run; None on ranks other than 0.

    Raises:
        UserError: a suite, data or model that doesn't fit; all of the suite is checked before the
            model is loaded.
    """
    tasks, datasets = prepare(config, suite)
    training = training_sha256(config.leakage)

    # open_clip takes seconds to import: a mistake in the suite is told before.
    from eval.model import load_model

    team, device = join(config.device)
    model = load_model(config.model, device, config.seed)
    check_same_model(team, model.sha256)
    out = Path(config.out) if config.out else default_out(model, config.name)
    cache = Path(config.cache) if config.cache else out / "cache"
    with progress_bars(disable=not team.is_main) as progress:
        embedder = Embedder(model, cache, config.batch_size, config.workers, progress, team)
        if not team.is_main:
            corrupted = corrupted_sets(datasets.values(), config.robustness)
            labelled = labelled_sets(config, tasks, datasets)
            embedder.help([*datasets.values(), *labelled.values(), *corrupted])
            team.leave()
            return None
        out.mkdir(parents=True, exist_ok=True)
        save_config(config, out / "config.yaml")
        header = run_header(config, suite, command, embedder)
        header["options"]["training_sha256"] = training
        records = _score_rest(config, out, header, (tasks, datasets), embedder)
        team.tell(None)
    team.leave()
    runs = {name: TaskRun(task, datasets[task.data], records[name]) for name, task in tasks.items()}
    return Run(config, model, out, runs)


def _score_rest(
    config: EvalConfig, out: Path, header: Record, prepared: Prepared, embedder: Embedder
) -> dict[str, Record]:
    """Score the tasks that aren't finished; the records of all of them."""
    tasks, datasets = prepared
    labels = {data: labels_sha256(dataset) for data, dataset in datasets.items()}
    headers = {
        name: task_header(header, name, task, datasets[task.data], labels[task.data])
        for name, task in tasks.items()
    }
    for name, part in labelled_sets(config, tasks, datasets).items():
        options = headers[name]["options"]
        calibration = [part.fingerprint, labels_sha256(part)]
        headers[name]["options"] = {**options, "calibration": calibration}
    records = {}
    for name in tasks if not config.overwrite else ():
        if record := finished(out, headers[name]):
            records[name] = record
    bar = embedder.progress.add_task("tasks", total=len(tasks), completed=len(records))
    rest = {name: task for name, task in tasks.items() if name not in records}
    for name, result, images in score(config, rest, datasets, embedder):
        dataset = datasets[tasks[name].data]
        records[name] = write_task(out, headers[name], result, dataset, images)
        embedder.progress.advance(bar)
    return records


def prepare(config: EvalConfig, suite: str) -> Prepared:
    """The tasks of a suite and their data, checked; no model is needed.

    Raises:
        UserError: a suite or data that don't fit.
    """
    tasks = chosen_tasks(config, suite)
    if config.missing == "skip":
        tasks = with_data(tasks, Path(config.data_root), suite)
    for name in tasks:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"{suite}: tasks.{name}: names a file; use A-Z a-z 0-9 _ -")
    datasets = _open_datasets(tasks, Path(config.data_root), suite)
    for name, task in tasks.items():
        KINDS[task.kind].check(f"{suite}: tasks.{name}", task, datasets[task.data])
    labelled_sets(config, tasks, datasets)
    return tasks, datasets


def labelled_sets(
    config: EvalConfig, tasks: dict[str, TaskConfig], datasets: dict[DataConfig, Dataset]
) -> dict[str, Dataset]:
    """Task -> the images that its temperature is fitted on, for tasks that ask for it.

    Raises:
        UserError: a split without such images.
    """
    return {
        name: labelled_part(
            f"tasks.{name}", task, datasets[task.data], datasets[_other_split(task)], config.seed
        )
        for name, task in tasks.items()
        if task.calibration.split
    }


def _other_split(task: TaskConfig) -> DataConfig:
    return replace(task.data, split=task.calibration.split)


def score(
    config: EvalConfig,
    tasks: dict[str, TaskConfig],
    datasets: dict[DataConfig, Dataset],
    embedder: Embedder,
) -> Iterator[tuple[str, Result, ImageFeatures]]:
    """Score what `prepare` gave, task by task; tasks on the same images share one pass over them.

    Yields:
        The task's name, its result and the embeddings behind it.
    """
    extras = Extras(config, [datasets[task.data] for task in tasks.values()], embedder)
    labelled = labelled_sets(config, tasks, datasets)
    features: dict[str, ImageFeatures] = {}
    ahead = [datasets[task.data].fingerprint for task in tasks.values()]
    for position, (name, task) in enumerate(tasks.items()):
        dataset = datasets[task.data]
        images = features.get(dataset.fingerprint)
        if images is None:
            images = embedder.images(dataset, task.data.path)
        if dataset.fingerprint in ahead[position + 1 :]:
            features[dataset.fingerprint] = images
        else:
            features.pop(dataset.fingerprint, None)
        inputs = Inputs(task, dataset, images, embedder, name, config.seed, config.replicates)
        if name in labelled:
            few = embedder.images(labelled[name], f"{name}, {task.calibration.split}")
            part = replace(inputs, dataset=labelled[name], images=few)
            inputs = replace(inputs, labelled=part)
        evaluate = KINDS[task.kind].evaluate
        yield name, extras.added_to(evaluate(inputs), inputs, evaluate), images


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
        wanted = {"data": task.data}
        if task.calibration.split:
            wanted["calibration.split"] = _other_split(task)
        for key, data in wanted.items():
            if data in datasets:
                continue
            try:
                datasets[data] = open_dataset(data, root)
            except UserError as error:
                raise UserError(f"{suite}: tasks.{name}.{key}: {error}") from None
    return datasets


def progress_bars(disable: bool) -> Progress:
    """The bars of a program; `disable` shows none."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        disable=disable,
    )
