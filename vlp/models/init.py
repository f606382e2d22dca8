"""Weights to start from: model.init, or model.image.pretrained and model.text.init.

The configuration says what the model is, the source what its weights are. Where the two disagree,
the error names the settings to change, or the keys that are missing, unexpected or misshapen.
"""

import sys
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn

from vlp.config import UserError
from vlp.data.text import CaptionTokenizer, PackedText
from vlp.models.dual_encoder import DualEncoder, ModelConfig
from vlp.models.hub import (
    HUB,
    bert_text_config,
    fetch,
    fetch_bert,
    folder_weights,
    read_config,
    read_settings,
)
from vlp.models.vocabulary import own_vocabulary
from vlp.models.weights import load_weights, read_tensors

SAME_OUTPUT = 1e-3
"""Bound on the difference of unit vectors, fp32, between an open_clip model and ours of it."""


def initialise(model: DualEncoder, config: ModelConfig, tokenizer: CaptionTokenizer) -> None:
    """Give a new model the weights that its configuration names; the same on every rank.

    Args:
        model: built from `config`, not yet wrapped or sharded.
        config: the towers, with the tokenizer's own vocabulary size.
        tokenizer: the run's; it must be the one that the text tower's weights were trained with.

    Raises:
        UserError: a source is missing, unreadable or of another architecture.
    """
    # Building a model to take weights from draws random numbers; the run's are not touched.
    with torch.random.fork_rng(devices=[]):
        if config.init:
            _from_model(model, config, tokenizer)
        if config.image.pretrained:
            _from_image_source(model.visual.trunk, config)
        if config.text.init:
            _from_bert(model, config, tokenizer)


def _from_model(model: DualEncoder, config: ModelConfig, tokenizer: CaptionTokenizer) -> None:
    """All weights, from a model folder or one of open_clip's named models."""
    folder = fetch(config.init)
    if folder is None:
        _from_open_clip(model, config)
        return
    theirs, _ = read_config(folder)
    _compare(config, theirs, config.init)
    _check_vocabulary(folder, theirs.text.vocab_size, tokenizer, config.init)
    weights, origin = folder_weights(folder)
    _load_all(model, weights, origin)


def _load_all(model: DualEncoder, weights: dict[str, Tensor], origin: str) -> None:
    if model.logit_bias is not None:
        # Trained with InfoNCE, continued with SigLIP's loss: the bias starts as configured.
        weights.setdefault("logit_bias", model.logit_bias.detach())
    load_weights(model, weights, origin)


