"""From a plan to a shard folder: runs what is not yet done, then writes index and manifest.

Every stage that makes shards plans deterministic units. A unit is one shard of one split, written
atomically together with its sidecar in `units/`; a unit whose sidecar carries the same fingerprint
is skipped, so a killed run continues where it was. The manifest comes last.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from data_prep.images import ImageRules
from data_prep.runners import core_count, run_units
from data_prep.shards import (
    FORMAT,
    INDEX,
    INDEX_SCHEMA,
    MANIFEST,
    REJECTS,
    SPLITS,
    VERSION,
    Reject,
    Sample,
    ShardEntry,
    ShardWriter,
    index_table,
    reject_tables,
    write_json,
    write_manifest,
    write_table,
)
from vlp.config import UserError, to_dict

BUILD = 1
"""Raise it when a change of the code changes what shards hold: finished units are then redone."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What all stages that make shards have in common."""

    NOT_PROVENANCE: ClassVar[frozenset[str]] = frozenset({"out", "workers"})
    """Keys that decide where and how fast, not what the shards hold; stages add theirs."""

    out: str
    """Folder for the shards; a run that was killed continues in it."""
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
    workers: int = 0
    """Worker processes; 0 takes one for each core."""

    def __post_init__(self) -> None:
        if min(self.val_fraction, self.test_fraction) < 0:
            raise ValueError("val_fraction and test_fraction: set both to 0 or more")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction: set them below 1, train needs the rest")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers}: set 0 (all cores) or more")
        if not 1 <= self.min_side <= self.short_side:
            raise ValueError("min_side: set it between 1 and short_side")

    def image_rules(self) -> ImageRules:
        """What images.py needs to know."""
        return ImageRules(
            short_side=self.short_side, min_side=self.min_side, max_pixels=self.max_pixels
        )


@dataclass(frozen=True)
class Unit:
    """The work for one shard."""

    name: str
    """Name of the shard without `.tar`: SPLIT-NUMBER."""
    split: str
    items: tuple[Any, ...]
    fingerprint: str
    """Hash of everything that decides the shard's content."""


@dataclass(frozen=True)
class UnitReport:
    """What a finished unit tells the progress bar."""

    samples: int
    rejected: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All units of a run, and what the manifest will say about it."""

    stage: str
    units: tuple[Unit, ...]
    inputs: dict[str, Any]
    rejects: tuple[Reject, ...] = field(default=())
    """What was dropped before any unit could see it."""


Produce = Callable[[Any, Unit], Iterator[Sample | Reject]]
"""Turns a unit into samples and rejects; a module-level function, since it goes to processes."""


def hash_fraction(seed: int, name: str) -> float:
    """A number in [0, 1) that depends on nothing but `seed` and `name`."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(config: BuildConfig, group: str) -> str:
    """The split of an article, patient or other group; adding other groups never changes it."""
    u = hash_fraction(config.seed, group)
    if u < config.test_fraction:
        return "test"
    return "val" if u < config.test_fraction + config.val_fraction else "train"


