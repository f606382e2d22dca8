"""Index and manifest for WebDataset tars that others made, by one scan of their headers."""

import hashlib
import io
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from PIL import Image
from rich.console import Console

from data_prep.images import ImageRejected, image_format
from data_prep.progress import Meter
from data_prep.runners import attempt_all, local_workers, results, shown
from data_prep.shards import (
    INDEX,
    INDEX_SCHEMA,
    MANIFEST,
    Reject,
    ShardEntry,
    index_table,
    read_manifest,
    reject_tables,
    write_manifest,
    write_table,
)
from data_prep.units import print_summary
from vlp.config import UserError, to_dict

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "gif", "bmp")
CAPTION_KEYS = ("caption", "text")
"""Where a sample's JSON holds the caption when there is no .txt: img2dataset's name comes first."""

_MAX_TEXT = 1 << 24  # bytes of a caption or a JSON member
_HEAD = 1 << 18  # bytes of an image that hold its header, save for those with a long EXIF part
_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """WebDataset tars of any maker get an index and a manifest beside them.

    Example: python -m data_prep index shards/theirs
    """

    source: str
    """Folder with the tars, sub-folders included."""
    split: Literal["", "train", "val", "test"] = ""
    """The split of all tars; empty reads it from their names (train..., val..., test...), and takes
    train where the name says nothing."""
    max_pixels: int = 100_000_000
    """Images that declare more pixels than this are rejected."""
    workers: int = 0
    """Worker processes; 0 takes one for each core."""


@dataclass(frozen=True)
class ShardScan:
    """What one tar holds."""

    entry: ShardEntry
    rows: list[dict[str, Any]]
    rejects: list[Reject]

    @property
    def items(self) -> int:
        """It is one tar."""
        return 1

    @property
    def bytes(self) -> int:
        """Size of the tar."""
        return self.entry.bytes

    @property
    def samples(self) -> int:
        """Samples that can be read."""
        return len(self.rows)

    @property
    def rejected(self) -> int:
        """Samples that lack something."""
        return len(self.rejects)


class MemberRejected(Exception):
    """A sample cannot be indexed; the message is the reason that rejects.parquet records."""


def run(config: IndexConfig) -> None:
    """The stage `index`."""
    folder = Path(config.source)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / MANIFEST).is_file():
        made_by = read_manifest(folder)["stage"]
        if made_by != "index":
            raise UserError(f"{folder}: stage '{made_by}' wrote its index; nothing to do")
    shards = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tar"))
    if not shards:
        raise UserError(f"{folder}: holds no .tar files")
    console = Console()
    workers = local_workers(partial(_scan, folder, config), config.workers)
    outcomes = attempt_all(workers, shards, retries=0)
    seen = shown(outcomes, Meter(len(shards), "tars"), console, every=30.0)
    scans = sorted(results(seen), key=lambda scan: scan.entry.name)
    (folder / MANIFEST).unlink(missing_ok=True)
    write_table(folder / INDEX, INDEX_SCHEMA, (index_table(scan.rows) for scan in scans))
    settings = {key: value for key, value in to_dict(config).items() if key != "workers"}
    manifest = write_manifest(
        folder,
        [scan.entry for scan in scans],
        reject_tables(reject for scan in scans for reject in scan.rejects),
        stage="index",
        config=settings,
        inputs={"shards": len(scans), "bytes": sum(scan.entry.bytes for scan in scans)},
    )
    print_summary(manifest, folder, console)
    if not manifest["samples"]:
        raise UserError(f"{folder}: no tar holds a sample of image and caption")


def split_from_name(name: str) -> str:
    """The split that a shard's path names: `train-00001.tar`, `test/0.tar`, else train."""
    for part in re.split(r"[^a-z]+", name.lower()):
        for prefix, split in (("train", "train"), ("val", "val"), ("dev", "val"), ("test", "test")):
            if part.startswith(prefix):
                return split
    return "train"


def _scan(folder: Path, config: IndexConfig, name: str) -> ShardScan:
    split = config.split or split_from_name(name)
    with (folder / name).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
        samples: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        rejects, twice = [], set()
        for member, offset, length in members(file, f"{folder / name}", size):
            key, extension = split_key(member)
            if key is None:
                continue
            if extension in samples[key]:
                twice.add(key)
            samples[key][extension] = (offset, length)
        rows = []
        for key, parts in samples.items():
            try:
                if key in twice:
                    raise MemberRejected("member twice in the tar")
                rows.append(_row(file, key, parts, config) | {"shard": name})
            except MemberRejected as error:
                rejects.append(Reject("", key, name, "index", str(error)))
    for row in rows:
        row["split"] = split
    rows.sort(key=lambda row: int(row["image_offset"]))
    return ShardScan(ShardEntry(name, split, len(rows), size, digest), rows, rejects)


