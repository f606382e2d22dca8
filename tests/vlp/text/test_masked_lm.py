"""The packed masked language model against transformers' BertForMaskedLM."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from vlp.data.text import PackedText
from vlp.models.text_tower import TextConfig
from vlp.text import masked_lm
from vlp.text.masked_lm import MaskedLM

CONFIG = TextConfig(
    vocab_size=99, context_length=24, max_positions=32, width=32, layers=3, heads=4, mlp_width=48
)


def twins() -> tuple[MaskedLM, BertForMaskedLM]:
    """Ours, and theirs with the same weights."""
    torch.manual_seed(0)
    ours = MaskedLM(CONFIG)
    with torch.no_grad():
        ours.cls["predictions"].bias.normal_()
    theirs = BertForMaskedLM(BertConfig(**CONFIG.hugging_face())).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    return ours, theirs


def batch() -> tuple[PackedText, Tensor, Tensor]:
    """Sequences of 3, 9, 24, 1 tokens; every third token is to be guessed."""
    generator = torch.Generator().manual_seed(1)
    starts = torch.tensor([0, 3, 12, 36, 37], dtype=torch.int32)
    ids = torch.randint(1, 99, (37,), generator=generator)
    places = torch.arange(0, 37, 3)
    targets = torch.randint(1, 99, (len(places),), generator=generator)
    return PackedText(ids, starts, 24), places, targets


def reference(theirs: BertForMaskedLM, text: PackedText, places: Tensor, targets: Tensor) -> Tensor:
    """The same sum with padding and a mask, as a trainer of transformers computes it."""
    lengths = text.cu_seqlens.diff().long()
    ids = text.padded()
    inside = torch.arange(ids.shape[1]) < lengths[:, None]
    labels = torch.full(text.input_ids.shape, -100)
    labels[places] = targets
    padded = torch.full(ids.shape, -100)
    padded[inside] = labels
    logits = theirs(input_ids=ids, attention_mask=inside.long()).logits
    return F.cross_entropy(logits.flatten(0, 1), padded.flatten(), reduction="sum")


@pytest.mark.parametrize("tile", [2048, 5, 1])
def test_loss_and_gradients_equal_transformers(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-5 of the norm: 13 summed losses in fp32, added in another order."""
    monkeypatch.setattr(masked_lm, "TILE", tile)
    ours, theirs = twins()
    text, places, targets = batch()
    loss = ours(text, places, targets)
    want = reference(theirs, text, places, targets)
    torch.testing.assert_close(loss, want, rtol=1e-6, atol=1e-5)
    loss.backward()
    want.backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = gradients[name].grad
        assert expected is not None
        if name == "bert.embeddings.token_type_embeddings.weight":
            expected = expected.clone()  # segment 1 occurs in neither
        assert parameter.grad is not None
        assert (parameter.grad - expected).norm() <= 1e-5 * max(expected.norm(), 1e-3), name


def test_logits_equal_transformers() -> None:
    ours, theirs = twins()
    text, *_ = batch()
    lengths = text.cu_seqlens.diff().long()
    ids = text.padded()
    inside = torch.arange(ids.shape[1]) < lengths[:, None]
    with torch.no_grad():
        got = ours.logits(ours.bert.states(text))
        want = theirs(input_ids=ids, attention_mask=inside.long()).logits[inside]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_nothing_to_guess_is_a_loss_of_zero_with_gradients() -> None:
    ours, _ = twins()
    text, *_ = batch()
    none = torch.empty(0, dtype=torch.int64)
    loss = ours(text, none, none)
    assert loss.item() == 0
    loss.backward()
    weight = ours.bert.embeddings.word_embeddings.weight.grad
    assert weight is not None
    assert not weight.any()


def test_states_and_cls_agree() -> None:
    """The [CLS] rows of all rows are what the [CLS]-only last layer gives; 1e-6: fp32."""
    ours, _ = twins()
    text, *_ = batch()
    with torch.no_grad():
        rows = ours.bert.states(text)[text.cu_seqlens[:-1].long()]
        torch.testing.assert_close(ours.bert(text), rows, rtol=1e-5, atol=1e-6)
