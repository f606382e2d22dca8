"""A first pass over a shard folder: what curation has to know of each sample, as a table."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from data_prep.filters import (
    CaptionRules,
    PictureRules,
    caption_digest,
    caption_problem,
    picture_problem,
)
from data_prep.images import ImageRejected, image_format, to_eight_bits
from data_prep.indexing import CAPTION_KEYS
from data_prep.runners import map_unordered
from data_prep.shards import INDEX, read_manifest
from vlp.config import UserError
from vlp.hashing import perceptual_hash

FACTS = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("key", pa.string()),
        ("split", pa.string()),
        ("article", pa.string()),
        ("figure", pa.string()),
        ("image", pa.string()),
        ("licence", pa.string()),
        ("kind", pa.string()),
        ("journal", pa.string()),
        ("year", pa.string()),
        ("keywords", pa.list_(pa.string())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("caption_length", pa.int32()),
        ("bytes", pa.int64()),
        ("caption", pa.uint64()),
        ("phash", pa.uint64()),
        ("problem", pa.string()),
    ]
)
"""`shard` is the number of the shard in the manifest, `row` that of the sample within it."""

COPIED = {"jpg": "jpg", "jpeg": "jpg", "png": "png", "webp": "webp"}
"""Extensions of images that can be taken over as they are."""

_THUMBNAIL = 32


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What samples must be like."""

    caption: CaptionRules
    picture: PictureRules
    max_pixels: int


@dataclass(frozen=True)
class Source:
    """A shard folder and the facts about its samples."""

    name: str
    folder: Path
    manifest: dict[str, Any]
    facts: pa.Table
    start: int
    """Number of its first sample among those of all sources."""

    @property
    def samples(self) -> slice:
        """Its samples among those of all sources."""
        return slice(self.start, self.start + len(self.facts))


def inspect(folder: Path, rules: Rules, workers: int) -> pa.Table:
    """The facts about all samples of a shard folder, in the order of its index."""
    shards = [entry["name"] for entry in read_manifest(folder)["shards"]]
    work = partial(_inspect_shard, folder, rules)
    tables = dict(map_unordered(work, list(enumerate(shards)), workers))
    return pa.concat_tables([FACTS.empty_table(), *(tables[n] for n in sorted(tables))])


def shard_rows(folder: Path, shard: str) -> list[dict[str, Any]]:
    """The index rows of one shard, in its order."""
    table = pq.read_table(folder / INDEX, filters=[("shard", "=", shard)])
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def read_member(file: BinaryIO, row: dict[str, Any], kind: str) -> bytes:
    """The `image`, `text` or `json` member of an index row.

    Raises:
        UserError: the shard is shorter than its index says.
    """
    file.seek(row[f"{kind}_offset"])
    data = file.read(row[f"{kind}_size"])
    if len(data) != row[f"{kind}_size"]:
        raise UserError(f"{file.name}: cut off inside {row['key']}; run `data_prep check` on it")
    return data


