"""The shard format: plain WebDataset tars, and beside them an index of byte offsets.

docs/shard_format.md is the contract; this module is the only writer of it. Tars are deterministic
(USTAR, no times, no owners), so equal samples give equal bytes, and every file appears under its
final name only when it is whole.
"""

import hashlib
import itertools
import json
import os
import platform
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import arrow as arrow  # before pyarrow converts its first list
from vlp.config import UserError

FORMAT = "biovlp-shards"
VERSION = 1
SPLITS = ("train", "val", "test")
MANIFEST, INDEX, REJECTS = "manifest.json", "index.parquet", "rejects.parquet"

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image_offset", pa.int64(), nullable=False),
        pa.field("image_size", pa.int64(), nullable=False),
        pa.field("image_ext", pa.string(), nullable=False),
        pa.field("text_offset", pa.int64(), nullable=False),
        pa.field("text_size", pa.int64(), nullable=False),
        pa.field("json_offset", pa.int64()),
        pa.field("json_size", pa.int64()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("caption_length", pa.int32(), nullable=False),
        pa.field("article", pa.string(), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
        pa.field("phash", pa.uint64()),
    ]
)
REJECT_SCHEMA = pa.schema(
    [
        pa.field(name, pa.string(), nullable=False)
        for name in ("article", "figure", "image", "stage", "reason")
    ]
)

