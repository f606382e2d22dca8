"""From a plan to a shard folder: runs what is not yet done, then writes index and manifest.

Every stage that makes shards plans deterministic units (units.py) and hands them to `build`. A unit
whose sidecar carries the same fingerprint is skipped, so a killed run continues where it was; a
unit that fails stops no other. The manifest comes last, and only when all units are done.
"""

import hashlib
import json
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from rich.console import Console

from data_prep.images import ImageRules
from data_prep.progress import Meter
from data_prep.ray_runner import RayWorkers
from data_prep.runners import Outcomes, attempt_all, local_workers, shown
from data_prep.shards import FORMAT, SPLITS, VERSION
from data_prep.slurm import Job, SlurmOptions, submit, write_job
from data_prep.units import (
    Plan,
    Produce,
    Unit,
    UnitMaker,
    UnitReport,
    claim,
    finish,
    follow,
    prepare,
)
from vlp.config import to_dict
from vlp.splits import hash_fraction

__all__ = [
    "BuildConfig",
    "OutputConfig",
    "Plan",
    "Produce",
    "Unit",
    "build",
    "fingerprint",
    "make_units",
    "provenance",
    "split_of",
]

BUILD = 2
"""Raise it when a change of the code changes what shards hold: finished units are then redone."""


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What all stages that write shards have in common: where, and by which workers."""

    NOT_PROVENANCE: ClassVar[frozenset[str]] = frozenset(
        {"out", "workers", "runner", "retries", "report_every", "ray_address", "slurm"}
    )
    """Keys that decide where and how fast, not what the shards hold; stages add theirs."""

    out: str
    """Folder for the shards; a run that was killed continues in it."""
    workers: int = 0
    """Worker processes; 0 takes one for each core, 1 works in the main process itself. Under Slurm
    and Ray, slurm.cpus and Ray's cluster decide."""
    runner: Literal["local", "slurm", "ray"] = "local"
    """`local` works on this machine, `slurm` submits an array of jobs and a job that finishes,
    `ray` uses a Ray cluster; the shards are the same. See docs/runners.md."""
    retries: int = 2
    """How often a unit that failed, or whose worker was killed, is tried again."""
    report_every: float = 30.0
    """Seconds between two lines of progress where the output is no terminal."""
    ray_address: str = ""
    """Ray cluster for runner=ray; empty takes RAY_ADDRESS, or starts Ray on this machine."""
    slurm: SlurmOptions = field(default_factory=SlurmOptions)

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers={self.workers}: set 0 (all cores) or more")
        if self.retries < 0:
            raise ValueError(f"retries={self.retries}: set 0 or more")
        if self.report_every <= 0:
            raise ValueError(f"report_every={self.report_every}: set a number of seconds above 0")


@dataclass(frozen=True, kw_only=True)
class BuildConfig(OutputConfig):
    """What all stages that make shards from images and captions have in common."""

    seed: int = 0
    """Decides the splits and the order of samples."""
    val_fraction: float = 0.05
    """Share of the articles (patients, groups) that goes to the validation split."""
    test_fraction: float = 0.05
    """Share of the articles (patients, groups) that goes to the test split."""
    short_side: int = 512
    """Larger images are scaled so that their shorter side has this many pixels."""
    min_side: int = 32
    """Images with a shorter side below this many pixels are rejected."""
    max_pixels: int = 100_000_000
    """Images that declare more pixels than this are rejected before they are decoded."""
    min_caption: int = 5
    """Captions with fewer characters are rejected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.val_fraction, self.test_fraction) < 0:
            raise ValueError("val_fraction and test_fraction: set both to 0 or more")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction: set them below 1, train needs the rest")
        if not 1 <= self.min_side <= self.short_side:
            raise ValueError("min_side: set it between 1 and short_side")

    def image_rules(self) -> ImageRules:
        """What images.py needs to know."""
        return ImageRules(
            short_side=self.short_side, min_side=self.min_side, max_pixels=self.max_pixels
        )


def split_of(config: BuildConfig, group: str) -> str:
    """The split of an article, patient or other group; adding other groups never changes it."""
    u = hash_fraction(config.seed, group)
    if u < config.test_fraction:
        return "test"
    return "val" if u < config.test_fraction + config.val_fraction else "train"


def fingerprint(*parts: Any) -> str:
    """SHA-256 over the JSON form of `parts`; dataclasses count as dictionaries."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=_as_dict)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _as_dict(value: Any) -> dict[str, Any]:
    # dataclasses.asdict copies deeply, which takes minutes for millions of articles.
    if not is_dataclass(value):
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return {entry.name: getattr(value, entry.name) for entry in fields(value)}


def provenance(config: OutputConfig) -> dict[str, Any]:
    """The settings that decide what the shards hold."""
    return {
        key: value for key, value in to_dict(config).items() if key not in config.NOT_PROVENANCE
    }


def make_units(
    config: OutputConfig, stage: str, splits: dict[str, list[Any]], size: int
) -> tuple[Unit, ...]:
    """Cut each split's items into units of at most `size`, evenly, in the order given.

    Items are dataclasses that hold all that identifies them, size and time of their files included.
    """
    units = []
    settings = provenance(config)
    for split in SPLITS:
        items = splits.get(split, [])
        count = -(-len(items) // size)
        for number in range(count):
            part = tuple(items[len(items) * number // count : len(items) * (number + 1) // count])
            mark = fingerprint(FORMAT, VERSION, BUILD, stage, settings, part)
            units.append(Unit(f"{split}-{number:05d}", split, part, mark))
    return tuple(units)


def build(config: OutputConfig, plan: Plan, produce: Produce) -> dict[str, Any] | None:
    """Run the units that are not done, write index, rejects and manifest, print a summary.

    Returns:
        The manifest; None where the work was handed to Slurm.

    Raises:
        UnitsFailed: units failed in every attempt; the others are done, and there is no manifest.
        UserError: another run works in `out`, or there is not one sample.
    """
    out, console, settings = Path(config.out), Console(), provenance(config)
    mark = fingerprint(plan.stage, [(unit.name, unit.fingerprint) for unit in plan.units])
    with claim(out, plan) as lock:
        pending = prepare(out, plan, mark)
        if done := len(plan.units) - len(pending):
            console.print(f"{done} of {len(plan.units)} units were done before")
        if not pending or config.runner != "slurm":
            if pending:
                outcomes = _outcomes(config, UnitMaker(out, config, produce, lock), pending)
                meter = Meter(len(pending), plan.noun)
                follow(out, shown(outcomes, meter, console, config.report_every), len(plan.units))
            return finish(out, plan, settings, console)
        job = Job(out.resolve(), mark, plan, settings, config, produce)
        folder = write_job(job, pending)
    submit(folder, config.slurm, console)  # after the lock: the jobs may start at once
    return None


def _outcomes(
    config: OutputConfig, maker: UnitMaker, pending: list[Unit]
) -> Outcomes[Unit, UnitReport]:
    if config.runner == "ray":
        return attempt_all(RayWorkers(maker, config.ray_address), pending, config.retries)
    return attempt_all(local_workers(maker, config.workers), pending, config.retries)
