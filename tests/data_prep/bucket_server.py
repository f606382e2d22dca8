"""A bucket on this machine: S3's REST interface over a folder, with faults to order."""

import gzip
import hashlib
import json
import shutil
import socket
import struct
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.data_prep.factories import prepare, tree
from tests.loopback import LoopbackServer, QuietHandler, running

QUICK = ("first_wait=0.01", "val_fraction=0.2", "test_fraction=0.2")
"""Keys of `pmc` for a bucket on this machine."""
SLOW = 1.5
"""Seconds by which the faults `slow` and `stall` delay."""
IMPATIENT = {"slow": ["timeout=0.4"], "stall": ["timeout=0.4"]}
"""Keys that make a timeout of a fault; for all others a busy machine has as long as it needs."""


def md5(data: bytes) -> str:
    """An MD5 in hexadecimal digits."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class Bucket(LoopbackServer):
    """Serves `root`. `faults[key]` are used up one by one by requests for that key; see `_fail`.

    A reply takes `latency` seconds at least.
    """

    def __init__(self, root: Path, page: int = 1000) -> None:
        super().__init__(_Handler)
        self.root, self.page = root, page
        self.faults: dict[str, list[str]] = {}
        self.requests: Counter[str] = Counter()
        self.connections = self.open_now = self.most_open = 0
        self.latency = 0.0

    def next_fault(self, key: str) -> str:
        """The fault for this request, and count the request."""
        with self.lock:
            self.requests[key] += 1
            waiting = self.faults.get(key, [])
            return waiting.pop(0) if waiting else ""


def serve(root: Path, page: int = 1000) -> AbstractContextManager[Bucket]:
    """A running bucket."""
    return running(Bucket(root, page))


class _Handler(QuietHandler):
    server: Bucket

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.open_now += 1
            self.server.most_open = max(self.server.most_open, self.server.open_now)
        try:
            time.sleep(self.server.latency)
            self._answer()
        finally:
            with self.server.lock:
                self.server.open_now -= 1

    def _answer(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        key = unquote(url.path).lstrip("/") or f"?{query.get('prefix', '')}"
        path = self.server.root / key
        fault = self.server.next_fault(key)
        if key.startswith("?"):
            found: bytes | None = self._listing(query)
        else:
            found = path.read_bytes() if path.is_file() else None
        if fault:
            self._fail(fault, found or b"")
        elif found is None:
            self._reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._reply(200, found, {"ETag": f'"{md5(found)}"'})

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, fault: str, body: bytes) -> None:
        """One of: a status, reset, cut, wrong (other bytes), changed (with ETag), slow, stall."""
        tag = {"ETag": f'"{md5(body)}"'}
        if fault.isdecimal():
            code = b"<Error><Code>SlowDown</Code></Error>"
            self._reply(int(fault), code, {"Location": f"{self.server.url}/elsewhere"})
        elif fault == "reset":
            linger = struct.pack("ii", 1, 0)  # close without the usual farewell
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.connection.close()
            self.rfile.close()  # the socket closes with its last file
        elif fault in ("cut", "stall"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(SLOW if fault == "stall" else 0)
            self.close_connection = True
        elif fault == "wrong":
            self._reply(200, body[:-1] + bytes([body[-1] ^ 1]), tag)
        elif fault == "changed":
            body += b" "
            self._reply(200, body, {"ETag": f'"{md5(body)}"'})
        elif fault == "endless":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True
        elif fault == "slow":
            time.sleep(SLOW)
            self._reply(200, body, tag)
        else:
            raise ValueError(fault)

    def _listing(self, query: Mapping[str, str]) -> bytes:
        """ListObjectsV2."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names: dict[str, bool] = {}
        for path in sorted(self.server.root.rglob("*")):
            key = path.relative_to(self.server.root).as_posix()
            if path.is_file() and key.startswith(prefix):
                head, cut, _ = key[len(prefix) :].partition("/")
                folder = bool(delimiter and cut)
                names[f"{prefix}{head}/" if folder else key] = folder
        start = int(query.get("continuation-token", "0"))
        page = list(names.items())[start : start + self.server.page]
        parts = ['<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">']
        for name, folder in page:
            if folder:
                parts.append(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>")
            else:
                data = (self.server.root / name).read_bytes()
                parts.append(f"<Contents><Key>{escape(name)}</Key><ETag>&quot;{md5(data)}&quot;")
                parts.append(f"</ETag><Size>{len(data)}</Size></Contents>")
        more = start + self.server.page < len(names)
        parts.append(f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>")
        if more:
            token = start + self.server.page
            parts.append(f"<NextContinuationToken>{token}</NextContinuationToken>")
        return "".join([*parts, "</ListBucketResult>"]).encode()


def write_inventory(
    root: Path, date: str = "2026-11-20T01-00Z", leave_out: Sequence[str] = ()
) -> str:
    """Copy the articles' JSON to metadata/ and write S3's inventory of it, in two csv.gz files."""
    metadata = root / "metadata"
    shutil.rmtree(metadata, ignore_errors=True)
    metadata.mkdir()
    rows = []
    for folder in sorted(root.glob("PMC*.*")):
        record = folder / f"{folder.name}.json"
        if record.is_file() and folder.name not in leave_out:
            data = record.read_bytes()
            (metadata / record.name).write_bytes(data)
            row = (
                "pmc-oa-opendata",
                f"metadata/{record.name}",
                "2026-11-19T11:47:59.000Z",
                md5(data),
            )
            rows.append(",".join(f'"{value}"' for value in row))
    base = root / "inventory-reports" / "pmc-oa-opendata" / "metadata"
    (base / "data").mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(2):
        data = gzip.compress("\n".join([*rows[number::2], ""]).encode(), mtime=0)
        name = f"{date}-{number}.csv.gz"
        (base / "data" / name).write_bytes(data)
        key = f"inventory-reports/pmc-oa-opendata/metadata/data/{name}"
        files.append({"key": key, "size": len(data), "MD5checksum": md5(data)})
    (base / date).mkdir(exist_ok=True)
    manifest = {"fileSchema": "Bucket, Key, LastModifiedDate, ETag", "files": files}
    (base / date / "manifest.json").write_text(json.dumps(manifest))
    return date


def with_media(root: Path) -> Path:
    """Add the MD5 URLs of its files to each article's JSON."""
    for folder in root.glob("PMC*"):
        path = folder / f"{folder.name}.json"
        if path.is_file():
            base = f"s3://pmc-oa-opendata/{folder.name}"
            files = {file.name: md5(file.read_bytes()) for file in sorted(folder.iterdir())}
            record = json.loads(path.read_text())
            xml = f"{folder.name}.xml"
            record["xml_url"] = f"{base}/{xml}?md5={files.get(xml, '')}"
            media = [f"{base}/{n}?md5={m}" for n, m in files.items() if not n.startswith("PMC")]
            path.write_text(json.dumps(record | {"media_urls": media}))
    return root


def from_server(bucket: Bucket, out: Path, *more: str) -> None:
    """`pmc` over HTTP."""
    prepare("pmc", f"source={bucket.url}", f"out={out}", *QUICK, *more)


def shards(out: Path) -> dict[str, bytes]:
    """What a run makes, without what tells where the articles came from."""
    return {
        name: data
        for name, data in tree(out).items()
        if name.endswith((".tar", "index.parquet", "rejects.parquet"))
        and not name.startswith("units")
    }
