"""The image tower: the [CLS]-only last block against timm's own, patch dropout, checkpointing.

Tolerances: fp32 sums in another order, 1e-5 of values of size 1.
"""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.vlp.test_towers import spread
from vlp.config import UserError
from vlp.models.vision_tower import ClsOnlyBlock, ImageConfig, VisionTower


def run(trunk: VisionTransformer, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients; stochastic depth draws the same in every call."""
    trunk.zero_grad()
    torch.manual_seed(5)
    out = trunk(images)
    out.square().sum().backward()
    return out.detach(), {name: p.grad for name, p in trunk.named_parameters()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"qk_norm": True, "init_values": 0.5, "reg_tokens": 2, "pre_norm": True},
        {"drop_path_rate": 0.5, "qkv_bias": False, "scale_attn_norm": True},
        {"no_embed_class": True, "reg_tokens": 1, "dynamic_img_size": True},
    ],
)
def test_the_cls_only_block_is_exact(settings: dict[str, Any]) -> None:
    trunk = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, num_classes=0, **settings
    )
    spread(trunk)
    images = torch.randn(5, 3, 32, 32)
    want, want_grads = run(trunk.train(), images)
    trunk.blocks[-1].__class__ = ClsOnlyBlock
    got, got_grads = run(trunk, images)
    assert (got - want).abs().max() <= 1e-5
    largest = max(grad.abs().max() for grad in want_grads.values())
    for name, grad in want_grads.items():
        assert (got_grads[name] - grad).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize(
    ("name", "pool", "kind"),
    [
        ("test_vit", "", ClsOnlyBlock),
        ("test_vit", "avg", Block),  # every token is read
        ("test_vit2", "", Block),  # pools by the mean
        ("test_vit3", "", Block),  # pools by attention
    ],
)
def test_where_it_applies(name: str, pool: Any, kind: type) -> None:
    tower = VisionTower(ImageConfig(name=name, size=160, pool=pool), 8)
    assert type(tower.trunk.blocks[-1]) is kind
    assert type(tower.trunk.blocks[0]) is Block
    assert tower(torch.randn(2, 3, 160, 160)).shape == (2, 8)
    copied = copy.deepcopy(tower).state_dict()
    assert all(torch.equal(copied[key], value) for key, value in tower.state_dict().items())


def test_other_families_are_left_alone() -> None:
    tower = VisionTower(ImageConfig(name="test_resnet", size=160, frozen=-1), 8).train()
    assert not any(module.training for module in tower.trunk.modules())  # BatchNorms keep theirs
    assert max(tower.depths().values()) == tower.depths()["head.proj.weight"]


def test_vit_b_16_saves_seven_percent_of_the_flops() -> None:
    """105.1 GFLOP of forward and backward become 97.9 (a sixth of it is this forward)."""
    flops = []
    with torch.device("meta"):
        trunk = timm.create_model("vit_base_patch16_224", num_classes=0)
        for block in (Block, ClsOnlyBlock):
            trunk.blocks[-1].__class__ = block
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                trunk(torch.empty(1, 3, 224, 224))
            flops.append(counter.get_total_flops())
    assert flops[0] * 3 == pytest.approx(105.1e9, rel=0.005)
    assert flops[1] / flops[0] == pytest.approx(0.931, abs=0.002)


def test_patch_dropout_draws_from_the_step_seed() -> None:
    config = ImageConfig(name="test_vit", size=160, patch_dropout=0.5)
    tower = VisionTower(config, 8)
    seen: list[int] = []
    tower.trunk.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    images = torch.randn(3, 3, 160, 160)

    def embed(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return tower(images)

    assert torch.equal(embed(1), embed(1))
    assert not torch.equal(embed(1), embed(2))
    assert seen == [51] * 4  # [CLS] and half of 10 x 10 patches
    tower.eval()
    whole = VisionTower(ImageConfig(name="test_vit", size=160), 8)
    whole.load_state_dict(tower.state_dict())
    assert torch.equal(embed(1), whole(images))


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_resnet"])
def test_checkpointing_changes_no_gradient(name: str) -> None:
    tower = VisionTower(ImageConfig(name=name, size=160, drop_path=0.3), 8).train()
    images = torch.randn(2, 3, 160, 160)
    want, want_grads = run(tower, images)
    tower.set_grad_checkpointing(True)
    forwards: list[int] = []
    inside = [m for m in tower.trunk.modules() if isinstance(m, torch.nn.ReLU | Block)]
    inside[-1].register_forward_pre_hook(lambda *_: forwards.append(1))
    got, got_grads = run(tower, images)
    assert torch.equal(got, want)
    assert len(forwards) == 2  # the second one in backward
    for key, grad in want_grads.items():
        torch.testing.assert_close(got_grads[key], grad)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_dropout": 1.0}, r"model.image.patch_dropout must be in \[0, 1\), got 1.0"),
        ({"frozen": -2}, "model.image.frozen must be at least -1"),
        ({"frozen": -1, "drop_path": 0.1}, "leaves nothing to model.image.drop_path"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageConfig(**settings)


def test_patch_dropout_needs_patches() -> None:
    with pytest.raises(UserError, match=r"test_resnet can't be built so .*patch_dropout=0"):
        VisionTower(ImageConfig(name="test_resnet", size=160, patch_dropout=0.5), 8)
