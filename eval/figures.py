"""Small drawings for the report, as SVG: sharp in print, a few hundred bytes each."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from eval.tasks import Score

Points = Sequence[tuple[float, float]]


def interval(score: Score) -> Markup:
    """A score on the axis from 0 to 1: point, 95% interval, chance as a dashed line."""

    def x(share: float) -> float:
        return round(4 + 192 * min(max(share, 0.0), 1.0), 1)

    return Markup(
        '<svg class="interval" viewBox="0 0 200 22" role="img" aria-label="{label}">'
        '<line class="axis" x1="4" x2="196" y1="11" y2="11"/>'
        '<path class="axis" d="M4 8v6M52 9v4M100 8v6M148 9v4M196 8v6"/>'
        '<line class="chance" x1="{chance}" x2="{chance}" y1="1" y2="21"/>'
        '<line class="bar" x1="{low}" x2="{high}" y1="11" y2="11"/>'
        '<circle class="point" cx="{value}" cy="11" r="4.5"/></svg>'
    ).format(
        label=f"{score.value:.3f}, interval {score.low:.3f} to {score.high:.3f}, "
        f"chance {score.chance:.3f}",
        chance=x(score.chance),
        low=x(score.low),
        high=x(score.high),
        value=x(score.value),
    )


def curves(series: Mapping[str, Points]) -> Markup:
    """Lines over the training step, in one panel; the axes are labelled at their ends.

    Args:
        series: name -> points (step, value), at least one point in all.
    """
    points = [p for line in series.values() for p in line]
    left, right = 0.0, max(x for x, _ in points) or 1.0
    low, high = _nice(min(y for _, y in points), max(y for _, y in points))
    width, height = 300, 130

    def place(x: float, y: float) -> str:
        across = 42 + (x - left) / (right - left) * (width - 52)
        return f"{across:.1f},{12 + (high - y) / (high - low) * (height - 34):.1f}"

    parts = [Markup('<svg class="curves" viewBox="0 0 {} {}" role="img">').format(width, height)]
    for share in (0.0, 0.5, 1.0):
        y = 12 + share * (height - 34)
        value = high - share * (high - low)
        parts.append(
            Markup(
                '<line class="axis" x1="42" x2="{}" y1="{}" y2="{}"/>'
                '<text x="37" y="{}" text-anchor="end">{}</text>'
            ).format(width - 10, y, y, y + 3.5, _short(value))
        )
    for i, line in enumerate(series.values()):
        path = " ".join(place(x, y) for x, y in line)
        parts.append(Markup('<polyline class="line line{}" points="{}"/>').format(i % 4, path))
    parts.append(
        Markup(
            '<text x="42" y="{}">0</text><text x="{}" y="{}" text-anchor="end">{}</text>'
        ).format(height - 6, width - 10, height - 6, f"step {right:,.0f}")
    )
    return Markup("").join([*parts, Markup("</svg>")])


def _short(value: float) -> str:
    """Few characters for an axis: 4.5, 7.5e-4."""
    if 0 < abs(value) < 0.01:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.3g}"


def _nice(low: float, high: float) -> tuple[float, float]:
    """Bounds of an axis that holds [low, high], at one or two digits; 0 if it is near."""
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span)) / 2
    return math.floor(low / step) * step, math.ceil(high / step + 1e-9) * step
