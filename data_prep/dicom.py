"""DICOM files: the first frame as a radiologist's screen would show it, without the header.

PS3.3 of the standard: modality transformation (rescale slope and intercept), then the file's
window, then the photometric interpretation.
"""

import io
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from data_prep.pixels import window_of, windowed

if TYPE_CHECKING:
    from pydicom import Dataset

_DEFLATED = b"1.2.840.10008.1.2.1.99"


class DicomError(Exception):
    """The file cannot be used; the message is the reason that rejects.parquet records."""


def is_dicom(data: bytes) -> bool:
    """By the four letters after the preamble."""
    return data[128:132] == b"DICM"


def open_dicom(data: bytes) -> "Dataset":
    """The parsed file; its pixels are not decoded yet.

    Raises:
        DicomError: broken, or of a kind that is not read here.
    """
    import pydicom  # here, since it takes 0.3 s, and few sources hold DICOM

    if _DEFLATED in data:  # pydicom would inflate all of it, without a bound
        raise DicomError("DICOM deflated: store it uncompressed")
    with _errors_named():
        return _checked(pydicom.dcmread(io.BytesIO(data)))


def _checked(dataset: "Dataset") -> "Dataset":
    from pydicom.pixels import get_decoder

    if "Rows" not in dataset or "Columns" not in dataset:
        raise DicomError("DICOM without pixels")
    # pydicom reads values when they are asked for: whoever asks next gets what is known to be good.
    dataset.Rows, dataset.Columns = int(dataset.Rows), int(dataset.Columns)
    if str(dataset.get("BurnedInAnnotation", "")).upper() == "YES":
        raise DicomError("DICOM with burned-in annotation")  # most often the patient's name
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        readable = get_decoder(syntax).is_available
    except NotImplementedError:
        readable = False
    if not readable:
        raise DicomError(f"DICOM compression not supported: {syntax.name}")
    return dataset


def dicom_image(dataset: "Dataset") -> Image.Image:
    """The first frame as 8-bit grey or RGB.

    Raises:
        DicomError: broken.
    """
    with _errors_named():
        return _first_frame(dataset)


@contextmanager
def _errors_named() -> Iterator[None]:
    """pydicom meets hostile bytes with all of these."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        yield
    except (
        InvalidDicomError,
        BytesLengthException,
        AttributeError,  # a tag that must be there is not
        ArithmeticError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,  # decoders; too deep a nesting
        TypeError,
        ValueError,
        struct.error,
    ):
        raise DicomError("image broken") from None


def _first_frame(dataset: "Dataset") -> Image.Image:
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

    frame = pixel_array(dataset, index=0)  # YBR comes out as RGB
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        frame = apply_color_lut(frame, dataset)
    if frame.ndim == 3:
        return _colour(frame)
    values = apply_modality_lut(frame, dataset)
    image = _as_filed(values, dataset)
    if image is None:
        padding = dataset.get("PixelPaddingValue")
        inside = values if padding is None else values[frame != padding]
        image = windowed(values, window_of(inside if inside.size else values))
    return ImageOps.invert(image) if dataset.PhotometricInterpretation == "MONOCHROME1" else image


def _colour(frame: np.ndarray) -> Image.Image:
    """[height, width, 3]; deep colours lose their low bits."""
    shift = 8 * (frame.dtype.itemsize - 1)
    return Image.fromarray((frame >> shift).astype(np.uint8), "RGB")


def _as_filed(values: np.ndarray, dataset: "Dataset") -> Image.Image | None:
    """Through the file's own window or look-up table; None: it has none that shows anything."""
    from pydicom.pixels import apply_voi

    window = _window(dataset)
    if window is not None:
        centre, width, function = window
        if function == "SIGMOID":
            with np.errstate(over="ignore"):
                image = windowed(1 / (1 + np.exp(-4 * (values - centre) / width)), (0.0, 1.0))
        else:
            half = width / 2 if function == "LINEAR_EXACT" else (width - 1) / 2
            middle = centre if function == "LINEAR_EXACT" else centre - 0.5
            image = windowed(values, (middle - half, middle + half))
    elif dataset.get("VOILUTSequence"):
        depth = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        image = windowed(apply_voi(values.astype(np.int64), dataset), (0.0, 2.0**depth - 1))
    else:
        return None
    low, high = image.getextrema()
    return image if low != high else None


def _window(dataset: "Dataset") -> tuple[float, float, str] | None:
    """Centre, width and function of the first window."""
    centre, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    if centre is None or width is None:
        return None
    centre, width = (v[0] if isinstance(v, Sequence) else v for v in (centre, width))
    centre, width = float(centre), float(width)
    if not (math.isfinite(centre) and math.isfinite(width) and width > 1):
        return None
    return centre, width, str(dataset.get("VOILUTFunction") or "LINEAR").upper()
