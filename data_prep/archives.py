"""Safe reading of packages that came from elsewhere: .zip, .meca, .tar, .tar.gz, .tgz.

Refused are paths that leave the archive, links, devices, encrypted members, and archives that
unpack to more than a bound: zip bombs.
"""

import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

ARCHIVE_SUFFIXES = (".zip", ".meca", ".tar", ".tar.gz", ".tgz")
MAX_MEMBERS = 10_000_000

_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    ValueError,
)


class ArchiveError(Exception):
    """The archive is broken or unsafe; the message says which member and why."""


class Member(NamedTuple):
    """A file in an archive, to be read before the next one is asked for."""

    name: str
    size: int
    file: IO[bytes]

    def read(self) -> bytes:
        """The content; raises ArchiveError."""
        with _errors_named():
            return self.file.read()


def is_archive(name: str) -> bool:
    """Whether a file name ends like that of an archive that is read here."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def archive_members(path: Path, max_bytes: int) -> Iterator[Member]:
    """The plain files of an archive, in its order, each with a checked name.

    Raises:
        ArchiveError: broken or unsafe, or unpacking to more than `max_bytes`.
    """
    reader = _zip_members if path.name.lower().endswith((".zip", ".meca")) else _tar_members
    total = count = 0
    with _errors_named():
        for member in reader(path):
            _check_name(member.name)
            total, count = total + member.size, count + 1
            if total > max_bytes or count > MAX_MEMBERS:
                raise ArchiveError(f"unpacks to more than {max_bytes:,} bytes")
            yield member


def unpack(path: Path, folder: Path, max_bytes: int) -> None:
    """Write an archive's files below `folder`; all get the archive's modification time.

    Raises:
        ArchiveError: see `archive_members`; what was written until then stays.
    """
    times = (path.stat().st_mtime_ns, path.stat().st_mtime_ns)
    for member in archive_members(path, max_bytes):
        target = folder / member.name
        with _errors_named():
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                shutil.copyfileobj(member.file, file)
        os.utime(target, ns=times)  # equal inputs stay equal when they are unpacked again


@contextmanager
def _errors_named() -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise ArchiveError(f"archive broken: {error or type(error).__name__}") from None


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if (
                info.external_attr >> 28
            ) == 0o12:  # upper four bits of a Unix mode: a symbolic link
                raise ArchiveError(f"'{info.filename}' is a link")
            if info.flag_bits & 1:
                raise ArchiveError(f"'{info.filename}' is encrypted")
            with archive.open(info) as file:  # gives no more than the declared size
                yield Member(info.filename, info.file_size, file)


def _tar_members(path: Path) -> Iterator[Member]:
    with tarfile.open(path, "r:*") as archive:
        for info in archive:
            if info.isdir():
                continue
            if not info.isreg():
                raise ArchiveError(f"'{info.name}' is a link or a device")
            file = archive.extractfile(info)
            if file is not None:
                yield Member(info.name, info.size, file)


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or ":" in name[:3]:
        raise ArchiveError(f"'{name}' leaves the archive")
