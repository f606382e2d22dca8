"""Every source of weights, as folders and files of the format that the hubs hold; no network.

Weights are copied, so they must be equal to the last bit; embeddings agree to 1e-5, as in
test_towers.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import Mlp
from transformers import BertConfig, BertForMaskedLM

from tests.vlp.test_towers import spread
from tests.vlp.tiny import CAPTIONS, MODEL, make_tokenizer
from vlp.config import UserError
from vlp.data.text import CaptionTokenizer
from vlp.models.dual_encoder import DualEncoder, ModelConfig
from vlp.models.gpt import QuickGELU
from vlp.models.hub import fetch_bert, load_pretrained, read_config, save_pretrained
from vlp.models.init import initialise, take_open_clip
from vlp.models.vision_tower import ImageConfig
from vlp.models.vocabulary import needs_writing, tokenizer_source


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach a hub fails at once instead of waiting for a time-out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as our runs write it."""
    root = tmp_path_factory.mktemp("source")
    tokenizer = make_tokenizer(root / "tok")
    torch.manual_seed(0)
    model = DualEncoder(MODEL, tokenizer.pad_id)
    spread(model)
    save_pretrained(root / "run" / "model", model, MODEL, tokenizer)
    return root / "run" / "model"


@pytest.fixture
def biomedclip(source: Path, tmp_path: Path) -> Path:
    """The files of microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224.

    Weights by torch.save with transformers' old buffer in them, no config.json: the text tower's is
    looked up under `hf_model_name`, here a folder.
    """
    folder, bert = tmp_path / "biomedclip", tmp_path / "pubmedbert"
    shutil.copytree(source, folder)
    bert.mkdir()
    (folder / "config.json").rename(bert / "config.json")
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["text.transformer.embeddings.position_ids"] = torch.arange(32)[None]
    torch.save(weights, folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_model.safetensors").unlink()
    edit(
        folder / "open_clip_config.json", "model_cfg", "text_cfg", "hf_model_name", value=str(bert)
    )
    return folder


def edit(path: Path, *keys: str, value: object) -> None:
    content = json.loads(path.read_text())
    target = content
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    path.write_text(json.dumps(content))


def start(config: ModelConfig, tokenizer: CaptionTokenizer | None = None) -> DualEncoder:
    """A model as the trainer makes it."""
    if tokenizer is None:
        tokenizer = CaptionTokenizer(tokenizer_source(config), config.text.context_length)
    text = dataclasses.replace(config.text, vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(config, text=text)
    model = DualEncoder(config, tokenizer.pad_id)
    initialise(model, config, tokenizer)
    return model


def test_from_a_model_folder_or_its_run(source: Path) -> None:
    want = load_pretrained(source).model.state_dict()
    for place in (source, source.parent):
        config = dataclasses.replace(MODEL, init=str(place))
        assert tokenizer_source(config) == str(source)
        state = torch.get_rng_state()
        got = start(config).state_dict()
        assert all(torch.equal(got[key], value) for key, value in want.items())
    torch.set_rng_state(state)
    other = DualEncoder(MODEL, 0).state_dict()
    assert not torch.equal(other["visual.head.proj.weight"], want["visual.head.proj.weight"])


def test_biomedclips_format(biomedclip: Path) -> None:
    """The embeddings of what was loaded equal open_clip's of the same folder."""
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{biomedclip}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{biomedclip}")
    config = dataclasses.replace(MODEL, init=str(biomedclip))
    model = start(config).eval()
    tokenizer = CaptionTokenizer(tokenizer_source(config), 24)
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        text = model.encode_text(tokenizer(CAPTIONS))
        assert (text - theirs.eval().encode_text(tokenize(CAPTIONS))).abs().max() <= 1e-5
        image = model.encode_image(images)
        assert (image - theirs.encode_image(images)).abs().max() <= 1e-5
    assert load_pretrained(biomedclip).config.text.heads == 4  # eval reads it, too


def test_the_defaults_are_biomedclip(biomedclip: Path) -> None:
    """`model.init=hf-hub:...` alone fine-tunes it: its published settings are our defaults.

    The content of its open_clip_config.json, and of PubMedBERT's config.json.
    """
    bert = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "vocab_size": 30522,
    }
    content = {
        "model_cfg": {
            "embed_dim": 512,
            "vision_cfg": {
                "timm_model_name": "vit_base_patch16_224",
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "image_size": 224,
            },
            "text_cfg": {
                "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
                "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
                "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
                "context_length": 256,
            },
        },
        "preprocess_cfg": {
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
        },
    }
    (biomedclip / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"config.json: missing, and 'microsoft/.*can't be fetched"):
        load_pretrained(biomedclip)
    (biomedclip / "config.json").write_text(json.dumps(bert))
    config, _ = read_config(biomedclip)
    assert dataclasses.replace(config, text=dataclasses.replace(config.text, tokenizer="")) == (
        ModelConfig()
    )


def test_from_a_hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub is stood in for by its cache, which holds the same files under the hub's name."""
    repo = tmp_path / "hub" / "models--group--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(source, repo / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    got = start(dataclasses.replace(MODEL, init="hf-hub:group/model")).state_dict()
    want = load_pretrained(source).model.state_dict()
    assert all(torch.equal(got[key], value) for key, value in want.items())
    with pytest.raises(UserError, match=r"hf-hub:group/other: can't be fetched: "):
        start(dataclasses.replace(MODEL, init="hf-hub:group/other"))
    unreached = r"base=group/other: no such folder; hf-hub:group/other: can't be fetched: "
    with pytest.raises(UserError, match=unreached):
        fetch_bert("group/other", "base")


def test_other_settings_are_named(source: Path) -> None:
    text = dataclasses.replace(MODEL.text, width=64, mlp_width=64, proj="linear")
    image = ImageConfig(name="test_vit2", size=160, std=(0.5, 0.5, 0.5))
    config = ModelConfig(init=str(source), embed_dim=25, image=image, text=text)
    with pytest.raises(UserError) as caught:
        start(config)
    assert str(caught.value) == (
        f"{source}: made with other settings; set model.image.name=test_vit "
        "model.image.std=[0.26862954,0.26130258,0.27577711] model.text.width=32 "
        "model.text.mlp_width=48 model.text.proj=mlp model.embed_dim=24"
    )


def test_weights_that_do_not_fit(biomedclip: Path) -> None:
    path = biomedclip / "open_clip_pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    weights["visual.other"] = weights.pop("visual.trunk.norm.bias")
    weights["logit_scale"] = torch.zeros(1)
    torch.save(weights, path)
    with pytest.raises(UserError) as caught:
        start(dataclasses.replace(MODEL, init=str(biomedclip)))
    assert (
        "(1 missing: visual.trunk.norm.bias; 1 unexpected: visual.other; 1 of another shape: "
        "logit_scale (1,) (here ()))"
    ) in str(caught.value)


def test_a_pickle_that_does_things(biomedclip: Path, tmp_path: Path) -> None:
    """Weights from elsewhere can't run code."""

    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"logit_scale": Harm()}, biomedclip / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match=r"open_clip_pytorch_model.bin: not readable as tensors"):
        start(dataclasses.replace(MODEL, init=str(biomedclip)))
    assert not (tmp_path / "harm").exists()


