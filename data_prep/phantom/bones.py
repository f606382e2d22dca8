"""Radiographs of the hand, the lower leg and the femur, with or without a fracture."""

import math

import numpy as np

from data_prep.phantom.drawing import (
    Array,
    Drawing,
    Facts,
    Frame,
    Point,
    spline,
    vignette,
)

FINDINGS = ("normal", "fracture")
ORGANS = ("hand", "lower leg", "femur")

# Fingers of a right hand seen from its back, the thumb on the left: (joint at the wrist, angle
# from the vertical, lengths of the metacarpal and the phalanges).
FINGERS: dict[str, tuple[Point, float, tuple[float, ...]]] = {
    "thumb": ((-0.26, 0.42), -0.85, (0.30, 0.24, 0.18)),
    "index finger": ((-0.20, 0.30), -0.22, (0.46, 0.32, 0.19, 0.14)),
    "middle finger": ((-0.06, 0.27), -0.06, (0.46, 0.35, 0.22, 0.15)),
    "ring finger": ((0.07, 0.29), 0.09, (0.42, 0.32, 0.20, 0.15)),
    "little finger": ((0.19, 0.34), 0.25, (0.38, 0.26, 0.15, 0.13)),
}
CARPALS = [(-0.17, 0.42), (-0.05, 0.38), (0.07, 0.40), (0.16, 0.46), (-0.12, 0.54), (0.0, 0.55),
           (0.11, 0.56)]  # fmt: skip
BROKEN = ("index finger", "middle finger", "ring finger", "little finger")


def sample(rng: np.random.Generator) -> Facts:
    organ, finding = str(rng.choice(ORGANS)), str(rng.choice(FINDINGS))
    side = str(rng.choice(["left", "right"]))
    detail = {}
    if finding == "fracture":
        detail["bone"] = {
            "hand": f"metacarpal of the {rng.choice(BROKEN)}",
            "lower leg": "tibial shaft",
            "femur": "femoral shaft",
        }[organ]
    return Facts("bone radiograph", "radiograph", organ, finding, side, None, detail)


