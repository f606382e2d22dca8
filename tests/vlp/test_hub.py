"""Model folders: written by us, loaded by open_clip without network, moved, uploaded, broken."""

import dataclasses
import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from tests.vlp.test_towers import spread
from tests.vlp.tiny import CAPTIONS, MODEL, make_tokenizer
from vlp.config import UserError
from vlp.data.image import Normalise, center_pixels
from vlp.models.dual_encoder import DualEncoder
from vlp.models.hub import RelocateConfig, load_pretrained, relocate, save_pretrained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = make_tokenizer(tmp_path / "tok")
    torch.manual_seed(0)
    model = DualEncoder(MODEL, tokenizer.pad_id)
    spread(model)
    save_pretrained(tmp_path / "model", model, MODEL, tokenizer)
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach a hub fails at once instead of waiting for a time-out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def assert_same_embeddings(name: str, folder: Path) -> None:
    """What a user of open_clip does, from image file and caption, equals what we do."""
    theirs, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenize = open_clip.get_tokenizer(name)
    ours = load_pretrained(folder)
    image = Image.effect_noise((233, 181), 80).convert("RGB")
    normalise = Normalise(ours.preprocess["mean"], ours.preprocess["std"])
    with torch.no_grad():
        want = theirs.eval().encode_image(preprocess(image)[None], normalize=True)
        pixels = center_pixels(image, ours.preprocess["size"])
        got = ours.model.encode_image(normalise(pixels[None]), normalize=True)
        assert (got - want).abs().max() <= 1e-5
        want = theirs.encode_text(tokenize(CAPTIONS), normalize=True)
        got = ours.model.encode_text(ours.tokenizer(CAPTIONS), normalize=True)
        assert (got - want).abs().max() <= 1e-5
    assert theirs.logit_scale.item() == ours.model.logit_scale.item()


def test_open_clip_loads_the_folder(folder: Path) -> None:
    assert_same_embeddings(f"local-dir:{folder}", folder)


def test_open_clip_knows_the_bias_of_siglip(folder: Path) -> None:
    config = dataclasses.replace(MODEL, init_bias=-10.0)
    model = DualEncoder(config)
    torch.nn.init.constant_(model.logit_bias, -7.5)
    save_pretrained(folder, model, config, make_tokenizer(folder.parent / "tok"))
    theirs, ours = open_clip.create_model(f"local-dir:{folder}"), load_pretrained(folder)
    assert theirs.logit_bias.item() == -7.5
    assert ours.model.logit_bias.item() == -7.5
    assert ours.config.init_bias == -10


def test_saving_and_loading_is_exact(folder: Path) -> None:
    loaded = load_pretrained(folder)
    save_pretrained(folder.with_name("again"), loaded.model, loaded.config, loaded.tokenizer)
    again = load_pretrained(folder.with_name("again"))
    for key, value in loaded.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], value), key
    assert not list(folder.glob("*.tmp"))


def test_a_moved_folder(folder: Path, tmp_path: Path) -> None:
    """Ours loads at once; open_clip after one command."""
    moved = tmp_path / "elsewhere" / "model"
    moved.parent.mkdir()
    shutil.move(folder, moved)
    load_pretrained(moved)
    with pytest.raises(Exception, match=r"model|Offline|offline|resolve"):
        open_clip.create_model(f"local-dir:{moved}")
    assert relocate(RelocateConfig(folder=str(moved))) == str(moved)
    assert_same_embeddings(f"local-dir:{moved}", moved)


def test_an_uploaded_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub is stood in for by its cache, which holds the same files under the hub's name."""
    relocate(RelocateConfig(folder=str(folder), hub_id="group/model"))
    assert str(tmp_path) not in (folder / "open_clip_config.json").read_text()
    repo = tmp_path / "hub" / "models--group--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repo / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    theirs, _, _ = open_clip.create_model_and_transforms(
        "hf-hub:group/model", cache_dir=str(tmp_path / "hub")
    )
    tokenize = open_clip.get_tokenizer("hf-hub:group/model", cache_dir=str(tmp_path / "hub"))
    ours = load_pretrained(folder)
    with torch.no_grad():
        want = theirs.eval().encode_text(tokenize(CAPTIONS))
        assert (ours.model.encode_text(ours.tokenizer(CAPTIONS)) - want).abs().max() <= 1e-5


def edit(path: Path, *keys: str, value: object) -> None:
    content = json.loads(path.read_text())
    target = content
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_weights_of_another_architecture(folder: Path) -> None:
    edit(folder / "config.json", "num_hidden_layers", value=4)
    with pytest.raises(UserError) as caught:
        load_pretrained(folder)
    assert "open_clip_model.safetensors: weights of another architecture (16 missing" in str(
        caught.value
    )
    edit(folder / "config.json", "num_hidden_layers", value=2)
    with pytest.raises(UserError, match=r"16 unexpected: text.transformer.encoder.layer.2"):
        load_pretrained(folder)
    edit(folder / "config.json", "num_hidden_layers", value=3)
    edit(folder / "open_clip_config.json", "model_cfg", "embed_dim", value=25)
    with pytest.raises(UserError, match=r"of another shape: visual.head.proj.weight \(24, 64\)"):
        load_pretrained(folder)


def test_broken_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"open_clip_config.json: missing"):
        load_pretrained(tmp_path / "absent")
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="not readable as safetensors"):
        load_pretrained(folder)
    weights.unlink()
    with pytest.raises(UserError, match="no weights in this model folder"):
        load_pretrained(folder)
    edit(folder / "config.json", "model_type", value="roberta")
    with pytest.raises(UserError, match="not a BERT with exact GELU"):
        load_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        load_pretrained(folder)
