"""Where images, captions and labels come from: one class per layout, all alike from outside.

A dataset is opened without decoding any image: names, captions, rows of labels and a fingerprint.
The bytes of an image are read when the embedding pass asks for them.
"""

import hashlib
import json
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyarrow.parquet as pq

from eval.config import DataConfig
from eval.tables import Row, columns, read_table, text, texts
from vlp.config import UserError
from vlp.data.index import open_shards

IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")
MAX_MEMBER = 1 << 28
"""Bytes of one tar member that are read at most: a header may claim anything."""


@dataclass(frozen=True)
class Sample:
    """One image with what is known of it."""

    image: str
    """Its name: what tables of labels are joined on, and what results call it."""
    captions: list[str]
    rows: list[Row]
    """Labels, questions, provenance: one row, or one per question; none where the join failed."""


@dataclass
class Dataset:
    """The samples of one split."""

    samples: list[Sample]
    fingerprint: str
    """SHA-256 over what decides the pixels: the manifest, or the files' names, sizes and times."""
    every_row: list[Row]
    """The rows of all splits, against which names of classes are checked."""
    images: "ImageSource"
    classes: list[str] = field(default_factory=list)
    """Class names that the dataset brings along, in the order of their numbers."""
    templates: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader of the scores should know about the data."""


class ImageSource(Protocol):
    """Gives the bytes of image number `index`; workers hold copies of it."""

    def read(self, index: int) -> bytes:
        """Encoded image. Raises OSError or UserError where it can't be read."""
        ...


def open_dataset(data: DataConfig, root: Path) -> Dataset:
    """Open the dataset that a suite describes.

    Raises:
        UserError: missing files or columns, an empty split, a damaged tar.
    """
    return READERS[data.reader](data, root)


# --- shards ---------------------------------------------------------------------------------


def open_shard_folder(data: DataConfig, root: Path) -> Dataset:
    """A folder of data_prep, with an optional table of labels joined on the sample's `image`."""
    path = root / data.path
    shards = open_shards(path, data.split)
    table = pq.read_table(
        path / "index.parquet", columns=["shard", "image_offset", "json_offset", "json_size"]
    )
    spans = {(row["shard"], row["image_offset"]): row for row in table.to_pylist()}
    labels = _rows_by_image(root / data.labels) if data.labels else None
    samples = []
    for i in range(len(shards)):
        shard, offset = shards.shards[shards.shard_of[i]], int(shards.spans[i, 0])
        record = _json_member(path / shard, spans[shard, offset])
        image = text(record.get("image")) or shards.key(i)
        nested = record.get("row")  # what the table stage passes through
        own = {**record, **(nested if isinstance(nested, dict) else {}), "image": image}
        rows = [own] if labels is None else [{**own, **row} for row in labels.get(image, [])]
        samples.append(Sample(image, [shards.caption(i)], rows))
    if labels is not None and not any(sample.rows for sample in samples):
        raise UserError(
            f"{root / data.labels}: no row belongs to an image of {path}; its images are called "
            f"like '{next(iter(labels))}', those of the shards like '{samples[0].image}'"
        )
    manifest = hashlib.sha256((path / "manifest.json").read_bytes() + data.split.encode())
    every = [row for rows in labels.values() for row in rows] if labels is not None else []
    return Dataset(
        samples=samples,
        fingerprint=manifest.hexdigest(),
        every_row=every or [row for sample in samples for row in sample.rows],
        images=_ShardImages(path, data.split),
    )


class _ShardImages:
    """Opens the folder anew in each worker: file descriptors don't travel."""

    def __init__(self, path: Path, split: str) -> None:
        self.path, self.split = path, split
        self.shards = open_shards(path, split)

    def read(self, index: int) -> bytes:
        return self.shards.read(index).image

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self.path, self.split)


