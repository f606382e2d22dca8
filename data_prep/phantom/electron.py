"""Electron micrographs: thin sections, negative stains and surfaces, all grey."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from data_prep.phantom.drawing import (
    Array,
    Box,
    Drawing,
    Facts,
    Point,
    edge,
    grain,
    grey_image,
    noise,
    outline_box,
    oval,
    spline,
    spread,
    to_array,
    vignette,
    write,
)

Boxes = list[tuple[str, Box]]

# Specimen, finding, technique and the range of counts (None: nothing is counted).
FINDINGS: dict[str, tuple[str, str, tuple[int, int] | None]] = {
    "normal mitochondria": ("mitochondria", "transmission", (2, 7)),
    "swollen mitochondria": ("mitochondria", "transmission", (2, 7)),
    "synaptic vesicles": ("synapse", "transmission", None),
    "rough endoplasmic reticulum": ("endoplasmic reticulum", "transmission", None),
    "virus particles": ("virus", "transmission", (3, 20)),
    "rod-shaped bacteria": ("bacteria", "scanning", (4, 16)),
    "cocci": ("bacteria", "scanning", (6, 26)),
}


def sample(rng: np.random.Generator) -> Facts:
    finding = str(rng.choice(list(FINDINGS)))
    organ, technique, counts = FINDINGS[finding]
    count = None if counts is None else int(rng.integers(*counts))
    return Facts(
        "electron micrograph",
        "electron microscopy",
        organ,
        finding,
        count=count,
        detail={"technique": technique},
    )


def draw(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> Drawing:
    image, boxes = SCENES[facts.finding](facts, rng, size)
    shape = (size[1], size[0])
    image = image * vignette(shape, rng.uniform(0.05, 0.2)) * rng.uniform(0.92, 1.08)
    picture = grey_image(image + np.float32(rng.uniform(0.025, 0.05)) * grain(rng, shape))
    drawing = Drawing(picture, boxes)
    if rng.random() < 0.75:
        light = facts.detail["technique"] == "scanning" or rng.random() < 0.5
        drawing.add_scale_bar(rng, 250 if light else 10)
        if facts.detail["technique"] == "scanning" and rng.random() < 0.6:
            text = f"SEI {rng.integers(3, 16)}.0kV  x{rng.integers(4, 40) * 500:,}"
            write(picture, (6, size[1] - 20), text, max(11, size[1] // 32), 245)
    if boxes and rng.random() < 0.25:
        drawing.add_arrow(rng, 250)
    return drawing


def _cytoplasm(rng: np.random.Generator, size: tuple[int, int], level: float = 0.62) -> Array:
    """Granular ground substance with ribosome-like dots."""
    shape = (size[1], size[0])
    base = level + 0.05 * noise(rng, shape, 0.25 * size[1], 2) + 0.05 * noise(rng, shape, 4.5, 1)
    dots = np.clip(noise(rng, shape, 5.0, 1) - 1.3, 0, 1)
    image: Array = base - 0.25 * dots
    return image


def _apply(image: Array, dark: Image.Image, amount: float, blur: float) -> Array:
    """Osmium stain: what was drawn makes the section darker."""
    return image - np.float32(amount) * to_array(dark, blur)


def _mitochondria(
    facts: Facts, rng: np.random.Generator, size: tuple[int, int]
) -> tuple[Array, Boxes]:
    """Double membranes with cristae; swollen ones are round and pale with few stubs left."""
    image, boxes = _cytoplasm(rng, size, 0.68), []
    swollen = facts.finding == "swollen mitochondria"
    count = facts.count or 1
    matrix, dark = Image.new("L", size), Image.new("L", size)
    fill, pen = ImageDraw.Draw(matrix), ImageDraw.Draw(dark)
    reach = min(0.20, 0.40 / math.sqrt(count)) * math.sqrt(size[0] * size[1])
    thick = max(3, round(0.045 * reach))
    for center in spread(
        rng, (0.8 * reach, 0.8 * reach, size[0] - 0.8 * reach, size[1] - 0.8 * reach), count
    ):
        angle = rng.uniform(0, math.pi)
        radii = (0.62 * reach, 0.55 * reach) if swollen else (0.80 * reach, 0.38 * reach)
        outline = spline(oval(rng, center, radii, angle, 0.025, 9), closed=True, steps=8)
        inner = [
            (center[0] + 0.88 * (x - center[0]), center[1] + 0.88 * (y - center[1]))
            for x, y in outline
        ]
        fill.polygon(outline, fill=60 if swollen else 210)
        pen.polygon(outline, fill=0)
        for ring in (outline, inner):
            pen.line([*ring, ring[0]], fill=255, width=thick)
        _cristae(pen, rng, center, radii, angle, thick, swollen)
        boxes.append((facts.finding, outline_box(outline, size)))
    image = image + (0.16 if swollen else -0.16) * edge(to_array(matrix, 1.0) - 0.1, 0.1)
    return _apply(image, dark, 0.42, 0.8), boxes


def _cristae(
    pen: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    center: Point,
    radii: Point,
    angle: float,
    thick: int,
    swollen: bool,
) -> None:
    """Folds of the inner membrane, across the long axis."""
    cos, sin = math.cos(angle), math.sin(angle)
    places = np.linspace(-0.72, 0.72, 5 if swollen else 10)
    for index, along in enumerate(places + rng.normal(0, 0.02, len(places))):
        half = 0.88 * radii[1] * math.sqrt(max(0.0, 1 - along**2))
        start = half * (1 if index % 2 else -1)
        length = rng.uniform(0.25, 0.45) if swollen else rng.uniform(1.4, 1.75)
        stop = start - math.copysign(half * length, start)
        line = []
        for share in (0.0, 0.5, 1.0):
            x = along * radii[0] + rng.normal(0, 0.02) * radii[0]
            y = start + share * (stop - start)
            line.append((center[0] + x * cos - y * sin, center[1] + x * sin + y * cos))
        pen.line(spline(line, steps=4), fill=225, width=thick)


def _synapse(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> tuple[Array, Boxes]:
    """A bouton full of vesicles, pressed on a dendrite with a dark postsynaptic density."""
    width, height = size
    scale = min(size)
    image = _cytoplasm(rng, size, 0.60)
    lumen, dark = Image.new("L", size), Image.new("L", size)
    fill, pen = ImageDraw.Draw(lumen), ImageDraw.Draw(dark)
    thick = max(2, round(0.009 * scale))
    center = (width * rng.uniform(0.42, 0.58), height * rng.uniform(0.36, 0.46))
    radii = (0.36 * width, 0.30 * height)
    bouton = spline(oval(rng, center, radii, rng.normal(0, 0.1), 0.05), closed=True, steps=6)
    fill.polygon(bouton, fill=110)
    cleft = center[1] + 0.97 * radii[1]
    post = [
        (center[0] + t * 0.30 * width, cleft + 0.035 * scale - 0.10 * height * t * t)
        for t in np.linspace(-1, 1, 9)
    ]
    spine = [
        *post,
        (center[0] + 0.25 * width, height * 1.1),
        (center[0] - 0.25 * width, height * 1.1),
    ]
    pen.line([*bouton, bouton[0]], fill=215, width=thick)
    pen.line([*spine, spine[0]], fill=215, width=thick)
    density = [(x, y + 0.016 * scale) for x, y in post[2:-2]]
    pen.line(density, fill=255, width=max(5, round(0.045 * scale)))
    radius = 0.020 * scale
    for x, y in spread(
        rng,
        (
            center[0] - 0.75 * radii[0],
            center[1] - 0.7 * radii[1],
            center[0] + 0.75 * radii[0],
            center[1] + 0.85 * radii[1],
        ),
        int(rng.integers(60, 110)),
        6,
    ):
        if ((x - center[0]) / (0.86 * radii[0])) ** 2 + (
            (y - center[1]) / (0.86 * radii[1])
        ) ** 2 > 1:
            continue
        box = (x - radius, y - radius, x + radius, y + radius)
        fill.ellipse(box, fill=235)
        pen.ellipse(box, outline=230, width=thick)
    image = image + 0.25 * to_array(lumen, 0.8)
    return _apply(image, dark, 0.5, 0.7), [(facts.finding, outline_box(bouton, size))]


def _reticulum(
    facts: Facts, rng: np.random.Generator, size: tuple[int, int]
) -> tuple[Array, Boxes]:
    """Stacked, wavy cisternae studded with ribosomes."""
    width, height = size
    scale = min(size)
    image = _cytoplasm(rng, size, 0.60)
    lumen, dark = Image.new("L", size), Image.new("L", size)
    fill, pen = ImageDraw.Draw(lumen), ImageDraw.Draw(dark)
    gap, thick = scale * rng.uniform(0.065, 0.085), max(2, round(0.007 * scale))
    angle, phase, dot = rng.uniform(-0.6, 0.6), rng.uniform(0, 6), max(1.5, 0.0085 * scale)
    t = np.linspace(-0.9, 0.9, 60)
    for level in np.arange(-0.75 * height, 0.75 * height, gap):
        bend = 0.05 * scale * np.sin(4 * t + phase + level / (0.35 * scale)) + rng.normal(
            0, 0.04 * gap
        )
        x0, y0 = t * 0.8 * width, level + bend
        x = width / 2 + x0 * math.cos(angle) - y0 * math.sin(angle)
        y = height / 2 + x0 * math.sin(angle) + y0 * math.cos(angle)
        line = [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
        fill.line(line, fill=255, width=round(0.42 * gap))
        for offset in (-0.21, 0.21):
            edge_line = [
                (a - math.sin(angle) * offset * gap, b + math.cos(angle) * offset * gap)
                for a, b in line
            ]
            pen.line(edge_line, fill=190, width=thick)
            for a, b in edge_line:
                if rng.random() < 0.8:
                    px = a - math.sin(angle) * 0.45 * offset * gap
                    py = b + math.cos(angle) * 0.45 * offset * gap
                    pen.ellipse((px - dot, py - dot, px + dot, py + dot), fill=255)
    image = image + 0.13 * to_array(lumen, 1.2)
    return _apply(image, dark, 0.38, 0.8), [
        (facts.finding, (0.0, 0.0, float(width), float(height)))
    ]


def _virus(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> tuple[Array, Boxes]:
    """Negative stain: bright particles with a crown of spikes on a dark, uneven ground."""
    count, shape = facts.count or 1, (size[1], size[0])
    radius = min(0.11, 0.26 / math.sqrt(count)) * min(size)
    image = 0.30 + 0.05 * noise(rng, shape, 0.3 * size[1], 2) + 0.05 * noise(rng, shape, 4.0, 1)
    light, core = Image.new("L", size), Image.new("L", size)
    pen, dark = ImageDraw.Draw(light), ImageDraw.Draw(core)
    boxes: Boxes = []
    for x, y in spread(
        rng, (1.6 * radius, 1.6 * radius, size[0] - 1.6 * radius, size[1] - 1.6 * radius), count
    ):
        for turn in np.arange(0, 2 * math.pi, 0.30) + rng.uniform(0, 0.3):
            tip, knob = 1.42 * radius, 0.11 * radius
            a, b = x + tip * math.cos(turn), y + tip * math.sin(turn)
            pen.line([(x, y), (a, b)], fill=165, width=max(1, round(0.06 * radius)))
            pen.ellipse((a - knob, b - knob, a + knob, b + knob), fill=220)
        body = spline(oval(rng, (x, y), (radius, radius), 0, 0.03), closed=True, steps=4)
        pen.polygon(body, fill=235)
        inner = [(x + 0.68 * (a - x), y + 0.68 * (b - y)) for a, b in body]
        dark.polygon(inner, fill=150)
        boxes.append(
            (
                facts.finding,
                outline_box(
                    [(x - 1.5 * radius, y - 1.5 * radius), (x + 1.5 * radius, y + 1.5 * radius)],
                    size,
                ),
            )
        )
    image = image + 0.58 * to_array(light, 0.05 * radius) - 0.30 * to_array(core, 0.12 * radius)
    return image, boxes


def _bacteria(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> tuple[Array, Boxes]:
    """Scanning micrograph: rounded bodies, lit from the upper left, with bright rims."""
    count, (width, height) = facts.count or 1, size
    rods = facts.finding == "rod-shaped bacteria"
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    ground = 0.05 * noise(rng, (height, width), 0.20 * height, 3)
    image: Array = 0.20 + ground
    radius = (0.16 if rods else 0.25) / math.sqrt(count) * math.sqrt(width * height)
    radius = min(radius, (0.06 if rods else 0.11) * min(size))
    length = 2.3 * radius if rods else 0.0
    margin = radius + 0.6 * length
    boxes: Boxes = []
    for center in spread(rng, (margin, margin, width - margin, height - margin), count):
        angle = rng.uniform(0, math.pi)
        ux, uy = math.cos(angle), math.sin(angle)
        reach = radius + length + 2
        left, top = max(0, int(center[0] - reach)), max(0, int(center[1] - reach))
        window = np.s_[top : int(center[1] + reach) + 1, left : int(center[0] + reach) + 1]
        dx, dy = x[window] - center[0], y[window] - center[1]
        # Distance to the axis segment: a capsule, or a sphere when its length is zero.
        along = np.clip(dx * ux + dy * uy, -length, length)
        ex, ey = dx - along * ux, dy - along * uy
        share = (ex * ex + ey * ey) / np.float32(radius**2)
        depth = np.sqrt(np.clip(1 - share, 0, 1))
        lit = (-0.5 * ex - 0.6 * ey) / np.float32(radius) + 0.62 * depth
        body = 0.36 + 0.30 * lit + 0.34 * np.clip(1 - depth, 0, 1) ** 2
        mask = np.clip((1 - np.sqrt(share)) * radius + 0.5, 0, 1)
        shadow = np.clip(1.35 - np.sqrt(share), 0, 0.35) / 0.35 * (1 - mask)
        image[window] = image[window] * (1 - 0.55 * shadow) * (1 - mask) + body * mask
        extent = radius + length * abs(ux), radius + length * abs(uy)
        corners = [
            (center[0] - extent[0], center[1] - extent[1]),
            (center[0] + extent[0], center[1] + extent[1]),
        ]
        boxes.append((facts.finding, outline_box(corners, size)))
    return image + 0.03 * noise(rng, (height, width), 5.0, 1), boxes


SCENES: dict[str, Callable[[Facts, np.random.Generator, tuple[int, int]], tuple[Array, Boxes]]] = {
    "normal mitochondria": _mitochondria,
    "swollen mitochondria": _mitochondria,
    "synaptic vesicles": _synapse,
    "rough endoplasmic reticulum": _reticulum,
    "virus particles": _virus,
    "rod-shaped bacteria": _bacteria,
    "cocci": _bacteria,
}
