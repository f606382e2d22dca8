"""Two towers and a temperature; the state dict is key for key open_clip's CustomTextCLIP."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.data.text import PackedText
from vlp.models.text_tower import TextConfig, TextTower
from vlp.models.vision_tower import ImageConfig, VisionTower


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The dual encoder."""

    embed_dim: int = 512
    """Size of the shared space."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Image tower."""
    text: TextConfig = field(default_factory=TextConfig)
    """Text tower."""
    init_temperature: float = 0.07
    """Softmax temperature at the start; its inverse is learnt, as a logarithm."""
    init_bias: float | None = None
    """Start of the learnt bias of the logits, which `loss.name=siglip` needs (-10 in its paper);
    null: the model has none, as InfoNCE wants it."""

    def __post_init__(self) -> None:
        if self.init_temperature <= 0:
            raise ValueError(
                f"model.init_temperature must be positive, got {self.init_temperature}"
            )


class Features(NamedTuple):
    """What the loss sees, all fp32.

    Attributes:
        image: L2-normalised [B, D].
        text: L2-normalised [B, D].
        scale: exp(logit_scale), a scalar.
        bias: logit_bias, a scalar, where the model has one.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor | None = None


class DualEncoder(nn.Module):
    """CLIP with a timm image tower and a packed BERT."""

    def __init__(self, config: ModelConfig, pad_id: int = 0) -> None:
        super().__init__()
        self.visual = VisionTower(config.image, config.embed_dim)
        self.text = TextTower(config.text, config.embed_dim, pad_id)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.init_temperature)))
        bias = config.init_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Normalised images [B, 3, H, W] -> [B, D]."""
        features = self.visual(images)
        return F.normalize(features.float(), dim=-1) if normalize else features

    def encode_text(self, text: PackedText, normalize: bool = False) -> Tensor:
        """B packed captions -> [B, D]."""
        features = self.text(text)
        return F.normalize(features.float(), dim=-1) if normalize else features

    def forward(self, images: Tensor, text: PackedText) -> Features:
        """Normalised images [B, 3, H, W] and B packed captions -> fp32 features for the loss."""
        return Features(
            self.encode_image(images, normalize=True),
            self.encode_text(text, normalize=True),
            self.logit_scale.float().exp(),
            None if self.logit_bias is None else self.logit_bias.float(),
        )
