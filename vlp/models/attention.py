"""Attention over packed sequences: flash on CUDA in half precision, an exact fallback elsewhere.

The flash path compiles into the graph around it. The fallback's shapes depend on the lengths, so
it is kept out of compiled graphs, which then break around it.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 32
"""Sequences of similar length that the fallback pads to a common length."""


class Group(NamedTuple):
    """Sequences of similar length, as rows of a padded rectangle.

    Attributes:
        sequences: int64 [g], their places in the batch.
        tokens: int64 [g, L], their rows in the packed tensor (0 where there is padding).
        mask: bool [g, L], True at tokens; None if all have the same length.
    """

    sequences: Tensor
    tokens: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Layout:
    """How the sequences of a batch lie in its packed tensors; made once and used by all layers.

    Attributes:
        cu_seqlens: int32 [B + 1], start of each sequence; the last entry is T.
        max_length: bound on the lengths.
        groups: the fallback's plan; None where flash attention runs.
    """

    cu_seqlens: Tensor
    max_length: int
    groups: tuple[Group, ...] | None

    @property
    def firsts(self) -> Tensor:
        """int64 [B]: the row of each sequence's first token, [CLS]."""
        return self.cu_seqlens[:-1].long()

    @property
    def lasts(self) -> Tensor:
        """int64 [B]: the row of each sequence's last token."""
        return self.cu_seqlens[1:].long() - 1


def uses_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Variable-length flash attention exists on CUDA for half precision only."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def plan(cu_seqlens: Tensor, max_length: int, dtype: torch.dtype) -> Layout:
    """Prepare attention over sequences that start at `cu_seqlens` (int32 [B + 1])."""
    if uses_flash(cu_seqlens.device, dtype):
        return Layout(cu_seqlens, max_length, None)
    return Layout(cu_seqlens, max_length, _group(cu_seqlens))


@torch.compiler.disable
def _group(cu_seqlens: Tensor) -> tuple[Group, ...]:
    """Sequences in ascending order of length, GROUP at a time."""
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    groups = []
    for sequences in torch.argsort(lengths, stable=True).split(GROUP):
        longest = torch.arange(int(lengths[sequences[-1]]), device=cu_seqlens.device)
        inside = longest < lengths[sequences, None]
        tokens = torch.where(inside, starts[sequences, None] + longest, 0)
        groups.append(Group(sequences, tokens, None if bool(inside.all()) else inside))
    return tuple(groups)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    one_query: bool = False,
    causal: bool = False,
) -> Tensor:
    """Attention within each sequence.

    Args:
        query: [T, heads, d]; [B, heads, d] with `one_query`.
        key: [T, heads, d].
        value: [T, heads, d].
        layout: of the T rows.
        one_query: each sequence asks with one row instead of all its rows, and of all its rows.
        causal: a row asks only rows up to itself; not together with `one_query`.

    Returns:
        As `query`.
    """
    if layout.groups is not None:
        return _attend_groups(query, key, value, layout.groups, one_query, causal)
    from torch.nn.attention.varlen import varlen_attn  # CUDA only, and slow to import

    key_starts, longest = layout.cu_seqlens, layout.max_length
    query_starts, longest_query = key_starts, longest
    if one_query:
        query_starts = torch.arange(len(key_starts), dtype=torch.int32, device=query.device)
        longest_query = 1
    window = (-1, 0) if causal else (-1, -1)
    out = varlen_attn(
        query, key, value, query_starts, key_starts, longest_query, longest, window_size=window
    )
    return cast(Tensor, out)


@torch.compiler.disable
def _attend_groups(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: tuple[Group, ...],
    one_query: bool,
    causal: bool,
) -> Tensor:
    """Exact attention, group by group, each padded to its own longest sequence."""
    rows, outputs = [], []
    for group in groups:
        # [g, L, heads, d] -> [g, heads, L, d]
        k, v = (x[group.tokens].transpose(1, 2) for x in (key, value))
        places = group.sequences[:, None] if one_query else group.tokens
        # A causal row never sees the padding behind it, so it needs no mask of its own.
        mask = None if causal or group.mask is None else group.mask[:, None, None, :]
        q = query[places].transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        out = out.transpose(1, 2)
        if one_query or group.mask is None:
            rows.append(places.flatten())
            outputs.append(out.flatten(0, 1))
        else:
            rows.append(places[group.mask])
            outputs.append(out[group.mask])
    # Every row is written exactly once, so the inverse permutation puts them back in order.
    order = torch.cat(rows)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return torch.cat(outputs)[inverse]
