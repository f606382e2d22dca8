"""Perceptual hashes: equal to imagehash's, stable under what publishers do to images."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from tests.data_prep.factories import picture
from tests.real_data import real_data
from vlp.hashing import FLAT, perceptual_hash


def distance(left: Image.Image, right: Image.Image) -> int:
    """Bits in which the hashes of two images differ."""
    return (perceptual_hash(left) ^ perceptual_hash(right)).bit_count()


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    """The image after one round of JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def photograph(seed: int) -> Image.Image:
    """Structure at all scales, as a photograph has: a sum of noises of several sizes."""
    rng = np.random.default_rng(seed)
    total = np.zeros((300, 400))
    for side in (3, 6, 12, 24, 48):
        noise = Image.fromarray(rng.normal(size=(side, side)).astype(np.float32))
        total += np.asarray(noise.resize((400, 300), Image.Resampling.BICUBIC)) / side
    total = (total - total.min()) / np.ptp(total) * 255
    return Image.fromarray(total.astype(np.uint8))


def test_known_values() -> None:
    """Written down from imagehash 4.3.2, so that hash files stay comparable."""
    assert [f"{perceptual_hash(picture(seed=seed)):016x}" for seed in range(3)] == KNOWN


KNOWN = ["a7b2e3075cf81c43", "f2e91267f818ec68", "83b2d82723dc236f"]


def test_equals_imagehash_on_real_images() -> None:
    imagehash = pytest.importorskip("imagehash", reason="imagehash is not installed")
    folder = real_data("microscopy_dsb2018")
    paths = sorted(folder.rglob("*.png"))[:20] + sorted(folder.rglob("*.jpg"))[:20]
    assert paths
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert perceptual_hash(image) == int(str(imagehash.phash(image)), 16), path.name


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_near_and_others_far(seed: int) -> None:
    image = photograph(seed)
    assert distance(image, recompressed(image, 60)) <= 2
    assert distance(image, image.resize((200, 150), Image.Resampling.BICUBIC)) <= 2
    assert distance(image, image.convert("RGB")) == 0
    assert distance(image, image.point(lambda v: v * 0.85 + 10)) <= 3
    assert distance(image, photograph(seed + 100)) > 16
    assert distance(image, ImageOps.invert(image)) > 40


@pytest.mark.parametrize("level", [0, 7, 200, 255])
def test_flat_images_share_one_hash(level: int) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (90, 120), dtype=np.uint8)
    image = Image.fromarray(np.clip(level - noise.astype(int), 0, 255).astype(np.uint8))
    assert perceptual_hash(image) == FLAT
    assert perceptual_hash(recompressed(image, 50)) == FLAT


def test_symmetry_leaves_no_chance() -> None:
    """Coefficients that are zero by symmetry must not get a random sign."""
    image = Image.new("L", (256, 256))
    ImageDraw.Draw(image).ellipse((64, 64, 191, 191), fill=255)
    assert perceptual_hash(image) == perceptual_hash(ImageOps.mirror(image))
    assert perceptual_hash(image) == perceptual_hash(ImageOps.flip(image))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode(mode: str) -> None:
    assert 0 < perceptual_hash(picture(mode="RGB").convert(mode)) < 2**64
