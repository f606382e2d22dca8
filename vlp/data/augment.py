"""What may happen to a training image after its random crop: mirror, colour jitter, grey.

All off by default. Each draw comes from the sample's own generator, so an image looks the same
whichever rank or worker loads it. The pixels stay uint8; the operations are torchvision's.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms import functional


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Changes of training images besides the random crop."""

    flip: float = 0.0
    """Share of images that are mirrored. Left and right mean something in most captions."""
    jitter: float = 0.0
    """Share of images whose colours are jittered by the four strengths below, in random order."""
    brightness: float = 0.32
    """Strength b: a factor from [1 - b, 1 + b]."""
    contrast: float = 0.32
    """Strength of the contrast, likewise."""
    saturation: float = 0.32
    """Strength of the saturation, likewise."""
    hue: float = 0.08
    """Strength h: a shift from [-h, h] of the full circle."""
    grey: float = 0.0
    """Share of images that lose their colours."""

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.augment.{name} is a share from 0 to 1")
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"data.augment.{name} is a strength from 0 to {most}")

    @property
    def enabled(self) -> bool:
        return max(self.flip, self.jitter, self.grey) > 0


def augment(pixels: torch.Tensor, config: AugmentConfig, rng: np.random.Generator) -> None:
    """Change an image in place.

    Args:
        pixels: uint8 [3, H, W].
        config: what may happen, and how often.
        rng: draws what does happen.
    """
    flip, jitter, grey = rng.random(3).tolist()
    changed = pixels
    if flip < config.flip:
        changed = changed.flip(-1)
    if jitter < config.jitter:
        changed = _jitter(changed, config, rng)
    if grey < config.grey:
        changed = functional.rgb_to_grayscale(changed, num_output_channels=3)
    if changed is not pixels:
        pixels.copy_(changed)


def _jitter(pixels: torch.Tensor, config: AugmentConfig, rng: np.random.Generator) -> torch.Tensor:
    """torchvision's ColorJitter, with draws from `rng`."""
    operations = (
        (functional.adjust_brightness, 1.0, config.brightness),
        (functional.adjust_contrast, 1.0, config.contrast),
        (functional.adjust_saturation, 1.0, config.saturation),
        (functional.adjust_hue, 0.0, config.hue),
    )
    draws = (2 * rng.random(len(operations)) - 1).tolist()
    for number in rng.permutation(len(operations)).tolist():
        operation, neutral, strength = operations[number]
        if strength:
            pixels = operation(pixels, neutral + strength * draws[number])
    return pixels
