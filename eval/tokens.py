"""What the towers know of each patch and each word, before they pool.

A patch's place in the joint space is what the tower's own pooling and projection make of that patch
alone: it is the one term of an average, or all that an attention pooling attends to. For average
pooling and a linear projection the image's embedding is then the mean of its patches' (before
normalisation). Where [CLS] is read, the last block's attention is the pooling, so each patch goes
through that block by itself, which leaves of the attention the patch's value: the dense features of
MaskCLIP (Zhou et al. 2022, arXiv 2112.01071). The states that the block makes of patches among
others were never read in training, and say little.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vlp.config import UserError
from vlp.data.text import PackedText
from vlp.models.attention import plan
from vlp.models.gpt import GptTower
from vlp.models.text_tower import TextTower, compute_dtype, positions
from vlp.models.vision_tower import ClsOnlyBlock, VisionTower


def patch_states(visual: nn.Module, pixels: Tensor, alone: bool = False) -> Tensor:
    """The last layer's states of an image tower's patches.

    Args:
        visual: an image tower of ours or of open_clip.
        pixels: transformed images [B, 3, H, W].
        alone: where [CLS] is read, let each patch through the last block by itself.

    Returns:
        [B, h, w, C], row by row from the upper left corner.

    Raises:
        UserError: a tower whose patches aren't known here.
    """
    tower: Any = visual
    if isinstance(tower, VisionTower | TimmModel):
        trunk = _with_last(tower.trunk, "blocks", alone and _reads_cls(tower.trunk))
        return _timm_cells(trunk, trunk.forward_features(pixels), pixels)
    if isinstance(tower, VisionTransformer):
        reads_cls = tower.pool_type == "tok" and tower.attn_pool is None
        transformer = _with_last(tower.transformer, "resblocks", alone and reads_cls)
        tokens = transformer(tower._embeds(pixels))  # [B, 1 + h * w, C]
        return tokens[:, 1:].unflatten(1, _grid(pixels, tower.patch_size))
    if isinstance(tower, ModifiedResNet):
        x = tower.stem(pixels)
        for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            x = layer(x)
        return x.permute(0, 2, 3, 1)
    raise UserError(f"model: patches of an image tower {type(visual).__name__} aren't known here")


def project(visual: nn.Module, states: Tensor) -> Tensor:
    """Patches' states [..., C] -> their places in the joint space [..., D], not normalised."""
    tower: Any = visual
    flat = states.flatten(0, -2)  # [n, C]
    if isinstance(tower, VisionTower | TimmModel):
        if hasattr(tower.head, "pool"):
            raise UserError(
                "model: an image tower that pools behind timm's has no places of patches"
            )
        projected = tower.head(tower.trunk.forward_head(_alone(tower.trunk, flat)))
    elif isinstance(tower, VisionTransformer):
        projected, _ = tower._pool(flat[:, None].expand(-1, 2, -1))
        projected = projected if tower.proj is None else projected @ tower.proj
    elif isinstance(tower, ModifiedResNet):
        # Attention to one place is that place's value.
        projected = tower.attnpool.c_proj(tower.attnpool.v_proj(flat))
    else:
        raise UserError(
            f"model: patches of an image tower {type(visual).__name__} aren't known here"
        )
    return projected.unflatten(0, states.shape[:-1])


def word_states(network: nn.Module, tokens: Any) -> tuple[Tensor, Tensor]:
    """The last layer's states of a text tower's tokens.

    Args:
        network: a model of ours or of open_clip.
        tokens: what its tokenizer gave for B texts.

    Returns:
        (states [B, L, C], bool [B, L]: which of them are tokens of the text).

    Raises:
        UserError: a tower whose tokens aren't known here.
    """
    model: Any = network
    text = getattr(model, "text", model)
    if isinstance(tokens, PackedText):
        rows = _packed_states(text, tokens).split(tokens.cu_seqlens.diff().tolist())
        here = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in rows]
        return pad_sequence(list(rows), batch_first=True), pad_sequence(here, batch_first=True)
    if isinstance(text, HFTextEncoder):
        mask = tokens != text.config.pad_token_id
        output = text.transformer(input_ids=tokens, attention_mask=mask.long())
        return output.last_hidden_state, mask
    if not hasattr(text, "ln_final") or getattr(text, "cls_emb", None) is not None:
        raise UserError(f"model: tokens of a text tower {type(text).__name__} aren't known here")
    with _caught(text.ln_final) as outputs:
        model.encode_text(tokens)
    if getattr(text, "pool_type", getattr(text, "text_pool_type", "")) == "argmax":
        # CLIP's end token has the highest number; behind it stands padding.
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return outputs[0], places <= tokens.argmax(dim=1, keepdim=True)
    return outputs[0], tokens != getattr(text, "pad_id", 0)


