"""Parquet and Arrow files as Hugging Face `datasets` writes them: the images stand in a column."""

import glob
import hashlib
import json
import re
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.data_config import DataConfig
from eval.readers.base import Dataset, Sample, fingerprint_files, split_names
from eval.tables import Row, texts
from vlp.config import UserError

MAX_GROUP = 1 << 32
"""Bytes of one row group of a Parquet file, which is read at once."""


def open_huggingface(data: DataConfig, root: Path) -> Dataset:
    """Rows of all files of a split; the image column holds bytes, or {bytes, path}.

    A column of class numbers is followed by one with their names, COLUMN_name, where the file
    brings the names along.
    """
    files = hub_files(data, root)
    opened = [_open(file, data.image_column) for file in files]
    for part in opened:
        if missing := [name for name in data.columns if name not in part.schema.names]:
            there = ", ".join(part.schema.names)
            raise UserError(f"{part.path}: no column '{missing[0]}'; it has {there}")
    rows = [row for part in opened for row in part.rows(data.image_column, list(data.columns))]
    if not rows:
        raise UserError(f"{root / data.path}: no rows in split '{data.split}'")
    images = _ColumnImages(files, data.image_column)
    groups = [[i] for i in range(len(rows))]
    if data.same_images:
        groups = _equal_images(images, len(rows))
    images.keep([group[0] for group in groups])
    samples = []
    for group, name in zip(groups, _names(opened, data, groups), strict=True):
        own = [{**rows[i], "image": name} for i in group]
        captions = [c for row in own for c in texts(row.get(data.caption_column))]
        samples.append(Sample(name, captions, own))
    return Dataset(
        samples=samples,
        fingerprint=fingerprint_files(files, data.image_column, str(data.same_images)),
        every_row=[row for sample in samples for row in sample.rows],
        images=images,
    )


def hub_files(data: DataConfig, root: Path) -> list[Path]:
    """The files of the split: those that `path` matches, or in a folder those named for the split.

    Raises:
        UserError: there are none.
    """
    splits = split_names(data.split)
    if any(mark in data.path for mark in ("*", "{split}")):
        patterns = [data.path.replace("{split}", split) for split in splits or [""]]
        files = [root / m for p in patterns for m in sorted(glob.glob(p, root_dir=root))]
    elif (root / data.path).is_file():
        files = [root / data.path]
    else:
        every = sorted(f for f in (root / data.path).rglob("*") if f.suffix in _FORMATS)
        files = [f for f in every if not splits or _split_of(f) in splits]
    if not files:
        raise UserError(
            f"{root / data.path}: no .parquet or .arrow files of split '{data.split}'; set "
            "data_root or the suite's path"
        )
    return files


def _split_of(file: Path) -> str:
    """data/test-00000-of-00002-0a1b.parquet, test/0000.parquet, NAME-test.arrow: test."""
    stem = re.sub(r"-\d+(-of-\d+(-[0-9a-f]+)?)?$", "", file.stem)
    if stem in ("data", "part") or stem.isdigit():
        return file.parent.name
    return stem.rpartition("-")[2]


class _ParquetFile:
    """A Parquet file: images are read a row group at a time, and the last group is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = pq.ParquetFile(path, memory_map=True)
        self.schema = self.file.schema_arrow
        meta = self.file.metadata
        self.lengths = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        sizes = [meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)]
        if max(sizes, default=0) > MAX_GROUP:
            raise UserError(f"{path}: a row group claims {max(sizes)} bytes; write smaller ones")
        self._kept: tuple[int, pa.ChunkedArray] | None = None

    def rows(self, image: str, wanted: list[str]) -> list[Row]:
        """The wanted columns, or all, but never the images."""
        others = [name for name in wanted or self.schema.names if name != image]
        return _plain(self.file.read(columns=others)) if others else [{}] * sum(self.lengths)

    def paths(self, column: str) -> list[Any]:
        """The `path` that stands beside each image's bytes."""
        table = self.file.read(columns=[f"{column}.path"])
        return [value and value["path"] for value in table.column(column).to_pylist()]

    def image(self, group: int, row: int, column: str) -> Any:
        if self._kept is None or self._kept[0] != group:
            table = self.file.read_row_group(group, columns=[column])
            self._kept = group, table.column(column)
        return self._kept[1][row].as_py()


