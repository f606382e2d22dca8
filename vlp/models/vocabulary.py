"""Which tokenizer a run has, and vocabularies of other formats as tokenizer.json."""

import json
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from vlp.config import UserError
from vlp.data.text import SPECIAL_TOKENS, CaptionTokenizer, save_tokenizer
from vlp.models.dual_encoder import ModelConfig
from vlp.models.hub import fetch, fetch_bert, read_settings

CLIP = "clip"
VOCABULARY = "vocab.txt"


def tokenizer_source(config: ModelConfig) -> str:
    """What the tokenizer is made from: as configured, or as the weights to start from were made.

    Returns:
        A path with tokenizer.json, which `CaptionTokenizer` reads; or with vocab.txt, or `clip`,
        for `write_tokenizer`; empty if there is none and one is to be trained.

    Raises:
        UserError: the source of the weights is not there.
    """
    text = config.text
    if text.tokenizer:
        return vocabulary_of(Path(text.tokenizer)) or text.tokenizer
    if text.init:
        folder: Path | None = fetch_bert(text.init)
    else:
        folder = fetch(config.init) if config.init else None
    if folder is None:
        return CLIP if config.init else ""  # open_clip's named models read CLIP's tokens
    found = vocabulary_of(folder)
    if not found:
        raise UserError(
            f"{folder}: has neither tokenizer.json nor {VOCABULARY}; set model.text.tokenizer"
        )
    return found


def own_vocabulary(folder: Path) -> dict[str, int] | None:
    """Token -> id of the tokenizer in a folder of weights; None if it brings none."""
    if (folder / "tokenizer.json").is_file():
        return CaptionTokenizer(folder, 8).tokenizer.get_vocab()
    if (folder / VOCABULARY).is_file():
        return _read_vocabulary(folder / VOCABULARY)
    return None


def needs_writing(source: str) -> bool:
    """Whether `write_tokenizer` must make a tokenizer.json of this source."""
    return source == CLIP or Path(source).name == VOCABULARY


def write_tokenizer(source: str, folder: Path) -> None:
    """Write a vocab.txt or CLIP's vocabulary as a tokenizer folder, as transformers reads it.

    Raises:
        UserError: the vocabulary is not readable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if source == CLIP:
        _write_clip(folder)
        return
    path = Path(source)
    vocabulary = _read_vocabulary(path)
    settings = path.with_name("tokenizer_config.json")
    options = read_settings(settings) if settings.is_file() else {}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(
        # transformers' defaults where the settings say nothing
        lowercase=options.get("do_lower_case", True),
        strip_accents=options.get("strip_accents"),
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    save_tokenizer(tokenizer, folder)


def _read_vocabulary(path: Path) -> dict[str, int]:
    """A BERT's vocab.txt: a token a line, its number the id."""
    try:
        tokens = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as a vocabulary: {error}") from None
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise UserError(f"{path}: a BERT vocabulary lists {missing[0]}, this one doesn't")
    return {token.rstrip("\r"): place for place, token in enumerate(tokens)}


def vocabulary_of(path: Path) -> str:
    """The path itself if it holds or is tokenizer.json, its vocab.txt, or nothing."""
    if (path / "tokenizer.json").is_file():
        return str(path)
    if (path / VOCABULARY).is_file():
        return str(path / VOCABULARY)
    return str(path) if path.is_file() else ""


def _write_clip(folder: Path) -> None:
    """CLIP's byte-pair encoding, from the vocabulary in open_clip's package."""
    clip = SimpleTokenizer()
    start, end = "<start_of_text>", "<end_of_text>"
    model = models.BPE(
        vocab=clip.encoder, merges=list(clip.bpe_ranks), end_of_word_suffix="</w>", unk_token=end
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([start, end])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, clip.sot_token_id), (end, clip.eot_token_id)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(content, indent=2) + "\n")
