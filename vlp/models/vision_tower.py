"""A timm image encoder with a linear projection, named as in open_clip's TimmModel.

Where only the [CLS] token of a vision transformer is read, its last block computes nothing else.
That is exact (tests/vlp/test_vision_tower.py) and saves 7% of a ViT-B/16's FLOPs.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import timm
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import group_parameters
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from vlp.config import UserError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """The image tower: a timm model and what it is fed."""

    name: str = "vit_base_patch16_224"
    """Any timm model; its name fixes width, depth and resolution, as open_clip reads it."""
    size: int = 224
    """Side of the square input, in pixels; the one that the model was made for."""
    pretrained: str = ""
    """Weights to start from: `timm` for timm's own of this name (ImageNet's, usually), which are
    downloaded or cached; a file of them (.safetensors, .bin, .pth); or a CLIP whose image tower is
    taken without its projection (a model folder or `hf-hub:ORG/NAME`)."""
    pool: Literal["", "token", "avg", "map"] = ""
    """Pooling of the tokens; empty keeps the model's own."""
    drop_path: float = 0.0
    """Stochastic depth rate."""
    patch_dropout: float = 0.0
    """Share of the patches left out in training, drawn anew for each image (Li et al. 2022, FLIP).
    Faster, and not the same mathematics. Vision transformers only."""
    frozen: int = 0
    """Layers that don't learn: n > 0 for the embeddings and the first n layers, -1 for all but the
    projection (Zhai et al. 2022, LiT)."""
    mean: tuple[float, float, float] = OPENAI_MEAN
    """Subtracted from pixels in [0, 1], per channel; the default is CLIP's."""
    std: tuple[float, float, float] = OPENAI_STD
    """Divides them then."""

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ValueError(f"model.image.std must be positive, got {self.std}")
        for key in ("drop_path", "patch_dropout"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"model.image.{key} must be in [0, 1), got {getattr(self, key)}")
        if self.frozen < -1:
            raise ValueError(f"model.image.frozen must be at least -1, got {self.frozen}")
        if self.frozen == -1 and (self.drop_path or self.patch_dropout):
            raise ValueError(
                "model.image.frozen=-1 leaves nothing to model.image.drop_path and "
                "model.image.patch_dropout: set them to 0"
            )


class VisionTower(nn.Module):
    """Images -> embeddings."""

    def __init__(self, config: ImageConfig, embed_dim: int) -> None:
        super().__init__()
        self.frozen = config.frozen == -1
        self.trunk = _build_trunk(config)
        if _reads_cls_only(self.trunk):
            # A class of its own rather than a wrapper: parameter names and the module call, where
            # checkpointing and FSDP put their hooks, stay as they are.
            self.trunk.blocks[-1].__class__ = ClsOnlyBlock
        self.head = nn.Sequential(
            OrderedDict(proj=nn.Linear(self.trunk.num_features, embed_dim, bias=False))
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, size, size] -> [B, embed_dim], not normalised."""
        return self.head(self.trunk(images))

    def train(self, mode: bool = True) -> "VisionTower":
        """As nn.Module's; a wholly frozen trunk stays as in evaluation, BatchNorms included."""
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each block's input for backward, and compute the rest again."""
        self.trunk.set_grad_checkpointing(enable)

    def depths(self) -> dict[str, int]:
        """Layer of each parameter: 0 the stem, 1 to n timm's groups, n + 1 the projection."""
        layers = group_parameters(self.trunk, self.trunk.group_matcher())
        of_trunk = {f"trunk.{name}": depth for depth, names in layers.items() for name in names}
        last = max(of_trunk.values())
        return of_trunk | {f"head.{name}": last + 1 for name, _ in self.head.named_parameters()}


class ClsOnlyBlock(Block):
    """The last block of a timm ViT for the [CLS] row alone: keys and values from all tokens."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Tokens [B, N, C], [CLS] first -> [B, 1, C]."""
        if attn_mask is not None or is_causal:
            raise NotImplementedError("masks: image towers attend to all tokens")
        attention: Any = self.attn
        width, heads = attention.attn_dim, (attention.num_heads, attention.head_dim)
        normed = self.norm1(x)
        weight, bias = attention.qkv.weight, attention.qkv.bias
        query = F.linear(normed[:, :1], weight[:width], None if bias is None else bias[:width])
        both = F.linear(normed, weight[width:], None if bias is None else bias[width:])
        query = query.unflatten(-1, heads).transpose(1, 2)  # [B, heads, 1, d]
        key, value = both.unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4)  # [B, heads, N, d] each
        attended = F.scaled_dot_product_attention(
            attention.q_norm(query),
            attention.k_norm(key),
            value,
            dropout_p=attention.attn_drop.p if self.training else 0.0,
        )
        attended = attention.norm(attended.transpose(1, 2).flatten(-2))
        attended = attention.proj_drop(attention.proj(attended))
        x = x[:, :1] + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def _build_trunk(config: ImageConfig) -> Any:
    """The timm model without classifier; weights come later (vlp.models.init)."""
    if not timm.is_model(config.name):
        near = timm.list_models(f"*{config.name.split('_')[0]}*")[:8]
        raise UserError(
            f"model.image.name: timm has no '{config.name}'; similar: {', '.join(near)}"
        )
    dropout: dict[str, Any] = (
        {"patch_drop_rate": config.patch_dropout} if config.patch_dropout else {}
    )
    try:
        trunk: Any = timm.create_model(config.name, drop_path_rate=config.drop_path, **dropout)
    except TypeError as error:
        raise UserError(
            f"model.image: timm's {config.name} can't be built so ({error}); set "
            "model.image.patch_dropout=0 and model.image.drop_path=0"
        ) from None
    # The classifier is reset after building, as open_clip does: building with another pooling
    # would rename the last norm of a ViT.
    trunk.reset_classifier(0, **({"global_pool": config.pool} if config.pool else {}))
    native = trunk.default_cfg["input_size"][-1]
    if config.size != native:
        raise UserError(
            f"model.image.size={config.size}: {config.name} is made for {native} pixels; set "
            f"model.image.size={native} or another model.image.name"
        )
    return trunk


def _reads_cls_only(trunk: nn.Module) -> bool:
    """Whether only the first token leaves the trunk, by blocks whose inside is known here."""
    if type(trunk) is not VisionTransformer or trunk.global_pool != "token":
        return False
    last: Any = trunk.blocks[-1]
    return (
        trunk.attn_pool is None
        and type(last) is Block
        and type(last.attn) is Attention
        and getattr(last.attn, "gate", None) is None
    )
