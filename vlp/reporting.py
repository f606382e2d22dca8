"""What a run tells: progress on the console, metrics.jsonl, Weights & Biases.

Only rank 0 reports; the others hold a `NullReporter`.
"""

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from vlp import distributed
from vlp.config import UserError
from vlp.curves import read_metrics
from vlp.data.loader import Batch, Broken


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Where metrics go besides the console and metrics.jsonl."""

    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Weights & Biases: no run, a run written into the run's folder, or one that is sent."""
    project: str = "biovlp"
    """Project on Weights & Biases."""
    entity: str = ""
    """User or team on Weights & Biases; empty: the account's default."""


class NullReporter:
    """Says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def advance(self, step: int) -> None:
        """`step` steps are done."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers after `step` steps."""

    def message(self, text: str) -> None:
        """Tell the person something, once."""


class Reporter(NullReporter):
    """Console, `metrics.jsonl` and, if asked, Weights & Biases."""

    def __init__(
        self,
        folder: Path,
        config: ReportConfig,
        run_config: dict[str, Any],
        first_step: int,
        steps: int,
    ) -> None:
        """Continue the reports of a run in `folder` after `first_step` of `steps` steps."""
        self.path = folder / "metrics.jsonl"
        rewind(self.path, first_step)
        self.file = self.path.open("a", encoding="utf-8")
        self.console = Console()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task(
            "train", total=steps, completed=first_step, status="", start=True
        )
        self.steps = steps
        self.wandb = _wandb_run(folder, config, run_config)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()
        self.file.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=0 if error is None else 1)

    def advance(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **metrics}) + "\n")
        self.file.flush()
        if self.wandb is not None:
            self.wandb.log({"step": step, **metrics})
        status = "  ".join(_phrases(metrics))
        if "train/loss" in metrics and self.console.is_terminal:
            self.progress.update(self.task, status=status)
        else:
            self.message(f"step {step:>6}/{self.steps}  {status}")

    def message(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class Window:
    """What happened since the last report, without reading the device."""

    def __init__(self, step: int) -> None:
        self.seen = 0
        self.broken_total = 0
        self.restart(step)

    def restart(self, step: int) -> None:
        self.start, self.first = time.perf_counter(), step
        self.waited = 0.0
        self.tokens = 0
        self.broken: list[Broken] = []
        self.losses: list[Tensor] = []
        self.keys: list[list[str]] = []

    def add(self, step: int, batch: Batch, loss: Tensor) -> None:
        self.last = step
        self.seen += len(batch.keys)
        self.tokens += len(batch.text.input_ids)
        self.broken += batch.broken
        self.losses.append(loss)
        self.keys.append(batch.keys)

    def rates(self, batch_size: int, ranks: int) -> dict[str, float]:
        """Throughput since the last report; this rank stands for all."""
        seconds = time.perf_counter() - self.start
        return {
            "perf/samples_per_second": (self.last - self.first) * batch_size / seconds,
            "perf/tokens_per_second": self.tokens * ranks / seconds,
            "perf/data_wait": self.waited / seconds,
        }

    def check_finite(self) -> None:
        """Stop at a loss that is not a number, and name its step and samples."""
        bad = (~torch.stack(self.losses).isfinite()).nonzero().flatten().tolist()
        if bad:
            keys = self.keys[bad[0]]
            raise UserError(
                f"the loss of step {self.first + bad[0] + 1} is not finite (rank "
                f"{distributed.rank()}, samples {', '.join(keys[:8])}{' ...' * (len(keys) > 8)}); "
                "lower optimizer.learning_rate or set train.precision=fp32"
            )


def rewind(path: Path, step: int) -> None:
    """Drop the rows after `step` steps: a resumed run takes those steps again."""
    if path.is_file():
        kept = [json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, path)


def _phrases(metrics: Mapping[str, float]) -> Iterator[str]:
    """The numbers that a person follows, shortest first."""
    for key, form in (
        ("train/loss", "loss {:.3f}"),
        ("perf/samples_per_second", "{:.0f} samples/s"),
        ("perf/data_wait", "{:.0%} waiting for data"),
        ("data/broken", "{:.0f} broken"),
    ):
        if metrics.get(key):
            yield form.format(metrics[key])
    for key, value in metrics.items():
        if key.startswith("val/") and key.endswith("@1"):
            yield f"{key} {value:.1%}"


def _wandb_run(folder: Path, config: ReportConfig, run_config: dict[str, Any]) -> Any:
    """A run whose id is kept in the folder, so that curves go on after a restart."""
    if config.wandb == "disabled":
        return None
    import wandb  # slow to import, and needed only here

    id_file = folder / "wandb_id"
    if not id_file.is_file():
        id_file.write_text(uuid.uuid4().hex[:12])
    run = wandb.init(
        project=config.project,
        entity=config.entity or None,
        name=folder.name,
        id=id_file.read_text().strip(),
        resume="allow" if config.wandb == "online" else None,
        mode=config.wandb,
        dir=str(folder),
        config=run_config,
        settings=wandb.Settings(console="off"),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run
