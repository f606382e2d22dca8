"""How many compound figures are split, how many of them wrongly; how well kinds are recognised.

    python -m benchmarks.panels                              # generated figures: 3 minutes
    python -m benchmarks.panels letters_font=Arial_Bold.ttf  # panel letters of another font
    python -m benchmarks.panels figures=FOLDER               # also real ones: index.jsonl, images

Claim: a figure is split only where caption and picture agree, so hardly any panel gets the words of
another one and single figures stay whole, whatever their caption says.

Generated compounds have two to twelve panels of all kinds, in rows of different lengths, with or
without letters. A split is right if every label's box covers the drawn panel (with its letter) with
an intersection over union of 0.7 at least. Single figures get captions with two to six labels, the
worst case. For real figures the table only says how many were split: their boxes are for the eye,
`boxes=FOLDER` writes them as pictures.
"""

import io
import itertools
import json
import string
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from benchmarks.measure import Result, Row, machine, report
from data_prep.kind_examples import PAINTERS, example
from data_prep.kinds import KINDS, classify
from data_prep.panel_captions import split_caption
from data_prep.panels import Panel, PanelRules, split_figure
from data_prep.phantom import captions, subjects
from vlp.config import load_config, run_program

Box = tuple[float, float, float, float]
RULES = PanelRules(min_side=32)
COVERED = 0.7
SEED = 977  # of figures; training takes 0 and 1


@dataclass(frozen=True, kw_only=True)
class PanelsConfig:
    """Measure the splitting of compound figures and the classifier of kinds."""

    compounds: int = 200
    """Generated compound figures of each style of letters."""
    singles: int = 60
    """Generated single figures of each kind; also for the classifier."""
    letters_font: str = ""
    """TrueType file of the panel letters; empty takes Pillow's own, which the search knows."""
    figures: str = ""
    """Folder with index.jsonl (image, text) of real figures; empty for none."""
    boxes: str = ""
    """Folder for pictures of the real figures with the boxes found; empty for none."""
    out: str = ""
    """JSON file for the result; empty for none."""


@dataclass(frozen=True)
class Compound:
    """A generated figure with the truth about its panels."""

    image: Image.Image
    caption: str
    boxes: dict[str, Box]


def compound(rng: np.random.Generator, letters: str, font_file: str) -> Compound:
    """Rows of panels of all kinds.

    Args:
        rng: source of everything.
        letters: where the panels' letters stand: "above", "inside" or "none".
        font_file: TrueType file, or empty.
    """
    width, gap = int(rng.integers(600, 1500)), int(rng.integers(6, 40))
    size = int(rng.integers(14, 30))
    font = ImageFont.truetype(font_file, size) if font_file else ImageFont.load_default(size)
    head = round(1.4 * size) if letters == "above" else 0
    rows = [int(rng.integers(1, 5)) for _ in range(int(rng.integers(1, 4)))]
    rows = rows if sum(rows) > 1 else [2]
    shares = [rng.dirichlet(np.full(count, 12.0)) for count in rows]
    heights = [int(rng.integers(130, 320)) for _ in rows]
    page = Image.new("RGB", (width, sum(heights) + (len(rows) + 1) * (gap + head)), "white")
    pen = ImageDraw.Draw(page)
    case = string.ascii_lowercase if rng.random() < 0.35 else string.ascii_uppercase
    labels, boxes, top = iter(case), {}, gap
    pattern = str(rng.choice(["{}", "{}", "({})", "{}."]))
    for share, height in zip(shares, heights, strict=True):
        lefts = gap + np.concatenate(([0], np.cumsum(share))) * (width - gap)
        for left, right in itertools.pairwise(lefts):
            label = next(labels)
            box = (round(left), top + head, round(right) - gap, top + head + height)
            page.paste(_content(rng, (box[2] - box[0], height)), box[:2])
            at = (box[0] + 3, box[1] + 2) if letters == "inside" else (box[0], top)
            text = pattern.format(label)
            if letters == "inside":
                pen.rectangle(pen.textbbox(at, text, font, stroke_width=2), "white")
            if letters != "none":
                pen.text(at, text, "black", font, stroke_width=int(rng.random() < 0.6))
            boxes[label] = _inked(page, (box[0], top, box[2], box[3]))
        top += height + gap + head
    return Compound(_published(rng, page), _caption(rng, list(boxes)), boxes)


def _inked(page: Image.Image, box: tuple[int, int, int, int]) -> Box:
    """The box without blank margins, which nobody could see."""
    ink = ImageOps.invert(page.crop(box).convert("L")).point(lambda value: 255 if value > 19 else 0)
    left, top, right, bottom = ink.getbbox() or (0, 0, box[2] - box[0], box[3] - box[1])
    return (box[0] + left, box[1] + top, box[0] + right, box[1] + bottom)