def fingerprint(*parts: Any) -> str:
    """SHA-256 over the JSON form of `parts`."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def provenance(config: BuildConfig) -> dict[str, Any]:
    """The settings that decide what the shards hold."""
    return {
        key: value for key, value in to_dict(config).items() if key not in config.NOT_PROVENANCE
    }


def make_units(
    config: BuildConfig, stage: str, splits: dict[str, list[Any]], size: int
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
            mark = fingerprint(FORMAT, VERSION, BUILD, stage, settings, [asdict(x) for x in part])
            units.append(Unit(f"{split}-{number:05d}", split, part, mark))
    return tuple(units)


def build(config: BuildConfig, plan: Plan, produce: Produce) -> dict[str, Any]:
    """Run the units that are not done, write index, rejects and manifest, print a summary.

    Returns:
        The manifest.
    """
    out, console = Path(config.out), Console()
    pending = _prepare(out, plan)
    done = len(plan.units) - len(pending)
    if done:
        console.print(f"{done} of {len(plan.units)} units were done before")
    work = partial(_make_unit, out, config, produce)
    for _ in run_units(work, pending, config.workers or core_count(), console):
        pass  # what a unit made is in its sidecar
    manifest = _finish(out, plan, provenance(config))
    print_summary(manifest, out, console)
    if not manifest["samples"]:
        raise UserError(f"{out}: no sample was written; the table above says why")
    return manifest


def print_summary(manifest: dict[str, Any], out: Path, console: Console) -> None:
    """A small table: samples and bytes for each split, then rejects by reason."""
    table = Table("split")
    for heading in ("shards", "samples", "MB"):
        table.add_column(heading, justify="right")
    for split in SPLITS:
        shards = [shard for shard in manifest["shards"] if shard["split"] == split]
        size = sum(shard["bytes"] for shard in shards) / 1e6
        table.add_row(split, f"{len(shards):,}", f"{manifest['splits'][split]:,}", f"{size:,.1f}")
    if manifest["rejected"]:
        table.add_section()
        for reason, count in manifest["rejected"].items():
            table.add_row(f"rejected: {reason}", "", f"{count:,}", "")
    console.print(table)
    console.print(f"written to {out}", soft_wrap=True)


def _prepare(out: Path, plan: Plan) -> list[Unit]:
    """Clear what earlier runs left behind and is not part of the plan; return what is to do."""
    sidecars = out / "units"
    planned = {unit.name for unit in plan.units}
    ours = {path.stem for path in sidecars.glob("*.json")}
    known = ours | planned if sidecars.is_dir() else set()
    strangers = sorted(path.name for path in out.glob("*.tar") if path.stem not in known)
    if strangers:
        raise UserError(f"{out}: holds {strangers[0]} of another origin; choose an empty folder")
    try:
        sidecars.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: cannot be made a folder: {error.strerror}") from None
    for leftover in (*out.glob("*.tmp"), *sidecars.glob("*.tmp")):
        leftover.unlink()
    pending = [unit for unit in plan.units if not _is_done(out, unit)]
    if pending or ours - planned:
        for name in (MANIFEST, INDEX, REJECTS):  # the manifest first: it vouches for the others
            (out / name).unlink(missing_ok=True)
    for name in ours - planned:
        for path in (sidecars / f"{name}.json", sidecars / f"{name}.parquet", out / f"{name}.tar"):
            path.unlink(missing_ok=True)
    return pending


def _is_done(out: Path, unit: Unit) -> bool:
    sidecar = out / "units" / f"{unit.name}.json"
    if not (sidecar.is_file() and sidecar.with_suffix(".parquet").is_file()):
        return False
    content = json.loads(sidecar.read_text(encoding="utf-8"))
    if content["fingerprint"] != unit.fingerprint:
        return False
    shard = out / f"{unit.name}.tar"
    size = content["shard"]["bytes"] if content["shard"] else None
    return size == (shard.stat().st_size if shard.is_file() else None)


def _make_unit(out: Path, config: BuildConfig, produce: Produce, unit: Unit) -> UnitReport:
    """Write one shard and, after it, its sidecar."""
    sidecar = out / "units" / f"{unit.name}.json"
    sidecar.unlink(missing_ok=True)  # an old one must not vouch for the new shard
    shard = out / f"{unit.name}.tar"
    rejects: list[Reject] = []
    with ShardWriter(shard, unit.split) as writer:
        for result in produce(config, unit):
            if isinstance(result, Reject):
                rejects.append(result)
            else:
                writer.write(result)
    entry: ShardEntry | None = writer.entry()
    if not writer.rows:
        shard.unlink()
        entry = None
    write_table(sidecar.with_suffix(".parquet"), INDEX_SCHEMA, [index_table(writer.rows)])
    shard_record = asdict(entry) if entry else None
    write_json(
        sidecar, {"fingerprint": unit.fingerprint, "shard": shard_record, "rejects": rejects}
    )
    return UnitReport(len(writer.rows), len(rejects))


def _finish(out: Path, plan: Plan, settings: dict[str, Any]) -> dict[str, Any]:
    """Join the sidecars into index.parquet, rejects.parquet and manifest.json."""
    shards: list[ShardEntry] = []
    rejects = list(plan.rejects)
    units = sorted(plan.units, key=lambda unit: unit.name)
    for unit in units:
        sidecar = json.loads((out / "units" / f"{unit.name}.json").read_text(encoding="utf-8"))
        rejects += [Reject(*row) for row in sidecar["rejects"]]
        if sidecar["shard"]:
            shards.append(ShardEntry(**sidecar["shard"]))
    write_table(out / INDEX, INDEX_SCHEMA, _unit_tables(out, units))
    return write_manifest(
        out, shards, reject_tables(rejects), stage=plan.stage, config=settings, inputs=plan.inputs
    )


def _unit_tables(out: Path, units: Sequence[Unit]) -> Iterable[pa.Table]:
    for unit in units:
        yield pq.read_table(out / "units" / f"{unit.name}.parquet", schema=INDEX_SCHEMA)
