"""More forms of plots than the corpus has: heat maps, histograms, volcanoes, pies, forests ..."""

import math

import numpy as np
from PIL import Image

from data_prep.phantom.inks import BLACK, WHITE, Colour, Painter, Size, colour, words
from data_prep.phantom.pages import Page


class Chart:
    """A page with axes in one of several looks; data coordinates run from 0 to 1."""

    def __init__(self, rng: np.random.Generator, size: Size, axes: bool = True) -> None:
        self.rng, self.page = rng, Page(rng, size)
        self.left, self.top = rng.uniform(0.06, 0.2), rng.uniform(0.01, 0.12)
        self.right, self.bottom = rng.uniform(0.72, 0.995), rng.uniform(0.78, 0.92)
        self.inks = [colour(rng, (0.3, 0.95), rng.uniform(0.5, 0.95)) for _ in range(6)]
        if rng.random() < 0.2:
            self.inks = [(shade, shade, shade) for shade in (30, 90, 140, 180, 210, 235)]
        if axes:
            self._axes(str(rng.choice(["open", "framed", "grey", "grid"])))

    def _axes(self, look: str) -> None:
        page = self.page
        if look == "grey":
            corners = (*page.at(self.left, self.top), *page.at(self.right, self.bottom))
            page.pen.rectangle(corners, (235, 235, 235))
        lines = WHITE if look == "grey" else (222, 222, 222)
        ticks = int(self.rng.integers(3, 8))
        for tick in np.linspace(0, 1, ticks):
            x, y = self.at(tick, 0)[0], self.at(0, tick)[1]
            if look in ("grey", "grid"):
                page.line([(self.left, y), (self.right, y)], lines, 2)
                page.line([(x, self.top), (x, self.bottom)], lines, 2)
            page.line([(self.left - 0.012, y), (self.left, y)])
            page.line([(x, self.bottom), (x, self.bottom + 0.014)])
            page.text(self.left - 0.02, y, f"{tick * 50:.3g}", "rm", 0.75)
            page.text(x, self.bottom + 0.045, f"{tick * 12:.3g}", "mm", 0.75)
        if look in ("open", "framed", "grid"):
            page.line([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)])
        if look == "framed":
            page.line([(self.left, self.top), (self.right, self.top), (self.right, self.bottom)])
        page.text((self.left + self.right) / 2, self.bottom + 0.1, words(self.rng, 1, 3))
        if self.rng.random() < 0.5:
            page.text((self.left + self.right) / 2, self.top / 2, words(self.rng, 1, 3))
        if self.right < 0.85:
            for row, ink in enumerate(self.inks[: int(self.rng.integers(2, 6))]):
                y = self.top + 0.07 * (row + 1)
                page.pen.rectangle(page.box(self.right + 0.03, y, 0.025, 0.025), ink)
                page.text(self.right + 0.05, y, words(self.rng, 1, 1), "lm", 0.75)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Shares of the page from data coordinates."""
        return (
            self.left + float(x) * (self.right - self.left),
            self.bottom - float(y) * (self.bottom - self.top),
        )

    def dots(self, x: np.ndarray, y: np.ndarray, ink: Colour, radius: float) -> None:
        for u, v in zip(x, y, strict=True):
            a, b = self.page.at(*self.at(u, v))
            self.page.pen.ellipse((a - radius, b - radius, a + radius, b + radius), ink)

    def rectangle(
        self, x0: float, y0: float, x1: float, y1: float, ink: Colour, edge: bool
    ) -> None:
        a, b = self.page.at(*self.at(x0, y1))
        c, d = self.page.at(*self.at(x1, y0))
        self.page.pen.rectangle((a, b, c, d), ink, BLACK if edge else None, self.page.thick)

    def curve(self, x: np.ndarray, y: np.ndarray, ink: Colour) -> None:
        points = [self.at(u, v) for u, v in zip(x, y, strict=True)]
        self.page.line(points, ink, max(3, round(1.3 * self.page.thick)))


def heat_map(rng: np.random.Generator, size: Size) -> Image.Image:
    chart = Chart(rng, size, axes=False)
    rows, columns = int(rng.integers(4, 50)), int(rng.integers(3, 40))
    low, middle, high = (np.array(c) for c in (chart.inks[0], WHITE, chart.inks[1]))
    if rng.random() < 0.4:
        middle = np.array(BLACK)
    values = np.clip(rng.normal(0, 0.4, (rows, columns)) + rng.normal(0, 0.4, (rows, 1)), -1, 1)
    share = np.abs(values)[..., None]
    cells = middle + (np.where(values[..., None] > 0, high, low) - middle) * share
    box = [*chart.page.at(chart.left, chart.top), *chart.page.at(chart.right, chart.bottom)]
    x0, y0, x1, y1 = (round(edge) for edge in box)
    picture = Image.fromarray(cells.astype(np.uint8))
    chart.page.image.paste(picture.resize((x1 - x0, y1 - y0), Image.Resampling.NEAREST), (x0, y0))
    for row in range(min(rows, 26)):
        y = chart.at(0, 1 - (row + 0.5) / min(rows, 26))[1]
        chart.page.text(chart.right + 0.01, y, words(rng, 1, 1), "lm", 0.6)
    for column in range(min(columns, 10)):
        x = chart.at((column + 0.5) / min(columns, 10), 0)[0]
        chart.page.text(x, chart.bottom + 0.03, words(rng, 1, 1), "mm", 0.6)
    return chart.page.finish()


def histogram(rng: np.random.Generator, size: Size) -> Image.Image:
    chart = Chart(rng, size)
    bins, layers = int(rng.integers(4, 40)), int(rng.integers(1, 5))
    edge = rng.random() < 0.5
    base = np.zeros(bins)
    centre, spread = rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.5)
    for layer in range(layers):
        x = (np.arange(bins) + 0.5) / bins
        high = np.exp(-(((x - centre) / spread) ** 2)) * rng.uniform(0.6, 1, bins) * 0.9 / layers
        for bar in range(bins):
            left, right = (bar + 0.1) / bins, (bar + 0.9) / bins
            chart.rectangle(left, base[bar], right, base[bar] + high[bar], chart.inks[layer], edge)
        base += high
    return chart.page.finish()


def curves(rng: np.random.Generator, size: Size) -> Image.Image:
    chart = Chart(rng, size)
    x = np.linspace(0, 1, int(rng.integers(20, 200)))
    form = str(rng.choice(["roc", "wave", "trace", "growth"]))
    for ink in chart.inks[: int(rng.integers(1, 6))]:
        noise = rng.normal(0, 0.03, len(x))
        y = {
            "roc": x ** rng.uniform(0.1, 0.6),
            "wave": 0.5 + 0.35 * np.sin(rng.uniform(5, 30) * x + rng.uniform(0, 6)) + noise,
            "trace": 0.1 + np.exp(-(((x - rng.random()) / 0.03) ** 2)) * 0.8 + np.abs(noise) / 2,
            "growth": 0.9 / (1 + np.exp(-12 * (x - rng.uniform(0.2, 0.8)))) + 0.05,
        }[form]
        chart.curve(x, np.clip(y, 0, 1), ink)
    return chart.page.finish()


def points(rng: np.random.Generator, size: Size) -> Image.Image:
    """Volcano, clusters or cytometry."""
    chart = Chart(rng, size)
    number, radius = int(rng.integers(150, 2500)), rng.uniform(2, 6)
    form = str(rng.choice(["volcano", "clusters", "cytometry"]))
    if form == "volcano":
        x = rng.normal(0.5, 0.15, number)
        y = np.abs(x - 0.5) * rng.uniform(0, 2.4, number)
        group = np.where(y < 0.2, 5, np.where(x > 0.5, 0, 1))
    else:
        group = rng.integers(0, int(rng.integers(1, 6)), number)
        centres = rng.uniform(0.15, 0.85, (6, 2))
        spread = rng.uniform(0.03, 0.1)
        x, y = (centres[group] + rng.normal(0, spread, (number, 2))).T
    fits = (x > 0) & (x < 1) & (y > 0) & (y < 1)
    for index, ink in enumerate(chart.inks):
        chosen = fits & (group == index)
        chart.dots(x[chosen], y[chosen], ink, radius)
    if form == "cytometry":
        chart.page.line([chart.at(0.45, 0), chart.at(0.45, 1)])
        chart.page.line([chart.at(0, 0.5), chart.at(1, 0.5)])
    return chart.page.finish()


def pie(rng: np.random.Generator, size: Size) -> Image.Image:
    chart = Chart(rng, size, axes=False)
    shares = np.cumsum(rng.dirichlet(np.full(int(rng.integers(2, 7)), 2.0))) * 360
    radius = 0.36 * min(chart.page.width, chart.page.height)
    cx, cy = chart.page.at(0.42, 0.5)
    box = (cx - radius, cy - radius, cx + radius, cy + radius)
    start = 0.0
    for index, stop in enumerate(shares):
        chart.page.pen.pieslice(box, start, stop, chart.inks[index % 6], WHITE, 3)
        middle = math.radians((start + stop) / 2)
        x, y = cx + 1.15 * radius * math.cos(middle), cy + 1.15 * radius * math.sin(middle)
        text = f"{(stop - start) / 3.6:.0f}%"
        chart.page.text(x / chart.page.width, y / chart.page.height, text)
        start = float(stop)
    return chart.page.finish()


def forest(rng: np.random.Generator, size: Size) -> Image.Image:
    """Estimates with intervals, studies under each other."""
    page = Page(rng, size)
    rows = int(rng.integers(5, 22))
    page.line([(0.62, 0.06), (0.62, 0.94)])
    page.line([(0.42, 0.94), (0.86, 0.94)])
    for row in range(rows):
        y = 0.08 + 0.84 * row / rows
        scale = min(1.0, 20 / rows)
        page.text(0.03, y, words(rng, 1, 3), "lm", scale)
        x, half = rng.uniform(0.5, 0.76), rng.uniform(0.02, 0.1)
        page.line([(x - half, y), (x + half, y)])
        page.pen.rectangle(page.box(x, y, 0.02, 0.02), BLACK)
        page.text(
            0.88, y, f"{rng.uniform(0.3, 2.5):.2f} ({rng.uniform(0.1, 1):.2f})", "lm", scale * 0.8
        )
    return page.finish()


def violins(rng: np.random.Generator, size: Size) -> Image.Image:
    chart = Chart(rng, size)
    groups = int(rng.integers(2, 9))
    for group in range(groups):
        centre, spread = rng.uniform(0.3, 0.7), rng.uniform(0.05, 0.16)
        y = np.linspace(max(0.0, centre - 2.5 * spread), min(1.0, centre + 2.5 * spread), 40)
        half = 0.42 / groups * np.exp(-(((y - centre) / spread) ** 2) / 2)
        x = (group + 0.5) / groups
        outline = [chart.at(x - w, v) for w, v in zip(half, y, strict=True)]
        outline += [chart.at(x + w, v) for w, v in zip(half[::-1], y[::-1], strict=True)]
        chart.page.pen.polygon([chart.page.at(*p) for p in outline], chart.inks[group % 6], BLACK)
        chart.page.line([chart.at(x, centre - spread), chart.at(x, centre + spread)])
    return chart.page.finish()


def lying_bars(rng: np.random.Generator, size: Size) -> Image.Image:
    """Bars to the right of their names, as of enriched pathways."""
    chart = Chart(rng, size, axes=False)
    bars, groups = int(rng.integers(4, 30)), int(rng.integers(1, 4))
    chart.left = rng.uniform(0.3, 0.5)
    for bar in range(bars):
        y = 1 - (bar + 0.5) / bars
        place = chart.at(-0.02, y)
        chart.page.text(*place, words(rng, 1, 4), "rm", min(0.9, 16 / bars))
        start = 0.0
        for group in range(groups):
            stop = start + rng.uniform(0.05, 0.9 / groups)
            half = 0.35 / bars
            chart.rectangle(start, y - half, stop, y + half, chart.inks[group], groups > 1)
            start = stop
    for tick in np.linspace(0, 1, 5):
        x = chart.at(tick, 0)[0]
        chart.page.line([(x, chart.bottom), (x, chart.bottom + 0.015)])
        chart.page.text(x, chart.bottom + 0.04, f"{40 * tick:g}", "mm", 0.8)
    chart.page.line(
        [(chart.left, chart.top), (chart.left, chart.bottom), (chart.right, chart.bottom)]
    )
    chart.page.text((chart.left + chart.right) / 2, chart.bottom + 0.09, words(rng, 1, 3))
    return chart.page.finish()


CHARTS: tuple[Painter, ...] = (
    heat_map,
    histogram,
    curves,
    points,
    pie,
    forest,
    violins,
    lying_bars,
)
