"""Stained sections: H&E of colon, cervix and liver, immunohistochemistry of breast."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.phantom.drawing import (
    Box,
    Drawing,
    Facts,
    Point,
    grain,
    noise,
    outline_box,
    oval,
    scatter,
    spline,
    vignette,
)

FINDINGS = {
    "colon": ("normal", "inflammation", "adenocarcinoma"),
    "cervix": ("normal", "dysplasia"),
    "liver": ("normal", "steatosis"),
}
BREAST_FINDINGS = ("high Ki-67", "low Ki-67")

Boxes = list[tuple[str, Box]]
Colour = tuple[int, int, int]
WHITE: Colour = (246, 242, 246)
STROMA: Colour = (232, 172, 200)
CYTOPLASM: Colour = (206, 140, 186)
MUCIN: Colour = (228, 208, 228)
NUCLEUS: Colour = (112, 66, 138)
DARK_NUCLEUS: Colour = (70, 34, 104)
LYMPHOCYTE: Colour = (62, 36, 108)
BROWN: Colour = (122, 74, 40)
BLUE: Colour = (134, 152, 194)


def sample_section(rng: np.random.Generator) -> Facts:
    organ = str(rng.choice(list(FINDINGS)))
    finding = str(rng.choice(FINDINGS[organ]))
    return Facts("H&E histology", "histology", organ, finding, detail={"stain": "H&E"})


def sample_immuno(rng: np.random.Generator) -> Facts:
    finding = str(rng.choice(BREAST_FINDINGS))
    high = finding == "high Ki-67"
    share = int(rng.integers(55, 91)) if high else int(rng.integers(2, 11))
    detail = {"stain": "immunohistochemistry", "share": str(share)}
    return Facts("immunohistochemistry", "histology", "breast", finding, detail=detail)


class Section:
    """A stained section under construction: a colour layer that is drawn on in pixels.

    Everything is drawn at `unit` pixels per cell diameter, so the magnification varies.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], base: Colour) -> None:
        self.rng = rng
        self.width, self.height = size
        self.unit = min(size) / rng.uniform(29, 37)
        self.layer = Image.new("RGB", size, base)
        self.pen = ImageDraw.Draw(self.layer)
        self.shades: dict[Colour, list[Colour]] = {}

    def vary(self, colour: Colour) -> Colour:
        """A colour near to the given one, from a few shades of it that are mixed once."""
        if colour not in self.shades:
            self.shades[colour] = [
                (max(0, colour[0] + d), max(0, colour[1] + d), max(0, colour[2] + d))
                for d in (-14, -9, -5, -2, 0, 2, 4, 6, 8)
            ]
        shades = self.shades[colour]
        return shades[int(self.rng.random() * len(shades))]

    def nucleus(self, at: Point, radii: Point, angle: float, colour: Colour) -> None:
        """An elliptical nucleus; radii in cell diameters."""
        a, b = radii[0] * self.unit, radii[1] * self.unit
        cos, sin = math.cos(angle), math.sin(angle)
        ring = [(a * c * cos - b * s * sin, a * c * sin + b * s * cos) for c, s in CIRCLE]
        self.pen.polygon([(at[0] + x, at[1] + y) for x, y in ring], fill=self.vary(colour))

    def area(self, points: list[Point], colour: Colour) -> None:
        self.pen.polygon(points, fill=colour)

    def fibres(self, count: int) -> None:
        """Wavy collagen fibres of the stroma."""
        for _ in range(count):
            x, y = self.rng.uniform(0, self.width), self.rng.uniform(0, self.height)
            angle = self.rng.normal(0.4, 0.5)
            step = 2.2 * self.unit
            points = [(x, y)]
            for _ in range(4):
                angle += self.rng.normal(0, 0.25)
                x, y = x + step * math.cos(angle), y + step * math.sin(angle)
                points.append((x, y))
            shade = self.vary((STROMA[0], STROMA[1] - 8, STROMA[2] - 4))
            self.pen.line(points, fill=shade, width=max(1, round(self.unit / 3)))

    def finish(self) -> Image.Image:
        """Optical blur, uneven staining, grain and vignetting."""
        rng = self.rng
        soft = self.layer.filter(ImageFilter.GaussianBlur(0.07 * self.unit + 0.3))
        shape = (self.height, self.width)
        # Stain thickness acts as absorbance: it multiplies, and spares what is white.
        thick = 1 + 0.10 * noise(rng, shape, 9 * self.unit, 1)
        thick += 0.16 * noise(rng, shape, 0.5 * self.unit, 1)
        thick = np.clip(thick, 0.3, 2) * np.float32(rng.uniform(0.85, 1.2))
        light = vignette(shape, rng.uniform(0.0, 0.18)) * np.float32(255)
        light += np.float32(3) * grain(rng, shape)
        channels = []
        for channel, hue in zip(
            soft.split(), (rng.normal(1, 0.05), 1.0, rng.normal(1, 0.05)), strict=True
        ):
            absorbed = (255 - np.asarray(channel, dtype=np.float32)) * np.float32(hue / 255)
            value = np.clip((1 - absorbed * thick) * light, 0, 255)
            channels.append(Image.fromarray(value.astype(np.uint8)))
        return Image.merge("RGB", channels)


