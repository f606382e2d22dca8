"""Own vocabularies: WordPiece, byte-level BPE or unigram, the same from the same text each time.

They are saved as folders that vlp.data.text.CaptionTokenizer and transformers' AutoTokenizer read,
with the special tokens of BERT whatever their kind, since a BERT is what is trained on them.
"""

import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from vlp.config import UserError
from vlp.data.text import SPECIAL_TOKENS, clean, save_tokenizer

Language = Literal["", "japanese", "chinese"]

WORD_END = "\x1f"
"""Stands between the words that a segmenter found: the ASCII sign for it, in no text."""
_KNOWN = 2**20  # words that are remembered as looked at
_DIGITS = 6  # of a piece's log-probability: beyond them they differ from run to run


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """What kind of vocabulary is trained."""

    kind: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    """`wordpiece` as BERT's, `bpe` on bytes as RoBERTa's, `unigram` as SentencePiece's."""
    size: int = 30522
    """Pieces, special tokens included; a small corpus may yield fewer."""
    lowercase: bool = True
    """Whether case is thrown away. Spanish, Italian and French models often keep it."""
    strip_accents: bool = False
    """Whether é becomes e. BERT's uncased vocabularies do so; where accents tell words apart
    (año, ano), don't."""
    min_frequency: int = 2
    """How often a pair of pieces (or a character) must occur; not for `unigram`."""
    words: Language = ""
    """Segment the training text into words first, so that no piece crosses a word: for languages
    without blanks. Only training needs the segmenter (`sudachipy` and `sudachidict_core`, or
    `rjieba`); `wordpiece` can't do without it later on, so kind must be another."""

    def __post_init__(self) -> None:
        if self.size < 300 and self.kind == "bpe":
            raise ValueError("size: 256 bytes and the special tokens need at least 300")
        if self.size < len(SPECIAL_TOKENS) + 1 or self.min_frequency < 1:
            raise ValueError("size, min_frequency: set more")
        if self.words and self.kind == "wordpiece":
            raise ValueError(f"words={self.words}: set kind=unigram or kind=bpe")


def train_vocabulary(texts: Iterable[str], config: VocabularyConfig, folder: str | Path) -> None:
    """Train a vocabulary and save it as a tokenizer folder.

    Args:
        texts: gone through twice, so no iterator; such as mixture.MixedTexts.
        config: its kind.
        folder: gets tokenizer.json and what transformers wants beside it.

    Raises:
        UserError: there is no text, or a library for `words` is missing.
    """
    segment = segmenter(config.words)

    def cleaned() -> Iterator[str]:
        for text in texts:
            if text := clean(text):
                yield WORD_END.join(segment(text)) if segment else text

    if next(cleaned(), None) is None:
        raise UserError("no text to train a vocabulary on; check the mixture's corpora")
    model = _TRAIN[config.kind](cleaned, config)
    tokenizer = _tokenizer(model, config)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    save_tokenizer(tokenizer, folder)


def _wordpiece(texts: Callable[[], Iterator[str]], config: VocabularyConfig) -> models.Model:
    """The trainer numbers the pieces inside words as it meets them in a hash map, and breaks ties
    between merges by these numbers. Named beforehand as "special", they get fixed numbers.
    """
    empty = models.WordPiece(unk_token="[UNK]")  # noqa: S106
    tokenizer = _tokenizer(empty, config)
    normal = tokenizer.normalizer.normalize_str
    split = tokenizer.pre_tokenizer.pre_tokenize_str
    characters, inside, seen = Counter[str](), set[str](), set[str]()
    for text in texts():
        text = normal(text)
        characters.update(text)
        for word in set(text.split()) - seen:
            seen.add(word)
            for piece, _ in split(word):
                inside.update(piece[1:])
        if len(seen) > _KNOWN:
            seen.clear()
    # Rare characters would each take a place, or two; left out, their words are [UNK].
    rare = {c for c, count in characters.items() if count < config.min_frequency}
    room = (config.size - len(SPECIAL_TOKENS)) // 3
    rare.update(sorted(characters, key=lambda c: (-characters[c], c))[room:])
    blank = str.maketrans(dict.fromkeys(rare, " "))
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.size,
        min_frequency=config.min_frequency,
        special_tokens=SPECIAL_TOKENS + sorted("##" + c for c in inside - rare),
        show_progress=False,
    )
    tokenizer.train_from_iterator((normal(text).translate(blank) for text in texts()), trainer)
    return models.WordPiece(vocab=tokenizer.get_vocab(), unk_token="[UNK]")  # noqa: S106


