"""Packages from elsewhere: what is unsafe is refused."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from data_prep.archives import ArchiveError, archive_members, unpack

LIMIT = 1_000_000


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read(path: Path, limit: int = LIMIT) -> dict[str, bytes]:
    return {member.name: member.read() for member in archive_members(path, limit)}


def test_plain_files_are_read(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("a")
    folder.type = tarfile.DIRTYPE
    tar = write_tar(tmp_path / "a.tar.gz", (folder, b""), (tarfile.TarInfo("a/1.xml"), b"one"))
    assert read(tar) == {"a/1.xml": b"one"}
    zipped = write_zip(tmp_path / "a.meca", {"a/": b"", "a/1.xml": b"one"})
    assert read(zipped) == {"a/1.xml": b"one"}
    unpack(zipped, tmp_path / "out", LIMIT)
    assert (tmp_path / "out" / "a" / "1.xml").read_bytes() == b"one"
    times = {zipped.stat().st_mtime_ns, (tmp_path / "out" / "a" / "1.xml").stat().st_mtime_ns}
    assert len(times) == 1


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "C:/evil", "a\\..\\evil"])
def test_paths_that_leave_the_archive(tmp_path: Path, name: str) -> None:
    for path in (
        write_zip(tmp_path / "a.zip", {name: b"x"}),
        write_tar(tmp_path / "a.tar.gz", (tarfile.TarInfo(name), b"x")),
    ):
        with pytest.raises(ArchiveError, match="leaves the archive"):
            unpack(path, tmp_path / "out" / "deep", LIMIT)
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_tars(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(ArchiveError, match="'link' is a link or a device"):
        read(write_tar(tmp_path / "a.tgz", (info, b"")))


def test_links_in_zips(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArchiveError, match="'link' is a link"):
        read(tmp_path / "a.zip")


def test_bombs_stop_at_the_bound(tmp_path: Path) -> None:
    bomb = bytes(20 * LIMIT)
    zipped = write_zip(tmp_path / "a.zip", {"1": bomb, "2": bomb})
    tar = write_tar(tmp_path / "a.tar.gz", (tarfile.TarInfo("1"), bomb))
    for path in (zipped, tar):
        assert path.stat().st_size < LIMIT
        with pytest.raises(ArchiveError, match="unpacks to more than 1,000,000 bytes"):
            unpack(path, tmp_path / path.name.partition(".")[2], LIMIT)
    assert not [path for path in tmp_path.rglob("1") if path.stat().st_size > LIMIT]


def test_a_zip_that_lies_about_sizes_gives_no_more_than_it_says(tmp_path: Path) -> None:
    data = bytes(20 * LIMIT)
    path = write_zip(tmp_path / "a.zip", {"1": data})
    true_size = len(data).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(true_size, (1000).to_bytes(4, "little")))
    with pytest.raises(ArchiveError, match="archive broken: Bad CRC-32"):
        read(path)


@pytest.mark.parametrize("name", ["a.zip", "a.meca", "a.tar", "a.tar.gz", "a.tgz"])
@pytest.mark.parametrize("content", [b"", b"neither zip nor tar", b"\x1f\x8b\x08\0\0\0\0"])
def test_broken_archives(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArchiveError, match="archive broken"):
        read(tmp_path / name)


def test_archives_cut_off(tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    for path in (
        write_zip(tmp_path / "a.zip", {"1": data}),
        write_tar(tmp_path / "a.tar.gz", (tarfile.TarInfo("1"), data)),
    ):
        path.write_bytes(path.read_bytes()[:-700])
        with pytest.raises(ArchiveError, match="archive broken"):
            read(path)