def _packed_states(text: Any, tokens: PackedText) -> Tensor:
    """[T, C]: every token of the last layer, of which our towers otherwise compute one a text."""
    layers: Any
    norm: nn.Module = nn.Identity()
    if isinstance(text, TextTower):
        x = text.transformer.embeddings(tokens.input_ids, positions(tokens))
        layers = text.transformer.encoder["layer"]
    elif isinstance(text, GptTower):
        x = text.token_embedding(tokens.input_ids) + text.positional_embedding[positions(tokens)]
        layers, norm = text.transformer["resblocks"], text.ln_final
    else:
        raise UserError(f"model: tokens of a text tower {type(text).__name__} aren't known here")
    layout = plan(tokens.cu_seqlens, tokens.max_length, compute_dtype(x))
    for layer in layers:
        x = layer(x, layout)
    return norm(x)


class Alone(nn.Module):
    """A transformer block in which each token attends to itself only."""

    def __init__(self, block: nn.Module, batch_first: bool) -> None:
        super().__init__()
        self.block, self.batch_first = block, batch_first

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Tokens [B, N, C] (or [N, B, C]) as that many sequences of one -> the same shape."""
        flat = x.flatten(0, 1)
        return self.block(flat[:, None] if self.batch_first else flat[None]).view_as(x)


def _with_last(stack: Any, name: str, alone: bool) -> Any:
    """A stack of blocks whose last one computes all tokens, `alone` or among each other.

    The weights are the same ones; the stack itself stays as it is.
    """
    if not hasattr(stack, name):
        return stack
    blocks: Any = getattr(stack, name)
    skips = isinstance(blocks[-1], ClsOnlyBlock)
    if not (skips or alone):
        return stack
    last: nn.Module = copy.copy(blocks[-1])
    if skips:
        last.__class__ = Block
    if alone:
        last = Alone(last, getattr(stack, "batch_first", True))
    whole = copy.copy(stack)
    whole._modules = {**stack._modules, name: _like(blocks, [*blocks[:-1], last])}
    return whole


def _like(blocks: nn.Module, members: list[nn.Module]) -> nn.Module:
    return nn.Sequential(*members) if isinstance(blocks, nn.Sequential) else nn.ModuleList(members)


def _reads_cls(trunk: Any) -> bool:
    """Whether a trunk of timm reads its first token, by blocks that need nothing but tokens."""
    plain = type(trunk) is TimmTransformer
    return plain and trunk.global_pool == "token" and trunk.attn_pool is None


def _timm_cells(trunk: Any, features: Tensor, pixels: Tensor) -> Tensor:
    """timm's features, tokens or maps, as [B, h, w, C]."""
    if features.ndim == 3:
        cells = features[:, trunk.num_prefix_tokens :]
        return cells.unflatten(1, _grid(pixels, trunk.patch_embed.patch_size))
    return features if _channels_last(trunk) else features.permute(0, 2, 3, 1)


def _alone(trunk: Any, cells: Tensor) -> Tensor:
    """Cells [n, C] as n feature maps, or sequences, that consist of one cell only."""
    if hasattr(trunk, "num_prefix_tokens") and not _channels_last(trunk):
        return cells[:, None].expand(-1, trunk.num_prefix_tokens + 1, -1)
    return cells[:, None, None] if _channels_last(trunk) else cells[:, :, None, None]


def _channels_last(trunk: Any) -> bool:
    return getattr(trunk, "output_fmt", "NCHW") == "NHWC"


def _grid(pixels: Tensor, patch_size: Any) -> tuple[int, int]:
    height, width = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
    return pixels.shape[2] // height, pixels.shape[3] // width


@contextmanager
def _caught(module: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of a module while the block runs."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
