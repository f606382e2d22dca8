"""Where articles' files come from: a folder, or a package that holds one article.

`Files` is all that the stages know of a source. A reader over HTTPS or S3 is one more class here
and one more case in `open_files`.
"""

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import unquote

from data_prep.archives import archive_members

MAX_FILE = 1 << 30
"""Bytes of one figure file or article; larger ones are not read."""
MAX_PACKAGE = 1 << 31
"""Bytes that the package of one article may unpack to; it is held in memory."""

# Preferred formats first: those that need no conversion, thumbnails (GIF in old packages) last.
_EXTENSIONS = ("", ".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
_USEFUL = frozenset(_EXTENSIONS) | {".xml", ".nxml", ".json"}


class FileProblem(Exception):
    """A file cannot be read; the message is the reason that rejects.parquet records."""


class FileMissing(FileProblem):
    """There is no such file."""


class FetchFailed(FileProblem):
    """The file could not be had, and may be had another time."""


class Files(Protocol):
    """The files around one article."""

    def names(self) -> Sequence[str]:
        """Paths relative to the folder of the article's XML, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """Content of one of `names()`; raises FileProblem."""
        ...


class FolderFiles:
    """The files in a folder and below it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> Sequence[str]:
        """See Files."""
        return _folder_names(self._folder)

    def read(self, name: str) -> bytes:
        """See Files."""
        path = self._folder / name
        try:
            if path.stat().st_size > MAX_FILE:
                raise FileProblem(f"file larger than {MAX_FILE:,} bytes")
            return path.read_bytes()
        except OSError as error:
            raise FileProblem(f"file unreadable: {error.strerror}") from None


class PackageFiles:
    """The files of a package, unpacked in memory; videos, PDFs and spreadsheets are passed over.

    Raises:
        ArchiveError: the package is broken, unsafe or too large.
    """

    def __init__(self, path: Path, folder: str = "") -> None:
        prefix = f"{folder}/" if folder else ""
        self._content = {
            member.name.removeprefix(prefix): member.read()
            for member in archive_members(path, MAX_PACKAGE)
            if member.name.startswith(prefix) and suffix(member.name) in _USEFUL
        }

    def names(self) -> Sequence[str]:
        """See Files."""
        return sorted(self._content)

    def read(self, name: str) -> bytes:
        """See Files."""
        return self._content[name]


def suffix(name: str) -> str:
    """Extension in lower case, or "" where what follows the last dot is no known extension.

    bioRxiv's figure files are called `030213v1_fig1` or even `2020.04.07.030213v1_fig1`.
    """
    extension = PurePosixPath(name).suffix.lower()
    return extension if len(extension) <= 5 and extension[1:2].isalpha() else ""


def format_rank(name: str) -> int:
    """The place of a file's format in the order of preference; the first is the best."""
    extension = suffix(name)
    return _EXTENSIONS.index(extension) if extension in _EXTENSIONS else len(_EXTENSIONS)


def find_file(href: str, names: Sequence[str]) -> str | None:
    """The file that a graphic's href means, or None.

    Hrefs come with or without extension, with an extension that the file has not (".tif" in the
    text, ".jpg" in the package), in other letter case, percent-encoded, or with a folder or URL
    before the name.
    """
    by_name, by_base = _lookup(tuple(names))
    for wanted in dict.fromkeys((href, unquote(href))):
        base = wanted.rpartition("/")[2].lower()
        stems = [base] + ([base.removesuffix(suffix(base))] if suffix(base) else [])
        if wanted in by_name:
            return wanted
        for stem in stems:
            for extension in _EXTENSIONS:
                if stem and stem + extension in by_base:
                    return by_base[stem + extension]
    return None


@lru_cache(maxsize=4)
def _lookup(names: tuple[str, ...]) -> tuple[frozenset[str], dict[str, str]]:
    """All names, and the first name for each base name in lower case."""
    by_base: dict[str, str] = {}
    for name in names:
        by_base.setdefault(name.rpartition("/")[2].lower(), name)
    return frozenset(names), by_base


@lru_cache(maxsize=4)
def _folder_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(name for name, _, _ in walk(folder)))


def walk(folder: Path) -> list[tuple[str, int, int]]:
    """(path relative to `folder`, size, modification time in ns) of every file, sorted."""
    found = []
    for parent, folders, names in os.walk(folder):  # links to folders are not followed
        folders.sort()
        for name in names:
            path = Path(parent) / name
            status = path.stat() if path.exists() else None
            if status is not None:  # else a link that leads nowhere
                found.append(
                    (path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns)
                )
    return sorted(found)


@lru_cache(maxsize=4)
def folder_state(folder: Path) -> str:
    """`state_of` all files in and below a folder, which many articles may share."""
    return state_of(walk(folder))


def forget_folders() -> None:
    """Drop what is remembered of folders' contents; a run does so before it looks at them."""
    _folder_names.cache_clear()
    folder_state.cache_clear()


def state_of(listing: Sequence[tuple[str, int, int]]) -> str:
    """A hash of names, sizes and times: it changes when a file does."""
    text = "\0".join(f"{name}\0{size}\0{time}" for name, size, time in listing)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