def split_key(member: str) -> tuple[str | None, str]:
    """(key, extension) of a member's name by WebDataset's rule: cut at the basename's first dot.

    The key is None for members that WebDataset passes over: no extension, hidden, or `__meta__`.
    """
    match = re.fullmatch(r"((?:.*/)?([^./]+))\.([^/]*)", member, flags=re.DOTALL)
    if match is None or (match[2].startswith("__") and match[2].endswith("__")):
        return None, ""
    return match[1], match[3].lower()


def members(file: BinaryIO, name: str, size: int) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the data, size) of the plain files in a tar; long names and pax included.

    Raises:
        UserError: the tar is corrupt or cut off; the message says at which byte.
    """
    file.seek(0)
    end = 0  # where the next header begins
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                data_end = member.offset_data + member.size
                if member.size < 0 or data_end > size:
                    raise UserError(f"{name}: cut off at byte {size}, inside '{member.name}'")
                if member.isreg() and member.sparse is None:
                    yield member.name, member.offset_data, member.size
                end = tar.offset
    except (tarfile.TarError, ValueError, OSError, OverflowError) as error:
        raise UserError(f"{name}: corrupt tar at or after byte {end}: {error}") from None
    # A bad header in the middle ends tarfile's loop as a good end does: look at the bytes there.
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        problem = "cut off" if end >= size else "corrupt tar header"
        raise UserError(f"{name}: {problem} at byte {end}; get the file again")


def _row(
    file: BinaryIO, key: str, parts: dict[str, tuple[int, int]], config: IndexConfig
) -> dict[str, Any]:
    """The index row of one sample, save shard and split."""
    images = [extension for extension in IMAGE_EXTENSIONS if extension in parts]
    if not images:
        raise MemberRejected("no image in the sample")
    record = _record(file, parts)
    caption_part, caption = _caption(file, parts, record)
    offset, length = parts[images[0]]
    width, height = _image_size(file, offset, length, config.max_pixels)
    json_offset, json_size = parts.get("json", (None, None))
    return {
        "key": key,
        "image_offset": offset,
        "image_size": length,
        "image_ext": images[0],
        "text_offset": parts[caption_part][0],
        "text_size": parts[caption_part][1],
        "json_offset": json_offset,
        "json_size": json_size,
        "width": width,
        "height": height,
        "caption_length": len(caption),
        "article": str(record.get("article") or ""),
        "licence": str(record.get("licence") or record.get("license") or ""),
        "phash": None,
    }


def _record(file: BinaryIO, parts: dict[str, tuple[int, int]]) -> dict[str, Any]:
    if "json" not in parts:
        return {}
    try:
        record = json.loads(_text(file, parts["json"], "JSON"))
    except (json.JSONDecodeError, RecursionError):
        raise MemberRejected("JSON member malformed") from None
    return record if isinstance(record, dict) else {}


def _caption(
    file: BinaryIO, parts: dict[str, tuple[int, int]], record: dict[str, Any]
) -> tuple[str, str]:
    """(extension of the member that holds the caption, the caption)."""
    if "txt" in parts:
        where, caption = "txt", _text(file, parts["txt"], "caption")
    else:
        found = [record[key] for key in CAPTION_KEYS if isinstance(record.get(key), str)]
        where, caption = "json", found[0] if found else ""
    if not caption.strip():
        raise MemberRejected("no caption in the sample")
    return where, caption


def _text(file: BinaryIO, place: tuple[int, int], what: str) -> str:
    if place[1] > _MAX_TEXT:
        raise MemberRejected(f"{what} longer than {_MAX_TEXT:,} bytes")
    file.seek(place[0])
    try:
        return file.read(place[1]).decode("utf-8")
    except UnicodeDecodeError:
        raise MemberRejected(f"{what} not UTF-8") from None


def _image_size(file: BinaryIO, offset: int, length: int, max_pixels: int) -> tuple[int, int]:
    """Width and height from the image's header; nothing is decoded."""
    for head in (min(_HEAD, length), length):
        file.seek(offset)
        data = file.read(head)
        try:
            with Image.open(io.BytesIO(data), formats=[image_format(data)]) as image:
                width, height = image.size
            break
        except ImageRejected as error:
            raise MemberRejected(str(error)) from None
        except (OSError, SyntaxError, ValueError, LookupError, Image.DecompressionBombError):
            if head == length:
                raise MemberRejected("image broken") from None
    if width * height > max_pixels:
        raise MemberRejected(f"image larger than {max_pixels:,} pixels")
    return width, height
