"""Finding the letters that mark a figure's panels, each known beforehand from the caption.

No general reading of text: a panel's letter is an isolated sign of one colour, and all letters of
a figure have one size. Signs are compared with the letters of Pillow's built-in font, in several
weights, by normalised correlation. What is found is only used together with the gutters.
"""

import string
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Grey = NDArray[np.uint8]
Floats = NDArray[np.float32]
Boxes = NDArray[np.int64]

MIN_SCORE = 0.74
"""Least correlation of a sign with its letter."""
_DARK, _LIGHT = 110, 185  # ink is darker or lighter than this
_TALL, _WIDE = 24, 36  # the raster on which signs are compared
_MIN_HEIGHT, _MAX_HEIGHT = 0.007, 0.06  # of the figure's longer side
_MIN_PIXELS = 7
SAME_SIZE = 1.14
"""Letters of a figure differ in height by this factor at most."""
_MIN_LEAD = 0.03
_MAX_SIGNS = 4000
_STROKES = (0, 2, 4)  # pixels added around a letter of 64 pixels: regular to bold


@dataclass(frozen=True)
class Letter:
    """A sign in the image that looks like one of the letters looked for."""

    label: str
    left: int
    top: int
    right: int
    bottom: int
    size: float
    """Height in pixels of a capital of its font."""
    score: float
    """Correlation with the letter, at most 1."""


def find_letters(grey: Grey, labels: str) -> list[Letter]:
    """All isolated signs that look like one of `labels` more than like any other letter or digit.

    Args:
        grey: [H, W].
        labels: the letters, all in upper or all in lower case.
    """
    found: list[Letter] = []
    for ink, strength in ((grey < _DARK, 255 - grey), (grey > _LIGHT, grey)):
        boxes = _components(ink)
        tall = boxes[:, 3] - boxes[:, 1]
        wide = boxes[:, 2] - boxes[:, 0]
        longest = max(grey.shape)
        fits = (tall >= max(_MIN_PIXELS, _MIN_HEIGHT * longest)) & (tall <= _MAX_HEIGHT * longest)
        signs = boxes[fits & (wide <= 1.4 * tall)]
        for box in signs[:_MAX_SIGNS]:
            letter = _recognise(strength, box, labels)
            if letter is not None and _isolated(box, boxes):
                found.append(letter)
    return found


def choose_letters(found: list[Letter], labels: str) -> list[Letter] | None:
    """One sign for every label, all of one size; the largest size for which there are all.

    None where there is no such set, where a label has two equally good signs, or where the figure
    goes on with the letter after the last label.
    """
    following = chr(ord(labels[-1]) + 1)
    for size in sorted({x.size for x in found if x.label == labels[0]}, reverse=True):
        same = [x for x in found if 1 / SAME_SIZE <= x.size / size <= SAME_SIZE]
        chosen = [_best([x for x in same if x.label == label]) for label in labels]
        complete = [letter for letter in chosen if letter is not None]
        if len(complete) == len(labels):
            return None if any(x.label == following for x in same) else complete
    return None


def _best(letters: list[Letter]) -> Letter | None:
    ranked = sorted(letters, key=lambda letter: -letter.score)
    if not ranked or (len(ranked) > 1 and ranked[0].score - ranked[1].score < _MIN_LEAD):
        return None
    return ranked[0]


def _components(ink: NDArray[np.bool_]) -> Boxes:
    """Left, top, right, bottom of each connected piece of ink, diagonal neighbours included."""
    from scipy import ndimage  # slow to import, and not always needed

    marked, _ = ndimage.label(ink, structure=np.ones((3, 3)))
    pieces = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(marked)]
    return np.array(pieces, dtype=np.int64).reshape(-1, 4)


def _isolated(box: Boxes, boxes: Boxes) -> bool:
    """Whether no other sign follows or precedes on the same line, brackets and a dot excepted."""
    left, top, right, bottom = box
    tall = bottom - top
    line = (np.minimum(boxes[:, 3], bottom) - np.maximum(boxes[:, 1], top)) > 0.3 * tall
    heights = boxes[:, 3] - boxes[:, 1]
    line &= (heights < 4 * tall) & (heights > 0.35 * tall)  # no frames of plots, no specks
    gap = np.maximum(boxes[:, 0] - right, left - boxes[:, 2])
    near = boxes[line & (gap >= 0) & (gap < 0.55 * tall)]
    brackets = near[
        (near[:, 2] - near[:, 0] < 0.5 * tall) & (near[:, 3] - near[:, 1] > 1.05 * tall)
    ]
    return len(near) == len(brackets) <= 2


def _recognise(strength: Grey, box: Boxes, labels: str) -> Letter | None:
    """The label that this piece of ink shows, if it shows one."""
    left, top, right, bottom = (int(x) for x in box)
    names, heights, templates = _templates(labels[0].islower())
    scores = templates @ _raster(Image.fromarray(strength[top:bottom, left:right]))
    best = int(scores.argmax())
    if scores[best] < MIN_SCORE:
        return None
    following = chr(ord(labels[-1]) + 1)
    if names[best] not in labels + following:
        return None
    size = (bottom - top) / heights[best]
    return Letter(names[best], left, top, right, bottom, size, float(scores[best]))


def _raster(sign: Image.Image) -> Floats:
    """A sign of any size as a vector of mean 0 and length 1."""
    wide = min(_WIDE, max(1, round(sign.width * _TALL / sign.height)))
    canvas = np.zeros((_TALL, _WIDE), np.float32)
    left = (_WIDE - wide) // 2
    small = np.asarray(sign.resize((wide, _TALL), Image.Resampling.BILINEAR), np.float32)
    low, high = small.min(), small.max()
    canvas[:, left : left + wide] = (small - low) / max(1.0, high - low)
    canvas -= canvas.mean()
    flat = canvas.ravel()
    return flat / max(1e-6, float(np.linalg.norm(flat)))


@cache
def _templates(lower: bool) -> tuple[tuple[str, ...], tuple[float, ...], Floats]:
    """Names, heights in capitals and rasters [N, D] of the letters of a case, and of digits."""
    letters = string.ascii_lowercase if lower else string.ascii_uppercase
    capital = ImageFont.load_default(64).getbbox("H")
    names, heights, rasters = [], [], []
    for letter in letters + "23456789":
        for stroke in _STROKES:
            page = Image.new("L", (160, 160))
            pen = ImageDraw.Draw(page)
            font = ImageFont.load_default(64)
            pen.text((48, 32), letter, fill=255, font=font, stroke_width=stroke)
            boxes = _components(np.asarray(page) > 127)
            box = max(boxes.tolist(), key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))  # i without dot
            names.append(letter)
            heights.append((box[3] - box[1]) / (capital[3] - capital[1] + 2 * stroke))
            rasters.append(_raster(page.crop(tuple(box))))
    return tuple(names), tuple(heights), np.stack(rasters)
