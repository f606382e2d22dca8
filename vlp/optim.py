"""Parameter groups and schedules; the schedules are functions of the step."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay; the defaults are BiomedCLIP's (Table 9)."""

    learning_rate: float = 5e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the moments."""
    eps: float = 1e-6
    """Added to the root of the second moment."""
    weight_decay: float = 0.2
    """Decoupled decay of matrices; norms, biases and the temperature have none."""
    warmup_steps: int = 2000
    """Steps of linear warm-up."""
    clip_norm: float = 1.0
    """Bound on the global norm of the gradient; 0 turns clipping off."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.eps <= 0:
            raise ValueError("optimizer.learning_rate and optimizer.eps must be positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must be in [0, 1), got {self.betas}")
        if min(self.weight_decay, self.warmup_steps, self.clip_norm) < 0:
            raise ValueError(
                "optimizer.weight_decay, optimizer.warmup_steps and optimizer.clip_norm "
                "must not be negative"
            )


def adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over two groups: matrices with decay; vectors and scalars without."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Norms, biases, LayerScale and the temperature have fewer than two dimensions.
            (matrices if parameter.ndim >= 2 else others).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """The rate of step `step` (0-based) of `steps`: as open_clip's `cosine_lr`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
