"""Everything that a run carries from step to step, as named tensors.

The order of data and all random draws are functions of the seed and the step, so this and the step
are all that a checkpoint needs.
"""

import torch
from torch import Tensor, nn

from vlp.ema import EMA


def tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: EMA | None
) -> dict[str, Tensor]:
    """The memory itself, not copies: weights and buffers, the optimiser's moments by parameter, and
    the average of the weights."""
    named = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            named[f"optimizer.{name}.{key}"] = value
    if average is not None:
        named |= {f"average.{name}": value for name, value in average.state_dict().items()}
    return named


def allocate(optimizer: torch.optim.Optimizer) -> None:
    """Give a new AdamW the tensors that it otherwise makes in its first step, to load into."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