def test_another_vocabulary_of_the_same_size(source: Path, tmp_path: Path) -> None:
    other = make_tokenizer(tmp_path / "tok")
    content = json.loads((tmp_path / "tok" / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "tok" / "tokenizer.json").write_text(json.dumps(content))
    other = CaptionTokenizer(tmp_path / "tok", 24)
    with pytest.raises(UserError, match=r"another vocabulary than that of .*tok; leave"):
        start(dataclasses.replace(MODEL, init=str(source)), other)


def test_siglip_from_infonce(source: Path) -> None:
    """A bias that the weights don't have starts as configured; one that they have is not lost."""
    config = dataclasses.replace(MODEL, init=str(source), init_bias=-10.0)
    model = start(config)
    assert model.logit_bias is not None
    assert model.logit_bias.item() == -10
    tokenizer = CaptionTokenizer(source, 24)
    save_pretrained(source.parent / "siglip", model, config, tokenizer)
    with pytest.raises(UserError, match=r"made with other settings; set model.init_bias=-10.0"):
        start(dataclasses.replace(MODEL, init=str(source.parent / "siglip")))


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("nowhere", "neither a folder nor an open_clip model NAME@PRETRAINED; hf-hub:ORG/NAME"),
        ("ViT-B-16", "neither a folder nor an open_clip model NAME@PRETRAINED; ViT-B-16 has: open"),
        ("ViT-B-16@openia", "ViT-B-16 has: openai, laion400m_e31"),
    ],
)
def test_unknown_sources(init: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        start(dataclasses.replace(MODEL, init=init), make_tokenizer(tmp_path / "tok"))
    assert message in str(caught.value)


def test_a_checkpoint_is_for_resuming(source: Path, tmp_path: Path) -> None:
    folder = source.parent / "checkpoints" / "step-000000003"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        start(dataclasses.replace(MODEL, init=str(folder)), make_tokenizer(tmp_path / "tok"))
    assert str(caught.value).endswith(f"to start another run from are in {source}")


def test_one_source_for_a_tower() -> None:
    with pytest.raises(ValueError, match=r"model\.init gives the weights of both towers"):
        ModelConfig(init="x", image=ImageConfig(pretrained="timm"))


# -- BERT -----------------------------------------------------------------------------------------


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """PubMedBERT's files: a masked language model's weights, vocab.txt, no tokenizer.json."""
    tokenizer = make_tokenizer(tmp_path / "tok")
    folder = tmp_path / "bert"
    torch.manual_seed(3)
    settings = BertConfig(**MODEL.text.hugging_face())
    settings.vocab_size = tokenizer.vocab_size
    BertForMaskedLM(settings).save_pretrained(folder)
    vocabulary = tokenizer.tokenizer.get_vocab()
    (folder / "vocab.txt").write_text(
        "".join(f"{t}\n" for t in sorted(vocabulary, key=vocabulary.get))
    )
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return folder


def with_bert(folder: Path | str, **settings: Any) -> ModelConfig:
    text = dataclasses.replace(MODEL.text, init=str(folder), **settings)
    return dataclasses.replace(MODEL, text=text)


@pytest.mark.parametrize("old", [False, True])
def test_from_a_bert_folder(bert: Path, old: bool) -> None:
    """Also as saved years ago: pytorch_model.bin with TensorFlow's names of LayerNorm."""
    want = {k: v for k, v in load_file(bert / "model.safetensors").items() if k.startswith("bert.")}
    if old:
        renamed = {
            key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): value
            for key, value in load_file(bert / "model.safetensors").items()
        }
        torch.save(renamed, bert / "pytorch_model.bin")
        (bert / "model.safetensors").unlink()
    config = with_bert(bert)
    assert needs_writing(tokenizer_source(config))
    tokenizer = CaptionTokenizer(bert.with_name("tok"), 24)
    model = start(config, tokenizer)
    got = model.text.transformer.state_dict()
    assert {"bert." + key for key in got} == set(want)
    assert all(torch.equal(got[key.removeprefix("bert.")], value) for key, value in want.items())
    assert torch.isfinite(model.encode_text(tokenizer(CAPTIONS))).all()


