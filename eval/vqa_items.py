"""Rows of any visual question set -> questions in one form (docs/vqa_items.md).

Nothing is guessed here: an item whose answer is not among its options is left out and counted by
reason, and no answer is ever taken for another one.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from eval.config import TaskConfig
from eval.counting import check_counts, counting_questions
from eval.readers import Dataset
from eval.tables import Row, columns, text, texts
from eval.tasks import Item, check_columns, keep
from vlp.config import UserError

NOT_AN_OPTION = "answer is not among the options"
NO_QUESTION = "no question"
NO_ANSWER = "no answer"
NO_CHOICE = "not two or more different options"
STATEMENTS = "not one statement per option"
ID = "\0id"
"""Key of an item's row that holds its name; no column of a table is called so."""
KINDS_OF_ANSWERS = ("closed", "open", "")


@dataclass(frozen=True)
class Question:
    """One question on one image."""

    item: Item
    id: str
    question: str
    kind: str
    """Its question type, '' where it has none."""
    gold: str
    """The right answer as a text."""
    options: list[str]
    """What there is to choose from; none for an open question."""
    statements: list[str]
    """One sentence per option."""
    answer: int
    """Index of the right option; -1 where there are none."""
    closed: bool
    """Whether it is answered by choosing, by the set's own word where it has one."""


class Parsed(NamedTuple):
    """What a set of rows gave."""

    questions: list[Question]
    left_out: Counter[str]
    """Reason -> number of items."""
    strange: Counter[str]
    """Answers that were not among the options."""


def select_items(where: str, task: TaskConfig, dataset: Dataset) -> list[Item]:
    """The items that the task is about, each with its name under `ID`, nested ones taken apart.

    Args:
        where: suite and task, for errors.

    Raises:
        UserError: a column that the data doesn't have, two items of one name, or nothing left.
    """
    items = [
        Item(i, row)
        for i, sample in enumerate(dataset.samples)
        for row in _rows(where, task, sample.image, sample.rows)
    ]
    needed = {task.question: "question", task.answer: "answer"}
    check_counts(where, task, dataset)
    needed |= dict.fromkeys(task.vqa.groups, "vqa.groups")
    exist = [column for column in columns(item.row for item in items) if column != ID]
    check_columns(where, task, exist, needed)
    items = [item for item in items if keep(item.row, task.where)]
    if not items:
        raise UserError(f"{where}.where: leaves no row of split '{task.data.split}'")
    names = Counter(item.row[ID] for item in items)
    name, count = names.most_common(1)[0]
    if count > 1:
        raise UserError(
            f"{where}.vqa.id: {count} items are called '{name}'; name another column, or none: "
            "vqa.id=''"
        )
    return items


def parse(task: TaskConfig, items: list[Item], choose: bool = True) -> Parsed:
    """Questions, closed and open, and what was left out.

    Args:
        choose: closed questions need options with the right answer among them. Otherwise one that
            the set calls closed may have none, such as "MRI or CT?" among yes/no questions.
    """
    parsed = Parsed([], Counter(), Counter())
    for item in items:
        found = _question(task, item, choose)
        if isinstance(found, Question):
            parsed.questions.append(found)
            continue
        parsed.left_out[found] += 1
        if found == NOT_AN_OPTION:
            parsed.strange[text(item.row.get(task.answer))] += 1
    return parsed


def fold(answer: str) -> str:
    """How answers are compared: case and surrounding white space don't matter, nothing else."""
    return " ".join(answer.casefold().split())


def _question(task: TaskConfig, item: Item, choose: bool) -> Question | str:
    """The question of a row, or why there is none."""
    row = item.row
    question, gold = text(row.get(task.question)), text(row.get(task.answer))
    kind, name = text(row.get(task.question_type)), str(row.get(ID, ""))
    if not question:
        return NO_QUESTION
    if not gold:
        return NO_ANSWER
    own = _own_options(task, row)
    options = own or dict(enumerate(task.fixed_options))
    right = _place(task, gold, options)
    answer_type = fold(text(row.get(task.vqa.answer_type)))
    if answer_type not in KINDS_OF_ANSWERS:
        return f"answer type '{answer_type[:40]}' is neither closed nor open"
    # Without a column that tells, "normal" among yes/no questions is the answer of an open one.
    undeclared = not answer_type and not own and right is None
    if answer_type == "open" or undeclared:
        return Question(item, name, question, kind, gold, [], [], -1, closed=False)
    if not choose and right is None:
        return Question(item, name, question, kind, gold, [], [], -1, closed=True)
    folded = {fold(option) for option in options.values()}
    if len(folded) != len(options) or len(options) < 2:
        return NO_CHOICE
    if right is None:
        return NOT_AN_OPTION
    listed = list(options.values())
    statements = texts(row.get(task.statements)) or [
        task.statement.format(question=question, option=option) for option in listed
    ]
    if len(statements) != len(listed):
        return STATEMENTS
    place = list(options).index(right)
    return Question(
        item, name, question, kind, listed[place], listed, statements, place, closed=True
    )


def _own_options(task: TaskConfig, row: Row) -> dict[int, str]:
    """Position -> option, of the row itself; a position without text has none."""
    if not task.vqa.option_columns:
        return dict(enumerate(texts(row.get(task.options))))
    cells = [text(row.get(column)) for column in task.vqa.option_columns]
    return {i: _without_letter(cell, i) for i, cell in enumerate(cells) if cell}


def _without_letter(option: str, place: int) -> str:
    """'B) liver' -> 'liver' for the second option; anything else stays as it is."""
    found = re.match(r"\(?([A-Za-z])\s*[:.)]\s*(?=\S)", option)
    if found and found[1].upper() == _letter(place):
        return option[found.end() :]
    return option


def _place(task: TaskConfig, gold: str, options: dict[int, str]) -> int | None:
    """The position that an answer names; None if none of them."""
    if task.vqa.answer_is == "letter":
        letter = gold.strip("().: ").upper()
        return next((i for i in options if _letter(i) == letter), None)
    if task.vqa.answer_is == "index":
        return next((i for i in options if str(i) == gold), None)
    return next((i for i, option in options.items() if fold(option) == fold(gold)), None)


def _letter(place: int) -> str:
    return chr(ord("A") + place)


def _rows(where: str, task: TaskConfig, image: str, rows: list[Row]) -> Iterator[Row]:
    """The rows of a sample's items, with their names."""
    for number, row in enumerate(rows, 1):
        name = text(row.get(task.vqa.id)) if task.vqa.id else ""
        named = {**row, ID: name or f"{image}#{number}"}
        if not task.vqa.nested and not task.vqa.counts:
            yield named
            continue
        nested: Any = counting_questions(task, row) if task.vqa.counts else row.get(task.vqa.nested)
        if not isinstance(nested, dict):
            raise UserError(
                f"{where}.vqa.nested: column '{task.vqa.nested}' of '{image}' is not a mapping of "
                "question types to questions"
            )
        for kind, entry in nested.items():
            if isinstance(entry, dict) and entry.get(task.question) is not None:
                yield {**named, **entry, task.question_type: kind, ID: f"{named[ID]}:{kind}"}
