"""The model that continual pretraining starts from, with its own vocabulary or with another one."""

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders
from torch import Tensor

from vlp.config import UserError
from vlp.data.text import SPECIAL_TOKENS, CaptionTokenizer
from vlp.models.hub import bert_text_config, fetch_bert, read_settings
from vlp.models.text_tower import TextConfig
from vlp.models.vocabulary import VOCABULARY, write_tokenizer
from vlp.models.weights import differences, read_tensors
from vlp.text.masked_lm import MaskedLM
from vlp.text.next_sentence import NextSentenceHead

WORDS, POSITIONS, BIAS = (
    "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.position_embeddings.weight",
    "cls.predictions.bias",
)
DECODER = "cls.predictions.decoder.weight"
HEAD = "cls.predictions."
DROPPED = ("bert.pooler.", "cls.seq_relationship.", "classifier.", "qa_outputs.", "dropout.")
"""What other heads than that of masked tokens have."""
NEXT_SENTENCE = {"bert.pooler.": "pooler.", "cls.seq_relationship.": "seq_relationship."}
"""Of these, names in BertForPreTraining -> in NextSentenceHead."""
BUFFERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")
"""Constants that older versions of transformers saved."""


@dataclass(frozen=True)
class Base:
    """A BERT from elsewhere.

    Attributes:
        source: as the user named it.
        folder: where it is.
        config: its architecture; its context length is its number of positions.
        weights: by MaskedLM's names, fp32; those of the head only if it has one.
        next_sentence: by NextSentenceHead's names, fp32; empty unless it has all of that head.
    """

    source: str
    folder: Path
    config: TextConfig
    weights: Mapping[str, Tensor]
    next_sentence: Mapping[str, Tensor]

    @property
    def has_head(self) -> bool:
        """Whether it can guess masked tokens: a BertModel can't."""
        return BIAS in self.weights

    def encoder(self, length: int, vocab_size: int) -> TextConfig:
        """The architecture for sequences of `length` tokens of a vocabulary.

        Raises:
            UserError: it has fewer positions.
        """
        if length > self.config.max_positions:
            raise UserError(
                f"model.length={length}: {self.source} has {self.config.max_positions} positions; "
                "set at most so many"
            )
        return replace(self.config, context_length=length, vocab_size=vocab_size)

    def tokenizer(self) -> Tokenizer:
        """Its own.

        Raises:
            UserError: it brings none, or one that is not readable.
        """
        folder = self.folder
        if (folder / "tokenizer.json").is_file():
            return CaptionTokenizer(folder, self.config.max_positions).tokenizer
        if not (folder / VOCABULARY).is_file():
            raise UserError(f"{folder}: has neither tokenizer.json nor {VOCABULARY}")
        with tempfile.TemporaryDirectory() as written:
            write_tokenizer(str(folder / VOCABULARY), Path(written))
            return CaptionTokenizer(Path(written), self.config.max_positions).tokenizer


def load_base(source: str) -> Base:
    """Read a BERT in Hugging Face's format, whichever class saved it.

    Args:
        source: a folder, ORG/NAME or `hf-hub:ORG/NAME`.

    Raises:
        UserError: not there, unreadable, another architecture, or weights that don't fit it.
    """
    folder = fetch_bert(source, key="base")
    config = _read_config(folder / "config.json")
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            weights, others = _masked_lm_names(read_tensors(folder / name), folder / name)
            break
    else:
        raise UserError(f"{folder / 'model.safetensors'}: no weights in this folder")
    _check(weights, config, folder / name)
    return Base(source, folder, config, weights, _next_sentence(others, config, folder / name))


def _read_config(path: Path) -> TextConfig:
    settings = read_settings(path)
    try:
        length = settings["max_position_embeddings"]
        config = bert_text_config(settings, str(path), context_length=length)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a BERT's configuration: {error!r}") from None
    if settings.get("type_vocab_size", 2) != 2:
        raise UserError(f"{path}: type_vocab_size={settings['type_vocab_size']}; only 2 is built")
    return config