def draw(facts: Facts, rng: np.random.Generator, size: tuple[int, int]) -> Drawing:
    frame = Frame(rng, size, turn=0.06)
    # The shapes are those of a right limb; a left one is its mirror image.
    mirror = 1 if facts.side == "right" else -1
    skin, bones, breaks = {"hand": _hand, "lower leg": _leg, "femur": _femur}[facts.organ](
        facts, rng
    )
    outlines = [spline([(mirror * x, y) for x, y in s], closed=True) for s in skin]
    soft = frame.polygons(outlines, 0.02)
    texture = frame.noise(rng, 0.10, 3)
    image: Array = 0.05 + soft * (rng.uniform(0.20, 0.28) + 0.012 * texture)
    image = _add_bones(frame, image, [[(mirror * x, y) for x, y in b] for b in bones], texture)
    boxes = []
    for x, y, radius in breaks:
        left, top = frame.place((mirror * x - radius, y - radius))
        right, bottom = frame.place((mirror * x + radius, y + radius))
        box = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        boxes.append(("fracture", box))
    image = image * vignette(frame.shape, 0.2) * rng.uniform(0.95, 1.15)
    picture = frame.finish(image, rng, rng.uniform(0.01, 0.025))
    corner = (0.82, -0.94) if mirror < 0 else (-0.92, -0.94)
    drawing = Drawing(picture, boxes)
    drawing.add_letter(frame.place(corner), facts.side[0].upper(), max(18, size[1] // 12), 240)
    if boxes and rng.random() < 0.35:
        drawing.add_arrow(rng, 245)
    return drawing


def _add_bones(frame: Frame, image: Array, bones: list[list[Point]], texture: Array) -> Array:
    """Bright cortex around a darker marrow with trabecular texture."""
    outer = frame.polygons([spline(bone, closed=True) for bone in bones], 0.008)
    # Eroding by blurring saves drawing every bone twice.
    inner = np.clip((frame.soften(outer, 0.022) - 0.62) / 0.36, 0, 1)
    bright: Array = outer * (0.52 - 0.20 * inner + 0.03 * texture * inner)
    return image + bright


def _shaft(start: Point, end: Point, width: float, waist: float) -> list[Point]:
    """Outline of a long bone: ends of `width`, a shaft of `waist` times that."""
    (x0, y0), (x1, y1) = start, end
    length = math.hypot(x1 - x0, y1 - y0)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    slim = waist + 0.12 * (1 - waist)
    profile = [(0.0, 0.6), (0.03, 0.95), (0.10, 0.85 + 0.15 * waist), (0.26, slim), (0.5, waist)]
    profile += [(0.74, slim), (0.90, 0.85 + 0.15 * waist), (0.97, 0.95), (1.0, 0.6)]
    near, far = [], []
    for along, wide in profile:
        x, y, half = x0 + along * length * ux, y0 + along * length * uy, width * wide / 2
        near.append((x - uy * half, y + ux * half))
        far.append((x + uy * half, y - ux * half))
    return near + far[::-1]


def _broken(
    start: Point, end: Point, width: float, waist: float, rng: np.random.Generator
) -> tuple[list[list[Point]], tuple[float, float, float]]:
    """A long bone in two displaced fragments, and the break as (x, y, radius)."""
    whole = _shaft(start, end, width, waist)
    half, thick = len(whole) // 2, width * waist
    (x0, y0), (x1, y1) = start, end
    length = math.hypot(x1 - x0, y1 - y0)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    at = rng.uniform(0.42, 0.58) * length
    x, y, slant = x0 + at * ux, y0 + at * uy, rng.uniform(-0.5, 0.5) * thick
    near = (x - uy * thick / 2 + ux * slant, y + ux * thick / 2 + uy * slant)
    far = (x + uy * thick / 2 - ux * slant, y - ux * thick / 2 - uy * slant)
    # Repeated corners keep the smooth outline from rounding the broken ends.
    first = [*whole[:4], near, near, far, far, *whole[2 * half - 4 :]]
    second = [near, near, *whole[5 : 2 * half - 5], far, far]
    slip = float(rng.choice([-1, 1])) * rng.uniform(0.55, 0.9) * thick
    tilt, gap = float(rng.choice([-1, 1])) * rng.uniform(0.14, 0.26), 0.2 * thick
    cos, sin = math.cos(tilt), math.sin(tilt)
    moved = []
    for px, py in second:
        dx, dy = px - x, py - y
        moved.append(
            (
                x + dx * cos - dy * sin - uy * slip + ux * gap,
                y + dx * sin + dy * cos + ux * slip + uy * gap,
            )
        )
    return [first, moved], (x, y, 1.6 * thick)


Limb = tuple[list[list[Point]], list[list[Point]], list[tuple[float, float, float]]]


def _hand(facts: Facts, rng: np.random.Generator) -> Limb:
    """Skin outlines, bones and breaks of a right hand."""
    palm = [(-0.30, 1.2), (-0.27, 0.75), (-0.42, 0.40), (-0.36, 0.05), (-0.28, -0.16), (0.0, -0.22)]
    palm += [(0.22, -0.10), (0.32, 0.12), (0.30, 0.45), (0.24, 0.75), (0.27, 1.2)]
    skin, bones, breaks = [palm], [], []
    spread = rng.uniform(0.8, 1.25)
    for name, (base, angle, lengths) in FINGERS.items():
        x, y = base
        turn = angle * spread + rng.normal(0, 0.02)
        start = (x, y)
        for index, length in enumerate(lengths):
            width = 0.105 - 0.014 * index
            tip = (x + 0.94 * length * math.sin(turn), y - 0.94 * length * math.cos(turn))
            if index == 0 and facts.finding == "fracture" and name in facts.detail["bone"]:
                pieces, place = _broken((x, y), tip, width, 0.62, rng)
                bones += pieces
                breaks.append(place)
            else:
                bones.append(_shaft((x, y), tip, width, 0.62))
            x, y = x + length * math.sin(turn), y - length * math.cos(turn)
        skin.append(
            _shaft(start, (x + 0.05 * math.sin(turn), y - 0.05 * math.cos(turn)), 0.2, 0.95)
        )
    for cx, cy in CARPALS:
        carpal = [(cx - 0.065, cy), (cx, cy - 0.065), (cx + 0.065, cy), (cx, cy + 0.065)]
        bones.append(spline(carpal, closed=True, steps=3))
    bones.append(_shaft((-0.10, 0.66), (-0.09, 1.6), 0.26, 0.6))
    bones.append(_shaft((0.14, 0.68), (0.13, 1.6), 0.17, 0.6))
    return skin, bones, breaks


def _leg(facts: Facts, rng: np.random.Generator) -> Limb:
    """Right lower leg from the front: the fibula stands on the outer side (image left)."""
    skin: list[Point] = [(-0.50, -1.3), (-0.56, -0.5), (-0.44, 0.3), (-0.30, 1.3)]
    skin += [(0.38, 1.3), (0.44, 0.3), (0.56, -0.5), (0.50, -1.3)]
    bow = rng.normal(0, 0.02)
    start, end = (0.08 + bow, -0.74), (0.07 - bow, 0.80)
    bones, breaks = [_shaft(start, end, 0.46, 0.42)], []
    if facts.finding == "fracture":
        bones, place = _broken(start, end, 0.46, 0.42, rng)
        breaks.append(place)
    bones.append(_shaft((-0.22, -0.62), (-0.17, 0.94), 0.15, 0.55))
    bones.append(_shaft((0.08, -1.9), (0.08, -0.80), 0.50, 0.45))
    bones.append(_shaft((0.05, 0.87), (0.05, 1.2), 0.30, 0.8))
    return [skin], bones, breaks


def _femur(facts: Facts, rng: np.random.Generator) -> Limb:
    """Right femur from the front: its head points to the midline (image right)."""
    skin: list[Point] = [(-0.70, -1.3), (-0.66, -0.4), (-0.50, 0.4), (-0.42, 1.3)]
    skin += [(0.44, 1.3), (0.50, 0.4), (0.62, -0.4), (0.9, -1.3)]
    tilt = rng.uniform(0.10, 0.16)
    start, end = (-0.16, -0.58), (-0.16 + tilt, 0.84)
    bones, breaks = [_shaft(start, end, 0.44, 0.45)], []
    if facts.finding == "fracture":
        bones, place = _broken(start, end, 0.44, 0.45, rng)
        breaks.append(place)
    # Greater trochanter and neck, the head, the hip socket, and the knee below.
    bones.append([(-0.36, -0.42), (-0.36, -0.66), (-0.24, -0.74), (-0.10, -0.62), (0.10, -0.78),
                  (0.24, -0.62), (0.12, -0.50), (0.04, -0.36), (-0.10, -0.30)])  # fmt: skip
    head = [(0.06, -0.74), (0.20, -0.88), (0.34, -0.74), (0.20, -0.60)]
    bones.append(spline(head, closed=True, steps=4))
    bones.append([(0.16, -1.4), (0.06, -1.0), (0.20, -0.96), (0.40, -0.92), (0.44, -0.70),
                  (0.56, -0.52), (0.90, -0.50), (1.1, -1.4)])  # fmt: skip
    knee = (-0.16 + tilt, 0.91)
    bones.append(_shaft(knee, (knee[0], 1.9), 0.46, 0.5))
    return [skin], bones, breaks
