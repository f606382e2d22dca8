"""The page over HTTP, with nothing but the standard library.

Uploads, texts and headers are bounded, since they come from a browser that other pages may steer: a
request from another site's page is refused, and so is one that names another host (DNS rebinding).
The page loads nothing from elsewhere, and its policy keeps it so.
"""

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from eval.demo.engine import Engine, Refused

MAX_UPLOAD = 64 << 20
"""Bytes of an image that is taken."""
MAX_REQUEST = 1 << 20
"""Bytes of any other request."""
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; "
    "base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class DemoServer(ThreadingHTTPServer):
    """Serves one engine; a thread for each connection."""

    daemon_threads = True

    def __init__(self, host: str, port: int, engine: Engine) -> None:
        """Listen.

        Raises:
            OSError: the address can't be had.
        """
        super().__init__((host, port), Handler)
        self.engine = engine
        number = self.server_address[1]
        self.address = f"http://{host}:{number}/"
        self.hosts: set[str] | None = None
        """What a request may call this server; None: anything."""
        if _is_loopback(host):
            self.hosts = {f"{name}:{number}" for name in ("127.0.0.1", "localhost", "[::1]", host)}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: DemoServer
    timeout = 60
    """Seconds that a client may be silent."""
    server_version, sys_version = "BioVLP", ""

    def do_GET(self) -> None:
        """The page, its files, images and figures."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """An image, or a question about one."""
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for the address of the page."""

    def _answer(self, handle: Any) -> None:
        try:
            self._check_sender()
            body, kind = handle()
        except Refused as error:
            self._send(HTTPStatus.BAD_REQUEST, _json({"error": str(error)}), "application/json")
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        else:
            self._send(HTTPStatus.OK, body, kind)

    def _check_sender(self) -> None:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if self.server.hosts is not None and host not in self.server.hosts:
            raise Refused("open the page at the address that the program printed")
        if origin is not None and origin != f"http://{host}":
            raise Refused("requests come from the page itself only")

    def _get(self) -> tuple[bytes, str]:
        if self.path in FILES:
            name, kind = FILES[self.path]
            return (Path(__file__).parent / name).read_bytes(), kind
        if self.path == "/about":
            return _json(self.server.engine.about()), "application/json"
        _, kind, name, *rest = [*self.path.split("/"), "", ""]
        if kind == "image" and not any(rest):
            return self.server.engine.jpeg(name), "image/jpeg"
        if kind == "figure" and name.isascii() and name.isdecimal() and len(name) < 12:
            return self.server.engine.figure(int(name)), "image/jpeg"
        raise Refused("no such page")

    def _post(self) -> tuple[bytes, str]:
        engine = self.server.engine
        if self.path == "/image":
            return _json(engine.add(self._body(MAX_UPLOAD))), "application/json"
        asked = self._object()
        if self.path == "/scores":
            names = asked.get("names")
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise Refused("names: a list of texts is needed")
            words = [_text(asked, key) for key in ("image", "template", "question")]
            answers = engine.scores(words[0], names, words[1], words[2])
            return _json({"answers": answers}), "application/json"
        if self.path == "/heat":
            return _json(
                engine.heat(_text(asked, "image"), _text(asked, "text"))
            ), "application/json"
        raise Refused("no such page")

    def _object(self) -> dict[str, Any]:
        # A form of another site can't send this type without being asked first.
        if self.headers.get_content_type() != "application/json":
            raise Refused("JSON is needed")
        try:
            asked = json.loads(self._body(MAX_REQUEST))
        except (ValueError, RecursionError) as error:
            raise Refused(f"not JSON: {error}") from None
        if not isinstance(asked, dict):
            raise Refused("an object is needed")
        return asked

    def _body(self, limit: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or len(length) > 15:
            self.close_connection = True
            raise Refused("the length of the request is needed")
        if int(length) > limit:
            self.close_connection = True  # what follows isn't read
            raise Refused(f"larger than {limit >> 20} MiB")
        return self.rfile.read(int(length))

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        try:
            self.send_response(status)
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (ConnectionError, TimeoutError):  # the browser went away
            self.close_connection = True


def _text(asked: dict[str, Any], key: str) -> str:
    value = asked.get(key, "")
    if not isinstance(value, str):
        raise Refused(f"{key}: a text is needed")
    return value


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return False
