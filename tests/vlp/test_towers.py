"""The packed dual encoder against open_clip's CustomTextCLIP with the same weights.

Tolerances, fp32: embeddings 1e-5 (they are of size 1; sums of at most 768 terms in another order);
gradients 1e-5 of the largest gradient of each parameter's tower.
"""

import dataclasses
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from tests.vlp.tiny import CAPTIONS, MODEL, make_tokenizer
from vlp.config import UserError
from vlp.data.text import CaptionTokenizer, PackedText
from vlp.losses import LossConfig, contrastive_loss
from vlp.models import attention
from vlp.models.attention import attend, plan
from vlp.models.dual_encoder import DualEncoder, ModelConfig
from vlp.models.hub import save_pretrained
from vlp.models.text_tower import PackedBert, TextConfig
from vlp.models.vision_tower import ImageConfig, VisionTower


def spread(model: nn.Module) -> None:
    """Weights large enough that no layer is close to the identity, and no bias or norm trivial."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.add_(torch.randn_like(parameter) * 0.05)


def open_clip_twin(
    folder: Path, config: ModelConfig, model: DualEncoder, tokenizer: CaptionTokenizer
) -> Any:
    """open_clip's own model, built from the folder that we write."""
    save_pretrained(folder, model, config, tokenizer)
    return open_clip.create_model(f"local-dir:{folder}")


@pytest.fixture(scope="module", params=["mlp", "linear"])
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = make_tokenizer(folder / "tok")
    text = dataclasses.replace(MODEL.text, proj=request.param)
    config = dataclasses.replace(MODEL, text=text)
    torch.manual_seed(0)
    ours = DualEncoder(config, tokenizer.pad_id)
    spread(ours)
    return ours, open_clip_twin(folder / "model", config, ours, tokenizer), tokenizer


def test_state_dict_is_key_for_key_open_clips(twins: Any) -> None:
    ours, theirs, _ = twins
    want = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == want


def test_embeddings_equal_open_clip(twins: Any) -> None:
    ours, theirs, tokenizer = twins
    captions = [*CAPTIONS, "a", "one two three four five six seven eight nine ten eleven " * 4]
    packed = tokenizer(captions)
    padded = torch.nn.functional.pad(packed.padded(), (0, 3))
    torch.manual_seed(2)
    images = torch.randn(3, 3, 160, 160)
    with torch.no_grad():
        text, want_text = ours.encode_text(packed), theirs.eval().encode_text(padded)
        image, want_image = ours.encode_image(images), theirs.encode_image(images)
        unit = ours.encode_text(packed, normalize=True)
    assert (text - want_text).abs().max() <= 1e-5
    assert (image - want_image).abs().max() <= 1e-5
    assert (unit - torch.nn.functional.normalize(want_text, dim=-1)).abs().max() <= 1e-5
    assert want_text.std(0).max() > 1e-2  # captions differ: the comparison is not of a constant


def test_gradients_equal_open_clip(twins: Any) -> None:
    ours, theirs, tokenizer = twins
    packed = tokenizer(CAPTIONS)
    torch.manual_seed(3)
    images = torch.randn(len(CAPTIONS), 3, 160, 160)
    ours.zero_grad()
    theirs.zero_grad()
    loss = contrastive_loss(ours(images, packed), LossConfig())
    loss.backward()
    theirs.train()
    image, text, scale = theirs(images, packed.padded())
    want = open_clip.ClipLoss()(image, text, scale)
    want.backward()
    assert loss.item() == pytest.approx(want.item(), abs=1e-5)
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    got = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert set(got) >= set(expected)
    for tower in ("visual.", "text.", "logit_scale"):
        names = [name for name in expected if name.startswith(tower)]
        largest = max(expected[name].abs().max() for name in names)
        assert largest > 1e-4
        for name in names:
            assert (got[name] - expected[name]).abs().max() <= 1e-5 * largest, name


def test_every_parameter_learns(twins: Any) -> None:
    """Nothing is dead, apart from rows of tables that no token used."""
    ours, _, tokenizer = twins
    ours.zero_grad()
    features = ours(torch.randn(7, 3, 160, 160), tokenizer(CAPTIONS))
    contrastive_loss(features, LossConfig()).backward()
    dead = [n for n, p in ours.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The last layer's keys get a constant from their bias, which softmax ignores.
    assert [name for name in dead if "key.bias" not in name] == []


def bert_pair(layers: int = 2) -> tuple[PackedBert, BertModel]:
    config = TextConfig(
        vocab_size=50,
        context_length=40,
        max_positions=40,
        width=32,
        layers=layers,
        heads=2,
        mlp_width=64,
    )
    torch.manual_seed(0)
    ours = PackedBert(config)
    spread(ours)
    theirs = BertModel(BertConfig(**config.hugging_face()), add_pooling_layer=False)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.eval()


def pack(lengths: list[int]) -> PackedText:
    ids = torch.randint(1, 50, (sum(lengths),))
    return PackedText(ids, torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), 40)


