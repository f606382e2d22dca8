"""Unpack an archive that somebody else made: nothing leaves its folder, and sizes are bounded."""

import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Generator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from vlp.config import UserError, write_text

MAX_FILES = 3_000_000
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a compression that zipfile doesn't know
)


class _Entry(NamedTuple):
    name: str
    size: int
    """What the archive claims."""
    content: IO[bytes]


def unpack(archive: Path, folder: Path, most_gb: float, replace: bool = False) -> None:
    """A zip or tar into a folder, at once or not at all; once for each archive.

    Args:
        folder: made if it isn't there.
        most_gb: GB that its files may have together.
        replace: unpack again, over what is in the way.

    Raises:
        UserError: damaged, too large, links, paths that leave the folder, or files in the way.
    """
    done = archive.with_name(f".{archive.name}.unpacked")
    size = str(archive.stat().st_size) if archive.is_file() else ""
    if not replace and done.is_file() and done.read_text() == size:
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".unpack-", dir=folder))
    try:
        left = min(most_gb * 1e9, shutil.disk_usage(folder).free)
        with closing(_entries(archive)) as entries:
            for entry in entries:
                left -= entry.size
                if left < 0:
                    raise UserError(f"{archive}: holds more than most_gb, or than the disk has")
                _write(entry, temporary / _inner(entry.name, archive), archive)
        _move(temporary, folder, archive, replace)
        write_text(done, size)
    except _DAMAGED as error:
        raise UserError(f"{archive}: damaged: {error}; delete it and fetch it again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(temporary: Path, folder: Path, archive: Path, replace: bool) -> None:
    paths = sorted(temporary.iterdir())
    for path in paths:
        if (folder / path.name).exists() and not replace:
            raise UserError(f"{folder / path.name}: in the way of {archive.name}; move it away")
    for path in paths:
        old = folder / path.name
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        os.replace(path, old)


def _write(entry: _Entry, target: Path, archive: Path) -> None:
    """Copy no more than the archive claims: a compressed file may be a bomb."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        rest = entry.size
        while block := entry.content.read(1 << 20):
            rest -= len(block)
            if rest < 0:
                raise UserError(f"{archive}: '{entry.name}' is larger than it claims")
            out.write(block)


def _inner(name: str, archive: Path) -> Path:
    """A member's path, unless it leaves the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts or "\0" in name:
        raise UserError(f"{archive}: '{name}' is no path inside a folder; not unpacked")
    return Path(*path.parts)


def _entries(archive: Path) -> Generator[_Entry, None, None]:
    """The files of an archive, in its order; folders are left out, links are refused."""
    if zipfile.is_zipfile(archive):
        yield from _zip_entries(archive)
    elif archive.is_file() and tarfile.is_tarfile(archive):
        yield from _tar_entries(archive)
    else:
        raise UserError(f"{archive}: neither a zip nor a tar; delete it and fetch it again")


def _zip_entries(archive: Path) -> Generator[_Entry, None, None]:
    with zipfile.ZipFile(archive) as file:
        for i, info in enumerate(file.infolist()):
            _bound(i, archive)
            mode = info.external_attr >> 16
            if stat.S_ISLNK(mode):
                raise UserError(f"{archive}: '{info.filename}' is a link; not unpacked")
            if info.flag_bits & 1:
                raise UserError(f"{archive}: '{info.filename}' is encrypted")
            if not info.is_dir():
                with file.open(info) as content:
                    yield _Entry(info.filename, info.file_size, content)


def _tar_entries(archive: Path) -> Generator[_Entry, None, None]:
    with tarfile.open(archive) as file:
        for i, member in enumerate(file):
            _bound(i, archive)
            if member.isdir():
                continue
            content = file.extractfile(member) if member.isreg() else None
            if content is None:
                raise UserError(f"{archive}: '{member.name}' is no plain file; not unpacked")
            with content:
                yield _Entry(member.name, member.size, content)


def _bound(i: int, archive: Path) -> None:
    if i >= MAX_FILES:
        raise UserError(f"{archive}: more than {MAX_FILES:,} files")
