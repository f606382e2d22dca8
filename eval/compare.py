"""python -m eval compare A B [only=[TASK,...]] [scores=all] [out=FILE.json] [key=value]

Two folders of results on the same tasks: the difference of each score with its interval and
p-value, and the p-values adjusted for the number of scores that are looked at.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from eval.console import shown
from eval.contrasts import check_same_items, compare_score, open_side, why_not
from eval.paired import Difference, Resampling, benjamini_hochberg, holm
from eval.results import Record, protocol, read_folder
from vlp.config import UserError, load_config, write_text


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """B less A on the same tasks: python -m eval compare A B [key=value]"""

    only: list[str] = field(default_factory=list)
    """The tasks to compare; empty: all that both folders have."""
    scores: Literal["headline", "all"] = "headline"
    """Only the scores that stand for their task, or all. The adjusted p-values are for the number
    of scores that are looked at."""
    seed: int = 0
    """Of bootstrap and exchanges."""
    replicates: int = 1000
    """Bootstrap resamples behind each interval."""
    permutations: int = 2000
    """Exchanges behind each p-value, which can't be smaller than 1 / (permutations + 1)."""
    out: str = ""
    """A JSON file for the numbers; empty: none."""

    def __post_init__(self) -> None:
        for key in ("replicates", "permutations"):
            if getattr(self, key) < 100:
                raise ValueError(f"{key}={getattr(self, key)}: set it to 100 or more")


@dataclass(frozen=True)
class Line:
    """One score of one task under both models."""

    task: str
    score: str
    n: int
    clusters: int
    a: float
    b: float
    difference: Difference
    notes: list[str]
    p_holm: float = 1.0
    """Adjusted so that the chance of any false finding is bounded (Holm)."""
    p_bh: float = 1.0
    """Adjusted so that the share of false findings is bounded (Benjamini and Hochberg)."""


@dataclass(frozen=True)
class Folder:
    """A folder of results."""

    path: Path
    records: dict[str, Record]

    @property
    def model(self) -> str:
        """The model's name; of its first task, since a folder holds one model's results."""
        return str(next(iter(self.records.values()))["model"]["name"])


def main(argv: list[str]) -> None:
    """Compare and print; write the numbers if asked."""
    folders = [Path(arg) for arg in argv if "=" not in arg and not arg.startswith("-")]
    rest = [arg for arg in argv if Path(arg) not in folders]
    config = load_config(CompareConfig, rest, "python -m eval compare A B")
    if len(folders) != 2:
        raise UserError("compare: name two folders of results, A and B; see --help")
    a, b = (Folder(folder, read_folder(folder)) for folder in folders)
    lines, skipped = compare(a, b, config)
    names = [folder.model for folder in (a, b)]
    print_lines(lines, skipped, names)
    if config.out:
        content = {
            "a": {"folder": str(a.path), "model": a.model},
            "b": {"folder": str(b.path), "model": b.model},
            "seed": config.seed,
            "replicates": config.replicates,
            "permutations": config.permutations,
            "scores": [asdict(line) for line in lines],
            "not_compared": skipped,
        }
        write_text(config.out, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def compare(a: Folder, b: Folder, config: CompareConfig) -> tuple[list[Line], list[str]]:
    """(scores with their differences, what isn't compared and why).

    Raises:
        UserError: no task in common, a task of other data, or damaged results.
    """
    skipped = [f"{task}: only in {a.path}" for task in a.records if task not in b.records]
    skipped += [f"{task}: only in {b.path}" for task in b.records if task not in a.records]
    common = [task for task in a.records if task in b.records]
    if unknown := [task for task in config.only if task not in common]:
        raise UserError(f"only: '{unknown[0]}' is not in both; there are {', '.join(common)}")
    if not common:
        raise UserError(f"{a.path} and {b.path}: no task in common")
    resampling = Resampling(config.seed, config.replicates, config.permutations)
    lines = []
    for task in config.only or common:
        one, other = a.records[task], b.records[task]
        first, second = open_side(a.path, one), open_side(b.path, other)
        check_same_items(first, second)
        notes = _notes(one, other)
        for key in one["headline"] if config.scores == "headline" else one["scores"]:
            told = [_value(record, key) for record in (one, other)]
            if None in told:
                skipped.append(f"{task}: {key} is undefined, or not there, in A or B")
                continue
            found = compare_score(key, first, second, resampling)
            if found is None:
                skipped.append(f"{task}: {key} {why_not(key, first)}")
                continue
            numbers = (found.n, found.clusters, told[0], told[1])
            lines.append(Line(task, key, *numbers, found.difference, notes))
    return adjusted(lines), skipped


def adjusted(lines: Sequence[Line]) -> list[Line]:
    """Lines with p-values adjusted for how many there are."""
    if not lines:
        return []
    p = np.array([line.difference.p for line in lines])
    both = zip(lines, holm(p).tolist(), benjamini_hochberg(p).tolist(), strict=True)
    return [replace(line, p_holm=h, p_bh=q) for line, h, q in both]


def print_lines(lines: Sequence[Line], skipped: Sequence[str], names: Sequence[str]) -> None:
    """The differences as a table, then what a reader has to know."""
    table = Table(title=f"A: {names[0]}\nB: {names[1]}", title_justify="left")
    for column in ("task", "score"):
        table.add_column(column)
    for column in ("A", "B", "B - A", "95% interval", "p", "p (Holm)", "p (BH)", "n", "clusters"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        change = line.difference
        low, high = (_signed(line.score, bound) for bound in (change.low, change.high))
        table.add_row(
            line.task,
            line.score.replace("_", " "),
            shown(line.score, line.a),
            shown(line.score, line.b),
            _signed(line.score, change.value),
            f"{low} to {high}",
            *(f"{p:.2g}" for p in (change.p, line.p_holm, line.p_bh)),
            str(line.n),
            str(line.clusters),
            style="bold" if line.p_holm < 0.05 else "",
        )
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=140)  # logs are read wide
    console.print(table)
    said: list[Any] = [
        "p: two-sided, answers exchanged by cluster; bold: p (Holm) below 0.05",
        *dict.fromkeys(f"{line.task}: {note}" for line in lines for note in line.notes),
        *(f"not compared: {reason}" for reason in skipped),
    ]
    for text in said:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _value(record: Record, key: str) -> Any:
    """A score; None where it isn't there or isn't defined."""
    return record["scores"].get(key, {}).get("value")


def _notes(a: Record, b: Record) -> list[str]:
    first, second = protocol(a), protocol(b)
    changed = sorted(key for key in first if first[key] != second.get(key))
    return [f"A and B differ in {', '.join(changed)}"] if changed else []


def _signed(key: str, value: float) -> str:
    return ("+" if value >= 0 else "-") + shown(key, abs(value))
