"""The bucket and its copies: an HTTPS endpoint of S3, any fsspec URL, or a local folder.

All three answer the same questions, so nothing else knows where an article's files come from.
Paths are keys of the bucket: `PMC13901.1/PMC13901.1.xml`.
"""

import asyncio
import hashlib
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import quote

import aiohttp
import fsspec
from lxml import etree

from data_prep.http import Network, Retry, check_host, open_session, read_file, read_reply
from data_prep.http import with_retries as retried
from data_prep.memory import Ticket
from data_prep.sources import FetchFailed, FileMissing, FileProblem, walk
from vlp.config import UserError

T = TypeVar("T")

PMC_BUCKET = "s3://pmc-oa-opendata"
PMC_HTTPS = "https://pmc-oa-opendata.s3.amazonaws.com"
_MAX_LISTING = 16 << 20
_S3 = "{http://s3.amazonaws.com/doc/2006-03-01/}"
_FOLDER = re.compile(r"PMC\d+\.\d+")
_TAGS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")
"""What fsspec's file systems say about a file that changes when the file does."""


class Entry(NamedTuple):
    """A file in a listing."""

    path: str
    size: int
    tag: str
    """Changes when the file does: ETag or time."""


class Store(Protocol):
    """Where the files are. Methods raise FileMissing and FileProblem."""

    async def read(self, path: str, ticket: Ticket, md5: str = "") -> bytes:
        """A file's content, compared with `md5` where it is given, within the ticket's memory."""
        ...

    async def listing(self, prefix: str) -> list[Entry]:
        """The files below the folder `prefix`, which ends in "/", at any depth, sorted by path."""
        ...

    async def folders(self, prefix: str) -> list[str]:
        """The names of the folders in the bucket's root that begin with `prefix`, sorted.

        `prefix` may end within another folder: `inventory-reports/x/` lists what is in it.
        """
        ...

    async def close(self) -> None:
        """Give connections and threads back."""
        ...


def open_store(source: str, network: Network) -> Store:
    """The store that `source` means; to be called inside of an event loop.

    Raises:
        UserError: no such folder, or a URL that nothing here can read.
    """
    if source.rstrip("/") == PMC_BUCKET:  # public, so without S3's signatures
        source = PMC_HTTPS
    if source.startswith(("https://", "http://")):
        check_host(source, "source")
        return HttpStore(source.rstrip("/"), network)
    if "://" in source:
        return FsspecStore(source.rstrip("/"), network)
    if not Path(source).is_dir():
        raise UserError(f"{source}: no such folder")
    return FolderStore(Path(source))


def check_path(path: str) -> str:
    """`path`, if it stays below the root that it is relative to.

    Raises:
        FileProblem: it does not, or it is empty.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise FileProblem("file name unsafe")
    return path


class FolderStore:
    """A copy of the bucket in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._all: list[str] | None = None

    async def read(self, path: str, ticket: Ticket, md5: str = "") -> bytes:
        """See Store."""
        file = self._root / check_path(path)
        try:
            size = file.stat().st_size
            while not ticket.take(size):
                await ticket.room(size)
            data = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise FileMissing("file missing") from None
        except OSError as error:
            raise FileProblem(f"file unreadable: {error.strerror}") from None
        if md5 and not _has_md5(data, md5):
            ticket.give(size)
            raise FetchFailed("wrong MD5")
        return data

    async def listing(self, prefix: str) -> list[Entry]:
        """See Store."""
        folder = prefix.rstrip("/")
        found = await asyncio.to_thread(walk, self._root / folder)
        return [Entry(f"{folder}/{name}", size, str(time)) for name, size, time in found]

    async def folders(self, prefix: str) -> list[str]:
        """See Store."""
        parent, _, start = prefix.rpartition("/")
        if parent or self._all is None:
            try:
                with os.scandir(self._root / parent) as entries:
                    names = sorted(entry.name for entry in entries if entry.is_dir())
            except FileNotFoundError:
                names = []
            if parent:
                return [name for name in names if name.startswith(start)]
            self._all = names
        return _starting(self._all, start)

    async def close(self) -> None:
        """See Store."""


