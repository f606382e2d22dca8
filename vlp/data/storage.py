"""What a shard folder must answer, wherever it lies, and the answers of a folder on this machine.

The questions: a whole small file, a table, sizes and checksums of shards, and many spans of bytes
at once. Spans are what training lives on. Here they are `pread` after the kernel was told about all
of them; remote.py has the answers of a folder at a URL.

Neither kind holds anything that does not survive a fork: loader workers get them as they are.
"""

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from vlp.config import UserError
from vlp.data.cache import Cache


class Span(NamedTuple):
    """Bytes of a file of the folder; `file` is its name relative to the folder."""

    file: str
    offset: int
    size: int


class Storage(Protocol):
    """A folder of shards."""

    @property
    def root(self) -> str:
        """Path or URL of the folder."""
        ...

    def exists(self, file: str) -> bool:
        """Whether the folder has this file."""
        ...

    def whole(self, file: str) -> bytes:
        """A small file."""
        ...

    def table(self, file: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of a Parquet file; raises UserError if one is missing."""
        ...

    def sizes(self, files: Sequence[str]) -> list[int]:
        """Bytes of each file; raises UserError for one that is not there."""
        ...

    def sha256(self, file: str) -> str:
        """Checksum of a file, which is read whole."""
        ...

    def read(self, spans: Sequence[Span]) -> Iterator[bytes]:
        """The bytes of each span, in order; raises UserError if they can't be had."""
        ...

    def cached(self, cache: Cache) -> "Storage":
        """The same folder, with a cache where that saves anything."""
        ...


@dataclass(frozen=True)
class Local:
    """A folder on this machine or on a file system that is mounted here."""

    root: str

    def exists(self, file: str) -> bool:
        return os.path.isfile(f"{self.root}/{file}")

    def whole(self, file: str) -> bytes:
        with open(f"{self.root}/{file}", "rb") as stream:
            return stream.read()

    def table(self, file: str, columns: Sequence[str]) -> pa.Table:
        return read_table(f"{self.root}/{file}", f"{self.root}/{file}", columns)

    def sizes(self, files: Sequence[str]) -> list[int]:
        return [self._size(f"{self.root}/{file}") for file in files]

    @staticmethod
    def _size(path: str) -> int:
        try:
            return os.stat(path).st_size
        except OSError as error:
            raise UserError(
                f"{path}: the manifest lists this shard, but it is not there ({error.strerror})"
            ) from None

    def sha256(self, file: str) -> str:
        with open(f"{self.root}/{file}", "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def read(self, spans: Sequence[Span]) -> Iterator[bytes]:
        if len(spans) > 1 and hasattr(os, "posix_fadvise"):  # not on macOS
            # The kernel fetches what it lacks while the first samples are decoded; on a disk or a
            # network file system requests then overlap instead of waiting for each other.
            for file, offset, size in spans:
                descriptor = _open(f"{self.root}/{file}").fd
                os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)
        for file, offset, size in spans:
            yield _open(f"{self.root}/{file}").read(offset, size)

    def cached(self, cache: Cache) -> Storage:
        return self


class OpenFile:
    """An open file that closes when the cache of descriptors drops it."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path}: can't be opened: {error.strerror}") from None

    def read(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self.fd, size, offset)
        except OSError as error:  # a disk or a mounted file system that failed
            raise UserError(f"{self.path}: can't be read: {error.strerror}") from None
        if len(data) != size:
            raise UserError(
                f"{self.path}: ends inside the member at byte {offset}; copy or write it again"
            )
        return data

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


# Descriptors are opened once per process and shared by its samples; pread carries its own offset,
# so that forked workers may share one too. 512 stays under the usual limit of 1,024.
_open = functools.lru_cache(maxsize=512)(OpenFile)


def read_table(source: Any, name: str, columns: Sequence[str]) -> pa.Table:
    """Columns of a Parquet file: a path or an open file, called `name` in errors."""
    try:
        file = pq.ParquetFile(source, pre_buffer=True)
        has = file.schema_arrow.names
        missing = [column for column in columns if column not in has]
        if missing:
            raise UserError(f"{name}: no column {', '.join(missing)}; it has {', '.join(has)}")
        return file.read(columns=list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{name}: not readable as Parquet: {error}") from None
