"""Corruptions against their definitions, Pillow and torchvision."""

import io

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional

from eval.corruptions import CORRUPTIONS, Corruption, reduced
from tests.eval.tiny import draw

SIDE = 224


def corrupted(image: Image.Image, name: str, severity: int, data: bytes = b"file") -> np.ndarray:
    """uint8 [H, W, 3]."""
    return np.asarray(Corruption(name, severity, SIDE)(image, data))


def grey(level: int, size: int = 96) -> Image.Image:
    return Image.new("RGB", (size, size), (level, level, level))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_stronger_severities_change_more(name: str) -> None:
    rng = np.random.default_rng(0)
    texture = Image.fromarray(rng.integers(0, 256, (45, 60, 3), dtype=np.uint8)).resize((120, 90))
    image = Image.blend(draw(3, 120, 90), texture, 0.3)
    clean = np.asarray(image).astype(float)
    changes = [np.abs(corrupted(image, name, s) - clean).mean() for s in range(6)]
    assert changes[0] == 0
    assert changes == sorted(changes)
    assert changes[1] > 0.3
    assert corrupted(image, name, 5).shape == clean.shape


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_blur_equals_torchvision(severity: int) -> None:
    """MedMNIST-C calls torchvision's gaussian_blur with the side of the kernel alone."""
    image = draw(1, 61, 47)
    kernel = int(CORRUPTIONS["gaussian_blur"][1][severity - 1])
    expected = np.asarray(functional.gaussian_blur(image, [kernel, kernel])).astype(int)
    # One level: both round, torchvision after a computation in single precision.
    assert np.abs(corrupted(image, "gaussian_blur", severity) - expected).max() <= 1


def test_jpeg_equals_saving_and_opening() -> None:
    image, buffer = draw(2), io.BytesIO()
    image.save(buffer, "JPEG", quality=15)
    expected = np.asarray(Image.open(buffer))
    assert np.array_equal(corrupted(image, "jpeg_compression", 3), expected)


def test_pixelate_leaves_few_values() -> None:
    """A quarter of 64 pixels a side is 16: blocks of 4 x 4, each the mean of what it covers."""
    pixels = np.arange(64 * 64).reshape(64, 64) % 251
    image = Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
    found = corrupted(image, "pixelate", 2)[:, :, 0]
    blocks = pixels.reshape(16, 4, 16, 4).mean(axis=(1, 3))
    # Pillow rounds the means along rows, and then those along columns.
    assert np.abs(found - np.kron(blocks, np.ones((4, 4)))).max() <= 1


def test_light_has_the_expected_levels() -> None:
    assert (corrupted(grey(100), "brightness_down", 5) == 50).all()
    assert (corrupted(grey(100), "brightness_up", 5) == 150).all()
    assert (corrupted(grey(100), "contrast_down", 5) == 100).all(), "one level has no contrast"
    halves = Image.fromarray(np.repeat([[[50] * 3, [150] * 3]], 32, axis=0).astype(np.uint8))
    assert set(np.unique(corrupted(halves, "contrast_down", 5))) == {80, 120}  # 100 ± 0.4 * 50


@pytest.mark.parametrize(("name", "scale"), [("gaussian_noise", 1), ("speckle_noise", 0.5)])
def test_noise_has_the_expected_deviation(name: str, scale: float) -> None:
    image = Image.new("RGB", (200, 200), (128, 128, 128))
    for severity in (1, 2):  # stronger noise is cut off at black and white
        noise = corrupted(image, name, severity) / 255 - 128 / 255
        expected = CORRUPTIONS[name][1][severity - 1] * scale
        assert noise.std() == pytest.approx(expected, rel=0.02)
        assert abs(noise.mean()) < 0.004, "half a level, since values are cut off, not rounded"
    assert not corrupted(grey(0), "speckle_noise", 5).any(), "black stays black"


def test_noise_depends_on_the_image_alone() -> None:
    image = draw(0)
    once = corrupted(image, "gaussian_noise", 2, b"one file")
    corrupted(image, "gaussian_noise", 2, b"another file")
    assert np.array_equal(corrupted(image, "gaussian_noise", 2, b"one file"), once)
    assert not np.array_equal(corrupted(image, "gaussian_noise", 2, b"another file"), once)


def test_larger_images_are_reduced_before() -> None:
    assert reduced(draw(0, 900, 600), 224).size == (336, 224)
    assert reduced(draw(0, 600, 900), 224).size == (224, 336)
    small = draw(0, 300, 200)
    assert reduced(small, 224) is small
    # Otherwise the noise of a large image would vanish when the model's transform reduces it.
    large = grey(128, 896)
    noise = corrupted(large, "gaussian_noise", 2)
    assert noise.shape == (224, 224, 3)
    assert noise.std() == pytest.approx(0.08 * 255, rel=0.03)
