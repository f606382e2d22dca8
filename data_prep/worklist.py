"""Which articles a run is about: from an inventory, a list of PMC numbers, a search or a folder.

The list is frozen into the output, so that a run that is continued or repeated works on the same
article versions although the bucket changes every day.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.bucket import Store, article_folders, state_of_entries
from data_prep.fetch import BucketItem
from data_prep.inventory import latest_versions, read_inventory
from data_prep.shards import Reject, atomic
from data_prep.sources import FileProblem
from vlp.config import UserError

T = TypeVar("T")
R = TypeVar("R")

WORK_LIST = "worklist.parquet"
SUPERSEDED = "article superseded by a later version"
_ID = re.compile(r"(?:PMC)?(\d{1,18})(?:\.(\d{1,9}))?", re.I)
_NAME = re.compile(r"PMC(\d+)\.(\d+)")
_AT_ONCE = 64

SCHEMA = pa.schema(
    [
        pa.field("article", pa.string(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("record", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""article PMC<n>.<v>; state and record as in BucketItem; reason why it is not read, else empty."""


@dataclass(frozen=True)
class WorkList:
    """Rows of SCHEMA, and what they were made from."""

    rows: pa.Table
    origin: dict[str, Any]

    def items(self) -> list[BucketItem]:
        """The article versions to read."""
        rows = self.rows.filter(pc.equal(self.rows["reason"], ""))
        columns = (rows[name].to_pylist() for name in ("article", "state", "record"))
        return [BucketItem(*row) for row in zip(*columns, strict=True)]

    def rejects(self) -> Iterator[Reject]:
        """Those that are not to be read, and why."""
        rows = self.rows.filter(pc.not_equal(self.rows["reason"], ""))
        for batch in rows.to_batches(max_chunksize=1 << 16):
            for row in batch.to_pylist():
                yield Reject(row["article"], "", row["article"], "plan", row["reason"])

    def freeze(self, path: Path) -> None:
        """Write the list, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        table = self.rows.replace_schema_metadata({"origin": json.dumps(self.origin)})
        with atomic(path) as temporary:
            pq.write_table(table, temporary)


def read_frozen(path: Path) -> WorkList | None:
    """The list that an earlier run froze, if there is one.

    Raises:
        UserError: the file is none of ours.
    """
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
        origin = json.loads(table.schema.metadata[b"origin"])
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); delete it to list anew") from None
    return WorkList(table.replace_schema_metadata(None).cast(SCHEMA), origin)


async def list_articles(
    store: Store, source: str, inventory: str, ids: Sequence[str]
) -> tuple[pa.Table, dict[str, Any]]:
    """Rows of SCHEMA in the order of PMC numbers, and what to remember of their origin.

    Args:
        store: where the bucket is.
        source: what the user calls it.
        inventory: see `read_inventory`; empty: the store is asked for its folders.
        ids: PMC numbers, with version or without; empty: all that there are.
    """
    if inventory:
        rows, name = await read_inventory(store, inventory)
        return _from_inventory(rows, ids), {"inventory": name, "inventory_rows": len(rows)}
    problem: Exception | None = None
    try:
        rows = await _from_folders(store, ids)
    except* FileProblem as errors:
        problem = errors.exceptions[0]
    if problem is not None:  # raised above, Python 3.11.2 would put it into a group
        raise UserError(f"{source}: cannot be listed: {problem}")
    if not len(rows):
        raise UserError(
            f"{source}: holds no PMC<n>.<v> folders; "
            "for articles in another layout use `python -m data_prep jats`"
        )
    return rows, {}


def read_ids(path: Path) -> list[str]:
    """The PMC numbers in a file, one a line: PMC123, PMC123.2 or 123; `#` begins a comment.

    Raises:
        UserError: no such file, or a line that is none of these.
    """
    if not path.is_file():
        raise UserError(f"ids={path}: no such file")
    found: dict[str, None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        text = line.partition("#")[0].strip()
        match = _ID.fullmatch(text)
        if text and match is None:
            raise UserError(f"{path}, line {number}: '{text[:40]}' is no PMC number (PMC123)")
        if match:
            found[f"PMC{match[1]}" + (f".{match[2]}" if match[2] else "")] = None
    if not found:
        raise UserError(f"ids={path}: holds no PMC number")
    return list(found)


def digest(ids: Iterable[str]) -> str:
    """A hash by which lists of ids are told apart."""
    return hashlib.sha256("\n".join(sorted(ids)).encode("ascii")).hexdigest()[:16]


def _from_inventory(rows: pa.Table, ids: Sequence[str]) -> pa.Table:
    if not ids:
        latest, others = latest_versions(rows)
        return _join([_named(latest, ""), _named(others, SUPERSEDED)])
    wanted = [match for match in map(_ID.fullmatch, ids) if match]
    numbers = pa.array(sorted({int(m[1]) for m in wanted if not m[2]}), pa.int64())
    latest, _ = latest_versions(rows.filter(pc.is_in(rows["number"], numbers)))
    exact = pa.array(sorted({f"PMC{m[1]}.{m[2]}" for m in wanted if m[2]}), pa.string())
    some = rows.filter(pc.is_in(rows["number"], pa.array({int(m[1]) for m in wanted if m[2]})))
    named = _named(some, "")
    parts = [_named(latest, ""), named.filter(pc.is_in(named["article"], exact))]
    found = set(latest["number"].to_pylist())
    missing = [m[0] for m in wanted if not m[2] and int(m[1]) not in found]
    missing += sorted(set(exact.to_pylist()) - set(parts[1]["article"].to_pylist()))
    return _join([*parts, _rejected(missing, "article not in the inventory")])


def _named(rows: pa.Table, reason: str) -> pa.Table:
    """Inventory rows as rows of SCHEMA."""
    version = pc.cast(rows["version"], pa.string())
    names = pc.binary_join_element_wise("PMC", pc.cast(rows["number"], pa.string()), "")
    names = pc.binary_join_element_wise(names, version, ".")
    where = pc.if_else(rows["in_metadata"], "metadata", names)
    record = pc.binary_join_element_wise(
        pc.binary_join_element_wise(where, names, "/"), "json", "."
    )
    reasons = pa.chunked_array([pa.array([reason] * len(rows), pa.string())])
    return pa.Table.from_arrays([names, rows["etag"], record, reasons], schema=SCHEMA)


async def _from_folders(store: Store, ids: Sequence[str]) -> pa.Table:
    prefixes = [name if "." in name else f"{name}." for name in ids] or ["PMC"]
    found = await map_concurrently(store.folders, prefixes)
    names, superseded, missing = [], [], []
    for prefix, folders in zip(prefixes, found, strict=True):
        versions = article_folders(folders)
        if ids and prefix[-1] != ".":
            versions = [name for name in versions if name == prefix]
        missing += [] if versions else [prefix.rstrip(".")]
        last: dict[str, tuple[int, str]] = {}
        for name in versions:
            pmcid, _, version = name.partition(".")
            last[pmcid] = max(last.get(pmcid, (-1, "")), (int(version), name))
        kept = {name for _, name in last.values()}
        names += sorted(kept)
        superseded += sorted(set(versions) - kept)
    names = list(dict.fromkeys(names))
    listings = await map_concurrently(store.listing, [f"{name}/" for name in names])
    states = [state_of_entries(entries) for entries in listings]
    columns = [names, states, [""] * len(names), [""] * len(names)]
    work = pa.Table.from_arrays([pa.array(c, pa.string()) for c in columns], schema=SCHEMA)
    others = [_rejected(superseded, SUPERSEDED)]
    return _join(
        [work, *others, *([_rejected(missing, "article not in the bucket")] if ids else [])]
    )


def _rejected(names: Sequence[str], reason: str) -> pa.Table:
    rows = [{"article": n, "state": "", "record": "", "reason": reason} for n in names]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _join(tables: Sequence[pa.Table]) -> pa.Table:
    """All rows, sorted by article."""
    return pa.concat_tables(tables).sort_by("article").combine_chunks()


async def map_concurrently(work: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
    """Results of `work(item)` in the items' order, `_AT_ONCE` of them under way."""
    results: list[Any] = [None] * len(items)
    coming = iter(enumerate(items))

    async def worker() -> None:
        for position, item in coming:
            results[position] = await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(_AT_ONCE, len(items))):
            group.create_task(worker())
    return results
