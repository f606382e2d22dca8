"""Downloads from a server on this machine: resumed, compared, bounded; archives stay in place."""

import hashlib
import io
import json
import socket
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from eval import catalogue, fetch, unpack
from eval.fetch import main
from tests.eval.layouts import encoded, parquet
from tests.eval.tiny import fails
from tests.loopback import LoopbackServer, QuietHandler, running

SHA = "0123456789abcdef0123456789abcdef01234567"


class Server(LoopbackServer):
    """Serves files by path; `faults[path]` are used up one by one: a status, or `cut`."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.redirects: dict[str, str] = {}
        self.ranges: list[str] = []


class Handler(QuietHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        wanted = self.headers.get("Range", "")
        if self.command == "GET":
            self.server.ranges.append(wanted)
        fault = (self.server.faults.get(path) or [""]).pop(0)
        body = self.server.files.get(path)
        if path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[path])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif body is None or fault.isdecimal():
            self._reply(int(fault or 404), b"no", {})
        elif wanted:
            first = int(wanted.removeprefix("bytes=").partition("-")[0])
            part = {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}
            self._reply(206 if first < len(body) else 416, body[first:], part, fault)
        else:
            self._reply(200, body, {}, fault)

    def _reply(self, status: int, body: bytes, headers: dict, fault: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", SHA)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
            self.close_connection = fault == "cut"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    monkeypatch.setattr(catalogue, "TASKS", tmp_path / "tasks")
    (tmp_path / "tasks").mkdir()
    with running(Server()) as found:
        yield found


def task(tmp_path: Path, **origin: object) -> list[str]:
    """A task whose file is DATA/set.csv, or DATA/hub for the hub's; the arguments to fetch it."""
    data = {"reader": "table", "path": "set.csv", "split": ""}
    if "hub" in origin:
        data = {"reader": "huggingface", "path": "hub", "split": "test"}
    content = {
        "kind": "retrieval", "source": "made up", "data": data,
        "origin": {"licence": "CC0", "page": "http://example.org", **origin},
    }  # fmt: skip
    OmegaConf.save(OmegaConf.create(content), tmp_path / "tasks" / "one.yaml")
    return ["task=one", f"data_root={tmp_path / 'data'}"]


CSV = b"image,caption\na.png,one\n" * 5000


