"""CLIP's text encoder over packed tokens, with the parameters and names of open_clip's.

A causal transformer whose last token, <end_of_text>, stands for the caption (Radford et al. 2021).
As in `text_tower`, padding never exists, and the last layer computes that one row alone.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp.data.text import PackedText
from vlp.models.attention import Layout, attend, plan
from vlp.models.text_tower import TextConfig, call, compute_dtype, positions


class QuickGELU(nn.Module):
    """The approximation that OpenAI's weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class CausalAttention(nn.Module):
    """The parameters of nn.MultiheadAttention, run over packed rows."""

    def __init__(self, width: int, heads: int, into_residual: float) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)
        nn.init.normal_(self.out_proj.weight, std=into_residual)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, layout: Layout, last_only: bool) -> Tensor:
        """[T, width] -> [T, width], or [B, width] of each caption's last row."""
        width = x.shape[-1]
        asking = x[layout.lasts] if last_only else x
        query = F.linear(asking, self.in_proj_weight[:width], self.in_proj_bias[:width])
        both = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])
        key, value = both.unflatten(-1, (2, self.heads, -1)).unbind(1)
        query = query.unflatten(-1, (self.heads, -1))
        # The last row may see all rows before it, so that it needs no causal mask.
        attended = attend(query, key, value, layout, one_query=last_only, causal=not last_only)
        return self.out_proj(attended.flatten(-2))


class Block(nn.Module):
    """Pre-norm attention and feed-forward block, named as open_clip's ResidualAttentionBlock."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.mlp_width
        # What adds to the residual stream starts smaller the deeper the stack (CLIP, section 2.4).
        into_residual = width**-0.5 * (2 * config.layers) ** -0.5
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalAttention(width, config.heads, into_residual)
        self.ln_2 = nn.LayerNorm(width)
        c_fc, c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.normal_(c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(c_proj.weight, std=into_residual)
        gelu = QuickGELU() if config.quick_gelu else nn.GELU()
        self.mlp = nn.Sequential(OrderedDict(c_fc=c_fc, gelu=gelu, c_proj=c_proj))

    def forward(self, x: Tensor, layout: Layout, last_only: bool = False) -> Tensor:
        """[T, width] -> [T, width], or [B, width] of the last rows alone."""
        residual = x[layout.lasts] if last_only else x
        x = residual + self.attn(self.ln_1(x), layout, last_only)
        return x + self.mlp(self.ln_2(x))


class GptTower(nn.Module):
    """Packed captions -> embeddings; named as open_clip's TextTransformer."""

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.layers = config.layers
        self.grad_checkpointing = False
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.ModuleList(Block(config) for _ in range(config.layers))}
        )
        self.ln_final = nn.LayerNorm(config.width)
        self.text_projection = nn.Parameter(torch.empty(config.width, embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=config.width**-0.5)

    def forward(self, text: PackedText) -> Tensor:
        """B packed captions -> [B, embed_dim], not normalised."""
        x = self.token_embedding(text.input_ids) + self.positional_embedding[positions(text)]
        layout = plan(text.cu_seqlens, text.max_length, compute_dtype(x))
        *blocks, last = self.transformer["resblocks"].children()
        for block in blocks:
            x = call(block, self.grad_checkpointing, x, layout)
        x = call(last, self.grad_checkpointing, x, layout, True)
        return self.ln_final(x) @ self.text_projection

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each block's input for backward, and compute the rest again."""
        self.grad_checkpointing = enable

    def depths(self) -> dict[str, int]:
        """Layer of each parameter: 0 the embeddings, 1 to n the blocks, n + 1 the projection."""
        prefix, last = "transformer.resblocks.", self.layers
        outside = {
            "token_embedding.weight": 0,
            "positional_embedding": 0,
            "ln_final.weight": last,
            "ln_final.bias": last,
            "text_projection": last + 1,
        }
        return {
            name: int(name[len(prefix) :].partition(".")[0]) + 1
            if name.startswith(prefix)
            else outside[name]
            for name, _ in self.named_parameters()
        }
