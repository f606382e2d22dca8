"""A table of image paths: CSV, TSV, JSON, JSONL or Parquet, with labels, captions or questions."""

import glob
import re
import string
from collections import defaultdict
from pathlib import Path
from typing import Any

from eval.data_config import DataConfig
from eval.readers.base import (
    Dataset,
    FileImages,
    Sample,
    fingerprint_files,
    inside,
    split_names,
)
from eval.tables import Row, columns, read_table, text, texts
from vlp.config import UserError


def open_table(data: DataConfig, root: Path) -> Dataset:
    """A table with a column of image paths; rows of one image make one sample."""
    path = root / data.path
    files = table_files(data, root)
    rows = [row for file in files for row in read_table(file, data.header)]
    for further, column in data.join.items():
        rows = _joined(rows, root / further, column, path)
    rows = [_prepared(row, data, path) for row in rows]
    chosen = _chosen(rows, data, path)
    by_image: dict[str, list[Row]] = defaultdict(list)
    for row in chosen:
        by_image[row["image"]].append(row)
    found = _images(list(by_image), data, root, files[0])
    samples = [
        Sample(image, [c for row in group for c in texts(row.get(data.caption_column))], group)
        for image, group in by_image.items()
    ]
    return Dataset(
        samples=samples,
        fingerprint=fingerprint_files(found),
        every_row=rows,
        images=FileImages(found),
        notes=_shared_images(rows, data),
    )


def table_files(data: DataConfig, root: Path) -> list[Path]:
    """The table, or the tables that `path` stands for with its {split} and *.

    Raises:
        UserError: a pattern that nothing matches.
    """
    names = [data.path]
    if "{split}" in data.path:
        parts = split_names(data.split)
        if not parts:
            raise UserError(f"{root / data.path}: {{split}} stands in the path, and split is empty")
        names = [data.path.replace("{split}", part) for part in parts]
    files: list[Path] = []
    for name in names:
        matches = sorted(glob.glob(name, root_dir=root)) if "*" in name else [name]
        if not matches:
            raise UserError(f"{root / name}: no such file; set data_root or the suite's path")
        files += [root / match for match in matches]
    return files


def _prepared(row: Row, data: DataConfig, path: Path) -> Row:
    """A row with `image`, and with `label` where the columns of `one_hot` say it."""
    row = dict(row)
    if data.one_hot:
        row["label"] = _one_hot(row, list(data.one_hot), path)
    return {**row, "image": _image_name(row, data.image_column, path)}


def _image_name(row: Row, column: str, path: Path) -> str:
    """The path that a column holds, or that a template makes of several."""
    if "{" not in column:
        if column not in row:
            raise UserError(f"{path}: no column '{column}'; it has {', '.join(sorted(row))}")
        return text(row[column])
    try:
        parts = list(string.Formatter().parse(column))
    except ValueError as error:
        raise UserError(f"{path}: image_column: '{column}': {error}") from None
    for _, name, spec, conversion in parts:
        if name is not None and (conversion or not re.fullmatch(r"(\.\d+)?", spec or "")):
            raise UserError(f"{path}: image_column: write {{{name}}} or {{{name}:.2}}")
        if name is not None and name not in row:
            raise UserError(f"{path}: no column '{name}'; it has {', '.join(sorted(row))}")
    return "".join(
        before + (format(text(row[name]), spec or "") if name is not None else "")
        for before, name, spec, _ in parts
    )


def _one_hot(row: Row, names: list[str], path: Path) -> str:
    """The first of the columns with the highest value; '' if all are 0 or empty."""
    values = [_number(row, name, path) for name in names]
    best = max(values)
    return names[values.index(best)] if best > 0 else ""


def _number(row: Row, name: str, path: Path) -> float:
    if name not in row:
        raise UserError(f"{path}: no column '{name}'; it has {', '.join(sorted(row))}")
    cell = text(row[name])
    try:
        return float(cell or 0)
    except ValueError:
        raise UserError(f"{path}: column '{name}': '{cell}' is not a number") from None


def _joined(rows: list[Row], further: Path, column: str, path: Path) -> list[Row]:
    """Rows with the columns of another table's row that has the same value in `column`."""
    partners: dict[str, Row] = {}
    other = read_table(further)
    for table, where in ((other, further), (rows, path)):
        if column not in columns(table):
            raise UserError(f"{where}: no column '{column}' to join on; it has {_list(table)}")
    for row in other:
        key = text(row.get(column))
        if key in partners:
            raise UserError(f"{further}: two rows have '{key}' in column '{column}'; write it once")
        partners[key] = row
    if not any(text(row.get(column)) in partners for row in rows):
        raise UserError(f"{further}: no row has a '{column}' that occurs in {path}")
    return [{**partners.get(text(row.get(column)), {}), **row} for row in rows]


def _list(rows: list[Row]) -> str:
    return ", ".join(columns(rows))


def _chosen(rows: list[Row], data: DataConfig, path: Path) -> list[Row]:
    wanted = split_names(data.split)
    if not wanted or "{split}" in data.path:
        return rows
    column = data.split_column
    if column not in columns(rows):
        hint = "; set split='' to take all rows"
        raise UserError(f"{path}: no column '{column}'; it has {_list(rows)}{hint}")
    there = sorted({text(row.get(column)) for row in rows})
    for name in wanted:
        if name not in there:
            raise UserError(f"{path}: no rows in split '{name}'; it has {', '.join(there)}")
    return [row for row in rows if text(row.get(column)) in wanted]


def _images(names: list[str], data: DataConfig, root: Path, table: Path) -> list[Path]:
    """The files of the images; with * in image_root, of the first folder that has one."""
    if "*" not in data.image_root:
        folder = root / data.image_root if data.image_root else table.parent
        return [inside(folder, name, table) for name in names]
    matches = sorted(glob.glob(data.image_root, root_dir=root))
    folders = [root / match for match in matches if (root / match).is_dir()]
    if not folders:
        raise UserError(f"{root / data.image_root}: no such folder; set image_root")
    found = []
    for name in names:
        files = [inside(folder, name, table) for folder in folders]
        found.append(next((file for file in files if file.is_file()), files[0]))
    return found


def _shared_images(rows: list[Row], data: DataConfig) -> list[str]:
    """A note where images of this split occur in another one, as in VQA-RAD."""
    wanted = set(split_names(data.split))
    if not wanted or "{split}" in data.path:
        return []
    splits: dict[Any, set[str]] = defaultdict(set)
    for row in rows:
        splits[row["image"]].add(text(row.get(data.split_column)))
    here = [found for found in splits.values() if found & wanted]
    shared = sum(bool(found - wanted) for found in here)
    if not shared:
        return []
    return [f"{shared} of {len(here)} images of split '{data.split}' are in other splits too"]
