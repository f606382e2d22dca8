"""What kind of figure an image is: a picture of a specimen, a plot, a diagram, a table, or other.

Some sixty cheap numbers about colours, edges, lines and blank space go through a network with one
hidden layer. Its weights lie in kinds.json; `python -m data_prep.train_kinds` makes them from
generated figures alone.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

KINDS = ("image", "plot", "diagram", "table", "other")
"""`image`: photographs, micrographs, radiographs, gels; `other`: text, maps, mixed compounds."""
WEIGHTS = Path(__file__).with_name("kinds.json")
FEATURES = 1
"""Raise it when `features` changes: weights of another version are refused."""
_SIDE = 320  # longer side in pixels at which features are taken
_BLOCK = 8


@dataclass(frozen=True)
class Kind:
    """The most probable kind."""

    name: str
    """One of KINDS."""
    probability: float


@dataclass(frozen=True)
class Network:
    """Standardised features, one hidden layer with ReLU, softmax over KINDS."""

    mean: Floats
    scale: Floats
    hidden: Floats
    """[D, H]"""
    hidden_bias: Floats
    output: Floats
    """[H, K]"""
    output_bias: Floats

    def probabilities(self, rows: Floats) -> Floats:
        """[N, K] from features [N, D]."""
        inner = np.maximum(0, (rows - self.mean) / self.scale @ self.hidden + self.hidden_bias)
        logits = inner @ self.output + self.output_bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def classify(image: Image.Image) -> Kind:
    """The kind of a figure, of any size and mode."""
    probabilities = load_network().probabilities(features(image)[None])[0]
    best = int(probabilities.argmax())
    return Kind(KINDS[best], float(probabilities[best]))


@cache
def load_network(path: Path = WEIGHTS) -> Network:
    """The network of a weights file.

    Raises:
        ValueError: it was trained on another version of the features.
    """
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["features"] != FEATURES or tuple(stored["kinds"]) != KINDS:
        raise ValueError(f"{path}: made for other features; run python -m data_prep.train_kinds")
    return Network(**{name: np.array(values) for name, values in stored["network"].items()})


def features(image: Image.Image) -> Floats:
    """The numbers [D] by which kinds are told apart, all near 0 to 1."""
    rgb = image.convert("RGB")
    scale = _SIDE / max(rgb.size)
    size = (max(16, round(rgb.width * scale)), max(16, round(rgb.height * scale)))
    small = rgb.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    # Planes, not pixels: numpy is slow along an axis of three.
    red, green, blue = np.moveaxis(np.asarray(small), -1, 0).astype(np.float64) / 255
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    least = np.minimum(np.minimum(red, green), blue)
    most = np.maximum(np.maximum(red, green), blue)
    blank = (least > 0.94) | (most < 0.05)
    return np.concatenate(
        [
            [np.log(image.width / image.height)],
            _colours(red, green, blue, most - least),
            _shades(grey),
            _edges(grey, blank),
            _lines(grey),
            _spaces(~blank),
            _pieces(grey),
            _blocks(grey, blank),
        ]
    )


def _entropy(counts: NDArray[np.int64]) -> float:
    """In bits."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log2(shares)).sum())


def _colours(red: Floats, green: Floats, blue: Floats, saturation: Floats) -> list[float]:
    """How many colours, how saturated."""
    bins = sum((plane * 15.99).astype(np.int64) << shift for plane, shift in
               ((red, 8), (green, 4), (blue, 0)))  # fmt: skip
    counts = np.sort(np.bincount(np.ravel(bins), minlength=4096))[::-1]
    shares = np.cumsum(counts) / counts.sum()
    vivid = saturation > 0.2
    r, g, b = red[vivid], green[vivid], blue[vivid]
    hue = np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b)
    hues = np.histogram(hue, 18, (-np.pi, np.pi))[0]
    return [
        *(float(shares[n - 1]) for n in (1, 2, 4, 8, 16, 64)),
        _entropy(counts) / 12,
        float((counts > 0).sum() ** 0.5 / 64),
        float(saturation.mean()),
        float(saturation.std()),
        *(float((saturation > level).mean()) for level in (0.08, 0.2, 0.5)),
        _entropy(hues) / 5,
        float((hues > 0.02 * max(1, hues.sum())).mean()),
    ]


def _shades(grey: Floats) -> list[float]:
    """The histogram of brightness."""
    counts = np.histogram(grey, 32, (0, 1))[0]
    levels = np.percentile(grey, (5, 25, 50, 75, 95))
    return [
        *levels.tolist(),
        float((grey > 0.94).mean()),
        float((grey < 0.06).mean()),
        float(((grey > 0.15) & (grey < 0.85)).mean()),
        _entropy(counts) / 5,
    ]


