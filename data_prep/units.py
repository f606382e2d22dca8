"""Units of work and what they leave on disk: a shard each, and sidecars that say it is done.

A unit is one shard of one split. Its sidecars in `units/` are NAME.json (fingerprint and manifest
entry, written last), NAME.parquet (index rows), NAME.rejects.parquet (where there are any) and,
while it keeps failing, NAME.error. All files appear under their names only when they are whole.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from data_prep.locks import FolderLock
from data_prep.runners import Failed, Outcomes, UnitsFailed
from data_prep.shards import (
    INDEX,
    INDEX_SCHEMA,
    MANIFEST,
    REJECT_SCHEMA,
    REJECTS,
    SPLITS,
    Reject,
    Sample,
    ShardEntry,
    ShardWriter,
    atomic,
    index_table,
    reject_tables,
    write_json,
    write_manifest,
    write_table,
)
from vlp.config import UserError

SIDECARS = "units"
_LOCK, _PLAN = "LOCK", "PLAN"
_SHOWN_FAILURES = 20
_UNIT_NAME = re.compile(rf"(?:{'|'.join(SPLITS)})-\d{{5,}}")


@dataclass(frozen=True)
class Unit:
    """The work for one shard."""

    name: str
    """Name of the shard without `.tar`: SPLIT-NUMBER."""
    split: str
    items: tuple[Any, ...]
    fingerprint: str
    """Hash of everything that decides the shard's content."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class UnitReport:
    """What a finished unit tells the display."""

    items: int
    bytes: int
    samples: int
    rejected: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All units of a run, and what the manifest will say about it."""

    stage: str
    units: tuple[Unit, ...]
    inputs: dict[str, Any]
    rejects: Iterable[Reject] = field(default=())
    """What was dropped before any unit could see it; picklable, and read once."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """More entries for the manifest."""
    noun: str = "articles"
    """What the units' items are called on the display."""


Produce = Callable[[Any, Unit], Iterator[Sample | Reject]]
"""Turns a unit into samples and rejects; a module-level function, since it goes to processes."""


@dataclass(frozen=True)
class UnitMaker:
    """Makes one unit's shard and sidecars; it goes to worker processes, hence the lock in it."""

    out: Path
    config: Any
    produce: Produce
    lock: FolderLock

    def __call__(self, unit: Unit) -> UnitReport:
        """Write the shard and, after it, its sidecars."""
        for suffix in (".json", ".error", ".rejects.parquet"):
            # Old ones must not vouch for the new shard.
            _sidecar(self.out, unit.name, suffix).unlink(missing_ok=True)
        shard = self.out / f"{unit.name}.tar"
        rejects: list[Reject] = []
        with ShardWriter(shard, unit.split) as writer:
            for result in self.produce(self.config, unit):
                if isinstance(result, Reject):
                    rejects.append(result)
                else:
                    writer.write(result)
        entry: ShardEntry | None = writer.entry()
        if not writer.rows:
            shard.unlink()
            entry = None
        tables = {".parquet": _sidecar(self.out, unit.name, ".parquet")}
        write_table(tables[".parquet"], INDEX_SCHEMA, [index_table(writer.rows)])
        if rejects:
            tables[".rejects.parquet"] = _sidecar(self.out, unit.name, ".rejects.parquet")
            write_table(tables[".rejects.parquet"], REJECT_SCHEMA, reject_tables(rejects))
        content = {
            "fingerprint": unit.fingerprint,
            "shard": asdict(entry) if entry else None,
            "tables": {suffix: path.stat().st_size for suffix, path in tables.items()},
        }
        write_json(_sidecar(self.out, unit.name, ".json"), content)
        size = entry.bytes if entry else 0
        return UnitReport(len(unit.items), size, len(writer.rows), len(rejects))


def claim(out: Path, plan: Plan) -> FolderLock:
    """The lock for a run that is to write into `out`, which is made if need be.

    Raises:
        UserError: `out` is no folder or holds shards of another origin.
    """
    sidecars = out / SIDECARS
    known = _ours(out) | ({unit.name for unit in plan.units} if sidecars.is_dir() else set())
    strangers = sorted(path.name for path in out.glob("*.tar") if path.stem not in known)
    if strangers:
        raise UserError(f"{out}: holds {strangers[0]} of another origin; choose an empty folder")
    try:
        sidecars.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: cannot be made a folder: {error.strerror}") from None
    return folder_lock(out)


def folder_lock(out: Path, *, shared: bool = False) -> FolderLock:
    """The lock of a folder that has been claimed; array tasks share it."""
    return FolderLock(out / SIDECARS / _LOCK, shared=shared)


def prepare(out: Path, plan: Plan, mark: str) -> list[Unit]:
    """Clear what earlier runs left behind and is not part of the plan; return what is to do.

    To be called under the lock. `mark` stays in the folder as the plan's name.
    """
    sidecars = out / SIDECARS
    _sweep(out)
    for error in sidecars.glob("*.error"):
        error.unlink()
    ours, planned = _ours(out), {unit.name for unit in plan.units}
    pending = unfinished(out, plan.units)
    if pending or ours - planned:
        for name in (MANIFEST, INDEX, REJECTS):  # the manifest first: it vouches for the others
            (out / name).unlink(missing_ok=True)
    for name in ours - planned:
        (out / f"{name}.tar").unlink(missing_ok=True)
        for suffix in (".rejects.parquet", ".parquet", ".json"):
            _sidecar(out, name, suffix).unlink(missing_ok=True)
    with atomic(sidecars / _PLAN) as temporary:
        temporary.write_text(f"{mark}\n", encoding="ascii")
    return pending


