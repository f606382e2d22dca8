"""Low-rank changes: what they compute, what they leave alone, what plain model they make."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.vlp.tiny import MODEL
from vlp.config import UserError
from vlp.data.text import PackedText
from vlp.models.text_tower import PackedBert
from vlp.optim import OptimizerConfig, adamw
from vlp.text.lora import LoraLinear, add_lora, merged, trainable_share
from vlp.text.settings import LoraConfig

CONFIG = LoraConfig(rank=4, alpha=8.0, targets=("query", "key", "value", "dense"))


def text() -> PackedText:
    ids = torch.randint(1, 100, (40,), generator=torch.Generator().manual_seed(1))
    return PackedText(ids, torch.tensor([0, 7, 24, 40], dtype=torch.int32), 24)


def trained(config: LoraConfig = CONFIG, steps: int = 5) -> tuple[PackedBert, PackedBert]:
    """A BERT before, and the same after some steps of learning changes."""
    torch.manual_seed(0)
    before = PackedBert(MODEL.text)
    bert = copy.deepcopy(before)
    add_lora(bert, config)
    optimizer = adamw(bert, OptimizerConfig(learning_rate=1e-2, weight_decay=0.1))
    for _ in range(steps):
        optimizer.zero_grad()
        bert.states(text()).pow(2)[:, :7].sum().backward()
        optimizer.step()
    return before, bert


def test_the_start_is_the_base_exactly() -> None:
    before, bert = trained(steps=0)
    assert torch.equal(before.states(text()), bert.states(text()))


def test_a_layer_computes_the_papers_formula() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(6, 5)
    layer = LoraLinear(plain, LoraConfig(rank=2, alpha=3.0))
    with torch.no_grad():
        layer.lora_b.normal_()
    x = torch.randn(7, 6)
    want = x @ plain.weight.T + plain.bias + 3.0 / 2 * (x @ layer.lora_a.T @ layer.lora_b.T)
    torch.testing.assert_close(layer(x), want, rtol=1e-6, atol=1e-6)


def test_only_the_changes_learn() -> None:
    before, bert = trained()
    base = dict(before.named_parameters())
    for name, parameter in bert.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if name in base:
            assert torch.equal(parameter, base[name]), name
        else:
            assert parameter.abs().max() > 0, name
    assert set(base) <= set(dict(bert.named_parameters()))


def test_merged_is_unmerged() -> None:
    """To 1e-5 (fp32): one product with the sum of two matrices against the sum of two products."""
    before, bert = trained()
    state = {f"lm.bert.{name}": value for name, value in bert.state_dict().items()}
    copies = {name: value.clone() for name, value in state.items()}
    plain = PackedBert(MODEL.text)
    weights = merged(state, CONFIG)
    plain.load_state_dict({name.removeprefix("lm.bert."): value for name, value in weights.items()})
    got, want = plain.states(text()), bert.states(text())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert (want - before.states(text())).abs().max() > 1e-2  # there was something to merge
    assert all(torch.equal(value, copies[name]) for name, value in state.items())


def test_a_model_without_changes_merges_to_itself() -> None:
    weights = PackedBert(MODEL.text).state_dict()
    assert merged(weights, LoraConfig()) == weights


@pytest.mark.parametrize(
    ("targets", "changed"),
    [
        (("query", "value"), {"query", "value"}),
        (("key",), {"key"}),
        (("dense",), {"attention.output.dense", "intermediate.dense", "output.dense"}),
    ],
)
def test_targets(targets: Any, changed: set[str]) -> None:
    bert = PackedBert(MODEL.text)
    add_lora(bert, LoraConfig(rank=2, targets=targets))
    found = {name for name, module in bert.named_modules() if isinstance(module, LoraLinear)}
    wanted = set()
    for layer in range(3):
        for name in changed:
            inner = name if "." in name else f"attention.self.{name}"
            wanted.add(f"encoder.layer.{layer}.{inner}")
    assert found == wanted


def test_trainable_share() -> None:
    bert = PackedBert(MODEL.text)
    whole = sum(p.numel() for p in bert.parameters())
    assert trainable_share(bert) == 1
    add_lora(bert, LoraConfig(rank=2))
    learnt = 3 * 2 * 2 * (32 + 32)  # layers x (query, value) x rank x (inputs + outputs)
    assert trainable_share(bert) == learnt / (whole + learnt)


def test_dropout_is_of_the_changes_alone_and_in_training_alone() -> None:
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(64, 8), LoraConfig(rank=2, alpha=2.0, dropout=0.5))
    x = torch.randn(3, 64)
    plain = F.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), plain)  # B is zero
    with torch.no_grad():
        layer.lora_b.normal_()
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    # The mean over many draws is the value without dropout; 5 deviations of the mean.
    layer.train()
    with torch.no_grad():
        draws = torch.stack([layer(x) for _ in range(1000)])
        layer.eval()
        assert ((draws.mean(0) - layer(x)).abs() <= 5 * draws.std(0) / 1000**0.5).all()


def test_a_rank_that_saves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"lora.rank=33: .*query has 32 inputs and 32 outputs"):
        add_lora(PackedBert(MODEL.text), LoraConfig(rank=33))