class _ArrowFile:
    """An Arrow file or stream, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        source = pa.memory_map(str(path))
        magic = source.read(6)
        source.seek(0)
        opener = pa.ipc.open_file if magic == b"ARROW1" else pa.ipc.open_stream
        self.batches = opener(source).read_all().to_batches()
        self.schema = self.batches[0].schema if self.batches else pa.schema([])
        self.lengths = [batch.num_rows for batch in self.batches]

    def rows(self, image: str, wanted: list[str]) -> list[Row]:
        """The wanted columns, or all, but never the images."""
        others = [name for name in wanted or self.schema.names if name != image]
        table = pa.Table.from_batches(self.batches, self.schema)
        return _plain(table.select(others)) if others else [{}] * sum(self.lengths)

    def paths(self, column: str) -> list[Any]:
        """The `path` that stands beside each image's bytes."""
        return [p for b in self.batches for p in b.column(column).field("path").to_pylist()]

    def image(self, group: int, row: int, column: str) -> Any:
        return self.batches[group].column(column)[row].as_py()


_File = _ParquetFile | _ArrowFile
_FORMATS: dict[str, type[_ParquetFile] | type[_ArrowFile]] = {
    ".parquet": _ParquetFile,
    ".arrow": _ArrowFile,
}


def _open(path: Path, image: str) -> _File:
    if path.suffix not in _FORMATS:
        raise UserError(f"{path}: neither .parquet nor .arrow")
    try:
        file = _FORMATS[path.suffix](path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not readable: {error}; copy it again") from None
    if image not in file.schema.names:
        there = ", ".join(file.schema.names)
        raise UserError(f"{path}: no column '{image}'; it has {there}; set image_column")
    return file


def _plain(table: pa.Table) -> list[Row]:
    """Rows; class numbers get their names beside them."""
    rows: list[Row] = table.to_pylist()
    for column, names in _class_names(table.schema).items():
        for row in rows:
            number = row.get(column)
            if isinstance(number, int) and 0 <= number < len(names):
                row[f"{column}_name"] = names[number]
    return rows


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Column -> names of its classes, from what `datasets` writes into the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if column in schema.names and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}  # other writers


class _ColumnImages:
    """Opens the files anew in each worker: maps and readers don't travel."""

    def __init__(self, files: list[Path], column: str, order: list[int] | None = None) -> None:
        self.files, self.column, self.order = files, column, order
        self._opened: list[_File] | None = None
        self._places: list[tuple[int, int]] = []
        self._ends: list[int] = []

    def keep(self, order: list[int]) -> None:
        """Image i is from now on that of row order[i]."""
        self.order = order

    def read(self, index: int) -> bytes:
        """The stored file."""
        if self._opened is None:
            self._opened = [_open(file, self.column) for file in self.files]
            self._places = [
                (f, g) for f, o in enumerate(self._opened) for g in range(len(o.lengths))
            ]
            self._ends = list(accumulate(n for o in self._opened for n in o.lengths))
        row = self.order[index] if self.order is not None else index
        block = bisect_right(self._ends, row)
        file, group = self._places[block]
        start = self._ends[block - 1] if block else 0
        value = self._opened[file].image(group, row - start, self.column)
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise OSError(0, f"{self.files[file].name} has no bytes for this image")
        return content

    def __reduce__(self) -> tuple[type, tuple[list[Path], str, list[int] | None]]:
        return type(self), (self.files, self.column, self.order)


def _equal_images(images: _ColumnImages, count: int) -> list[list[int]]:
    """Rows by image, in the order of each image's first row."""
    groups: dict[bytes, list[int]] = {}
    for i in range(count):
        try:
            key = hashlib.sha256(images.read(i)).digest()
        except OSError:
            key = f"row {i}".encode()  # a missing image stands for itself
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _names(opened: list[_File], data: DataConfig, groups: list[list[int]]) -> list[str]:
    """Names of the images: the stored paths if they tell them apart, otherwise split/number."""
    numbered = [f"{data.split or 'all'}/{group[0]:06d}" for group in groups]
    paths: list[Any] = []
    for part in opened:
        kind = part.schema.field(data.image_column).type
        if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
            return numbered
        paths += part.paths(data.image_column)
    own = [paths[group[0]] for group in groups]
    return [str(path) for path in own] if all(own) and len(set(own)) == len(own) else numbered