def _json_member(path: Path, span: Row) -> Row:
    """The sample's JSON; {} for shards of other makers, which may have none."""
    if span["json_offset"] is None:
        return {}
    raw = _read_span(path, span["json_offset"], span["json_size"])
    try:
        record = json.loads(raw)
    except ValueError as error:
        raise UserError(
            f"{path}: byte {span['json_offset']}: not JSON: {error}; index again"
        ) from None
    return record if isinstance(record, dict) else {}


def _rows_by_image(path: Path) -> dict[str, list[Row]]:
    rows = read_table(path)
    if "image" not in columns(rows):
        raise UserError(f"{path}: no column 'image' to join on; it has {', '.join(columns(rows))}")
    by_image: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_image[text(row.get("image"))].append(row)
    return dict(by_image)


# --- tables ---------------------------------------------------------------------------------


def open_table(data: DataConfig, root: Path) -> Dataset:
    """A table with a column of image paths; rows of one image make one sample."""
    path = root / data.path
    rows = read_table(path)
    for column, wanted in ((data.image_column, True), (data.split_column, bool(data.split))):
        if wanted and column not in columns(rows):
            hint = "; set split='' to take all rows" if column == data.split_column else ""
            raise UserError(
                f"{path}: no column '{column}'; it has {', '.join(columns(rows))}{hint}"
            )
    splits = sorted({text(row.get(data.split_column)) for row in rows})
    chosen = [
        row for row in rows if not data.split or text(row.get(data.split_column)) == data.split
    ]
    if not chosen:
        raise UserError(f"{path}: no rows in split '{data.split}'; it has {', '.join(splits)}")
    by_image: dict[str, list[Row]] = defaultdict(list)
    for row in chosen:
        by_image[text(row.get(data.image_column))].append({**row, "image": row[data.image_column]})
    folder = root / data.image_root if data.image_root else path.parent
    files = [_inside(folder, name, path) for name in by_image]
    samples = [
        Sample(image, [c for row in group for c in texts(row.get(data.caption_column))], group)
        for image, group in by_image.items()
    ]
    return Dataset(
        samples=samples,
        fingerprint=_fingerprint_files(files),
        every_row=rows,
        images=_FileImages(files),
        notes=_shared_images(rows, data),
    )


class _FileImages:
    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def read(self, index: int) -> bytes:
        return self.files[index].read_bytes()


def _inside(folder: Path, name: str, table: Path) -> Path:
    """folder/name, unless that lies outside the folder."""
    folder = Path(os.path.abspath(folder))
    file = Path(os.path.abspath(folder / name))
    if not name or not file.is_relative_to(folder):
        raise UserError(
            f"{table}: image path '{name}' is not inside {folder}; set image_root to the folder "
            "that holds the images"
        )
    return file


def _shared_images(rows: list[Row], data: DataConfig) -> list[str]:
    """A note where images of this split occur in another one, as in VQA-RAD."""
    if not data.split:
        return []
    splits = defaultdict(set)
    for row in rows:
        splits[text(row.get(data.image_column))].add(text(row.get(data.split_column)))
    here = [found for found in splits.values() if data.split in found]
    shared = sum(len(found) > 1 for found in here)
    if not shared:
        return []
    return [f"{shared} of {len(here)} images of split '{data.split}' are in other splits too"]


