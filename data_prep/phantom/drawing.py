"""Drawing helpers shared by all phantoms: frames, soft shapes, smooth noise, finishing.

Intensity images are float32 arrays of shape [H, W] with 0 black and 1 white; colour images are
float32 [H, W, 3]. Shapes are drawn in the unit coordinates of a `Frame`, so that an anatomy is
written down once and every figure shows it at another size, position and angle.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Array = NDArray[np.floating[Any]]
Point = tuple[float, float]
Box = tuple[float, float, float, float]
Lines = Sequence[Sequence[Point]]
Ink = int | tuple[int, int, int]


@dataclass
class Facts:
    """What a figure (or panel) shows: drawn by `subjects`, told by `captions`, kept as truth."""

    kind: str
    """Subject, the key of `subjects.SUBJECTS`, e.g. "head CT"."""
    modality: str
    """Closed set: radiograph, CT, MRI, histology, fluorescence microscopy, ..."""
    organ: str
    """Organ or specimen; empty for plots."""
    finding: str
    """Closed set for each kind."""
    side: str = ""
    """The patient's "left" or "right", empty where the finding has none."""
    count: int | None = None
    """How many of the counted things there are, None where nothing is counted."""
    detail: dict[str, str] = field(default_factory=dict)
    """Further attributes that are visible in the image: stain, sequence, location, groups ..."""