_BLOCK = 512
_MAX_KEY = 80  # a USTAR name holds 100 bytes, and the longest extension is ".json"
_ROW_GROUP = 1 << 17


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image-caption pair on its way into a shard."""

    key: str
    image: bytes
    extension: str
    """jpg, png or webp."""
    width: int
    height: int
    caption: str
    article: str
    licence: str
    record: dict[str, Any]
    """Provenance for `<key>.json`; fields that are None or empty are left out of the file."""
    phash: int | None = None
    """Perceptual hash of the stored pixels, 64 bits; None where it was not computed."""


class Reject(NamedTuple):
    """One figure or image that was dropped, and why."""

    article: str
    figure: str
    image: str
    stage: str
    reason: str


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the manifest lists it."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str


class ShardWriter:
    """Writes samples into one tar and remembers where each member's data starts.

    Use it as a context manager: the tar appears under `path` when the block ends without an error.
    """

    def __init__(self, path: Path, split: str) -> None:
        if split not in SPLITS:
            raise ValueError(f"split '{split}': must be one of {', '.join(SPLITS)}")
        self.path, self.split = path, split
        self.rows: list[dict[str, Any]] = []
        self._keys: set[str] = set()
        self._digest = hashlib.sha256()
        self._position = 0

    def __enter__(self) -> "ShardWriter":
        self._temporary = temporary_name(self.path)
        self._file = self._temporary.open("wb")
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            end = self._position + 2 * _BLOCK
            self._put(bytes(2 * _BLOCK + -end % tarfile.RECORDSIZE))
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if error is None:
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink()

    def write(self, sample: Sample) -> None:
        """Append the image, the caption and the provenance of one sample, in this order."""
        if re.fullmatch(r"[A-Za-z0-9_-]+", sample.key) is None or len(sample.key) > _MAX_KEY:
            raise ValueError(f"key '{sample.key}': {_MAX_KEY} letters, digits, '_' and '-' at most")
        if sample.key in self._keys:
            raise ValueError(f"key '{sample.key}' occurs twice in {self.path.name}")
        self._keys.add(sample.key)
        text = sample.caption.encode("utf-8")
        record = sample.record | {"key": sample.key, "split": self.split}
        record |= {"article": sample.article, "licence": sample.licence}
        record |= {"width": sample.width, "height": sample.height}
        record = {name: value for name, value in record.items() if value not in (None, "", [], {})}
        provenance = json.dumps(record, ensure_ascii=False, sort_keys=True).encode("utf-8")
        self.rows.append(
            {
                "key": sample.key,
                "shard": self.path.name,
                "split": self.split,
                "image_offset": self._member(f"{sample.key}.{sample.extension}", sample.image),
                "image_size": len(sample.image),
                "image_ext": sample.extension,
                "text_offset": self._member(f"{sample.key}.txt", text),
                "text_size": len(text),
                "json_offset": self._member(f"{sample.key}.json", provenance),
                "json_size": len(provenance),
                "width": sample.width,
                "height": sample.height,
                "caption_length": len(sample.caption),
                "article": sample.article,
                "licence": sample.licence,
                "phash": sample.phash,
            }
        )

    def entry(self) -> ShardEntry:
        """What the manifest says of this shard; call it after the block."""
        digest = self._digest.hexdigest()
        return ShardEntry(self.path.name, self.split, len(self.rows), self._position, digest)

    def _member(self, name: str, data: bytes) -> int:
        """Write one member and return the position of its data."""
        header = tarfile.TarInfo(name)
        header.size = len(data)
        self._put(header.tobuf(format=tarfile.USTAR_FORMAT))
        offset = self._position
        self._put(data)
        self._put(bytes(-len(data) % _BLOCK))
        return offset

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._position += len(data)


def temporary_name(path: Path) -> Path:
    """Where to write before `os.replace`; host and process keep two writers from sharing a file."""
    return path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.tmp")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends without an error."""
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as readable JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def write_table(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write tables one after the other into one Parquet file, atomically, in large row groups.

    No more than one row group is held in memory, however many tables there are.
    """
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        waiting: list[pa.Table] = []
        rows = 0
        for table in tables:
            waiting.append(table)
            rows += len(table)
            if rows >= _ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting, rows = [], 0
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def index_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Index rows as a table of the contract's columns and types."""
    return pa.Table.from_pylist(list(rows), schema=INDEX_SCHEMA)


def reject_tables(rejects: Iterable[Reject]) -> Iterator[pa.Table]:
    """Rejects as tables of the contract's columns, a row group each."""
    rest = iter(rejects)
    while part := list(itertools.islice(rest, _ROW_GROUP)):
        columns = dict(zip(Reject._fields, zip(*part, strict=True), strict=True))
        yield pa.Table.from_pydict(columns, schema=REJECT_SCHEMA)


def write_manifest(
    folder: Path,
    shards: Sequence[ShardEntry],
    rejects: Iterable[pa.Table],
    *,
    stage: str,
    config: dict[str, Any],
    inputs: dict[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write rejects.parquet and then, last of all files, manifest.json; return the manifest.

    Args:
        rejects: tables as `reject_tables` makes them, read once.
        extra: more entries of the manifest; they may not replace those of the contract.
    """
    reasons: Counter[str] = Counter()

    def counted() -> Iterator[pa.Table]:
        for table in rejects:
            for group in table["reason"].value_counts().to_pylist():
                reasons[group["values"]] += group["counts"]
            yield table

    write_table(folder / REJECTS, REJECT_SCHEMA, counted())
    manifest = dict(extra or {}) | {
        "format": FORMAT,
        "version": VERSION,
        "samples": sum(shard.samples for shard in shards),
        "splits": {s: sum(x.samples for x in shards if x.split == s) for s in SPLITS},
        "shards": [asdict(shard) for shard in shards],
        "rejected": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "stage": stage,
        "config": config,
        "inputs": inputs,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a shard folder.

    Raises:
        UserError: no folder, no manifest, or one that this version cannot read.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not path.is_file():
        raise UserError(
            f"{path}: missing; the run that makes the shards is unfinished (run it again), or "
            f"others made them (run `python -m data_prep index {folder}`)"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not a manifest of format '{FORMAT}'")
    if manifest.get("version") != VERSION:
        raise UserError(f"{path}: version {manifest.get('version')}, this program reads {VERSION}")
    return manifest


def make_key(*parts: str) -> str:
    """A sample key from names: other characters become '-', long keys end in a hash.

    WebDataset cuts a member's name at its first dot, so a key holds none.
    """
    key = "_".join(re.sub(r"[^A-Za-z0-9_-]+", "-", part).strip("-") for part in parts)
    if not key.strip("_-") or len(key) > _MAX_KEY:
        key = f"{key[: _MAX_KEY - 13]}-{_digest(*parts)}"
    return key


def unique_keys(names: Sequence[tuple[str, ...]]) -> list[str]:
    """One key for each name, in order; names whose keys would be equal get a hash at the end."""
    keys = [make_key(*name) for name in names]
    times = Counter(keys)
    occurrence: Counter[tuple[str, ...]] = Counter()
    for position, (name, key) in enumerate(zip(names, keys, strict=True)):
        occurrence[name] += 1
        if times[key] > 1:
            suffix = _digest(*name, str(occurrence[name]))
            keys[position] = f"{key[: _MAX_KEY - 13]}-{suffix}"
    return keys


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()[:12]
