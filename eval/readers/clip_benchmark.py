"""The WebDataset layout of CLIP_benchmark."""

import io
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.data_config import DataConfig
from eval.readers.base import (
    IMAGE_EXTENSIONS,
    Dataset,
    Sample,
    fingerprint_files,
    read_span,
    text_file,
)
from vlp.config import UserError


@dataclass(frozen=True)
class _Member:
    shard: Path
    offset: int
    size: int


def open_clip_benchmark(data: DataConfig, root: Path) -> Dataset:
    """A folder with SPLIT/nshards.txt, SPLIT/0.tar ..., classnames.txt and templates.

    Samples have an image and either `.cls` (a class number), `.npy` (a 0 or 1 for each class) or
    `.txt` (captions, one per line). A row has `label`: the class, or the list of those that are 1.
    """
    path = root / data.path
    count = text_file(path / data.split / "nshards.txt", required=True).strip()
    if not re.fullmatch(r"[0-9]{1,9}", count) or not int(count):
        raise UserError(f"{path / data.split / 'nshards.txt'}: '{count}' is not a number of shards")
    shards = [path / data.split / f"{i}.tar" for i in range(int(count))]
    classes = _lines(path / "classnames.txt")
    samples, members = [], []
    for shard in shards:
        for name, parts in _tar_samples(shard):
            found = next((parts[ext] for ext in IMAGE_EXTENSIONS if ext in parts), None)
            if found is None:
                continue  # as webdataset does with a key that lacks an image
            members.append(found)
            samples.append(_clip_benchmark_sample(f"{shard.name}/{name}", parts, classes))
    if not samples:
        raise UserError(f"{path / data.split}: no images in {count} shards")
    return Dataset(
        samples=samples,
        fingerprint=fingerprint_files(shards),
        every_row=[{"label": label} for label in classes]
        + [row for sample in samples for row in sample.rows],
        images=_MemberImages(members),
        classes=classes,
        templates=_lines(path / "zeroshot_classification_templates.txt"),
    )


class _MemberImages:
    def __init__(self, members: Sequence[_Member]) -> None:
        self.members = members

    def read(self, index: int) -> bytes:
        return _content(self.members[index])


def _clip_benchmark_sample(name: str, parts: dict[str, _Member], classes: list[str]) -> Sample:
    def content(extension: str) -> str:
        try:
            return _content(parts[extension]).decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{parts[extension].shard}: {name}.{extension} is not UTF-8") from None

    if "txt" in parts:
        return Sample(name, content("txt").splitlines(), [{"image": name}])
    if "cls" in parts:
        number = content("cls").strip()
        if not re.fullmatch(r"[0-9]{1,9}", number) or (classes and int(number) >= len(classes)):
            raise UserError(
                f"{parts['cls'].shard}: {name}.cls is '{number}', not one of the "
                f"{len(classes)} classes of classnames.txt"
            )
        label = classes[int(number)] if classes else number
        return Sample(name, [], [{"image": name, "label": label}])
    if "npy" in parts:
        present = _present(parts["npy"], f"{name}.npy", len(classes))
        return Sample(name, [], [{"image": name, "label": [classes[i] for i in present]}])
    raise UserError(f"{name}: none of .cls, .npy and .txt, but {', '.join(sorted(parts))}")


def _content(member: _Member) -> bytes:
    return read_span(member.shard, member.offset, member.size)


def _present(member: _Member, name: str, classes: int) -> list[int]:
    """Numbers of the classes whose entry is 1."""
    stream = io.BytesIO(_content(member))
    try:
        # Not np.load: it would make room for as much as a hostile header claims.
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.kind not in "buif" or shape != (classes,):
            raise ValueError(f"{dtype} {list(shape)} instead of a number for each class")
        vector = np.frombuffer(stream.read(), dtype)
        if len(vector) != classes or not np.isin(vector, (0, 1)).all():
            raise ValueError(f"not {classes} numbers that are 0 or 1")
    except ValueError as error:
        raise UserError(
            f"{member.shard}: {name}: {error}; classnames.txt has {classes} classes"
        ) from None
    return [int(i) for i in np.flatnonzero(vector)]


def _tar_samples(path: Path) -> list[tuple[str, dict[str, _Member]]]:
    """Samples of a tar: (key, extension -> member); the name is cut at its first dot."""
    samples: dict[str, dict[str, _Member]] = {}
    if not path.is_file():
        raise UserError(f"{path}: missing, but nshards.txt counts it")
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, file = member.name.rpartition("/")
                key, _, extension = file.partition(".")
                key = f"{folder}/{key}" if folder else key
                part = _Member(path, member.offset_data, member.size)
                samples.setdefault(key, {})[extension.lower()] = part
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: not readable as a tar: {error}; copy it again") from None
    return list(samples.items())


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in text_file(path).splitlines()]