def _masked_lm_names(
    found: Mapping[str, Tensor], origin: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights by MaskedLM's names, and what it hasn't: pooler and other heads."""
    weights, others = dict[str, Tensor](), dict[str, Tensor]()
    bare = not any(name.startswith("bert.") for name in found)  # saved by BertModel
    for name, value in found.items():
        # Weights that were converted from TensorFlow have its names of LayerNorm's parameters.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if bare and not name.startswith(("cls.", *DROPPED)):
            name = f"bert.{name}"
        if name not in BUFFERS:
            (others if name.startswith(DROPPED) else weights)[name] = value.float()
    decoder = weights.pop(DECODER, None)
    bias = weights.pop("cls.predictions.decoder.bias", None)
    if bias is not None:
        weights.setdefault(BIAS, bias)
    if decoder is not None and not torch.equal(decoder, weights.get(WORDS, decoder)):
        raise UserError(
            f"{origin}: {DECODER} is not the word embeddings; a head of its own is not built here"
        )
    return weights, others


def _check(weights: Mapping[str, Tensor], config: TextConfig, origin: Path) -> None:
    """Compare with what the configuration says, before anything of that size is made."""
    layers = {name.split(".")[3] for name in weights if name.startswith("bert.encoder.layer.")}
    words = weights.get(WORDS)
    rows = 0 if words is None else len(words)
    if len(layers) != config.layers or rows != config.vocab_size:
        raise UserError(
            f"{origin}: {len(layers)} layers and {rows:,} pieces, config.json says "
            f"{config.layers} and {config.vocab_size:,}; take both files from one model"
        )
    with torch.device("meta"):
        own = {name: tuple(value.shape) for name, value in MaskedLM(config).state_dict().items()}
    if BIAS not in weights:
        own = {name: shape for name, shape in own.items() if not name.startswith(HEAD)}
    if found := differences(own, {name: tuple(value.shape) for name, value in weights.items()}):
        raise UserError(f"{origin}: not the weights of its config.json ({found})")
    _check_finite(weights, origin)


def _next_sentence(
    others: Mapping[str, Tensor], config: TextConfig, origin: Path
) -> dict[str, Tensor]:
    """The head of next sentences by our names, if it is there."""
    weights = {
        ours + name.removeprefix(theirs): value
        for theirs, ours in NEXT_SENTENCE.items()
        for name, value in others.items()
        if name.startswith(theirs)
    }
    with torch.device("meta"):
        head = NextSentenceHead(config.width).state_dict()
    if weights.keys() != head.keys():
        return {}
    shapes = ({name: tuple(value.shape) for name, value in w.items()} for w in (head, weights))
    if found := differences(*shapes):
        raise UserError(f"{origin}: not the weights of its config.json ({found})")
    _check_finite(weights, origin)
    return weights


def _check_finite(weights: Mapping[str, Tensor], origin: Path) -> None:
    for name, value in weights.items():
        if not value.isfinite().all():
            raise UserError(f"{origin}: {name} holds numbers that are not finite")


def start(lm: MaskedLM, base: Base, tokenizer: CaptionTokenizer) -> list[str]:
    """Give a new model the weights of a base.

    With another vocabulary, pieces that both have keep their rows; others get the mean of the rows
    of the pieces that the base's tokenizer makes of their text (fast vocabulary transfer: Gee et
    al. 2022, arXiv:2402.09977). Likewise their biases in the head.

    Args:
        lm: built for `base.encoder(...)`; not yet wrapped or sharded.
        base: the model to start from.
        tokenizer: the run's.

    Returns:
        What is not as it was in the base, a line each.

    Raises:
        UserError: the base brings no tokenizer to compare with, or has no row for a piece of it.
    """
    notes = []
    own = lm.state_dict()
    weights = dict(base.weights)
    if not base.has_head:
        notes.append("the base has no head for masked tokens: a new one is learnt")
        weights |= {name: value for name, value in own.items() if name.startswith(HEAD)}
    positions = len(own[POSITIONS])
    if positions < len(weights[POSITIONS]):
        notes.append(f"the first {positions} of {len(weights[POSITIONS])} positions are kept")
        weights[POSITIONS] = weights[POSITIONS][:positions]
    theirs, ours = base.tokenizer(), tokenizer.tokenizer
    highest = max(theirs.get_vocab().values())
    if highest >= base.config.vocab_size:
        raise UserError(
            f"{base.folder}: its tokenizer has pieces up to {highest:,}, its weights "
            f"{base.config.vocab_size:,} rows; take both from one model"
        )
    if theirs.get_vocab() == ours.get_vocab():
        weights[WORDS] = weights[WORDS][: len(own[WORDS])]
        weights[BIAS] = weights[BIAS][: len(own[BIAS])]
    else:
        sources, note = transfer(ours, theirs)
        notes.append(note)
        weights[WORDS] = _means(own[WORDS], weights[WORDS], sources)
        if base.has_head:
            weights[BIAS] = _means(own[BIAS], weights[BIAS], sources)
    shapes = ({name: tuple(value.shape) for name, value in some.items()} for some in (own, weights))
    if found := differences(*shapes):
        raise UserError(f"{base.source}: weights of another architecture ({found})")
    lm.load_state_dict(weights)
    return notes


def transfer(new: Tokenizer, old: Tokenizer) -> tuple[dict[int, list[int]], str]:
    """Which old pieces a new one's row comes from.

    Args:
        new: the vocabulary to be learnt.
        old: the base's.

    Returns:
        New id -> old ids; left out are pieces of which the old vocabulary knows nothing. And a line
        that says how many of each kind there are.
    """
    old_ids, unknown = old.get_vocab(), old.token_to_id("[UNK]")
    by_text: dict[tuple[str, bool], int] = {}
    for token, number in sorted(old_ids.items(), key=lambda pair: pair[1]):
        by_text.setdefault(_text(old, token), number)
    same_kind = type(new.model) is type(old.model)
    sources: dict[int, list[int]] = {}
    copied = 0
    for token, number in new.get_vocab().items():
        text, begins = _text(new, token)
        by_token = same_kind or token in SPECIAL_TOKENS
        same = old_ids.get(token) if by_token else by_text.get((text, begins))
        if same is not None:
            sources[number] = [same]
            copied += 1
            continue
        pieces = old.encode(text, add_special_tokens=False).ids
        if pieces and unknown not in pieces:
            sources[number] = pieces
    size, made = new.get_vocab_size(), len(sources) - copied
    return sources, (
        f"other vocabulary: {copied:,} of {size:,} pieces have the base's vectors, {made:,} means "
        f"of them, {size - len(sources):,} random ones"
    )


MARKS = {"WordPiece": "##", "BPE": "Ġ", "Unigram": "▁"}


def _text(tokenizer: Tokenizer, token: str) -> tuple[str, bool]:
    """A piece's text without the mark of its kind, and whether it begins a word."""
    kind = type(tokenizer.model).__name__
    mark = MARKS.get(kind, "")
    marked = bool(mark) and token.startswith(mark)
    text = token.removeprefix(mark)
    if kind == "BPE":
        text = decoders.ByteLevel().decode([text])
    # Signs are words of their own, which only some kinds mark.
    return text, marked != (kind == "WordPiece") or not text[:1].isalnum()


def _means(own: Tensor, rows: Tensor, sources: Mapping[int, list[int]]) -> Tensor:
    """`own`, with the means of some rows in the places that have sources."""
    result = own.clone()
    by_count: dict[int, list[int]] = defaultdict(list)
    for number, pieces in sources.items():
        by_count[len(pieces)].append(number)
    for numbers in by_count.values():  # those of as many pieces at once
        result[numbers] = rows[torch.tensor([sources[number] for number in numbers])].mean(1)
    return result
