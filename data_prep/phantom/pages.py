"""Figures that show no specimen: diagrams, tables, text, and more forms of plots and of pictures.

They teach the classifier of image kinds; the phantom corpus does not use them. All are drawn at
twice their size and reduced, since Pillow's lines have hard edges.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.phantom.drawing import font
from data_prep.phantom.inks import BLACK, WHITE, Colour, Size, colour, words
from data_prep.phantom.photos import cloud


class Page:
    """A blank page at twice its final size, with a pen; coordinates are shares of its sides."""

    def __init__(self, rng: np.random.Generator, size: Size, ground: Colour = WHITE) -> None:
        self.rng = rng
        self.width, self.height = 2 * size[0], 2 * size[1]
        self.image = Image.new("RGB", (self.width, self.height), ground)
        self.pen = ImageDraw.Draw(self.image)
        self.letters = max(16, round(self.height / rng.uniform(22, 48)))
        self.thick = max(2, round(max(size) / rng.uniform(110, 280)))

    def at(self, x: float, y: float) -> tuple[float, float]:
        return x * self.width, y * self.height

    def box(self, x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of a box around a centre."""
        return (
            (x - w / 2) * self.width,
            (y - h / 2) * self.height,
            (x + w / 2) * self.width,
            (y + h / 2) * self.height,
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        anchor: str = "mm",
        scale: float = 1,
        ink: Colour = BLACK,
    ) -> None:
        letters = font(max(10, round(self.letters * scale)))
        self.pen.text(self.at(x, y), text, fill=ink, font=letters, anchor=anchor)

    def line(
        self, points: Sequence[tuple[float, float]], ink: Colour = BLACK, width: int = 0
    ) -> None:
        self.pen.line([self.at(*p) for p in points], fill=ink, width=width or self.thick)

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], ink: Colour = BLACK
    ) -> None:
        self.line([start, end], ink)
        (x0, y0), (x1, y1) = self.at(*start), self.at(*end)
        angle, tip = math.atan2(y1 - y0, x1 - x0), 5 * self.thick
        wings = [
            (x1 - tip * math.cos(angle + turn), y1 - tip * math.sin(angle + turn))
            for turn in (0.45, -0.45)
        ]
        self.pen.polygon([(x1, y1), *wings], fill=ink)

    def finish(self) -> Image.Image:
        return self.image.reduce(2)


def flow_chart(rng: np.random.Generator, size: Size) -> Image.Image:
    """Boxes with words, joined by arrows."""
    page = Page(rng, size)
    columns, rows = int(rng.integers(1, 5)), int(rng.integers(2, 6))
    tint = rng.random() < 0.6
    for row in range(rows):
        for column in range(columns):
            x, y = (column + 0.5) / columns, (row + 0.5) / rows
            w, h = 0.72 / columns, 0.52 / rows
            fill = colour(rng, (0.1, 0.5), 0.97) if tint else WHITE
            radius = int(rng.choice([0, 12, 30]))
            page.pen.rounded_rectangle(page.box(x, y, w, h), radius, fill, BLACK, page.thick)
            for line in range(int(rng.integers(1, 4))):
                page.text(x, y + (line - 1) * 0.14 / rows, words(rng, 1, 3), scale=0.8)
            if row + 1 < rows and rng.random() < 0.85:
                page.arrow((x, y + h / 2), (x, y + 1 / rows - h / 2))
            if column + 1 < columns and rng.random() < 0.5:
                page.arrow((x + w / 2, y), (x + 1 / columns - w / 2, y))
    return page.finish()


def protocol(rng: np.random.Generator, size: Size) -> Image.Image:
    """A few large boxes full of words, arrows between: who was left out of a study."""
    page = Page(rng, size)
    rows, split = int(rng.integers(3, 8)), rng.random() < 0.7
    fill = WHITE if rng.random() < 0.6 else colour(rng, (0.05, 0.3), 1.0)
    scale = min(1.0, 0.16 * page.height / rows / page.letters)
    for row in range(rows):
        y, wide = (row + 0.5) / rows, rng.uniform(0.3, 0.55)
        spots = (0.25, 0.75) if split and row >= rows // 2 else (0.38,)
        if split and row < rows - 1 and len(spots) == 1 and rng.random() < 0.7:
            page.arrow((0.38, y + 0.5 / rows), (0.66, y + 0.5 / rows))
            page.pen.rectangle(page.box(0.82, y + 0.5 / rows, 0.3, 0.55 / rows), fill, BLACK, 2)
            page.text(0.69, y + 0.5 / rows, words(rng, 2, 5), "lm", 0.7 * scale)
        for x in spots:
            page.pen.rectangle(page.box(x, y, wide, 0.62 / rows), fill, BLACK, page.thick)
            for line in range(int(rng.integers(1, 4))):
                place = (x - 0.46 * wide, y + (line - 1) * 0.18 / rows)
                page.text(*place, words(rng, 3, 6), "lm", 0.8 * scale)
            if row + 1 < rows:
                page.arrow((x, y + 0.31 / rows), (x, y + 0.69 / rows))
    return page.finish()


