"""An exponential moving average of the weights, which evaluation and the saved model can use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """The running mean of a model's trainable parameters, in fp32 on their devices.

    After step t each average moves by 1 - d_t towards its parameter, with
    d_t = min(decay, (1 + t) / (10 + t)): a young average isn't held back by the random start
    (Szegedy et al. 2016's code; TensorFlow's `ExponentialMovingAverage`). Frozen parameters and
    buffers stay the model's own. Of sharded parameters each rank averages its shard.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the model's present weights.

        Raises:
            ValueError: the decay is not in (0, 1).
        """
        if not 0 < decay < 1:
            raise ValueError(f"train.ema_decay must be in (0, 1), or 0 for none, got {decay}")
        self.decay = decay
        with torch.no_grad():
            self.average = {
                name: parameter.detach().float().clone()
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after `step` optimiser steps (1 after the first)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averages, parameters = self._pairs(model)
        torch._foreach_lerp_(averages, [parameter.float() for parameter in parameters], weight)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within it the model has the averaged weights; afterwards its own, bit for bit."""
        averages, parameters = self._pairs(model)
        with torch.no_grad():
            own = [parameter.clone() for parameter in parameters]
            torch._foreach_copy_(parameters, averages)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name; the tensors themselves, not copies."""
        return self.average

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take averages saved before.

        Raises:
            KeyError: names of another model, or another set of frozen parameters.
        """
        if state.keys() != self.average.keys():
            differing = sorted(state.keys() ^ self.average.keys())
            raise KeyError(f"averages of other parameters: {', '.join(differing[:3])}")
        for name, average in self.average.items():
            average.copy_(state[name])

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Averages and the model's parameters in the same order; of sharded ones, the shards."""
        parameters = dict(model.named_parameters())
        return (
            [_local(average) for average in self.average.values()],
            [_local(parameters[name]) for name in self.average],
        )


def _local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor, which shares its memory; any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor.detach() if to_local is None else to_local().detach()
