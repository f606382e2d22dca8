"""Tables of labels, captions and questions: CSV, JSON, JSONL or Parquet, as a list of rows."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlp.config import UserError

Row = dict[str, Any]

_BROKEN = (OSError, EOFError, ValueError, RecursionError, csv.Error, zlib.error, pa.ArrowException)


MAX_TABLE = 1 << 31
"""Bytes of a table that are read at most, unpacked."""


def read_table(path: Path, header: Sequence[str] = ()) -> list[Row]:
    """All rows of a table; a CSV's values are strings (an id like 007 stays one).

    JSON is a list of objects, or names mapped to objects, alone or in a list; the name becomes the
    column `key`. Any of them may be compressed, as in .csv.gz.

    Args:
        header: names of the columns of a CSV or TSV that has no header; .txt is read as TSV.

    Raises:
        UserError: no such file, another kind of file, or one that can't be read.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix
    known = [*_PARSERS, ".parquet"]
    if suffix not in known and not (suffix == ".txt" and header):
        raise UserError(f"{path}: not a table; there are {', '.join(known)}")
    if not path.is_file():
        raise UserError(f"{path}: no such table; set data_root or the suite's path")
    try:
        if suffix == ".parquet":
            rows = list(pq.read_table(path).to_pylist())
        elif suffix in (".json", ".jsonl"):
            rows = _PARSERS[suffix](_content(path))
        else:
            rows = _csv(_content(path), "," if suffix == ".csv" else "\t", header)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it") from None
    except _BROKEN as error:
        raise UserError(f"{path}: not readable as a table: {error}") from None
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows


def columns(rows: Iterable[Row]) -> list[str]:
    """Names that occur in any row, sorted."""
    return sorted({name for row in rows for name in row})


def text(value: Any) -> str:
    """A cell as the text by which labels are compared; '' where there is nothing."""
    if value is None or value != value:  # NaN is what Parquet and pandas make of an empty cell
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of integers with gaps became one of floats
    return str(value).strip()


def texts(value: Any) -> list[str]:
    """A cell that holds a list of texts, or one text; empty texts are left out."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)  # CSV has no lists
        except ValueError:
            return [value.strip()]
    items = value if isinstance(value, list) else [value]
    return [item for item in map(text, items) if item]


def _content(path: Path) -> str:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        data = file.read(MAX_TABLE + 1)
    if len(data) > MAX_TABLE:
        raise ValueError(f"more than {MAX_TABLE >> 30} GB")
    return data.decode("utf-8-sig")


def _csv(content: str, delimiter: str, header: Sequence[str]) -> list[Row]:
    # Captions hold lone quotation marks; a table without a header is no CSV of a spreadsheet.
    quoted = not (header and delimiter == "\t")
    rows = list(
        csv.DictReader(
            io.StringIO(content, newline=""),
            list(header) or None,
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        )
    )
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"row {number} doesn't have as many cells as the header")
    return [dict(row) for row in rows]


def _jsonl(content: str) -> list[Row]:
    rows = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: not an object of columns")
        rows.append(row)
    return rows


def _json(content: str) -> list[Row]:
    found = json.loads(content)
    entries = found if isinstance(found, list) else [found]
    rows: list[Row] = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise ValueError(f"entry {number}: not an object of columns")
        if entry and all(isinstance(value, dict) for value in entry.values()):
            rows += [{"key": name, **value} for name, value in entry.items()]
        elif entry is found:
            raise ValueError("neither a list of objects nor names mapped to objects")
        else:
            rows.append(entry)
    return rows


_PARSERS: dict[str, Any] = {".csv": _csv, ".tsv": _csv, ".json": _json, ".jsonl": _jsonl}
