"""Mixout against the formula of its paper, written out as a function of autograd."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.vlp.tiny import MODEL
from vlp.data.text import PackedText
from vlp.text.masked_lm import MaskedLM
from vlp.text.mixout import Mixout

SHARE = 0.7


def mixture(weight: Tensor, start: Tensor, mask: Tensor, share: float) -> Tensor:
    """Lee et al. 2020, equation 5, term by term."""
    return ((1 - mask) * start + mask * weight - share * start) / (1 - share)


def moved(seed: int = 0) -> tuple[MaskedLM, MaskedLM, Mixout]:
    """A model as it was at the start, the same after some training, and its mixout."""
    torch.manual_seed(seed)
    model = MaskedLM(MODEL.text)
    start = copy.deepcopy(model)
    mixout = Mixout(model, SHARE, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return start, model, mixout


def batch() -> tuple[PackedText, Tensor, Tensor]:
    ids = torch.randint(1, 100, (40,), generator=torch.Generator().manual_seed(1))
    text = PackedText(ids, torch.tensor([0, 7, 24, 40], dtype=torch.int32), 24)
    return text, torch.arange(0, 40, 3), ids[::3]


def loss(model: MaskedLM) -> Tensor:
    return model(*batch())


def test_loss_and_gradients_are_the_formulas() -> None:
    """The masks are read from the mixture; a model that mixes within autograd must then agree.

    To 1e-5 of the norm: W - U + U is not W in fp32.
    """
    start, model, mixout = moved()
    slow = copy.deepcopy(model)
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    before = dict(start.named_parameters())
    masks = {}
    with mixout.applied(5):
        for name, parameter in model.named_parameters():
            if name in linear:
                masks[name] = (parameter != before[name]).any(0).float()
            else:
                assert torch.equal(parameter, dict(slow.named_parameters())[name]), name
        got = loss(model)
        got.backward()
    assert sum(mask.sum() for mask in masks.values()) > 0
    mixed = {
        name: mixture(parameter, before[name].detach(), masks[name], SHARE)
        for name, parameter in slow.named_parameters()
        if name in linear
    }
    want = loss_with(slow, mixed)
    want.backward()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5)
    for (name, ours), theirs in zip(model.named_parameters(), slow.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        difference = (ours.grad - theirs.grad).norm()
        # Softmax leaves key biases no gradient but rounding.
        assert difference <= 1e-5 * max(theirs.grad.norm(), 1e-2), name


def loss_with(model: MaskedLM, weights: dict[str, Tensor]) -> Tensor:
    """The loss with other tensors in the places of some parameters, by which autograd goes.

    Without the head's recomputation in backward, which would find the parameters there again.
    """

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            text, places, targets = batch()
            logits = self.model.logits(self.model.bert.states(text)[places])
            return F.cross_entropy(logits, targets, reduction="sum")

    named = {f"model.{name}": value for name, value in weights.items()}
    return torch.func.functional_call(Whole(), named, ())


def test_the_mean_is_the_weight_itself() -> None:
    """E[W'] = W: over 1,000 steps, each entry within 5 deviations of its mean."""
    start, model, mixout = moved()
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    weight, first = dict(model.named_parameters())[name], dict(start.named_parameters())[name]
    own, total, steps = weight.detach().clone(), torch.zeros_like(weight), 1000
    mixout.start = {name: mixout.start[name]}
    for step in range(steps):
        with mixout.applied(step), torch.no_grad():
            total += weight
    # W' - U is (W - U) / (1 - p) with probability 1 - p.
    deviation = (own - first).abs() * (SHARE / (1 - SHARE) / steps) ** 0.5
    assert ((total / steps - own).abs() <= 5 * deviation + 1e-5).all()


def test_afterwards_all_is_as_before() -> None:
    _, model, mixout = moved()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with mixout.applied(1):
        changed = [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])]
        loss(model).backward()
    assert len(changed) == 3 * 6 + 1  # every linear layer
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_also_after_an_error() -> None:
    _, model, mixout = moved()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="out of memory"), mixout.applied(1):
        raise RuntimeError("out of memory")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def mixtures(mixout: Mixout, model: MaskedLM, step: int) -> dict[str, Tensor]:
    with mixout.applied(step):
        return {name: value.clone() for name, value in model.state_dict().items()}


def test_masks_follow_from_seed_and_step() -> None:
    _, model, mixout = moved()
    _, other, same = moved()
    torch.manual_seed(99)  # whatever else is drawn
    first, again, later = (
        mixtures(mixout, model, 4),
        mixtures(same, other, 4),
        mixtures(mixout, model, 5),
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], later[name]) for name in first)


def test_a_column_stays_or_goes() -> None:
    """Of an input's weights all are mixed or none; about `SHARE` of the inputs are."""
    start, model, mixout = moved()
    first, now = start.state_dict(), mixtures(mixout, model, 2)
    dropped = inputs = 0
    for name in mixout.start:
        gone = now[name] == first[name]
        assert torch.equal(gone.all(0), gone.any(0)), name
        dropped, inputs = dropped + int(gone.all(0).sum()), inputs + gone.shape[1]
    deviation = (SHARE * (1 - SHARE) / inputs) ** 0.5
    assert abs(dropped / inputs - SHARE) < 5 * deviation


def test_digest_names_the_start() -> None:
    start, model, mixout = moved()
    assert mixout.digest == Mixout(start, 0.1, seed=0).digest
    assert mixout.digest != Mixout(model, 0.1, seed=0).digest


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_impossible_shares(share: float) -> None:
    with pytest.raises(ValueError, match=r"train.mixout must be in"):
        Mixout(nn.Linear(2, 2), share, seed=0)
