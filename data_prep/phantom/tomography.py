"""Axial CT of head and abdomen, axial MRI of the brain: the patient's left is image right."""

import math

import numpy as np

from data_prep.phantom.drawing import (
    Array,
    Drawing,
    Facts,
    Frame,
    edge,
    mix,
    oval,
    spline,
)

HEAD_FINDINGS = ("normal", "intracerebral haemorrhage", "subdural haematoma", "ischaemic infarct")
ABDOMEN_FINDINGS = ("normal", "liver lesion", "renal cyst", "kidney stone")
BRAIN_FINDINGS = ("normal", "brain tumour", "white matter lesions")
SEQUENCES = ("T1", "T2", "FLAIR")


def _side(rng: np.random.Generator) -> str:
    return str(rng.choice(["left", "right"]))


def sample_head(rng: np.random.Generator) -> Facts:
    finding = str(rng.choice(HEAD_FINDINGS))
    side = "" if finding == "normal" else _side(rng)
    return Facts("head CT", "CT", "brain", finding, side)


def sample_abdomen(rng: np.random.Generator) -> Facts:
    finding = str(rng.choice(ABDOMEN_FINDINGS))
    side = _side(rng) if finding in ("renal cyst", "kidney stone") else ""
    count = int(rng.integers(1, 5)) if finding == "liver lesion" else None
    return Facts("abdominal CT", "CT", "abdomen", finding, side, count)


def sample_brain(rng: np.random.Generator) -> Facts:
    # White matter lesions do not stand out in T1. The sequence is drawn first, so that within
    # each one all of its findings are equally frequent.
    sequence = str(rng.choice(SEQUENCES))
    finding = str(rng.choice(BRAIN_FINDINGS if sequence != "T1" else BRAIN_FINDINGS[:2]))
    side = _side(rng) if finding == "brain tumour" else ""
    count = int(rng.integers(3, 10)) if finding == "white matter lesions" else None
    return Facts("brain MRI", "MRI", "brain", finding, side, count, {"sequence": sequence})


def _sign(facts: Facts) -> int:
    return -1 if facts.side == "right" else 1


