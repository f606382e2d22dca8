"""Chest radiographs, posteroanterior: the patient's left is on the image's right."""

import math

import numpy as np

from data_prep.phantom.drawing import (
    Array,
    Drawing,
    Facts,
    Frame,
    Point,
    mix,
    oval,
    spline,
    vignette,
)

FINDINGS = (
    "normal",
    "pulmonary nodule",
    "pleural effusion",
    "pneumothorax",
    "consolidation",
    "cardiomegaly",
)
SIDED = FINDINGS[1:5]
ZONES = {"upper": -0.42, "middle": -0.12, "lower": 0.16}

# Outlines of the lungs in units, from the apex down the outer wall, back along the mediastinum.
RIGHT_LUNG: list[Point] = [
    (-0.30, -0.76), (-0.46, -0.66), (-0.60, -0.42), (-0.70, -0.10), (-0.75, 0.22), (-0.77, 0.46),
    (-0.66, 0.36), (-0.48, 0.25), (-0.28, 0.28), (-0.17, 0.36), (-0.15, 0.05), (-0.16, -0.30),
    (-0.17, -0.58),
]  # fmt: skip
LEFT_LUNG: list[Point] = [
    (0.30, -0.76), (0.46, -0.66), (0.60, -0.42), (0.70, -0.10), (0.75, 0.22), (0.77, 0.52),
    (0.66, 0.43), (0.50, 0.34), (0.40, 0.33), (0.30, 0.30), (0.22, 0.05), (0.17, -0.22),
    (0.18, -0.58),
]  # fmt: skip
BODY: list[Point] = [
    (-0.16, -1.3), (-0.20, -0.98), (-0.55, -0.84), (-0.95, -0.66), (-1.3, -0.3), (-0.97, 0.0),
    (-0.93, 0.5), (-0.95, 1.3), (0.95, 1.3), (0.93, 0.5), (0.97, 0.0), (1.3, -0.3), (0.95, -0.66),
    (0.55, -0.84), (0.20, -0.98), (0.16, -1.3),
]  # fmt: skip


def sample(rng: np.random.Generator) -> Facts:
    finding = str(rng.choice(FINDINGS))
    side = str(rng.choice(["left", "right"])) if finding in SIDED else ""
    detail = {}
    if finding in ("pulmonary nodule", "consolidation"):
        detail["zone"] = str(rng.choice(list(ZONES)))
    return Facts("chest radiograph", "radiograph", "chest", finding, side, None, detail)