def _edges(grey: Floats, blank: Bools) -> list[float]:
    """Sharp edges and flat fills speak for drawings, gentle slopes and grain for pictures."""
    across, along = np.abs(np.diff(grey, axis=1)[1:]), np.abs(np.diff(grey, axis=0)[:, 1:])
    slope = np.hypot(across, along)
    strong = slope > 0.15
    straight = strong & ((across > 4 * along) | (along > 4 * across))
    ink = ~blank[1:, 1:]
    inside = slope[ink] if ink.any() else slope.ravel()
    second = np.abs(grey[1:-1, 2:] + grey[1:-1, :-2] - 2 * grey[1:-1, 1:-1])
    grain = second[~blank[1:-1, 1:-1]]
    return [
        float((slope < 0.008).mean()),
        float(((slope >= 0.008) & (slope < 0.06)).mean()),
        float(strong.mean()),
        float(straight.sum() / max(1, strong.sum())),
        float((inside < 0.008).mean()),
        float(((inside >= 0.008) & (inside < 0.06)).mean()),
        float((inside > 0.15).mean()),
        float(np.median(grain)) * 10 if len(grain) else 0.0,
        float(slope.mean()) * 5,
    ]


def _longest_runs(marks: Bools) -> NDArray[np.int64]:
    """For each row the length of its longest run of marks."""
    length = np.zeros(marks.shape[0], np.int64)
    best = length.copy()
    for column in np.ascontiguousarray(marks.T):
        length = np.where(column, length + 1, 0)
        np.maximum(best, length, out=best)
    return best


def _lines(grey: Floats) -> list[float]:
    """Rules, axes and frames: long straight edges, lying and standing."""
    numbers: list[float] = []
    for image in (grey, grey.T):
        runs = _longest_runs(np.abs(np.diff(image, axis=0)) > 0.08) / image.shape[1]
        ordered = np.sort(runs)[::-1]
        numbers += [float(ordered[n]) for n in (0, 3, 7)]
        numbers += [float((runs > share).sum()) / 40 for share in (0.15, 0.5, 0.85)]
    return numbers


def _spaces(ink: Bools) -> list[float]:
    """Blank rows and columns, their alternation with filled ones, and its regularity."""
    numbers: list[float] = []
    for axis in (0, 1):
        profile = ink.mean(axis=1 - axis)
        blank = profile < 0.004
        changes = np.count_nonzero(np.diff(blank.astype(np.int8)))
        centred = profile - profile.mean()
        power = float(centred @ centred) + 1e-9
        lags = [float(centred[lag:] @ centred[:-lag]) / power for lag in range(5, 40) if
                lag < len(centred)]  # fmt: skip
        valley = int(np.argmin(lags[:12])) if lags else 0
        numbers += [
            float(profile.mean()),
            float(profile.std()),
            float(blank.mean()),
            changes / 60,
            max(lags[valley:], default=0.0),
            float(profile.max()),
        ]
    return numbers


def _pieces(grey: Floats) -> list[float]:
    """Connected dark pieces: letters are many, small and alike; lines are large and thin."""
    from scipy import ndimage  # slow to import, and not always needed

    marked, count = ndimage.label(grey < 0.55)
    if not count:
        return [0.0] * 6
    spans = [(y.stop - y.start, x.stop - x.start) for y, x in ndimage.find_objects(marked)]
    tall, wide = np.array(spans, dtype=np.float64).T
    area = np.bincount(marked.ravel())[1:]
    text = (tall >= 3) & (tall <= 14) & (wide <= 40)
    return [
        float(np.log1p(count)) / 8,
        float(text.mean()),
        float(area[text].sum() / area.sum()),
        float(area.max() / grey.size),
        float(area[area.argmax()] / (tall[area.argmax()] * wide[area.argmax()])),
        float(np.log1p(text.sum())) / 8,
    ]


def _blocks(grey: Floats, blank: Bools) -> list[float]:
    """Shares of blocks that are blank, solid, textured or edged, and how they cluster."""
    from scipy import ndimage  # slow to import, and not always needed

    height, width = (side // _BLOCK * _BLOCK for side in grey.shape)
    shape = (height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    spread = grey[:height, :width].reshape(shape).std(axis=(1, 3))
    empty = blank[:height, :width].reshape(shape).mean(axis=(1, 3))
    clear, solid = empty > 0.99, (empty < 0.5) & (spread < 0.006)
    texture = (empty < 0.1) & (spread >= 0.006) & (spread < 0.12)
    edged = spread >= 0.2
    joined = texture[1:] & texture[:-1]
    marked, count = ndimage.label(texture)
    largest = int(np.bincount(marked.ravel())[1:].max()) if count else 0
    return [
        *(float(part.mean()) for part in (clear, solid, texture, edged)),
        float(joined.sum() / max(1, texture.sum())),
        largest / texture.size,
    ]
