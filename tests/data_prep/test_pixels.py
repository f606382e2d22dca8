"""Pixels of any depth and colour as 8-bit grey or sRGB."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_prep.images import prepare_image
from data_prep.pixels import to_eight_bits, windowed
from tests.data_prep.factories import RULES, decoded, encoded, picture


@pytest.mark.parametrize("bits", [12, 16])
def test_deep_grey_keeps_black_and_gets_white(bits: int) -> None:
    values = np.linspace(0, 2**bits - 1, 64 * 48).reshape(48, 64).astype(np.uint16)
    image = decoded(prepare_image(encoded(Image.fromarray(values), "PNG"), RULES).data)
    assert image.mode == "L"
    difference = np.asarray(image, float) - values / (2**bits - 1) * 255
    assert abs(difference).max() <= 4  # JPEG


def test_a_dim_image_without_black_keeps_its_contrast_to_black() -> None:
    values = np.linspace(900, 1100, 4096).reshape(64, 64).astype(np.uint16)
    grey = np.asarray(windowed(values))
    assert (grey.min(), grey.max()) == (round(900 / 2047 * 255), round(1100 / 2047 * 255))


def test_hot_pixels_do_not_darken_the_rest() -> None:
    values = np.linspace(100, 500, 10_000).reshape(100, 100).astype(np.uint16)
    values[0, :3] = 65_535
    grey = np.asarray(windowed(values), float)
    assert grey[0, :3].tolist() == [255, 255, 255]
    expected = (values - 100.4) / (499.6 - 100.4) * 255
    assert abs(grey - expected.clip(0, 255)).max() < 2


@pytest.mark.parametrize("offset", [0.0, -1e6, 1e-3])
def test_floats_are_stretched(offset: float) -> None:
    values = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(100, 100) + np.float32(offset)
    grey = np.asarray(windowed(values))
    assert (grey[0, 0], grey[-1, -1]) == (0, 255)
    assert (np.diff(grey.ravel().astype(int)) >= 0).all()


def test_signed_integers_are_stretched() -> None:
    values = np.linspace(-1000, 1000, 10_000).reshape(100, 100).astype(np.int16)
    grey = np.asarray(windowed(values))
    assert (grey[0, 0], grey[-1, -1]) == (0, 255)
    assert abs(int(grey[50, 0]) - 127) <= 1


def test_not_a_number_is_black_and_flat_images_stay_flat() -> None:
    values = np.linspace(0, 1, 10_000).reshape(100, 100)
    values[50, :50] = np.nan
    values[0, 0], values[0, 1] = np.inf, -np.inf
    grey = np.asarray(windowed(values))
    assert (grey[50, :50] == 0).all()
    assert (grey[0, 0], grey[0, 1]) == (255, 0)
    for flat in (np.full((4, 4), np.nan), np.full((4, 4), 7.0), np.zeros((4, 4), np.uint16)):
        assert np.ptp(np.asarray(windowed(flat))) == 0


def test_a_given_window() -> None:
    grey = np.asarray(windowed(np.array([[0, 10, 15, 20, 30]]), (10.0, 20.0)))
    assert grey.tolist() == [[0, 0, 128, 255, 255]]


def profile(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def swapped_profile() -> bytes:
    """sRGB with red and blue primaries changed places, under a name of its own."""
    data = bytearray(profile("sRGB"))
    tags = {bytes(data[p : p + 4]): p for p in range(132, 132 + 12 * data[131], 12)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = (
        data[blue + 4 : blue + 12],
        data[red + 4 : red + 12],
    )
    for encoding in ("utf-16-be", "ascii"):
        data = data.replace("sRGB".encode(encoding), "mine".encode(encoding))
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colours_follow_the_profile(kind: str) -> None:
    image = Image.new("RGB", (40, 40), (250, 20, 10))
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = prepare_image(encoded(image, kind, icc_profile=swapped_profile(), **options), RULES)
    pixel = decoded(stored.data).getpixel((20, 20))
    assert abs(np.subtract(pixel, (10, 20, 250))).max() < 12
    assert "icc_profile" not in decoded(stored.data).info


def test_files_in_srgb_keep_their_bytes() -> None:
    data = encoded(picture(), icc_profile=profile("sRGB"))
    assert prepare_image(data, RULES).data == data


@pytest.mark.parametrize("broken", [b"x" * 500, profile("sRGB")[:200], b"\0" * (5 << 20)])
def test_broken_profiles_are_ignored(broken: bytes) -> None:
    data = encoded(picture(), "TIFF", icc_profile=broken)
    assert prepare_image(data, RULES).extension in ("png", "jpg")


def test_a_profile_for_another_kind_of_pixels_is_ignored() -> None:
    image = picture(mode="CMYK")
    image.info["icc_profile"] = swapped_profile()  # for RGB
    assert to_eight_bits(image).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16", "P"])
def test_grey_stays_grey(mode: str) -> None:
    grey = picture(mode="L")
    if mode == "I;16":
        grey = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode == "P":
        grey = grey.convert("P")
    else:
        grey = grey.convert(mode)
    buffer = io.BytesIO()
    grey.save(buffer, "PNG")
    assert decoded(prepare_image(buffer.getvalue(), RULES).data).mode == "L"
