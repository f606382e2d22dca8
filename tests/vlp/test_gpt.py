"""CLIP's text encoder, packed, against open_clip's own on padded captions, and its tokenizer.

Tolerances as in test_towers: embeddings 1e-5, gradients 1e-5 of the largest, fp32.
"""

import dataclasses
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from tests.vlp.test_hub import assert_same_embeddings
from tests.vlp.test_towers import spread
from tests.vlp.tiny import CAPTIONS, MODEL, make_tokenizer
from vlp.config import UserError
from vlp.data.text import CaptionTokenizer, PackedText
from vlp.models.dual_encoder import DualEncoder
from vlp.models.gpt import GptTower
from vlp.models.hub import RelocateConfig, load_pretrained, relocate, save_pretrained
from vlp.models.text_tower import TextConfig
from vlp.models.vocabulary import tokenizer_source, write_tokenizer

CONFIG = TextConfig(
    kind="gpt",
    vocab_size=50,
    context_length=24,
    width=32,
    layers=3,
    heads=4,
    mlp_width=128,
    proj="linear",
)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer("clip", folder)
    return folder


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_packed_equals_open_clips_padded(quick_gelu: bool, layers: int) -> None:
    config = dataclasses.replace(CONFIG, quick_gelu=quick_gelu, layers=layers)
    ours = GptTower(config, 16)
    spread(ours)
    theirs = open_clip.model._build_text_tower(
        16,
        {"context_length": 24, "vocab_size": 50, "width": 32, "heads": 4, "layers": layers},
        quick_gelu,
    )
    theirs.load_state_dict(ours.state_dict())
    assert list(theirs.state_dict()) == list(ours.state_dict())
    lengths = [2, 24, 7, 7, 13]
    ids = torch.randint(1, 49, (sum(lengths),))
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    ids[starts[1:].long() - 1] = 49  # <end_of_text>, the highest id
    text = PackedText(ids, starts, 24)
    upstream = torch.randn(5, 16)
    (ours(text) * upstream).sum().backward()
    padded = text.padded()
    assert padded.shape == (5, 24)
    (theirs(padded) * upstream).sum().backward()
    with torch.no_grad():
        assert (ours(text) - theirs(padded)).abs().max() <= 1e-5
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    largest = max(grad.abs().max() for grad in grads.values())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - grads[name]).abs().max() <= 1e-5 * largest, name


def test_initial_weights_have_clips_deviations() -> None:
    config = dataclasses.replace(CONFIG, width=256, mlp_width=1024, vocab_size=1000)
    theirs = open_clip.model._build_text_tower(
        64, {"context_length": 24, "vocab_size": 1000, "width": 256, "heads": 4, "layers": 3}
    )
    want = theirs.state_dict()
    for name, value in GptTower(config, 64).state_dict().items():
        # The samples' deviations: of 1,536 numbers or more, within 10%; zeros and ones exactly.
        if not name.endswith("mlp.c_fc.bias") and not name.endswith("mlp.c_proj.bias"):
            assert value.std().item() == pytest.approx(want[name].std().item(), rel=0.1), name
            assert abs(value.mean() - want[name].mean()) <= 5e-3, name


def test_clips_tokenizer(clip_folder: Path) -> None:
    """open_clip's own, on captions that are long, empty, accented, and not quite text."""
    texts = [
        *CAPTIONS,
        "",
        "Naïve  β-cells\n of 3 mice's, <b>&amp;lt; 12.5 µm ≥ ①② 漢字 👩‍⚕️",
        "a " * 99,
    ]
    want = open_clip.get_tokenizer("ViT-B-16")(texts)
    got = CaptionTokenizer(clip_folder, 77)(texts)
    assert torch.equal(torch.nn.functional.pad(got.padded(), (0, 0)), want)


@pytest.mark.parametrize("vocabulary", ["clip", "wordpiece"])
def test_the_folder_that_open_clip_loads(
    vocabulary: str, clip_folder: Path, tmp_path: Path
) -> None:
    if vocabulary == "clip":
        tokenizer = CaptionTokenizer(clip_folder, 24)
    else:
        tokenizer = make_tokenizer(tmp_path / "tok")
    text = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(MODEL, text=text)
    model = DualEncoder(config)
    spread(model)
    save_pretrained(tmp_path / "model", model, config, tokenizer)
    loaded = load_pretrained(tmp_path / "model")
    assert loaded.config.text == dataclasses.replace(text, tokenizer=str(tmp_path / "model"))
    assert_same_embeddings(f"local-dir:{tmp_path / 'model'}", tmp_path / "model")
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    relocate(RelocateConfig(folder=str(moved)))
    assert_same_embeddings(f"local-dir:{moved}", moved)


def test_named_models_bring_clips_tokenizer() -> None:
    assert tokenizer_source(dataclasses.replace(MODEL, init="ViT-B-16@openai")) == "clip"
    assert tokenizer_source(MODEL) == ""


def test_a_text_transformer_with_other_options(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tok")
    config = dataclasses.replace(
        MODEL, text=dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    )
    save_pretrained(tmp_path / "model", DualEncoder(config), config, tokenizer)
    path = tmp_path / "model" / "open_clip_config.json"
    path.write_text(path.read_text().replace('"layers"', '"no_causal_mask": true, "layers"'))
    with pytest.raises(UserError, match=r"text_cfg.no_causal_mask is not built here"):
        load_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"proj": "mlp"}, "set model.text.proj=linear"),
        ({"init": "bert"}, "no weights from a BERT"),
        ({"kind": "bert", "quick_gelu": True}, "quick_gelu is for model.text.kind=gpt"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **settings)


def test_uncased_and_cased_vocabularies(tmp_path: Path) -> None:
    """A vocab.txt gives transformers' own ids, with its settings or its defaults."""
    from transformers import BertTokenizerFast

    make_tokenizer(tmp_path / "tok")
    vocabulary = CaptionTokenizer(tmp_path / "tok", 24).tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    (tmp_path / "vocab.txt").write_text("".join(token + "\n" for token in tokens))
    texts = [*CAPTIONS, "ÉCLAIR 漢字"]
    for settings in ({}, {"do_lower_case": False}, {"do_lower_case": True}):
        if settings:
            value = str(settings["do_lower_case"]).lower()
            (tmp_path / "tokenizer_config.json").write_text(f'{{"do_lower_case": {value}}}')
        source = tokenizer_source(
            dataclasses.replace(
                MODEL, text=dataclasses.replace(MODEL.text, tokenizer=str(tmp_path))
            )
        )
        assert source == str(tmp_path / "vocab.txt")
        write_tokenizer(source, tmp_path / "written")
        got = CaptionTokenizer(tmp_path / "written", 24)(texts)
        theirs = BertTokenizerFast(str(tmp_path / "vocab.txt"), **settings)
        want = theirs(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
        assert torch.equal(got.padded(theirs.pad_token_id), want["input_ids"])
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"vocab.txt: a BERT vocabulary lists \[PAD\]"):
        write_tokenizer(source, tmp_path / "broken")
