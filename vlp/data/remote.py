"""A shard folder at any URL that fsspec knows, read by ranged requests.

Many requests are in flight at once, each tried again after a passing fault; what they fetch is kept
on a local disk if there is a cache. A fault that stays becomes a UserError that names the file.
"""

import asyncio
import hashlib
import io
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import aiohttp
import fsspec
import pyarrow as pa
from fsspec.asyn import AsyncFileSystem, get_loop, sync

from vlp.config import UserError
from vlp.data.cache import Cache
from vlp.data.storage import Span, Storage, read_table

T = TypeVar("T")

REQUESTS = 32
"""Ranged requests in flight per process. A sample is about 100 kB, so that waiting for the first
byte, not bandwidth, is what a request costs."""

MERGE = 64 * 1024
"""Bytes between two spans up to which one request reads on rather than two ask."""

LONGEST = 8 * 2**20
"""Bytes of one request, at most (a longer member alone is one request)."""

TIMEOUT = 60.0
"""Seconds for one request."""

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each new try: with TIMEOUT, a span fails for good after 6.3 minutes at most."""


@dataclass(frozen=True)
class Remote:
    """A folder at a URL, read by ranged requests."""

    root: str
    cache: Cache | None = None

    def exists(self, file: str) -> bool:
        try:
            self.sizes([file])
        except Gone:
            return False
        return True

    def whole(self, file: str) -> bytes:
        (size,) = self.sizes([file])
        (data,) = self._run(lambda store: [store.read(Span(file, 0, size))])  # never from a cache
        return data

    def table(self, file: str, columns: Sequence[str]) -> pa.Table:
        with pa.PythonFile(self._open(file), mode="r") as stream:
            return read_table(stream, f"{self.root}/{file}", columns)

    def sizes(self, files: Sequence[str]) -> list[int]:
        return self._run(lambda store: [store.size(file) for file in files])

    def sha256(self, file: str) -> str:
        with io.BufferedReader(self._open(file), LONGEST) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def read(self, spans: Sequence[Span]) -> Iterator[bytes]:
        """All spans are fetched before the first is yielded: their requests overlap."""
        cache = self.cache
        found = [cache.get(*span) if cache else None for span in spans]
        missing = sorted({span for span, data in zip(spans, found, strict=True) if data is None})
        fetched = dict(self._fetch(missing)) if missing else {}
        if cache:
            for span, data in fetched.items():
                cache.put(span.file, span.offset, data)
        for span, hit in zip(spans, found, strict=True):
            yield fetched[span] if hit is None else hit

    def cached(self, cache: Cache) -> Storage:
        return replace(self, cache=cache)

    def _fetch(self, spans: Sequence[Span]) -> Iterator[tuple[Span, bytes]]:
        requests = list(merge(spans))
        answers = self._run(lambda store: [store.read(request) for request, _ in requests])
        for (request, members), data in zip(requests, answers, strict=True):
            for span in members:
                start = span.offset - request.offset
                yield span, data[start : start + span.size]

    def _run(self, calls: "Callable[[_Connection], list[Awaitable[T]]]") -> list[T]:
        """The answers to calls that run at the same time, in fsspec's own thread."""
        # fsspec keeps one file system per process and URL, and makes new ones after a fork.
        try:
            file_system, root = fsspec.core.url_to_fs(self.root)
        except (ImportError, ValueError) as error:  # its backend is missing, or unknown
            raise UserError(f"{self.root}: {error}") from None
        return list(sync(get_loop(), _together, _Connection(file_system, root, self.root), calls))

    def _open(self, file: str) -> "_Stream":
        return _Stream(self, file)


class Gone(UserError):
    """A file that the other side says it does not have."""


