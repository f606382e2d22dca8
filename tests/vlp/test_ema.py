"""The average of the weights, against the recurrence written out."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from tests.vlp.tiny import MODEL
from vlp.ema import EMA
from vlp.models.dual_encoder import DualEncoder


def test_the_recurrence() -> None:
    model = nn.Linear(3, 2).double()
    ema = EMA(model, 0.9)
    want = model.weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 200):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3, generator=generator))
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * model.weight.detach()
    assert ema.state_dict()["weight"].dtype == torch.float32
    torch.testing.assert_close(ema.state_dict()["weight"].double(), want, rtol=1e-5, atol=1e-5)


def test_constant_weights_are_their_own_average() -> None:
    model = DualEncoder(MODEL)
    ema = EMA(model, 0.999)
    for step in range(1, 5):
        ema.update(model, step)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ema.state_dict()[name], parameter.detach())


def test_applied_and_taken_back() -> None:
    model = DualEncoder(MODEL)
    ema = EMA(model, 0.5)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    places = {name: p.data_ptr() for name, p in model.named_parameters()}

    def spoil() -> None:
        with ema.applied(model):
            assert all(torch.equal(p, start[name]) for name, p in model.named_parameters())
            raise RuntimeError("evaluation failed")

    with pytest.raises(RuntimeError, match="evaluation failed"):
        spoil()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, own[name])
        assert parameter.data_ptr() == places[name]  # optimisers and compiled code hold on to it
        assert parameter.requires_grad


def test_frozen_weights_take_no_part() -> None:
    config = dataclasses.replace(MODEL, image=dataclasses.replace(MODEL.image, frozen=-1))
    ema = EMA(DualEncoder(config), 0.9)
    visual = [name for name in ema.state_dict() if name.startswith("visual.")]
    assert visual == ["visual.head.proj.weight"]


def test_saved_and_loaded() -> None:
    model = nn.Linear(3, 2)
    ema, again = EMA(model, 0.9), EMA(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update(model, 1)
    again.load_state_dict({name: value.clone() for name, value in ema.state_dict().items()})
    for step in (2, 3):
        ema.update(model, step)
        again.update(model, step)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in ema.state_dict().items())
    with pytest.raises(KeyError, match="averages of other parameters: bias"):
        again.load_state_dict({"weight": model.weight})


def test_of_sharded_parameters(tmp_path: Path) -> None:
    """FSDP2's DTensors (a mesh of one): the same numbers, through their shards."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        torch.manual_seed(0)
        plain = nn.Linear(4, 4)
        sharded = nn.Linear(4, 4)
        sharded.load_state_dict(plain.state_dict())
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        fully_shard(sharded, mesh=mesh)
        averages = [EMA(plain, 0.9), EMA(sharded, 0.9)]
        for model, ema in zip((plain, sharded), averages, strict=True):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(2.0)
            ema.update(model, 1)
        for name, value in averages[0].state_dict().items():
            assert torch.equal(averages[1].state_dict()[name].full_tensor(), value)
        own = sharded.weight.full_tensor().detach().clone()
        with averages[1].applied(sharded):
            expected = averages[0].state_dict()["weight"]
            assert torch.equal(sharded.weight.full_tensor().detach(), expected)
        assert torch.equal(sharded.weight.full_tensor().detach(), own)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_impossible_decays(decay: float) -> None:
    with pytest.raises(ValueError, match=r"train\.ema_decay"):
        EMA(nn.Linear(1, 1), decay)
