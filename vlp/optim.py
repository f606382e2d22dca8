"""Parameter groups and schedules; the schedules are functions of the step."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor


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
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course after the warm-up: down to `final_learning_rate` at the last step, as half a cosine
    or straight; or level until the cool-down."""
    final_learning_rate: float = 0.0
    """Learning rate at the end."""
    cooldown_steps: int = 0
    """Last steps of `schedule=constant`, which go straight down to `final_learning_rate`."""
    batch_rule: Literal["none", "sqrt", "linear"] = "none"
    """How the learning rate follows a batch that grows during the run: not at all, with the root of
    its size over that of the first batch (Malladi et al. 2022, for Adam), or with that ratio."""
    image_layer_decay: float = 1.0
    """Factor on the learning rate from each layer of the image tower to the one before it (Clark et
    al. 2020, ELECTRA); the projection has the full rate. 1: all layers alike."""
    text_layer_decay: float = 1.0
    """The same for the text tower, and for a text encoder alone, whose heads have the full rate."""
    clip_norm: float = 1.0
    """Bound on the global norm of the gradient; 0 turns clipping off."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.eps <= 0:
            raise ValueError("optimizer.learning_rate and optimizer.eps must be positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must be in [0, 1), got {self.betas}")
        for key in ("weight_decay", "warmup_steps", "clip_norm", "cooldown_steps"):
            if getattr(self, key) < 0:
                raise ValueError(f"optimizer.{key} must not be negative, got {getattr(self, key)}")
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                "optimizer.final_learning_rate must be between 0 and optimizer.learning_rate"
                f"={self.learning_rate}, got {self.final_learning_rate}"
            )
        if self.cooldown_steps and self.schedule != "constant":
            raise ValueError("optimizer.cooldown_steps belongs to optimizer.schedule=constant")
        for key in ("image_layer_decay", "text_layer_decay"):
            if not 0 < getattr(self, key) <= 1:
                raise ValueError(f"optimizer.{key} must be in (0, 1], got {getattr(self, key)}")


def adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over groups of one weight decay and one factor on the learning rate.

    Matrices decay; vectors and scalars don't. The order of groups and of parameters in them follows
    from the model's architecture and the settings alone, since a saved optimiser is read back by
    it. A group's rate is the schedule's times its `lr_scale`.
    """
    # Only models with layers (vlp.models.dual_encoder, vlp.text.trainer) say how deep they are.
    layered: Any = model
    decayed = min(config.image_layer_decay, config.text_layer_decay) < 1
    depths: dict[str, tuple[int, int]] = layered.depths() if decayed else {}
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            depth, last = depths.get(name, (0, 0))
            of_image = name.startswith("visual.")
            decay = config.image_layer_decay if of_image else config.text_layer_decay
            scale = decay ** (last - depth)
            # Norms, biases, LayerScale and the temperature have fewer than two dimensions.
            # The fused kernel takes no list of both sharded and whole parameters.
            key = (scale, parameter.ndim >= 2, isinstance(parameter, DTensor))
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": groups[scale, decays_too, sharded],
                "lr": config.learning_rate * scale,
                "lr_scale": scale,
                "weight_decay": config.weight_decay if decays_too else 0.0,
            }
            for scale, decays_too, sharded in sorted(groups, reverse=True)
        ],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def learning_rate(
    step: int, steps: int, config: OptimizerConfig, batch_ratio: float = 1.0
) -> float:
    """The rate of step `step` (0-based) of `steps`: as open_clip's schedules.

    Args:
        step: the step about to be taken.
        steps: of the whole run.
        config: the schedule.
        batch_ratio: this step's batch size over the first step's, for `batch_rule`.
    """
    peak, final = config.learning_rate, config.final_learning_rate
    factor = {"none": 1.0, "sqrt": math.sqrt(batch_ratio), "linear": batch_ratio}[config.batch_rule]
    if step < config.warmup_steps:
        return factor * peak * (step + 1) / config.warmup_steps
    start = config.warmup_steps
    if config.schedule == "constant":
        start = max(start, steps - config.cooldown_steps)
    done = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return factor * (final + (peak - final) * left)
