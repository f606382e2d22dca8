"""What a run tells: progress on the console, metrics.jsonl, Weights & Biases.

Only rank 0 reports; the others hold a `NullReporter`.
"""

import json
import os
import resource
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from vlp import distributed
from vlp.config import UserError, write_text
from vlp.curves import read_metrics
from vlp.data.loader import Broken
from vlp.data.text import PackedText

INIT_TIMEOUT, FINISH_TIMEOUT = 60.0, 300.0
"""Seconds that Weights & Biases may take to answer at the start, and to be sent what is left."""

Rows = Sequence[Sequence[str | float | Image.Image]]


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

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """Record how numbers are distributed; Weights & Biases only."""

    def table(self, step: int, name: str, columns: Sequence[str], rows: Rows) -> None:
        """Record rows of texts, numbers and images; Weights & Biases only."""

    @property
    def takes_tables(self) -> bool:
        """Whether tables and histograms go anywhere, so that they are worth making."""
        return False

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
        self.file = self.path.open("ab", buffering=0)
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
        self.wandb = _wandb_run(folder, config, run_config, self.message)

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
        self._append(json.dumps({"step": step, **metrics}) + "\n")
        if self.wandb is not None:
            self.wandb.log({"step": step, **metrics})
        status = "  ".join(_phrases(metrics))
        if "train/loss" in metrics and self.console.is_terminal:
            self.progress.update(self.task, status=status)
        else:
            self.message(f"step {step:>6}/{self.steps}  {status}")

    def _append(self, line: str) -> None:
        """Add a whole line to metrics.jsonl, or none: a full disk doesn't end a run."""
        data, end = line.encode(), self.file.seek(0, os.SEEK_END)
        try:
            if self.file.write(data) < len(data):
                raise OSError("no room for a whole line")
        except OSError as error:
            self.file.truncate(end)
            self.message(f"{self.path}: a row could not be written: {error.strerror or error}")

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        if self.wandb is not None:
            import wandb

            self.wandb.log(
                {"step": step, name: wandb.Histogram(np_histogram=np.histogram(values, 64))}
            )

    def table(self, step: int, name: str, columns: Sequence[str], rows: Rows) -> None:
        if self.wandb is not None:
            import wandb

            cells: list[Iterable[Any]] = [[_cell(value) for value in row] for row in rows]
            table = wandb.Table(columns=list(columns), data=cells)
            self.wandb.log({"step": step, name: table})

    @property
    def takes_tables(self) -> bool:
        return self.wandb is not None

    def message(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Costs:
    """What a step takes and what the device has, for the shares that a person can judge."""

    context_length: int
    """Tokens to which a trainer with padding would fill every caption."""
    flops: Callable[[int, Tensor], float]
    """Images, lengths int [B] -> useful operations of forward and backward: flops.step_flops."""
    peak: float | None
    """Operations a second of the device; None if it is not known."""
    device: torch.device


class Countable(Protocol):
    """What a batch tells of itself."""

    @property
    def keys(self) -> list[str]: ...
    @property
    def broken(self) -> list[Broken]: ...
    @property
    def text(self) -> PackedText: ...


class Window:
    """What happened since the last report, without reading the device."""

    def __init__(self, step: int, costs: Costs | None = None) -> None:
        self.costs = costs
        self.seen = 0
        self.broken_total = 0
        self.restart(step)

    def restart(self, step: int) -> None:
        self.start, self.first = time.perf_counter(), step
        self.waited = 0.0
        self.samples = 0
        self.broken: list[Broken] = []
        self.losses: list[Tensor] = []
        self.keys: list[list[str]] = []
        self.lengths: list[Tensor] = []

    def add(self, step: int, batch: Countable, loss: Tensor) -> None:
        """Count a step. The batch is the loader's, on the CPU: reading it waits for nothing."""
        self.last = step
        self.seen += len(batch.keys)
        self.samples += len(batch.keys)
        self.broken += batch.broken
        self.losses.append(loss)
        self.keys.append(batch.keys)
        self.lengths.append(batch.text.cu_seqlens.diff())

    def rates(self, ranks: int) -> dict[str, float]:
        """Throughput since the last report; this rank stands for all."""
        seconds = time.perf_counter() - self.start
        lengths = torch.cat(self.lengths)
        rates = {
            "perf/samples_per_second": self.samples * ranks / seconds,
            "perf/tokens_per_second": int(lengths.sum()) * ranks / seconds,
            "perf/data_wait": self.waited / seconds,
        }
        if self.costs is not None:
            rates |= _shares(self.costs, lengths, seconds)
        return rates

    def caption_tokens(self) -> list[int]:
        """Lengths of the captions of this rank."""
        found: list[int] = torch.cat(self.lengths).tolist()
        return found

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


def _shares(costs: Costs, lengths: Tensor, seconds: float) -> dict[str, float]:
    """Padding saved, memory, and model FLOPs utilisation where the device's peak is known."""
    found = {"perf/padding_saved": 1 - float(lengths.sum()) / (len(lengths) * costs.context_length)}
    if costs.device.type == "cuda":
        found["perf/memory_gb"] = torch.cuda.max_memory_allocated(costs.device) / 1e9
    else:  # of this process, without the loader's workers
        found["perf/memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if costs.peak is not None:
        found["perf/mfu"] = costs.flops(len(lengths), lengths) / seconds / costs.peak
    return found


def rewind(path: Path, step: int) -> None:
    """Drop the rows after `step` steps: a resumed run takes those steps again. A run that begins
    drops all, since it may report before its first step, too."""
    if path.is_file():
        rows = read_metrics(path) if step else []
        kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= step]
        write_text(path, "".join(kept))


def _phrases(metrics: Mapping[str, float]) -> Iterator[str]:
    """The numbers that a person follows, shortest first."""
    for key, form in (
        ("train/loss", "loss {:.3f}"),
        ("perf/samples_per_second", "{:.0f} samples/s"),
        ("perf/mfu", "{:.0%} MFU"),
        ("perf/data_wait", "{:.0%} waiting for data"),
        ("data/broken", "{:.0f} broken"),
    ):
        if metrics.get(key):
            yield form.format(metrics[key])
    for key, value in metrics.items():
        if key.startswith("val/") and key.endswith("@1"):
            yield f"{key} {value:.1%}"
        if key.startswith("val/bits_per_character/"):
            yield f"{key.removeprefix('val/')} {value:.3f}"


def _wandb_run(
    folder: Path, config: ReportConfig, run_config: dict[str, Any], warn: Callable[[str], None]
) -> Any:
    """A run whose id is kept in the folder, so that curves go on after a restart."""
    if config.wandb == "disabled":
        return None
    import wandb  # slow to import, and needed only here

    id_file = folder / "wandb_id"
    if not id_file.is_file():
        id_file.write_text(uuid.uuid4().hex[:12])
    settings: dict[str, Any] = {
        "project": config.project,
        "entity": config.entity or None,
        "name": folder.name,
        "id": id_file.read_text().strip(),
        "dir": str(folder),
        "config": run_config,
        # The end of a run doesn't wait for ever for a server that went away: what was not sent is
        # in the folder, for `wandb sync`.
        "settings": wandb.Settings(
            console="off", init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT
        ),
    }
    try:
        run = wandb.init(
            **settings,
            mode=config.wandb,
            resume="allow" if config.wandb == "online" else None,
        )
    except wandb.errors.UsageError as error:
        raise UserError(
            f"report.wandb={config.wandb}: {error} Run `wandb login`, or set report.wandb=offline"
        ) from None
    except wandb.errors.CommError as error:
        reason = str(error).splitlines()[0]
        warn(
            f"Weights & Biases can't be reached ({reason}); this run goes on offline, "
            f"send it later with `wandb sync {folder}/wandb/offline-run-*`"
        )
        wandb.teardown()
        run = wandb.init(**settings, mode="offline")
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _cell(value: str | float | Image.Image) -> Any:
    """A cell as Weights & Biases wants it."""
    import wandb

    return wandb.Image(value) if isinstance(value, Image.Image) else value
