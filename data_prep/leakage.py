"""Perceptual hashes of evaluation sets, so that training can do without their images."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.images import ImageRejected, image_format
from data_prep.inspection import decode, read_member, shard_rows
from data_prep.runners import map_unordered
from data_prep.shards import MANIFEST, read_manifest
from vlp.config import UserError
from vlp.duplicates import Hashes
from vlp.hashing import FLAT, perceptual_hash

_HASH_FILES = (".txt", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class EvaluationSet:
    """The images of one evaluation set, by their hashes."""

    name: str
    hashes: Hashes
    items: tuple[str, ...]
    """A name for each: key, path, or the line of a hash file."""
    unreadable: int
    """Image files that could not be decoded."""


def read_evaluation_set(path: Path, max_pixels: int, workers: int) -> EvaluationSet:
    """Hashes from a shard folder, a folder of images, or a file of hashes.

    A text file holds a hash of 16 hexadecimal digits at the beginning of each line (as `imagehash`
    prints its phash), and after a comma or space what to call it; lines with # and a heading are
    passed over. A Parquet file has a column `phash`, and may have a column `key`.

    Raises:
        UserError: none of these, or it holds no image.
    """
    if path.is_file() and path.suffix in _HASH_FILES:
        found = _parquet(path) if path.suffix == ".parquet" else _text(path)
    elif path.is_dir() and (path / MANIFEST).is_file():
        shards = [entry["name"] for entry in read_manifest(path)["shards"]]
        work = partial(_hash_shard, path, max_pixels)
        found = [pair for part in map_unordered(work, shards, workers) for pair in part]
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        work_file = partial(_hash_file, path, max_pixels)
        found = [pair for pair in map_unordered(work_file, files, workers) if pair[0]]
    else:
        kinds = ", ".join(_HASH_FILES)
        raise UserError(f"leakage={path}: neither a folder nor a file of hashes ({kinds})")
    # A blank image is in every set: it is no sign of leakage.
    usable = sorted((name, value) for name, value in found if value not in (None, FLAT))
    if not usable:
        raise UserError(f"leakage={path}: no image and no hash in it")
    hashes = np.array([value for _, value in usable], dtype=np.uint64)
    unreadable = sum(value is None for _, value in found)
    return EvaluationSet(path.name, hashes, tuple(name for name, _ in usable), unreadable)


Named = tuple[str, int | None]
"""What an image is called, and its hash; None where it cannot be decoded."""


def _text(path: Path) -> list[Named]:
    found: list[Named] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = re.match(r"\s*([0-9a-fA-F]{16})\b[\s,;]*(.*)", line)
        if match:
            found.append((match[2].strip() or f"line {number}", int(match[1], 16)))
        elif line.strip() and not line.lstrip().startswith("#") and number > 1:
            raise UserError(f"{path}, line {number}: begins with no hash of 16 hexadecimal digits")
    return found


def _parquet(path: Path) -> list[Named]:
    try:
        table = pq.read_table(path)
        hashes = table["phash"].cast(pa.uint64()).to_pylist()
    except (pa.ArrowException, KeyError, OSError) as error:
        raise UserError(f"{path}: no column 'phash' of 64-bit integers: {error}") from None
    rows = range(len(hashes))
    names = table["key"].to_pylist() if "key" in table.column_names else [f"row {n}" for n in rows]
    return [(str(name), value) for name, value in zip(names, hashes, strict=True) if value]


def _hash_shard(folder: Path, max_pixels: int, shard: str) -> list[Named]:
    found: list[Named] = []
    with (folder / shard).open("rb") as file:
        for row in shard_rows(folder, shard):
            value = row["phash"]
            if value is None:
                value = _hash(read_member(file, row, "image"), max_pixels)
            found.append((row["key"], value))
    return found


def _hash_file(folder: Path, max_pixels: int, path: Path) -> Named:
    """The hash of an image file; ("", None) for files that are no images."""
    name = path.relative_to(folder).as_posix()
    with path.open("rb") as file:
        head = file.read(256)
        try:
            image_format(head)
        except ImageRejected:
            return "", None
        return name, _hash(head + file.read(), max_pixels)


def _hash(data: bytes, max_pixels: int) -> int | None:
    try:
        return perceptual_hash(decode(data, max_pixels))
    except ImageRejected:
        return None
