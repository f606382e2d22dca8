"""Images as shards hold them: kept where possible, else decoded and stored anew."""

import dataclasses
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_prep.images import ImageRejected, prepare_image
from tests.data_prep.factories import RULES, decoded, encoded, picture
from tests.real_data import real_data
from vlp.hashing import perceptual_hash


@pytest.mark.parametrize(
    ("kind", "mode", "extension"),
    [
        ("JPEG", "RGB", "jpg"),
        ("JPEG", "L", "jpg"),
        ("PNG", "RGB", "png"),
        ("PNG", "L", "png"),
        ("WEBP", "RGB", "webp"),
    ],
)
def test_plain_small_files_keep_their_bytes(kind: str, mode: str, extension: str) -> None:
    data = encoded(picture(mode=mode), kind)
    stored = prepare_image(data, RULES)
    assert stored.data == data
    assert stored.phash == perceptual_hash(decoded(data))
    assert (stored.extension, stored.width, stored.height) == (extension, 64, 48)


def test_large_images_are_scaled_by_their_short_side() -> None:
    stored = prepare_image(encoded(picture(1800, 1200), quality=95), RULES)
    assert (stored.width, stored.height) == decoded(stored.data).size == (768, 512)
    assert (stored.phash ^ perceptual_hash(decoded(stored.data))).bit_count() <= 2  # JPEG
    reference = picture(1800, 1200).resize((768, 512), Image.Resampling.LANCZOS)
    difference = np.asarray(reference, float) - np.asarray(decoded(stored.data), float)
    assert abs(difference).mean() < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_and_metadata_removed(kind: str) -> None:
    image = Image.new("RGB", (80, 40), "red")
    image.paste("blue", (0, 0, 40, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    exif[0x010E] = "name of the patient"
    exif.get_ifd(0x8825)[1] = "N"  # GPS
    stored = prepare_image(encoded(image, kind, exif=exif), RULES)
    after = decoded(stored.data)
    assert after.size == (stored.width, stored.height) == (40, 80)
    blue, red = after.getpixel((20, 5)), after.getpixel((20, 75))
    assert blue[2] > 250 > 5 > blue[0]
    assert red[0] > 250 > 5 > red[2]
    assert not after.getexif()
    assert b"patient" not in stored.data


@pytest.mark.parametrize("place", ["before", "after"])
def test_png_text_is_removed_wherever_it_stands(place: str) -> None:
    data = encoded(picture(), "PNG")
    body = b"tEXtComment\0name of the patient"
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    where = 33 if place == "before" else len(data) - 12  # after IHDR, before IEND
    stored = prepare_image(data[:where] + chunk + data[where:], RULES)
    assert b"patient" not in stored.data
    assert decoded(stored.data).size == (64, 48)


def test_progressive_becomes_baseline() -> None:
    stored = prepare_image(encoded(picture(), progressive=True), RULES)
    assert "progressive" not in decoded(stored.data).info


def test_comment_is_removed() -> None:
    stored = prepare_image(encoded(picture(), comment=b"name of the patient"), RULES)
    assert b"patient" not in stored.data


def test_transparency_is_put_on_white() -> None:
    image = picture(mode="RGBA")
    image.putalpha(0)
    assert decoded(prepare_image(encoded(image, "PNG"), RULES).data).getpixel((5, 5)) == 255


def test_palette_with_transparency_is_put_on_white() -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 20, 40))
    stored = decoded(prepare_image(encoded(image, "PNG", transparency=0), RULES).data)
    assert stored.getpixel((30, 10)) == (255, 255, 255)
    assert stored.getpixel((5, 10)) == (0, 0, 255)


def test_cmyk_becomes_rgb() -> None:
    image = decoded(prepare_image(encoded(picture(mode="CMYK")), RULES).data)
    assert image.mode == "RGB"
    difference = np.asarray(image, float) - np.asarray(picture(), float)
    assert abs(difference).mean() < 6


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP"])
def test_first_frame_of_several(kind: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    stored = prepare_image(data, RULES)
    assert decoded(stored.data).getpixel((20, 20))[0] > 250
    assert getattr(decoded(stored.data), "n_frames", 1) == 1


def test_name_does_not_matter_content_does() -> None:
    assert prepare_image(encoded(picture(), "BMP"), RULES).extension in ("jpg", "png")


def test_image_bomb_is_not_decoded() -> None:
    side = 60_000  # 10.8 GB of pixels in a file of under 100 bytes
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    data += struct.pack(">I", zlib.crc32(chunk))
    body = b"IDAT" + zlib.compress(bytes(1000))
    data += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    with pytest.raises(ImageRejected, match=r"^image larger than 100,000,000 pixels$"):
        prepare_image(data, RULES)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "image file empty"),
        (b"<html><body>404</body></html>", "not an image file"),
        (b"\xff\xd8\xff\xe0 nothing", "image broken"),
        (encoded(picture())[:-400], "image broken"),
        (encoded(picture(), "PNG")[:-400], "image broken"),
        (bytes(128) + b"DICM" + bytes(100), "DICOM without pixels"),
    ],
)
def test_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(ImageRejected, match=f"^{reason}$"):
        prepare_image(data, RULES)


def test_small_images_are_rejected() -> None:
    rules = dataclasses.replace(RULES, min_side=50)
    with pytest.raises(ImageRejected, match=r"^image side shorter than 50 pixels$"):
        prepare_image(encoded(picture(64, 48)), rules)


def test_bytes_flipped_at_random_are_no_crash() -> None:
    rng = np.random.default_rng(0)
    kinds = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
    originals = [np.frombuffer(encoded(picture(), kind), np.uint8) for kind in kinds]
    outcomes = set()
    for trial in range(300):
        data = originals[trial % len(kinds)].copy()
        places = rng.integers(0, min(len(data), 400), 4)
        data[places] = rng.integers(0, 256, 4)
        try:
            outcomes.add(prepare_image(data.tobytes(), RULES).extension)
        except ImageRejected as error:
            outcomes.add(str(error))
    assert {"jpg", "image broken"} <= outcomes


EXPECTED = {
    "truncated.jpg": "image broken",
    "MR_truncated.dcm": "image broken",
    "made_empty.jpg": "image file empty",
    "made_html_as.jpg": "not an image file",
}


def test_odd_formats() -> None:
    """Every odd file is either stored as a shard wants it or rejected for the right reason."""
    stored = 0
    for path in sorted(real_data("odd_formats/files").iterdir()):
        if path.name in EXPECTED:
            with pytest.raises(ImageRejected, match=EXPECTED[path.name]):
                prepare_image(path.read_bytes(), RULES)
            continue
        result = prepare_image(path.read_bytes(), RULES)
        image = decoded(result.data)
        assert image.mode in ("L", "RGB"), path.name
        assert image.size == (result.width, result.height), path.name
        assert min(image.size) <= 512, path.name
        assert np.ptp(np.asarray(image)) > 0 or image.size == (1, 1), path.name
        stored += 1
    assert stored == 24 - len(EXPECTED)