def draw(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> Drawing:
    frame = Frame(rng, size)
    frame.bend(rng, 0.012, 0.5)
    lungs = {"right": frame.region(RIGHT_LUNG, 0.014), "left": frame.region(LEFT_LUNG, 0.014)}
    both = np.maximum(lungs["right"], lungs["left"])
    texture = frame.noise(rng, 0.25, 3)
    body = frame.polygon(BODY, 0.02)
    image = body * (0.60 + 0.10 * frame.blob((0, 0.75), (1.2, 0.7), soft=1.0) + 0.015 * texture)
    image = mix(image, 0.17 + 0.02 * texture - 0.05 * frame.y, 0.93 * both)
    boxes = []
    inside = _vessels(frame, rng) * both
    if facts.finding == "pneumothorax":
        image, inside, box = _pneumothorax(frame, rng, image, lungs[facts.side], inside, facts.side)
        boxes.append((facts.finding, box))
    image = image + 0.20 * inside
    image = _mediastinum(frame, rng, image, large=facts.finding == "cardiomegaly")
    if facts.finding == "cardiomegaly":
        boxes.append((facts.finding, frame.box(frame.blob((0.14, 0.12), (0.54, 0.38)))))
    bubble = frame.blob((0.42, 0.62 + rng.uniform(0, 0.05)), (0.20, 0.11), angle=-0.15, soft=0.5)
    image = _cage(frame, rng, image - rng.uniform(0.08, 0.22) * bubble)
    if facts.finding in ("pulmonary nodule", "consolidation", "pleural effusion"):
        opacity = _opacity(facts, frame, rng, lungs[facts.side])
        image = mix(image, np.maximum(image, 0.74 + 0.02 * texture), opacity)
        boxes.append((facts.finding, frame.box(opacity / opacity.max())))
    image = (0.04 + 0.96 * image) * vignette(frame.shape, 0.15) * rng.uniform(0.95, 1.12)
    picture = frame.finish(image, rng, rng.uniform(0.012, 0.03))
    drawing = Drawing(picture, boxes)
    if rng.random() < 0.7:
        drawing.add_letter(frame.place((0.80, -0.92)), "L", max(14, size[1] // 16), 235)
    if facts.finding == "pulmonary nodule" and rng.random() < 0.2:
        drawing.add_arrow(rng, 250)
    return drawing


def _mediastinum(frame: Frame, rng: np.random.Generator, image: Array, large: bool) -> Array:
    """Spine, great vessels, heart and trachea; a large heart fills well over half the thorax."""
    spine = frame.polygon([(-0.11, -1), (0.11, -1), (0.13, 1.2), (-0.13, 1.2)], 0.02)
    image = np.maximum(image, 0.66 * spine)
    arch = frame.blob((0.12, -0.33), (0.13, 0.12), soft=0.4)
    image = np.maximum(image, 0.66 * arch)
    width = rng.uniform(0.52, 0.58) if large else rng.uniform(0.27, 0.31)
    center = (0.14, 0.14) if large else (0.12, 0.17)
    heart = frame.blob(center, (width, 0.36 if large else 0.225), angle=0.55, soft=0.24)
    right_border = frame.blob((-0.12 if large else -0.06, 0.14), (0.16, 0.24), soft=0.4)
    upper = frame.polygon([(-0.13, -0.6), (0.14, -0.6), (0.16, 0.1), (-0.15, 0.1)], 0.04)
    image = np.maximum(image, 0.73 * np.maximum(heart, np.maximum(right_border, upper)))
    trachea = frame.polygon([(-0.05, -1.0), (0.05, -1.0), (0.045, -0.32), (-0.045, -0.32)], 0.02)
    image = image - 0.16 * trachea
    hila = frame.blob((-0.22, -0.08), (0.08, 0.15), soft=0.9)
    hila = np.maximum(hila, frame.blob((0.24, -0.12), (0.08, 0.14), soft=0.9))
    return image + 0.16 * hila * (1 - heart)


def _vessels(frame: Frame, rng: np.random.Generator) -> Array:
    """Branching lung vessels: strokes that leave the hila and thin out."""
    trunks, twigs = [], []
    for hilum, direction in (((-0.18, -0.08), math.pi), ((0.20, -0.10), 0.0)):
        for turn in np.linspace(-1.25, 1.25, 9) + rng.normal(0, 0.08, 9):
            angle = direction + turn
            points = [hilum]
            for _ in range(5):
                angle += rng.normal(0, 0.16)
                x, y = points[-1]
                points.append((x + 0.10 * math.cos(angle), y + 0.10 * math.sin(angle)))
            trunks.append(points[:3])
            twigs.append(points[2:])
            for start in points[2:5]:
                fork = angle + rng.choice([-0.7, 0.7])
                twigs.append(
                    [start, (start[0] + 0.16 * math.cos(fork), start[1] + 0.16 * math.sin(fork))]
                )
    return frame.strokes([(twigs, 0.011, 0.6), (trunks, 0.022, 1.0)], 0.006)


def _cage(frame: Frame, rng: np.random.Generator, image: Array) -> Array:
    """Posterior and anterior ribs, clavicles and shoulder blades."""
    posterior, anterior, clavicles, blades = [], [], [], []
    for sign in (-1, 1):
        for rib in range(9):
            y = -0.80 + 0.155 * rib
            reach = min(0.78, 0.42 + 0.10 * rib)
            outer = (sign * reach, y + 0.20 + 0.015 * rib)
            back = [
                (sign * 0.02, y + 0.01),
                (sign * 0.12, y - 0.01),
                (sign * reach * 0.5, y - 0.03),
                (sign * reach * 0.86, y + 0.05),
            ]
            posterior.append(spline([*back, outer]))
            front = [(sign * reach * 0.93, y + 0.30), (sign * reach * 0.62, y + 0.42)]
            anterior.append(spline([outer, *front]))
        clavicles.append(
            spline(
                [
                    (sign * 0.08, -0.60),
                    (sign * 0.32, -0.68),
                    (sign * 0.58, -0.76),
                    (sign * 0.8, -0.80),
                ]
            )
        )
        blades.append(spline([(sign * 0.86, -0.62), (sign * 0.72, -0.30), (sign * 0.80, 0.08)]))
    # A rib is brighter along its edges, where the beam runs through the cortex.
    sharp = [(posterior, 0.058, 0.60), (posterior, 0.034, 0.45), (clavicles, 0.07, 0.90)]
    faint = [(blades, 0.05, 0.8), (anterior, 0.055, 0.8)]
    bones = 0.21 * frame.strokes(sharp, 0.010) + 0.065 * frame.strokes(faint, 0.018)
    # Bones add less where the tissue is thick already: film saturates.
    shaded: Array = bones * np.clip(1.45 - 1.35 * image, 0.25, 1) * rng.uniform(0.9, 1.3)
    return image + shaded


def _opacity(facts: Facts, frame: Frame, rng: np.random.Generator, lung: Array) -> Array:
    """Mask of a nodule, a consolidation or an effusion."""
    sign = 1 if facts.side == "left" else -1
    if facts.finding == "pleural effusion":
        level = rng.uniform(-0.12, 0.18)
        # The meniscus: the fluid stands higher at the chest wall than at the heart.
        meniscus = level - 0.55 * np.clip(sign * frame.x - 0.35, 0, 1) ** 1.4 + 0.10
        fluid = np.clip((frame.y - meniscus) / 0.06 + 0.5, 0, 1)
        hemithorax = frame.polygon(
            [(sign * 0.13, -0.2), (sign * 0.80, -0.2), (sign * 0.84, 0.62), (sign * 0.13, 0.62)],
            0.02,
        )
        effusion: Array = fluid * np.maximum(lung, 0.9 * hemithorax)
        return effusion
    y = ZONES[facts.detail["zone"]] + rng.uniform(-0.05, 0.05)
    x = sign * (0.44 + 0.10 * (y + 0.4) + rng.uniform(-0.05, 0.05))
    if facts.finding == "pulmonary nodule":
        radius = rng.uniform(0.085, 0.125)
        return frame.region(oval(rng, (x, y), (radius, radius), rough=0.05), 0.012) * 0.95
    cloud = frame.blob((x, y), (0.30, 0.26), soft=0.8)
    patches = frame.noise(rng, 0.12, 2)
    shadow: Array = np.clip(cloud * (1.1 + 0.22 * patches) - 0.15, 0, 0.9) * lung
    return shadow


def _pneumothorax(
    frame: Frame, rng: np.random.Generator, image: Array, lung: Array, vessels: Array, side: str
) -> tuple[Array, Array, tuple[float, float, float, float]]:
    """Free air around a collapsed lung: black, without vessels, behind a thin pleural line."""
    sign = 1 if side == "left" else -1
    width = rng.uniform(0.22, 0.28)
    radii = (width, rng.uniform(0.46, 0.54))
    center = (sign * 0.22, 0.0)
    collapsed = frame.blob(center, radii, soft=0.05)
    inner = frame.blob(center, (radii[0] - 0.02, radii[1] - 0.02), soft=0.05)
    air = lung * (1 - collapsed)
    image = mix(image, 0.03, 0.85 * air)
    image = image + lung * (0.10 * collapsed + 0.35 * np.clip(collapsed - inner, 0, 1))
    return image, vessels * (1 - air), frame.box(air)
