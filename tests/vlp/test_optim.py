"""Parameter groups and the schedule, against open_clip's own formula."""

import math

import pytest
import torch
from torch import nn

from tests.vlp.tiny import MODEL
from vlp.models.dual_encoder import DualEncoder
from vlp.optim import OptimizerConfig, adamw, learning_rate


def test_no_decay_on_norms_biases_and_temperature() -> None:
    model = DualEncoder(MODEL)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, free = (
        {names[id(p)] for p in group["params"]}
        for group in adamw(model, OptimizerConfig()).param_groups
    )
    assert decayed | free == set(names.values())
    assert not decayed & free
    assert "logit_scale" in free
    assert all(
        name in free for name in names.values() if name.endswith("bias") or "norm" in name.lower()
    )
    assert all(name in decayed for name in names.values() if name.endswith("dense.weight"))


def test_frozen_parameters_are_left_out() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layers[0].requires_grad_(False)
    groups = adamw(layers, OptimizerConfig()).param_groups
    assert [len(group["params"]) for group in groups] == [1, 1]


def open_clip_cosine(step: int, steps: int, base: float, warmup: int) -> float:
    """open_clip_train.scheduler.cosine_lr, written out (that module is not in the package)."""
    if step < warmup:
        return base * (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) * base


@pytest.mark.parametrize("warmup", [0, 1, 30])
def test_schedule(warmup: int) -> None:
    config = OptimizerConfig(learning_rate=3e-4, warmup_steps=warmup)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates == pytest.approx([open_clip_cosine(s, 100, 3e-4, warmup) for s in range(100)])
    assert max(rates) == pytest.approx(3e-4)
    assert 0 < rates[-1] < 1e-6
    assert learning_rate(500, 100, config) == 0  # past the end


def test_warmup_longer_than_the_run() -> None:
    config = OptimizerConfig(warmup_steps=50)
    assert learning_rate(9, 10, config) == pytest.approx(5e-4 * 10 / 50)


def test_decay_moves_matrices_only() -> None:
    """With zero gradients AdamW's only effect is the decay."""
    layer = nn.Linear(3, 3)
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = adamw(layer, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before[0] * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias.detach(), before[1])
