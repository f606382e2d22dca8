"""Floating-point operations that a training step needs, and what a device can do: for MFU.

Useful operations only: the products of matrices in forward and backward (2 for each multiply-add),
for real tokens and for rows that are read afterwards. Padding, recomputation under activation
checkpointing or GradCache, element-wise work and the loss (below 0.2%) do not count.
"""

import functools

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vlp.models.dual_encoder import DualEncoder, ModelConfig
from vlp.models.text_tower import TextConfig

PEAK = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A40": 150e12,
}
"""Dense bf16 operations a second by the vendor's data sheets; the first name found counts."""


def step_flops(config: ModelConfig, images: int, lengths: Tensor) -> float:
    """Useful operations of forward and backward of one step.

    Args:
        config: the towers.
        images: how many.
        lengths: int [B], tokens of each caption.
    """
    per_caption, per_token, per_square = _text_flops(config.text, config.embed_dim)
    counts = lengths.double()
    text = per_caption * len(lengths) + per_token * counts.sum() + per_square * (counts**2).sum()
    return _image_flops(config) * images + float(text)


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations a second of a device; None if nobody has told."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK.items() if known in name), None)


@functools.cache
def _image_flops(config: ModelConfig) -> float:
    """Operations of one image, counted in a run on tensors that have shapes only."""
    count = 2  # in training, a BatchNorm refuses a single one
    with torch.device("meta"):
        tower = DualEncoder(config).visual.train()
        images = torch.empty(count, 3, config.image.size, config.image.size)
    with FlopCounterMode(display=False) as counter:
        tower(images).sum().backward()
    return counter.get_total_flops() / count


@functools.cache
def _text_flops(config: TextConfig, embed_dim: int) -> tuple[float, float, float]:
    """Operations of a caption of L tokens: c + t * L + s * L^2 -> (c, t, s).

    A layer has four width x width and two width x mlp_width matrices, and two products with as many
    multiply-adds as width times the pairs of tokens that see each other: L^2, or L (L + 1) / 2 if
    causal. The last layer computes keys and values of all tokens, and all else for one.
    """
    width, causal = config.width, config.kind == "gpt"
    keys_values, pair = 2 * 2 * width**2, 2 * 2 * width
    others = 2 * (2 * width**2 + 2 * width * config.mlp_width)  # queries, output, feed-forward
    hidden = (width + embed_dim) // 2
    linear = config.proj == "linear"
    projection = 2 * (width * embed_dim if linear else (width + embed_dim) * hidden)
    frozen = config.layers if config.frozen == -1 else config.frozen
    # Backward makes gradients of inputs and of weights: twice the forward; of frozen layers none.
    passes = [1 if layer < frozen else 3 for layer in range(config.layers)]
    whole, last = sum(passes[:-1]), passes[-1]
    per_caption = 3 * projection + last * others
    per_token = whole * (keys_values + others) + last * (keys_values + pair)
    if causal:
        return per_caption, per_token + whole * pair / 2, whole * pair / 2
    return per_caption, per_token, whole * pair
