"""Small drawings for the report, as SVG: sharp in print, a few hundred bytes each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

Point = tuple[float, float]
WIDTH, HEIGHT = 300, 190
LEFT, RIGHT, TOP, BOTTOM = 38, 12, 10, 34
"""Margins of a chart, in its own units."""


def interval(score: Mapping[str, float | None]) -> Markup:
    """A score on the axis from 0 to 1: point, 95% interval, chance as a dashed line.

    What isn't known is left out, and a score that is above 1 (a contrast-to-noise ratio) ends at
    the edge of the axis.
    """

    def x(share: float) -> float:
        return round(4 + 192 * min(max(share, 0.0), 1.0), 1)

    value, low, high, chance = (score[key] for key in ("value", "low", "high", "chance"))
    if value is None:
        return Markup("")
    parts = [
        Markup(
            '<svg class="interval" viewBox="0 0 200 22" role="img" aria-label="{}">'
            '<line class="axis" x1="4" x2="196" y1="11" y2="11"/>'
            '<path class="axis" d="M4 8v6M52 9v4M100 8v6M148 9v4M196 8v6"/>'
        ).format(_spoken(score))
    ]
    if chance is not None:
        parts.append(
            Markup('<line class="chance" x1="{0}" x2="{0}" y1="1" y2="21"/>').format(x(chance))
        )
    if low is not None and high is not None:
        parts.append(
            Markup('<line class="bar" x1="{}" x2="{}" y1="11" y2="11"/>').format(x(low), x(high))
        )
    parts.append(Markup('<circle class="point" cx="{}" cy="11" r="4.5"/></svg>').format(x(value)))
    return Markup("").join(parts)


def _spoken(score: Mapping[str, float | None]) -> str:
    """A score for those who don't see it."""
    words = [f"{score['value']:.3f}"]
    if score["low"] is not None and score["high"] is not None:
        words.append(f"interval {score['low']:.3f} to {score['high']:.3f}")
    if score["chance"] is not None:
        words.append(f"chance {score['chance']:.3f}")
    return ", ".join(words)


@dataclass(frozen=True)
class Line:
    """Points that belong together."""

    points: Sequence[Point]
    style: str = "line0"
    """CSS class: line0 to line3, or chance."""
    dots: Sequence[float] = ()
    """Radius of a dot at each point; none for a plain line."""
    whiskers: Sequence[tuple[float, float, float]] = ()
    """(x, low, high) of intervals."""


@dataclass(frozen=True)
class Chart:
    """Lines over a horizontal axis; the vertical one shows shares."""

    label: str
    """What is to be seen, for those who don't see it."""
    x_label: str
    y_label: str
    lines: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]] = ((0, "0"), (0.5, "50"), (1, "100%"))
    y_ticks: Sequence[tuple[float, str]] = ((0, "0"), (0.5, "50"), (1, "100%"))
    bars: Sequence[tuple[float, float, float]] = field(default_factory=list)
    """(from, to, height as a share of the highest) of faint columns behind the lines."""

    def svg(self) -> Markup:
        """The drawing."""
        start = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">')
        parts = [start.format(WIDTH, HEIGHT, self.label), *self._axes(), *self._columns()]
        for line in self.lines:
            path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in line.points)
            for x, low, high in line.whiskers:
                parts.append(
                    Markup(
                        '<line class="whisker {2}" x1="{0}" x2="{0}" y1="{1}" y2="{3}"/>'
                    ).format(
                        *(f"{self._x(x):.1f}", f"{self._y(low):.1f}"),
                        *(line.style, f"{self._y(high):.1f}"),
                    )
                )
            if len(line.points) > 1:
                parts.append(
                    Markup('<polyline class="line {}" points="{}"/>').format(line.style, path)
                )
            for (x, y), radius in zip(line.points, line.dots, strict=False):
                parts.append(
                    Markup('<circle class="dot {}" cx="{}" cy="{}" r="{}"/>').format(
                        line.style, f"{self._x(x):.1f}", f"{self._y(y):.1f}", f"{radius:.1f}"
                    )
                )
        return Markup("").join([*parts, Markup("</svg>")])

    def _axes(self) -> list[Markup]:
        parts = []
        for value, text in self.y_ticks:
            y = self._y(value)
            parts.append(
                Markup(
                    '<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                    '<text x="{}" y="{}" text-anchor="end">{}</text>'
                ).format(LEFT, WIDTH - RIGHT, y, y, LEFT - 5, y + 3.5, text)
            )
        for value, text in self.x_ticks:
            parts.append(
                Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    self._x(value), HEIGHT - BOTTOM + 13, text
                )
            )
        middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
        parts.append(
            Markup(
                '<text x="{}" y="{}" text-anchor="middle">{}</text>'
                '<text transform="translate(9 {}) rotate(-90)" text-anchor="middle">{}</text>'
            ).format(middle, HEIGHT - 4, self.x_label, (HEIGHT - BOTTOM + TOP) / 2, self.y_label)
        )
        return parts

    def _columns(self) -> list[Markup]:
        highest = max((height for *_, height in self.bars), default=1) or 1
        bottom, room = HEIGHT - BOTTOM, 0.35 * (HEIGHT - BOTTOM - TOP)
        return [
            Markup('<rect class="column" x="{}" y="{}" width="{}" height="{}"/>').format(
                f"{self._x(low):.1f}",
                f"{bottom - room * height / highest:.1f}",
                f"{self._x(high) - self._x(low) - 1:.1f}",
                f"{room * height / highest:.1f}",
            )
            for low, high, height in self.bars
        ]

    def _x(self, value: float) -> float:
        low, high = self.x_ticks[0][0], self.x_ticks[-1][0]
        return LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def _y(self, value: float) -> float:
        low, high = self.y_ticks[0][0], self.y_ticks[-1][0]
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)


