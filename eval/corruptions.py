"""Image corruptions of MedMNIST-C: what compression, blur, light, noise and low resolution cost.

The definitions are those of MedMNIST-C (Di Salvo et al. 2024, arXiv 2406.17536), with the
severities that its registry gives ChestMNIST. It has others for each data set; here all tasks share
one scale, so that curves of different tasks can stand in one figure. Two things differ: an image is
reduced to `side` pixels before (MedMNIST-C knows only 224 x 224), since noise or a blur of some
pixels means little on a slide of 3,000; and the noise of an image is drawn from its own bytes, so
that it doesn't depend on the order, the workers or the other images.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

Pixels = np.ndarray
"""float64 [H, W, 3] in [0, 1]."""


@dataclass(frozen=True)
class Corruption:
    """One corruption at one severity, for the decoded image, before the model's transform."""

    name: str
    """A key of CORRUPTIONS; anything at severity 0."""
    severity: int
    """1 to 5; 0 only reduces the image to `side`, and is what the others are compared with."""
    side: int
    """Pixels of the shorter side, to which larger images are reduced first."""

    def __call__(self, image: Image.Image, data: bytes) -> Image.Image:
        """Corrupt an RGB image.

        Args:
            data: the image's file, from whose bytes noise is drawn.
        """
        image = reduced(image, self.side)
        if self.severity == 0:
            return image
        apply, _ = CORRUPTIONS[self.name]
        seed = int.from_bytes(hashlib.sha256(self.name.encode() + b"\0" + data).digest()[:8])
        # The same noise at each severity, only stronger, makes the curve smooth.
        return apply(image, self.amount, np.random.default_rng(seed))

    @property
    def amount(self) -> float:
        """What the severity means for this corruption; 0 at severity 0."""
        return CORRUPTIONS[self.name][1][self.severity - 1] if self.severity else 0


def reduced(image: Image.Image, side: int) -> Image.Image:
    """The image with its shorter side at `side` pixels; smaller images stay as they are."""
    short = min(image.size)
    if short <= side:
        return image
    size = [max(side, round(length * side / short)) for length in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.BICUBIC)


Apply = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _jpeg(image: Image.Image, quality: float, _: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


def _pixelate(image: Image.Image, share: float, _: np.random.Generator) -> Image.Image:
    """A detector with `share` of the pixels a side."""
    few = [max(1, int(length * share)) for length in image.size]
    return image.resize((few[0], few[1]), Image.Resampling.BOX).resize(
        image.size, Image.Resampling.BOX
    )


def _gaussian_noise(image: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    pixels = _floats(image)
    return _image(pixels + rng.normal(scale=scale, size=pixels.shape))


def _speckle_noise(image: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """Noise in proportion to the light, as in ultrasound."""
    pixels = _floats(image)
    return _image(pixels + pixels * rng.normal(scale=scale, size=pixels.shape))


def _gaussian_blur(image: Image.Image, kernel: float, _: np.random.Generator) -> Image.Image:
    """torchvision's gaussian_blur: the kernel's side in pixels decides its deviation."""
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    radius = int(kernel) // 2
    pixels = np.asarray(image, dtype=np.float64)
    blurred = gaussian_filter(pixels, (sigma, sigma, 0), mode="mirror", radius=(radius, radius, 0))
    return Image.fromarray(blurred.round().astype(np.uint8))


def _brightness(image: Image.Image, factor: float, _: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def _contrast(image: Image.Image, factor: float, _: np.random.Generator) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


CORRUPTIONS: dict[str, tuple[Apply, tuple[float, ...]]] = {
    "jpeg_compression": (_jpeg, (50, 30, 15, 10, 7)),  # quality
    "pixelate": (_pixelate, (0.30, 0.25, 0.20, 0.15, 0.10)),  # share of the pixels a side
    "gaussian_noise": (_gaussian_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),  # deviation; white is 1
    "speckle_noise": (_speckle_noise, (0.05, 0.15, 0.2, 0.35, 0.45)),  # deviation, of each value
    "gaussian_blur": (_gaussian_blur, (3, 5, 7, 9, 11)),  # kernel's side in pixels
    "brightness_up": (_brightness, (1.1, 1.2, 1.3, 1.4, 1.5)),  # factor
    "brightness_down": (_brightness, (0.9, 0.8, 0.7, 0.6, 0.5)),
    "contrast_up": (_contrast, (1.1, 1.2, 1.3, 1.4, 1.6)),  # factor
    "contrast_down": (_contrast, (0.9, 0.8, 0.7, 0.6, 0.4)),
}
"""Name as in MedMNIST-C -> (function, its amount at the severities 1 to 5)."""


def _floats(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.float64) / 255


def _image(pixels: Pixels) -> Image.Image:
    # Cut off, not rounded, as MedMNIST-C does it.
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))
