"""Whole training runs: scaling over ranks, what checkpoints cost, how soon a resumed run has data.

    python -m benchmarks.runs        # 5 minutes

Claims: two ranks share the work nearly as well as two runs that know nothing of each other;
training waits for a checkpoint only while it is copied; and the first batch after resuming comes as
soon in the middle of an epoch as at the start, since no sample is read again to find the place.

Runs are `train.py` under torchrun on generated figures (corpus.py), with towers like the demo's and
one thread per rank, which loads its own batches; a batch is split among the ranks. Samples per
second are the run's own, from metrics.jsonl, without the first two rows. Two separate runs side by
side show what the machine gives: the cores of a virtual machine may be threads of one.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.corpus import make_corpus
from benchmarks.measure import Result, Row, interleaved, machine, median_row, paired_ratio, report
from vlp.config import UserError, load_config, run_program
from vlp.curves import read_metrics
from vlp.data.loader import DataConfig, Mixture, RankPositions, SourceConfig, TrainSamples, batches
from vlp.data.text import CaptionTokenizer

ROOT = Path(__file__).resolve().parents[1]
TOWERS = (
    *("model.embed_dim=128", "model.image.name=test_vit", "model.image.size=160"),
    *("model.text.width=128", "model.text.layers=3", "model.text.heads=4"),
    *("model.text.mlp_width=256", "model.text.context_length=128", "model.text.proj=linear"),
)
BATCH, LOG = 64, 10


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """Measure training runs on this machine's CPU."""

    samples: int = 400
    """Generated pairs."""
    steps: int = 40
    """Steps of each run."""
    repetitions: int = 2
    """Runs of each kind."""
    seed: int = 0
    """Seed of figures and captions."""
    work: str = "build/bench"
    """Folder for the generated shards and the runs."""
    out: str = ""
    """JSON file for the result; empty writes none."""

    def __post_init__(self) -> None:
        if self.steps < 4 * LOG or self.repetitions < 1:
            raise ValueError(f"steps, repetitions: set {4 * LOG} or more, and 1 or more")
        if self.samples < BATCH:
            raise ValueError(f"samples={self.samples}: set {BATCH} or more")


def train(shards: Path, work: Path, steps: int, ranks: int, runs: int) -> list[Path]:
    """Train `runs` models side by side, on `ranks` processes each; returns their metrics."""
    folders = [work / f"run-{number}" for number in range(runs)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    settings = [
        *(f"runs={work}", f"data.sources.bench.path={shards}", *TOWERS, "data.workers=0"),
        *(f"train.batch_size={BATCH}", f"train.steps={steps}", f"train.log_every={LOG}"),
        *("train.eval_every=0", f"train.checkpoint_every={2 * LOG}", "train.device=cpu"),
    ]
    running = [
        subprocess.Popen(
            [*torchrun, f"--nproc-per-node={ranks}", "train.py", f"name={folder.name}", *settings],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for folder in folders
    ]
    said = [process.communicate()[0] for process in running]
    for process, text in zip(running, said, strict=True):
        if process.returncode:
            raise UserError(f"train.py failed: {text.strip()[-500:]}")
    return [folder / "metrics.jsonl" for folder in folders]


def rate(metrics: list[Path]) -> float:
    """Samples a second of all runs together."""
    return sum(statistics.median(_values(path, "perf/samples_per_second")[2:]) for path in metrics)


def _values(path: Path, key: str) -> list[float]:
    return [row[key] for row in read_metrics(path) if key in row]


def first_batch(shards: Path, tokenizer: Path, step: int) -> float:
    """Seconds until a loader that starts at a step gives its first batch, its worker included."""
    data = DataConfig(sources={"bench": SourceConfig(path=str(shards))}, workers=1)
    start = time.perf_counter()
    mixture = Mixture.open(data, 0)
    samples = TrainSamples(mixture, CaptionTokenizer(tokenizer, 128), 160, (0.9, 1.0))
    found = batches(samples, RankPositions(step, step + 1, BATCH, rank=0, ranks=1), data)
    next(iter(found))
    return time.perf_counter() - start


def measure(config: RunsConfig) -> Result:
    """All of it."""
    facts = machine()
    corpus = make_corpus(config.work, config.samples, config.seed)
    shards, work = Path(corpus.original).resolve(), (Path(config.work) / "runs").resolve()
    plans = {"1 rank": (1, 1), "2 ranks": (2, 1), "2 runs of 1 rank": (1, 2)}
    checkpoints: list[tuple[float, float]] = []

    def run(ranks: int, runs: int) -> float:
        metrics = train(shards, work, config.steps, ranks, runs)
        seconds = _values(metrics[0], "perf/checkpoint_seconds")
        stalls = _values(metrics[0], "perf/checkpoint_stall")
        if (ranks, runs) == (1, 1):
            checkpoints.extend(zip(seconds, stalls, strict=True))
        return rate(metrics)

    contenders = {name: partial(run, *plan) for name, plan in plans.items()}
    found = interleaved(contenders, config.repetitions)
    rows = [
        median_row(f"training, {name}", "samples/s", v, paired_ratio(v, found["1 rank"]))
        for name, v in found.items()
    ]
    share = [a / b for a, b in zip(found["2 ranks"], found["2 runs of 1 rank"], strict=True)]
    rows.append(median_row("training, 2 ranks, share of what 2 runs reach", "", share))
    rows.append(median_row("checkpoint, until it is on the disk", "s", [c for c, _ in checkpoints]))
    rows.append(median_row("checkpoint, training waits", "s", [stall for _, stall in checkpoints]))
    size = sum(f.stat().st_size for f in _newest(work / "run-0" / "checkpoints").iterdir())
    rows.append(Row("checkpoint, size", "MB", size / 1e6))
    tokenizer = work / "run-0" / "tokenizer"
    middle = 1_000_003  # steps; far into some epoch, and not at its start
    starts = {
        "step 0": partial(first_batch, shards, tokenizer, 0),
        f"step {middle:,}": partial(first_batch, shards, tokenizer, middle),
    }
    first_batch(shards, tokenizer, 0)  # fills the page cache
    seconds = interleaved(starts, max(5, config.repetitions))
    rows += [
        median_row(f"first batch of {BATCH}, from {name}", "s", v) for name, v in seconds.items()
    ]
    return Result("runs", facts, tuple(rows))


def _newest(folder: Path) -> Path:
    return max(path for path in folder.glob("step-*") if path.suffix == "")


def main(argv: list[str]) -> None:
    """Measure and print."""
    config = load_config(RunsConfig, argv, "python -m benchmarks.runs")
    report([measure(config)], config.out)


if __name__ == "__main__":
    run_program(main)