def _from_open_clip(model: DualEncoder, config: ModelConfig) -> None:
    """open_clip's NAME@PRETRAINED, whose image tower is renamed as timm's."""
    name, _, tag = config.init.partition("@")
    if (name, tag) not in open_clip.list_pretrained():
        tags = open_clip.list_pretrained_tags_by_model(name)
        hint = f"{name} has: {', '.join(tags)}" if tags else f"{HUB}ORG/NAME for a hub's"
        raise UserError(
            f"model.init={config.init}: neither a folder nor an open_clip model NAME@PRETRAINED; "
            f"{hint}"
        )
    # OpenAI's weights want another activation than ViT-B-16's settings have; open_clip only warns.
    quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    try:
        theirs = open_clip.create_model(name, pretrained=tag, force_quick_gelu=quick)
    except (RuntimeError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model.init={config.init}: can't be fetched: {reason}") from None
    take_open_clip(model, theirs, config.init)


def take_open_clip(model: DualEncoder, theirs: Any, origin: str) -> None:
    """Take the weights of an open_clip model in memory, and see that both compute the same.

    Raises:
        UserError: the weights don't fit; or they do, and give other embeddings, since no weight
            shows activation, number of heads or pooling.
    """
    weights = open_clip.model.convert_to_custom_text_state_dict(theirs.state_dict())
    if "visual.class_embedding" in weights:
        trunk = _filtered(model.visual.trunk, weights, origin)
        projection = trunk.pop("head.weight")
        trunk.pop("head.bias")
        weights = {key: value for key, value in weights.items() if not key.startswith("visual.")}
        weights |= {f"visual.trunk.{key}": value for key, value in trunk.items()}
        weights["visual.head.proj.weight"] = projection
    weights.pop("text.attn_mask", None)  # OpenAI's own archives hold this constant
    _load_all(model, {key: value.float() for key, value in weights.items()}, origin)
    image, text = _differences(model, theirs)
    for tower, difference, hint in (
        ("image", image, "model.image.name (OpenAI's have quickgelu in it)"),
        ("text", text, "model.text.heads and model.text.quick_gelu"),
    ):
        if difference > SAME_OUTPUT:
            raise UserError(
                f"{origin}: its {tower} tower has the same weights and gives other embeddings (by "
                f"{difference:.2g}); check {hint}"
            )


@torch.no_grad()
def _differences(model: DualEncoder, theirs: Any) -> tuple[float, float]:
    """Largest differences of unit vectors for a noise image and a caption of random tokens."""
    model.eval()
    theirs.float().eval()
    size = model.visual.trunk.default_cfg["input_size"]
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    vocabulary, length = theirs.vocab_size, theirs.context_length
    ids = torch.arange(1, length + 1) * 7919 % (vocabulary - 1)
    ids[-1] = vocabulary - 1  # CLIP's last token has the highest id, and its pooling relies on it
    text = PackedText(ids, torch.tensor([0, length], dtype=torch.int32), length)
    pairs = (
        (model.encode_image(images, True), theirs.encode_image(images, normalize=True)),
        (model.encode_text(text, True), theirs.encode_text(ids[None], normalize=True)),
    )
    model.train()
    image, text_difference = (float((ours - other).abs().max()) for ours, other in pairs)
    return image, text_difference


def _from_image_source(trunk: Any, config: ModelConfig) -> None:
    """The image tower's trunk: timm's own weights, a file of them, or those of a CLIP."""
    source = config.image.pretrained
    if source == "timm":
        try:
            donor: Any = timm.create_model(config.image.name, pretrained=True)
        except (RuntimeError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"model.image.pretrained=timm: no weights of {config.image.name}: {reason}"
            ) from None
        donor.reset_classifier(0)
        load_weights(trunk, donor.state_dict(), f"timm's {config.image.name}")
        return
    path = Path(source)
    if (folder := fetch(source)) is not None:
        _from_clip(trunk, config, folder)
        return
    if not path.is_file():
        raise UserError(
            f"model.image.pretrained={source}: neither `timm` nor a file of weights nor a model "
            "folder"
        )
    weights = _filtered(trunk, read_tensors(path), source)
    classifier = trunk.default_cfg.get("classifier", "head")
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    dropped = tuple(f"{name}." for name in names)
    weights = {key: value for key, value in weights.items() if not key.startswith(dropped)}
    load_weights(trunk, weights, source)


def _from_clip(trunk: nn.Module, config: ModelConfig, folder: Path) -> None:
    """The trunk of a model folder's image tower; its projection belongs to another text tower."""
    theirs, _ = read_config(folder)
    differences = _differing("model.image", config.image, theirs.image, IMAGE_KEYS)
    _refuse(differences, config.image.pretrained)
    weights, origin = folder_weights(folder)
    prefix = "visual.trunk."
    of_trunk = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    load_weights(trunk, of_trunk, origin)


def _filtered(trunk: nn.Module, weights: dict[str, Tensor], origin: str) -> dict[str, Tensor]:
    """timm's own renaming of its architecture's older or foreign weights."""
    rename = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return weights
    try:
        return dict(rename(weights, trunk))
    except (KeyError, RuntimeError, ValueError, AttributeError) as error:
        raise UserError(f"{origin}: weights of another architecture: {error}") from None


def _from_bert(model: DualEncoder, config: ModelConfig, tokenizer: CaptionTokenizer) -> None:
    """The text tower's encoder, from a folder or hub id of Hugging Face's format."""
    source = config.text.init
    folder = fetch_bert(source)
    theirs = bert_text_config(
        read_settings(folder / "config.json"),
        str(folder / "config.json"),
        context_length=config.text.context_length,
        proj=config.text.proj,
    )
    _refuse(_differing("model.text", config.text, theirs, BERT_KEYS), source)
    _check_vocabulary(folder, theirs.vocab_size, tokenizer, source)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            weights = _encoder_of(read_tensors(folder / name))
            encoder = model.text.get_submodule("transformer")
            load_weights(encoder, weights, str(folder / name))
            return
    raise UserError(f"{folder / 'model.safetensors'}: no weights in this folder")


def _encoder_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """BertModel's weights without those of pooler and heads, whichever class saved them."""
    heads = ("cls.", "pooler.", "classifier.", "qa_outputs.")
    encoder = {}
    for key, value in weights.items():
        name = key.removeprefix("bert.")
        # Weights that were converted from TensorFlow have its names of LayerNorm's parameters.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if not name.startswith(heads):
            encoder[name] = value
    return encoder


def _compare(config: ModelConfig, theirs: ModelConfig, source: str) -> None:
    """Refuse settings that differ from a model folder's; those that weights don't show, too."""
    differences = _differing("model.image", config.image, theirs.image, IMAGE_KEYS)
    text_keys = GPT_KEYS if theirs.text.kind == "gpt" else (*BERT_KEYS, "proj")
    differences += _differing("model.text", config.text, theirs.text, ("kind", *text_keys))
    differences += _differing("model", config, theirs, ("embed_dim",))
    if theirs.init_bias is not None and config.init_bias is None:
        differences.append(f"model.init_bias={theirs.init_bias}")
    _refuse(differences, source)


IMAGE_KEYS = ("name", "size", "pool", "mean", "std")
BERT_KEYS = ("max_positions", "width", "layers", "heads", "mlp_width", "layer_norm_eps")
GPT_KEYS = ("context_length", "width", "layers", "heads", "mlp_width", "quick_gelu")


def _differing(prefix: str, ours: Any, theirs: Any, keys: tuple[str, ...]) -> list[str]:
    """The settings that would make ours theirs."""
    settings = []
    for key in keys:
        wanted = getattr(theirs, key)
        if getattr(ours, key) != wanted:
            value = list(wanted) if isinstance(wanted, tuple) else wanted
            settings.append(f"{prefix}.{key}={value}".replace(" ", ""))
    return settings


def _refuse(differences: list[str], source: str) -> None:
    if differences:
        raise UserError(f"{source}: made with other settings; set {' '.join(differences)}")


def _check_vocabulary(folder: Path, rows: int, tokenizer: CaptionTokenizer, source: str) -> None:
    """Refuse a tokenizer with other tokens than the weights were trained with.

    Vocabularies of one size are common (BERT's and PubMedBERT's have 30,522 tokens each), so that
    the shape of the table shows nothing.
    """
    theirs = own_vocabulary(folder)
    if theirs is None:
        same = rows == tokenizer.vocab_size
    else:
        same = theirs == tokenizer.tokenizer.get_vocab()
    if not same:
        raise UserError(
            f"{source}: its weights were trained with another vocabulary than that of "
            f"{tokenizer.folder}; leave model.text.tokenizer empty to take its own"
        )