@dataclass
class Drawing:
    """A picture with what was marked in it, so that the caption can refer to the marks."""

    image: Image.Image
    boxes: list[tuple[str, Box]] = field(default_factory=list)
    """Findings in pixels: label and (left, top, right, bottom)."""
    marks: set[str] = field(default_factory=set)
    """Which of "arrow", "scale bar" and "letter" were drawn."""

    def add_scale_bar(self, rng: np.random.Generator, fill: Ink) -> None:
        """A bar in the lower right corner, as microscopes write it."""
        width, height = self.image.size
        length, thick = round(width * rng.uniform(0.14, 0.22)), max(3, height // 90)
        right, bottom = width - width // 25, height - height // 25
        pen = ImageDraw.Draw(self.image)
        pen.rectangle((right - length, bottom - thick, right, bottom), fill=fill)
        self.marks.add("scale bar")

    def add_arrow(self, rng: np.random.Generator, fill: Ink) -> None:
        """An arrow from a random direction to the first finding, kept inside the image."""
        left, top, right, bottom = self.boxes[0][1]
        width, height = self.image.size
        x, y = (left + right) / 2, (top + bottom) / 2
        length = 0.1 * width
        for angle in rng.uniform(0, 2 * math.pi, 8):
            dx, dy = math.cos(angle), math.sin(angle)
            # From the centre to the edge of the box's ellipse.
            reach = 3 + 0.5 / math.hypot(dx / (right - left), dy / (bottom - top))
            tail = (x + dx * (reach + length), y + dy * (reach + length))
            if 0 < tail[0] < width and 0 < tail[1] < height:
                _arrow(self.image, (x + dx * reach, y + dy * reach), tail, fill)
                self.marks.add("arrow")
                return

    def add_letter(self, at: Point, text: str, size: int, fill: Ink) -> None:
        """A side marker with its top left corner at `at`."""
        write(self.image, at, text, size, fill)
        self.marks.add("letter")


class Frame:
    """Unit coordinates (-1..1 over both sides, y down) of an image with a small random placement.

    Anatomy is smooth, so it is drawn at no more than `WORKING` pixels and enlarged by `finish`,
    which adds the grain at full size: half the time, and the same look.

    Attributes:
        size: width and height of the finished image.
        width, height, shape: of the arrays one works on.
        x, y: float32 [H, W], the unit coordinates of every pixel.
        unit: working pixels per unit, mean of both directions.
    """

    WORKING = 280

    def __init__(
        self,
        rng: np.random.Generator,
        size: tuple[int, int],
        shift: float = 0.03,
        turn: float = 0.04,
        zoom: float = 0.05,
    ) -> None:
        self.size = size
        self._scale = max(1.0, max(size) / self.WORKING)
        self.width, self.height = round(size[0] / self._scale), round(size[1] / self._scale)
        self.shape = (self.height, self.width)
        self.unit = (self.width + self.height) / 4
        angle = rng.uniform(-turn, turn)
        scale = 1 + rng.uniform(-zoom, zoom)
        rotation = np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        self._matrix: list[list[float]] = (scale * rotation).tolist()
        self._offset: list[float] = rng.uniform(-shift, shift, 2).tolist()
        u = (np.arange(self.width, dtype=np.float32) + 0.5) / self.width * 2 - 1
        v = (np.arange(self.height, dtype=np.float32) + 0.5) / self.height * 2 - 1
        inverse = np.linalg.inv(self._matrix).astype(np.float32)
        du = (u - np.float32(self._offset[0]))[None, :]
        dv = (v - np.float32(self._offset[1]))[:, None]
        self.x: Array = inverse[0, 0] * du + inverse[0, 1] * dv
        self.y: Array = inverse[1, 0] * du + inverse[1, 1] * dv

    def bend(self, rng: np.random.Generator, amount: float, cell: float) -> None:
        """Deform the grid with smooth noise (`amount`, `cell` in units): no organ is an ellipse."""
        self.x = self.x + np.float32(amount) * self.noise(rng, cell, 1)
        self.y = self.y + np.float32(amount) * self.noise(rng, cell, 1)

    def noise(self, rng: np.random.Generator, cell: float, octaves: int = 2) -> Array:
        """Smooth noise of unit variance with blobs of `cell` units."""
        return noise(rng, self.shape, cell * self.unit, octaves)

    def pixels(self, points: Sequence[Point]) -> list[Point]:
        """Working pixel coordinates of points in units."""
        (a, b), (c, d) = self._matrix
        left, top = self._offset[0] + 1, self._offset[1] + 1
        w, h = self.width / 2, self.height / 2
        return [((a * x + b * y + left) * w, (c * x + d * y + top) * h) for x, y in points]

    def place(self, point: Point) -> Point:
        """Pixel coordinates of a point in the finished image."""
        x, y = self.pixels([point])[0]
        return x * self._scale, y * self._scale

    def blob(self, center: Point, radii: Point, angle: float = 0.0, soft: float = 0.15) -> Array:
        """Soft ellipse: 1 within, 0 outside, an edge of `soft` radii between."""
        dx, dy = self.x - np.float32(center[0]), self.y - np.float32(center[1])
        cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        a = (dx * cos + dy * sin) / np.float32(radii[0])
        b = (dy * cos - dx * sin) / np.float32(radii[1])
        return edge(1 - np.sqrt(a * a + b * b), soft)

    def region(self, points: Sequence[Point], blur: float = 0.01) -> Array:
        """Soft polygon over a closed smooth curve through `points`; `blur` in units."""
        return self.polygon(spline(points, closed=True), blur)

    def polygon(self, points: Sequence[Point], blur: float = 0.01) -> Array:
        """Soft polygon with straight edges."""
        return self.polygons([points], blur)

    def polygons(self, shapes: Lines, blur: float = 0.01) -> Array:
        """The union of several polygons."""
        layer = Image.new("L", (self.width, self.height))
        pen = ImageDraw.Draw(layer)
        for points in shapes:
            pen.polygon(self.pixels(points), fill=255)
        return to_array(layer, blur * self.unit)

    def strokes(self, layers: Sequence[tuple[Lines, float, float]], blur: float = 0.004) -> Array:
        """Polylines, blurred together: (lines, width in units, level from 0 to 1) for each layer.

        Where strokes cross, the later one covers the earlier.
        """
        image = Image.new("L", (self.width, self.height))
        draw = ImageDraw.Draw(image)
        for lines, width, level in layers:
            for line in lines:
                pixels = max(1, round(width * self.unit))
                draw.line(self.pixels(line), fill=round(255 * level), width=pixels)
        return to_array(image, blur * self.unit)

    def soften(self, mask: Array, blur: float) -> Array:
        """A mask blurred by `blur` units."""
        layer = Image.fromarray((np.clip(mask, 0, 1) * 255).astype(np.uint8))
        return to_array(layer, blur * self.unit)

    def box(self, mask: Array) -> Box:
        """Bounding box, in the finished image, of the part of a mask above one half."""
        inside = mask > 0.5
        columns, rows = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
        if not len(columns):
            raise ValueError("the mask is empty: the finding lies outside the image")
        left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return tuple(float(v * self._scale) for v in (left, top, right, bottom))  # type: ignore[return-value]

    def finish(self, image: Array, rng: np.random.Generator, noise_level: float) -> Image.Image:
        """8-bit grey image at full size with detector noise of `noise_level` (share of white)."""
        full = image
        if self._scale > 1:
            enlarged = Image.fromarray(image.astype(np.float32)).resize(
                self.size, Image.Resampling.BICUBIC
            )
            full = np.asarray(enlarged, dtype=np.float32)
        return grey_image(full + np.float32(noise_level) * grain(rng, full.shape[:2]))


def edge(distance: Array, soft: float) -> Array:
    """Smooth step over a signed distance: 0 below -soft/2, 1 above soft/2."""
    t = np.clip(distance / np.float32(soft) + np.float32(0.5), 0, 1)
    step: Array = t * t * (3 - 2 * t)
    return step


def mix(base: Array, value: "float | Array", mask: Array) -> Array:
    """`base` where the mask is 0, `value` where it is 1."""
    return base + (value - base) * mask


def to_array(layer: Image.Image, blur: float = 0.0) -> Array:
    """An 8-bit layer as float32 0..1, blurred by `blur` pixels (standard deviation)."""
    if blur > 4:
        layer = layer.filter(ImageFilter.GaussianBlur(blur))
    elif blur > 0.4:
        # A box of the same deviation is three times as fast, and as good for the edge of a mask.
        layer = layer.filter(ImageFilter.BoxBlur(max(0.2, 1.73 * blur - 0.5)))
    return np.asarray(layer, dtype=np.float32) / np.float32(255)


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 2) -> Array:
    """Smooth noise [H, W], zero mean and about unit variance, with blobs of `cell` pixels."""
    height, width = shape
    total: Array = np.zeros(shape, np.float32)
    power = 0.0
    for octave in range(octaves):
        step = max(cell / 2**octave, 1.5)
        rows, columns = math.ceil(height / step) + 2, math.ceil(width / step) + 2
        coarse = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
        box = (0.5, 0.5, 0.5 + width / step, 0.5 + height / step)
        fine = coarse.resize((width, height), Image.Resampling.BICUBIC, box=box)
        total += np.asarray(fine, dtype=np.float32) * np.float32(0.5**octave)
        power += 0.25**octave
    return total / np.float32(0.72 * math.sqrt(power))


