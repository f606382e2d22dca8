"""Two towers and a temperature; the state dict is key for key open_clip's CustomTextCLIP."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.config import UserError
from vlp.data.text import PackedText
from vlp.models.gpt import GptTower
from vlp.models.text_tower import TextConfig, TextTower
from vlp.models.vision_tower import ImageConfig, VisionTower


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The dual encoder."""

    init: str = ""
    """Model to start from, of the architecture configured here: a model folder, `hf-hub:ORG/NAME`,
    or an open_clip model as `NAME@PRETRAINED`. Its tokenizer is taken, too, if
    model.text.tokenizer is empty."""
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
        if self.init and (self.image.pretrained or self.text.init):
            raise ValueError(
                "model.init gives the weights of both towers: leave model.image.pretrained and "
                "model.text.init empty, or model.init"
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
    """CLIP with a timm image tower and a packed text tower."""

    def __init__(self, config: ModelConfig, pad_id: int = 0) -> None:
        super().__init__()
        self.visual = VisionTower(config.image, config.embed_dim)
        self.text: TextTower | GptTower = (
            GptTower(config.text, config.embed_dim)
            if config.text.kind == "gpt"
            else TextTower(config.text, config.embed_dim, pad_id)
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.init_temperature)))
        bias = config.init_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        self.is_compiled = False
        _freeze(self.visual, config.image.frozen, "model.image.frozen")
        _freeze(self.text, config.text.frozen, "model.text.frozen")

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Normalised images [B, 3, H, W] -> [B, D]."""
        features = self.visual(images)
        return F.normalize(features.float(), dim=-1) if normalize else features

    def encode_text(self, text: PackedText, normalize: bool = False) -> Tensor:
        """B packed captions -> [B, D]."""
        if self.is_compiled:
            # The number of tokens differs from batch to batch. Said beforehand, one graph serves
            # all of them; found out, it would be compiled twice.
            torch._dynamo.mark_dynamic(text.input_ids, 0)
            torch._dynamo.mark_dynamic(text.cu_seqlens, 0)
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

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Activation checkpointing in both towers: memory of one layer for a second forward."""
        self.visual.set_grad_checkpointing(enable)
        self.text.set_grad_checkpointing(enable)

    def compile_towers(self, **options: Any) -> None:
        """torch.compile each tower in place; names of parameters stay as they are.

        On CUDA under bf16 each tower is one graph, whatever the captions' lengths. Elsewhere the
        text tower's attention stays out of the graphs.

        Args:
            options: of `torch.compile`.
        """
        self.visual.compile(**options)
        self.text.compile(**options)
        self.is_compiled = True

    def depths(self) -> dict[str, tuple[int, int]]:
        """Each tower parameter's (layer, number of its tower's last layer), from the input."""
        depths: dict[str, tuple[int, int]] = {}
        for prefix, tower in (("visual.", self.visual), ("text.", self.text)):
            layers = tower.depths()
            last = max(layers.values())
            depths |= {prefix + name: (depth, last) for name, depth in layers.items()}
        return depths


def _freeze(tower: VisionTower | TextTower | GptTower, layers: int, key: str) -> None:
    """Exclude the embeddings and the first `layers` layers from training; -1: the whole encoder.

    Raises:
        UserError: the tower has fewer layers.
    """
    if not layers:
        return
    depths = tower.depths()
    last = max(depths.values()) - 1  # behind it comes the projection
    if layers > last:
        raise UserError(f"{key}={layers}: the tower has {last} layers; -1 freezes all of them")
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(depths[name] > (last if layers == -1 else layers))