def _letters(frame: Frame, rng: np.random.Generator, picture: Drawing) -> None:
    """Orientation letters and, now and then, an arrow to the finding."""
    size = max(13, picture.image.height // 20)
    if rng.random() < 0.6:
        letter, x = (("L", 0.88), ("R", -0.97))[int(rng.integers(2))]
        picture.add_letter(frame.place((x, -0.05)), letter, size, 220)
    if picture.boxes and rng.random() < 0.25:
        picture.add_arrow(rng, 250)


def _ventricles(frame: Frame, wide: float) -> Array:
    """Lateral ventricles (a butterfly) and third ventricle."""
    total: Array = np.zeros(frame.shape, np.float32)
    for sign in (-1, 1):
        horn = [(0.03, -0.06), (0.06, -0.20), (0.13, -0.33), (0.19, -0.31), (0.15, -0.14)]
        horn += [(0.12, 0.02), (0.17, 0.16), (0.22, 0.32), (0.15, 0.30), (0.07, 0.12)]
        points = [(sign * (0.02 + (x - 0.02) * wide), y) for x, y in horn]
        total = np.maximum(total, frame.region(points, 0.012))
    return np.maximum(total, frame.blob((0, 0.16), (0.025 * wide, 0.12), soft=0.5))


def _folds(frame: Frame, rng: np.random.Generator, depth: Array) -> tuple[Array, Array]:
    """Cortex and sulci from the depth below the brain's surface (0 at the surface).

    Sulci are the zero lines of smooth noise near the surface; the cortex is the rim of both.
    """
    ridges = np.abs(frame.noise(rng, 0.115, 1))
    rim = np.clip(1 - depth / 0.30, 0, 1)
    sulci = edge(0.20 - ridges, 0.22) * edge(rim - 0.35, 0.5)
    sulci = np.maximum(sulci, edge(0.025 - depth, 0.03))
    cortex = np.maximum(edge(0.60 - ridges, 0.3) * edge(rim - 0.25, 0.4), edge(0.10 - depth, 0.05))
    return sulci, cortex


def draw_head(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> Drawing:
    frame = Frame(rng, size, turn=0.10)
    frame.bend(rng, 0.012, 0.7)
    radius = np.sqrt((frame.x / 0.68) ** 2 + (frame.y / 0.85) ** 2)
    inside = edge(0.90 - radius, 0.03)
    skull = edge(0.985 - radius, 0.03) * edge(radius - 0.905, 0.03)
    scalp = edge(1.06 - radius, 0.03) * (1 - edge(0.985 - radius, 0.03))
    depth = 0.90 - radius
    sulci, cortex = _folds(frame, rng, depth)
    texture = frame.noise(rng, 0.05, 2)
    sign = _sign(facts)
    lesion, value, push = _head_lesion(facts, frame, rng, sign)
    if lesion is not None:
        # The mass pushes the midline away.
        frame.x = frame.x + np.float32(push * sign) * np.exp(-3.0 * (frame.x**2 + frame.y**2))
    ventricles = _ventricles(frame, rng.uniform(0.85, 1.45))
    brain = 0.44 + 0.035 * cortex + 0.012 * texture - 0.15 * sulci
    basal = frame.blob((-0.22, 0.02), (0.08, 0.17), 0.3, 0.5)
    basal = np.maximum(basal, frame.blob((0.22, 0.02), (0.08, 0.17), -0.3, 0.5))
    brain = mix(brain + 0.04 * basal, 0.22, ventricles)
    falx = edge(0.012 - np.abs(frame.x), 0.012) * edge(np.abs(frame.y) - 0.36, 0.1)
    brain = brain + 0.13 * falx
    image: Array = inside * brain + 0.96 * skull + 0.25 * scalp + 0.02
    boxes = []
    if lesion is not None:
        lesion = inside * lesion
        if facts.finding == "intracerebral haemorrhage":
            halo = frame.soften(lesion, 0.05)
            image = mix(image, 0.32, np.clip(1.6 * halo, 0, 1) * (1 - lesion) * inside)
        image = mix(image, value + 0.02 * texture, lesion)
        boxes.append((facts.finding, frame.box(lesion)))
    image = image * rng.uniform(0.92, 1.08)
    picture = Drawing(frame.finish(image, rng, rng.uniform(0.012, 0.03)), boxes)
    _letters(frame, rng, picture)
    return picture


def _head_lesion(
    facts: Facts, frame: Frame, rng: np.random.Generator, sign: int
) -> tuple[Array | None, float, float]:
    """Mask, grey value and mass effect (units) of the finding."""
    if facts.finding == "intracerebral haemorrhage":
        center = (sign * rng.uniform(0.24, 0.34), rng.uniform(-0.20, 0.22))
        radii = (rng.uniform(0.13, 0.19), rng.uniform(0.15, 0.23))
        return frame.region(oval(rng, center, radii, rough=0.10), 0.012), 0.80, 0.08
    if facts.finding == "subdural haematoma":
        radius = np.sqrt((frame.x / 0.68) ** 2 + (frame.y / 0.85) ** 2)
        turn = np.arctan2(frame.y - rng.uniform(-0.2, 0.2), sign * frame.x)
        thick = rng.uniform(0.17, 0.25) * np.clip(np.cos(turn * rng.uniform(0.85, 1.1)), 0, 1)
        return edge(radius - (0.90 - thick), 0.03), 0.74, 0.13
    if facts.finding == "ischaemic infarct":
        # The territory of the middle cerebral artery: a wedge that reaches the cortex.
        tip = (sign * 0.20, rng.uniform(-0.08, 0.08))
        wedge = [tip, (sign * 0.45, -0.42), (sign * 0.68, -0.40), (sign * 0.78, 0.0)]
        wedge += [(sign * 0.68, 0.42), (sign * 0.42, 0.38)]
        points = [(x + rng.normal(0, 0.025), y + rng.normal(0, 0.025)) for x, y in wedge]
        return frame.region(points, 0.03), 0.27, 0.03
    return None, 0.0, 0.0


def draw_abdomen(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> Drawing:
    frame = Frame(rng, size)
    frame.bend(rng, 0.02, 0.6)
    texture = frame.noise(rng, 0.05, 2)
    coarse = frame.noise(rng, 0.16, 2)
    wall = np.sqrt((frame.x / 0.94) ** 2 + (frame.y / 0.74) ** 2)
    fat = rng.uniform(0.86, 0.91)
    image = 0.02 + 0.19 * edge(1 - wall, 0.02) + 0.24 * edge(fat - wall, 0.02)
    cavity = edge(fat - 0.07 - wall, 0.02)
    image = mix(image, 0.22 + 0.02 * coarse, cavity)
    ribs = edge(0.025 - np.abs(wall - fat + 0.035), 0.03)
    turn = np.arctan2(frame.y, frame.x)
    image = mix(image, 0.85, ribs * edge(np.sin(9 * turn + rng.uniform(0, 6)) - 0.72, 0.2))
    image = _gut(frame, rng, image, cavity, coarse)
    liver = frame.region(
        [(-0.74, -0.16), (-0.60, -0.42), (-0.30, -0.54), (0.06, -0.52), (0.20, -0.40),
         (-0.06, -0.24), (-0.18, -0.02), (-0.34, 0.14), (-0.50, 0.36), (-0.68, 0.30),
         (-0.77, 0.06)], 0.012
    )  # fmt: skip
    enhanced = rng.uniform(0.56, 0.64)
    image = mix(image, enhanced + 0.012 * texture, liver)
    branches = [
        spline([(-0.20, -0.12), (-0.38, -0.16), (-0.55, -0.05)]),
        spline([(-0.25, -0.15), (-0.35, -0.32), (-0.30, -0.45)]),
    ]
    veins = frame.strokes([(branches, 0.035, 1.0)], 0.01)
    image = image + 0.09 * veins * liver
    spleen = frame.region(
        [(0.62, -0.10), (0.76, 0.06), (0.72, 0.32), (0.60, 0.40), (0.60, 0.20), (0.54, 0.04)], 0.012
    )
    image = mix(image, enhanced + 0.03 + 0.012 * texture, spleen)
    image = _spine(frame, image, coarse)
    boxes = []
    for name, sign in (("left", 1), ("right", -1)):
        image, box = _kidney(facts, frame, rng, image, sign, diseased=facts.side == name)
        boxes += box
    for center in _lesion_places(facts, rng):
        radius = rng.uniform(0.075, 0.115)
        mask = frame.region(oval(rng, center, (radius, radius), rough=0.07), 0.012)
        image = mix(image, 0.36, mask)
        boxes.append((facts.finding, frame.box(mask)))
    image = image * rng.uniform(0.94, 1.08)
    picture = Drawing(frame.finish(image, rng, rng.uniform(0.012, 0.03)), boxes)
    _letters(frame, rng, picture)
    return picture


def _gut(
    frame: Frame, rng: np.random.Generator, image: Array, cavity: Array, coarse: Array
) -> Array:
    """Stomach with an air-fluid level, and bowel loops, some with gas."""
    stomach = frame.region(
        [(0.20, -0.50), (0.42, -0.54), (0.60, -0.40), (0.62, -0.20), (0.46, -0.16), (0.30, -0.28)],
        0.01,
    )
    level = rng.uniform(-0.42, -0.34)
    content = np.where(frame.y < level, 0.03, 0.40 + 0.02 * coarse).astype(np.float32)
    image = mix(image, 0.50, stomach)
    image = mix(image, content, np.clip(frame.soften(stomach, 0.02) * 2.2 - 1.2, 0, 1))
    for _ in range(int(rng.integers(5, 9))):
        center = (rng.uniform(-0.08, 0.50), rng.uniform(-0.12, 0.12))
        loop = frame.blob(
            center, (rng.uniform(0.07, 0.12), rng.uniform(0.06, 0.09)), rng.uniform(0, 3), 0.25
        )
        image = mix(image, 0.47, loop * cavity)
        core = frame.blob(center, (0.045, 0.035), 0.0, 0.4)
        image = mix(image, 0.05 if rng.random() < 0.3 else 0.36, core)
    return image


def _spine(frame: Frame, image: Array, coarse: Array) -> Array:
    """Vertebra with canal, back muscles, aorta and inferior vena cava."""
    for sign in (-1, 1):
        muscle = frame.blob((sign * 0.24, 0.52), (0.17, 0.11), sign * 0.2, 0.15)
        image = mix(image, 0.45 + 0.015 * coarse, muscle)
        image = mix(image, 0.45, frame.blob((sign * 0.19, 0.30), (0.07, 0.09), 0, 0.2))
        process = frame.polygon(
            [(sign * 0.08, 0.36), (sign * 0.27, 0.44), (sign * 0.26, 0.48), (sign * 0.05, 0.46)],
            0.01,
        )
        image = mix(image, 0.84, process)
    body = frame.blob((0, 0.28), (0.155, 0.13), 0, 0.10)
    image = mix(image, 0.78 + 0.04 * coarse, body)
    arch = frame.polygon([(-0.10, 0.36), (0.10, 0.36), (0.03, 0.64), (-0.03, 0.64)], 0.012)
    image = mix(image, 0.84, arch)
    image = mix(image, 0.40, frame.blob((0, 0.425), (0.06, 0.045), 0, 0.2))
    image = mix(image, 0.76, frame.blob((0.07, 0.08), (0.07, 0.065), 0, 0.15))
    return mix(image, 0.60, frame.blob((-0.14, 0.08), (0.085, 0.06), 0, 0.15))


def _kidney(
    facts: Facts, frame: Frame, rng: np.random.Generator, image: Array, sign: int, diseased: bool
) -> tuple[Array, list[tuple[str, tuple[float, float, float, float]]]]:
    """One kidney; the diseased one bears the cyst or the stone."""
    center = (sign * 0.40, 0.30 + rng.uniform(-0.02, 0.02))
    kidney = frame.blob(center, (0.125, 0.165), sign * 0.35, 0.10)
    image = mix(image, 0.70, kidney)
    sinus = frame.blob((sign * 0.36, 0.29), (0.055, 0.085), sign * 0.35, 0.5)
    image = mix(image, 0.34, sinus)
    if not diseased:
        return image, []
    if facts.finding == "renal cyst":
        radius = rng.uniform(0.11, 0.15)
        mask = frame.blob((sign * 0.50, 0.30 + rng.uniform(-0.10, 0.08)), (radius, radius), 0, 0.08)
        return mix(image, 0.27, mask), [(facts.finding, frame.box(mask))]
    radius = rng.uniform(0.042, 0.055)
    mask = frame.blob((sign * 0.36, 0.29 + rng.uniform(-0.03, 0.03)), (radius, radius), 0, 0.3)
    image = mix(image, 0.20, frame.blob((sign * 0.36, 0.29), (0.085, 0.11), 0, 0.4))
    return mix(image, 1.0, mask), [(facts.finding, frame.box(mask))]


def _lesion_places(facts: Facts, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Places in the liver that are far enough from each other to be told apart."""
    if facts.finding != "liver lesion":
        return []
    places = [(-0.60, -0.20), (-0.34, -0.36), (-0.58, 0.14), (-0.36, -0.02), (-0.08, -0.40)]
    chosen = rng.permutation(len(places))[: facts.count]
    return [
        (places[i][0] + rng.uniform(-0.03, 0.03), places[i][1] + rng.uniform(-0.03, 0.03))
        for i in chosen
    ]


# Grey values by sequence: white matter, cortex, fluid, scalp fat, tumour rim, tumour core, oedema.
TISSUE = {
    "T1": (0.62, 0.46, 0.14, 0.85, 0.92, 0.26, 0.40),
    "T2": (0.36, 0.52, 0.93, 0.70, 0.50, 0.72, 0.84),
    "FLAIR": (0.38, 0.50, 0.10, 0.62, 0.80, 0.50, 0.90),
}


def draw_brain(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> Drawing:
    frame = Frame(rng, size, turn=0.08)
    frame.bend(rng, 0.012, 0.7)
    white, grey, fluid, fat, rim, core, oedema = TISSUE[facts.detail["sequence"]]
    radius = np.sqrt((frame.x / 0.70) ** 2 + (frame.y / 0.87) ** 2)
    scalp = edge(1.05 - radius, 0.03) * edge(radius - 0.97, 0.03)
    inside = edge(0.90 - radius, 0.025)
    depth = 0.90 - radius
    sulci, cortex = _folds(frame, rng, depth)
    texture = frame.noise(rng, 0.05, 2)
    sign = _sign(facts)
    if facts.finding == "brain tumour":
        frame.x = frame.x + np.float32(0.07 * sign) * np.exp(-3.0 * (frame.x**2 + frame.y**2))
    brain = mix(np.full(frame.shape, white, np.float32), grey, cortex)
    for side in (-1, 1):
        nucleus = frame.blob((side * 0.24, 0.0), (0.07, 0.17), side * -0.35, 0.4)
        thalamus = frame.blob((side * 0.12, 0.16), (0.08, 0.12), side * 0.4, 0.4)
        brain = mix(brain, grey, np.maximum(nucleus, thalamus))
    boxes = []
    if facts.finding == "brain tumour":
        center = (sign * rng.uniform(0.26, 0.36), rng.uniform(-0.38, 0.34))
        wide = rng.uniform(0.14, 0.19)
        halo = frame.region(oval(rng, center, (1.7 * wide, 1.8 * wide), rough=0.16), 0.03)
        mass = frame.region(oval(rng, center, (wide, wide), rough=0.07), 0.012)
        centre = np.clip(frame.soften(mass, 0.035) * 2.4 - 1.35, 0, 1)
        brain = mix(brain, oedema, 0.85 * halo * (1 - 0.5 * cortex))
    brain = mix(brain, fluid, np.maximum(sulci, _ventricles(frame, rng.uniform(0.85, 1.4))))
    if facts.finding == "brain tumour":
        brain = mix(mix(brain, rim, mass), core + 0.05 * texture, centre)
        boxes.append((facts.finding, frame.box(mass)))
    for center in _white_matter_places(facts, rng):
        angle = math.atan2(center[1], center[0])
        radii = (rng.uniform(0.05, 0.075), rng.uniform(0.035, 0.05))
        mask = frame.blob(center, radii, angle, 0.35)
        brain = mix(brain, 0.97, mask)
        boxes.append((facts.finding, frame.box(mask)))
    image = 0.02 + inside * (brain + 0.015 * texture) + fat * scalp * (0.9 + 0.1 * texture)
    # Receive coils see more of what is near them.
    image = image * (1 + 0.10 * frame.x * rng.uniform(-1, 1) + 0.10 * frame.y * rng.uniform(-1, 1))
    picture = Drawing(frame.finish(image, rng, rng.uniform(0.012, 0.028)), boxes)
    _letters(frame, rng, picture)
    return picture


def _white_matter_places(facts: Facts, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Places around the ventricles and below the cortex, apart from each other."""
    if facts.finding != "white matter lesions":
        return []
    half = [(0.27, -0.42), (0.36, -0.22), (0.40, 0.04), (0.36, 0.28), (0.28, 0.48)]
    places = half + [(-x, y) for x, y in half]
    chosen = rng.permutation(len(places))[: facts.count]
    return [
        (places[i][0] + rng.uniform(-0.03, 0.03), places[i][1] + rng.uniform(-0.03, 0.03))
        for i in chosen
    ]
