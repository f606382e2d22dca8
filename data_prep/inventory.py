"""The bucket's daily inventory: which article versions there are, and the ETag of each one's JSON.

S3 writes it as a manifest.json and a few csv.gz files (bucket, key, date, ETag, without heading);
8 million rows are read in batches, so memory holds numbers, versions and ETags only.
"""

import asyncio
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from data_prep.bucket import Store
from data_prep.memory import Memory, Ticket
from data_prep.sources import FileProblem
from vlp.config import UserError

FOLDER = "inventory-reports/pmc-oa-opendata/metadata/"
_DATE = re.compile(r"\d{4}-\d\d-\d\d(T\d\d-\d\dZ)?")
_KEY = r"^(?P<where>metadata/|PMC\d+\.\d+/)PMC(?P<number>\d{1,18})\.(?P<version>\d{1,9})\.json$"
_SCHEMA = "Bucket, Key, LastModifiedDate, ETag"
_MAX_FILE = 1 << 30
_MAX_ROWS = 100_000_000

ROWS = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("version", pa.int32(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("in_metadata", pa.bool_(), nullable=False),
    ]
)
"""An article version; `in_metadata`: its JSON's key begins with "metadata/"."""


async def read_inventory(store: Store, wanted: str) -> tuple[pa.Table, str]:
    """The inventory's rows, one for each article version, sorted; and what it is called.

    Args:
        store: where the bucket is.
        wanted: "latest", a date (2026-11-20 or 2026-11-20T01-00Z), both of which are looked up in
            the bucket, or the path of a local manifest.json, .csv or .csv.gz.

    Raises:
        UserError: there is none, or it is not readable.
    """
    try:
        if wanted == "latest" or _DATE.fullmatch(wanted):
            name = await _find(store, wanted)
            manifest = _parse_manifest(await _read(store, f"{FOLDER}{name}/manifest.json"))
            files = [await _read(store, file["key"], file["MD5checksum"]) for file in manifest[1]]
            return _join(_tables(files, manifest[0])), name
        return await asyncio.to_thread(_local, Path(wanted)), Path(wanted).name
    except (FileProblem, pa.ArrowInvalid, OSError, EOFError) as error:
        raise UserError(f"inventory={wanted}: {error}") from None


async def _find(store: Store, wanted: str) -> str:
    dates = [name for name in await store.folders(FOLDER) if _DATE.fullmatch(name)]
    if wanted != "latest":
        dates = [name for name in dates if name.startswith(wanted)]
    if not dates:
        raise UserError(
            f"inventory={wanted}: the bucket has none under {FOLDER}; they are kept for 30 days"
        )
    return max(dates)


async def _read(store: Store, key: str, md5: str = "") -> bytes:
    return await store.read(key, Ticket(Memory(_MAX_FILE, _MAX_FILE)), md5)


def _local(path: Path) -> pa.Table:
    if not path.is_file():
        raise UserError(f"inventory={path}: no such file")
    if path.suffix != ".json":
        return _join(_tables([path.read_bytes()], _SCHEMA))
    schema, files = _parse_manifest(path.read_bytes())
    # The csv.gz files beside the manifest, or where the bucket has them relative to it.
    found = []
    for file in files:
        name = Path(file["key"]).name
        places = [
            path.parent / name,
            path.parent / "data" / name,
            path.parent.parent / "data" / name,
        ]
        place = next((place for place in places if place.is_file()), None)
        if place is None:
            raise UserError(f"inventory={path}: names {name}, which is not beside it")
        found.append(place.read_bytes())
    return _join(_tables(found, schema))


def _parse_manifest(data: bytes) -> tuple[str, list[dict[str, str]]]:
    """The columns, and key and MD5 of each file."""
    try:
        manifest: Any = json.loads(data)
        files = [
            {"key": str(file["key"]), "MD5checksum": str(file.get("MD5checksum") or "")}
            for file in manifest["files"]
        ]
        return str(manifest.get("fileSchema") or _SCHEMA), files
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FileProblem("manifest.json not understood") from None


def _tables(files: Iterable[bytes], schema: str) -> Iterator[pa.Table]:
    """Each batch of rows whose key is that of an article's JSON."""
    columns = [name.strip() for name in schema.split(",")]
    if not {"Key", "ETag"} <= set(columns):
        raise FileProblem(f"columns are {schema}; Key and ETag are needed")
    rows = 0
    for data in files:
        packed = "gzip" if data[:2] == b"\x1f\x8b" else None
        with pa.input_stream(pa.py_buffer(data), compression=packed) as stream:
            batches = pacsv.open_csv(
                stream,
                read_options=pacsv.ReadOptions(column_names=columns, block_size=8 << 20),
                convert_options=pacsv.ConvertOptions(
                    include_columns=["Key", "ETag"],
                    column_types={"Key": pa.string(), "ETag": pa.string()},
                    strings_can_be_null=False,
                ),
            )
            for batch in batches:
                rows += len(batch)
                if rows > _MAX_ROWS:
                    raise FileProblem(f"more than {_MAX_ROWS:,} rows")
                yield _articles(batch)


def _articles(batch: pa.RecordBatch) -> pa.Table:
    parts = pc.extract_regex(batch["Key"], _KEY)
    keep = pc.is_valid(parts)
    parts = parts.filter(keep)
    columns = [
        pc.struct_field(parts, "number").cast(pa.int64()),
        pc.struct_field(parts, "version").cast(pa.int32()),
        pc.utf8_trim(batch["ETag"].filter(keep), '"'),
        pc.equal(pc.struct_field(parts, "where"), "metadata/"),
    ]
    return pa.Table.from_arrays(columns, schema=ROWS)


def _join(tables: Iterable[pa.Table]) -> pa.Table:
    """One row for each version: the one under metadata/, where both places are listed."""
    table = pa.concat_tables([ROWS.empty_table(), *tables])
    order = [("number", "ascending"), ("version", "ascending"), ("in_metadata", "descending")]
    table = table.sort_by(order).combine_chunks()
    if not len(table):
        raise FileProblem("lists no article")
    return table.filter(_first_of_run(table, ("number", "version")))


def _first_of_run(table: pa.Table, names: tuple[str, ...]) -> pa.Array:
    """Whether a row of a sorted table differs from the one before it in any of the columns."""
    differs = [
        pc.not_equal(table[name].slice(1), table[name].slice(0, len(table) - 1)) for name in names
    ]
    rest = differs[0]
    for other in differs[1:]:
        rest = pc.or_(rest, other)
    return pa.concat_arrays([pa.array([True]), *pa.chunked_array(rest).chunks])


def latest_versions(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Of sorted rows the last version of each article, and the others."""
    numbers = rows["number"]
    last = pc.not_equal(numbers.slice(0, len(rows) - 1), numbers.slice(1))
    keep = pa.concat_arrays([*pa.chunked_array(last).chunks, pa.array([True])])
    return rows.filter(keep), rows.filter(pc.invert(keep))