def _bpe(texts: Callable[[], Iterator[str]], config: VocabularyConfig) -> models.Model:
    tokenizer = _tokenizer(models.BPE(), config, training=True)
    trainer = trainers.BpeTrainer(
        vocab_size=config.size,
        min_frequency=config.min_frequency,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    return models.BPE(vocab=learned["vocab"], merges=[tuple(pair) for pair in learned["merges"]])


def _unigram(texts: Callable[[], Iterator[str]], config: VocabularyConfig) -> models.Model:
    """Pieces come with log-probabilities whose last digits, and order if equal, differ from run to
    run (sums over a hash map): rounded and sorted they are the same.
    """
    tokenizer = _tokenizer(models.Unigram(), config, training=True)
    trainer = trainers.UnigramTrainer(
        vocab_size=config.size,
        unk_token="[UNK]",  # noqa: S106
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    learned = json.loads(tokenizer.to_str())["model"]["vocab"]
    pieces = [(piece, round(score, _DIGITS)) for piece, score in learned]
    pieces = sorted(
        ((piece, score) for piece, score in pieces if piece not in SPECIAL_TOKENS),
        key=lambda pair: (-pair[1], pair[0]),
    )
    special = [(name, 0.0) for name in SPECIAL_TOKENS]
    return models.Unigram(special + pieces, unk_id=SPECIAL_TOKENS.index("[UNK]"))


_TRAIN = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}


def _tokenizer(model: models.Model, config: VocabularyConfig, training: bool = False) -> Tokenizer:
    """A tokenizer around a model; in training it splits at WORD_END as well."""
    tokenizer = Tokenizer(model)
    if config.kind == "wordpiece":
        tokenizer.normalizer = normalizers.BertNormalizer(
            lowercase=config.lowercase, strip_accents=config.strip_accents
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer
    steps: list[Any] = [normalizers.NFC() if config.kind == "bpe" else normalizers.NFKC()]
    if config.strip_accents:
        steps += [normalizers.NFD(), normalizers.StripAccents(), normalizers.NFC()]
    if config.lowercase:
        steps.append(normalizers.Lowercase())
    tokenizer.normalizer = normalizers.Sequence(steps)
    split: list[Any] = []
    if training and config.words:
        split.append(pre_tokenizers.Split(WORD_END, "removed"))
    if config.kind == "bpe":
        # Between segmented words stands no blank, so none is put before them.
        split.append(pre_tokenizers.ByteLevel(add_prefix_space=not config.words))
        tokenizer.decoder = decoders.ByteLevel()
    else:
        scheme: Literal["always", "never"] = "never" if config.words else "always"
        split += [pre_tokenizers.Metaspace(prepend_scheme=scheme), pre_tokenizers.Punctuation()]
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    return tokenizer


def segmenter(language: Language) -> Callable[[str], list[str]] | None:
    """A function that cuts a text into words that make it up again; None for `""`.

    Raises:
        UserError: its library is not installed.
    """
    if language == "japanese":
        sudachi = _library("sudachipy", "sudachipy sudachidict_core", language)
        cut = sudachi.Dictionary(dict="core").create(mode=sudachi.SplitMode.C)
        return lambda text: [
            word.surface()
            # It takes no more than 49,149 bytes at a time.
            for start in range(0, len(text), _AT_A_TIME)
            for word in cut.tokenize(text[start : start + _AT_A_TIME])
        ]
    if language == "chinese":
        jieba = _library("rjieba", "rjieba", language)
        return lambda text: list(jieba.cut(text))
    return None


_AT_A_TIME = 12_000  # characters, of up to four bytes


def _library(name: str, packages: str, language: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"words={language}: the package {name} is missing; `pip install {packages}`"
        ) from None
