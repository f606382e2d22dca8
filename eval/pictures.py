"""Images of the report: thumbnails, and maps over them; small, and inside the page."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from eval.suite import TaskRun
from vlp.data.image import open_rgb

THUMBNAIL = 224  # pixels of the longer side
MAX_BOXES = 200
"""That are drawn of one phrase."""
RAMP = np.array(
    [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float64
)
"""Colours from the lowest to the highest cosine; those of the demo page."""


def thumbnail(done: TaskRun, index: int | None) -> str:
    """A data: URI of a small JPEG; '' for a query without image or a task that shows none."""
    if index is None or not done.task.show_images:
        return ""
    image = open_rgb(done.dataset.images.read(index))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return _uri("jpeg", buffer)


def placed(source: str, place: Mapping[str, Any]) -> list[Markup]:
    """Two drawings of a phrase's place: its boxes on the image, and with the map between them.

    Args:
        source: of `thumbnail`; '' leaves the image out.
        place: an eval.tasks.Place of the results.
    """
    plain = _drawing(source, place, "")
    return [plain, _drawing(source, place, heat(place["map"]))]


def heat(rows: list[list[float]]) -> str:
    """A data: URI of a map [h][w] as colours, a pixel for each patch; the low ones let more of what
    is below shine through."""
    values = np.array(rows)
    low, high = values.min(), values.max()
    shares = (values - low) / (high - low) if high > low else np.zeros_like(values)
    steps = np.linspace(0, 1, len(RAMP))
    colours = [np.interp(shares, steps, channel) for channel in RAMP.T]
    pixels = np.stack([*colours, 60 + 130 * shares], axis=-1).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return _uri("png", buffer)


def _drawing(source: str, place: Mapping[str, Any], overlay: str) -> Markup:
    width, height = place["size"]
    parts = [Markup('<svg class="place" viewBox="0 0 {} {}">').format(width, height)]
    if source:
        parts.append(_image(source, (0, 0, width, height), smooth=True))
    if overlay:
        parts.append(_image(overlay, place["seen"], smooth=place["smooth"]))
        left, top, right, bottom = place["seen"]
        if left > 1 or top > 1 or right < width - 1 or bottom < height - 1:  # a crop
            parts.append(_rectangle("seen", place["seen"]))
    for box in place["boxes"][:MAX_BOXES]:
        left, top, right, bottom = box
        inside = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
        parts += [_rectangle("halo", inside), _rectangle("box", inside)]
    return Markup("").join([*parts, Markup("</svg>")])


def _image(source: str, corners: tuple[float, ...], smooth: bool) -> Markup:
    left, top, right, bottom = corners
    return Markup(
        '<image href="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"'
        ' preserveAspectRatio="none"{}/>'
    ).format(
        *(source, left, top, right - left, bottom - top),
        "" if smooth else Markup(' class="patches"'),
    )


def _rectangle(style: str, corners: tuple[float, ...]) -> Markup:
    left, top, right, bottom = corners
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        style, left, top, max(right - left, 0), max(bottom - top, 0)
    )


def _uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
