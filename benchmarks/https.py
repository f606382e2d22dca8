"""Downloads a second of `pmc`'s HTTP client from a server on this machine, with and without TLS.

    python -m benchmarks.https

The server is a process of its own that answers from memory, so the figures bound what the client's
code can do; a real network adds waiting, which more requests in flight hide. Every reply is checked
against its MD5. The contender is one urllib request after the other, each over a new connection, as
peers download.
"""

import asyncio
import hashlib
import multiprocessing
import os
import re
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

from benchmarks.measure import Result, interleaved, machine, median_row, paired_ratio, report
from data_prep.bucket import HttpStore
from data_prep.http import Network
from data_prep.memory import Memory, Ticket
from vlp.config import load_config, run_program

_REQUEST = re.compile(rb"GET /(\d+)/\S* HTTP/1\.1\r\n")
_CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x "
    "-addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
)


@dataclass(frozen=True, kw_only=True)
class HttpsConfig:
    """What to measure."""

    files: int = 2000
    """Files in one measurement."""
    bytes: int = 100_000
    """Size of a figure file."""
    small: int = 5_000
    """Size of a metadata JSON."""
    requests: int = 64
    """Requests in flight."""
    serial_files: int = 200
    """Files in one measurement of the contender."""
    repetitions: int = 5
    """Measurements of each; the median counts."""
    out: str = ""
    """File for the result as JSON."""


class _Bucket(asyncio.Protocol):
    """Answers `GET /SIZE/name` with SIZE bytes, as S3 does."""

    replies: ClassVar[dict[int, bytes]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._waiting = transport, b""

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        while (end := self._waiting.find(b"\r\n\r\n")) >= 0:
            match = _REQUEST.match(self._waiting)
            closes = b"onnection: close" in self._waiting[:end]
            self._waiting = self._waiting[end + 4 :]
            if match is None:
                self._transport.close()
                return
            self._transport.write(self._reply(int(match[1])))
            if closes:
                self._transport.close()

    def _reply(self, size: int) -> bytes:
        if size not in self.replies:
            body = bytes(range(251)) * (size // 251 + 1)
            tag = hashlib.md5(body[:size], usedforsecurity=False).hexdigest()
            head = f'HTTP/1.1 200 OK\r\nETag: "{tag}"\r\nContent-Length: {size}\r\n\r\n'
            self.replies[size] = head.encode() + body[:size]
        return self.replies[size]


def _serve(pipe: Connection, folder: Path, secure: bool) -> None:
    """The server process: tells its port and runs until it is ended."""

    async def run() -> None:
        context = None
        if secure:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        loop = asyncio.get_running_loop()
        server = await loop.create_server(_Bucket, "127.0.0.1", 0, ssl=context, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def _server(folder: Path, secure: bool) -> Iterator[str]:
    """The address of a running server."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(theirs, folder, secure), daemon=True)
    process.start()
    try:
        yield f"{'https' if secure else 'http'}://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _ours(url: str, size: int, files: int, requests: int) -> float:
    """Files a second by data_prep's client, all in one process."""

    async def run() -> float:
        store = HttpStore(url, Network(requests=requests))
        memory = Memory(1 << 30, 1 << 30)
        names = iter(range(files))
        connected = asyncio.Barrier(requests + 1)  # connections are made before the clock starts

        async def worker() -> None:
            ticket = Ticket(memory)
            await store.read("1/first", ticket)
            await connected.wait()
            for name in names:
                await store.read(f"{size}/{name}.jpg", ticket)
                ticket.give(size)

        async with asyncio.TaskGroup() as group:
            for _ in range(requests):
                group.create_task(worker())
            await connected.wait()
            start = time.perf_counter()
        seconds = time.perf_counter() - start
        await store.close()
        return files / seconds

    return asyncio.run(run())


def _urllib(url: str, size: int, files: int) -> float:
    """Files a second, one after the other, each over a new connection."""
    start = time.perf_counter()
    for name in range(files):
        with urllib.request.urlopen(f"{url}/{size}/{name}.jpg") as reply:
            hashlib.md5(reply.read(), usedforsecurity=False).hexdigest()
    return files / (time.perf_counter() - start)


def measure(config: HttpsConfig) -> Result:
    """All contenders in turn, in one run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(_CERTIFICATE.split(), cwd=folder, check=True, capture_output=True)
        os.environ["SSL_CERT_FILE"] = str(folder / "cert.pem")  # aiohttp reads it on import
        spawned = multiprocessing.get_context("spawn").Pool(1)
        with _server(folder, False) as plain, _server(folder, True) as secure, spawned as client:
            few, many = config.requests, 4 * config.requests
            contenders = {
                "small": partial(client.apply, _ours, (secure, config.small, config.files, few)),
                "https": partial(client.apply, _ours, (secure, config.bytes, config.files, few)),
                "many": partial(client.apply, _ours, (secure, config.bytes, config.files, many)),
                "http": partial(client.apply, _ours, (plain, config.bytes, config.files, few)),
                "urllib": partial(
                    client.apply, _urllib, (secure, config.bytes, config.serial_files)
                ),
            }
            found = interleaved(contenders, config.repetitions)
    size = f"{config.bytes / 1e3:.0f} KB"
    what = {
        "small": f"HTTPS, {config.small / 1e3:.0f} KB, {few} in flight",
        "https": f"HTTPS, {size}, {few} in flight",
        "many": f"HTTPS, {size}, {many} in flight",
        "http": f"HTTP, {size}, {few} in flight",
        "urllib": f"urllib one by one, HTTPS, {size}, new connections",
    }
    rows = [
        median_row(what[name], "GETs/s", values, paired_ratio(values, found["urllib"]))
        for name, values in found.items()
    ]
    megabits = [rate * config.bytes * 8 / 1e6 for rate in found["https"]]
    rows.append(median_row(f"HTTPS, {size}, {few} in flight", "Mbit/s", megabits))
    usable = f"{len(os.sched_getaffinity(0))} cores for client and server"
    return Result("https", machine() | {"files": f"{config.files:,}", "cores": usable}, tuple(rows))


def main(argv: list[str]) -> None:
    """`python -m benchmarks.https [YAML ...] [key=value ...]`."""
    config = load_config(HttpsConfig, argv, "python -m benchmarks.https")
    report([measure(config)], config.out)


if __name__ == "__main__":
    run_program(main)
