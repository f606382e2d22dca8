"""`python -m eval check SUITE.yaml data_root=...`: files, labels, counts, before a model runs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from eval.catalogue import fetchable, has_data
from eval.config import TaskConfig, chosen_tasks
from eval.readers import Dataset, open_dataset
from eval.readers.base import FileImages
from eval.suite_files import load_suite
from eval.tables import Row, text
from eval.tasks import keep
from vlp.config import UserError
from vlp.data.image import ImageError, open_rgb

DECODED = 16
"""Images of a task that are decoded, evenly spaced; that files exist is looked up for all."""


def main(argv: list[str]) -> None:
    """Check the tasks of a suite, all of them, and say what is wrong with each.

    Raises:
        UserError: a task isn't ready.
    """
    # A model isn't needed here, and neither is it missed.
    config = load_suite(["model=none", *argv], "python -m eval check")
    files = " + ".join(arg for arg in argv if Path(arg).is_file()) or "command line"
    tasks = chosen_tasks(config, files)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    bad = 0
    for name, task in tasks.items():
        problems, facts = check_task(name, task, Path(config.data_root))
        bad += bool(problems)
        console.print(f"{'not ready' if problems else 'ready':<10}{name}: {facts}".rstrip(": "))
        for problem in problems:
            console.print(f"          {problem}")
    if bad:
        raise UserError(f"{files}: {bad} of {len(tasks)} tasks are not ready")


def check_task(name: str, task: TaskConfig, root: Path) -> tuple[list[str], str]:
    """(what is wrong, what was found) of one task's data."""
    # The kinds import torch, which takes seconds.
    from eval.suite import KINDS

    if not has_data(task.data, root):
        fetch = f"python -m eval fetch task={name} data_root={root}"
        hint = fetch if fetchable(task) else task.origin.get or task.origin.page
        return [f"{root / task.data.path} isn't there; {hint}".rstrip("; ")], ""
    try:
        dataset = open_dataset(task.data, root)
        KINDS[task.kind].check(f"tasks.{name}", task, dataset)
    except UserError as error:
        return [str(error)], ""
    found = counts(task, dataset)
    facts = ", ".join(f"{n:,} {what}" for what, n in found.items() if "=" not in what)
    problems = [
        f"{what}: found {found.get(what, 0):,}, expected {wanted:,}"
        for what, wanted in task.expect.items()
        if found.get(what, 0) != wanted
    ]
    return [*problems, *_broken(dataset)], facts


def counts(task: TaskConfig, dataset: Dataset) -> dict[str, int]:
    """What `expect` may name: images, rows, and rows by column=value, after `where`."""
    # Nested questions are rows only once they are taken apart.
    where = {} if task.vqa.nested else task.where
    kept = [[row for row in sample.rows if keep(row, where)] for sample in dataset.samples]
    images = sum(bool(rows) for rows in kept) if where else len(kept)
    found = {"images": images, "rows": sum(map(len, kept))}
    for wanted in task.expect:
        column, equals, value = wanted.partition("=")
        if equals:
            found[wanted] = sum(_has(row, column, value) for rows in kept for row in rows)
    return found


def _has(row: Row, column: str, value: str) -> bool:
    cell = row.get(column)
    return value in map(text, cell) if isinstance(cell, list) else text(cell) == value


def _broken(dataset: Dataset) -> Iterator[str]:
    """What is wrong with the images."""
    if isinstance(dataset.images, FileImages):
        missing = [file for file in dataset.images.files if not file.is_file()]
        if missing:
            yield f"{len(missing):,} images aren't there; the first is {missing[0]}"
            return
    n = len(dataset.samples)
    spaced = np.linspace(0, n - 1, min(DECODED, n)).round().astype(int)
    for i in spaced.tolist():
        try:
            open_rgb(dataset.images.read(i))
        except (ImageError, OSError, UserError) as error:
            yield f"image '{dataset.samples[i].image}' can't be read: {error}"
