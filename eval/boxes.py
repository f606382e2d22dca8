"""Phrases with their boxes, and boxes in the pixels that a model sees."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.config import GroundingConfig
from eval.tables import Row, text
from eval.tasks import Item

Corners = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""
Mask = NDArray[np.bool_]

NO_BOX = "a box is not four numbers"
NO_AREA = "box without area"
NO_PHRASE = "no phrase"
NO_SIZE = "no size of the image on which boxes were drawn"
MAX_BOXES = 10_000
"""Of one item; more are a mistake in the table."""


@dataclass(frozen=True)
class Phrase:
    """Something said of an image, and where it is."""

    item: Item
    texts: list[str]
    """Ways to say it, whose embeddings are averaged."""
    category: str
    """The finding over which scores are averaged."""
    boxes: list[Corners]
    """As they are written."""
    drawn_on: tuple[float, float] | None = None
    """Width and height of the image in whose pixels they are; None for the stored one."""

    def boxes_on(self, stored: tuple[int, int]) -> list[Corners]:
        """The boxes in pixels of the stored image.

        Args:
            stored: its width and height.
        """
        if self.drawn_on is None:
            return self.boxes
        across, down = (have / had for have, had in zip(stored, self.drawn_on, strict=True))
        return [(x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in self.boxes]


@dataclass(frozen=True)
class View:
    """Where a stored image lies in the model's input: input = stored * scale + offset."""

    scale: tuple[float, float]
    """Across, down."""
    offset: tuple[float, float]
    size: tuple[int, int]
    """Height and width of the input."""
    stored: tuple[int, int]
    """Width and height of the stored image."""

    def mask(self, boxes: Sequence[Corners]) -> Mask:
        """bool [H, W]: input pixels whose centre lies in one of the boxes."""
        rows, columns = (np.arange(n) + 0.5 for n in self.size)
        inside = np.zeros(self.size, dtype=bool)
        for left, top, right, bottom in boxes:
            x0, x1 = (x * self.scale[0] + self.offset[0] for x in (left, right))
            y0, y1 = (y * self.scale[1] + self.offset[1] for y in (top, bottom))
            across, down = (columns >= x0) & (columns < x1), (rows >= y0) & (rows < y1)
            inside |= down[:, None] & across[None, :]
        return inside

    def image(self) -> Mask:
        """bool [H, W]: input pixels that show the image, and not the padding around it."""
        return self.mask([(0.0, 0.0, float(self.stored[0]), float(self.stored[1]))])


def view_of(preprocess: dict[str, Any], width: int, height: int) -> View:
    """What open_clip's evaluation transform does to the places of pixels.

    Args:
        preprocess: open_clip's preprocess_cfg, with `size` and `resize_mode`.
        width, height: of the stored image.
    """
    size = preprocess["size"]
    wanted = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))  # H, W
    mode = preprocess.get("resize_mode", "shortest")
    ratios = height / wanted[0], width / wanted[1]
    shorter = min(width, height)
    ratio = max(ratios) if mode == "longest" else min(ratios)
    if mode == "squash":
        new = wanted
    elif mode == "shortest" and wanted[0] == wanted[1]:  # torchvision's Resize cuts off
        new = int(wanted[0] * height / shorter), int(wanted[0] * width / shorter)
    else:
        new = round(height / ratio), round(width / ratio)
    top, left = (_margin(new[i], wanted[i]) for i in (0, 1))
    return View((new[1] / width, new[0] / height), (left, top), wanted, (width, height))


def phrases_of(config: GroundingConfig, items: Sequence[Item]) -> tuple[list[Phrase], Counter[str]]:
    """(phrases, reason -> number of phrases, or boxes, left out)."""
    left_out: Counter[str] = Counter()
    grouped: dict[tuple[int, str], tuple[Item, str, list[Any]]] = {}
    for item in items:
        for phrase, category, box in _boxes(config, item.row):
            if not phrase:
                left_out[NO_PHRASE] += 1
                continue
            entry = grouped.setdefault((item.sample, phrase), (item, category, []))
            entry[2].append(box)
    phrases = []
    for (_, phrase), (item, category, raw) in grouped.items():
        corners = [_corners(config, box) for box in raw[:MAX_BOXES]]
        if len(raw) > MAX_BOXES or not all(corners):
            left_out[NO_BOX] += 1
            continue
        # Some sets have points among their boxes. They cover nothing; the phrase's others count.
        boxes = [box for box in corners if box and box[2] > box[0] and box[3] > box[1]]
        left_out[NO_AREA] += len(corners) - len(boxes)
        drawn_on = _size(config, item.row)
        if config.size_columns and drawn_on is None:
            left_out[NO_SIZE] += 1
        elif boxes:
            texts = list(config.phrases.get(phrase, ())) or [phrase]
            phrases.append(Phrase(item, texts, category, boxes, drawn_on))
    return phrases, +left_out


def _boxes(config: GroundingConfig, row: Row) -> list[tuple[str, str, Any]]:
    """(phrase or label, category, box as it is written) of a row."""
    phrase, category = text(row.get(config.phrase)), text(row.get(config.category))
    if config.box_columns:
        return [(phrase, category, [row.get(column) for column in config.box_columns])]
    cell = row.get(config.boxes)
    if isinstance(cell, str):  # CSV has no lists
        try:
            cell = json.loads(cell or "[]")
        except ValueError:
            return [(phrase, category, None)]
    found = []
    for entry in cell if isinstance(cell, list) else [cell] if cell else []:
        if not isinstance(entry, dict):
            found.append((phrase, category, entry))
        elif not config.phrases or text(entry.get("label")) in config.phrases:
            label = text(entry.get("label"))
            found.append((label, label, entry.get("box")))
    return found


def _corners(config: GroundingConfig, box: Any) -> Corners | None:
    if not isinstance(box, list | tuple) or len(box) != 4:
        return None
    try:
        left, top, third, fourth = (float(value) for value in box)
    except (TypeError, ValueError):
        return None
    right, bottom = (left + third, top + fourth) if config.box_format == "xywh" else (third, fourth)
    whole = all(math.isfinite(value) for value in (left, top, right, bottom))
    return (left, top, right, bottom) if whole else None


def _size(config: GroundingConfig, row: Row) -> tuple[float, float] | None:
    """Width and height that a row tells; None where it doesn't."""
    try:
        width, height = (float(text(row.get(column))) for column in config.size_columns)
    except ValueError:  # not two numbers
        return None
    whole = math.isfinite(width) and math.isfinite(height) and min(width, height) > 0
    return (width, height) if whole else None


def _margin(new: int, wanted: int) -> int:
    """Where the image starts: negative where the centre crop cuts, positive where it is padded."""
    if new >= wanted:
        return -round((new - wanted) / 2)
    return (wanted - new) // 2
