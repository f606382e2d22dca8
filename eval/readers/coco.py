"""Annotations in the format of COCO: images, categories and boxes in one JSON file."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from eval.data_config import DataConfig
from eval.readers.base import Dataset, FileImages, Sample, fingerprint_files, inside
from eval.tables import Row, text
from vlp.config import UserError


def open_coco(data: DataConfig, root: Path) -> Dataset:
    """One sample per image, with one row per category on it.

    A row has `image`, `label` (the category's name), `boxes` ([[x, y, width, height], ...] in
    pixels), and `width` and `height` of the image. An image without annotations has no row.
    """
    path = root / data.path.replace("{split}", data.split)
    content = _content(path)
    names = {entry["id"]: text(entry.get("name")) for entry in _list(content, "categories", path)}
    boxes: dict[Any, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for entry in _list(content, "annotations", path):
        category = names.get(entry.get("category_id"))
        if category is None:
            raise UserError(f"{path}: annotations: no category {entry.get('category_id')}")
        boxes[entry.get("image_id")][category].append(_box(entry, path))
    folder = root / data.image_root if data.image_root else path.parent
    samples, files = [], []
    for entry in _list(content, "images", path):
        name = text(entry.get("file_name"))
        files.append(inside(folder, name, path))
        size: Row = {key: entry[key] for key in ("width", "height") if key in entry}
        rows: list[Row] = [
            {**size, "image": name, "label": label, "boxes": found}
            for label, found in sorted(boxes[entry["id"]].items())
        ]
        samples.append(Sample(name, [], rows))
    if not samples:
        raise UserError(f"{path}: no images")
    return Dataset(
        samples=samples,
        fingerprint=fingerprint_files(files),
        every_row=[row for sample in samples for row in sample.rows],
        images=FileImages(files),
    )


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; set data_root or the suite's path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not COCO's format: an object with images and annotations")
    return content


def _list(content: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise UserError(f"{path}: {key}: not a list of objects, as COCO's format has it")
    if key != "annotations" and not all("id" in entry for entry in entries):
        raise UserError(f"{path}: {key}: an entry has no id")
    return entries


def _box(entry: dict[str, Any], path: Path) -> list[float]:
    box = entry.get("bbox")
    numbers = isinstance(box, list) and all(isinstance(v, int | float) for v in box)
    if not numbers or len(box) != 4 or min(box[2:]) < 0:  # type: ignore[arg-type,index]
        raise UserError(f"{path}: annotations: bbox {box} is not [x, y, width, height]")
    return [float(value) for value in box]  # type: ignore[union-attr]
