"""Samples of remote shards on a local disk: bounded, shared by all processes of a machine.

For each shard there is one sparse file, named after the shard's checksum, in which a span stands
where it stands in the shard. The 512 bytes before a member are its tar header, which nobody reads
here: the copy keeps the span's length and CRC-32 in the last of them. So one `pread` tells whether
a span is there and whole; a torn write, a crash of the machine or a disk that lies only costs a
request. No locks: whoever writes the same span writes the same bytes.

What is in the cache stays. Each sample comes once an epoch, so the one used longest ago is the
very next to be needed again: dropping it for another, as caches do, would turn every hit into a
miss. Of a folder larger than the bound, a fixed share is read here in each epoch, and the rest from
its URL. Only copies of other folders that no process opened for a day make room.
"""

import functools
import os
import struct
import time
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path

_RECORD = struct.Struct("<4sIQ")  # mark, CRC-32, length
_MARK = b"span"
SUFFIX = ".spans"

PAGE = 4096
"""Bytes that file systems give out at once."""

RECOUNT = 64 * 2**20
"""Bytes that a process writes between two looks at how much is there; the bound is kept to within
so much per process."""

PAUSE = 60.0
"""Seconds between two looks at a full cache."""

STALE = 24 * 3600.0
"""Seconds after which a copy that nobody opened may go."""


class Cache:
    """Spans of shards, found again by name, offset and length."""

    def __init__(self, folder: str | Path, limit: int, digests: Mapping[str, str]) -> None:
        """
        Args:
            folder: where the copies are; made if it is missing.
            limit: bytes on the disk, at most.
            digests: SHA-256 of each shard by its name. A shard that is written again has another
                one, and with it another copy.
        """
        self.folder, self.limit, self.digests = Path(folder), limit, digests
        self._allowance = 0
        self._look_again = 0.0
        self._broken = False

    def get(self, shard: str, offset: int, size: int) -> bytes | None:
        """A span, or None where it isn't kept whole."""
        copy = self._open(shard)
        if copy is None:
            return None
        try:
            stored = os.pread(copy.fd, _RECORD.size + size, offset - _RECORD.size)
        except OSError as error:
            self._give_up(error)
            return None
        if len(stored) != _RECORD.size + size:
            return None
        mark, checksum, length = _RECORD.unpack_from(stored)
        data = stored[_RECORD.size :]
        whole = mark == _MARK and length == size and checksum == zlib.crc32(data)
        return data if whole else None

    def put(self, shard: str, offset: int, data: bytes) -> None:
        """Keep a span, if there is room. A disk that fails ends caching, and nothing else."""
        start = offset - _RECORD.size
        # A caption of a hundred bytes takes a whole page of the disk, if its image isn't kept.
        needed = PAGE * ((offset + len(data) - 1) // PAGE - start // PAGE + 1)
        copy = self._open(shard)
        if copy is None or not self._room(needed):
            return
        record = _RECORD.pack(_MARK, zlib.crc32(data), len(data))
        try:
            os.pwrite(copy.fd, record + data, start)
            self._allowance -= needed
        except OSError as error:
            self._give_up(error)

    def _open(self, shard: str) -> "_Copy | None":
        """The copy of a shard; None once caching has ended."""
        if self._broken:
            return None
        path = f"{self.folder}/{self.digests[shard]}{SUFFIX}"
        try:
            copy = _copy(path)
            if not os.fstat(copy.fd).st_nlink:  # another process made room with it
                _copy.cache_clear()
                copy = _copy(path)
        except OSError as error:
            self._give_up(error)
            return None
        return copy

    def _room(self, size: int) -> bool:
        if self._allowance < size and time.monotonic() >= self._look_again:
            free = self.limit - self._used()
            if free < RECOUNT:
                free += self._drop_stale()
            self._allowance = min(RECOUNT, free)
            if self._allowance < size:
                self._look_again = time.monotonic() + PAUSE
        return self._allowance >= size

    def _used(self) -> int:
        return sum(_allocated(path) for path in self.folder.glob(f"*{SUFFIX}"))

    def _drop_stale(self) -> int:
        """Delete copies of shards that are not ours and that nobody opened lately."""
        ours = set(self.digests.values())
        freed = 0
        for path in self.folder.glob(f"*{SUFFIX}"):
            try:
                stale = time.time() - path.stat().st_mtime > STALE
                if path.stem not in ours and stale:
                    size = _allocated(path)
                    os.truncate(path, 0)  # frees the space even where a process has it open
                    path.unlink()
                    freed += size
            except FileNotFoundError:  # another process was first
                continue
        return freed

    def _give_up(self, error: OSError) -> None:
        self._broken = True
        warnings.warn(
            f"{self.folder}: {error.strerror}; this process goes on without the cache",
            RuntimeWarning,
            stacklevel=3,
        )


class _Copy:
    """A shard's copy, open; closes when the cache of descriptors drops it."""

    def __init__(self, path: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.utime(self.fd)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


# Of no instance: descriptors don't travel to processes that are started anew.
_copy = functools.lru_cache(maxsize=256)(_Copy)


def _allocated(path: Path) -> int:
    """Bytes that a sparse file takes."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