def _content(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    kind = str(rng.choice(KINDS, p=(0.45, 0.35, 0.12, 0.03, 0.05)))
    painter = PAINTERS[kind][int(rng.integers(len(PAINTERS[kind])))]
    drawn = painter(rng, (max(120, size[0]), max(120, size[1]))).convert("RGB")
    return drawn.resize(size)


def _published(rng: np.random.Generator, page: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=int(rng.integers(70, 96)))
    return Image.open(buffer).convert("RGB")


def _caption(rng: np.random.Generator, labels: list[str]) -> str:
    style = str(rng.choice(["({})", "{})", "{},", "{}."]))
    parts = [f"{style.format(label)} Words on panel number {n}." for n, label in enumerate(labels)]
    return " ".join([*(["A title for all."] if rng.random() < 0.5 else []), *parts])


def verdict(found: list[Panel], truth: dict[str, Box]) -> str:
    """ "whole", "right" or "wrong"."""
    if not found:
        return "whole"
    right = {panel.label: panel.box for panel in found}.keys() == truth.keys() and all(
        overlap(panel.box, truth[panel.label]) >= COVERED for panel in found
    )
    return "right" if right else "wrong"


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0.0, width) * max(0.0, height)
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return common / (areas - common)


def measure_compounds(config: PanelsConfig) -> Iterator[Row]:
    """Recall and errors on generated compounds."""
    styles = ("above", "inside", "none")
    for number, style in enumerate(styles):
        generated = (
            compound(np.random.default_rng((SEED, number, index)), style, config.letters_font)
            for index in range(config.compounds)
        )
        yield from _verdicts(f"generated, letters {style}", generated)
    yield from _verdicts("compounds of the phantom corpus", _phantom(config.compounds))


def _phantom(number: int) -> Iterator[Compound]:
    for index in range(number):
        rng = np.random.default_rng((SEED, 9, index))
        figure = subjects.compound(rng, (), 640)
        text = " ".join(filter(None, captions.caption(figure, rng)))
        boxes = {label: box for label, _, box in figure.panels}
        yield Compound(figure.drawing.image.convert("RGB"), text, boxes)


def _verdicts(name: str, figures: Iterator[Compound]) -> Iterator[Row]:
    counts: Counter[str] = Counter()
    for figure in figures:
        counts[verdict(split_figure(figure.image, figure.caption, RULES), figure.boxes)] += 1
    total = counts.total()
    yield Row(
        f"{name}: {total} figures, split rightly",
        "",
        counts["right"],
        ratio=counts["right"] / total,
    )
    yield Row(f"{name}: split wrongly", "", counts["wrong"], ratio=counts["wrong"] / total)


def measure_singles(config: PanelsConfig) -> Iterator[Row]:
    """False splits of single figures, and the classifier's confusion."""
    confusion = np.zeros((len(KINDS), len(KINDS)), np.int64)
    seconds = 0.0
    for row, kind in enumerate(KINDS):
        false = 0
        for index in range(config.singles):
            rng = np.random.default_rng((SEED, 5, row, index))
            painter = PAINTERS[kind][index % len(PAINTERS[kind])]
            single = painter(rng, (int(rng.integers(300, 900)), int(rng.integers(300, 900))))
            labels = string.ascii_uppercase[: int(rng.integers(2, 7))]
            false += bool(split_figure(single, _caption(rng, list(labels)), RULES))
            image = example(kind, SEED, index)
            started = time.perf_counter()
            confusion[row, KINDS.index(classify(image).name)] += 1
            seconds += time.perf_counter() - started
        yield Row(f"single {kind}, {config.singles} figures: split", "", false)
    for row, kind in enumerate(KINDS):
        others = ", ".join(
            f"{name} {count}" for name, count in zip(KINDS, confusion[row], strict=True) if count
        )
        right = int(confusion[row, row])
        yield Row(f"kind of {kind}: {others}", "", right, ratio=right / config.singles)
    yield Row("classification of a figure", "ms", 1000 * seconds / int(confusion.sum()))


def measure_real(config: PanelsConfig) -> Iterator[Row]:
    """What happens to real figures."""
    if not config.figures:
        return
    folder = Path(config.figures)
    lines = (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()
    counts: Counter[str] = Counter()
    for entry in map(json.loads, lines):
        counts["figures"] += 1
        counts["captions with leading labels"] += split_caption(entry["text"]) is not None
        image = Image.open(folder / entry["image"]).convert("RGB")
        found = split_figure(image, entry["text"], RULES)
        counts["split"] += bool(found)
        if found and config.boxes:
            _draw_boxes(image, found, Path(config.boxes) / f"{Path(entry['image']).stem}.png")
    for name, count in counts.items():
        yield Row(f"real: {name}", "", count, ratio=count / counts["figures"])


def _draw_boxes(image: Image.Image, panels: list[Panel], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pen = ImageDraw.Draw(image)
    for panel in panels:
        left, top, right, bottom = panel.box
        pen.rectangle((left, top, right - 1, bottom - 1), outline="red", width=3)
        pen.text((right - 24, top + 4), panel.label, "red", ImageFont.load_default(24))
    image.save(path)


def main(argv: list[str]) -> None:
    """Entry point."""
    config = load_config(PanelsConfig, argv, "python -m benchmarks.panels")
    rows = (*measure_compounds(config), *measure_singles(config), *measure_real(config))
    report([Result("panels", machine(), rows)], config.out)


if __name__ == "__main__":
    run_program(main)
