"""Shard folders, read through index.parquet and manifest.json (docs/shard_format.md).

Members are fetched by byte offset: no tar is ever scanned or streamed here, so any sample can be
read at any time, which is what makes the data order a pure function. A folder may lie anywhere that
storage.py reaches.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlp.config import UserError
from vlp.data.cache import Cache
from vlp.data.remote import Remote
from vlp.data.storage import Local, Span, Storage

FORMAT = "biovlp-shards"
VERSION = 1
COLUMNS = (
    "key",
    "shard",
    "split",
    "json_offset",
    "image_offset",
    "image_size",
    "text_offset",
    "text_size",
)

Verify = Literal["size", "sha256"]


class RawSample(NamedTuple):
    """One figure and its caption, as stored."""

    key: str
    image: bytes
    caption: bytes


class CacheConfig(NamedTuple):
    """Where samples of remote shards are kept, and how many bytes of them at most."""

    folder: str
    limit: int


@dataclass(frozen=True)
class ShardFolder:
    """The samples of one split of a shard folder, in the order of shards, then offsets."""

    storage: Storage
    shards: tuple[str, ...]
    shard_sizes: tuple[int, ...]
    digests: tuple[str, ...]
    """SHA-256 of each shard by the manifest."""
    keys: pa.ChunkedArray
    shard_of: np.ndarray
    spans: np.ndarray
    """int64 [N, 4]: image offset, image size, text offset, text size, in bytes."""
    in_json: np.ndarray
    """bool [N]: the text span is the sample's JSON, which holds the caption (tars of others)."""

    def __len__(self) -> int:
        return len(self.shard_of)

    def key(self, index: int) -> str:
        return str(self.keys[index].as_py())

    def read(self, index: int) -> RawSample:
        """Sample number `index` (0-based).

        Raises:
            UserError: the shard can't be opened or ends before the member does.
        """
        return next(self.read_many([index]))

    def read_many(self, indices: Sequence[int] | np.ndarray) -> Iterator[RawSample]:
        """Samples in the given order; their reads overlap where the storage can do that.

        Raises:
            UserError: as `read`.
        """
        rows = [int(index) for index in indices]
        spans = [span for row in rows for span in self._spans(row)]
        data = self.storage.read(spans)
        for row in rows:
            image, text = next(data), next(data)
            yield RawSample(self.key(row), image, self._caption(row, text))

    def captions(self, indices: Sequence[int] | np.ndarray) -> Iterator[str]:
        """Only the captions of samples, for training a vocabulary."""
        rows = [int(index) for index in indices]
        texts = self.storage.read([self._spans(row)[1] for row in rows])
        for row, text in zip(rows, texts, strict=True):
            yield self._caption(row, text).decode("utf-8", errors="replace")

    def caption(self, index: int) -> str:
        """Only the caption of a sample."""
        return next(self.captions([index]))

    def check_shard_of(self, index: int) -> None:
        """Compare the checksum of the shard that holds a sample with the manifest's.

        Raises:
            UserError: they differ.
        """
        shard = int(self.shard_of[index])
        _check_digest(self.storage, self.shards[shard], self.digests[shard])

    def _spans(self, index: int) -> tuple[Span, Span]:
        """Where image and text of a sample are. They are neighbours, which costs nothing here: a
        remote storage asks for both at once, a local one would have to copy them apart."""
        shard = self.shards[self.shard_of[index]]
        image, image_size, text, text_size = self.spans[index].tolist()
        return Span(shard, image, image_size), Span(shard, text, text_size)

    def _caption(self, index: int, text: bytes) -> bytes:
        if self.in_json[index]:
            record = json.loads(text)
            return str(record["caption"] if "caption" in record else record["text"]).encode()
        return text


