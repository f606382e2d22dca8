"""Shards over HTTP on this machine: ranged requests, counted, with faults to order."""

import socket
import struct
import time
from contextlib import AbstractContextManager
from pathlib import Path

from tests.loopback import LoopbackServer, QuietHandler, running

PAUSE = 0.3
"""Seconds that the fault `pause` takes: long enough for requests to overlap."""


class ShardServer(LoopbackServer):
    """Serves `root`. `faults[name]` are used up one by one by requests for that file; of
    `["always", fault]` nothing is. A fault is a status or one of those in `Handler._send`."""

    def __init__(self, root: Path) -> None:
        super().__init__(Handler)
        self.root = root
        self.faults: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.sent = 0
        self.ranges = True
        self.most_open = self.open_now = 0

    def gets(self, name: str = "") -> list[str]:
        """The ranges that were asked of files whose name ends so."""
        return [r for method, path, r in self.requests if method == "GET" and path.endswith(name)]

    def next_fault(self, method: str, name: str, wanted: str) -> str:
        with self.lock:
            self.requests.append((method, name, wanted))
            waiting = self.faults.get(name, [])
            if not waiting or (method == "HEAD" and waiting[-1] in ("cut", "short")):
                return ""  # a HEAD has no body to cut
            return waiting[1] if waiting[0] == "always" else waiting.pop(0)


def serve(root: Path) -> AbstractContextManager[ShardServer]:
    """A running server."""
    return running(ShardServer(root))


class Handler(QuietHandler):
    server: ShardServer

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.open_now += 1
            self.server.most_open = max(self.server.most_open, self.server.open_now)
        try:
            self._answer("GET")
        finally:
            with self.server.lock:
                self.server.open_now -= 1

    def _answer(self, method: str) -> None:
        name = self.path.lstrip("/")
        wanted = self.headers.get("Range", "")
        fault = self.server.next_fault(method, name, wanted)
        path = self.server.root / name
        if not path.is_file():
            self._reply(404, b"")
        elif fault.isdecimal():
            self._reply(int(fault), b"no")
        else:
            whole = path.read_bytes()
            if wanted and self.server.ranges:
                first, last = (int(end) for end in wanted.removeprefix("bytes=").split("-"))
                body, status = whole[first : last + 1], 206 if first < len(whole) else 416
            else:
                body, status = whole, 200
            self._send(fault, status, body if method == "GET" else b"", len(body))

    def _send(self, fault: str, status: int, body: bytes, length: int) -> None:
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)  # close without the usual farewell
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.connection.close()
            self.rfile.close()  # the socket closes with its last file
        elif fault == "cut":  # fewer bytes than announced
            self._head(status, length)
            self.wfile.write(body[: length // 2])
            self.close_connection = True
        elif fault == "short":  # fewer bytes than asked for, announced so
            self._reply(status, body[: length // 2])
        elif fault == "slow":
            time.sleep(1.0)
            self._reply(status, body)
        elif fault == "pause":
            time.sleep(PAUSE)
            self._reply(status, body)
        elif fault:
            raise ValueError(fault)
        else:
            self._reply(status, body, length)

    def _reply(self, status: int, body: bytes, length: int | None = None) -> None:
        self._head(status, len(body) if length is None else length)
        if self.command == "HEAD":  # a body would be read as the start of the next reply
            return
        with self.server.lock:  # before the client has it, and a test may look
            self.server.sent += len(body)
        self.wfile.write(body)

    def _head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
