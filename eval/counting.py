"""Counting questions: numbers of a table, such as boxes of each kind, as ranges to choose from.

There is no published protocol of this kind for cells: ranges of about equal frequency on the
*training* split keep the most frequent answer near chance, and exact numbers beyond what an
embedding can be asked. CLIP models are known to count badly (Paiss et al., ICCV 2023, arXiv
2302.12066, whose CountBench asks for two to ten objects).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.config import TaskConfig
from eval.readers import Dataset
from eval.tables import Row, columns, text
from eval.vqa_config import CountConfig
from vlp.config import UserError

DIGITS = 18
"""Of a number in a table; longer ones are none."""


def counting_questions(task: TaskConfig, row: Row) -> dict[str, Row]:
    """Question type -> question, options, answer and statements, under the task's names of columns.

    A number that no range holds, or a cell that is no number, is no answer: such items are left out
    and counted.
    """
    found = {}
    for kind, count in task.vqa.counts.items():
        entry: Row = {
            task.question: count.question,
            task.options: names_of(count.ranges),
            task.answer: _answer(count, row),
        }
        if count.statements:
            entry[task.statements] = list(count.statements)
        found[kind] = entry
    return found


def names_of(ranges: Sequence[int]) -> list[str]:
    """[0, 1, 3] -> ["0", "1 to 2", "3 or more"]."""
    ends = [following - 1 for following in ranges[1:]]
    closed = [
        str(least) if least == most else f"{least} to {most}"
        for least, most in zip(ranges, ends, strict=False)
    ]
    return [*closed, f"{ranges[-1]} or more"]


def check_counts(where: str, task: TaskConfig, dataset: Dataset) -> None:
    """Whether the numbers are there: a misspelled thing would otherwise be counted 0 everywhere.

    Args:
        where: suite and task, for errors.

    Raises:
        UserError: no such column, or a thing that no row names.
    """
    exist = columns(dataset.every_row)
    for kind, count in task.vqa.counts.items():
        key = f"{where}.vqa.counts.{kind}"
        if count.column not in exist:
            raise UserError(f"{key}.column: no column '{count.column}'; there are {_list(exist)}")
        if not count.key:
            continue
        cells = [row.get(count.column) for row in dataset.every_row]
        things = {text(name) for cell in cells if isinstance(cell, Mapping) for name in cell}
        if count.key not in things:
            known = _list(sorted(things)) or "no mappings"
            raise UserError(
                f"{key}.key: no '{count.key}' in column '{count.column}'; there are {known}"
            )


def _answer(count: CountConfig, row: Row) -> str:
    """The range that holds the row's number; '' where none does, or there is no number."""
    cell: Any = row.get(count.column)
    if count.key and isinstance(cell, Mapping):
        cell = cell.get(count.key, 0)
    number = text(cell)
    if not number.isdecimal() or len(number) > DIGITS:
        return ""
    below = sum(least <= int(number) for least in count.ranges)
    return names_of(count.ranges)[below - 1] if below else ""


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
