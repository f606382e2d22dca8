"""Tables of labels, captions and questions: CSV, JSONL or Parquet, as a list of rows."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlp.config import UserError

Row = dict[str, Any]


def read_table(path: Path) -> list[Row]:
    """All rows of a table; a CSV's values are strings (an id like 007 stays one).

    Raises:
        UserError: no such file, another kind of file, or one that can't be read.
    """
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix not in readers:
        raise UserError(f"{path}: not a table; there are {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{path}: no such table; set data_root or the suite's path")
    try:
        rows = readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it") from None
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
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


def _csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"row {number} doesn't have as many cells as the header")
    return [dict(row) for row in rows]


def _jsonl(path: Path) -> list[Row]:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
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


def _parquet(path: Path) -> list[Row]:
    return list(pq.read_table(path).to_pylist())
