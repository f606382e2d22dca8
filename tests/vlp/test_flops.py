"""Counted operations against PyTorch's counter on the towers themselves, and known totals."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.vlp.tiny import MODEL
from vlp.data.text import PackedText
from vlp.flops import PEAK, peak_flops, step_flops
from vlp.models.dual_encoder import DualEncoder, ModelConfig
from vlp.models.text_tower import TextConfig

GPT = dataclasses.replace(MODEL.text, kind="gpt", proj="linear")


def counted(config: ModelConfig, images: int, captions: int, length: int) -> int:
    """What PyTorch counts in a real run; captions of one length, so that nothing is padded.

    Without fused attention, whose backward computes the scores once more.
    """
    model = DualEncoder(config).train()
    starts = torch.arange(captions + 1, dtype=torch.int32) * length
    text = PackedText(torch.randint(5, 100, (captions * length,)), starts, 24)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        if images:
            model.visual(torch.randn(images, 3, 160, 160)).sum().backward()
        model.text(text).sum().backward()
    return int(counter.get_total_flops())


def with_text(text: TextConfig) -> ModelConfig:
    return dataclasses.replace(MODEL, text=text)


@pytest.mark.parametrize("proj", ["linear", "mlp"])
def test_bert_and_vit_equal_the_counter(proj: str) -> None:
    config = with_text(dataclasses.replace(MODEL.text, proj=proj))
    want = counted(config, images=2, captions=5, length=7)
    assert step_flops(config, 2, torch.full((5,), 7)) == want


def test_causal_attention_counts_the_pairs_that_see_each_other() -> None:
    config, captions, length = with_text(GPT), 5, 7
    masked = length * (length - 1) // 2  # the counter takes the whole square
    unused = captions * (GPT.layers - 1) * 3 * 4 * GPT.width * masked
    want = counted(config, 0, captions, length) - unused
    assert step_flops(config, 0, torch.full((captions,), length)) == want


def test_lengths_count_one_by_one() -> None:
    lengths = torch.tensor([3, 24, 9], dtype=torch.int32)
    want = sum(step_flops(MODEL, 0, lengths[i : i + 1]) for i in range(3))
    assert step_flops(MODEL, 0, lengths) == pytest.approx(want, rel=1e-12)


def test_frozen_layers_have_no_backward() -> None:
    """All but the projections: a third of the encoders' operations is left."""
    whole = step_flops(MODEL, 1, torch.tensor([9]))
    image = dataclasses.replace(MODEL.image, frozen=-1)
    text = dataclasses.replace(MODEL.text, frozen=-1)
    frozen = step_flops(dataclasses.replace(MODEL, image=image, text=text), 1, torch.tensor([9]))
    assert 0.3 * whole < frozen < 0.4 * whole
    half = step_flops(with_text(dataclasses.replace(MODEL.text, frozen=2)), 1, torch.tensor([9]))
    assert frozen < half < whole


def test_patch_dropout_saves() -> None:
    image = dataclasses.replace(MODEL.image, patch_dropout=0.5)
    dropped = step_flops(dataclasses.replace(MODEL, image=image), 1, torch.tensor([], dtype=int))
    whole = step_flops(MODEL, 1, torch.tensor([], dtype=int))
    assert 0.4 * whole < dropped < 0.6 * whole


def test_known_totals_of_the_papers_towers() -> None:
    """ViT-B/16 with a CLS-only last block 97.9 G; BERT-base at 256 tokens without one 137.7 G."""
    config = ModelConfig()
    image = step_flops(config, 1, torch.tensor([], dtype=int))
    assert image == pytest.approx(97.9e9, rel=0.01)
    text = step_flops(config, 0, torch.tensor([256]))
    last_layer = 3 * 255 * (2 * (2 * 768**2 + 2 * 768 * 3072) + 4 * 256 * 768)
    projection = 3 * 2 * (768 * 640 + 640 * 512)
    assert text + last_layer - projection == pytest.approx(137.7e9, rel=0.001)


def test_peak_of_unknown_devices_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(torch.device("cpu")) is None
    for name, want in (
        ("NVIDIA H200", PEAK["H200"]),
        ("NVIDIA H100 PCIe", PEAK["H100 PCIe"]),
        ("NVIDIA H100 80GB HBM3", PEAK["H100"]),
        ("NVIDIA A100-SXM4-80GB", PEAK["A100"]),
        ("Another Card", None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_flops(torch.device("cuda")) == want