@pytest.mark.parametrize(
    "lengths", [[1], [40], [1, 1, 1], [7, 3, 40, 1, 12], [5] * 70, list(range(1, 41))]
)
@pytest.mark.parametrize("layers", [1, 2])
def test_packed_equals_padded_hugging_face(lengths: list[int], layers: int) -> None:
    """Any mixture of lengths: groups of equal length, one group, more than a group holds."""
    ours, theirs = bert_pair(layers)
    text = pack(lengths)
    padded = text.padded()
    with torch.no_grad():
        want = theirs(input_ids=padded, attention_mask=(padded != 0).long()).last_hidden_state[:, 0]
        assert (ours(text) - want).abs().max() <= 1e-5


def test_a_caption_does_not_see_its_neighbours() -> None:
    ours, _ = bert_pair()
    text = pack([4, 9, 6])
    alone = PackedText(text.input_ids[4:13], torch.tensor([0, 9], dtype=torch.int32), 40)
    with torch.no_grad():
        assert (ours(text)[1] - ours(alone)[0]).abs().max() <= 1e-6


@pytest.mark.parametrize("one_query", [False, True])
def test_attention_fallback_equals_a_loop(one_query: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "GROUP", 2)
    lengths = [3, 1, 5, 2, 2]
    layout = plan(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), 8, torch.float32)
    q, k, v = torch.randn(3, 13, 2, 4, dtype=torch.float64)
    q = q[layout.firsts] if one_query else q
    got = attend(q, k, v, layout, one_query)
    for i, (a, b) in enumerate(zip(layout.cu_seqlens, layout.cu_seqlens[1:], strict=False)):
        rows = slice(i, i + 1) if one_query else slice(int(a), int(b))
        scores = torch.einsum("qhd,khd->hqk", q[rows], k[a:b]) / 2
        want = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[a:b])
        torch.testing.assert_close(got[rows], want)


def test_autocast_stays_close() -> None:
    """bf16 has 8 bits of mantissa: the CLS vectors agree with fp32 to a few parts in a hundred."""
    ours, _ = bert_pair()
    text = pack([7, 3, 40, 1])
    with torch.no_grad():
        want = ours(text)
        with torch.autocast("cpu", torch.bfloat16):
            got = ours(text)
    assert (got - want).abs().max() <= 0.05 * want.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flash_equals_the_fallback() -> None:
    """bf16 inputs have 8 bits; both sides accumulate in fp32, so 0.02 of values of size 1."""
    lengths = [3, 1, 77, 256, 12]
    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).cuda()
    half, exact = plan(cu, 256, torch.bfloat16), plan(cu, 256, torch.float32)
    drawn = torch.randn(3, sum(lengths), 4, 64, device="cuda", dtype=torch.bfloat16)
    for options, rows in (
        ({}, slice(None)),
        ({"causal": True}, slice(None)),
        ({"one_query": True}, half.firsts),  # where cuDNN may choose a kernel for decoding
    ):
        leaves = [x.clone().requires_grad_() for x in drawn]
        wanted = [x.float().requires_grad_() for x in drawn]
        got = attend(leaves[0][rows], *leaves[1:], half, **options)
        want = attend(wanted[0][rows], *wanted[1:], exact, **options)
        assert (got.float() - want).abs().max() <= 0.02
        upstream = torch.randn_like(want)
        (got.float() * upstream).sum().backward()
        (want * upstream).sum().backward()
        for mine, other in zip(leaves, wanted, strict=True):
            assert (mine.grad.float() - other.grad).abs().max() <= 0.02 * other.grad.abs().max()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ImageConfig(name="vit_tiny_patch16_225"), "timm has no 'vit_tiny_patch16_225'; similar: "),
        (
            ImageConfig(name="test_vit", size=224),
            "test_vit is made for 160 pixels; set model.image.size=160",
        ),
    ],
)
def test_impossible_image_towers(config: ImageConfig, message: str) -> None:
    with pytest.raises(UserError) as caught:
        VisionTower(config, 8)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"heads": 5}, "not divisible by model.text.heads=5"), ({"context_length": 600}, "at most")],
)
def test_impossible_text_towers(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextConfig(**settings)
