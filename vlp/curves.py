"""The metrics of a run as curves: metrics.jsonl read back, and drawn as small SVGs."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """Metrics that are drawn together."""

    title: str
    keys: tuple[str, ...]
    """Names of metrics; one that ends with * stands for all that begin so."""


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line cut off by a kill is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if isinstance(row, dict) and _is_number(row.get("step")):
            rows.append(row)
    return rows


def series_of(rows: Iterable[Mapping[str, Any]], panel: Panel) -> dict[str, Points]:
    """(step, value) of each metric of a panel that the rows have."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if _is_number(value) and any(_fits(key, wanted) for wanted in panel.keys):
                found.setdefault(key, []).append((row["step"], value))
    return dict(sorted(found.items(), key=lambda item: _by_number(item[0])))


def _by_number(key: str) -> list[str | int]:
    """Sorts recall@5 before recall@10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", key)]


def _fits(key: str, wanted: str) -> bool:
    return key.startswith(wanted[:-1]) if wanted.endswith("*") else key == wanted


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def draw(series: Mapping[str, Points]) -> Markup:
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
    """Few characters for an axis: 4.5, 7.5e-4, 2,500."""
    if 0 < abs(value) < 0.01:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _nice(low: float, high: float) -> tuple[float, float]:
    """Bounds of an axis that holds [low, high], at one or two digits; 0 if it is near."""
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span)) / 2
    return math.floor(low / step) * step, math.ceil(high / step + 1e-9) * step
