"""results.json, and the table that ends a run."""

import hashlib
import importlib.metadata
import json
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.suite import Run, TaskRun
from vlp.config import to_dict, write_text

FORMAT = {"format": "biovlp-eval", "version": 1}
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "transformers", "pillow", "numpy")
LISTED_IMAGES = 1000
"""Broken images that are listed by name; all of them are counted."""


def results(run: Run) -> dict[str, Any]:
    """All that is needed to judge and to repeat the scores, as plain JSON."""
    return {
        **FORMAT,
        "suite": run.config.name,
        "suite_file": run.suite,
        "command": run.command,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": run.config.seed,
        "model": {
            "name": run.model.name,
            "sha256": run.model.sha256,
            "preprocess": run.model.preprocess,
            "notes": run.model.notes,
        },
        "versions": versions(),
        "tasks": {name: _task(done) for name, done in run.tasks.items()},
        "config": to_dict(run.config),
    }


def versions() -> dict[str, str]:
    """Python, the packages that decide numbers, and the processor."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found, "machine": platform.machine()}


def write_results(run: Run) -> Path:
    """Write results.json, at once or not at all."""
    path = run.out / "results.json"
    text = json.dumps(results(run), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")
    return path


def print_table(run: Run, report: Path) -> None:
    """The scores with n, interval and chance, then what was left out, then where the report is."""
    table = Table(title=f"{run.config.name}: {run.model.name}", title_justify="left")
    for column, side in (
        ("task", "left"),
        ("score", "left"),
        ("value", "right"),
        ("95% interval", "right"),
        ("chance", "right"),
        ("n", "right"),
    ):
        table.add_column(column, justify=side, no_wrap=column != "score")  # type: ignore[arg-type]
    for name, done in run.tasks.items():
        for key, score in done.result.scores.items():
            bold = "bold" if key in done.result.headline else ""
            interval = f"{percent(score.low)} - {percent(score.high)}"
            table.add_row(
                name,
                key.replace("_", " "),
                percent(score.value),
                interval,
                percent(score.chance),
                str(done.result.n),
                style=bold,
            )
            name = ""
        table.add_section()
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=100)  # logs are read wide
    console.print(table)
    for name, done in run.tasks.items():
        for line in remarks(done):
            console.print(f"{name}: {line}", markup=False, highlight=False)
    for line in run.model.notes:
        console.print(f"model: {line}", markup=False, highlight=False)
    console.print(f"report: {report}", markup=False, highlight=False, soft_wrap=True)


def remarks(done: TaskRun) -> list[str]:
    """What a reader has to know beside the score: traps of the data, and what was left out."""
    result = done.result
    lines = [*done.task.notes, *done.dataset.notes, *result.notes]
    lines += [f"left out: {count} ({reason})" for reason, count in result.excluded.items()]
    for key, value in result.details.get("baselines", {}).items():
        lines.append(f"baseline {key.replace('_', ' ')}: {percent(value)}")
    if "majority_share" in result.details:
        share = percent(result.details["majority_share"])
        lines.append(f"always the most frequent class: accuracy {share}")
    return lines


def percent(share: float) -> str:
    """0.1234 -> '12.3%'."""
    return f"{100 * share:.1f}%"


def _task(done: TaskRun) -> dict[str, Any]:
    result, task, broken = done.result, done.task, done.images.broken
    return {
        "kind": task.kind,
        "source": task.source,
        "n": result.n,
        "scores": {key: asdict(score) for key, score in result.scores.items()},
        "headline": result.headline,
        "interval": {"level": 0.95, "method": "percentile bootstrap", "clusters": result.clusters},
        "excluded": result.excluded,
        "broken_images": {
            "count": len(broken),
            "first": [
                {"image": done.dataset.samples[i].image, "reason": reason}
                for i, reason in sorted(broken.items())[:LISTED_IMAGES]
            ],
        },
        "notes": [*task.notes, *done.dataset.notes, *result.notes],
        "data": {
            "reader": task.data.reader,
            "path": task.data.path,
            "split": task.data.split,
            "labels": task.data.labels,
            "images": len(done.dataset.samples),
            "sha256": done.dataset.fingerprint,
            "labels_sha256": labels_hash(done),
        },
        **result.details,
    }


def labels_hash(done: TaskRun) -> str:
    """SHA-256 over names, captions and rows of the split: what decides the right answers."""
    digest = hashlib.sha256()
    for sample in done.dataset.samples:
        line = json.dumps([sample.image, sample.captions, sample.rows], default=str, sort_keys=True)
        digest.update(line.encode())
    return digest.hexdigest()