def test_a_file_is_fetched_once_and_compared(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    server.files["/x/set.csv"] = CSV
    md5 = {"set.csv": hashlib.md5(CSV).hexdigest()}
    files = {"set.csv": "https://example.org/x/set.csv?download=1"}
    arguments = [*task(tmp_path, files=files, md5=md5), f"mirror={server.url}"]
    main(arguments)
    assert (tmp_path / "data/set.csv").read_bytes() == CSV
    assert "CC0; http://example.org" in capsys.readouterr().out
    main(arguments)
    assert "is there" in capsys.readouterr().out
    assert len(server.ranges) == 1
    main([*arguments, "again=true"])
    assert len(server.ranges) == 2


def test_broken_connections_are_resumed(server: Server, tmp_path: Path) -> None:
    server.files["/set.csv"] = CSV
    server.faults["/set.csv"] = ["503", "cut", "cut", "429"]
    main(task(tmp_path, files={"set.csv": f"{server.url}/set.csv"}))
    assert (tmp_path / "data/set.csv").read_bytes() == CSV
    half = len(CSV) // 2
    assert server.ranges[:3] == ["", "", f"bytes={half}-"]
    assert server.ranges[-1] == f"bytes={half + (len(CSV) - half) // 2}-"
    assert not list((tmp_path / "data").glob("*.part"))


def test_a_wrong_file_is_refused(server: Server, tmp_path: Path) -> None:
    server.files["/set.csv"] = CSV
    files = {"set.csv": f"{server.url}/set.csv"}
    with fails("set.csv: MD5 "):
        main(task(tmp_path, files=files, md5={"set.csv": "0" * 32}))
    assert not list((tmp_path / "data").glob("*"))


def test_what_servers_may_not_do(server: Server, tmp_path: Path) -> None:
    arguments = task(tmp_path, files={"set.csv": f"{server.url}/set.csv"})
    with fails("/set.csv: status 404"):
        main(arguments)
    server.files["/set.csv"] = CSV
    with fails("0.0 GB; allow it with most_gb="):
        main([*arguments, "most_gb=1e-6"])
    server.redirects["/set.csv"] = "file:///etc/passwd"
    with fails("/set.csv: status 302"):
        main(arguments)
    server.redirects["/set.csv"] = "ftp://example.org/set.csv"
    with fails("redirects to ftp://example.org/set.csv, which isn't followed"):
        main(arguments)
    server.redirects["/set.csv"] = "/moved.csv"
    server.files["/moved.csv"] = CSV
    main(arguments)
    assert (tmp_path / "data/set.csv").read_bytes() == CSV


def test_it_gives_up_and_says_so(server: Server, tmp_path: Path) -> None:
    server.files["/set.csv"] = CSV
    server.faults["/set.csv"] = ["500"] * 99
    arguments = task(tmp_path, files={"set.csv": f"{server.url}/set.csv"})
    with fails("status 500, 6 times; the same command goes on from there"):
        main(arguments)


def test_tasks_that_can_not_be_fetched(server: Server, tmp_path: Path) -> None:
    with fails("task=one: can't be fetched: Ask them. http://example.org"):
        main(task(tmp_path, get="Ask them."))
    with fails("task=two: no such task; see python -m eval list"):
        main([*task(tmp_path), "task=two"])
    with fails("ftp://example.org/set.csv: neither http nor https"):
        main(task(tmp_path, files={"set.csv": "ftp://example.org/set.csv"}))
    with fails("image path '../set.csv' is not inside"):
        main(task(tmp_path, files={"../set.csv": f"{server.url}/set.csv"}))


def test_without_a_connection_to_the_hub(server: Server, tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound but not listening: whoever connects is refused
        taken.bind(("127.0.0.1", 0))
        mirror = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with fails("org/set: can't be fetched from the hub: "):
            main([*task(tmp_path, hub="org/set"), f"mirror={mirror}"])


def test_the_hub(server: Server, tmp_path: Path) -> None:
    """The hub's own client, against its interface on this machine."""
    rows = [{"image": {"bytes": encoded(0), "path": None}, "caption": "one"}]
    parquet(tmp_path / "test.parquet", rows)
    names = ["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet", "README.md"]
    for name in names:
        content = (tmp_path / "test.parquet").read_bytes()
        server.files[f"/datasets/org/set/resolve/{SHA}/{name}"] = content
    size = (tmp_path / "test.parquet").stat().st_size
    tree = [{"type": "file", "path": name, "size": size, "oid": SHA} for name in names]
    server.files[f"/api/datasets/org/set/tree/{SHA}"] = json.dumps(tree).encode()
    info = {"id": "org/set", "sha": SHA, "siblings": [{"rfilename": name} for name in names]}
    for path in ("", "/revision/main", f"/revision/{SHA}"):
        server.files[f"/api/datasets/org/set{path}"] = json.dumps(info).encode()
    origin = {"hub": "org/set", "hub_files": ["data/test-*"], "hub_folder": "hub"}
    main([*task(tmp_path, **origin), f"mirror={server.url}"])
    found = {p.relative_to(tmp_path / "data/hub").as_posix() for p in tmp_path.rglob("*.parquet")
             if (tmp_path / "data") in p.parents}  # fmt: skip
    assert found == {names[0]}
    more = ["hub_files=[data/*]", f"mirror={server.url}"]
    main([*task(tmp_path, **origin), *more])
    assert (tmp_path / "data/hub" / names[1]).is_file()
    with fails("org/other: can't be fetched from the hub: "):
        main([*task(tmp_path, **{**origin, "hub": "org/other"}), f"mirror={server.url}"])


# --- archives -------------------------------------------------------------------------------


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def tarred(path: Path, members: dict[str, bytes | str]) -> Path:
    """A str is the target of a symbolic link."""
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                file.addfile(info)
            else:
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


def test_archives_are_unpacked_once(tmp_path: Path) -> None:
    members = {"set/a.png": b"a", "set/deep/b.png": b"b"}
    for archive in (zipped(tmp_path / "s.zip", members), tarred(tmp_path / "s.tgz", members)):  # type: ignore[arg-type]
        out = tmp_path / archive.suffix
        unpack.unpack(archive, out, 1.0)
        assert (out / "set/deep/b.png").read_bytes() == b"b"
        (out / "set/a.png").write_bytes(b"changed")
        unpack.unpack(archive, out, 1.0)
        assert (out / "set/a.png").read_bytes() == b"changed", "not a second time"
        unpack.unpack(archive, out, 1.0, replace=True)
        assert (out / "set/a.png").read_bytes() == b"a"


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil"])
def test_archives_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    for archive in (
        zipped(tmp_path / "s.zip", {"good": b"g", name: b"x"}),
        tarred(tmp_path / "s.tar.gz", {"good": b"g", name: b"x"}),
    ):
        with fails("is no path inside a folder; not unpacked"):
            unpack.unpack(archive, tmp_path / "out", 1.0)
        assert not list((tmp_path / "out").iterdir()), "all or nothing"
    assert not (tmp_path / "evil").exists()


def test_other_hostile_archives(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with fails("'link' is no plain file; not unpacked"):
        unpack.unpack(tarred(tmp_path / "l.tgz", {"link": "/etc"}), out, 1.0)
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as file:
        file.writestr(link, "/etc")
    with fails("'link' is a link; not unpacked"):
        unpack.unpack(tmp_path / "l.zip", out, 1.0)
    with fails("holds more than most_gb"):
        unpack.unpack(zipped(tmp_path / "b.zip", {"zeros": bytes(5_000_000)}), out, 0.001)
    with fails("neither a zip nor a tar"):
        (tmp_path / "n.zip").write_bytes(b"<html>")
        unpack.unpack(tmp_path / "n.zip", out, 1.0)
    good = zipped(tmp_path / "g.zip", {"set/a": b"a" * 1000}).read_bytes()
    (tmp_path / "d.zip").write_bytes(good.replace(good[40:44], b"\xff\xff\xff\xff", 1))
    with fails("d.zip"):
        unpack.unpack(tmp_path / "d.zip", out, 1.0)
    (out / "set").mkdir()
    with fails("in the way of g.zip"):
        unpack.unpack(tmp_path / "g.zip", out, 1.0)