class FsspecStore:
    """A copy of the bucket under any URL that fsspec reads: s3://, gs://, file://, memory://..."""

    def __init__(self, url: str, network: Network) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            raise UserError(f"source={url}: {error}") from None
        self._network = network
        # fsspec's own loop would do for some file systems; threads do for all.
        self._threads = ThreadPoolExecutor(network.requests)
        self._all: list[str] | None = None

    async def read(self, path: str, ticket: Ticket, md5: str = "") -> bytes:
        """See Store."""
        where = f"{self._root}/{check_path(path)}"

        async def one_try() -> bytes:
            size = int((await self._call(self._fs.info, where))["size"])
            while not ticket.take(size):
                await ticket.room(size)
            try:
                data: bytes = await self._call(self._fs.cat_file, where)
                if len(data) != size:
                    raise Retry("download failed: reply cut short")
                if md5 and not _has_md5(data, md5):
                    raise Retry("wrong MD5")
            except BaseException:
                ticket.give(size)
                raise
            return data

        return await retried(self._network, one_try)

    async def listing(self, prefix: str) -> list[Entry]:
        """See Store."""
        where = f"{self._root}/{prefix.rstrip('/')}"

        async def one_try() -> list[Entry]:
            found: dict[str, Any] = await self._call(self._fs.find, where, detail=True)
            return [
                Entry(
                    f"{prefix}{name.rpartition(f'/{prefix}')[2]}",
                    int(info["size"]),
                    next((str(info[tag]) for tag in _TAGS if info.get(tag)), ""),
                )
                for name, info in sorted(found.items())
            ]

        return await retried(self._network, one_try)

    async def folders(self, prefix: str) -> list[str]:
        """See Store."""
        parent, _, start = prefix.rpartition("/")
        if parent:
            return _starting(await self._subfolders(f"{self._root}/{parent}"), start)
        if self._all is None:
            self._all = await self._subfolders(self._root)
        return _starting(self._all, start)

    async def close(self) -> None:
        """See Store."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _subfolders(self, where: str) -> list[str]:
        async def one_try() -> list[str]:
            try:
                found = await self._call(self._fs.ls, where, detail=True)
            except FileMissing:
                return []
            kinds = (item for item in found if item["type"] == "directory")
            return sorted(item["name"].rstrip("/").rpartition("/")[2] for item in kinds)

        return await retried(self._network, one_try)

    async def _call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """`function` in a thread."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._threads, lambda: function(*arguments, **options)
            )
        except (FileNotFoundError, NotADirectoryError):
            raise FileMissing("file missing") from None
        except PermissionError:
            raise FetchFailed("download failed: permission denied") from None


class HttpStore:
    """S3's REST interface over HTTPS, without a signature: public buckets."""

    def __init__(self, url: str, network: Network) -> None:
        self._url, self._network = url, network
        self._session: aiohttp.ClientSession = open_session(url, network)

    async def read(self, path: str, ticket: Ticket, md5: str = "") -> bytes:
        """See Store."""
        url = f"{self._url}/{quote(check_path(path))}"
        return await read_file(self._session, self._network, url, ticket, md5)

    async def listing(self, prefix: str) -> list[Entry]:
        """See Store."""
        entries = []
        for page in await self._pages({"prefix": prefix}):
            for item in page.iter(f"{_S3}Contents"):
                tag = item.findtext(f"{_S3}ETag", "").strip('"')
                size = int(item.findtext(f"{_S3}Size", "0"))
                entries.append(Entry(item.findtext(f"{_S3}Key", ""), size, tag))
        return sorted(entries)

    async def folders(self, prefix: str) -> list[str]:
        """See Store."""
        names = []
        for page in await self._pages({"prefix": prefix, "delimiter": "/"}):
            for item in page.iter(f"{_S3}CommonPrefixes"):
                names.append(item.findtext(f"{_S3}Prefix", "").rstrip("/").rpartition("/")[2])
        return sorted(names)

    async def close(self) -> None:
        """See Store."""
        await self._session.close()

    async def _pages(self, query: dict[str, str]) -> list[etree._Element]:
        """All pages of ListObjectsV2."""
        pages: list[etree._Element] = []
        query = {"list-type": "2"} | query
        while True:
            page = await self._page(query)
            pages.append(page)
            token = page.findtext(f"{_S3}NextContinuationToken", "")
            if page.findtext(f"{_S3}IsTruncated") != "true":
                return pages
            if not token or token == query.get("continuation-token"):
                raise FileProblem("listing not readable")
            query = query | {"continuation-token": token}

    async def _page(self, query: dict[str, str]) -> etree._Element:
        async def one_try() -> etree._Element:
            data = await read_reply(self._session, f"{self._url}/", query, _MAX_LISTING)
            parser = etree.XMLParser(load_dtd=False, no_network=True, resolve_entities=False)
            try:
                root = etree.fromstring(data, parser)
            except etree.XMLSyntaxError:  # cut short without the connection showing it
                raise Retry("listing not readable") from None
            if root.tag != f"{_S3}ListBucketResult":
                raise FileProblem("listing not readable")
            return root

        return await retried(self._network, one_try)


def state_of_entries(entries: Iterable[Entry]) -> str:
    """A hash of names, sizes and tags: it changes when a file does."""
    text = "\0".join(f"{entry.path}\0{entry.size}\0{entry.tag}" for entry in entries)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def article_folders(names: Sequence[str]) -> list[str]:
    """Those names that are PMC<n>.<v>."""
    return [name for name in names if _FOLDER.fullmatch(name)]


def _starting(names: list[str], start: str) -> list[str]:
    """Those of the sorted names that begin with `start`."""
    first = bisect_left(names, start)
    return list(takewhile(lambda name: name.startswith(start), islice(names, first, None)))


def _has_md5(data: bytes, md5: str) -> bool:
    return hashlib.md5(data, usedforsecurity=False).hexdigest() == md5.lower()
