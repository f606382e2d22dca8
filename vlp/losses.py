"""Contrastive losses of the global batch, exact, in memory that grows linearly with it.

N pairs over W ranks have N x N logits. A rank owns the strip of its b = N / W figures against all
captions, looks at `tile` columns of it at a time, and computes them again in backward, so that no
more than b x tile logits ever exist. Each function returns the rank's share of the loss: the mean
over ranks is the loss of the global batch, and with gradients averaged over ranks, as DDP and FSDP
do, so are the gradients, those of temperature and bias included.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from vlp.distributed import gather, rank, size
from vlp.models.dual_encoder import Features


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss."""

    name: Literal["infonce", "siglip"] = "infonce"
    """`infonce`: symmetric softmax (Radford et al. 2021), BiomedCLIP's. `siglip`: sigmoid of each
    pair (Zhai et al. 2023); it needs model.init_bias=-10 and starts best with
    model.init_temperature=0.1."""
    tile: int = 1024
    """Captions whose logits exist at a time; about 12 bytes for each of them and each figure of the
    rank. Changes memory and speed, not the loss."""

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ValueError(f"loss.tile must be at least 1, got {self.tile}")

    def check_bias(self, given: bool) -> None:
        """A model has a bias of its logits if, and only if, the loss uses one.

        Raises:
            ValueError: what to set instead.
        """
        if self.name == "siglip" and not given:
            raise ValueError("model.init_bias: loss.name=siglip needs it: set model.init_bias=-10")
        if self.name == "infonce" and given:
            raise ValueError("model.init_bias has no use in loss.name=infonce: set it to null")


def contrastive_loss(features: Features, config: LossConfig) -> Tensor:
    """This rank's share of the loss of the global batch, a scalar in fp32.

    Args:
        features: of the rank's b pairs; every rank holds the same number.
        config: which loss.

    Raises:
        ValueError: the model has no bias and the loss needs one, or the other way about.
    """
    config.check_bias(features.bias is not None)
    # Products stay out of autocast: bf16 has 8 bits, too few for logits of 100 * cosine.
    with torch.autocast(features.image.device.type, enabled=False):
        return _LOSSES[config.name](features, config.tile)


def infonce(features: Features, tile: int) -> Tensor:
    """Symmetric InfoNCE (Radford et al. 2021, figure 3).

    L = -1/2b sum_i [log softmax_j(s <x_i, y_j>)_i + log softmax_j(s <y_i, x_j>)_i] over the rank's
    b pairs i and the global batch j.
    """
    image, text, scale, _ = features
    share = _InfoNCE.apply(image.float(), gather(text.float()), scale, rank() * len(image), tile)
    return cast(Tensor, share)


def siglip(features: Features, tile: int) -> Tensor:
    """Sigmoid loss (Zhai et al. 2023, algorithm 1).

    L = -1/b sum_ij log sigmoid(z_ij (s <x_i, y_j> + c)) over the rank's b figures i and the global
    batch of captions j; z is 1 for pairs and -1 otherwise.
    """
    image, text, scale, bias = features
    first = rank() * len(image)
    parts = [
        checkpoint(
            _siglip_tile,
            *(image.float(), columns, scale, bias, first - start),
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for start, columns in _tiles(gather(text.float()), tile)
    ]
    return torch.stack(parts).sum() / len(image)


_LOSSES: dict[str, Callable[[Features, int], Tensor]] = {"infonce": infonce, "siglip": siglip}


class _InfoNCE(torch.autograd.Function):
    """Both softmaxes from one strip: of its rows, and of its columns together with other ranks'.

    It relies on all ranks scaling their share alike in backward: a rank's strip holds part of the
    gradient of every rank's share.
    """

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, first: int, tile: int
    ) -> Tensor:
        """[b, D] of this rank, [N, D] of all, scalar, place of row 0 among the columns."""
        row_logs = image.new_full((len(image),), -torch.inf)  # of the sums of the softmaxes
        column_parts, pair_parts = [], []
        for start, columns in _tiles(text, tile):
            logits = (image @ columns.T).mul_(scale)
            row_logs = torch.logaddexp(row_logs, logits.logsumexp(1))
            column_parts.append(logits.logsumexp(0))
            # Empty outside this rank's columns. A view would keep every tile alive.
            pair_parts.append(logits.diagonal(first - start).clone())
        column_logs, pairs = _sum_over_ranks(torch.cat(column_parts)), torch.cat(pair_parts)
        ctx.save_for_backward(image, text, scale, row_logs, column_logs)
        ctx.first, ctx.tile = first, tile
        own = column_logs[first : first + len(image)]
        return (row_logs + own - 2 * pairs).sum() / (2 * len(image))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, text, scale, row_logs, column_logs = ctx.saved_tensors
        of_image, of_text, of_scale = torch.zeros_like(image), [], torch.zeros_like(scale)
        gradient = gradient / (2 * len(image))
        for start, columns in _tiles(text, ctx.tile):
            cosines = image @ columns.T
            logits = cosines * scale
            # d L / d logits: both softmaxes, minus 2 at the pairs.
            weights = (logits - row_logs[:, None]).exp_()
            weights += logits.sub_(column_logs[start : start + len(columns)]).exp_()
            weights.diagonal(ctx.first - start).sub_(2)
            weights *= gradient
            of_scale += torch.sum(cosines.mul_(weights))
            weights *= scale
            of_image.addmm_(weights, columns)
            of_text.append(weights.T @ image)
        return of_image, torch.cat(of_text), of_scale, None, None


def _siglip_tile(image: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, pairs: int) -> Tensor:
    """Sum over a tile; its pairs are on the diagonal at offset `pairs`."""
    logits = torch.addmm(bias.expand(1, 1), scale * image, columns.T)
    logits.diagonal(pairs).neg_()
    return F.softplus(logits).sum()  # -log sigmoid(-logit), and of the pairs -log sigmoid(logit)


def _tiles(text: Tensor, tile: int) -> list[tuple[int, Tensor]]:
    """(start, [tile, D]) of each tile; one split, so that backward joins gradients in one go."""
    return [(place * tile, part) for place, part in enumerate(torch.split(text, tile))]


def _sum_over_ranks(logs: Tensor) -> Tensor:
    """Log of the sum over ranks of exp(logs), element by element."""
    if size() == 1:
        return logs
    largest = logs.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    shares = (logs - largest).exp_()
    dist.all_reduce(shares)
    return largest + shares.log_()
