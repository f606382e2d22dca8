"""More pictures than the corpus has: photographs, blots and cell cultures, crudely drawn."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.phantom.drawing import font
from data_prep.phantom.inks import BLACK, WHITE, Size, colour, words


def cloud(rng: np.random.Generator, size: Size, power: float) -> np.ndarray:
    """Colour noise with a spectrum 1/f^power, as photographs have: uint8 [H, W, 3]."""
    width, height = size
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / max(size)) ** power
    common, layers = rng.normal(size=(height, width)), []
    for _ in range(3):
        noise = common + 0.5 * rng.normal(size=(height, width))
        layer = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, (height, width))
        layers.append((layer - layer.mean()) / layer.std())
    low = rng.uniform(20, 60)
    return np.clip(np.stack(layers, -1) * rng.uniform(25, 60) + 128 + low - 40, 0, 255).astype(
        np.uint8
    )


def photograph(rng: np.random.Generator, size: Size) -> Image.Image:
    """Bodies of skin, tissue or organs before a cloth: smooth shades, texture, grain."""
    picture = Image.fromarray(cloud(rng, size, rng.uniform(1.1, 1.8)))
    pen = ImageDraw.Draw(picture, "RGBA")
    for _ in range(int(rng.integers(2, 9))):
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        w, h = rng.uniform(0.1, 0.5, 2) * size
        pen.ellipse(
            (x - w / 2, y - h / 2, x + w / 2, y + h / 2), (*colour(rng, (0.2, 0.8), 0.7), 130)
        )
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2)))
    pixels = np.asarray(picture, np.float32) + rng.normal(
        0, rng.uniform(1, 7), (size[1], size[0], 1)
    )
    tint = np.array(colour(rng, (0.0, 0.5), 1.0)) / 255
    return Image.fromarray(np.clip(pixels * tint, 0, 255).astype(np.uint8))


def blot(rng: np.random.Generator, size: Size) -> Image.Image:
    """Rows of dark bands on grey strips, with names beside and above."""
    width, height = size
    rows, lanes = int(rng.integers(1, 6)), int(rng.integers(2, 10))
    page = Image.new("RGB", size, WHITE)
    pen = ImageDraw.Draw(page)
    left, top = round(0.2 * width), round(0.1 * height)
    strip = max(8, round(0.85 * (height - top) / rows) - 4)
    for row in range(rows):
        base = np.full((strip, width - left - 8), rng.uniform(170, 230))
        y, x = np.mgrid[0 : base.shape[0], 0 : base.shape[1]]
        for lane in range(lanes):
            centre = (lane + 0.5) / lanes * base.shape[1]
            across = np.exp(-(((x - centre) / (0.33 * base.shape[1] / lanes)) ** 4))
            along = np.exp(-(((y - strip / 2) / (0.2 * strip)) ** 2))
            base -= rng.uniform(10, 190) * across * along
        base += rng.normal(0, 4, base.shape)
        place = (left, top + row * (height - top) // rows)
        page.paste(Image.fromarray(np.clip(base, 0, 255).astype(np.uint8)), place)
        pen.text((left - 6, place[1] + strip / 2), words(rng, 1, 1), BLACK, font(14), anchor="rm")
    for lane in range(lanes):
        x = left + (lane + 0.5) / lanes * (width - left - 8)
        pen.text((x, top / 2), str(rng.choice(["+", "-", "WT", "KO", "1"])), BLACK, font(14), "mm")
    return page


def culture(rng: np.random.Generator, size: Size) -> Image.Image:
    """Cells in phase contrast: grey, each with a bright rim."""
    width, height = max(24, size[0] // 2), max(24, size[1] // 2)
    grain = Image.fromarray(cloud(rng, (width, height), 1.2)).convert("L")
    grey = np.asarray(grain, np.float32)
    grey = 125 + 0.25 * (grey - 128)
    y, x = np.mgrid[0:height, 0:width]
    for _ in range(int(rng.integers(8, 50))):
        cx, cy, turn = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, math.pi)
        a, b = rng.uniform(0.02, 0.06) * width, rng.uniform(0.012, 0.03) * width
        u = ((x - cx) * math.cos(turn) + (y - cy) * math.sin(turn)) / a
        v = ((y - cy) * math.cos(turn) - (x - cx) * math.sin(turn)) / b
        r = np.hypot(u, v)
        grey += 80 * np.exp(-((r - 1.15) ** 2) / 0.04) - 50 * (r < 1)
    grey += rng.normal(0, 5, grey.shape)
    small = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    return small.resize(size, Image.Resampling.BICUBIC)


def nuclei(rng: np.random.Generator, size: Size) -> Image.Image:
    """Blots of one colour on an almost even ground, dark or light: nuclei, cells of a smear."""
    width, height = max(24, size[0] // 3), max(24, size[1] // 3)  # smooth, so enlarged later
    light = rng.random() < 0.5
    ground = np.array(colour(rng, (0.0, 0.25), rng.uniform(0.75, 1.0)) if light else (0, 0, 0))
    body = np.array(colour(rng, (0.2, 0.8), 0.7) if light else colour(rng, (0.0, 0.9), 0.9))
    y, x = np.mgrid[0:height, 0:width]
    share = np.zeros((height, width))
    radius = rng.uniform(0.012, 0.08) * max(width, height)
    for _ in range(int(rng.integers(5, 90))):
        cx, cy, squeeze = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.7, 1.4)
        r = np.hypot((x - cx) * squeeze, (y - cy) / squeeze) / (radius * rng.uniform(0.7, 1.3))
        edge = 1 + np.exp(np.minimum(12 * (r - 1), 50))
        np.maximum(share, rng.uniform(0.4, 1) / edge, out=share)
    grain = Image.fromarray(cloud(rng, (width, height), 1.0)).convert("L")
    texture = np.asarray(grain, np.float64) / 255 - 0.5
    share = share * (1 + 0.5 * texture) + rng.uniform(0, 0.1) * texture
    pixels = np.clip(ground + share[..., None] * (body - ground), 0, 255).astype(np.uint8)
    large = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), np.float64)
    large += rng.normal(0, rng.uniform(0, 5), (size[1], size[0], 1))
    return Image.fromarray(np.clip(large, 0, 255).astype(np.uint8))
