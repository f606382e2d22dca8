"""Everything that can be drawn: a new subject is an entry of SUBJECTS and its words in phrases."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from data_prep.phantom import (
    bones,
    chest,
    electron,
    fluorescence,
    histology,
    plots,
    tomography,
)
from data_prep.phantom.drawing import Box, Drawing, Facts, font


@dataclass(frozen=True)
class Subject:
    """A kind of figure.

    Attributes:
        sample: draws the facts.
        draw: draws the picture of them at a size (width, height) in pixels.
        weight: share among single-panel figures.
        aspects: range of width / height.
        colour: False if the picture is grey.
    """

    sample: Callable[[np.random.Generator], Facts]
    draw: Callable[[Facts, np.random.Generator, tuple[int, int]], Drawing]
    weight: float
    aspects: tuple[float, float]
    colour: bool


SUBJECTS: dict[str, Subject] = {
    "chest radiograph": Subject(chest.sample, chest.draw, 0.18, (0.85, 1.08), False),
    "bone radiograph": Subject(bones.sample, bones.draw, 0.09, (0.80, 1.0), False),
    "head CT": Subject(tomography.sample_head, tomography.draw_head, 0.10, (0.85, 1.0), False),
    "abdominal CT": Subject(
        tomography.sample_abdomen, tomography.draw_abdomen, 0.10, (1.0, 1.25), False
    ),
    "brain MRI": Subject(tomography.sample_brain, tomography.draw_brain, 0.11, (0.85, 1.0), False),
    "H&E histology": Subject(
        histology.sample_section, histology.draw_section, 0.12, (1.0, 1.33), True
    ),
    "immunohistochemistry": Subject(
        histology.sample_immuno, histology.draw_immuno, 0.04, (1.0, 1.33), True
    ),
    "fluorescence micrograph": Subject(
        fluorescence.sample, fluorescence.draw, 0.10, (1.0, 1.2), True
    ),
    "electron micrograph": Subject(electron.sample, electron.draw, 0.10, (1.0, 1.25), False),
    **{
        kind: Subject(partial(plots.sample, kind=kind), plots.draw, 0.02, (1.0, 1.35), True)
        for kind in plots.KINDS
    },
}
COMPOUND = "compound figure"
COMPOUND_SHARE = 0.08
LAYOUTS: dict[int, tuple[tuple[int, int], ...]] = {
    2: ((2, 1), (1, 2)),
    3: ((3, 1), (2, 2)),
    4: ((2, 2),),
}
PANEL = 0.5
"""Side of a compound's panel as a share of the side of a single figure."""


def kind_shares(favourites: tuple[str, ...] = ()) -> dict[str, float]:
    """Probability of each kind; an article's `favourites` come four times as often."""
    weights = {k: s.weight * (4.0 if k in favourites else 1.0) for k, s in SUBJECTS.items()}
    total = sum(weights.values())
    return {kind: weight / total for kind, weight in weights.items()}


def choose(rng: np.random.Generator, favourites: tuple[str, ...] = ()) -> str:
    """A kind of figure for an article."""
    shares = kind_shares(favourites)
    return str(rng.choice(list(shares), p=list(shares.values())))


def size_of(subject: Subject, rng: np.random.Generator, longest: int) -> tuple[int, int]:
    """Width and height in pixels; the long side lies between longest / 2 and longest."""
    # Small figures are the more frequent ones, as they are on the web.
    side = longest * (0.5 + 0.5 * float(rng.random()) ** 2.2)
    aspect = rng.uniform(*subject.aspects)
    if aspect >= 1:
        return round(side), round(side / aspect)
    return round(side * aspect), round(side)


@dataclass
class Figure:
    """A finished figure: the facts of the whole and of its panels (empty unless compound)."""

    facts: Facts
    drawing: Drawing
    colour: bool
    panels: list[tuple[str, Facts, Box]]


def single(rng: np.random.Generator, kind: str, longest: int) -> Figure:
    subject = SUBJECTS[kind]
    facts = subject.sample(rng)
    drawing = subject.draw(facts, rng, size_of(subject, rng, longest))
    return Figure(facts, drawing, subject.colour, [])


def compound(rng: np.random.Generator, favourites: tuple[str, ...], longest: int) -> Figure:
    """Two to four lettered panels, each a picture of its own."""
    count = int(rng.integers(2, 5))
    columns, rows = LAYOUTS[count][int(rng.integers(len(LAYOUTS[count])))]
    side = round(longest * PANEL * (1.0 if count == 2 else 0.8))
    gap = int(rng.integers(4, 12))
    size = (columns * side + (columns - 1) * gap, rows * side + (rows - 1) * gap)
    page = Image.new("RGB", size, (255, 255, 255))
    lower = bool(rng.random() < 0.25)
    panels, boxes = [], []
    for index in range(count):
        letter = "ABCD"[index].lower() if lower else "ABCD"[index]
        subject = SUBJECTS[choose(rng, favourites)]
        facts = subject.sample(rng)
        drawing = subject.draw(facts, rng, (side, side))
        left = index % columns * (side + gap)
        top = index // columns * (side + gap)
        page.paste(drawing.image, (left, top))
        _letter(page, letter, (left, top), max(16, side // 11))
        panels.append(
            (letter, facts, (float(left), float(top), float(left + side), float(top + side)))
        )
        for label, box in drawing.boxes:
            boxes.append((label, (box[0] + left, box[1] + top, box[2] + left, box[3] + top)))
    facts = Facts(COMPOUND, "compound", "", "", count=count)
    return Figure(facts, Drawing(page, boxes), True, panels)


def _letter(page: Image.Image, letter: str, corner: tuple[int, int], size: int) -> None:
    """A panel letter on a white plate, so that it is legible on every picture."""
    pen = ImageDraw.Draw(page)
    x, y = corner[0] + 3, corner[1] + 3
    pen.rectangle((x, y, x + 1.2 * size, y + 1.25 * size), fill=(255, 255, 255))
    pen.text(
        (x + 0.6 * size, y + 0.62 * size), letter, fill=(0, 0, 0), font=font(size), anchor="mm"
    )
