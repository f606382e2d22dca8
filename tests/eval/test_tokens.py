"""Patches and words before pooling, against what the towers themselves make of them."""

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from eval.model import load_model
from eval.tokens import patch_states, project, word_states
from tests.eval.tiny import draw, fails, write_model
from tests.vlp.tiny import CAPTIONS, MODEL, make_tokenizer
from vlp.config import UserError
from vlp.models.dual_encoder import DualEncoder
from vlp.models.hub import save_pretrained


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    # The same sums in another order.
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def small_vit(pool: str) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=32, patch_size=8, width=32, layers=2, heads=2, mlp_ratio=2.0, output_dim=12,
        pool_type=pool,
    ).eval()  # fmt: skip


@torch.no_grad()
def test_class_token_gives_the_embedding() -> None:
    """What is done to a patch, done to [CLS], is what the tower does."""
    tower, pixels = small_vit("tok"), torch.randn(3, 3, 32, 32)
    states = patch_states(tower, pixels)
    tokens = tower.transformer(tower._embeds(pixels))
    assert states.shape == (3, 4, 4, 32)
    assert torch.equal(states.flatten(1, 2), tokens[:, 1:])
    assert close(project(tower, tokens[:, 0]), tower(pixels))


@torch.no_grad()
def test_average_of_patches_is_the_embedding() -> None:
    tower, pixels = small_vit("avg"), torch.randn(2, 3, 32, 32)
    assert close(project(tower, patch_states(tower, pixels)).mean(dim=(1, 2)), tower(pixels))


@torch.no_grad()
def test_timm_maps_by_channel() -> None:
    torch.manual_seed(0)
    tower = TimmModel("resnet10t", 12, image_size=96, pool="avg").eval()
    pixels = torch.randn(2, 3, 96, 96)
    states = patch_states(tower, pixels)
    assert states.shape[:3] == (2, 3, 3)
    assert close(project(tower, states).mean(dim=(1, 2)), tower(pixels))


@torch.no_grad()
def test_one_cell_alone_is_the_image() -> None:
    """ConvNeXt normalises behind its pooling; an image of one cell shows that this is done."""
    torch.manual_seed(0)
    tower = TimmModel("convnext_atto", 12, image_size=32, pool="").eval()
    pixels = torch.randn(2, 3, 32, 32)
    states = patch_states(tower, pixels)
    assert states.shape[:3] == (2, 1, 1)
    assert close(project(tower, states)[:, 0, 0], tower(pixels))


@torch.no_grad()
def test_attention_pooling_of_one_place_is_its_value() -> None:
    torch.manual_seed(0)
    tower = ModifiedResNet([1, 1, 1, 1], 12, 2, image_size=32, width=8).eval()
    tower.attnpool.positional_embedding.zero_()
    pixels = torch.randn(2, 3, 32, 32)
    states = patch_states(tower, pixels)
    assert states.shape[:3] == (2, 1, 1)
    assert close(project(tower, states)[:, 0, 0], tower(pixels))


def test_unknown_towers_are_an_error() -> None:
    with fails("patches of an image tower Linear aren't known here"):
        patch_states(nn.Linear(2, 2), torch.zeros(1, 3, 8, 8))
    with fails("tokens of a text tower Linear aren't known here"):
        word_states(nn.Linear(2, 2), torch.zeros(1, 8))


@torch.no_grad()
def test_our_tower_computes_the_patches_that_it_usually_skips() -> None:
    torch.manual_seed(0)
    model = DualEncoder(MODEL).eval()
    size = MODEL.image.size
    pixels = torch.randn(2, 3, size, size)
    embedded = model.encode_image(pixels)
    states = patch_states(model.visual, pixels)
    plain = open_clip.timm_model.TimmModel(
        MODEL.image.name, MODEL.embed_dim, image_size=size, pool=MODEL.image.pool, proj="linear"
    ).eval()
    plain.load_state_dict(model.visual.state_dict())
    assert close(states, patch_states(plain, pixels))
    # Afterwards the tower is as it was.
    assert torch.equal(model.encode_image(pixels), embedded)
    if plain.trunk.global_pool == "token":
        first = plain.trunk.forward_features(pixels)[:, 0]
        assert close(project(model.visual, first), embedded)


@torch.no_grad()
def test_a_patch_alone_goes_through_the_last_block_by_itself() -> None:
    """Where [CLS] is read; one by one, in the obvious way."""
    pixels = torch.randn(2, 3, 32, 32)
    tower = small_vit("tok")
    x = tower._embeds(pixels)
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        x = block(x)
    expected = torch.stack([torch.cat([last(t[None, None])[0] for t in row]) for row in x[:, 1:]])
    assert close(patch_states(tower, pixels, alone=True).flatten(1, 2), expected)
    assert tower.transformer.resblocks[-1] is last
    # An average needs no such thing.
    average = small_vit("avg")
    together = patch_states(average, pixels)
    assert torch.equal(patch_states(average, pixels, alone=True), together)


@torch.no_grad()
def test_our_tower_s_patches_alone_are_those_of_timm() -> None:
    torch.manual_seed(0)
    model = DualEncoder(MODEL).eval()
    pixels = torch.randn(2, 3, MODEL.image.size, MODEL.image.size)
    plain = TimmModel(MODEL.image.name, MODEL.embed_dim, image_size=MODEL.image.size, pool="")
    plain.eval().load_state_dict(model.visual.state_dict())
    alone = patch_states(model.visual, pixels, alone=True)
    assert close(alone, patch_states(plain, pixels, alone=True))
    assert not close(alone, patch_states(plain, pixels))


def test_patches_of_a_model_are_unit_rows(tmp_path: Path) -> None:
    model = load_model(str(write_model(tmp_path / "model")), "cpu")
    pixels = torch.stack([model.transform(draw(i)) for i in range(2)])
    patches = model.embed_patches(pixels)
    assert patches.shape == (2, 4, 4, 32)
    assert close(patches.norm(dim=-1), torch.ones(2, 4, 4))


@torch.no_grad()
def test_words_of_open_clip_s_tower(tmp_path: Path) -> None:
    model = load_model(str(write_model(tmp_path / "model")), "cpu")
    tokens = model.tokenize(["two words", "a much longer text with more words"])
    states, mask = word_states(model.network, tokens)
    assert mask.sum(dim=1).tolist() == (tokens != 0).sum(dim=1).tolist()
    last = states[torch.arange(2), mask.sum(dim=1) - 1]
    assert close(last @ model.network.text_projection, model.network.encode_text(tokens))


@torch.no_grad()
def test_words_of_our_tower_are_those_of_bert(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    torch.manual_seed(0)
    save_pretrained(tmp_path / "m", DualEncoder(MODEL, tokenizer.pad_id), MODEL, tokenizer)
    ours = load_model(str(tmp_path / "m"), "cpu")
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'm'}", require_pretrained=True).eval()
    tokens = ours.tokenize(CAPTIONS)
    states, mask = word_states(ours.network, tokens)
    expected, there = word_states(theirs, tokens.padded(tokenizer.pad_id))
    assert torch.equal(mask, there)
    assert close(states[mask], expected[mask])
    assert close(ours.network.text.proj(states[:, 0]), ours.network.encode_text(tokens))


def test_a_text_tower_without_states_is_an_error() -> None:
    class Odd(nn.Module):
        pass

    with pytest.raises(UserError, match="tokens of a text tower Odd"):
        word_states(Odd(), torch.zeros(1, 4))