def reliability(calibration: Mapping[str, Any]) -> Markup:
    """Accuracy over confidence by bin, before and after temperature scaling; the faint columns
    say how many answers are in a bin."""
    total = sum(row["n"] for row in calibration["bins"])
    lines = [Line([(0, 0), (1, 1)], "chance"), _bins(calibration["bins"], "line0")]
    if calibration["temperature"] is not None:
        lines.append(_bins(calibration["temperature"]["bins"], "line1"))
    return Chart(
        label="Reliability diagram: accuracy over confidence",
        x_label="confidence",
        y_label="accuracy",
        lines=lines,
        bars=[(row["low"], row["high"], row["n"] / total) for row in calibration["bins"]],
    ).svg()


def _bins(rows: Sequence[Mapping[str, Any]], style: str) -> Line:
    points = [(row["confidence"], row["accuracy"]) for row in rows]
    most = max((row["n"] for row in rows), default=1)
    # By area: a bin of few answers shall not stand out by being off the line.
    return Line(points, style, dots=[1.2 + 3.3 * math.sqrt(row["n"] / most) for row in rows])


def risk_coverage(curve: Mapping[str, Any]) -> Markup:
    """Share of wrong answers among the surest, over how many are answered; dashed: at random."""
    points = list(zip(curve["coverage"], curve["risk"], strict=True))
    return Chart(
        label="Risk-coverage curve: share of wrong answers among the surest",
        x_label="coverage: answered, the surest first",
        y_label="risk: wrong answers",
        lines=[Line([(0, curve["chance"]), (1, curve["chance"])], "chance"), Line(points)],
    ).svg()


def robustness(found: Mapping[str, Any], corruption: str) -> Markup:
    """A task's score over the severity of one corruption; 0 is the clean image."""
    rows = [(0, found["clean"])]
    rows += [
        (c["severity"], c["score"]) for c in found["conditions"] if c["corruption"] == corruption
    ]
    chance = found["clean"]["chance"]
    lines = [_scores(rows)]
    if chance is not None:
        lines.insert(0, Line([(0, chance), (5, chance)], "chance"))
    return Chart(
        label=f"Score over the severity of {corruption}",
        x_label="severity",
        y_label=found["metric"].replace("_", " "),
        lines=lines,
        x_ticks=[(i, str(i)) for i in range(6)],
    ).svg()


def shots(record: Mapping[str, Any], metric: str) -> Markup:
    """A probe's score over the number of training images of a class; dashed: zero-shot."""
    scores = record["scores"]
    numbers = [entry["shots"] for entry in record["details"]["few_shot"]]
    rows = [(i, scores[f"{metric}_{k}_shot{'s' * (k > 1)}"]) for i, k in enumerate(numbers)]
    last = max(len(rows) - 1, 1)
    zero = scores[f"zero_shot_{metric}"]["value"]
    return Chart(
        label="Score over the number of training images of a class",
        x_label="training images of a class",
        y_label=metric.replace("_", " "),
        lines=[Line([(0, zero), (last, zero)], "chance"), _scores(rows)],
        x_ticks=[(i, str(k)) for i, k in enumerate(numbers)] or [(0, "0")],
    ).svg()


def _scores(rows: Sequence[tuple[int, Mapping[str, Any]]]) -> Line:
    known = [(x, score) for x, score in rows if score["value"] is not None]
    return Line(
        points=[(x, score["value"]) for x, score in known],
        dots=[3.0] * len(known),
        whiskers=[(x, s["low"], s["high"]) for x, s in known if s["low"] is not None],
    )
