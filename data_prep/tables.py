"""Tables of image paths and captions (CSV, TSV, JSON lines, Parquet): what a hospital has."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.build import BuildConfig, Plan, Unit, build, make_units, split_of
from data_prep.captions import CaptionRejected, clean_caption
from data_prep.images import ImageRejected, prepare_image
from data_prep.shards import SPLITS, Reject, Sample, unique_keys
from vlp.config import UserError
from vlp.splits import hash_fraction

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_MAX_FILE = 1 << 30  # bytes of an image file; far above any figure, far below memory

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TableConfig(BuildConfig):
    """A table with one image and caption per row becomes shards.

    Example: python -m data_prep table source=reports.csv image=file caption=report group=patient
    out=shards/reports
    """

    source: str
    """The table: .csv, .tsv, .jsonl or .parquet, UTF-8."""
    root: str = ""
    """Folder that image paths are relative to; empty takes the table's own folder."""
    image: str = "image"
    """Column with the path of the image file."""
    caption: str = "caption"
    """Column with the caption, report or description."""
    group: str = ""
    """Column with the patient, article or other group that must not stand on both sides of a split;
    empty splits image by image."""
    split: str = ""
    """Column that says train, val or test; empty splits by the hash of the group."""
    licence: str = ""
    """Column with the licence of the row."""
    licence_text: str = ""
    """The licence of all rows, where no column says it."""
    samples_per_shard: int = 1000
    """Rows in a shard, at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard={self.samples_per_shard}: set 1 or more")
        if self.licence and self.licence_text:
            raise ValueError("licence and licence_text: set one of the two")


@dataclass(frozen=True)
class TableItem:
    """One row of the table on its way to a unit."""

    key: str
    image: str
    group: str
    row: Row
    file: tuple[int, int] | None
    """Size and modification time of the image file; None where there is none."""


def run(config: TableConfig) -> None:
    """The stage `table`."""
    source = Path(config.source)
    rows = read_table(source)
    columns = sorted({column for row in rows for column in row})
    for key in ("image", "caption", "group", "split", "licence"):
        column = getattr(config, key)
        if column and column not in columns:
            raise UserError(
                f"{source}: has no column '{column}' ({key}={column}); "
                f"its columns are {', '.join(columns)}"
            )
    items = _make_items(config, rows)
    splits: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for item in items:
        splits[_split(config, source, item)].append(item)
    _warn_of_leaks(config, splits)
    plan = Plan(
        stage="table",
        units=make_units(config, "table", splits, config.samples_per_shard),
        inputs={"source": str(source), "rows": len(rows), "bytes": source.stat().st_size},
        noun="rows",
    )
    build(config, plan, produce)


def produce(config: TableConfig, unit: Unit) -> Iterator[Sample | Reject]:
    """Samples and rejects of one unit, in order."""
    root = image_root(config)
    rules = config.image_rules()
    for item in unit.items:
        try:
            caption = clean_caption(_text(item.row.get(config.caption)), config.min_caption)
            image = prepare_image(_read(root, item), rules)
        except (CaptionRejected, ImageRejected) as error:
            step = "image" if isinstance(error, ImageRejected) else "caption"
            yield Reject(item.group, "", item.image, step, str(error))
            continue
        used = (config.image, config.caption, config.group, config.split, config.licence)
        yield Sample(
            key=item.key,
            image=image.data,
            extension=image.extension,
            width=image.width,
            height=image.height,
            phash=image.phash,
            caption=caption,
            article=item.group,
            licence=_text(item.row.get(config.licence)) or config.licence_text,
            record={
                "image": item.image,
                "row": {k: v for k, v in item.row.items() if k not in used and v is not None},
            },
        )


def image_root(config: TableConfig) -> Path:
    """The folder that image paths are relative to."""
    return Path(config.root) if config.root else Path(config.source).parent


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV, TSV, JSON lines or Parquet file; CSV values stay strings.

    Raises:
        UserError: missing, empty, of an unknown kind or malformed.
    """
    readers = {
        ".csv": lambda: _read_csv(path, ","),
        ".tsv": lambda: _read_csv(path, "\t"),
        ".jsonl": lambda: _read_json_lines(path),
        ".ndjson": lambda: _read_json_lines(path),
        ".parquet": lambda: _read_parquet(path),
    }
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: not a table; name a file that ends in {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        rows = readers[path.suffix.lower()]()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if not rows:
        raise UserError(f"{path}: has no rows")
    return rows


def _read_csv(path: Path, delimiter: str) -> list[Row]:
    csv.field_size_limit(1 << 24)
    # Whole at once, so that a decoding error names the byte in the file and not in a buffer.
    text = path.read_bytes().decode("utf-8-sig")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path}, line {reader.line_num}: not as many fields as the header has"
                )
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from None
    return rows


def _read_json_lines(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object")
        rows.append(row)
    return rows


def _read_parquet(path: Path) -> list[Row]:
    try:
        rows: list[Row] = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not readable as Parquet: {error}") from None
    # Times, decimals and bytes have no JSON form; their text has.
    return [{key: _plain(value) for key, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _make_items(config: TableConfig, rows: list[Row]) -> list[TableItem]:
    """Rows with keys, in the order of their hash, so that shards are mixed."""
    root = image_root(config)
    images = [_text(row.get(config.image)) for row in rows]
    keys = unique_keys([(re.sub(r"\.[^./]*$", "", image),) for image in images])
    items = []
    for row, image, key in zip(rows, images, keys, strict=True):
        group = _text(row.get(config.group)) if config.group else ""
        path = _inside(root, image)
        status = path.stat() if path is not None and path.is_file() else None
        file = (status.st_size, status.st_mtime_ns) if status else None
        items.append(TableItem(key, image, group or image, row, file))
    return sorted(items, key=lambda item: (hash_fraction(config.seed, item.key), item.key))


def _inside(root: Path, name: str) -> Path | None:
    """The path of an image, or None where the table points out of the image folder."""
    path = (root / name).absolute()
    parts = path.parts
    return path if ".." not in parts and path.is_relative_to(root.absolute()) else None


def _read(root: Path, item: TableItem) -> bytes:
    path = _inside(root, item.image)
    if not item.image:
        raise ImageRejected("no image path")
    if path is None:
        raise ImageRejected("image path outside root")
    if item.file is None:
        raise ImageRejected("image file missing")
    if item.file[0] > _MAX_FILE:
        raise ImageRejected(f"image file larger than {_MAX_FILE:,} bytes")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageRejected(f"image file unreadable: {error.strerror}") from None


def _split(config: TableConfig, source: Path, item: TableItem) -> str:
    if not config.split:
        return split_of(config, item.group)
    value = _text(item.row.get(config.split))
    if value.lower() not in _SPLIT_NAMES:
        raise UserError(
            f"{source}: '{value}' in column '{config.split}' names no split; "
            f"it may say {', '.join(_SPLIT_NAMES)}"
        )
    return _SPLIT_NAMES[value.lower()]


def _warn_of_leaks(config: TableConfig, splits: dict[str, list[TableItem]]) -> None:
    """Say it when the user's split column puts one group on both sides."""
    sides = Counter(group for items in splits.values() for group in {item.group for item in items})
    leaks = [group for group, count in sides.items() if count > 1]
    if leaks:
        print(
            f"warning: {len(leaks)} groups, such as '{min(leaks)}', stand in more than one split "
            f"of column '{config.split}'; scores on its test split will be too high"
        )


def _text(value: Any) -> str:
    return "" if value is None else str(value)
