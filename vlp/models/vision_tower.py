"""A timm image encoder with a linear projection, named as in open_clip's TimmModel."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import timm
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
    pretrained: bool = False
    """Start from timm's own (ImageNet) weights, which are downloaded or cached."""
    pool: Literal["", "token", "avg", "map"] = ""
    """Pooling of the tokens; empty keeps the model's own."""
    drop_path: float = 0.0
    """Stochastic depth rate."""
    mean: tuple[float, float, float] = OPENAI_MEAN
    """Subtracted from pixels in [0, 1], per channel; the default is CLIP's."""
    std: tuple[float, float, float] = OPENAI_STD
    """Divides them then."""

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ValueError(f"model.image.std must be positive, got {self.std}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"model.image.drop_path must be in [0, 1), got {self.drop_path}")


class VisionTower(nn.Module):
    """Images -> embeddings."""

    def __init__(self, config: ImageConfig, embed_dim: int) -> None:
        super().__init__()
        if not timm.is_model(config.name):
            near = timm.list_models(f"*{config.name.split('_')[0]}*")[:8]
            raise UserError(
                f"model.image.name: timm has no '{config.name}'; similar: {', '.join(near)}"
            )
        # The classifier is reset after building, as open_clip does: building with another pooling
        # would rename the last norm of a ViT.
        trunk: Any = timm.create_model(
            config.name, pretrained=config.pretrained, drop_path_rate=config.drop_path
        )
        trunk.reset_classifier(0, **({"global_pool": config.pool} if config.pool else {}))
        native = trunk.default_cfg["input_size"][-1]
        if config.size != native:
            raise UserError(
                f"model.image.size={config.size}: {config.name} is made for {native} pixels; set "
                f"model.image.size={native} or another model.image.name"
            )
        self.trunk = trunk
        self.head = nn.Sequential(
            OrderedDict(proj=nn.Linear(trunk.num_features, embed_dim, bias=False))
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, size, size] -> [B, embed_dim], not normalised."""
        return self.head(self.trunk(images))
