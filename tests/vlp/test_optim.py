"""Parameter groups and the schedule, against open_clip's own formula."""

import dataclasses
import math
from typing import Any

import pytest
import timm.optim
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


@pytest.mark.parametrize("final", [0.0, 1e-5])
def test_other_schedules(final: float) -> None:
    """open_clip's `const_lr_cooldown` (power 1), and a straight line, written out."""
    base = OptimizerConfig(learning_rate=3e-4, warmup_steps=10, final_learning_rate=final)
    constant = dataclasses.replace(base, schedule="constant", cooldown_steps=40)
    rates = [learning_rate(step, 100, constant) for step in range(100)]
    assert rates[:10] == pytest.approx([3e-4 * (step + 1) / 10 for step in range(10)])
    assert rates[10:60] == [3e-4] * 50
    left = [1 - (step - 60) / 40 for step in range(60, 100)]
    assert rates[60:] == pytest.approx([share * (3e-4 - final) + final for share in left])
    forever = dataclasses.replace(base, schedule="constant", final_learning_rate=0.0)
    assert learning_rate(99, 100, forever) == 3e-4
    linear = dataclasses.replace(base, schedule="linear")
    assert learning_rate(55, 100, linear) == pytest.approx((3e-4 + final) / 2)
    assert learning_rate(100, 100, base) == learning_rate(100, 100, linear) == final


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("sqrt", 4.0), ("linear", 16.0)])
def test_the_rate_follows_the_batch(rule: Any, factor: float) -> None:
    config = OptimizerConfig(warmup_steps=5, batch_rule=rule)
    for step in (2, 30):
        plain = learning_rate(step, 100, config)
        assert learning_rate(step, 100, config, batch_ratio=16) == pytest.approx(factor * plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0}, "optimizer.eps must be positive"),
        ({"clip_norm": -1}, "optimizer.clip_norm must not be negative, got -1"),
        ({"final_learning_rate": 1.0}, "between 0 and optimizer.learning_rate=0.0005, got 1.0"),
        ({"cooldown_steps": 5}, "belongs to optimizer.schedule=constant"),
        ({"text_layer_decay": 0.0}, r"optimizer.text_layer_decay must be in \(0, 1\], got 0.0"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**settings)


def scales(model: nn.Module, config: OptimizerConfig) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = adamw(model, config).param_groups
    assert all(group["lr"] == config.learning_rate * group["lr_scale"] for group in groups)
    return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}


def test_layer_decay() -> None:
    """Both towers from the projection down; timm's own rule says the same of its model."""
    model = DualEncoder(MODEL)
    config = OptimizerConfig(image_layer_decay=0.5, text_layer_decay=0.8)
    got = scales(model, config)
    assert got["logit_scale"] == got["visual.head.proj.weight"] == got["text.proj.0.weight"] == 1
    assert got["text.transformer.encoder.layer.2.output.dense.bias"] == pytest.approx(0.8)
    assert got["text.transformer.encoder.layer.0.output.dense.bias"] == pytest.approx(0.8**3)
    embeddings = "text.transformer.embeddings.word_embeddings.weight"
    assert got[embeddings] == pytest.approx(0.8**4)
    # With a classifier behind the blocks, which stands where our projection does.
    theirs = timm.create_model("test_vit")
    names = {id(p): name for name, p in theirs.named_parameters()}
    for group in timm.optim.param_groups_layer_decay(theirs, layer_decay=0.5):
        for parameter in group["params"]:
            name = names[id(parameter)]
            if not name.startswith("head."):
                assert got["visual.trunk." + name] == pytest.approx(group["lr_scale"]), name


def test_groups_are_the_same_in_every_process() -> None:
    config = OptimizerConfig(image_layer_decay=0.5, text_layer_decay=0.8)
    first, second = (list(scales(DualEncoder(MODEL), config).items()) for _ in range(2))
    assert first == second


def test_layer_decay_reaches_the_step() -> None:
    """AdamW's first step moves each weight by its group's rate, whatever the gradient's size."""
    model = DualEncoder(MODEL)
    config = OptimizerConfig(learning_rate=1e-3, weight_decay=0, image_layer_decay=0.5, eps=1e-12)
    optimizer = adamw(model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, scale in scales(model, config).items():
        moved = before[name] - dict(model.named_parameters())[name].detach()
        torch.testing.assert_close(moved, torch.full_like(moved, 1e-3 * scale), rtol=0, atol=2e-6)


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
