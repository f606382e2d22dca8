"""Compound figures as panels, each with its own part of the caption.

A figure is split only where two independent readings agree: the caption's leading labels say how
many panels there are, and the picture's gutters, with the letters beside them, give as many boxes.
Everything else stays whole, for a wrong pair costs training more than a missing one.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_prep.panel_boxes import Box, boxes_by_gutters, boxes_by_letters
from data_prep.panel_captions import PanelTexts, split_caption
from data_prep.panel_letters import SAME_SIZE, Grey, Letter, choose_letters, find_letters

_LONGEST = 1600  # side in pixels at which figures are looked at; letters are legible at 1000


@dataclass(frozen=True, kw_only=True)
class PanelRules:
    """What a panel must be like."""

    min_side: int
    """Figures with a panel whose shorter side is below this many pixels stay whole."""


@dataclass(frozen=True)
class Panel:
    """A part of a figure with its part of the caption."""

    label: str
    """One letter, in the caption's own case."""
    box: tuple[int, int, int, int]
    """Left, top, right (exclusive), bottom (exclusive) in pixels of the image."""
    caption: str
    """The shared lead and the panel's own part."""
    lead: str
    own: str


def split_figure(image: Image.Image, caption: str, rules: PanelRules) -> list[Panel]:
    """The panels of a compound figure in the order of their labels.

    Args:
        image: the figure at full size, upright.
        caption: of the whole figure, on one line.
        rules: what a panel must be like.

    Returns:
        Two or more panels, or none where the figure must stay whole.
    """
    texts = split_caption(caption)
    if texts is None:
        return []
    scale = min(1.0, _LONGEST / max(image.size))
    grey = image.convert("L")
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        grey = grey.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    boxes = _boxes(np.asarray(grey), "".join(panel.label for panel in texts.panels))
    panels = _joined(texts, [_enlarged(box, grey.size, image.size) for box in boxes])
    small = any(min(p.box[2] - p.box[0], p.box[3] - p.box[1]) < rules.min_side for p in panels)
    return [] if small else panels


def panel_caption(lead: str, own: str) -> str:
    """Lead and own part as sentences of one caption."""
    if lead and lead[-1] not in ".:;!?":
        lead += "."
    return f"{lead} {own}".strip()


def _boxes(grey: Grey, labels: str) -> list[Box]:
    """A box for each label; empty where picture and labels don't agree."""
    found = find_letters(grey, labels)
    letters = choose_letters(found, labels)
    if letters is not None:
        return boxes_by_letters(grey, letters) or []
    boxes = boxes_by_gutters(grey) or []
    if len(boxes) != len(labels) or _contradicted(boxes, labels, found):
        return []
    return boxes


def _contradicted(boxes: list[Box], labels: str, found: list[Letter]) -> bool:
    """Whether letters of one size stand at corners of other boxes than their own.

    One such sign may be chance, such as a speck; with two it is not, unless others are in place.
    """
    sizes: dict[str, list[float]] = {"right": [], "wrong": []}
    for box, label in zip(boxes, labels, strict=True):
        for letter in found:
            x, y = (letter.left + letter.right) / 2, (letter.top + letter.bottom) / 2
            across = min(abs(x - box.left), abs(x - box.right))
            along = min(abs(y - box.top), abs(y - box.bottom))
            if max(across, along) < 2 * letter.size:
                sizes["right" if letter.label == label else "wrong"].append(letter.size)
    for size in sizes["wrong"]:
        right, wrong = (
            sum(1 / SAME_SIZE <= other / size <= SAME_SIZE for other in sizes[name])
            for name in ("right", "wrong")
        )
        if wrong >= 2 and wrong > right:
            return True
    return False


def _enlarged(box: Box, size: tuple[int, int], full: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box of the reduced picture in pixels of the full one."""
    x, y = full[0] / size[0], full[1] / size[1]
    return round(box.left * x), round(box.top * y), round(box.right * x), round(box.bottom * y)


def _joined(texts: PanelTexts, boxes: list[tuple[int, int, int, int]]) -> list[Panel]:
    if not boxes:
        return []
    return [
        Panel(text.label, box, panel_caption(texts.lead, text.own), texts.lead, text.own)
        for text, box in zip(texts.panels, boxes, strict=True)
    ]
