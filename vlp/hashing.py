"""A 64-bit perceptual hash: near-copies of an image differ in few bits.

The DCT hash of Zauner (2010), bit for bit as the `imagehash` package computes its `phash`, so hash
files made with it can be compared with ours. The image is scaled to 32 x 32 grey pixels; a bit says
whether one of the 8 x 8 lowest frequencies is above their median, so 32 bits are set. Scaling,
recompression and small changes of brightness move a few bits; unrelated photographs differ in
about 32. Plots share their frame, hence come closer: compare the pixels of what is near.
"""

import numpy as np
from PIL import Image

FLAT = 1 << 63
"""The hash of all images without structure: only the mean's bit is set."""

_SIDE, _KEPT = 32, 8
_MIN_RANGE = 8  # grey levels; with fewer the bits would be those of the compression's noise
_BASIS = 2 * np.cos(
    np.pi * np.outer(np.arange(_KEPT), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE)
)  # [8, 32], the DCT-II without scaling


def perceptual_hash(image: Image.Image) -> int:
    """The hash of an image of any mode and size, an integer below 2**64.

    The first row of frequencies is in the highest bits, the mean in the very highest.
    """
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    grey = np.asarray(small, dtype=np.float64)
    if np.ptp(grey) < _MIN_RANGE:
        return FLAT
    # Rounded: a mirror-symmetric image has coefficients of zero, whose computed sign is chance.
    frequencies = (_BASIS @ grey @ _BASIS.T).round(6)
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
