"""CPU kernels behind aten::_flash_attention_*: the CUDA path runs in tests without a GPU.

What runs is ours and torch's own (varlen_attn, its autograd, its fake kernels under compile); what
is replaced is the kernel alone, by a loop over the sequences in fp32. Rows that no sequence covers
come out as NaN, as they do in unwritten memory.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vlp.models import attention

calls: Counter[str] = Counter()


@contextmanager
def flash_on_cpu(monkeypatch: Any) -> Iterator[Counter[str]]:
    """Within it half precision on the CPU takes the flash path; yields the kernels' calls."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", _forward, "CPU")
        library.impl("_flash_attention_backward", _backward, "CPU")
        monkeypatch.setattr(attention, "uses_flash", _half)
        calls.clear()
        yield calls


def _half(device: torch.device, dtype: torch.dtype) -> bool:
    return dtype in (torch.bfloat16, torch.float16)


def _slices(starts_q: Tensor, starts_k: Tensor) -> Iterator[tuple[slice, slice]]:
    q, k = starts_q.tolist(), starts_k.tolist()
    for i in range(len(q) - 1):
        yield slice(q[i], q[i + 1]), slice(k[i], k[i + 1])


def _scores(query: Tensor, key: Tensor, causal: bool) -> Tensor:
    """[heads, q, k] of one sequence."""
    scores = torch.einsum("qhd,khd->hqk", query.float(), key.float()) * query.shape[-1] ** -0.5
    if causal:
        ahead = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(ahead, float("-inf"))
    return scores


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    **options: Any,
) -> tuple[Tensor, ...]:
    assert cum_seq_q.dtype == cum_seq_k.dtype == torch.int32
    assert query.dim() == 3
    assert dropout_p == 0
    assert options.get("scale") is None
    calls["forward"] += 1
    calls["one query"] += max_q == 1
    calls["causal"] += is_causal
    out = torch.full_like(query, torch.nan)
    lse = torch.full((query.shape[1], query.shape[0]), torch.nan)
    for q, k in _slices(cum_seq_q, cum_seq_k):
        assert q.stop - q.start <= max_q
        assert k.stop - k.start <= max_k
        scores = _scores(query[q], key[k], is_causal)
        lse[:, q] = scores.logsumexp(-1)
        out[q] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[k].float()).to(out.dtype)
    state = torch.zeros(2, dtype=torch.uint64)
    return out, lse, state, torch.zeros((), dtype=torch.uint64), torch.empty(0)


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    *rest: Any,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    calls["backward"] += 1
    grads = tuple(torch.full_like(x, torch.nan) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5
    for q, k in _slices(cum_seq_q, cum_seq_k):
        share = (_scores(query[q], key[k], is_causal) - logsumexp[:, q, None]).exp()
        grad = grad_out[q].float()
        grads[2][k] = torch.einsum("hqk,qhd->khd", share, grad).to(value.dtype)
        of_share = torch.einsum("qhd,khd->hqk", grad, value[k].float())
        inner = (grad * out[q].float()).sum(-1).T[..., None]
        of_scores = share * (of_share - inner) * scale
        grads[0][q] = torch.einsum("hqk,khd->qhd", of_scores, key[k].float()).to(query.dtype)
        grads[1][k] = torch.einsum("hqk,qhd->khd", of_scores, query[q].float()).to(key.dtype)
    return grads
