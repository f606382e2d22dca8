"""Generated figures of each kind, to train and to test the classifier of kinds.

Specimens, plots and lettered compounds come from the phantom corpus's painters, all else from
`phantom.pages` and `phantom.charts`. Example `number` of a kind depends on the seed alone.
"""

import io
from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from data_prep.kinds import KINDS
from data_prep.phantom import charts, pages, photos, plots, subjects
from data_prep.phantom.drawing import font
from data_prep.phantom.inks import BLACK, WHITE, Painter, Size, colour, words

_ASPECTS = (0.5, 2.4)
_SIDES = (260, 900)


def _subject(kind: str, rng: np.random.Generator, size: Size) -> Image.Image:
    subject = subjects.SUBJECTS[kind]
    return subject.draw(subject.sample(rng), rng, size).image.convert("RGB")


_SPECIMENS = tuple(kind for kind in subjects.SUBJECTS if kind not in plots.KINDS)
_SPECIMEN_PAINTERS: tuple[Painter, ...] = tuple(partial(_subject, k) for k in _SPECIMENS)
_MORE_IMAGES: tuple[Painter, ...] = (
    photos.photograph,
    photos.blot,
    photos.culture,
    photos.nuclei,
    photos.nuclei,
)
_OLD_PLOTS: tuple[Painter, ...] = tuple(partial(_subject, kind) for kind in plots.KINDS)
_DIAGRAMS: tuple[Painter, ...] = (
    pages.flow_chart,
    pages.protocol,
    pages.tree,
    pages.cartoon,
    pages.cartoon,
    pages.network,
    pages.molecule,
    pages.time_line,
    pages.venn,
)
_OTHERS: tuple[Painter, ...] = (
    pages.text_page,
    pages.alignment,
    pages.screenshot,
    pages.map_of_regions,
)
PAINTERS: dict[str, tuple[Painter, ...]] = {
    "image": _SPECIMEN_PAINTERS + _MORE_IMAGES,
    "plot": _OLD_PLOTS + charts.CHARTS,
    "diagram": _DIAGRAMS,
    "table": (pages.table,),
    "other": _OTHERS,
}
"""What can be drawn of each kind; "other" is also every compound of several kinds."""
_COMPOUNDS = {"image": 0.35, "plot": 0.5, "diagram": 0.25, "table": 0.1, "other": 0.0}
_MIXED = 0.75  # share of compounds among the others


def example(kind: str, seed: int, number: int) -> Image.Image:
    """A figure of a kind, RGB, as a journal's website might have it."""
    rng = np.random.default_rng((seed, KINDS.index(kind), number))
    longest = round(float(rng.uniform(*_SIDES)))
    aspect = float(np.exp(rng.uniform(*np.log(_ASPECTS))))
    size = (longest, round(longest / aspect)) if aspect > 1 else (round(longest * aspect), longest)
    if kind == "other" and rng.random() < _MIXED:
        mixed = rng.choice(KINDS[:4], 2, replace=False, p=(0.38, 0.38, 0.16, 0.08))
        more = [_any(rng, str(rng.choice(mixed))) for _ in range(int(rng.integers(0, 4)))]
        picture = _grid(rng, size, [*(_any(rng, str(kind)) for kind in mixed), *more], (3, 24))
    elif rng.random() < _COMPOUNDS[kind]:
        count = 1 if rng.random() < 0.4 else int(rng.integers(2, 5))
        picture = _grid(rng, size, [_any(rng, kind) for _ in range(count)], (4, 30))
    else:
        picture = _any(rng, kind)(rng, size)
    return _published(rng, picture.convert("RGB"))


def _any(rng: np.random.Generator, kind: str) -> Painter:
    return PAINTERS[kind][int(rng.integers(len(PAINTERS[kind])))]


def _grid(
    rng: np.random.Generator, size: Size, painters: Sequence[Painter], gaps: tuple[int, int]
) -> Image.Image:
    """Panels in rows on white, each painter at least once; with letters, with headings."""
    most = 4 if rng.random() < 0.5 else 6
    rows, columns = (int(n) for n in rng.integers(1, most, 2))
    even = rng.random() < 0.5
    lengths = [columns if even else int(rng.integers(1, most)) for _ in range(rows)]
    if sum(lengths) < 2:
        lengths = [2]
    gap, head = int(rng.integers(*gaps)), int(rng.choice([0, 0, 14, 22]))
    page = Image.new("RGB", size, WHITE)
    pen, count = ImageDraw.Draw(page), 0
    lettered = rng.random() < 0.6
    height = max(24, (size[1] - gap) // len(lengths) - gap - head)
    for row, length in enumerate(lengths):
        width = max(24, (size[0] - gap) // length - gap)
        for column in range(length):
            chosen = count if count < len(painters) else int(rng.integers(len(painters)))
            left = gap + column * (width + gap)
            top = gap + head + row * (height + gap + head)
            shape = (max(160, width), max(120, height))
            page.paste(
                painters[chosen](rng, shape).convert("RGB").resize((width, height)), (left, top)
            )
            letters = font(max(11, head, height // 14))
            if head:
                pen.text((left + width / 2, top - 2), words(rng, 1, 3), BLACK, font(head - 3), "mb")
            if lettered:
                letter = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[count % 26]
                pen.text((left + 1, top - head), letter, (0, 0, 0), letters, stroke_width=1,
                         stroke_fill=WHITE)  # fmt: skip
            count += 1
    return page


def _published(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Cropped to its ink, other margins, size, sharpness and ground, grey, JPEG."""
    if rng.random() < 0.8:
        ink = ImageOps.invert(picture.convert("L")).point(lambda value: 255 if value > 12 else 0)
        picture = picture.crop(ink.getbbox())
    if rng.random() < 0.6:
        longest = max(picture.size)
        shape = [round(side * rng.uniform(0.75, 1.33)) for side in picture.size]
        picture = picture.resize([max(longest // 6, side, 32) for side in shape])
    if rng.random() < 0.3:
        picture = ImageOps.expand(picture, int(rng.integers(2, 40)), WHITE)
    if rng.random() < 0.4:
        scale = rng.uniform(0.5, 1.0)
        picture = picture.resize([max(120, round(side * scale)) for side in picture.size])
    if rng.random() < 0.2:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    elif rng.random() < 0.4:
        picture = picture.filter(ImageFilter.UnsharpMask(1, int(rng.integers(60, 250)), 0))
    if rng.random() < 0.12:
        tint = Image.new("RGB", picture.size, colour(rng, (0.02, 0.3), 1.0))
        picture = ImageChops.multiply(picture, tint)
    if rng.random() < 0.15:
        picture = picture.convert("L").convert("RGB")
    if rng.random() < 0.75:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(50, 96)))
        picture = Image.open(buffer).convert("RGB")
    return picture