class _Connection:
    """The calls to one file system, with retries. Used inside fsspec's event loop only."""

    def __init__(self, file_system: Any, root: str, url: str) -> None:
        self.file_system, self.root, self.url = file_system, root, url
        # A file system that is not asynchronous may not be safe in several threads either.
        self.gate = asyncio.Semaphore(REQUESTS if self._is_async else 1)

    @property
    def _is_async(self) -> bool:
        return isinstance(self.file_system, AsyncFileSystem) and self.file_system.async_impl

    async def size(self, file: str) -> int:
        info = await self._try(file, "info", f"{self.root}/{file}")
        if info.get("size") is None:
            raise UserError(f"{self.url}/{file}: the server does not tell its size; use another")
        return int(info["size"])

    async def read(self, span: Span) -> bytes:
        end = span.offset + span.size
        path = f"{self.root}/{span.file}"
        return bytes(await self._try(span.file, "cat_file", path, span.offset, end, size=span.size))

    async def _try(self, file: str, method: str, *args: Any, size: int | None = None) -> Any:
        """Call until it works, WAITS apart. `size` is the length that a good answer has."""
        reason = ""
        for wait in (*WAITS, None):
            try:
                async with self.gate:
                    answer = await asyncio.wait_for(self._call(method, *args), TIMEOUT)
                if size is None or len(answer) == size:
                    return answer
                if len(answer) > size:
                    raise UserError(
                        f"{self.url}/{file}: asked for {size} bytes, got {len(answer)}: the server "
                        "does not honour ranged requests; use another, or copy the folder"
                    )
                reason = f"ends inside the member at byte {args[1]}"
            except (OSError, aiohttp.ClientError) as error:  # a time-out is an OSError
                reason = self._reason(file, error)
            if wait is not None:
                await asyncio.sleep(wait)
        raise UserError(f"{self.url}/{file}: {reason}; given up after {len(WAITS) + 1} tries")

    async def _call(self, method: str, *args: Any) -> Any:
        if self._is_async:
            return await getattr(self.file_system, f"_{method}")(*args)
        return await asyncio.to_thread(getattr(self.file_system, method), *args)

    def _reason(self, file: str, error: Exception) -> str:
        """What went wrong, in words; raises UserError where trying again can't help."""
        # fsspec's HTTP `info` calls every failure FileNotFoundError, a busy server, too.
        cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
        error = cause if isinstance(cause, aiohttp.ClientError) else error
        status = error.status if isinstance(error, aiohttp.ClientResponseError) else None
        if isinstance(error, FileNotFoundError) or status in (404, 410):
            raise Gone(f"{self.url}/{file}: is not there; put it back or index the folder again")
        if isinstance(error, PermissionError) or status in (401, 403):
            raise UserError(f"{self.url}/{file}: access denied: {error}")
        if status == 416:  # the range asked for is not in the file
            raise UserError(f"{self.url}/{file}: ends before a member; copy or write it again")
        if isinstance(error, TimeoutError):
            return f"no answer within {TIMEOUT:g} s"
        return f"HTTP status {status}" if status else f"{type(error).__name__}: {error}"


async def _together(
    connection: _Connection, calls: Callable[[_Connection], list[Awaitable[T]]]
) -> list[T]:
    """All calls at the same time; the first failure ends the others."""
    tasks = [asyncio.ensure_future(call) for call in calls(connection)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class _Stream(io.RawIOBase):
    """A remote file that Parquet readers and checksums can read and seek."""

    def __init__(self, storage: Remote, file: str) -> None:
        self.storage, self.file, self.place = storage, file, 0
        (self.length,) = storage.sizes([file])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.length}[whence]
        self.place = base + offset
        return self.place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        size = max(0, min(len(view), self.length - self.place))
        if size:
            # Straight from the source: a cache is for samples, which come again.
            spans = _cut(Span(self.file, self.place, size), LONGEST)
            parts = self.storage._run(lambda store: [store.read(span) for span in spans])
            view[:size] = b"".join(parts)
            self.place += size
        return size


def _cut(span: Span, longest: int) -> list[Span]:
    """A span as pieces of at most `longest` bytes, which are fetched side by side."""
    end = span.offset + span.size
    return [
        Span(span.file, start, min(longest, end - start))
        for start in range(span.offset, end, longest)
    ]


def merge(spans: Sequence[Span]) -> Iterator[tuple[Span, list[Span]]]:
    """Sorted spans -> (span to ask for, the spans in it): neighbours share a request."""
    members: list[Span] = []
    start = end = 0
    for span in spans:
        reach = max(end, span.offset + span.size)
        if (
            members
            and span.file == members[0].file
            and span.offset - end <= MERGE
            and reach - start <= LONGEST
        ):
            members.append(span)
            end = reach
            continue
        if members:
            yield Span(members[0].file, start, end - start), members
        members, start, end = [span], span.offset, span.offset + span.size
    if members:
        yield Span(members[0].file, start, end - start), members
