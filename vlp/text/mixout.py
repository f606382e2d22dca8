"""Mixout: each step computes with a part of the weights as they were at the start.

Lee et al. 2020 (arXiv:1909.11299), section 3: with W the weights, U those at the start, p the share
and M a mask of zeros (with probability p) and ones, a step computes with

    W' = ((1 - M) U + M W - p U) / (1 - p),

of which the mean is W. As in the authors' code M is drawn for each input of a linear layer, so that
a column of its matrix stays or goes; biases, norms and embeddings are W always.

Gradients are those of this formula, dL/dW = M / (1 - p) dL/dW'. The authors' code has M alone;
Adam takes the same steps either way, except where the gradient is clipped.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vlp.data.order import generator


class Mixout:
    """Mixes the matrices of a model's linear layers with those that it has now.

    For a step the mixture stands in the parameters themselves. Hence their names, checkpoints,
    copies on other ranks, shards and activation checkpointing are as without it.

    Attributes:
        digest: names the weights at the start; a resumed run must have the same ones.
    """

    def __init__(self, model: nn.Module, share: float, seed: int) -> None:
        """Remember the model's present weights.

        Args:
            model: with the weights to stay near; before it is sharded or a checkpoint is loaded.
            share: p, in (0, 1).
            seed: of the masks.

        Raises:
            ValueError: an impossible share.
        """
        if not 0 < share < 1:
            raise ValueError(f"train.mixout must be in (0, 1), or 0 for none, got {share}")
        self.model, self.share, self.seed = model, share, seed
        self.start = {
            f"{name}.weight": module.weight.detach().clone()
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        }
        self.digest = _digest(self.start)

    @contextmanager
    def applied(self, step: int) -> Iterator[None]:
        """Within it the model has the mixture of a step; afterwards its weights, bit for bit, and
        the gradients of these.

        Args:
            step: decides the masks, with the seed; all ranks draw the same.
        """
        parameters = dict(self.model.named_parameters())
        draw = torch.Generator().manual_seed(int(generator(self.seed, step).integers(2**63)))
        inputs = [start.shape[1] for start in self.start.values()]
        # Drawn on the CPU, and sent to the device at once: one copy, and the same masks everywhere.
        kept = torch.rand(sum(inputs), generator=draw) >= self.share
        scales = kept.to(next(iter(parameters.values())).device) / (1 - self.share)
        masks = dict(zip(self.start, scales.split(inputs), strict=True))
        own = dict[str, Tensor]()
        for name, mask in masks.items():
            weight, start = _local(parameters[name]), self._start_like(name, parameters[name])
            own[name] = weight.clone()
            # The formula with U taken together; `mask` is M / (1 - p).
            weight.copy_(start + mask * (weight - start))
        try:
            yield
        finally:
            for name, weight in own.items():
                _local(parameters[name]).copy_(weight)
                gradient = parameters[name].grad
                if gradient is not None:
                    _local(gradient).mul_(masks[name])

    def _start_like(self, name: str, parameter: Tensor) -> Tensor:
        """The weights at the start, or of a sharded matrix this rank's rows of them."""
        start = self.start[name]
        if isinstance(parameter, DTensor) and not isinstance(start, DTensor):
            start = distribute_tensor(start, parameter.device_mesh, parameter.placements)
            self.start[name] = start
        return _local(start)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor, which shares its memory; any other tensor itself."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