CIRCLE = [(math.cos(t), math.sin(t)) for t in np.linspace(0, 2 * math.pi, 9)[:-1]]


def draw_section(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> Drawing:
    section, boxes = TISSUES[facts.organ](facts, rng, size)
    return _annotate(section, boxes, rng)


def _annotate(section: Section, boxes: Boxes, rng: np.random.Generator) -> Drawing:
    drawing = Drawing(section.finish(), boxes)
    if rng.random() < 0.6:
        drawing.add_scale_bar(rng, (20, 20, 20) if rng.random() < 0.7 else (255, 255, 255))
    if boxes and rng.random() < 0.25:
        drawing.add_arrow(rng, (20, 20, 20))
    return drawing


def _colon(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> tuple[Section, Boxes]:
    """Crypts in a stroma: round and orderly, pushed apart by lymphocytes, or malignant."""
    section = Section(rng, size, STROMA)
    section.fibres(90)
    unit, boxes = section.unit, []
    cancer, inflamed = facts.finding == "adenocarcinoma", facts.finding == "inflammation"
    distance = unit * (10.5 if cancer else 14.5 if inflamed else 11.5)
    area = (-0.3 * distance, -0.3 * distance, size[0] + 0.3 * distance, size[1] + 0.3 * distance)
    centers = scatter(rng, area, distance)
    _stroma_cells(section, 900 if inflamed else 130, inflamed)
    for center in centers:
        if cancer:
            radii = (distance * rng.uniform(0.36, 0.60), distance * rng.uniform(0.30, 0.46))
            outline = oval(rng, center, radii, rng.uniform(0, math.pi), rough=0.17)
            _malignant_gland(section, center, spline(outline, closed=True, steps=4))
        else:
            radii = (unit * rng.uniform(4.3, 5.0), unit * rng.uniform(3.9, 4.5))
            outline = oval(rng, center, radii, rng.uniform(0, math.pi), rough=0.03)
            _crypt(section, center, spline(outline, closed=True, steps=4))
        inside = 0 < center[0] < size[0] and 0 < center[1] < size[1]
        if cancer and inside:
            boxes.append((facts.finding, outline_box(outline, size)))
    return section, boxes


def _stroma_cells(section: Section, count: int, inflamed: bool) -> None:
    rng = section.rng
    for _ in range(count):
        at = (rng.uniform(0, section.width), rng.uniform(0, section.height))
        if inflamed and rng.random() < 0.85:
            radius = rng.uniform(0.36, 0.48)
            section.nucleus(at, (radius, radius), 0, LYMPHOCYTE)
        else:
            section.nucleus(at, (0.75, 0.24), rng.normal(0.4, 0.6), NUCLEUS)


def _ring(center: Point, outline: list[Point], share: float) -> list[Point]:
    """The outline shrunk towards its centre."""
    return [
        (center[0] + (x - center[0]) * share, center[1] + (y - center[1]) * share)
        for x, y in outline
    ]


def _crypt(section: Section, center: Point, outline: list[Point]) -> None:
    """A normal crypt: one row of basal nuclei, pale goblet cells, a small lumen."""
    rng = section.rng
    section.area(_ring(center, outline, 1.10), WHITE)
    section.area(outline, CYTOPLASM)
    length = len(outline)
    for i in range(0, length, 3):
        x, y = _ring(center, [outline[i]], 0.62)[0]
        angle = math.atan2(y - center[1], x - center[0])
        section.nucleus((x, y), (1.05, 0.72), angle, MUCIN)
    section.area(_ring(center, outline, 0.22), WHITE)
    for i in range(0, length, 2):
        x, y = _ring(center, [outline[i]], rng.uniform(0.87, 0.93))[0]
        angle = math.atan2(y - center[1], x - center[0]) + math.pi / 2
        section.nucleus((x, y), (0.55, 0.34), angle + rng.normal(0, 0.15), NUCLEUS)


def _malignant_gland(section: Section, center: Point, outline: list[Point]) -> None:
    """A crowded, irregular gland: large dark nuclei in several rows, debris in the lumen."""
    rng = section.rng
    section.area(outline, (188, 116, 172))
    section.area(_ring(center, outline, rng.uniform(0.25, 0.42)), WHITE)
    for row in (0.94, 0.76, 0.60):
        for point in outline[:: 2 if row > 0.7 else 3]:
            x, y = _ring(center, [point], row + rng.normal(0, 0.05))[0]
            angle = math.atan2(y - center[1], x - center[0]) + rng.normal(0, 0.4)
            radius = rng.uniform(0.55, 1.0)
            section.nucleus((x, y), (radius, radius * rng.uniform(0.5, 0.8)), angle, DARK_NUCLEUS)
    for _ in range(int(rng.integers(0, 7))):
        at = (
            center[0] + rng.normal(0, 0.9) * section.unit,
            center[1] + rng.normal(0, 0.9) * section.unit,
        )
        section.nucleus(at, (0.3, 0.2), rng.uniform(0, 3), (150, 70, 120))


def _cervix(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> tuple[Section, Boxes]:
    """Stratified squamous epithelium over stroma: it matures upwards unless it is dysplastic."""
    section = Section(rng, size, WHITE)
    unit, (width, height) = section.unit, size
    dysplastic = facts.finding == "dysplasia"
    top, base = height * rng.uniform(0.06, 0.14), height * rng.uniform(0.62, 0.74)
    xs = np.linspace(-unit, width + unit, 24)
    phase = rng.uniform(0, 6)
    wave = 1.6 * unit * np.sin(
        xs / width * rng.uniform(9, 15) + phase
    ) + 0.3 * unit * rng.standard_normal(24)
    border = [(float(x), float(base + w)) for x, w in zip(xs, wave, strict=True)]
    surface = [(float(x), float(top + 0.3 * unit * rng.standard_normal())) for x in xs]
    section.area([*surface, (width + unit, height + unit), (-unit, height + unit)], STROMA)
    section.fibres(90)
    section.area([*surface, (width + unit, -unit), (-unit, -unit)], WHITE)
    for _ in range(150):
        section.nucleus(
            (rng.uniform(0, width), rng.uniform(base, height)),
            (0.7, 0.24),
            rng.normal(0.2, 0.5),
            NUCLEUS,
        )
    section.area([*surface, *border[::-1]], (216, 150, 190) if dysplastic else (236, 180, 206))
    for x, y in scatter(
        rng, (0, top, width, base + 1.5 * unit), unit * (1.35 if dysplastic else 1.55)
    ):
        floor = float(np.interp(x, xs, wave)) + base
        if y > floor - 0.4 * unit:
            continue
        height_share = (floor - y) / (floor - top)
        if dysplastic:
            radius = rng.uniform(0.50, 0.85)
            section.nucleus(
                (x, y), (radius, 0.62 * radius), math.pi / 2 + rng.normal(0, 0.5), DARK_NUCLEUS
            )
        elif rng.random() > 1.15 * height_share - 0.05:
            flat = 0.34 - 0.20 * height_share
            size_here = 0.46 if height_share < 0.15 else 0.40
            section.nucleus((x, y), (size_here, flat), rng.normal(0, 0.2), NUCLEUS)
    for i in range(1, 200):
        x = (i + rng.uniform(-0.2, 0.2)) / 200 * width
        y = float(np.interp(x, xs, wave)) + base - 0.5 * unit
        section.nucleus((x, y), (0.55, 0.30), math.pi / 2 + rng.normal(0, 0.15), DARK_NUCLEUS)
    box = (0.0, float(top), float(width), float(base))
    return section, [(facts.finding, box)] if dysplastic else []


def _liver(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> tuple[Section, Boxes]:
    """Plates of hepatocytes between sinusoids around a central vein; steatosis: round fat drops."""
    section = Section(rng, size, (238, 214, 228))
    unit, (width, height) = section.unit, size
    boxes: Boxes = []
    fatty = facts.finding == "steatosis"
    vein = (width * rng.uniform(0.25, 0.75), height * rng.uniform(0.25, 0.75))
    cell = 2.5 * unit
    for x, y in scatter(rng, (-cell, -cell, width + cell, height + cell), cell):
        angle = math.atan2(y - vein[1], x - vein[0])
        outline = oval(rng, (x, y), (0.60 * cell, 0.47 * cell), angle, 0.05, 10)
        section.area(outline, section.vary((222, 140, 168)))
        section.nucleus((x, y), (0.58, 0.58), 0, (128, 84, 150))
        section.nucleus((x + 0.1 * unit, y), (0.16, 0.16), 0, DARK_NUCLEUS)
    for _ in range(110):
        at = (rng.uniform(0, width), rng.uniform(0, height))
        angle = math.atan2(at[1] - vein[1], at[0] - vein[0])
        section.nucleus(at, (1.5, 0.22), angle, WHITE)
        section.nucleus(at, (0.5, 0.20), angle, NUCLEUS)
    if fatty:
        for x, y in scatter(rng, (0, 0, width, height), rng.uniform(2.9, 3.8) * unit):
            radius = rng.uniform(0.6, 1.5)
            section.nucleus((x, y), (radius, radius), 0, WHITE)
    lumen = oval(rng, vein, (3.2 * unit, 2.6 * unit), 0.4, 0.06)
    section.area(_ring(vein, spline(lumen, closed=True, steps=4), 1.12), STROMA)
    section.area(spline(lumen, closed=True, steps=4), WHITE)
    if fatty:
        boxes.append((facts.finding, (0.0, 0.0, float(width), float(height))))
    return section, boxes


TISSUES: dict[
    str, Callable[[Facts, np.random.Generator, tuple[int, int]], tuple[Section, Boxes]]
] = {
    "colon": _colon,
    "cervix": _cervix,
    "liver": _liver,
}


def draw_immuno(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> Drawing:
    """Tumour nests whose nuclei are brown (DAB) or blue (haematoxylin)."""
    section = Section(rng, size, (238, 236, 240))
    unit, (width, height) = section.unit, size
    share = int(facts.detail["share"]) / 100
    nests = [
        spline(
            oval(rng, at, (6.5 * unit, 5.0 * unit), rng.uniform(0, 3), 0.12), closed=True, steps=3
        )
        for at in scatter(rng, (0, 0, width, height), 13 * unit)
    ]
    mask = Image.new("1", size)
    pen = ImageDraw.Draw(mask)
    for nest in nests:
        section.area(nest, (218, 216, 228))
        pen.polygon(nest, fill=1)
    inside = np.asarray(mask)
    for x, y in scatter(rng, (0, 0, width, height), 1.75 * unit):
        if inside[min(height - 1, max(0, int(y))), min(width - 1, max(0, int(x)))]:
            radius = rng.uniform(0.58, 0.78)
            colour = BROWN if rng.random() < share else BLUE
            section.nucleus((x, y), (radius, 0.8 * radius), rng.uniform(0, 3), colour)
        elif rng.random() < 0.25:
            section.nucleus((x, y), (0.8, 0.22), rng.normal(0.3, 0.4), BLUE)
    return _annotate(section, [], rng)