def check_plan(out: Path, mark: str) -> None:
    """See that the folder's plan is still the one of this name.

    Raises:
        UserError: another run has planned anew since.
    """
    path = out / SIDECARS / _PLAN
    if not path.is_file() or path.read_text(encoding="ascii").strip() != mark:
        raise UserError(f"{out}: a later run has planned this folder anew; nothing to do here")


def unfinished(out: Path, units: Iterable[Unit]) -> list[Unit]:
    """Units whose shard or sidecars are missing or of other content."""
    return [unit for unit in units if not _is_done(out, unit)]


def follow(out: Path, outcomes: Outcomes[Unit, UnitReport], total: int) -> None:
    """Wait for all units; write the error of each that failed for good beside its sidecars.

    Raises:
        UnitsFailed: at the end, naming them.
    """
    failed = []
    with closing(outcomes):
        for outcome in outcomes:
            if isinstance(outcome, Failed) and outcome.final:
                failed.append(outcome.item)
                content = {
                    "unit": outcome.item.name,
                    "attempts": outcome.attempts,
                    "error": outcome.problem.error,
                    "details": outcome.problem.details,
                }
                write_json(_sidecar(out, outcome.item.name, ".error"), content)
    if failed:
        raise failure_report(out, sorted(failed, key=lambda unit: unit.name), total)


def failure_report(out: Path, missing: Sequence[Unit], total: int) -> UnitsFailed:
    """What to tell of the units that a run could not make."""
    lines = [
        f"{len(missing)} of {total} units failed, so no manifest was written; "
        f"the same command again makes only these. Tracebacks are in {out / SIDECARS}/*.error"
    ]
    for unit in missing[:_SHOWN_FAILURES]:
        path = _sidecar(out, unit.name, ".error")
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            lines.append(f"  {unit.name}: {content['error']} ({content['attempts']} attempts)")
        else:
            lines.append(f"  {unit.name}: its job ended before it was made; see the job's log")
    if len(missing) > _SHOWN_FAILURES:
        lines.append(f"  and {len(missing) - _SHOWN_FAILURES} more")
    return UnitsFailed("\n".join(lines))


def finish(out: Path, plan: Plan, settings: dict[str, Any], console: Console) -> dict[str, Any]:
    """Join the sidecars of a finished run into index, rejects and manifest; print a summary.

    Memory is bounded by one row group and the list of shards. The units' items are not needed.

    Raises:
        UserError: there is not one sample.
    """
    _sweep(out)  # a worker that was killed in this run leaves its half shard
    units = sorted(plan.units, key=lambda unit: unit.name)
    write_table(
        out / INDEX,
        INDEX_SCHEMA,
        (_read(_sidecar(out, unit.name, ".parquet"), INDEX_SCHEMA) for unit in units),
    )
    contents = (_content(out, unit.name) for unit in units)
    shards = [ShardEntry(**content["shard"]) for content in contents if content["shard"]]
    manifest = write_manifest(
        out,
        shards,
        _all_rejects(out, plan.rejects, units),
        stage=plan.stage,
        config=settings,
        inputs=plan.inputs,
        extra=plan.manifest,
    )
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


def _sweep(out: Path) -> None:
    """Remove half-written files; under the lock nobody is still writing them."""
    for leftover in (*out.glob("*.tmp"), *(out / SIDECARS).glob("*.tmp")):
        leftover.unlink()


def _sidecar(out: Path, name: str, suffix: str) -> Path:
    return out / SIDECARS / f"{name}{suffix}"


def _ours(out: Path) -> set[str]:
    """Names of units that earlier runs made, or had begun when they were killed."""
    sidecars = out / SIDECARS
    names = {path.stem for path in sidecars.glob("*.json")}
    if (sidecars / _PLAN).is_file():
        names |= {path.stem for path in out.glob("*.tar") if _UNIT_NAME.fullmatch(path.stem)}
    return names


def _content(out: Path, name: str) -> dict[str, Any]:
    text = _sidecar(out, name, ".json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def _is_done(out: Path, unit: Unit) -> bool:
    try:
        content = _content(out, unit.name)
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return False  # a power cut can leave a file without its content
    if content.get("fingerprint") != unit.fingerprint:
        return False
    size = content["shard"]["bytes"] if content["shard"] else None
    return _size(out / f"{unit.name}.tar") == size and all(
        _size(_sidecar(out, unit.name, suffix)) == size
        for suffix, size in content["tables"].items()
    )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _all_rejects(out: Path, first: Iterable[Reject], units: Sequence[Unit]) -> Iterator[pa.Table]:
    yield from reject_tables(first)
    for unit in units:
        if ".rejects.parquet" in _content(out, unit.name)["tables"]:
            yield _read(_sidecar(out, unit.name, ".rejects.parquet"), REJECT_SCHEMA)


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    with pq.ParquetFile(path) as file:  # read_table would look for a whole dataset, twice as slow
        return file.read().cast(schema)
