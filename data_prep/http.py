"""HTTP GETs that survive what servers and networks do: retries, bounds, verified content.

Every retry waits longer, with jitter; a reply counts only when it is whole and, where a checksum
is known, right. Redirects are not followed, so no request leaves the host that was named.
"""

import asyncio
import hashlib
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from data_prep.memory import Ticket
from data_prep.sources import FetchFailed, FileMissing, FileProblem
from vlp.config import UserError

T = TypeVar("T")

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_MD5 = re.compile(r"[0-9a-f]{32}")
_CHUNK = 1 << 18
_LONGEST_WAIT = 30.0
_SLOWEST = 20_000
"""Bytes per second: a body that comes more slowly is given up and asked for again."""
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, kw_only=True)
class Network:
    """How requests are made."""

    requests: int = 64
    """In flight at once from one process, each over a connection of its own that is kept open."""
    attempts: int = 6
    """Tries for each file."""
    timeout: float = 30.0
    """Seconds without a byte, or to connect, after which a try has failed."""
    first_wait: float = 0.5
    """Seconds before the second try; doubled for each further one."""


class Retry(Exception):
    """A try has failed and another one may not; the message says how, `after` when at best."""

    def __init__(self, problem: str, after: float = 0.0) -> None:
        super().__init__(problem)
        self.after = after


class NoRoom(Exception):
    """The reply is larger than the memory that is free now."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def check_host(url: str, key: str) -> None:
    """Only HTTPS, or HTTP to this machine.

    Raises:
        UserError: another scheme, or no host.
    """
    parts = urlsplit(url)
    if not parts.hostname or parts.username or parts.query or parts.fragment:
        raise UserError(f"{key}={url}: not a plain URL; write https://HOST[/PATH]")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOCAL):
        raise UserError(f"{key}={url}: unencrypted; write https://")


def open_session(url: str, network: Network) -> aiohttp.ClientSession:
    """A session for one host, with `network.requests` connections; to be opened in the event loop.

    A proxy is taken from the environment (https_proxy, no_proxy).
    """
    parts = urlsplit(url)
    around = proxy_bypass(parts.hostname or "")
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=network.requests, ttl_dns_cache=60),
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=network.timeout, sock_read=network.timeout
        ),
        # Bytes as they are stored: lengths and checksums then mean the file.
        headers={"User-Agent": "BioVLP data_prep", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        # Not trust_env, which looks into the environment and ~/.netrc anew for every request.
        proxy=None if around else getproxies().get(parts.scheme),
    )


async def with_retries(network: Network, one_try: Callable[[], Awaitable[T]]) -> T:
    """The result of the first try that succeeds.

    Raises:
        FetchFailed: the last try's problem.
        FileProblem: one that no further try would mend.
    """
    problem = ""
    for number in range(network.attempts):
        try:
            return await one_try()
        except Retry as error:
            problem, after = str(error), error.after
        except TimeoutError:  # before OSError, its base class; aiohttp's timeouts are ones, too
            problem, after = "download failed: no timely reply", 0.0
        except aiohttp.ClientPayloadError:
            problem, after = "download failed: reply cut short", 0.0
        except (aiohttp.ClientError, OSError) as error:
            how = "cannot connect" if _unconnected(error) else "connection lost"
            problem, after = f"download failed: {how}", 0.0
        if number + 1 < network.attempts:
            wait = min(network.first_wait * 2**number, _LONGEST_WAIT)
            await asyncio.sleep(max(wait * random.uniform(0.5, 1.0), min(after, _LONGEST_WAIT)))
    raise FetchFailed(problem)


async def read_file(
    session: aiohttp.ClientSession, network: Network, url: str, ticket: Ticket, md5: str = ""
) -> bytes:
    """The file under `url`, whole and verified against `md5` or else its ETag.

    Its bytes are taken out of the ticket's memory.

    Raises:
        FileMissing, FileProblem: see `with_retries`.
    """
    while True:
        try:
            return await with_retries(network, lambda: _read_once(session, url, ticket, md5))
        except NoRoom as error:  # the connection was given up: those who have room need it
            await ticket.room(error.size)


async def _read_once(session: aiohttp.ClientSession, url: str, ticket: Ticket, md5: str) -> bytes:
    async with session.get(URL(url, encoded=True), allow_redirects=False) as reply:
        check_status(reply)
        size = reply.content_length
        if size is None:
            raise FetchFailed("download failed: reply without a length")
        if not ticket.take(size):
            raise NoRoom(size)
        try:
            async with asyncio.timeout(_longest(session, size)):
                data = await reply.read()
            if len(data) != size:
                raise Retry("download failed: reply cut short")
            digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
            tag = reply.headers.get("ETag", "").strip('"').lower()
            # An ETag is the MD5 of objects uploaded in one part, and has another form otherwise.
            if _MD5.fullmatch(tag) and tag != digest:
                raise Retry("wrong MD5")
            if md5 and md5.lower() != digest:
                if tag == digest:  # whole, but not the version that was listed
                    raise FetchFailed("wrong MD5")
                raise Retry("wrong MD5")
        except BaseException:
            ticket.give(size)
            raise
        return data


async def read_reply(
    session: aiohttp.ClientSession, url: str, query: Mapping[str, str], max_bytes: int
) -> bytes:
    """One try at what a service answers: of unknown length, but at most `max_bytes` long.

    Raises:
        Retry, FileProblem and what aiohttp raises; `with_retries` is the place to call it from.
    """
    async with session.get(url, params=query, allow_redirects=False) as reply:
        check_status(reply)
        data = bytearray()
        async with asyncio.timeout(_longest(session, max_bytes)):
            async for chunk in reply.content.iter_chunked(_CHUNK):
                data += chunk
                if len(data) > max_bytes:
                    raise FileProblem(f"reply larger than {max_bytes:,} bytes")
        return bytes(data)


def check_status(reply: aiohttp.ClientResponse) -> None:
    """Raise FileMissing for 404, Retry for what may pass, FetchFailed for any other failure."""
    if reply.status == 200:
        return
    if reply.status == 404:
        raise FileMissing("file missing")
    problem = f"download failed: HTTP {reply.status}"
    if reply.status in _TRANSIENT:
        wait = reply.headers.get("Retry-After", "")
        raise Retry(problem, float(wait) if wait.isdecimal() else 0.0)
    raise FetchFailed(problem)


def _longest(session: aiohttp.ClientSession, size: int) -> float:
    """Seconds that a reply of `size` bytes may take."""
    return (session.timeout.sock_read or 0.0) + size / _SLOWEST


def _unconnected(error: Exception) -> bool:
    return isinstance(error, aiohttp.ClientConnectorError | aiohttp.InvalidURL)
