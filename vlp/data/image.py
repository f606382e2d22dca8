"""Stored image bytes to uint8 pixels: a fast path for training, an exact one for evaluation.

Training decodes JPEG at the smallest scale (1/8, 1/4, 1/2, 1) that leaves the crop GUARD times as
many pixels a side as the result has, then crops and resizes in one step: benchmarks/loader.py
measures how much faster that is, and how near the pixels stay to Pillow's. Evaluation decodes whole
and resizes with Pillow, exactly as open_clip does.
"""

import io
import math
import threading
from collections.abc import Sequence

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 178_956_970
"""Bound on width * height, Pillow's own; a larger header is refused before any decoding."""

GUARD = 1.35
"""Pixels kept a side for each of the result's when decoding at reduced scale.

Below 1.35 figures with lettering suffer first: the 5th percentile of PSNR over 39 figures of real
articles was 34 dB at 1.25 and 50 dB from 1.35 on.
"""

SCRATCH = 2**25
"""Bytes of decoded pixels up to which their memory is used again for the next image."""

_RATIO = (math.log(3 / 4), math.log(4 / 3))

Box = tuple[int, int, int, int]


class ImageError(Exception):
    """An image that can't be decoded; the message says why."""


def random_crop(
    width: int, height: int, scale: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Left, top, width, height of a random crop, in pixels.

    The distribution is that of torchvision's RandomResizedCrop with its default aspect ratios:
    area uniform in `scale`, log aspect uniform in [3/4, 4/3], ten tries, then the centre.
    """
    least, most = scale
    for _ in range(10):
        # One call for the four numbers: each call costs more than drawing does.
        share, aspect, across, down = rng.random(4).tolist()
        area = width * height * (least + share * (most - least))
        aspect = math.exp(_RATIO[0] + aspect * (_RATIO[1] - _RATIO[0]))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(across * (width - w + 1)), int(down * (height - h + 1)), w, h
    aspect = min(max(width / height, 3 / 4), 4 / 3)
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (width - w) // 2, (height - h) // 2, w, h


def decode_crop(
    data: bytes,
    size: int,
    scale: tuple[float, float],
    rng: np.random.Generator,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """A random crop of an encoded image, resized: uint8 [3, size, size].

    Args:
        data: the file.
        size: side of the result in pixels.
        scale: least and greatest area of the crop, as a share of the image.
        rng: draws the crop.
        out: uint8 [1, 3, size, size], channels last, to write the result into: a row of a batch.
            It spares an allocation and a copy, which together take as long as the resizing.

    Raises:
        ImageError: not an image, damaged, or larger than MAX_PIXELS.
    """
    if data[:3] == b"\xff\xd8\xff":
        pixels, (left, top, w, h) = _jpeg_crop(data, size, scale, rng)
    else:
        pixels = np.array(open_rgb(data))
        left, top, w, h = random_crop(pixels.shape[1], pixels.shape[0], scale, rng)
    if out is None:
        out = torch.empty((1, 3, size, size), dtype=torch.uint8, memory_format=torch.channels_last)
    # The permuted view keeps the HWC strides, for which the uint8 kernel is 4 times faster.
    crop = torch.from_numpy(cut(pixels, (left, top, w, h))).permute(2, 0, 1)[None]
    # F.interpolate(mode="bicubic", antialias=True) calls the same kernel, but has no `out`.
    torch.ops.aten._upsample_bicubic2d_aa.out(crop, [size, size], False, None, None, out=out)
    return out[0]


def _jpeg_crop(
    data: bytes, size: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[np.ndarray, Box]:
    """(uint8 [H, W, 3] at reduced scale, the crop in those pixels)."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise ImageError(f"damaged JPEG: {error}") from None
    _bound(width, height)
    box = random_crop(width, height, scale, rng)
    unit = reduction(min(box[2:]), size)
    snapped = snap(box, unit, width, height)
    try:
        # Least sizes that select the scale 1/unit: the decoder takes the smallest that fits.
        pixels = simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_height=-(-height // unit),
            min_width=-(-width // unit),
            buffer=_scratch("decoded", 3 * -(-height // unit) * -(-width // unit)),
        )
    except ValueError:
        # libjpeg-turbo refuses some files that Pillow reads, among them odd CMYK ones.
        return np.array(open_rgb(data)), box
    left, top, w, h = (value // unit for value in snapped)
    return pixels, (left, top, w, h)


def cut(pixels: np.ndarray, box: Box) -> np.ndarray:
    """The crop of uint8 [H, W, 3], contiguous, as the resize needs it."""
    left, top, w, h = box
    crop = pixels[top : top + h, left : left + w]
    memory = None if crop.flags.c_contiguous else _scratch("crop", crop.size)
    if memory is None:
        return crop
    # The kernel would make this copy itself, into fresh memory, for a third of the resize's time.
    contiguous = memory[: crop.size].reshape(crop.shape)
    np.copyto(contiguous, crop)
    return contiguous


_local = threading.local()


def _scratch(name: str, size: int) -> np.ndarray | None:
    """uint8 [>= size], this thread's own, for pixels that are used before the next call.

    Fresh memory for each image costs the system a fault per page.
    None for images so large that holding on to their memory would cost more than it saves.
    """
    if size > SCRATCH:
        return None
    if not hasattr(_local, name):
        setattr(_local, name, np.empty(SCRATCH, dtype=np.uint8))  # pages are taken as they are used
    memory: np.ndarray = getattr(_local, name)
    return memory


def reduction(side: int, size: int) -> int:
    """The largest of 8, 4, 2, 1 by which `side` pixels can shrink and leave GUARD * size."""
    return next((unit for unit in (8, 4, 2) if side / unit >= GUARD * size), 1)


def snap(box: Box, unit: int, width: int, height: int) -> Box:
    """A box moved to multiples of `unit` pixels, so that it is whole at scale 1/unit.

    A fraction of a reduced pixel would shift the crop against the exact one by most of an output
    pixel; moving the box by at most `unit` of the original's pixels costs nothing. It stays inside
    the image of width x height: the last reduced pixel of a side that `unit` doesn't divide is
    partly padding.
    """
    left, top = unit * round(box[0] / unit), unit * round(box[1] / unit)
    w = min(round(box[2] / unit), (width - left) // unit)
    h = min(round(box[3] / unit), (height - top) // unit)
    return left, top, unit * w, unit * h


def open_rgb(data: bytes) -> Image.Image:
    """An encoded image decoded whole, as 8-bit RGB.

    Palettes are expanded, transparency is composited on white, CMYK is converted, 16-bit and float
    greys are rescaled from their own range (`convert("RGB")` alone would clip them to white).

    Raises:
        ImageError: not an image, damaged, or larger than MAX_PIXELS.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            _bound(*image.size)
            image.load()
            return to_rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        start = data[:8].hex(" ") or "nothing"
        raise ImageError(f"not an image: the file starts with {start}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"more pixels than the bound of {MAX_PIXELS}") from None
    except (OSError, ValueError, SyntaxError) as error:
        # Pillow's decoders raise these three for damaged files; SyntaxError comes from PNG.
        raise ImageError(f"damaged image: {error}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image of any mode as 8-bit RGB; see `open_rgb`."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float32)
        low, high = float(values.min()), float(values.max())
        scaled = (values - low) * (255 / max(high - low, 1e-6))
        return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _bound(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels, more than the bound of {MAX_PIXELS}")
    if width < 1 or height < 1:
        raise ImageError(f"{width} x {height} pixels")


class Normalise:
    """uint8 [B, 3, H, W] -> float32 with a mean and deviation per channel, on the device."""

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
    ) -> None:
        """`mean` and `std` are of pixels in [0, 1]."""
        self.mean, self.std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1) * 255 for values in (mean, std)
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return (images.to(self.mean.device, non_blocking=True).float() - self.mean) / self.std


def center_pixels(image: Image.Image, size: int) -> torch.Tensor:
    """Short side to `size` (bicubic, Pillow), centre crop: uint8 [3, size, size].

    Up to normalisation this is open_clip's evaluation transform with `resize_mode: shortest`.
    """
    width, height = image.size
    short = min(width, height)
    # Rounding as in torchvision.transforms.Resize and CenterCrop.
    new = (
        (size, int(size * height / width)) if width == short else (int(size * width / height), size)
    )
    resized = image if short == size else image.resize(new, Image.Resampling.BICUBIC)
    left, top = round((resized.width - size) / 2.0), round((resized.height - size) / 2.0)
    pixels = np.array(resized.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels).permute(2, 0, 1)