def _fingerprint_files(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        try:
            status = file.stat()
            line = f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n"
        except OSError:  # reported, by name, when the image is read
            line = f"{file}\0missing\n"
        digest.update(line.encode())
    return digest.hexdigest()


# --- CLIP_benchmark's WebDataset layout -----------------------------------------------------


@dataclass(frozen=True)
class _Member:
    shard: Path
    offset: int
    size: int


def open_clip_benchmark(data: DataConfig, root: Path) -> Dataset:
    """A folder with SPLIT/nshards.txt, SPLIT/0.tar ..., classnames.txt and templates.

    Samples have an image and either `.cls` (a class number) or `.txt` (captions, one per line).
    """
    path = root / data.path
    count = _text_file(path / data.split / "nshards.txt", required=True).strip()
    if not re.fullmatch(r"[0-9]{1,9}", count) or not int(count):
        raise UserError(f"{path / data.split / 'nshards.txt'}: '{count}' is not a number of shards")
    shards = [path / data.split / f"{i}.tar" for i in range(int(count))]
    classes = _lines(path / "classnames.txt")
    samples, members = [], []
    for shard in shards:
        for name, parts in _tar_samples(shard):
            found = next((parts[ext] for ext in IMAGE_EXTENSIONS if ext in parts), None)
            if found is None:
                continue  # as webdataset does with a key that lacks an image
            members.append(found)
            samples.append(_clip_benchmark_sample(f"{shard.name}/{name}", parts, classes))
    if not samples:
        raise UserError(f"{path / data.split}: no images in {count} shards")
    return Dataset(
        samples=samples,
        fingerprint=_fingerprint_files(shards),
        every_row=[{"label": label} for label in classes]
        + [row for sample in samples for row in sample.rows],
        images=_MemberImages(members),
        classes=classes,
        templates=_lines(path / "zeroshot_classification_templates.txt"),
    )


class _MemberImages:
    def __init__(self, members: Sequence[_Member]) -> None:
        self.members = members

    def read(self, index: int) -> bytes:
        member = self.members[index]
        return _read_span(member.shard, member.offset, member.size)


def _clip_benchmark_sample(name: str, parts: dict[str, _Member], classes: list[str]) -> Sample:
    def content(extension: str) -> str:
        member = parts[extension]
        raw = _read_span(member.shard, member.offset, member.size)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{member.shard}: {name}.{extension} is not UTF-8") from None

    if "txt" in parts:
        return Sample(name, content("txt").splitlines(), [{"image": name}])
    if "cls" in parts:
        number = content("cls").strip()
        if not re.fullmatch(r"[0-9]{1,9}", number) or (classes and int(number) >= len(classes)):
            raise UserError(
                f"{parts['cls'].shard}: {name}.cls is '{number}', not one of the "
                f"{len(classes)} classes of classnames.txt"
            )
        label = classes[int(number)] if classes else number
        return Sample(name, [], [{"image": name, "label": label}])
    raise UserError(
        f"{name}: neither .cls nor .txt, but {', '.join(sorted(parts))}; multi-label sets (.npy) "
        "can't be scored"
    )


def _tar_samples(path: Path) -> list[tuple[str, dict[str, _Member]]]:
    """Samples of a tar: (key, extension -> member); the name is cut at its first dot."""
    samples: dict[str, dict[str, _Member]] = {}
    if not path.is_file():
        raise UserError(f"{path}: missing, but nshards.txt counts it")
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, file = member.name.rpartition("/")
                key, _, extension = file.partition(".")
                key = f"{folder}/{key}" if folder else key
                part = _Member(path, member.offset_data, member.size)
                samples.setdefault(key, {})[extension.lower()] = part
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: not readable as a tar: {error}; copy it again") from None
    return list(samples.items())


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _text_file(path).splitlines()]


def _text_file(path: Path, required: bool = False) -> str:
    """Content of a small text file; '' for one that isn't there and needn't be."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if required:
            raise UserError(f"{path}: missing; set data_root or the suite's path") from None
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable: {error}") from None


def _read_span(path: Path, offset: int, size: int) -> bytes:
    if size > MAX_MEMBER:
        raise UserError(f"{path}: the member at byte {offset} claims {size} bytes; copy it again")
    with path.open("rb") as file:
        data = os.pread(file.fileno(), size, offset)
    if len(data) != size:
        raise UserError(f"{path}: ends inside the member at byte {offset}; copy it again")
    return data


READERS = {
    "shards": open_shard_folder,
    "table": open_table,
    "clip_benchmark": open_clip_benchmark,
}
