"""Image files as they go into shards: small, 8-bit, upright, without metadata.

A file that already is all of this keeps its bytes; any other is decoded, made so and stored as
JPEG (or PNG where that is lossless and no larger). Files are judged by their first bytes, never by
their names, and their size in pixels is checked before anything is decoded.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

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
_LOSSLESS = ("PNG", "GIF", "TIFF", "BMP")
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


class ImageRejected(Exception):
    """The file cannot be used; the message is the reason that rejects.parquet records."""


def image_format(data: bytes) -> str:
    """Pillow's name of the file's format, judged by its first bytes.

    Raises:
        ImageRejected: empty, or of no format that is read here.
    """
    if not data:
        raise ImageRejected("image file empty")
    if data[128:132] == b"DICM":  # first of all: the 128 bytes before it may be a TIFF's header
        raise ImageRejected("DICOM file: convert it to an image first")
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
    kind = image_format(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of oddities that decode all the same
        try:
            with Image.open(io.BytesIO(data), formats=[kind]) as image:
                _check_size(image, rules)
                if _storable(image, kind, rules):
                    # Decode all of it: truncated files must not pass, and PNG chunks with
                    # metadata may follow the pixels.
                    image.load()
                    if _harmless(image):
                        return StoredImage(data, _EXTENSIONS[kind], *image.size)
                return _store_anew(image, kind, rules)
        except Image.DecompressionBombError:  # Pillow's own bound, met while opening
            raise ImageRejected(_too_large(rules)) from None
        except _DECODE_ERRORS:
            raise ImageRejected("image broken") from None


def _check_size(image: Image.Image, rules: ImageRules) -> None:
    width, height = image.size
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
    return _HARMLESS.issuperset(image.info)


def _store_anew(image: Image.Image, kind: str, rules: ImageRules) -> StoredImage:
    """Decode the first frame, scale it, and encode it as JPEG or PNG without metadata."""
    width, height = image.size
    scale = min(1.0, rules.short_side / min(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if scale < 1:
        # JPEGs come out of the decoder already halved; twice the target keeps Lanczos sharp.
        image.draft(None, (2 * size[0], 2 * size[1]))
    plain = to_eight_bits(image)
    orientation = image.getexif().get(_ORIENTATION)  # after decoding: Pillow turns TIFFs itself
    if scale < 1:
        plain = plain.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if orientation not in (None, 1):
        plain.getexif()[_ORIENTATION] = orientation
        plain = ImageOps.exif_transpose(plain)
    jpeg = _encode(plain, "JPEG", quality=92, subsampling="4:2:0", optimize=True)
    if kind in _LOSSLESS and scale == 1:
        png = _encode(plain, "PNG")
        if len(png) <= len(jpeg):
            return StoredImage(png, "png", *plain.size)
    return StoredImage(jpeg, "jpg", *plain.size)


def to_eight_bits(image: Image.Image) -> Image.Image:
    """The image as 8-bit grey ("L") or "RGB": alpha on white, 16 bits rescaled, no palette."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _rescale(np.asarray(image))
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        on_white = Image.new("RGBA", rgba.size, "white")
        on_white.alpha_composite(rgba)
        red, green, blue, _ = (channel.tobytes() for channel in on_white.split())
        return on_white.convert("L" if red == green == blue else "RGB")
    return image.copy() if image.mode in ("L", "RGB") else image.convert("RGB")


def _rescale(values: np.ndarray) -> Image.Image:
    """16- and 32-bit grey to 8 bits.

    Integers lose their low bits, as many as the largest value needs: black stays black, and a
    12-bit micrograph in a 16-bit file does not come out dark. Floats are stretched to 0..255.
    """
    if values.dtype.kind == "f":
        finite = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
        low, high = float(finite.min()), float(finite.max())
        scaled = (finite - low) * (255.0 / (high - low) if high > low else 0.0)
        return Image.fromarray(scaled.round().astype(np.uint8))
    whole = values.astype(np.int64)
    whole -= min(0, int(whole.min()))
    shift = max(0, int(whole.max()).bit_length() - 8)
    return Image.fromarray((whole >> shift).astype(np.uint8))


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    # A fresh image: Pillow's encoders copy profiles, comments and resolution from `info`.
    bare = Image.frombytes(image.mode, image.size, image.tobytes())
    buffer = io.BytesIO()
    bare.save(buffer, kind, **options)
    return buffer.getvalue()
