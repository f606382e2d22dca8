"""Image files as they go into shards: small, 8-bit, upright, without metadata.

A file that already is all of this keeps its bytes; any other, DICOM included, is decoded, made so
and stored as JPEG (or PNG where that is lossless and no larger). Files are judged by their first
bytes, never by their names, and their size in pixels is checked before anything is decoded.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image, ImageOps

from data_prep.dicom import DicomError, dicom_image, is_dicom, open_dicom
from data_prep.pixels import colour_transform
from data_prep.pixels import to_eight_bits as to_eight_bits
from vlp.hashing import perceptual_hash

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_ORIENTATION = 0x0112  # EXIF and TIFF tag
_LOSSLESS = ("PNG", "GIF", "TIFF", "BMP", "DICOM")
# What Pillow reports of a file that carries pixels and colour only. Anything else (EXIF, GPS, XMP,
# IPTC, comments, transparency, progressive scans) means that the file is stored anew.
_HARMLESS = {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "adobe", "adobe_transform"}
_HARMLESS |= {"icc_profile", "gamma", "srgb", "interlace", "aspect", "chromaticity"}
_HARMLESS |= {"loop", "background", "timestamp", "duration"}  # of every WebP, animated or not
# Pillow's decoders meet hostile bytes with all of these.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, kw_only=True)
class ImageRules:
    """What an image in a shard must be like."""

    short_side: int
    """Larger images are scaled so that their shorter side has this many pixels."""
    min_side: int
    """Images with a shorter side below this are rejected."""
    max_pixels: int
    """Images that declare more pixels are rejected undecoded: image bombs."""


@dataclass(frozen=True)
class StoredImage:
    """An image file ready for a shard."""

    data: bytes
    extension: str
    """jpg, png or webp."""
    width: int
    height: int
    phash: int
    """Perceptual hash of the pixels, see vlp/hashing.py."""


class ImageRejected(Exception):
    """The file cannot be used; the message is the reason that rejects.parquet records."""


def image_format(data: bytes) -> str:
    """Pillow's name of the file's format, judged by its first bytes.

    Raises:
        ImageRejected: empty, or of no format that is read here.
    """
    if not data:
        raise ImageRejected("image file empty")
    if is_dicom(data):  # first of all: the 128 bytes before it may be a TIFF's header
        return "DICOM"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    raise ImageRejected("not an image file")


def prepare_image(data: bytes, rules: ImageRules) -> StoredImage:
    """Check one image file and bring it into the form that shards hold.

    Raises:
        ImageRejected: not an image, broken, too small or too large.
    """
    return _opened(data, rules, _prepared)


def decode_image(data: bytes, rules: ImageRules) -> Image.Image:
    """All pixels of an image file at its own size: grey or RGB, 8 bits, upright.

    Raises:
        ImageRejected: see `prepare_image`.
    """
    return _opened(data, rules, lambda image, kind, data, rules: _upright(image, None))


def encode_image(image: Image.Image, rules: ImageRules) -> StoredImage:
    """A grey or RGB picture, such as a part of a figure, in the form that shards hold."""
    size = _target(image, rules)
    plain = image if size is None else image.resize(size, Image.Resampling.LANCZOS)
    return StoredImage(_jpeg(plain), "jpg", *plain.size, perceptual_hash(plain))


Use = TypeVar("Use")


def _opened(
    data: bytes,
    rules: ImageRules,
    use: Callable[[Image.Image, str, bytes, ImageRules], Use],
) -> Use:
    """Open a file, check its size and hand image and format to `use`; all errors are rejects."""
    kind = image_format(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of oddities that decode all the same
        try:
            if kind == "DICOM":
                dataset = open_dicom(data)
                _check_size((dataset.Columns, dataset.Rows), rules)
                return use(dicom_image(dataset), kind, data, rules)
            with Image.open(io.BytesIO(data), formats=[kind]) as image:
                _check_size(image.size, rules)
                return use(image, kind, data, rules)
        except Image.DecompressionBombError:  # Pillow's own bound, met while opening
            raise ImageRejected(_too_large(rules)) from None
        except DicomError as error:
            raise ImageRejected(str(error)) from None
        except _DECODE_ERRORS:
            raise ImageRejected("image broken") from None


def _prepared(image: Image.Image, kind: str, data: bytes, rules: ImageRules) -> StoredImage:
    if _storable(image, kind, rules):
        # Decode all of it: truncated files must not pass, and PNG chunks with metadata may
        # follow the pixels.
        image.load()
        if _harmless(image):
            return StoredImage(data, _EXTENSIONS[kind], *image.size, perceptual_hash(image))
    return _store_anew(image, kind, rules)


def _check_size(size: tuple[int, int], rules: ImageRules) -> None:
    width, height = size
    if width * height > rules.max_pixels:
        raise ImageRejected(_too_large(rules))
    if min(width, height) < rules.min_side:
        raise ImageRejected(f"image side shorter than {rules.min_side} pixels")


def _too_large(rules: ImageRules) -> str:
    return f"image larger than {rules.max_pixels:,} pixels"


def _storable(image: Image.Image, kind: str, rules: ImageRules) -> bool:
    return (
        kind in _EXTENSIONS
        and image.mode in ("L", "RGB")
        and min(image.size) <= rules.short_side
        and getattr(image, "n_frames", 1) == 1
        and _harmless(image)
    )


def _harmless(image: Image.Image) -> bool:
    """Whether the file says nothing beside its pixels, and means them as sRGB."""
    return (
        _HARMLESS.issuperset(image.info)
        and colour_transform(image.info.get("icc_profile"), image.mode) is None
    )


def _store_anew(image: Image.Image, kind: str, rules: ImageRules) -> StoredImage:
    """Decode the first frame, scale it, and encode it as JPEG or PNG without metadata."""
    size = _target(image, rules)
    if size is not None:
        # JPEGs come out of the decoder already halved; twice the target keeps Lanczos sharp.
        image.draft(None, (2 * size[0], 2 * size[1]))
    plain = _upright(image, size)
    jpeg, phash = _jpeg(plain), perceptual_hash(plain)
    if kind in _LOSSLESS and size is None:
        png = _encode(plain, "PNG")
        if len(png) <= len(jpeg):
            return StoredImage(png, "png", *plain.size, phash)
    return StoredImage(jpeg, "jpg", *plain.size, phash)


def _target(image: Image.Image, rules: ImageRules) -> tuple[int, int] | None:
    """Width and height to scale an image to; None if it is small enough."""
    width, height = image.size
    scale = rules.short_side / min(width, height)
    if scale >= 1:
        return None
    return max(1, round(width * scale)), max(1, round(height * scale))


def _upright(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Decoded to 8 bits, scaled to `size` if there is one, turned as its metadata say."""
    plain = to_eight_bits(image)
    orientation = image.getexif().get(_ORIENTATION)  # after decoding: Pillow turns TIFFs itself
    if size is not None:
        plain = plain.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if orientation not in (None, 1):
        plain.getexif()[_ORIENTATION] = orientation
        plain = ImageOps.exif_transpose(plain)
    return plain


def _jpeg(image: Image.Image) -> bytes:
    return _encode(image, "JPEG", quality=92, subsampling="4:2:0", optimize=True)


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    # A fresh image: Pillow's encoders copy profiles, comments and resolution from `info`.
    bare = Image.frombytes(image.mode, image.size, image.tobytes())
    buffer = io.BytesIO()
    bare.save(buffer, kind, **options)
    return buffer.getvalue()
