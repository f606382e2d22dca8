"""`python -m eval list`: the tasks that there are, their size, and which data is at hand."""

import difflib
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from eval.config import TaskConfig
from eval.data_config import DataConfig
from eval.readers.huggingface import hub_files
from eval.suite_files import load_suite, read_task
from vlp.config import UserError, load_config

TASKS = Path(__file__).parents[1] / "configs" / "eval" / "tasks"


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """Show tasks: python -m eval list [SUITE.yaml ...] [data_root=...] [task=NAME]

    Without a suite, all tasks of configs/eval/tasks.
    """

    data_root: str = "."
    """The folder to which the paths of the tasks are relative; shows which data is there."""
    task: str = ""
    """Show all that is known of this task."""


def main(argv: list[str]) -> None:
    """Print the tasks of suites, or of the folder of tasks."""
    suites = [arg for arg in argv if Path(arg).suffix in (".yaml", ".yml") and "=" not in arg]
    rest = [arg for arg in argv if arg not in suites]
    config = load_config(ListConfig, rest, "python -m eval list")
    root = Path(config.data_root)
    tasks = suite_tasks(suites) if suites else all_tasks()
    if config.task:
        print(described(config.task, named(tasks, config.task), root))
        return
    table = Table(title=f"{len(tasks)} tasks; data_root={root}", title_justify="left")
    for column in ("task", "kind", "size", "metric", "chance", "data", "source"):
        table.add_column(column, no_wrap=column != "source", overflow="ellipsis")
    there = 0
    for name, task in tasks.items():
        present = has_data(task.data, root)
        there += present
        facts = [name, task.kind, size(task), metric(task), chance(task)]
        table.add_row(*facts, "there" if present else _way(task), first_words(task.source))
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=160)  # logs are read wide
    console.print(table)
    console.print(
        f"the data of {there} is there; 'fetch': python -m eval fetch task=NAME data_root=...; "
        "otherwise python -m eval list task=NAME says what to do",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def all_tasks() -> dict[str, TaskConfig]:
    """The tasks of configs/eval/tasks by name."""
    return {path.stem: read_task(path) for path in sorted(TASKS.glob("*.yaml"))}


def suite_tasks(suites: Sequence[str]) -> dict[str, TaskConfig]:
    """The tasks of suites, whose paths are given."""
    return dict(load_suite([*suites, "model=none"]).tasks)


def named(tasks: dict[str, TaskConfig], name: str) -> TaskConfig:
    """The task of that name.

    Raises:
        UserError: there is none.
    """
    if name not in tasks:
        close = difflib.get_close_matches(name, tasks, cutoff=0.4)
        like = f"; close names: {', '.join(close)}" if close else ""
        raise UserError(f"task={name}: no such task{like}; see python -m eval list")
    return tasks[name]


def has_data(data: DataConfig, root: Path) -> bool:
    """Whether the files that a task names exist; nothing is read. Images are `check`'s business."""
    if data.reader == "huggingface":
        try:
            return bool(hub_files(data, root))
        except UserError:
            return False
    further = [data.labels, *data.join] if data.labels else list(data.join)
    splits = [part for part in data.split.split("|") if part] or [""]
    for path in (data.path, *further):
        for split in splits:
            name = path.replace("{split}", split)
            found = glob.glob(name, root_dir=root) if "*" in name else [name]
            if not any(_filled(root / match) for match in found):
                return False
    return True


def with_data(tasks: dict[str, TaskConfig], root: Path, suite: str) -> dict[str, TaskConfig]:
    """The tasks whose data is there; the others are named.

    Args:
        suite: the suite's file, for errors.

    Raises:
        UserError: none is.
    """
    there = {name: task for name, task in tasks.items() if has_data(task.data, root)}
    without = [name for name in tasks if name not in there]
    if not there:
        raise UserError(f"{suite}: no task's data is in data_root={root}; see python -m eval list")
    if without and os.environ.get("RANK", "0") == "0":  # torchrun's, before its ranks have met
        print(f"left out, since their data isn't in {root}: {', '.join(without)}")
    return there


def _filled(path: Path) -> bool:
    """A file, or a folder with anything in it."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def fetchable(task: TaskConfig) -> bool:
    """Whether `python -m eval fetch` can get the data."""
    return bool(task.origin.files or task.origin.hub)


def _way(task: TaskConfig) -> str:
    """How the data can be had."""
    if task.origin.access == "agreement":
        return "agreement"
    return "fetch" if fetchable(task) else "by hand"


def size(task: TaskConfig) -> str:
    """The number of images or rows as its makers count them; '?' where they don't say."""
    if "rows" in task.expect:
        return f"{task.expect['rows']:,} {'questions' if task.kind == 'vqa' else 'rows'}"
    return f"{task.expect['images']:,} images" if "images" in task.expect else "?"


def metric(task: TaskConfig) -> str:
    """The score that stands for the task."""
    if task.kind == "classification":
        return task.metric.replace("_", " ")
    if task.kind == "multilabel":
        return f"mean {task.multilabel.metric.replace('_', ' ')}"
    by_kind = {"retrieval": f"recall@{task.ks[0]}", "vqa": "accuracy", "grounding": "CNR, mIoU"}
    return by_kind[task.kind]


def chance(task: TaskConfig) -> str:
    """What guessing gives, as far as that can be told without the data."""
    score = task.multilabel.metric if task.kind == "multilabel" else task.metric
    if task.kind in ("classification", "multilabel") and score == "auroc":
        return "0.5"
    if task.kind == "classification" and task.classes:
        return f"{1 / len(task.classes):.1%}"
    if task.kind == "vqa":
        choices = [len(count.ranges) for count in task.vqa.counts.values()]
        sizes = set(choices or [len(task.fixed_options)]) - {0}
        return f"{1 / sizes.pop():.1%}" if len(sizes) == 1 else "1/options"
    if task.kind == "retrieval":
        n = task.expect.get("images")
        return f"{task.ks[0] / n:.2%}" if n else f"{task.ks[0]}/n"
    return "boxes/image" if task.kind == "grounding" else "?"


def first_words(source: str, letters: int = 70) -> str:
    """The beginning of a text, cut between words."""
    if len(source) <= letters:
        return source
    return source[:letters].rpartition(" ")[0] + " ..."


def described(name: str, task: TaskConfig, root: Path) -> str:
    """All that is known of a task, as lines."""
    state = "there" if has_data(task.data, root) else "not there"
    lines = [
        f"{name}: {task.kind}, {size(task)}, {metric(task)}, chance {chance(task)}",
        f"data: {root / task.data.path} ({state}), split '{task.data.split}'",
        f"source: {task.source}",
        *[f"note: {note}" for note in task.notes],
    ]
    origin = task.origin
    for key in (f.name for f in fields(origin)):
        value = getattr(origin, key)
        if value and key not in ("files", "md5", "unpack", "hub_files", "hub_folder"):
            lines.append(f"{key}: {value}")
    if fetchable(task):
        lines.append(f"fetch: python -m eval fetch task={name} data_root={root}")
    for label, names in task.classes.items():
        lines.append(f"class {label}: {', '.join(names)}")
    lines += [f"prompt: {template}" for template in task.templates]
    return "\n".join(lines)
