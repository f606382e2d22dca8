"""Plots: bars, lines, scatter, Kaplan-Meier curves and boxes, drawn without a plotting library."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from data_prep.phantom.drawing import Drawing, Facts, Point, font

KINDS = ("bar chart", "line graph", "scatter plot", "Kaplan-Meier curve", "box plot")
GROUP_FINDINGS = ("increase", "decrease", "no difference")
FINDINGS = {
    "bar chart": GROUP_FINDINGS,
    "line graph": GROUP_FINDINGS,
    "scatter plot": ("positive correlation", "negative correlation", "no correlation"),
    "Kaplan-Meier curve": ("longer survival", "shorter survival", "no difference"),
    "box plot": GROUP_FINDINGS,
}
MEASURES = (
    "Serum IL-6 (pg/ml)", "Tumour volume (mm3)", "Body weight (g)", "Cell viability (%)",
    "Blood glucose (mg/dl)", "Relative mRNA expression", "Heart rate (bpm)", "Bone density (g/cm2)",
    "Fluorescence (a.u.)", "Plasma creatinine (mg/dl)",
)  # fmt: skip
TREATMENTS = ("Compound A", "Inhibitor", "Knockout", "High dose", "Antibody", "Vaccine", "Diet")
PALETTES = (
    ((120, 120, 120), (204, 62, 56)),
    ((90, 90, 96), (38, 104, 186)),
    ((150, 150, 150), (222, 132, 40)),
    ((60, 60, 60), (46, 140, 84)),
)
BLACK = (25, 25, 25)
Colour = tuple[int, int, int]


def sample(rng: np.random.Generator, kind: str) -> Facts:
    finding = str(rng.choice(FINDINGS[kind]))
    first, second = (str(m) for m in rng.choice(MEASURES, 2, replace=False))
    detail = {"measure": first, "other": second, "treatment": str(rng.choice(TREATMENTS))}
    return Facts(kind, "plot", "", finding, detail=detail)


class Axes:
    """A white page with two axes; data coordinates run from 0 to 1 in both directions.

    It is drawn at twice the size and reduced, since Pillow's lines have hard edges.
    """

    def __init__(
        self, rng: np.random.Generator, size: tuple[int, int], x: str, y: str, top: float = 0.0
    ) -> None:
        self.rng = rng
        self.size = size
        width, height = size[0] * 2, size[1] * 2
        self.image = Image.new("RGB", (width, height), (255, 255, 255))
        self.pen = ImageDraw.Draw(self.image)
        self.left, self.right = 0.17 * width, 0.95 * width
        self.top, self.bottom = 0.08 * height, 0.82 * height
        self.thick = max(3, width // 260)
        self.letters = max(20, height // 24)
        self.control, self.treated = PALETTES[int(rng.integers(len(PALETTES)))]
        if rng.random() < 0.35:
            for level in np.linspace(0.2, 1, 5):
                self.line([(0, float(level)), (1, float(level))], (225, 225, 225), 1)
        self.line([(0, 1), (0, 0), (1, 0)], BLACK, self.thick)
        if rng.random() < 0.3:
            self.line([(0, 1), (1, 1), (1, 0)], BLACK, self.thick)
        self._labels(x, y, top or float(rng.choice([10, 50, 100, 500])))

    def _labels(self, x: str, y: str, top: float) -> None:
        for level in np.linspace(0, 1, 5):
            px, py = self.at((0, float(level)))
            self.pen.line([(px - 3 * self.thick, py), (px, py)], fill=BLACK, width=self.thick)
            self.text((px - 4 * self.thick, py), f"{top * level:g}", "rm", 0.8)
        self.text(((self.left + self.right) / 2, self.bottom + 4.2 * self.letters * 0.8), x, "mm")
        strip = Image.new("RGB", (self.image.height, round(1.6 * self.letters)), (255, 255, 255))
        ImageDraw.Draw(strip).text(
            (strip.width / 2, strip.height / 2), y, fill=BLACK, font=font(self.letters), anchor="mm"
        )
        self.image.paste(
            strip.rotate(90, expand=True),
            (round(0.01 * self.image.width), -round(0.05 * self.image.height)),
        )

    def at(self, point: Point) -> Point:
        return (
            self.left + point[0] * (self.right - self.left),
            self.bottom - point[1] * (self.bottom - self.top),
        )

    def text(self, at: Point, text: str, anchor: str, scale: float = 1.0) -> None:
        self.pen.text(at, text, fill=BLACK, font=font(round(self.letters * scale)), anchor=anchor)

    def line(self, points: list[Point], colour: Colour, width: int) -> None:
        self.pen.line([self.at(p) for p in points], fill=colour, width=width, joint="curve")

    def bar(self, corner: Point, opposite: Point, colour: Colour, outline: Colour = BLACK) -> None:
        (a, b), (c, d) = self.at(corner), self.at(opposite)
        box = (min(a, c), min(b, d), max(a, c), max(b, d))
        self.pen.rectangle(box, fill=colour, outline=outline, width=self.thick)

    def dot(self, at: Point, colour: Colour, radius: float = 3.2) -> None:
        x, y = self.at(at)
        r = radius * self.thick
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline=BLACK)

    def whisker(self, x: float, low: float, high: float, cap: float = 0.025) -> None:
        self.line([(x, low), (x, high)], BLACK, self.thick)
        for level in (low, high):
            self.line([(x - cap, level), (x + cap, level)], BLACK, self.thick)

    def category(self, x: float, name: str) -> None:
        px, py = self.at((x, 0))
        self.text((px, py + 1.1 * self.letters), name, "mm", 0.85)

    def legend(self, names: tuple[str, str], low: bool) -> None:
        for row, (name, colour) in enumerate(zip(names, (self.control, self.treated), strict=True)):
            y = (0.22 if low else 0.95) - 0.08 * row
            self.line([(0.06, y), (0.13, y)], colour, 3 * self.thick)
            self.text(self.at((0.15, y)), name, "lm", 0.85)

    def stars(self, x0: float, x1: float, y: float) -> None:
        """A significance bracket."""
        self.line([(x0, y - 0.02), (x0, y), (x1, y), (x1, y - 0.02)], BLACK, self.thick)
        middle = self.at(((x0 + x1) / 2, y + 0.03))
        self.text(middle, "*" * int(self.rng.integers(1, 4)), "mm", 1.2)

    def finish(self) -> Drawing:
        return Drawing(self.image.reduce(2))


def draw(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> Drawing:
    return PAINTERS[facts.kind](facts, rng, size)


def _levels(facts: Facts, rng: np.random.Generator) -> tuple[float, float]:
    """Mean of the control and of the treated group, as shares of the axis."""
    low, high = rng.uniform(0.20, 0.32), rng.uniform(0.62, 0.78)
    if facts.finding == "increase":
        return low, high
    if facts.finding == "decrease":
        return high, low
    middle = rng.uniform(0.42, 0.58)
    return middle, middle + rng.uniform(-0.03, 0.03)


def _bars(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> Drawing:
    axes = Axes(rng, size, "Group", facts.detail["measure"])
    pairs = int(rng.integers(1, 4))
    for pair in range(pairs):
        control, treated = _levels(facts, rng)
        middle = (pair + 0.5) / pairs
        half = 0.30 / pairs
        for x, level, colour in (
            (middle - half / 2, control, axes.control),
            (middle + half / 2, treated, axes.treated),
        ):
            axes.bar((x - half * 0.42, 0), (x + half * 0.42, level), colour)
            axes.whisker(x, level - 0.03, level + rng.uniform(0.03, 0.06))
        if facts.finding != "no difference":
            axes.stars(middle - half / 2, middle + half / 2, max(control, treated) + 0.10)
        if pairs == 1:
            axes.category(middle - half / 2, "Control")
            axes.category(middle + half / 2, facts.detail["treatment"])
        else:
            axes.category(middle, f"Day {7 * pair + 7}")
    if pairs > 1:
        axes.legend(("Control", facts.detail["treatment"]), low=False)
    return axes.finish()


def _lines(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> Drawing:
    axes = Axes(
        rng, size, str(rng.choice(["Time (days)", "Time (h)", "Weeks"])), facts.detail["measure"]
    )
    start, number = rng.uniform(0.38, 0.5), int(rng.integers(5, 9))
    slope = {"increase": 0.42, "decrease": -0.34, "no difference": 0.0}[facts.finding]
    for rise, colour in ((0.0, axes.control), (slope, axes.treated)):
        xs = np.linspace(0.06, 0.94, number)
        ys = start + rise * (xs - 0.06) ** rng.uniform(0.7, 1.3) + rng.normal(0, 0.018, number)
        points = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
        axes.line(points, colour, 2 * axes.thick)
        for point in points:
            axes.whisker(point[0], point[1] - 0.035, point[1] + 0.035, 0.012)
            axes.dot(point, colour)
    for index, x in enumerate(np.linspace(0.06, 0.94, number)):
        axes.category(float(x), str(index * 2))
    axes.legend(("Control", facts.detail["treatment"]), low=facts.finding != "decrease")
    return axes.finish()


def _scatter(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> Drawing:
    axes = Axes(rng, size, facts.detail["other"], facts.detail["measure"])
    number = int(rng.integers(30, 90))
    slope = {"positive correlation": 0.75, "negative correlation": -0.75, "no correlation": 0.0}[
        facts.finding
    ]
    xs = rng.uniform(0.06, 0.94, number)
    spread = 0.20 if slope == 0 else rng.uniform(0.06, 0.09)
    ys = np.clip(0.5 + slope * (xs - 0.5) + rng.normal(0, spread, number), 0.03, 0.97)
    for x, y in zip(xs, ys, strict=True):
        axes.dot((float(x), float(y)), axes.treated, 2.6)
    axes.line([(0.05, 0.5 - 0.45 * slope), (0.95, 0.5 + 0.45 * slope)], BLACK, axes.thick)
    sign = (
        f"r = {math.copysign(1, slope) * rng.uniform(0.84, 0.95):.2f}"
        if slope
        else f"r = {rng.uniform(-0.08, 0.08):.2f}"
    )
    axes.text(
        axes.at((0.96 if slope <= 0 else 0.06, 0.97)), sign, "rm" if slope <= 0 else "lm", 0.9
    )
    return axes.finish()


def _survival(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> Drawing:
    axes = Axes(rng, size, "Time (months)", "Survival probability", top=1.0)
    fast, slow, equal = rng.uniform(2.2, 3.2), rng.uniform(0.35, 0.6), rng.uniform(0.9, 1.3)
    rates = {
        "longer survival": (fast, slow),
        "shorter survival": (slow, fast),
        "no difference": (equal, equal * rng.uniform(0.95, 1.05)),
    }[facts.finding]
    for rate, colour in zip(rates, (axes.control, axes.treated), strict=True):
        number = int(rng.integers(16, 28))
        # Quantiles of the exponential law, not draws from it: chance must not belie the finding.
        shares = (np.arange(number) + rng.uniform(0.2, 0.8, number)) / number
        times = -np.log(1 - shares) / rate
        points, alive = [(0.0, 0.98)], 0.98
        for time in times[times < 0.95]:
            points.append((float(time), alive))
            alive -= 0.98 / number
            points.append((float(time), alive))
        points.append((0.95, alive))
        axes.line(points, colour, 2 * axes.thick)
        for x, y in points[3::6]:
            axes.line([(x, y - 0.02), (x, y + 0.02)], colour, axes.thick)
    axes.legend(("Control", facts.detail["treatment"]), low=True)
    p = rng.uniform(0.2, 0.9) if facts.finding == "no difference" else rng.uniform(0.001, 0.01)
    axes.text(axes.at((0.95, 0.97)), f"P = {p:.3f}", "rm", 0.9)
    return axes.finish()


def _boxes(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> Drawing:
    axes = Axes(rng, size, "Group", facts.detail["measure"])
    control, treated = _levels(facts, rng)
    groups = (
        (0.30, control, axes.control, "Control"),
        (0.70, treated, axes.treated, facts.detail["treatment"]),
    )
    for x, level, colour, name in groups:
        values = np.clip(level + rng.normal(0, 0.07, 40), 0.02, 0.97)
        low, first, median, third, high = (
            float(v) for v in np.percentile(values, (3, 25, 50, 75, 97))
        )
        axes.whisker(x, low, high, 0.04)
        axes.bar((x - 0.11, first), (x + 0.11, third), colour)
        axes.line([(x - 0.11, median), (x + 0.11, median)], (255, 255, 255), 2 * axes.thick)
        if rng.random() < 0.7:
            for value in values[:14]:
                axes.dot((x + float(rng.uniform(-0.07, 0.07)), float(value)), (240, 240, 240), 1.6)
        axes.category(x, name)
    if facts.finding != "no difference":
        axes.stars(0.30, 0.70, min(0.95, max(control, treated) + 0.20))
    return axes.finish()


PAINTERS: dict[str, Callable[[Facts, np.random.Generator, tuple[int, int]], Drawing]] = {
    "bar chart": _bars,
    "line graph": _lines,
    "scatter plot": _scatter,
    "Kaplan-Meier curve": _survival,
    "box plot": _boxes,
}
