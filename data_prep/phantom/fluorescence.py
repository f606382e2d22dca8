"""Fluorescence micrographs of cultured cells: nuclei, actin and mitochondria in false colours."""

import math

import numpy as np
from PIL import Image, ImageDraw

from data_prep.phantom.drawing import (
    Array,
    Box,
    Drawing,
    Facts,
    Point,
    grain,
    grey_image,
    noise,
    oval,
    spline,
    spread,
    to_array,
    vignette,
)

FINDINGS = ("interphase", "mitosis", "apoptosis")
STAINS = ("nuclei", "actin", "mitochondria")
CELLS = {"few": (2, 6), "several": (7, 13), "many": (22, 40)}

# False colours of the second channel; nuclei are always blue.
COLOURS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "nuclei": ((0.0, 0.0, 0.0),),
    "actin": ((0.95, 0.12, 0.10),),
    "mitochondria": ((0.15, 0.95, 0.20),),
}
NUCLEI_COLOUR = (0.25, 0.42, 1.0)


def sample(rng: np.random.Generator) -> Facts:
    finding = str(rng.choice(FINDINGS))
    stain = str(rng.choice(STAINS))
    # A dividing or dying cell is seen only where cells are large.
    amount = str(rng.choice(list(CELLS) if finding == "interphase" else ["few", "several"]))
    count = int(rng.integers(*CELLS[amount]))
    return Facts(
        "fluorescence micrograph",
        "fluorescence microscopy",
        "cultured cells",
        finding,
        count=count,
        detail={"stain": stain, "amount": amount},
    )


