"""Frozen towers, their depths, and the settings of both towers together."""

import dataclasses
from typing import Any

import pytest
import torch

from tests.vlp.tiny import CAPTIONS, MODEL, make_tokenizer
from vlp.config import UserError
from vlp.losses import LossConfig, contrastive_loss
from vlp.models.dual_encoder import DualEncoder, ModelConfig
from vlp.optim import OptimizerConfig, adamw

GPT = dataclasses.replace(MODEL.text, kind="gpt", proj="linear")
TEXTS = pytest.mark.parametrize("text", [MODEL.text, GPT], ids=["bert", "gpt"])


def configure(text: Any, image: int = 0, words: int = 0) -> ModelConfig:
    return dataclasses.replace(
        MODEL,
        image=dataclasses.replace(MODEL.image, frozen=image),
        text=dataclasses.replace(text, frozen=words),
    )


@TEXTS
def test_every_parameter_has_a_depth(text: Any) -> None:
    model = DualEncoder(configure(text))
    depths = model.depths()
    towers = [name for name, _ in model.named_parameters() if name != "logit_scale"]
    assert sorted(depths) == sorted(towers)
    for prefix, layers in (("visual.", 6), ("text.", 3)):
        mine = {name: depth for name, (depth, _) in depths.items() if name.startswith(prefix)}
        assert set(mine.values()) == set(range(layers + 2))
        assert {last for name, (_, last) in depths.items() if name in mine} == {layers + 1}


@TEXTS
@pytest.mark.parametrize(("image", "words"), [(2, 1), (6, 3), (-1, -1), (0, 2)])
def test_frozen_layers_stay_and_the_others_learn(
    text: Any, image: int, words: int, tmp_path: Any
) -> None:
    tokenizer = make_tokenizer(tmp_path / "tok")
    model = DualEncoder(configure(text, image, words))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = adamw(model, OptimizerConfig(learning_rate=1e-2))
    features = model(torch.randn(7, 3, 160, 160), tokenizer(CAPTIONS))
    contrastive_loss(features, LossConfig()).backward()
    optimizer.step()
    bounds = {"visual": image if image >= 0 else 6, "text": words if words >= 0 else 3}
    for name, parameter in model.named_parameters():
        tower = name.partition(".")[0]
        depth, _ = model.depths().get(name, (99, 99))
        frozen = (image, words)[tower == "text"] != 0 and depth <= bounds.get(tower, -1)
        assert parameter.requires_grad is not frozen, name
        # Key biases get no gradient from softmax; padding's row none from any token.
        if frozen or "key.bias" not in name:
            moved = not torch.equal(parameter, before[name])
            assert moved is not frozen, name


def test_a_whole_tower_but_its_projection() -> None:
    model = DualEncoder(configure(MODEL.text, -1, -1))
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learning == [
        "logit_scale",
        "visual.head.proj.weight",
        "text.proj.0.weight",
        "text.proj.2.weight",
    ]
    model.train()
    assert not model.visual.trunk.training
    assert model.visual.head.training


def test_more_layers_than_there_are() -> None:
    with pytest.raises(UserError, match=r"model.image.frozen=7: the tower has 6 layers; -1"):
        DualEncoder(configure(MODEL.text, image=7))
    with pytest.raises(ValueError, match=r"model.text.frozen must be -1 or one of 0 to .*=3"):
        configure(MODEL.text, words=4)


@TEXTS
def test_checkpointing_both_towers(text: Any, tmp_path: Any) -> None:
    """The same loss and gradients, with frozen layers in front, too."""
    tokenizer = make_tokenizer(tmp_path / "tok")
    model = DualEncoder(configure(text, 2, 1))
    images, packed = torch.randn(7, 3, 160, 160), tokenizer(CAPTIONS)
    results = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        loss = contrastive_loss(model(images, packed), LossConfig())
        loss.backward()
        results.append((loss, {n: p.grad for n, p in model.named_parameters()}))
    assert torch.equal(results[0][0], results[1][0])
    for name, grad in results[0][1].items():
        if grad is None:
            assert results[1][1][name] is None
        else:
            torch.testing.assert_close(results[1][1][name], grad)
