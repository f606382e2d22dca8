"""A folder for each class, as ImageFolder of torchvision reads them: [SPLIT/]CLASS/.../IMAGE."""

import os
from pathlib import Path

from eval.data_config import DataConfig
from eval.readers.base import (
    IMAGE_EXTENSIONS,
    Dataset,
    FileImages,
    Sample,
    fingerprint_files,
    split_names,
)
from vlp.config import UserError


def open_folders(data: DataConfig, root: Path) -> Dataset:
    """Images below `path`, their label the name of the folder directly below it (or its split)."""
    base = root / data.path
    if not base.is_dir():
        raise UserError(f"{base}: no such folder; set data_root or the suite's path")
    parts = [base / name for name in split_names(data.split)] or [base]
    samples, files, others = [], [], 0
    for part in parts:
        if not part.is_dir():
            there = ", ".join(_subfolders(base)) or "no folders"
            raise UserError(f"{part}: no such split; {base} has {there}; set split='' to take all")
        for label in _subfolders(part):
            images, skipped = _images(part / label)
            others += skipped
            files += images
            for file in images:
                name = file.relative_to(base).as_posix()
                samples.append(Sample(name, [], [{"image": name, "label": label}]))
    if not samples:
        endings = ", ".join(IMAGE_EXTENSIONS)
        raise UserError(f"{base}: no images in folders of classes; images end in {endings}")
    return Dataset(
        samples=samples,
        fingerprint=fingerprint_files(files),
        every_row=[row for sample in samples for row in sample.rows],
        images=FileImages(files),
        notes=[f"{others} files in the folders of classes are no images"] if others else [],
    )


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _images(folder: Path) -> tuple[list[Path], int]:
    """(images below a folder, sorted; how many other files there are)."""
    found, others = [], 0
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.startswith(".") or name == "Thumbs.db":  # what file managers leave behind
                continue
            if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
                found.append(Path(where, name))
            else:
                others += 1
    return found, others