def open_shards(
    folder: str | Path, split: str, verify: Verify = "size", cache: CacheConfig | None = None
) -> ShardFolder:
    """Open one split of a shard folder.

    Args:
        folder: holds manifest.json, index.parquet and the tars that they name; a URL or a path.
        split: `train`, `val`, `test` or whatever the index says.
        verify: compare each shard's `size` with the manifest, or read it and compare its `sha256`.
        cache: where samples are kept if `folder` is a URL.

    Raises:
        UserError: anything missing, of another version, or different from the manifest.
    """
    storage = open_storage(folder)
    manifest = _manifest(storage)
    table = _index(storage)
    found = pc.unique(table["split"]).to_pylist()
    table = table.filter(pc.equal(table["split"], split))
    if table.num_rows == 0:
        has = ", ".join(sorted(found)) or "no samples at all"
        raise UserError(f"{folder}: no samples in split '{split}'; it has {has}")
    table = table.sort_by([("shard", "ascending"), ("image_offset", "ascending")])
    encoded = table["shard"].combine_chunks().dictionary_encode()
    shards = tuple(encoded.dictionary.to_pylist())
    shard_of = encoded.indices.to_numpy()
    entries = _checked(storage, shards, manifest, verify)
    digests = {entry["name"]: str(entry["sha256"]) for entry in entries}
    if cache is not None:
        storage = storage.cached(Cache(cache.folder, cache.limit, digests))
    return ShardFolder(
        storage=storage,
        shards=shards,
        shard_sizes=tuple(int(n) for n in np.bincount(shard_of, minlength=len(shards))),
        digests=tuple(digests[shard] for shard in shards),
        keys=table["key"],
        shard_of=shard_of,
        in_json=pc.equal(table["json_offset"], table["text_offset"]).fill_null(False).to_numpy(),
        spans=np.stack([table[column].to_numpy() for column in COLUMNS[4:]], axis=1),
    )


def open_storage(path: str | Path) -> Storage:
    """A folder on this machine, or, if `path` has a `://`, at that URL."""
    path = str(path)
    return Remote(path.rstrip("/")) if "://" in path else Local(path)


def splits(folder: str | Path) -> list[str]:
    """The splits that a shard folder has, by its manifest."""
    counts = _manifest(open_storage(folder)).get("splits", {})
    return sorted(split for split, count in counts.items() if count)


def _manifest(storage: Storage) -> dict[str, Any]:
    path = f"{storage.root}/manifest.json"
    if not storage.exists("manifest.json"):
        if "://" not in storage.root and not os.path.isdir(storage.root):
            raise UserError(
                f"{storage.root}: no such shard folder; make one with `python -m data_prep`"
            )
        raise UserError(
            f"{storage.root}: no manifest.json; if it holds tars: "
            f"`python -m data_prep index {storage.root}`"
        )
    try:
        manifest = json.loads(storage.whole("manifest.json"))
        known = manifest["format"] == FORMAT and manifest["version"] <= VERSION
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest of shards ({error}); write it again") from None
    if not known:
        raise UserError(
            f"{path}: format {manifest['format']} version {manifest['version']}, this code reads "
            f"{FORMAT} up to version {VERSION}; update the code or write the shards again"
        )
    return dict(manifest)


def _index(storage: Storage) -> pa.Table:
    if not storage.exists("index.parquet"):
        raise UserError(
            f"{storage.root}/index.parquet: missing; run `python -m data_prep index {storage.root}`"
        )
    return storage.table("index.parquet", COLUMNS)


def _checked(
    storage: Storage, shards: Sequence[str], manifest: dict[str, Any], verify: Verify
) -> list[dict[str, Any]]:
    """The manifest's entries of the shards, which are as it says."""
    listed = {entry["name"]: entry for entry in manifest["shards"]}
    for shard in shards:
        if shard not in listed:
            raise UserError(
                f"{storage.root}/index.parquet names '{shard}', which manifest.json does not"
            )
    entries = [listed[shard] for shard in shards]
    for entry, size in zip(entries, storage.sizes(shards), strict=True):
        if size != entry["bytes"]:
            raise UserError(
                f"{storage.root}/{entry['name']}: {size} bytes, the manifest says "
                f"{entry['bytes']}; copy or write it again"
            )
        if verify == "sha256":
            _check_digest(storage, entry["name"], entry["sha256"])
    return entries


def _check_digest(storage: Storage, shard: str, expected: str) -> None:
    digest = storage.sha256(shard)
    if digest != expected:
        raise UserError(
            f"{storage.root}/{shard}: SHA-256 {digest[:12]}..., the manifest says "
            f"{expected[:12]}...; the file is damaged or was changed: copy or write it again"
        )