class Layers:
    """Two 8-bit channels that cells are drawn into, in pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.nuclei = Image.new("L", size)
        self.stain = Image.new("L", size)
        self.nuclei_pen = ImageDraw.Draw(self.nuclei)
        self.stain_pen = ImageDraw.Draw(self.stain)


def draw(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> Drawing:
    width, height = size
    layers, boxes = Layers(size), []
    count = facts.count or 1
    distance = math.sqrt(width * height / (count * 0.87)) * 0.93
    radius = min(0.42 * distance, 0.20 * min(size))
    margin = 0.55 * radius
    centers = spread(rng, (margin, margin, width - margin, height - margin), count)
    special = 1 if facts.finding != "interphase" else 0
    for index, center in enumerate(centers):
        angle = rng.uniform(0, math.pi)
        dividing = index < special
        _stain(
            facts.detail["stain"], layers, rng, center, radius * (0.75 if dividing else 1), angle
        )
        if not dividing:
            _nucleus(layers, rng, center, 0.42 * radius, angle)
            continue
        box = {"mitosis": _mitosis, "apoptosis": _apoptosis}[facts.finding](
            layers, rng, center, 0.55 * radius, angle
        )
        boxes.append((facts.finding, box))
    drawing = Drawing(_expose(facts, layers, rng, radius), boxes)
    if rng.random() < 0.7:
        drawing.add_scale_bar(rng, (255, 255, 255))
    if boxes and rng.random() < 0.35:
        drawing.add_arrow(rng, (255, 255, 255))
    return drawing


def _expose(facts: Facts, layers: Layers, rng: np.random.Generator, radius: float) -> Image.Image:
    """False colours, out-of-focus light and shot noise."""
    width, height = layers.nuclei.size
    shape = (height, width)
    sharp = max(0.6, 0.02 * radius)
    nuclei = to_array(layers.nuclei, sharp + 0.4)
    chromatin = 1 + 0.16 * noise(rng, shape, max(3.0, 0.16 * radius), 2)
    nuclei = nuclei * np.clip(chromatin, 0.4, 1.6)
    small = layers.nuclei.resize((width // 4, height // 4))
    haze = to_array(small, 0.12 * radius)
    glow = np.asarray(Image.fromarray(haze).resize((width, height)), dtype=np.float32)
    stain = to_array(layers.stain, sharp)
    channels = [(nuclei + 0.20 * glow, NUCLEI_COLOUR)]
    for tint in COLOURS[facts.detail["stain"]]:
        channels.append((stain * rng.uniform(0.8, 1.05), tint))
    grey = facts.detail["stain"] == "nuclei" and rng.random() < 0.2
    light, noisy = vignette(shape, 0.25), np.float32(rng.uniform(0.03, 0.07)) * grain(rng, shape)
    planes = []
    for index in range(3):
        plane: Array = np.full(shape, 0.015, np.float32)
        for signal, tint in channels:
            plane += signal * np.float32(0.9 if grey else tint[index]) * light
        # Photon noise grows with the root of the signal.
        plane += np.sqrt(plane) * noisy
        planes.append(grey_image(plane))
    return Image.merge("RGB", planes)


def _nucleus(
    layers: Layers, rng: np.random.Generator, center: Point, radius: float, angle: float
) -> None:
    radii = (radius * rng.uniform(1.0, 1.25), radius * rng.uniform(0.75, 0.95))
    outline = spline(oval(rng, center, radii, angle, 0.03), closed=True, steps=4)
    level = int(rng.integers(105, 155))
    layers.nuclei_pen.polygon(outline, fill=level)
    for _ in range(int(rng.integers(2, 4))):
        x, y = center[0] + rng.normal(0, 0.3) * radius, center[1] + rng.normal(0, 0.3) * radius
        r = 0.16 * radius
        layers.nuclei_pen.ellipse((x - r, y - r, x + r, y + r), fill=int(0.45 * level))


def _mitosis(
    layers: Layers, rng: np.random.Generator, center: Point, radius: float, angle: float
) -> Box:
    """Metaphase (one bright plate) or anaphase (two parallel plates)."""
    cos, sin = math.cos(angle), math.sin(angle)
    anaphase = rng.random() < 0.5
    for offset in (-0.55, 0.55) if anaphase else (0.0,):
        at = (center[0] + offset * radius * cos, center[1] + offset * radius * sin)
        plate = oval(rng, at, (0.26 * radius, 1.05 * radius), angle, 0.10, 18)
        layers.nuclei_pen.polygon(plate, fill=255)
    reach = 1.3 * radius
    return center[0] - reach, center[1] - reach, center[0] + reach, center[1] + reach


def _apoptosis(
    layers: Layers, rng: np.random.Generator, center: Point, radius: float, angle: float
) -> Box:
    """A nucleus that has broken into bright round fragments."""
    for turn in np.linspace(0, 2 * math.pi, 8)[:-1] + angle:
        away, r = rng.uniform(0.45, 1.05) * radius, rng.uniform(0.18, 0.36) * radius
        x, y = center[0] + away * math.cos(turn), center[1] + away * math.sin(turn)
        layers.nuclei_pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    reach = 1.3 * radius
    return center[0] - reach, center[1] - reach, center[0] + reach, center[1] + reach


def _stain(
    name: str, layers: Layers, rng: np.random.Generator, center: Point, radius: float, angle: float
) -> None:
    if name == "actin":
        _actin(layers, rng, center, radius, angle)
    elif name == "mitochondria":
        _mitochondria(layers, rng, center, radius, angle)


def _actin(
    layers: Layers, rng: np.random.Generator, center: Point, radius: float, angle: float
) -> None:
    """A spread cell with a bright cortex and parallel stress fibres."""
    outline = spline(
        oval(rng, center, (1.15 * radius, 0.85 * radius), angle, 0.14, 10), closed=True, steps=5
    )
    layers.stain_pen.polygon(outline, fill=int(rng.integers(38, 60)))
    thick = max(1, round(0.03 * radius))
    cos, sin = math.cos(angle), math.sin(angle)
    for across in np.linspace(-0.7, 0.7, 13) + rng.normal(0, 0.03, 13):
        half = 1.0 * math.sqrt(max(0.05, 1 - (across / 0.85) ** 2)) * rng.uniform(0.6, 0.95)
        bow = rng.normal(0, 0.04)
        line = []
        for along, lift in ((-half, 0.0), (0.0, bow), (half, 0.0)):
            x, y = along * radius, (0.85 * across + lift) * radius
            line.append((center[0] + x * cos - y * sin, center[1] + x * sin + y * cos))
        layers.stain_pen.line(line, fill=int(rng.integers(120, 215)), width=thick)
    layers.stain_pen.line([*outline, outline[0]], fill=int(rng.integers(170, 235)), width=thick + 1)


def _mitochondria(
    layers: Layers, rng: np.random.Generator, center: Point, radius: float, angle: float
) -> None:
    """A network of short wavy tubes around the nucleus."""
    thick = max(2, round(0.05 * radius))
    cos, sin = math.cos(angle), math.sin(angle)
    for _ in range(46):
        turn, away = rng.uniform(0, 2 * math.pi), rng.uniform(0.46, 1.0) ** 0.8
        x, y = 1.1 * away * radius * math.cos(turn), 0.85 * away * radius * math.sin(turn)
        at = (center[0] + x * cos - y * sin, center[1] + x * sin + y * cos)
        heading = rng.uniform(0, 2 * math.pi)
        line = [at]
        for turn in rng.normal(0, 0.45, 5).tolist():
            heading += turn
            step = 0.065 * radius
            line.append(
                (line[-1][0] + step * math.cos(heading), line[-1][1] + step * math.sin(heading))
            )
        layers.stain_pen.line(line, fill=int(rng.integers(110, 255)), width=thick)
