"""python -m eval table FOLDER [FOLDER ...] [format=markdown|latex|csv] [published=true] [key=value]

A table over many models: a row for each task and score, a column for each model. Every number has
its interval and stands beside n and chance; what a reader must know of one is a footnote.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from eval.console import items_behind, shown
from eval.published import Published, published_scores
from eval.results import Record, protocol, read_folder
from vlp.config import UserError, load_config, write_text

Row = tuple[str, str]
"""Task and score."""


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """A table of results folders: python -m eval table FOLDER ... [key=value]"""

    format: Literal["markdown", "latex", "csv"] = "markdown"
    """markdown and latex: a column for each model; csv: a line for each number."""
    scores: Literal["headline", "all"] = "headline"
    """Only the scores that stand for their task, or all."""
    tasks: list[str] = field(default_factory=list)
    """The tasks to show, in this order; empty: all."""
    names: list[str] = field(default_factory=list)
    """Names of the models, in the order of the folders; empty: as they were given to eval."""
    published: bool = False
    """Also show published numbers of these tasks."""
    out: str = ""
    """A file; empty: standard output."""


@dataclass(frozen=True)
class Cell:
    """One number of one model."""

    model: str
    task: str
    score: str
    value: float | None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    n: int | None = None
    seed: int | None = None
    model_sha256: str = ""
    data_sha256: str = ""
    published: bool = False
    source: str = ""
    """Of the protocol, or of a published number."""
    note: str = ""
    """What a reader must know of this very number."""


def main(argv: list[str]) -> None:
    """Print or write the table."""
    folders = [Path(arg) for arg in argv if "=" not in arg and not arg.startswith("-")]
    config = load_config(
        TableConfig, [arg for arg in argv if Path(arg) not in folders], "python -m eval table"
    )
    if not folders:
        raise UserError("table: name at least one folder of results; see --help")
    cells = measured(folders, config)
    if config.published:
        rows = {(cell.task, cell.score) for cell in cells}
        cells += [from_paper(p) for p in published_scores() if (p.task, p.score) in rows]
    text = {"markdown": markdown, "latex": latex, "csv": as_csv}[config.format](cells)
    if config.out:
        write_text(config.out, text)
    else:
        print(text, end="")


def measured(folders: Sequence[Path], config: TableConfig) -> list[Cell]:
    """The numbers of results folders; several folders of one model make one column.

    Raises:
        UserError: a folder without results, unknown tasks, or two results of a model for one task.
    """
    if config.names and len(config.names) != len(folders):
        raise UserError(f"names: {len(config.names)} for {len(folders)} folders; name each")
    cells: list[Cell] = []
    origin: dict[tuple[str, str], Path] = {}
    models: dict[str, str] = {}
    first: dict[str, Record] = {}
    for i, folder in enumerate(folders):
        for task, record in read_folder(folder).items():
            sha256 = record["model"]["sha256"]
            name = config.names[i] if config.names else record["model"]["name"]
            if models.setdefault(name, sha256) != sha256:
                name = f"{name} ({sha256[:8]})"
                models[name] = sha256
            if (name, task) in origin:
                raise UserError(f"{folder}: {task} of {name} is in {origin[name, task]} too")
            origin[name, task] = folder
            cells += _cells(name, record, first.setdefault(task, record), config.scores)
    known = {cell.task for cell in cells}
    if unknown := [task for task in config.tasks if task not in known]:
        raise UserError(
            f"tasks: no results of '{unknown[0]}'; there are {', '.join(sorted(known))}"
        )
    if config.tasks:
        cells = [cell for task in config.tasks for cell in cells if cell.task == task]
    return cells


def _cells(name: str, record: Record, first: Record, scores: str) -> Iterable[Cell]:
    """The numbers of one task of one model."""
    notes = []
    if record["data"]["labels_sha256"] != first["data"]["labels_sha256"]:
        notes.append(f"not the same items as for {first['model']['name']}")
    else:
        asked, before = protocol(record), protocol(first)
        if changed := sorted(key for key in asked if asked[key] != before.get(key)):
            notes.append(f"another {', '.join(changed)} than for {first['model']['name']}")
    for key in record["headline"] if scores == "headline" else record["scores"]:
        score = record["scores"][key]
        yield Cell(
            model=name,
            task=record["task"],
            score=key,
            value=score["value"],
            low=score["low"],
            high=score["high"],
            chance=score["chance"],
            n=items_behind(record, key),
            seed=record["options"]["seed"],
            model_sha256=record["model"]["sha256"],
            data_sha256=record["data"]["labels_sha256"],
            source=record["source"],
            note="; ".join(notes),
        )


def from_paper(number: Published) -> Cell:
    """A published number as a cell."""
    note = [number.source]
    if number.evidence:
        note.append(number.evidence)
    note.append(f"the protocol differs: {number.differs}" if number.differs else "")
    return Cell(
        model=f"{number.model} (published)",
        task=number.task,
        score=number.score,
        value=number.value,
        published=True,
        source=number.source,
        note="; ".join(filter(None, note)),
    )


def as_csv(cells: Sequence[Cell]) -> str:
    """A line for each number, with all that is known of it; shares are not per cent here."""
    buffer = io.StringIO()
    names = [f.name for f in fields(Cell)]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for cell in cells:
        values = (getattr(cell, name) for name in names)
        writer.writerow(["" if value is None else value for value in values])
    return buffer.getvalue()


def markdown(cells: Sequence[Cell]) -> str:
    """A table for a README; the highest of our own numbers in a row is bold."""
    grid = _Grid(cells)
    head = ["task", "score", "n", "chance", *grid.models]
    lines = [_line(map(_md, head)), _line(["---", "---", *["---:"] * (len(head) - 2)])]
    for row in grid.rows:
        found = [_markdown_cell(cell, grid) for cell in grid.line(row)]
        lines.append(_line([*map(_md, grid.about(row)), *found]))
    notes = [f"<sup>{mark}</sup> {_md(note)}  " for note, mark in grid.marks.items()]
    return "\n".join([*lines, "", grid.legend, "", *notes]).rstrip() + "\n"


def latex(cells: Sequence[Cell]) -> str:
    """A tabular for a paper; it needs the package booktabs."""
    grid = _Grid(cells)
    head = ["task", "score", "$n$", "chance", *map(_tex, grid.models)]
    lines = [
        f"\\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
        "\\toprule",
        " & ".join(head) + r" \\",
        "\\midrule",
    ]
    for row in grid.rows:
        found = [_latex_cell(cell, grid) for cell in grid.line(row)]
        lines.append(" & ".join([*map(_tex, grid.about(row)), *found]) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}", "", "% " + grid.legend]
    lines += [
        f"\\par\\footnotesize\\textsuperscript{{{mark}}} {_tex(note)}"
        for note, mark in grid.marks.items()
    ]
    return "\n".join(lines) + "\n"


class _Grid:
    """Cells as rows and columns, with a letter for each note."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.rows: list[Row] = list(dict.fromkeys((cell.task, cell.score) for cell in cells))
        self.models = list(dict.fromkeys(cell.model for cell in cells))
        self.cells = {(cell.task, cell.score, cell.model): cell for cell in cells}
        self.marks: dict[str, str] = {}
        self.legend = (
            "Per cent where a score is a share; in brackets 95% bootstrap intervals; bold: highest "
            "measured value of the row."
        )

    def line(self, row: Row) -> list[Cell | None]:
        return [self.cells.get((*row, model)) for model in self.models]

    def about(self, row: Row) -> list[str]:
        """Task, score, n and chance; the latter two of the first model that was measured."""
        task, key = row
        cell = next(cell for cell in self.line(row) if cell is not None and not cell.published)
        return [task, key.replace("_", " "), f"{cell.n:,}", shown(key, cell.chance)]

    def mark(self, cell: Cell) -> str:
        if not cell.note:
            return ""
        return self.marks.setdefault(cell.note, _letters(len(self.marks)))

    def is_highest(self, cell: Cell) -> bool:
        rivals = [c for c in self.line((cell.task, cell.score)) if c is not None]
        values = [c.value for c in rivals if not c.published and c.value is not None]
        return len(values) > 1 and not cell.published and cell.value == max(values)