def read_record(file: BinaryIO, row: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A sample's JSON (empty where there is none) and its caption."""
    record: Any = {}
    if row["json_offset"] is not None:
        record = json.loads(read_member(file, row, "json"))
        record = record if isinstance(record, dict) else {}
    if row["text_offset"] != row["json_offset"]:
        return record, read_member(file, row, "text").decode("utf-8")
    return record, next(record[key] for key in CAPTION_KEYS if isinstance(record.get(key), str))


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """The pixels of an image file, 8-bit grey or RGB.

    Raises:
        ImageRejected: broken, or with more pixels than allowed.
    """
    try:
        with Image.open(io.BytesIO(data), formats=[image_format(data)]) as image:
            if image.width * image.height > max_pixels:
                raise ImageRejected(f"image larger than {max_pixels:,} pixels")
            return to_eight_bits(image)
    except (OSError, SyntaxError, ValueError, LookupError, Image.DecompressionBombError):
        raise ImageRejected("image broken") from None


def _inspect_shard(folder: Path, rules: Rules, task: tuple[int, str]) -> tuple[int, pa.Table]:
    number, shard = task
    with (folder / shard).open("rb") as file:
        facts = [
            _facts(file, row, rules) | {"shard": number, "row": place}
            for place, row in enumerate(shard_rows(folder, shard))
        ]
    return number, pa.Table.from_pylist(facts, schema=FACTS)


def _facts(file: BinaryIO, row: dict[str, Any], rules: Rules) -> dict[str, Any]:
    record, caption = read_record(file, row)
    problem, phash = "", row["phash"]
    if row["image_ext"] not in COPIED:
        problem = f"image format {row['image_ext']}"
    elif phash is None:
        try:
            phash = perceptual_hash(decode(read_member(file, row, "image"), rules.max_pixels))
        except ImageRejected as error:
            problem = str(error)
    phash = phash or 0
    problem = problem or picture_problem(row["width"], row["height"], phash, rules.picture)
    problem = problem or caption_problem(caption, rules.caption)
    keywords = record.get("keywords")
    return {
        **{name: row[name] for name in ("key", "split", "article", "licence", "width", "height")},
        **{name: _text(record.get(name)) for name in ("figure", "image", "kind", "journal")},
        "year": _text(record.get("date"))[:4],
        "keywords": [_text(word) for word in keywords] if isinstance(keywords, list) else [],
        "caption_length": len(caption),
        "bytes": row["image_size"] + row["text_size"] + (row["json_size"] or 0),
        "caption": caption_digest(caption),
        "phash": phash,
        "problem": problem,
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


@dataclass(frozen=True)
class Looks:
    """A closer look at some images."""

    digests: NDArray[np.uint64]
    """64 bits of a hash of the file's bytes [n]."""
    pixels: NDArray[np.float32]
    """Grey thumbnails, each of mean 0 and length 1; zeros where an image is flat [n, 1024]."""

    @classmethod
    def none(cls) -> "Looks":
        """A look at nothing."""
        return cls(np.empty(0, np.uint64), np.empty((0, _THUMBNAIL**2), np.float32))


def look(
    sources: "Sequence[Source]", samples: NDArray[np.int64], max_pixels: int, workers: int
) -> Looks:
    """A closer look at some of the samples of all sources, in the order of `samples`."""
    order = np.sort(samples)
    places: list[tuple[int, _Place]] = []
    for source in sources:
        inside = order[(order >= source.start) & (order < source.start + len(source.facts))]
        rows = source.facts.take(pa.array(inside - source.start))
        shards, within = rows["shard"].to_numpy(), rows["row"].to_numpy()
        for shard in np.unique(shards).tolist():
            name = source.manifest["shards"][shard]["name"]
            chosen = tuple(within[shards == shard].tolist())
            places.append((len(places), (source.folder, name, chosen)))
    found = dict(map_unordered(partial(_look_at_shard, max_pixels), places, workers))
    parts = [Looks.none(), *(found[number] for number in range(len(places)))]
    back = np.searchsorted(order, samples)
    digests = np.concatenate([part.digests for part in parts])[back]
    return Looks(digests, np.concatenate([part.pixels for part in parts])[back])


_Place = tuple[Path, str, tuple[int, ...]]  # a folder, one of its shards, rows within that


def _look_at_shard(max_pixels: int, task: tuple[int, _Place]) -> tuple[int, Looks]:
    number, (folder, shard, places) = task
    rows = shard_rows(folder, shard)
    with (folder / shard).open("rb") as file:
        looks = list(_looks(file, [rows[place] for place in places], max_pixels))
    digests = np.array([digest for digest, _ in looks], dtype=np.uint64)
    return number, Looks(digests, np.stack([pixels for _, pixels in looks]))


def _looks(
    file: BinaryIO, rows: Sequence[dict[str, Any]], max_pixels: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for row in rows:
        data = read_member(file, row, "image")
        digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
        yield digest, thumbnail(decode(data, max_pixels))


def thumbnail(image: Image.Image) -> NDArray[np.float32]:
    """32 x 32 grey pixels in a row, of mean 0 and length 1: dot products are correlations."""
    small = image.convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    pixels = np.asarray(small, dtype=np.float32).reshape(-1)
    pixels = pixels - pixels.mean()
    length = float(np.linalg.norm(pixels))
    return np.asarray(pixels / (length or 1.0), dtype=np.float32)
