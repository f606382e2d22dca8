"""Generated figures of each kind, to train and to test the classifier of kinds.

Specimens, plots and lettered compounds come from the phantom corpus's painters, all else from
`phantom.pages` and `phantom.charts`. Example `number` of a kind depends on the seed alone.
"""

import io
from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from data_prep.kinds import KINDS
from data_prep.phantom import charts, pages, photos, plots, subjects
from data_prep.phantom.drawing import font
from data_prep.phantom.inks import WHITE, Painter, Size

_ASPECTS = (0.6, 1.8)
_SIDES = (260, 900)


def _subject(kind: str, rng: np.random.Generator, size: Size) -> Image.Image:
    subject = subjects.SUBJECTS[kind]
    return subject.draw(subject.sample(rng), rng, size).image.convert("RGB")


_SPECIMENS = tuple(kind for kind in subjects.SUBJECTS if kind not in plots.KINDS)
_SPECIMEN_PAINTERS: tuple[Painter, ...] = tuple(partial(_subject, k) for k in _SPECIMENS)
_MORE_IMAGES: tuple[Painter, ...] = (photos.photograph, photos.blot, photos.culture)
_OLD_PLOTS: tuple[Painter, ...] = tuple(partial(_subject, kind) for kind in plots.KINDS)
_DIAGRAMS: tuple[Painter, ...] = (
    pages.flow_chart,
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
_COMPOUNDS = {"image": 0.35, "plot": 0.5, "diagram": 0.15, "table": 0.1, "other": 0.0}
_MIXED = 0.5  # share of compounds among the others


def example(kind: str, seed: int, number: int) -> Image.Image:
    """A figure of a kind, RGB, as a journal's website might have it."""
    rng = np.random.default_rng((seed, KINDS.index(kind), number))
    longest = round(float(rng.uniform(*_SIDES)))
    aspect = float(np.exp(rng.uniform(*np.log(_ASPECTS))))
    size = (longest, round(longest / aspect)) if aspect > 1 else (round(longest * aspect), longest)
    if kind == "other" and rng.random() < _MIXED:
        first, second = rng.choice(
            [k for k in KINDS if k not in ("other", "table")], 2, replace=False
        )
        picture = _grid(rng, size, [_any(rng, str(first)), _any(rng, str(second))], (6, 30))
    elif rng.random() < _COMPOUNDS[kind]:
        count = 1 if rng.random() < 0.6 else 2
        picture = _grid(rng, size, [_any(rng, kind) for _ in range(count)], (4, 30))
    else:
        picture = _any(rng, kind)(rng, size)
    return _published(rng, picture.convert("RGB"))


def _any(rng: np.random.Generator, kind: str) -> Painter:
    return PAINTERS[kind][int(rng.integers(len(PAINTERS[kind])))]


def _grid(
    rng: np.random.Generator, size: Size, painters: Sequence[Painter], gaps: tuple[int, int]
) -> Image.Image:
    """Panels in rows and columns on white, each painter at least once, with letters."""
    columns, rows = ((2, 1), (1, 2), (2, 2), (3, 2), (2, 3), (3, 3), (4, 1))[int(rng.integers(7))]
    gap = int(rng.integers(*gaps))
    width, height = (size[0] - gap) // columns - gap, (size[1] - gap) // rows - gap
    page = Image.new("RGB", size, WHITE)
    lettered = rng.random() < 0.6
    for index in range(columns * rows):
        painter = (
            painters[index] if index < len(painters) else painters[int(rng.integers(len(painters)))]
        )
        left, top = gap + index % columns * (width + gap), gap + index // columns * (height + gap)
        panel = (
            painter(rng, (max(96, width), max(96, height))).convert("RGB").resize((width, height))
        )
        page.paste(panel, (left, top))
        if lettered:
            pen, letters = ImageDraw.Draw(page), font(max(11, height // 14))
            pen.text((left + 2, top + 1), "ABCDEFGHI"[index], (0, 0, 0), letters, stroke_width=1,
                     stroke_fill=WHITE)  # fmt: skip
    return page


def _published(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Margins, another size, blur, grey, another ground, JPEG."""
    if rng.random() < 0.3:
        picture = ImageOps.expand(picture, int(rng.integers(2, 40)), WHITE)
    if rng.random() < 0.4:
        scale = rng.uniform(0.5, 1.0)
        picture = picture.resize([max(120, round(side * scale)) for side in picture.size])
    if rng.random() < 0.2:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    if rng.random() < 0.15:
        picture = picture.convert("L").convert("RGB")
    if rng.random() < 0.75:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(50, 96)))
        picture = Image.open(buffer).convert("RGB")
    return picture
