"""Shard folders, read through index.parquet and manifest.json (docs/shard_format.md).

Members are fetched by byte offset: no tar is ever scanned or streamed here, so any sample can be
read at any time, which is what makes the data order a pure function.
"""

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlp.config import UserError

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


@dataclass(frozen=True)
class ShardFolder:
    """The samples of one split of a shard folder, in the order of shards, then offsets."""

    folder: Path
    shards: tuple[str, ...]
    shard_sizes: tuple[int, ...]
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
        image_offset, image_size = (int(value) for value in self.spans[index, :2])
        image = _pread(self._path(index), image_offset, image_size)
        return RawSample(self.key(index), image, self._caption(index))

    def caption(self, index: int) -> str:
        """Only the caption of a sample, for training a vocabulary."""
        return self._caption(index).decode("utf-8", errors="replace")

    def _caption(self, index: int) -> bytes:
        text_offset, text_size = (int(value) for value in self.spans[index, 2:])
        text = _pread(self._path(index), text_offset, text_size)
        if self.in_json[index]:
            record = json.loads(text)
            return str(record["caption"] if "caption" in record else record["text"]).encode()
        return text

    def _path(self, index: int) -> str:
        return f"{self.folder}/{self.shards[self.shard_of[index]]}"


def open_shards(folder: str | Path, split: str, verify: Verify = "size") -> ShardFolder:
    """Open one split of a shard folder.

    Args:
        folder: holds manifest.json, index.parquet and the tars that they name.
        split: `train`, `val`, `test` or whatever the index says.
        verify: compare each shard's `size` with the manifest, or read it and compare its `sha256`.

    Raises:
        UserError: anything missing, of another version, or different from the manifest.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    table = _index(folder / "index.parquet")
    found = pc.unique(table["split"]).to_pylist()
    table = table.filter(pc.equal(table["split"], split))
    if table.num_rows == 0:
        has = ", ".join(sorted(found)) or "no samples at all"
        raise UserError(f"{folder}: no samples in split '{split}'; it has {has}")
    table = table.sort_by([("shard", "ascending"), ("image_offset", "ascending")])
    encoded = table["shard"].combine_chunks().dictionary_encode()
    shards = tuple(encoded.dictionary.to_pylist())
    shard_of = encoded.indices.to_numpy()
    listed = {entry["name"]: entry for entry in manifest["shards"]}
    for shard in shards:
        if shard not in listed:
            raise UserError(f"{folder}/index.parquet names '{shard}', which manifest.json does not")
        _check_shard(folder / shard, listed[shard], verify)
    return ShardFolder(
        folder=folder,
        shards=shards,
        shard_sizes=tuple(int(n) for n in np.bincount(shard_of, minlength=len(shards))),
        keys=table["key"],
        shard_of=shard_of,
        in_json=pc.equal(table["json_offset"], table["text_offset"]).fill_null(False).to_numpy(),
        spans=np.stack([table[column].to_numpy() for column in COLUMNS[4:]], axis=1),
    )


def splits(folder: str | Path) -> list[str]:
    """The splits that a shard folder has, by its manifest."""
    counts = _manifest(Path(folder)).get("splits", {})
    return sorted(split for split, count in counts.items() if count)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such shard folder; make one with `python -m data_prep`")
    if not path.is_file():
        raise UserError(
            f"{folder}: no manifest.json; if it holds tars: `python -m data_prep index {folder}`"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT and manifest["version"] <= VERSION
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest of shards ({error}); write it again") from None
    if not known:
        raise UserError(
            f"{path}: format {manifest['format']} version {manifest['version']}, this code reads "
            f"{FORMAT} up to version {VERSION}; update the code or write the shards again"
        )
    return dict(manifest)


def _index(path: Path) -> pa.Table:
    if not path.is_file():
        raise UserError(f"{path}: missing; run `python -m data_prep index {path.parent}`")
    try:
        names = pq.read_schema(path).names
        missing = [column for column in COLUMNS if column not in names]
        if missing:
            raise UserError(f"{path}: no column {', '.join(missing)}; it has {', '.join(names)}")
        return pq.read_table(path, columns=list(COLUMNS))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not readable as Parquet: {error}") from None


def _check_shard(path: Path, entry: dict[str, Any], verify: Verify) -> None:
    if not path.is_file():
        raise UserError(f"{path}: the manifest lists this shard, but it is not there")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise UserError(
            f"{path}: {size} bytes, the manifest says {entry['bytes']}; copy or write it again"
        )
    if verify == "sha256":
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry["sha256"]:
            raise UserError(
                f"{path}: SHA-256 {digest[:12]}..., the manifest says {entry['sha256'][:12]}...; "
                "the file is damaged or was changed: copy or write it again"
            )


# Descriptors are opened once per process and shared by its samples; pread carries its own offset,
# so that forked workers may share one too. 512 stays under the usual limit of 1,024.
@functools.lru_cache(maxsize=512)
def _descriptor(path: str) -> "_File":
    return _File(path)


class _File:
    """An open file that closes when the cache drops it."""

    def __init__(self, path: str) -> None:
        try:
            self.fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path}: can't be opened: {error.strerror}") from None

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def _pread(path: str, offset: int, size: int) -> bytes:
    data = os.pread(_descriptor(path).fd, size, offset)
    if len(data) != size:
        raise UserError(f"{path}: ends inside the member at byte {offset}; copy or write it again")
    return data
