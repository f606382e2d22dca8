"""Pixels of any kind as 8-bit grey or RGB: transparency, palettes, colour profiles, deep greys."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_MAX_PROFILE = 1 << 22  # bytes; profiles of presses have up to 2 MB
_SAMPLE = 1 << 20  # pixels that are enough for percentiles
_TAILS = (0.1, 99.9)  # percent
_WELL_EXPOSED = 0.25


def to_eight_bits(image: Image.Image) -> Image.Image:
    """The image as 8-bit grey ("L") or "RGB": alpha on white, deep greys windowed, no palette.

    Colours are brought into sRGB where a profile in the file says that they are others; without
    one, CMYK is converted by the plain formula.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return windowed(np.asarray(image))
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        on_white = Image.new("RGBA", rgba.size, "white")
        on_white.alpha_composite(rgba)
        red, green, blue, _ = (channel.tobytes() for channel in on_white.split())
        return on_white.convert("L" if red == green == blue else "RGB")
    if image.mode in ("RGB", "CMYK"):
        transform = colour_transform(image.info.get("icc_profile"), image.mode)
        if transform is not None:
            converted: Image.Image = transform.apply(image)
            return converted
    image.load()
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


@lru_cache(maxsize=8)
def colour_transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a file's colours to sRGB; None: they are that already, or the profile is unusable."""
    if not profile or len(profile) > _MAX_PROFILE:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != mode:
            return None
        if "sRGB" in (source.profile.profile_description or ""):
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def windowed(values: np.ndarray, window: tuple[float, float] | None = None) -> Image.Image:
    """Grey of any depth as 8 bits; `window` is what becomes black and white.

    Without one: integers keep their zero black, and the power of two above the largest becomes
    white, so a 12-bit micrograph in a 16-bit file does not come out dark. Where a few hot pixels
    would darken all the rest, and for floats, the window goes from the 0.1st to the 99.9th
    percentile. Numbers that are none count as black.

    Args:
        values: [height, width], integers or floats.
        window: two values, the lower first.
    """
    low, high = window or window_of(values)
    grey = values.astype(np.float32)
    grey -= low
    grey *= 255.0 / (high - low) if high > low else 0.0
    np.nan_to_num(grey, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return Image.fromarray(np.clip(grey.round(), 0, 255).astype(np.uint8))


def window_of(values: np.ndarray) -> tuple[float, float]:
    """The window that `windowed` takes by itself."""
    sample = values.ravel()[:: max(1, values.size // _SAMPLE)]
    if values.dtype.kind == "f":
        sample = sample[np.isfinite(sample)]
        if not sample.size:
            return 0.0, 0.0
    low, high = (float(value) for value in np.percentile(sample, _TAILS))
    if values.dtype.kind != "f" and int(values.min()) >= 0:
        white = float((1 << max(8, int(values.max()).bit_length())) - 1)
        if high >= _WELL_EXPOSED * white:
            return 0.0, white
    return (low, high) if high > low else (float(sample.min()), float(sample.max()))
