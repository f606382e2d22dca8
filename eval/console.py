"""The table that ends a run, and numbers as people read them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.results import Record

NUMBERS = ("cnr", "contrast-to-noise", "median_rank")
"""Scores with this in their name are no shares of 1."""


def print_table(name: str, records: Iterable[Record], report: Path) -> None:
    """The scores with n, interval and chance, then what was left out, then where the report is."""
    records = list(records)
    table = Table(title=name, title_justify="left")
    for column, side in (
        ("task", "left"),
        ("score", "left"),
        ("value", "right"),
        ("95% interval", "right"),
        ("chance", "right"),
        ("n", "right"),
    ):
        table.add_column(column, justify=side, no_wrap=column != "score")  # type: ignore[arg-type]
    for record in records:
        task = record["task"]
        for key, score in record["scores"].items():
            table.add_row(
                task,
                key.replace("_", " "),
                shown(key, score["value"]),
                interval(key, score),
                shown(key, score["chance"]),
                str(items_behind(record, key)),
                style="bold" if key in record["headline"] else "",
            )
            task = ""
        table.add_section()
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=100)  # logs are read wide
    console.print(table)
    for record in records:
        for line in remarks(record):
            console.print(f"{record['task']}: {line}", markup=False, highlight=False)
    for line in records[0]["model"]["notes"] if records else []:
        console.print(f"model: {line}", markup=False, highlight=False)
    console.print(f"report: {report}", markup=False, highlight=False, soft_wrap=True)


def remarks(record: Record) -> list[str]:
    """What a reader has to know beside the score: traps of the data, and what was left out."""
    details = record["details"]
    lines = list(record["notes"])
    lines += [f"left out: {count} ({reason})" for reason, count in record["excluded"].items()]
    for key, value in details.get("baselines", {}).items():
        lines.append(f"baseline {key.replace('_', ' ')}: {shown(key, value)}")
    if "majority_share" in details:
        share = percent(details["majority_share"])
        lines.append(f"always the most frequent class: accuracy {share}")
    return lines


def items_behind(record: Record, key: str) -> int:
    """The number of items behind a score; that of the task in files which don't say."""
    return int(record["scores"][key].get("n", record["n"]))


def shown(key: str, value: float | None) -> str:
    """A score as people read it: a share as per cent, what is no share as a number."""
    if value is None:
        return "–"
    return f"{value:.3g}" if any(part in key for part in NUMBERS) else percent(value)


def interval(key: str, score: Mapping[str, Any]) -> str:
    """'12.3% – 14.5%'; '–' for a score without an interval."""
    if score["low"] is None or score["high"] is None:
        return "–"
    return f"{shown(key, score['low'])} – {shown(key, score['high'])}"


def percent(share: float) -> str:
    """0.1234 -> '12.3%'."""
    return f"{100 * share:.1f}%"