def test_bert_folders_that_do_not_fit(bert: Path) -> None:
    tokenizer = CaptionTokenizer(bert.with_name("tok"), 24)
    with pytest.raises(
        UserError, match=r"bert: made with other settings; set model.text.layers=3$"
    ):
        start(with_bert(bert, layers=2), tokenizer)
    weights = load_file(bert / "model.safetensors")
    weights.pop("bert.embeddings.LayerNorm.bias")
    weights["bert.adapter.weight"] = torch.zeros(2)
    save_file(weights, bert / "model.safetensors")
    with pytest.raises(
        UserError,
        match=r"\(1 missing: embeddings.LayerNorm.bias; 1 unexpected: adapter.weight\)",
    ):
        start(with_bert(bert), tokenizer)
    (bert / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors: no weights in this folder"):
        start(with_bert(bert), tokenizer)
    edit(bert / "config.json", "hidden_act", value="relu")
    with pytest.raises(UserError, match=r"config.json: not a BERT with exact GELU"):
        start(with_bert(bert), tokenizer)
    with pytest.raises(UserError, match=r"model.text.init=\./absent: no such folder"):
        start(with_bert("./absent"), tokenizer)


# -- timm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_from_a_file_of_timm_weights(tmp_path: Path, suffix: str) -> None:
    donor = timm.create_model("test_vit")  # with a classifier, as timm publishes them
    spread(donor)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": donor.state_dict()}, path)
    else:
        save_file(donor.state_dict(), path)
    image = dataclasses.replace(MODEL.image, pretrained=str(path))
    config = dataclasses.replace(MODEL, image=image)
    tokenizer = make_tokenizer(tmp_path / "tok")
    got = start(config, tokenizer).visual.trunk.state_dict()
    assert got
    assert all(torch.equal(donor.state_dict()[key], value) for key, value in got.items())
    other = dataclasses.replace(image, name="test_vit3")
    with pytest.raises(UserError, match=r"weights of another architecture"):
        start(dataclasses.replace(MODEL, image=other), tokenizer)
    absent = dataclasses.replace(image, pretrained="true")
    with pytest.raises(UserError, match=r"pretrained=true: neither `timm` nor a file of weights"):
        start(dataclasses.replace(MODEL, image=absent), tokenizer)


def test_the_image_tower_of_a_clip(source: Path, tmp_path: Path) -> None:
    """What LiT locks: the trunk is the model's, the projection and all else are new."""
    image = dataclasses.replace(MODEL.image, pretrained=str(source), frozen=-1)
    tokenizer = make_tokenizer(tmp_path / "tok")
    got = start(dataclasses.replace(MODEL, image=image), tokenizer)
    theirs = load_pretrained(source).model.state_dict()
    own = got.state_dict()
    assert {k for k, v in own.items() if torch.equal(v, theirs[k])} >= {
        k for k in own if k.startswith("visual.trunk.")
    }
    assert not torch.equal(own["visual.head.proj.weight"], theirs["visual.head.proj.weight"])
    learnt = {k for k, v in got.named_parameters() if v.requires_grad and k.startswith("visual.")}
    assert learnt == {"visual.head.proj.weight"}
    other = dataclasses.replace(image, mean=(0.0, 0.0, 0.0))
    with pytest.raises(UserError, match=r"made with other settings; set model\.image\.mean="):
        start(dataclasses.replace(MODEL, image=other), tokenizer)


def test_from_timm_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's download is stood in for by a model of its own making."""
    donor = timm.create_model("test_vit")
    spread(donor)
    want = {key: value.clone() for key, value in donor.state_dict().items()}
    build = timm.create_model

    def create(name: str, pretrained: bool = False, **options: Any) -> Any:
        return donor if pretrained else build(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    image = dataclasses.replace(MODEL.image, pretrained="timm")
    model = start(dataclasses.replace(MODEL, image=image), make_tokenizer(tmp_path / "tok"))
    got = model.visual.trunk.state_dict()
    assert all(torch.equal(want[key], value) for key, value in got.items())


# -- open_clip's own models ----------------------------------------------------------------------

GPT = dataclasses.replace(
    MODEL.text,
    kind="gpt",
    proj="linear",
    vocab_size=100,
    context_length=20,
    layers=2,
    heads=2,
    mlp_width=128,
)


def openai_like(quick_gelu: bool) -> Any:
    """A small open_clip CLIP with its own image tower; OpenAI's names, all biases nonzero."""
    torch.manual_seed(4)
    vision = {"layers": 10, "width": 256, "head_width": 64, "patch_size": 16, "image_size": 224}
    text = {"context_length": 20, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2}
    model = open_clip.CLIP(24, vision, text, quick_gelu=quick_gelu)
    spread(model)
    return model


def test_from_an_open_clip_model() -> None:
    """Its image tower becomes timm's, its text tower ours; both give the same embeddings."""
    image = ImageConfig(name="vit_xsmall_patch16_clip_224")
    model = DualEncoder(ModelConfig(embed_dim=24, image=image, text=GPT))
    theirs = openai_like(quick_gelu=False)
    take_open_clip(model, theirs, "open_clip")
    assert model.training
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        want = theirs.encode_image(images)
        assert (model.eval().encode_image(images) - want).abs().max() <= 1e-4 * want.abs().max()
    assert model.logit_scale.item() == theirs.logit_scale.item()


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("datacomp_xl_s13b_b90k", False)])
def test_a_named_model_has_its_weights_activation(
    tag: str, quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_clip's download is stood in for by a small model with the activation that was asked."""

    def create(name: str, pretrained: str, force_quick_gelu: bool) -> Any:
        assert (name, pretrained) == ("ViT-B-16", tag)
        return openai_like(force_quick_gelu)

    monkeypatch.setattr(open_clip, "create_model", create)
    kind = "vit_xsmall_patch16_clip_224"  # timm has no small one with OpenAI's activation
    text = dataclasses.replace(GPT, quick_gelu=quick)
    config = ModelConfig(
        init=f"ViT-B-16@{tag}", embed_dim=24, image=ImageConfig(name=kind), text=text
    )
    model = DualEncoder(config)
    if quick:
        with pytest.raises(UserError, match=r"its image tower has the same weights .*quickgelu"):
            initialise(model, config, make_tokenizer(tmp_path / "tok"))
        for module in model.visual.trunk.modules():
            if isinstance(module, Mlp):
                module.act = QuickGELU()
    initialise(model, config, make_tokenizer(tmp_path / "tok"))


def test_what_weights_do_not_show() -> None:
    image = ImageConfig(name="vit_xsmall_patch16_clip_224")
    model = DualEncoder(ModelConfig(embed_dim=24, image=image, text=GPT))
    with pytest.raises(UserError, match=r"open_clip: its image tower has the same weights and"):
        take_open_clip(model, openai_like(quick_gelu=True), "open_clip")
    model = DualEncoder(
        ModelConfig(embed_dim=24, image=image, text=dataclasses.replace(GPT, heads=4))
    )
    with pytest.raises(UserError, match=r"its text tower has the same weights .*text.heads"):
        take_open_clip(model, openai_like(quick_gelu=False), "open_clip")
    model = DualEncoder(dataclasses.replace(MODEL, text=GPT))
    with pytest.raises(UserError, match=r"open_clip: weights of another architecture"):
        take_open_clip(model, openai_like(quick_gelu=False), "open_clip")
