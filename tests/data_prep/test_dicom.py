"""DICOM files through prepare_image."""

import io
import zlib
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    HTJ2K,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    RLELossless,
)

from data_prep.dicom import dicom_image, open_dicom
from data_prep.images import ImageRejected, prepare_image
from tests.data_prep.factories import RULES, decoded
from tests.real_data import real_data

RAMP = np.arange(40 * 40).reshape(40, 40)


def dicom(pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> bytes:
    """A file with these pixels, [height, width], [frames, height, width] or [..., 3]."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    colour = pixels.ndim >= 3 and pixels.shape[-1] == 3
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    if pixels.ndim - colour == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PatientName = "Doe^Jane"
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def grey(data: bytes) -> np.ndarray:
    """The 8-bit pixels before they are encoded."""
    return np.asarray(dicom_image(open_dicom(data)), float)


def test_window_of_the_file() -> None:
    """Hounsfield units by slope and intercept, then the formula of PS3.3 C.11.2.1.2.1."""
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
    data = dicom(RAMP.astype(np.int16), **tags)
    units = RAMP * 2.0 - 1024
    expected = (((units - 39.5) / 399 + 0.5) * 255).clip(0, 255)
    assert abs(grey(data) - expected).max() <= 0.51
    stored = prepare_image(data, RULES)
    assert decoded(stored.data).mode == "L"
    assert b"Jane" not in stored.data


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_window_functions(function: str) -> None:
    tags = {"WindowCenter": 800, "WindowWidth": 400, "VOILUTFunction": function}
    expected = ((RAMP - 800) / 400 + 0.5) * 255
    if function == "SIGMOID":
        expected = 255 / (1 + np.exp(-4 * (RAMP - 800) / 400))
    assert abs(grey(dicom(RAMP.astype(np.uint16), **tags)) - expected.clip(0, 255)).max() <= 0.51


def test_the_first_of_several_windows() -> None:
    tags = {"WindowCenter": [800, 40], "WindowWidth": [401, 80]}
    assert abs(grey(dicom(RAMP.astype(np.uint16), **tags))[20, 0] - 127.5) < 1


def test_monochrome1_is_inverted() -> None:
    pixels = RAMP.astype(np.uint16)
    inverted = grey(dicom(pixels, PhotometricInterpretation="MONOCHROME1"))
    assert (inverted == 255 - grey(dicom(pixels))).all()
    assert inverted[0, 0] == 255


@pytest.mark.parametrize("tags", [{}, {"WindowCenter": 1e6, "WindowWidth": 10}, {"WindowWidth": 9},
                                  {"WindowCenter": 0, "WindowWidth": 0}])  # fmt: skip
def test_without_a_window_that_shows_anything(tags: dict[str, Any]) -> None:
    data = dicom(RAMP.astype(np.uint16), **tags)
    assert abs(grey(data) - RAMP / 2047 * 255).max() <= 0.51


def test_padding_does_not_widen_the_window() -> None:
    pixels = RAMP.astype(np.int16) - 800
    pixels[:20] = -2000
    found = grey(dicom(pixels, PixelPaddingValue=-2000))
    assert (found[:20] == 0).all()
    assert abs(found[20:] - pixels[20:] / 1023 * 255).max() <= 0.51


def test_look_up_table_of_the_file() -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor = [1600, 0, 16]
    table.add_new("LUTData", "OW", np.minimum(65_535, np.arange(1600) * 50).astype("<u2").tobytes())
    found = grey(dicom(RAMP.astype(np.uint16), VOILUTSequence=[table]))
    assert abs(found - np.minimum(65_535, RAMP * 50) / 257).max() <= 0.51


def test_colour_and_frames() -> None:
    pixels = np.zeros((2, 40, 40, 3), np.uint8)
    pixels[0, ..., 0], pixels[1, ..., 2] = 200, 200
    image = decoded(prepare_image(dicom(pixels), RULES).data)
    assert image.mode == "RGB"
    assert abs(np.subtract(image.getpixel((20, 20)), (200, 0, 0))).max() < 5


def test_palette() -> None:
    lut = np.linspace(0, 65_535, 256).astype("<u2").tobytes()
    tags = {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 16] for c in ("Red", "Green", "Blue")}
    tags |= {"RedPaletteColorLookupTableData": lut}
    tags |= {f"{c}PaletteColorLookupTableData": bytes(512) for c in ("Green", "Blue")}
    pixels = np.full((40, 40), 255, np.uint8)
    data = dicom(pixels, PhotometricInterpretation="PALETTE COLOR", **tags)
    assert dicom_image(open_dicom(data)).getpixel((3, 3)) == (255, 0, 0)


def test_run_lengths() -> None:
    dataset = pydicom.dcmread(io.BytesIO(dicom(RAMP.astype(np.uint16))))
    dataset.compress(RLELossless)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    assert (grey(buffer.getvalue()) == grey(dicom(RAMP.astype(np.uint16)))).all()


def deflated() -> bytes:
    """A file whose data set would inflate to 100 MB."""
    head, _, _ = dicom(np.zeros((4, 4), np.uint8)).partition(b"\x08\x00")
    head = head.replace(
        str(ExplicitVRLittleEndian).encode() + b"\0", DeflatedExplicitVRLittleEndian.encode()
    )
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return head + deflate.compress(bytes(100 << 20)) + deflate.flush()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (dicom(RAMP.astype(np.uint16), BurnedInAnnotation="YES"),
         "DICOM with burned-in annotation"),
        (dicom(RAMP.astype(np.uint16), Rows=60_000, Columns=60_000),
         "image larger than 100,000,000 pixels"),
        (dicom(RAMP.astype(np.uint16))[:-100], "image broken"),
        (dicom(RAMP.astype(np.uint16), Rows=0), "image side shorter than 1 pixels"),
        (dicom(RAMP.astype(np.uint16), PhotometricInterpretation="PALETTE COLOR"), "image broken"),
        (deflated(), "DICOM deflated: store it uncompressed"),
        (dicom(RAMP.astype(np.uint16)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.9\0"),
         "DICOM compression not supported: 1.2.840.10008.1.9.9"),
    ],
)  # fmt: skip
def test_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(ImageRejected) as error:
        prepare_image(data, RULES)
    assert str(error.value) == reason


def test_unknown_compression_is_named() -> None:
    data = dicom(RAMP.astype(np.uint16)).replace(
        b"1.2.840.10008.1.2.1\0", HTJ2K.encode()[:20].ljust(20, b"\0")
    )
    with pytest.raises(ImageRejected, match=r"^(DICOM compression not supported|image broken)"):
        prepare_image(data, RULES)


def test_bytes_flipped_at_random_are_no_crash() -> None:
    rng = np.random.default_rng(0)
    tags = {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": 1, "RescaleIntercept": 0}
    original = np.frombuffer(dicom(RAMP.astype(np.int16), **tags), np.uint8)
    outcomes = set()
    for _ in range(200):
        data = original.copy()
        places = rng.integers(132, 700, 4)
        data[places] = rng.integers(0, 256, 4)
        try:
            outcomes.add(prepare_image(data.tobytes(), RULES).extension)
        except ImageRejected as error:
            outcomes.add(str(error))
    assert outcomes & {"jpg", "png"}
    assert "image broken" in outcomes


def test_real_files() -> None:
    """The CT has no window, the MR one that its header gives."""
    for name, mode in (
        ("CT_small.dcm", "L"),
        ("MR_small.dcm", "L"),
        ("examples_rgb_color.dcm", "RGB"),
    ):
        data = real_data(f"odd_formats/files/{name}").read_bytes()
        image = decoded(prepare_image(data, RULES).data)
        assert image.mode == mode
        assert 5 < np.asarray(image.convert("L")).mean() < 250
        assert np.asarray(image.convert("L")).std() > 20
