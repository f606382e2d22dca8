"""What every reader gives, and what several of them need."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from eval.tables import Row
from vlp.config import UserError

IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg", "tif", "tiff", "bmp")
MAX_MEMBER = 1 << 28
"""Bytes of one file in an archive that are read at most: a header may claim anything."""


@dataclass(frozen=True)
class Sample:
    """One image with what is known of it."""

    image: str
    """Its name: what tables of labels are joined on, and what results call it."""
    captions: list[str]
    rows: list[Row]
    """Labels, questions, provenance: one row, or one per question; none where the join failed."""


@dataclass
class Dataset:
    """The samples of one split."""

    samples: list[Sample]
    fingerprint: str
    """SHA-256 over what decides the pixels: the manifest, or the files' names, sizes and times."""
    every_row: list[Row]
    """The rows of all splits, against which names of classes are checked."""
    images: "ImageSource"
    classes: list[str] = field(default_factory=list)
    """Class names that the dataset brings along, in the order of their numbers."""
    templates: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader of the scores should know about the data."""


class ImageSource(Protocol):
    """Gives the bytes of image number `index`; workers hold copies of it."""

    def read(self, index: int) -> bytes:
        """Encoded image. Raises OSError or UserError where it can't be read."""
        ...


class FileImages:
    """Images that are files."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def read(self, index: int) -> bytes:
        """The whole file."""
        return self.files[index].read_bytes()


def fingerprint_files(files: Sequence[Path], *more: str) -> str:
    """SHA-256 of the files' paths, sizes and times, and of `more` that decides the samples."""
    digest = hashlib.sha256()
    for file in files:
        try:
            status = file.stat()
            line = f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n"
        except OSError:  # reported, by name, when the image is read
            line = f"{file}\0missing\n"
        digest.update(line.encode())
    for part in more:
        digest.update(f"\0{part}\n".encode())
    return digest.hexdigest()


def inside(folder: Path, name: str, table: Path) -> Path:
    """folder/name, unless that lies outside the folder.

    Args:
        table: the file that names the image, for the error.
    """
    folder = Path(os.path.abspath(folder))
    file = Path(os.path.abspath(folder / name))
    if not name or not file.is_relative_to(folder):
        raise UserError(
            f"{table}: image path '{name}' is not inside {folder}; set image_root to the folder "
            "that holds the images"
        )
    return file


def png(pixels: Any) -> bytes:
    """uint8 [H, W] or [H, W, 3] as PNG, stored without compression: it is decoded at once."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def split_names(split: str) -> list[str]:
    """'a|b' -> [a, b]; '' -> []."""
    return [part.strip() for part in split.split("|") if part.strip()]


def text_file(path: Path, required: bool = False) -> str:
    """Content of a small text file; '' for one that isn't there and needn't be."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if required:
            raise UserError(f"{path}: missing; set data_root or the suite's path") from None
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable: {error}") from None


def read_span(path: Path, offset: int, size: int) -> bytes:
    """Bytes [offset, offset + size) of a file."""
    if size > MAX_MEMBER:
        raise UserError(f"{path}: the member at byte {offset} claims {size} bytes; copy it again")
    with path.open("rb") as file:
        data = os.pread(file.fileno(), size, offset)
    if len(data) != size:
        raise UserError(f"{path}: ends inside the member at byte {offset}; copy it again")
    return data