def tree(rng: np.random.Generator, size: Size) -> Image.Image:
    """A tree with names at its leaves, as of species."""
    page = Page(rng, size)
    leaves = int(rng.integers(8, 36))
    nodes = [(0.62, (leaf + 0.7) / (leaves + 0.4)) for leaf in range(leaves)]
    coloured = rng.random() < 0.5
    for x, y in nodes:
        ink = colour(rng, (0.5, 1), 0.7) if coloured and rng.random() < 0.4 else BLACK
        page.text(x + 0.01, y, words(rng, 1, 3), "lm", 16 / leaves if leaves > 16 else 0.9, ink)
    while len(nodes) > 1:
        first = int(rng.integers(len(nodes) - 1))
        (xa, ya), (xb, yb) = nodes[first : first + 2]
        x = max(0.03, min(xa, xb) - rng.uniform(0.3, 1) * 1.2 / leaves)
        page.line([(xa, ya), (x, ya), (x, yb), (xb, yb)], BLACK, max(2, page.thick // 2))
        nodes[first : first + 2] = [(x, (ya + yb) / 2)]
    return page.finish()


def cartoon(rng: np.random.Generator, size: Size) -> Image.Image:
    """Coloured bodies, membranes, arrows and words: a mechanism."""
    page = Page(rng, size, WHITE if rng.random() < 0.75 else colour(rng, (0.03, 0.2), 1.0))
    for _ in range(int(rng.integers(1, 4))):
        x, y, w, h = (*rng.uniform(0.2, 0.8, 2), *rng.uniform(0.3, 0.8, 2))
        fill, edge = colour(rng, (0.08, 0.35), 0.98), colour(rng, (0.3, 0.7), 0.7)
        page.pen.ellipse(page.box(x, y, w, h), fill, edge, 3 * page.thick)
    for _ in range(int(rng.integers(6, 30))):
        x, y, r = (*rng.uniform(0.06, 0.94, 2), rng.uniform(0.015, 0.07))
        fill = colour(rng, (0.3, 0.9), rng.uniform(0.7, 1.0))
        shape = rng.random()
        if shape < 0.5:
            page.pen.ellipse(page.box(x, y, 2 * r, 1.6 * r), fill, BLACK, page.thick)
        elif shape < 0.8:
            radius = min(14, round(0.3 * r * page.height))
            page.pen.rounded_rectangle(page.box(x, y, 2.4 * r, r), radius, fill, BLACK, page.thick)
        else:
            turns = np.linspace(0, 2 * math.pi, 7)
            points = [page.at(x + r * math.cos(t), y + r * math.sin(t)) for t in turns]
            page.pen.polygon(points, fill, BLACK)
        if rng.random() < 0.55:
            page.text(x, y + 1.3 * r, words(rng, 1, 2), scale=0.8)
    for _ in range(int(rng.integers(3, 10))):
        start = rng.uniform(0.1, 0.9, 2)
        end = np.clip(start + rng.uniform(-0.25, 0.25, 2), 0.02, 0.98)
        page.arrow((start[0], start[1]), (end[0], end[1]))
    return page.finish()


def network(rng: np.random.Generator, size: Size) -> Image.Image:
    """Nodes and edges."""
    page = Page(rng, size)
    spots = rng.uniform(0.06, 0.94, (int(rng.integers(10, 60)), 2))
    for x, y in spots:
        for other in rng.choice(len(spots), int(rng.integers(1, 4))):
            page.line([(x, y), (spots[other][0], spots[other][1])], (150, 150, 150), page.thick)
    fills = [colour(rng, (0.3, 0.9), 0.95) for _ in range(4)]
    for x, y in spots:
        r = rng.uniform(0.01, 0.035)
        fill = fills[int(rng.integers(4))]
        page.pen.ellipse(page.box(x, y, 2 * r, 2 * r * page.width / page.height), fill, BLACK, 2)
        page.text(x, y, words(rng, 1, 1), scale=0.6)
    return page.finish()


def molecule(rng: np.random.Generator, size: Size) -> Image.Image:
    """Rings, bonds and letters."""
    page = Page(rng, size)
    for _ in range(int(rng.integers(1, 5))):
        x, y = rng.uniform(0.15, 0.85, 2) * (page.width, page.height)
        side = rng.uniform(0.04, 0.09) * page.width
        for _ in range(int(rng.integers(2, 6))):
            turns = np.arange(7) * math.pi / 3 + math.pi / 6
            ring = [(x + side * math.cos(t), y + side * math.sin(t)) for t in turns]
            page.pen.line(ring, BLACK, page.thick)
            page.pen.text(ring[int(rng.integers(6))], str(rng.choice(list("ONHSF"))), BLACK,
                          font(page.letters), anchor="mm")  # fmt: skip
            step = int(rng.integers(6)) * math.pi / 3
            x, y = x + 1.73 * side * math.cos(step), y + 1.73 * side * math.sin(step)
    for _ in range(int(rng.integers(1, 6))):
        x, y = rng.uniform(0.1, 0.9, 2)
        page.text(x, y, words(rng, 1, 2))
    return page.finish()


def time_line(rng: np.random.Generator, size: Size) -> Image.Image:
    """Bars of domains or phases along lines, with words and arrows."""
    page = Page(rng, size)
    rows = int(rng.integers(1, 7))
    for row in range(rows):
        y = (row + 0.5) / rows
        page.line([(0.12, y), (0.95, y)])
        page.text(0.06, y, words(rng, 1, 1), scale=0.8)
        edges = np.sort(rng.uniform(0.14, 0.93, 2 * int(rng.integers(1, 6))))
        for start, stop in edges.reshape(-1, 2):
            fill = colour(rng, (0.3, 0.8), 0.95)
            page.pen.rectangle(
                page.box((start + stop) / 2, y, stop - start, 0.3 / rows), fill, BLACK
            )
            page.text((start + stop) / 2, y, words(rng, 1, 1), scale=0.7)
        for x in rng.uniform(0.15, 0.9, int(rng.integers(0, 4))):
            page.arrow((x, y - 0.38 / rows), (x, y - 0.16 / rows))
            page.text(x, y - 0.43 / rows, words(rng, 1, 2), scale=0.7)
    return page.finish()


def venn(rng: np.random.Generator, size: Size) -> Image.Image:
    """Overlapping circles with numbers."""
    page = Page(rng, size)
    overlay = page.image.copy()
    pen = ImageDraw.Draw(overlay)
    for turn in np.arange(int(rng.integers(2, 5))) * 2.1:
        x, y = 0.5 + 0.14 * math.cos(turn), 0.5 + 0.16 * math.sin(turn)
        pen.ellipse(page.box(x, y, 0.5, 0.55), colour(rng, (0.3, 0.9), 1.0), BLACK, page.thick)
        page.image.paste(Image.blend(page.image, overlay, 0.5))
    for _ in range(int(rng.integers(3, 9))):
        x, y = rng.uniform(0.25, 0.75, 2)
        page.text(x, y, str(rng.integers(1, 900)), scale=1.3)
    for x in (0.2, 0.8):
        page.text(x, 0.08, words(rng, 1, 2))
    return page.finish()


def table(rng: np.random.Generator, size: Size) -> Image.Image:
    """Words and numbers in columns, with rules, a grid, stripes or nothing between."""
    page = Page(rng, size)
    columns, rows = int(rng.integers(2, 9)), int(rng.integers(5, 26))
    style = str(rng.choice(["rules", "grid", "stripes", "plain", "rules"]))
    widths = rng.uniform(0.6, 1.4, columns)
    widths[0] *= rng.uniform(1, 2.2)
    edges = 0.02 + 0.96 * np.concatenate(([0], np.cumsum(widths) / widths.sum()))
    head, tint = colour(rng, (0.1, 0.9), rng.uniform(0.6, 1.0)), colour(rng, (0.02, 0.15), 0.98)
    high = 0.94 / rows
    scale = min(1.0, 0.62 * high * page.height / page.letters)
    numeric, anchor = rng.random(columns) < 0.7, str(rng.choice(["lm", "mm"]))
    shaded_head = rng.random() < 0.4
    for row in range(rows):
        y = 0.03 + (row + 0.5) * high
        if (row == 0 and shaded_head) or (style == "stripes" and row % 2):
            page.pen.rectangle(page.box(0.5, y, 0.96, high), tint if row else head)
        for column in range(columns):
            x = edges[column] + 0.008 if anchor == "lm" else edges[column : column + 2].mean()
            number = f"{rng.gamma(1, 40):.{int(rng.integers(0, 3))}f}"
            if rng.random() < 0.3:
                number += f" ({rng.uniform(0, 99):.1f})"
            wordy = row == 0 or not (numeric[column] and column)
            if rng.random() < 0.93:
                page.text(x, y, words(rng, 1, 2) if wordy else number, anchor, scale)
        if style == "grid" or (style == "rules" and row in (0, rows - 1)):
            page.line([(0.02, y + high / 2), (0.98, y + high / 2)])
    if style in ("grid", "rules"):
        page.line([(0.02, 0.03), (0.98, 0.03)])
    if style == "grid":
        for x in edges:
            page.line([(x, 0.03), (x, 0.03 + rows * high)])
    return page.finish()


def text_page(rng: np.random.Generator, size: Size) -> Image.Image:
    """Paragraphs."""
    page = Page(rng, size)
    y = 0.05
    while y < 0.95:
        if rng.random() < 0.12:
            y += 0.03
            continue
        page.text(0.05, y, words(rng, 6, 16), "lm", 0.8)
        y += 1.3 * page.letters / page.height
    return page.finish()


def alignment(rng: np.random.Generator, size: Size) -> Image.Image:
    """Sequences under each other, letters on coloured cells."""
    page = Page(rng, size)
    rows, columns = int(rng.integers(4, 24)), int(rng.integers(20, 60))
    fills = [colour(rng, (0.2, 0.7), 0.98) for _ in range(5)]
    consensus = rng.integers(0, 5, columns)
    for row in range(rows):
        y = (row + 0.5) / rows
        page.text(0.06, y, words(rng, 1, 1), scale=0.7)
        for column in range(columns):
            x = 0.14 + 0.84 * (column + 0.5) / columns
            kind = consensus[column] if rng.random() < 0.8 else int(rng.integers(5))
            if kind:
                page.pen.rectangle(page.box(x, y, 0.84 / columns, 0.8 / rows), fills[kind])
            page.text(x, y, "ACGT-"[kind], scale=0.6)
    return page.finish()


def screenshot(rng: np.random.Generator, size: Size) -> Image.Image:
    """A window with bars, lists, buttons and a picture."""
    page = Page(rng, size, (236, 236, 238))
    page.pen.rectangle(page.box(0.5, 0.03, 1, 0.06), colour(rng, (0.1, 0.8), 0.6))
    page.text(0.2, 0.03, words(rng, 1, 4), ink=WHITE)
    page.pen.rectangle(page.box(0.14, 0.55, 0.24, 0.86), WHITE, (160, 160, 160), 2)
    for row in range(int(rng.integers(6, 18))):
        page.text(0.04, 0.15 + row * 0.045, words(rng, 1, 2), "lm", 0.7)
    for x in np.arange(0.35, 0.95, 0.15):
        page.pen.rounded_rectangle(page.box(x, 0.13, 0.13, 0.06), 10, (210, 214, 220), BLACK, 2)
        page.text(x, 0.13, words(rng, 1, 1), scale=0.7)
    inner = Image.fromarray(cloud(rng, (160, 120), 1.6)).resize((page.width // 2, page.height // 2))
    page.image.paste(inner, (round(0.32 * page.width), round(0.25 * page.height)))
    return page.finish()


def map_of_regions(rng: np.random.Generator, size: Size) -> Image.Image:
    """Regions of a country in shades."""
    spots = rng.uniform(0, 1, (int(rng.integers(12, 60)), 2))
    wobble = cloud(rng, (180, 140), 2.2)[..., :2].astype(np.float32) / 255
    y, x = np.mgrid[0:140, 0:180]
    place = np.stack((x / 180, y / 140), -1) + 0.12 * wobble
    region = ((place[:, :, None] - spots) ** 2).sum(-1).argmin(-1)
    inside = ((place - 0.55) ** 2).sum(-1) < rng.uniform(0.12, 0.22)
    hue = np.array(colour(rng, (0.5, 0.9), 0.8))
    shade = 255 - (255 - hue) * rng.uniform(0.1, 1, (len(spots), 1))
    picture = np.where(inside[..., None], shade[region], 255).astype(np.uint8)
    big = Image.fromarray(picture).resize(size, Image.Resampling.NEAREST)
    edges = big.convert("L").filter(ImageFilter.FIND_EDGES).point(lambda v: 255 if v > 2 else 0)
    big.paste((90, 90, 90), mask=edges)
    return big
