"""MedMNIST's files: SPLIT_images and SPLIT_labels in one .npz, never unpickled.

The arrays are mapped into memory. numpy writes members of an .npz without compression unless told
otherwise, and those are mapped where they lie; MedMNIST's own files are compressed, so the one
array is unpacked into a temporary file when its first image is asked for.
"""

import fcntl
import lzma
import os
import shutil
import struct
import tempfile
import weakref
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eval.data_config import DataConfig
from eval.readers.base import Dataset, Sample, fingerprint_files, png, split_names
from eval.tables import Row
from vlp.config import UserError

MAX_ARRAY = 1 << 36
"""Bytes of one array that are read at most; the largest of MedMNIST at 224 pixels has 13 GB."""
MAX_LABELS = 1 << 30
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,  # numpy, of a header or content that doesn't fit
    RuntimeError,  # zipfile, of an encrypted member
)


class _Array(NamedTuple):
    """An array of an .npz without its content."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int
    """Bytes of the .npy before the numbers."""
    stored: bool
    """Not compressed."""


def open_npz(data: DataConfig, root: Path) -> Dataset:
    """uint8 images [N, H, W] or [N, H, W, 3] and labels [N], [N, 1] or [N, L] (0 and 1 each).

    A row has `label`: the class's number, or for L > 1 the list of the numbers that are 1.
    """
    path = root / data.path
    splits = split_names(data.split)
    if len(splits) != 1:
        raise UserError(f"{path}: an npz is read one split at a time: split=test")
    split = splits[0]
    member = f"{split}_images.npy"
    with _opened(path) as archive:
        there = [n.removesuffix("_images.npy") for n in archive.namelist() if "_images.npy" in n]
        if split not in there:
            raise UserError(f"{path}: no split '{split}'; it has {', '.join(there) or 'none'}")
        images = _header(archive, member, path)
        labels = {name: _labels(archive, f"{name}_labels.npy", path) for name in there}
    if images.dtype != np.uint8 or len(images.shape) not in (3, 4):
        raise UserError(
            f"{path}: {member}: 8-bit images [N, H, W] or [N, H, W, 3] are read, not "
            f"{images.dtype} {list(images.shape)}"
        )
    if len(labels[split]) != images.shape[0]:
        counts = f"{len(labels[split])} labels for {images.shape[0]} images"
        raise UserError(f"{path}: split '{split}': {counts}")
    samples = []
    for i, row in enumerate(_rows(labels[split])):
        name = f"{split}/{i:06d}"
        samples.append(Sample(name, [], [{"image": name, **row}]))
    return Dataset(
        samples=samples,
        fingerprint=fingerprint_files([path], split),
        every_row=[row for name in there for row in _rows(labels[name])],
        images=_NpzImages(path, member, images),
    )


def _rows(labels: np.ndarray) -> list[Row]:
    """int [N, L] -> one row per image."""
    if labels.shape[1] == 1:
        return [{"label": str(value)} for value in labels[:, 0].tolist()]
    return [{"label": [str(i) for i in np.flatnonzero(row).tolist()]} for row in labels]


def _labels(archive: zipfile.ZipFile, member: str, path: Path) -> np.ndarray:
    """int64 [N, L]."""
    array = _header(archive, member, path, MAX_LABELS)
    if array.dtype.kind not in "iub" or len(array.shape) not in (1, 2):
        raise UserError(f"{path}: {member}: not integers [N] or [N, L], but {array.dtype}")
    try:
        with archive.open(member) as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except _DAMAGED as error:
        raise UserError(f"{path}: {member}: damaged: {error}; copy it again") from None
    return values.reshape(len(values), -1).astype(np.int64)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; set data_root or the suite's path") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not readable as npz: {error}; copy it again") from None


def _header(archive: zipfile.ZipFile, member: str, path: Path, bound: int = MAX_ARRAY) -> _Array:
    """What the array's header says, once it agrees with the archive's."""
    try:
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            start = file.tell()
        info = archive.getinfo(member)
        size = info.file_size
    except KeyError:
        raise UserError(f"{path}: no array '{member.removesuffix('.npy')}'") from None
    except _DAMAGED as error:
        raise UserError(f"{path}: {member}: not an array: {error}") from None
    count = 1
    for side in shape:
        count *= side  # Python's integers: numpy's would overflow
    if dtype.hasobject:
        raise UserError(f"{path}: {member}: holds Python objects, which are never unpickled")
    if start + count * dtype.itemsize != size or size > bound:
        raise UserError(f"{path}: {member}: {size} bytes don't fit the shape {list(shape)}")
    return _Array(shape, dtype, fortran, start, info.compress_type == zipfile.ZIP_STORED)


class _NpzImages:
    def __init__(self, path: Path, member: str, header: _Array) -> None:
        self.path, self.member, self.header = path, member, header
        self._array: np.ndarray | None = None
        self.folder = ""
        if not header.stored:
            # Made before any worker is forked, so that all of them find the same unpacked file.
            self.folder = tempfile.mkdtemp(prefix="biovlp-npz-")
            weakref.finalize(self, _remove, self.folder, os.getpid())

    def read(self, index: int) -> bytes:
        """The image as PNG."""
        if self._array is None:
            self._array = self._mapped()
        return png(np.ascontiguousarray(self._array[index]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}  # a map would travel as a copy of all pixels

    def _mapped(self) -> np.ndarray:
        with _opened(self.path) as archive:
            if self.header.stored:
                offset = archive.getinfo(self.member).header_offset
                file, start = self.path, _data_offset(self.path, offset)
            else:
                file, start = self._unpacked(archive), 0
        header = self.header
        return np.memmap(
            file,
            dtype=header.dtype,
            mode="r",
            offset=start + header.start,
            shape=header.shape,
            order="F" if header.fortran else "C",
        )

    def _unpacked(self, archive: zipfile.ZipFile) -> Path:
        """The array as a file of its own; whichever process comes first writes it."""
        target = Path(self.folder, "array.npy")
        with Path(self.folder, "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_file():
                partial = target.with_suffix(".tmp")
                try:
                    with archive.open(self.member) as source, partial.open("wb") as out:
                        shutil.copyfileobj(source, out, 1 << 20)
                except _DAMAGED as error:
                    raise UserError(f"{self.path}: damaged: {error}; copy it again") from None
                os.replace(partial, target)
        return target


def _remove(folder: str, owner: int) -> None:
    """Delete the temporary folder; not from a worker, which holds a copy."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _data_offset(path: Path, header: int) -> int:
    """Where a stored member's bytes begin: its local header, whose name and extra may differ."""
    with path.open("rb") as file:
        raw = os.pread(file.fileno(), 30, header)
    if len(raw) != 30 or raw[:4] != b"PK\x03\x04":
        raise UserError(f"{path}: damaged at byte {header}; copy it again")
    name, extra = struct.unpack("<HH", raw[26:30])
    return header + 30 + int(name) + int(extra)
