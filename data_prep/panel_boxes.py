"""Boxes of a figure's panels: the picture is cut along its gutters, again and again.

With letters in the picture every cut separates letters from letters, and stops when each piece has
one, in the same corner. Without letters only pictures that fill their rectangles are cut, as far as
they can be, and in an order that can be read in one way only.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.panel_letters import Grey, Letter

_WHITE, _BLACK = 236, 18  # a gutter is lighter or darker than this all along
_MIN_GUTTER = 2
_REACH = (1.0, 3.0)  # gutters before a letter: near ones and the rest, in heights of the letter
_CORNER = 0.25  # and this near its corner, as a share of the panel's side
_MAX_AREAS = 4.0  # ratio of the largest to the smallest panel, where there are no letters
_LETTERING = 0.05  # of the figure's longer side: pieces with a shorter side are letters


class Box(NamedTuple):
    """Pixels from left to right (exclusive) and from top to bottom (exclusive)."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


@dataclass(frozen=True)
class Gutter:
    """A band that crosses a box: rows (axis 0) or columns (axis 1) from start to stop."""

    axis: int
    start: int
    stop: int


def gutters(grey: Grey, box: Box, axis: int, background: str = "both") -> list[Gutter]:
    """Bands of background inside a box, in order; those at its rim are none.

    Args:
        grey: [H, W].
        box: where to look.
        axis: 0 for horizontal bands, 1 for vertical ones.
        background: which bands count: "white", "black" or "both".
    """
    lines = _background(grey, box, axis, background)
    offset = (box.top, box.left)[axis]
    edges = np.flatnonzero(np.diff(np.concatenate(([0], lines.view(np.int8), [0]))))
    bands = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [
        Gutter(axis, offset + start, offset + stop)
        for start, stop in bands
        if start > 0 and stop < len(lines) and stop - start >= _MIN_GUTTER
    ]


def trim(grey: Grey, box: Box) -> Box:
    """The box without background at its rim; unchanged where it holds nothing else."""
    rows = np.flatnonzero(~_background(grey, box, 0, "white"))
    columns = np.flatnonzero(~_background(grey, box, 1, "white"))
    if not len(rows) or not len(columns):
        return box
    return Box(
        box.left + int(columns[0]),
        box.top + int(rows[0]),
        box.left + int(columns[-1]) + 1,
        box.top + int(rows[-1]) + 1,
    )


def _background(grey: Grey, box: Box, axis: int, background: str) -> NDArray[np.bool_]:
    """For each row (axis 0) or column (axis 1) of the box whether it is background."""
    part = grey[box.top : box.bottom, box.left : box.right]
    lines = np.zeros(part.shape[axis], np.bool_)
    if background != "black":
        lines |= part.min(axis=1 - axis) >= _WHITE
    if background != "white":
        lines |= part.max(axis=1 - axis) <= _BLACK
    return lines


def boxes_by_letters(grey: Grey, letters: list[Letter]) -> list[Box] | None:
    """One box per letter, in the order of the letters; None where gutters don't separate them."""
    pieces = _separate(grey, trim(grey, Box(0, 0, grey.shape[1], grey.shape[0])), letters)
    if pieces is None:
        return None
    boxes = [trim(grey, pieces[letter]) for letter in letters]
    for right, bottom in ((False, False), (True, False), (False, True), (True, True)):
        pairs = zip(boxes, letters, strict=True)
        if all(_in_corner(box, letter, right, bottom) for box, letter in pairs):
            return boxes
    return None


def _in_corner(box: Box, letter: Letter, right: bool, bottom: bool) -> bool:
    across = box.right - letter.right if right else letter.left - box.left
    along = box.bottom - letter.bottom if bottom else letter.top - box.top
    return (
        across <= _CORNER * box.width + letter.size and along <= _CORNER * box.height + letter.size
    )


def _separate(grey: Grey, box: Box, letters: list[Letter]) -> dict[Letter, Box] | None:
    """Cut a box until each piece has one letter, at the widest gutter that is near a letter."""
    if len(letters) == 1:
        return {letters[0]: box}
    cuts = []
    for axis in (0, 1):
        for band in gutters(grey, box, axis):
            before = [x for x in letters if _span(x, axis)[1] <= band.start]
            after = [x for x in letters if _span(x, axis)[0] >= band.stop]
            if before and after and len(before) + len(after) == len(letters):
                away = (min(_span(x, axis)[0] for x in after) - band.stop) / letters[0].size
                far = sum(away > reach for reach in _REACH)
                cuts.append((far, band.start - band.stop, axis, band, before, after))
    if not cuts:
        return None
    *_, band, before, after = min(cuts, key=lambda cut: cut[:3])
    first, second = _halves(box, band)
    one = _separate(grey, first, before)
    two = _separate(grey, second, after) if one is not None else None
    return None if one is None or two is None else one | two


def _span(letter: Letter, axis: int) -> tuple[int, int]:
    return (letter.left, letter.right) if axis else (letter.top, letter.bottom)


def _halves(box: Box, band: Gutter) -> tuple[Box, Box]:
    if band.axis:
        return box._replace(right=band.start), box._replace(left=band.stop)
    return box._replace(bottom=band.start), box._replace(top=band.stop)


def boxes_by_gutters(grey: Grey) -> list[Box] | None:
    """Boxes in reading order, of pictures that fill their rectangles; None if that is unclear.

    One piece of lettering per picture is left out; plots, whose lettering is in many pieces, are
    never cut here.
    """
    whole = trim(grey, Box(0, 0, grey.shape[1], grey.shape[0]))
    tree = _cut(grey, whole)
    least = _LETTERING * max(grey.shape)
    boxes = _read(tree, least)
    if boxes is None or len(boxes) < 2 or _leaves(tree) > 2 * len(boxes):
        return None
    areas = [box.width * box.height for box in boxes]
    return boxes if max(areas) <= _MAX_AREAS * min(areas) else None


@dataclass(frozen=True)
class _Node:
    """A box and what it was cut into along an axis; leaves have no parts."""

    box: Box
    axis: int = 0
    parts: tuple["_Node", ...] = ()


def _cut(grey: Grey, box: Box) -> _Node:
    box = trim(grey, box)
    for axis in (0, 1):
        bands = gutters(grey, box, axis, "white")
        if bands:
            rest, parts = box, []
            for band in bands:
                first, rest = _halves(rest, band)
                parts.append(_cut(grey, first))
            return _Node(box, axis, (*parts, _cut(grey, rest)))
    return _Node(box)


def _leaves(node: _Node) -> int:
    return sum(_leaves(part) for part in node.parts) if node.parts else 1


def _read(node: _Node, least: float) -> list[Box] | None:
    """Leaves with sides of `least` pixels in reading order.

    None for columns side by side that are cut at different heights: they can be read in two ways.
    """
    if not node.parts:
        return [node.box] if min(node.box.width, node.box.height) >= least else []
    lists = [_read(part, least) for part in node.parts]
    known = [part for part in lists if part is not None]
    if len(known) < len(lists):
        return None
    if node.axis == 1 and sum(len(part) > 1 for part in known) > 1:
        return None
    return [box for part in known for box in part]
