"""The scores of a run on Weights & Biases: numbers to sort by, tables to look at, the whole report.

Nothing is sent unless it is asked for, and no image of a task that keeps its images is ever sent:
the report is the one that lies beside the results.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eval.console import items_behind
from eval.results import Record
from eval.suite import Run
from vlp.config import UserError, to_dict

FINISH_TIMEOUT = 300.0
"""Seconds that sending may take in the end; what is left stays in the folder."""
COLUMNS = ("task", "score", "value", "low", "high", "chance", "n", "clusters")


def log_run(run: Run, report: Path) -> None:
    """Log a scored suite as one run, in `out`/wandb.

    Raises:
        UserError: Weights & Biases refuses, as without a key.
    """
    options = run.config.wandb
    if options.mode == "disabled":
        return
    import wandb  # slow to import, and needed only here

    try:
        logged = wandb.init(
            mode=options.mode,
            project=options.project,
            entity=options.entity or None,
            name=f"{run.config.name}: {run.model.name}",
            job_type="eval",
            dir=str(run.out),
            config={**to_dict(run.config), "model_sha256": run.model.sha256},
            settings=wandb.Settings(console="off", finish_timeout=FINISH_TIMEOUT),
        )
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"wandb.mode={options.mode}: {reason}; run `wandb login`, or set wandb.mode=offline "
            "(the results are written)"
        ) from None
    records = [done.record for done in run.tasks.values()]
    logged.summary.update(summary(records))
    rows: list[Iterable[Any]] = list(score_rows(records))
    logged.log({"scores": wandb.Table(columns=list(COLUMNS), data=rows)})
    for record in records:
        if matrix := record["details"].get("confusion"):
            classes = record["details"]["classes"]
            table = wandb.Table(
                columns=["true class", *classes],
                data=[[name, *counts] for name, counts in zip(classes, matrix, strict=True)],
            )
            logged.log({f"confusion/{record['task']}": table})
    logged.log({"report": wandb.Html(report.read_text(encoding="utf-8"), inject=False)})
    logged.finish()


def summary(records: Iterable[Record]) -> dict[str, float]:
    """`TASK/SCORE` with its bounds, as columns by which runs can be sorted."""
    found = {}
    for record in records:
        for key, score in record["scores"].items():
            for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high")):
                if score[part] is not None:
                    found[f"{record['task']}/{key}{suffix}"] = score[part]
    return found


def score_rows(records: Iterable[Record]) -> Iterable[tuple[Any, ...]]:
    """COLUMNS of every score."""
    for record in records:
        for key, score in record["scores"].items():
            numbers = (score[part] for part in ("value", "low", "high", "chance"))
            n = items_behind(record, key)
            yield record["task"], key, *numbers, n, record["interval"]["clusters"]