def grain(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """White noise [H, W] of unit variance: detector noise.

    It is uniform, not normal: three times as fast, and no eye tells them apart.
    """
    return (rng.random(shape, dtype=np.float32) - np.float32(0.5)) * np.float32(math.sqrt(12))


def spline(points: Sequence[Point], closed: bool = False, steps: int = 8) -> list[Point]:
    """Catmull-Rom curve through the points, as a polyline."""
    control = np.asarray(points, dtype=np.float64)
    if closed:
        control = np.concatenate([control[-1:], control, control[:2]])
    else:
        control = np.concatenate(
            [2 * control[:1] - control[1:2], control, 2 * control[-1:] - control[-2:-1]]
        )
    p0, p1, p2, p3 = (control[i : len(control) - 3 + i, None] for i in range(4))
    t = (np.arange(steps) / steps)[None, :, None]
    curve = 0.5 * (
        2 * p1
        + (p2 - p0) * t
        + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
        + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    flat = curve.reshape(-1, 2)
    if not closed:
        flat = np.concatenate([flat, control[-2:-1]])
    return [(float(a), float(b)) for a, b in flat]


def oval(
    rng: np.random.Generator,
    center: Point,
    radii: Point,
    angle: float = 0.0,
    rough: float = 0.06,
    points: int = 14,
) -> list[Point]:
    """Outline of an irregular ellipse, each radius varied by `rough` (a share)."""
    turns = np.arange(points) * (2 * math.pi / points)
    factor = 1 + rough * rng.standard_normal(points)
    a, b = radii[0] * factor * np.cos(turns), radii[1] * factor * np.sin(turns)
    cos, sin = math.cos(angle), math.sin(angle)
    xs, ys = center[0] + a * cos - b * sin, center[1] + a * sin + b * cos
    return [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]


def outline_box(points: Sequence[Point], size: tuple[int, int]) -> Box:
    """Bounding box of an outline in pixels, cut to the image."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    left, top = max(0.0, min(xs)), max(0.0, min(ys))
    return left, top, min(float(size[0]), max(xs)), min(float(size[1]), max(ys))


def scatter(
    rng: np.random.Generator, area: Box, distance: float, limit: int = 10_000
) -> list[Point]:
    """Random points of a box in random order, about `distance` apart: a jittered honeycomb."""
    left, top, right, bottom = area
    points: list[Point] = []
    rows = max(1, round((bottom - top) / (distance * 0.87)))
    columns = max(1, round((right - left) / distance))
    for row in range(rows):
        for column in range(columns):
            jitter = rng.uniform(-0.22, 0.22, 2)
            points.append(
                (
                    left + (column + 0.25 + 0.5 * (row % 2) + jitter[0]) / columns * (right - left),
                    top + (row + 0.5 + jitter[1]) / rows * (bottom - top),
                )
            )
    order = rng.permutation(len(points))[:limit]
    return [points[i] for i in order]


def spread(rng: np.random.Generator, area: Box, count: int, tries: int = 24) -> list[Point]:
    """`count` points of a box, each the loneliest of `tries`, so that things hardly overlap."""
    candidates = rng.uniform(area[:2], area[2:], (count, tries, 2))
    chosen = candidates[0, :1]
    for options in candidates[1:]:
        gaps = ((options[:, None] - chosen[None]) ** 2).sum(axis=2).min(axis=1)
        chosen = np.concatenate([chosen, options[gaps.argmax()][None]])
    return [(float(x), float(y)) for x, y in chosen]


@cache
def font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    """Pillow's own font, so that figures do not depend on the machine's fonts."""
    return ImageFont.load_default(size)


def grey_image(intensity: Array) -> Image.Image:
    """8-bit image of an intensity array."""
    scaled = intensity * np.float32(255) + np.float32(0.5)
    return Image.fromarray(np.clip(scaled, 0, 255, out=scaled).astype(np.uint8))


def vignette(shape: tuple[int, int], strength: float) -> Array:
    """Factor [H, W] that falls to 1 - strength in the corners."""
    v = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    u = np.linspace(-1, 1, shape[1], dtype=np.float32)[None, :]
    return 1 - np.float32(strength / 2) * (u * u + v * v)


def write(image: Image.Image, at: Point, text: str, size: int, fill: Ink) -> None:
    """Text with its top left corner at `at`."""
    ImageDraw.Draw(image).text(at, text, fill=fill, font=font(size))


def _arrow(image: Image.Image, tip: Point, tail: Point, fill: Ink) -> None:
    """A straight arrow with a filled head; both ends in pixels."""
    draw = ImageDraw.Draw(image)
    width = max(2, image.width // 150)
    angle = math.atan2(tip[1] - tail[1], tip[0] - tail[0])
    head = 4.5 * width
    wings = [
        (tip[0] - head * math.cos(angle + s), tip[1] - head * math.sin(angle + s))
        for s in (-0.45, 0.45)
    ]
    base = (tip[0] - 0.8 * head * math.cos(angle), tip[1] - 0.8 * head * math.sin(angle))
    draw.line([tail, base], fill=fill, width=width)
    draw.polygon([tip, *wings], fill=fill)
