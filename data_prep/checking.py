"""Compares shards with their manifest and their index."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from data_prep.runners import core_count, map_unordered
from data_prep.shards import INDEX, INDEX_SCHEMA, read_manifest
from vlp.config import UserError


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Sizes and checksums of all shards against the manifest, and the index against both.

    Example: python -m data_prep check shards/pmc
    """

    source: str
    """Folder with shards, index.parquet and manifest.json."""
    workers: int = 0
    """Worker processes; 0 takes one for each core."""


def run(config: CheckConfig) -> None:
    """The stage `check`.

    Raises:
        UserError: names every shard that differs, and how.
    """
    folder, console = Path(config.source), Console()
    manifest = read_manifest(folder)
    shards: list[dict[str, Any]] = manifest["shards"]
    problems = _index_problems(folder, shards)
    with console.status(f"reading {len(shards)} shards"):
        found = map_unordered(
            partial(_shard_problem, folder), shards, config.workers or core_count()
        )
        problems += sorted(problem for problem in found if problem)
    if problems:
        raise UserError(f"{folder}: " + "; ".join(problems))
    listed = {shard["name"] for shard in shards}
    for path in sorted(folder.rglob("*.tar")):
        if path.relative_to(folder).as_posix() not in listed:
            print(f"{path.name}: not in the manifest, so readers pass over it")
    size = sum(shard["bytes"] for shard in shards) / 1e6
    print(f"OK: {len(shards)} shards, {manifest['samples']:,} samples, {size:,.1f} MB")


def _shard_problem(folder: Path, shard: dict[str, Any]) -> str | None:
    path = folder / shard["name"]
    if not path.is_file():
        return f"{shard['name']} is missing"
    if path.stat().st_size != shard["bytes"]:
        return (
            f"{shard['name']} has {path.stat().st_size} bytes, the manifest says {shard['bytes']}"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard["sha256"]:
        return f"{shard['name']} differs from its checksum in the manifest"
    return None


def _index_problems(folder: Path, shards: list[dict[str, Any]]) -> list[str]:
    """Columns, counts and byte ranges of index.parquet against the manifest."""
    path = folder / INDEX
    if not path.is_file():
        return [f"{INDEX} is missing"]
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        return [f"{INDEX} is not readable: {error}"]
    missing = [name for name in INDEX_SCHEMA.names if name not in table.column_names]
    if missing:
        return [f"{INDEX} lacks the columns {', '.join(missing)}"]
    sizes = {shard["name"]: shard["bytes"] for shard in shards}
    rows, outside = Counter(table["shard"].to_pylist()), set()
    for kind in ("image", "text", "json"):
        columns = (table[name].to_pylist() for name in ("shard", f"{kind}_offset", f"{kind}_size"))
        for shard, offset, size in zip(*columns, strict=True):
            if offset is not None and not 0 < offset <= offset + size <= sizes.get(shard, 0):
                outside.add(shard)
    problems = [f"{INDEX} points outside of {shard}" for shard in sorted(outside)]
    for shard in shards:
        if rows[shard["name"]] != shard["samples"]:
            problems.append(
                f"{INDEX} has {rows[shard['name']]} rows for {shard['name']}, "
                f"the manifest says {shard['samples']}"
            )
    return problems
