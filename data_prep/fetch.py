"""Articles of the bucket, fetched ahead of their use: JSON, filter, XML, filter, figures' files.

Each process keeps one event loop in a thread of its own, with connections that stay open from unit
to unit. Articles come out in order, whatever the order in which their files arrive.
"""

import asyncio
import atexit
import re
import threading
from collections import deque
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from data_prep.articles import wanted_files
from data_prep.bucket import Store, open_store
from data_prep.http import Network
from data_prep.jats import Article, JatsError, parse_article
from data_prep.memory import ArticleTooLarge, Memory, Ticket
from data_prep.metadata import BadRecord, Media, md5_of, media_of, read_record
from data_prep.screening import Dropped, ScreeningConfig, filter_article, filter_record
from data_prep.shards import Reject
from data_prep.sources import FetchFailed, FileMissing, FileProblem

T = TypeVar("T")
_MD5 = re.compile(r"[0-9a-f]{32}")
EngineKey = tuple[str, Network, int, int]


@dataclass(frozen=True, slots=True)
class BucketItem:
    """One version of an article in the bucket."""

    article: str
    """PMC<n>.<v>"""
    state: str
    """Changes when the article does: the ETag of its JSON, or a hash of its files' list."""
    record: str = ""
    """Key of its JSON, where `state` is the ETag of that object; empty: not known."""

    @property
    def key(self) -> str:
        """Beginning of its samples' keys."""
        return self.article.replace(".", "-")

    @property
    def group(self) -> str:
        """Its PMC number: all versions go to the same split."""
        return self.article.partition(".")[0]

    @property
    def xml(self) -> str:
        """Key of its JATS file."""
        return f"{self.article}/{self.article}.xml"


class FetchedFiles:
    """Files of one article, in memory."""

    def __init__(self, names: Sequence[str], content: dict[str, bytes | FileProblem]) -> None:
        self._names, self._content = names, content

    def names(self) -> Sequence[str]:
        """See Files; files that turned out to be missing are left out."""
        return self._names

    def read(self, name: str) -> bytes:
        """See Files."""
        content = self._content[name]
        if isinstance(content, FileProblem):
            raise content
        return content


@dataclass(frozen=True)
class Fetched:
    """An article and the files that its figures need."""

    article: Article
    record: dict[str, Any]
    files: FetchedFiles


class Engine:
    """An event loop in a thread, with a store and a bound on memory."""

    def __init__(self, source: str, network: Network, memory: int, article_memory: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="fetch")
        self._thread.start()
        self.memory, self.store = self.run(self._open(source, network, memory, article_memory))

    async def _open(
        self, source: str, network: Network, memory: int, article_memory: int
    ) -> tuple[Memory, Store]:
        return Memory(memory, article_memory), open_store(source, network)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `work` in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`."""
        return self.submit(work).result()

    def close(self) -> None:
        """End connections, loop and thread."""
        self.run(self.store.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


_engines: dict[EngineKey, Engine] = {}


def engine_for(source: str, network: Network, memory: int, article_memory: int) -> Engine:
    """The process's engine; when another source or setting is asked for, a new one."""
    key = (source, network, memory, article_memory)
    if key not in _engines:
        close_engines()
        _engines[key] = Engine(*key)
    return _engines[key]


@atexit.register
def close_engines() -> None:
    """End what `engine_for` made."""
    while _engines:
        _engines.popitem()[1].close()


def fetch_in_order(
    engine: Engine, config: ScreeningConfig, items: Sequence[BucketItem], ahead: int
) -> Iterator[Fetched | Reject]:
    """What was fetched of each item, in order, `ahead` articles being on their way.

    The article that was given out last still counts as memory until the next one is asked for.
    """
    waiting: deque[tuple[Ticket, Future[Fetched | Reject]]] = deque()
    coming = iter(items)
    try:
        while True:
            while len(waiting) < ahead and (item := next(coming, None)) is not None:
                ticket = Ticket(engine.memory)
                work = _fetch(engine.store, config, item, ticket)
                waiting.append((ticket, engine.submit(work)))
            if not waiting:
                return
            ticket, future = waiting[0]
            engine.run(engine.memory.let_first(ticket))
            yield future.result()
            waiting.popleft()
            engine.run(engine.memory.free(ticket))
    finally:
        for ticket, future in waiting:
            future.cancel()
            engine.run(engine.memory.free(ticket))


async def _fetch(
    store: Store, config: ScreeningConfig, item: BucketItem, ticket: Ticket
) -> Fetched | Reject:
    """One article, or why there is none."""
    stage = "article"
    try:
        return await _fetch_article(store, config, item, ticket)
    except Dropped as error:
        stage, reason = error.stage, str(error)
    except FetchFailed as error:
        stage, reason = "fetch", str(error)
    except (FileProblem, JatsError, BadRecord) as error:
        reason = str(error)
    return Reject(item.article, "", item.xml, stage, reason)


async def _fetch_article(
    store: Store, config: ScreeningConfig, item: BucketItem, ticket: Ticket
) -> Fetched:
    record = await _record(store, item, ticket)
    filter_record(config, record)
    try:
        data = await store.read(item.xml, ticket, md5_of(record, "xml_url"))
    except FileMissing:
        raise FileProblem("article XML missing") from None
    article = parse_article(data)
    ticket.give(len(data))
    filter_article(config, article)
    media = media_of(record, item.article)
    if media is None:
        prefix = f"{item.article}/"
        media = [Media(e.path.removeprefix(prefix), "") for e in await store.listing(prefix)]
    names = [file.name for file in media]
    content: dict[str, bytes | FileProblem] = {}
    md5 = {file.name: file.md5 for file in media}
    while wanted := [
        name for name in wanted_files(config, article, record, names) if name not in content
    ]:
        paths = {name: f"{item.article}/{name}" for name in wanted}
        content |= await _read_all(store, ticket, paths, md5)
        # The next best file of a figure whose best one is listed but not there.
        names = [name for name in names if not isinstance(content.get(name), FileMissing)]
    return Fetched(article, record, FetchedFiles(names, content))


async def _read_all(
    store: Store, ticket: Ticket, paths: dict[str, str], md5: dict[str, str]
) -> dict[str, bytes | FileProblem]:
    """The files' contents by name, or what is wrong with them, read side by side."""

    async def one(name: str) -> bytes | FileProblem:
        try:
            return await store.read(paths[name], ticket, md5[name])
        except ArticleTooLarge:
            raise
        except FileProblem as error:
            return error

    too_large: Exception | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(one(name)) for name in paths}
    except* ArticleTooLarge as errors:
        too_large = errors.exceptions[0]  # raised here, Python 3.11.2 would put it into a group
    if too_large is not None:
        raise too_large
    return {name: task.result() for name, task in tasks.items()}


async def _record(store: Store, item: BucketItem, ticket: Ticket) -> dict[str, Any]:
    """The article's JSON; empty where there is none."""
    own = f"{item.article}/{item.article}.json"
    # ETags of objects that were uploaded in parts are no MD5s.
    etag = item.state if item.record and _MD5.fullmatch(item.state) else ""
    for path, md5 in ((item.record, etag), (own, "")):
        if path:
            try:
                data = await store.read(path, ticket, md5)
            except FileMissing:
                continue
            ticket.give(len(data))
            return read_record(data)
    return {}
