"""Models by folder and by name; ours and open_clip's give the same embeddings."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch

from eval.model import load_model
from tests.eval.tiny import draw, embed_images, fails, write_model
from tests.vlp.tiny import CAPTIONS, MODEL, make_tokenizer
from vlp.models.dual_encoder import DualEncoder
from vlp.models.hub import save_pretrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def test_open_clip_folder(folder: Path) -> None:
    ours = load_model(str(folder), "cpu")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    images = [draw(i, 50 + i, 40) for i in range(5)]
    with torch.no_grad():
        pixels = torch.stack([preprocess(image) for image in images])
        assert torch.equal(embed_images(ours, images), theirs.eval().encode_image(pixels, True))
        expected = theirs.encode_text(tokenize(CAPTIONS), normalize=True)
        assert torch.equal(ours.embed_texts(CAPTIONS), expected)


def test_our_folder_gives_open_clip_s_embeddings(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    torch.manual_seed(0)
    written = tmp_path / "written"
    save_pretrained(written, DualEncoder(MODEL, tokenizer.pad_id), MODEL, tokenizer)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{written}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{written}")
    # Only our own loader still finds the text tower's configuration after a move.
    ours = load_model(str(shutil.move(written, tmp_path / "moved")), "cpu")
    images = [draw(i, 170 + i, 200) for i in range(3)]
    with torch.no_grad():
        pixels = torch.stack([preprocess(image) for image in images])
        expected = theirs.eval().encode_image(pixels, normalize=True)
        assert torch.allclose(embed_images(ours, images), expected, atol=1e-5)
        expected = theirs.encode_text(tokenize(CAPTIONS), normalize=True)
        assert torch.allclose(ours.embed_texts(CAPTIONS), expected, atol=1e-5)
    assert ours.folder == tmp_path / "moved"


def test_hash_is_of_the_weights(folder: Path, tmp_path: Path) -> None:
    first = load_model(str(folder), "cpu")
    copy = load_model(f"local-dir:{shutil.copytree(folder, tmp_path / 'copy')}", "cpu")
    other = load_model(str(write_model(tmp_path / "other", seed=1)), "cpu")
    assert first.sha256 == copy.sha256 != other.sha256


def test_random_weights_are_said_and_drawn_by_the_seed(folder: Path) -> None:
    small = {"vocab_size": 49408, "context_length": 8, "width": 8, "heads": 1, "layers": 1}
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8},
        "text_cfg": small,
    }
    path = folder / "tiny-random-clip.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    first, again = (load_model("tiny-random-clip", "cpu", seed=3) for _ in range(2))
    assert first.sha256 == again.sha256 != load_model("tiny-random-clip", "cpu", seed=4).sha256
    assert first.notes == ["random weights: write tiny-random-clip@PRETRAINED for trained ones"]
    with fails("model=tiny-random-clip@nothing: open_clip can't load it: Pretrained value"):
        load_model("tiny-random-clip@nothing", "cpu")


def test_bad_models(tmp_path: Path, folder: Path) -> None:
    with fails("model=runs/none/model: no such folder; give a folder with open_clip_config.json"):
        load_model("runs/none/model")
    with fails("model=ViT-B-33: neither a folder nor a model of open_clip; close names: ViT-B-32"):
        load_model("ViT-B-33")
    with fails("open_clip_config.json: missing; a model's folder holds"):
        load_model(str(tmp_path))
    config = tmp_path / "open_clip_config.json"
    config.write_text("{")
    with fails("open_clip_config.json: not readable as JSON"):
        load_model(str(tmp_path))
    config.write_text('{"model_cfg": {"vision_cfg": 3}}')
    with fails("open_clip_config.json: no model_cfg with vision_cfg and text_cfg"):
        load_model(str(tmp_path))
    with fails("device=gpu: not usable here"):
        load_model(str(folder), device="gpu")


def test_a_folder_without_weights_is_refused(tmp_path: Path, folder: Path) -> None:
    shutil.copy(folder / "open_clip_config.json", tmp_path)
    with fails("open_clip can't load it: Required pretrained weights"):
        load_model(str(tmp_path), "cpu")
