"""Contrastive losses as pure functions of features."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlp.distributed import gather, rank


def clip_loss(image: Tensor, text: Tensor, scale: Tensor, chunk: int = 1024) -> Tensor:
    """Symmetric InfoNCE of the global batch; this rank's rows against everyone's.

    L = -1/2b sum_i [log softmax_j(s <x_i, y_j>)_i + log softmax_j(s <y_i, x_j>)_i] over the rank's
    b rows i and the global batch j (Radford et al. 2021, figure 3). The mean over ranks is the loss
    of the whole batch, and with gradients averaged over ranks, as DDP does, so are its gradients.

    Args:
        image: [b, D] normalised features x of this rank.
        text: [b, D] normalised features y of this rank.
        scale: exp of the logit scale, s, a scalar.
        chunk: rows whose logits exist at a time. They are computed again in backward, so memory
            grows linearly with the global batch and not with its square.

    Returns:
        A scalar, this rank's part of the loss.
    """
    targets = torch.arange(len(image), device=image.device) + rank() * len(image)
    total = _cross_entropy(image, gather(text), scale, targets, chunk)
    total = total + _cross_entropy(text, gather(image), scale, targets, chunk)
    return total / (2 * len(image))


def _cross_entropy(
    rows: Tensor, columns: Tensor, scale: Tensor, targets: Tensor, chunk: int
) -> Tensor:
    """Sum of cross entropies of the rows: [b, D], [N, D] -> scalar."""
    if len(rows) <= chunk:
        return _chunk(rows, columns, scale, targets)
    parts = [
        checkpoint(
            _chunk, rows[i : i + chunk], columns, scale, targets[i : i + chunk], use_reentrant=False
        )
        for i in range(0, len(rows), chunk)
    ]
    return torch.stack(parts).sum()


def _chunk(rows: Tensor, columns: Tensor, scale: Tensor, targets: Tensor) -> Tensor:
    # The products stay out of autocast: bf16 has 8 bits, too few for logits of 100 * cosine.
    with torch.autocast(rows.device.type, enabled=False):
        return F.cross_entropy(scale * rows.float() @ columns.float().T, targets, reduction="sum")