def _markdown_cell(cell: Cell | None, grid: _Grid) -> str:
    if cell is None:
        return ""
    value = shown(cell.score, cell.value)
    value = f"**{value}**" if grid.is_highest(cell) else value
    mark = grid.mark(cell)
    return value + _bounds(cell) + (f"<sup>{mark}</sup>" if mark else "")


def _latex_cell(cell: Cell | None, grid: _Grid) -> str:
    if cell is None:
        return ""
    value = _tex(shown(cell.score, cell.value))
    value = f"\\textbf{{{value}}}" if grid.is_highest(cell) else value
    mark = grid.mark(cell)
    bounds = _tex(_bounds(cell))
    bounds = f" {{\\scriptsize {bounds}}}" if bounds else ""
    return value + bounds + (f"\\textsuperscript{{{mark}}}" if mark else "")


def _bounds(cell: Cell) -> str:
    if cell.low is None or cell.high is None:
        return ""
    return f" [{shown(cell.score, cell.low)}, {shown(cell.score, cell.high)}]"


def _letters(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("a") + rest) + text
    return text


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _md(text: str) -> str:
    """Text in a Markdown table: names and notes come from files of strangers."""
    text = " ".join(text.split())
    for sign in "\\`*_{}[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return text


TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def _tex(text: str) -> str:
    return "".join(TEX.get(sign, sign) for sign in " ".join(text.split()))
