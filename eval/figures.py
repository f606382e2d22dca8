"""Small drawings for the report, as SVG: sharp in print, a few hundred bytes each."""

from collections.abc import Mapping

from markupsafe import Markup


def interval(score: Mapping[str, float]) -> Markup:
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
        label="{value:.3f}, interval {low:.3f} to {high:.3f}, chance {chance:.3f}".format(**score),
        chance=x(score["chance"]),
        low=x(score["low"]),
        high=x(score["high"]),
        value=x(score["value"]),
    )
