"""Captions to packed token ids: no padding, ever."""

import html
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import ftfy
import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from vlp.config import UserError

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class PackedText(NamedTuple):
    """Token ids of B captions, one after the other.

    Attributes:
        input_ids: int64 [T], T = sum of lengths.
        cu_seqlens: int32 [B + 1], where each caption starts; the last entry is T.
        max_length: bound on a caption's length. It is the context length, not the batch's longest,
            so that compiled code and kernels see a constant.
    """

    input_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_length: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedText":
        return PackedText(
            self.input_ids.to(device, non_blocking=non_blocking),
            self.cu_seqlens.to(device, non_blocking=non_blocking),
            self.max_length,
        )

    def pin_memory(self) -> "PackedText":
        return PackedText(
            self.input_ids.pin_memory(), self.cu_seqlens.pin_memory(), self.max_length
        )

    def padded(self, pad_id: int = 0) -> torch.Tensor:
        """int64 [B, longest]: the same captions padded on the right, for models that need it."""
        rows = list(torch.split(self.input_ids, self.cu_seqlens.diff().tolist()))
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)


class CaptionTokenizer:
    """A `tokenizer.json` that returns packed ids, truncated to the context length.

    Text is cleaned first as open_clip's HFTokenizer does, so both see the same ids.
    """

    def __init__(self, path: str | Path, context_length: int) -> None:
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise UserError(f"{file}: no such tokenizer; give a tokenizer.json or its folder")
        try:
            self.tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # noqa: BLE001  the library raises bare Exception
            raise UserError(f"{file}: not a tokenizer.json: {error}") from None
        self.tokenizer.enable_truncation(context_length)
        self.tokenizer.no_padding()
        self.context_length = context_length
        self.folder = file.parent
        self._words = WordCache(self.tokenizer) if splits_at_blanks(self.tokenizer) else None

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    @property
    def pad_id(self) -> int:
        return self.tokenizer.token_to_id("[PAD]") or 0

    def __call__(self, captions: Sequence[str]) -> PackedText:
        """B captions -> packed ids, each with the tokenizer's special tokens."""
        texts = [clean(caption) for caption in captions]
        if self._words is not None:
            rows = self._words.encode(texts, self.context_length)
        else:
            encoded = self.tokenizer.encode_batch_fast(texts)
            rows = [np.array(row.ids, dtype=np.int64).tobytes() for row in encoded]
        ids = np.frombuffer(bytearray(b"".join(rows)), dtype=np.int64)
        starts = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum([len(row) // ID for row in rows], out=starts[1:])
        return PackedText(torch.from_numpy(ids), torch.from_numpy(starts), self.context_length)


ID = 8
"""Bytes of a token id, int64."""

WORDS = 2**17
"""Words that are remembered, about 25 MB of them; the first ones, which are the frequent ones."""


class WordCache:
    """Token ids of words, remembered: most words of a caption have been in another one.

    A BERT tokenizer takes a text apart at blanks before anything else that looks at more than one
    character, so the ids of a text are those of its words, one after the other. Looking them up
    takes a tenth of the time of encoding them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """`tokenizer` must satisfy `splits_at_blanks`."""
        self.tokenizer = tokenizer
        probe = "a"
        inner = tokenizer.encode(probe, add_special_tokens=False).ids
        outer = tokenizer.encode(probe).ids
        before = next(i for i in range(len(outer)) if outer[i : i + len(inner)] == inner)
        self.before = _to_bytes(outer[:before])
        self.after = _to_bytes(outer[before + len(inner) :])
        self.known: dict[str, bytes] = {}

    def encode(self, texts: Sequence[str], length: int) -> list[bytes]:
        """The ids of each text as int64 bytes, special tokens included, cut to `length` ids."""
        words = [text.split(" ") for text in texts]
        known = self.known
        missing = list({word for row in words for word in row if word not in known})
        if missing:
            encoded = self.tokenizer.encode_batch_fast(missing, add_special_tokens=False)
            found = {word: _to_bytes(row.ids) for word, row in zip(missing, encoded, strict=True)}
            if len(known) < WORDS:
                known |= found
            else:
                known = known | found
        room = length * ID - len(self.before) - len(self.after)
        before, after = self.before, self.after
        return [before + b"".join([known[word] for word in row])[:room] + after for row in words]


def _to_bytes(ids: Sequence[int]) -> bytes:
    return np.array(ids, dtype=np.int64).tobytes()


def splits_at_blanks(tokenizer: Tokenizer) -> bool:
    """Whether the ids of a text are those of its words: so with BERT's normaliser, splitter, model.

    Byte-level tokenizers, for one, put the blank into the word.
    """
    parts = json.loads(tokenizer.to_str())
    kinds = [(parts[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"]:
        return False
    return not any(" " in token.content for token in tokenizer.get_added_tokens_decoder().values())


# The symbols that captions hold most. Neither ftfy nor html changes a text of these and printable
# ASCII without "&", whatever stands beside what (tests/vlp/test_text.py).
SYMBOLS = "°±µ·×–—−≤≥ΔΘΛΠΣΦΨΩαβγδεζηθικλμνξοπρςστυφχψωϵ∆§′″→←↑↓∼≠∞∑…∗‐‑●▲■"
_PLAIN = re.compile(f"[ -%'-~{SYMBOLS}]*").fullmatch


def clean(text: str) -> str:
    """Repair encoding, unescape HTML, collapse white space: open_clip's `_clean_whitespace`."""
    # ftfy takes longer than the tokeniser, and nearly every caption needs none of it; the curly
    # apostrophe is what it changes most.
    straight = text.replace("’", "'")
    if _PLAIN(straight):
        return " ".join(straight.split())
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def train_wordpiece(captions: Iterable[str], vocab_size: int, folder: str | Path) -> None:
    """Train a lower-casing BERT WordPiece vocabulary and save it as a tokenizer folder.

    The same captions in the same order give the same vocabulary. The folder loads with
    `CaptionTokenizer` and with transformers' AutoTokenizer.
    """
    texts = [clean(caption) for caption in captions]
    tokenizer = _bert(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    # The trainer numbers the pieces inside words as it meets them in a hash map, and breaks ties
    # between merges by these numbers. Named beforehand as "special", they get fixed numbers.
    inside = {
        "##" + character
        for text in texts
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(
            tokenizer.normalizer.normalize_str(text)
        )
        for character in word[1:]
    }
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=SPECIAL_TOKENS + sorted(inside),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # A new tokenizer with this vocabulary, in which "##a" is a piece and not a special token.
    vocabulary = models.WordPiece(vocab=tokenizer.get_vocab(), unk_token="[UNK]")  # noqa: S106
    tokenizer = _bert(vocabulary)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    save_tokenizer(tokenizer, folder)


def _bert(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write a BERT tokenizer as files that `tokenizers`, transformers and open_clip read."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {name.strip("[]").lower() + "_token": name for name in SPECIAL_TOKENS}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n")
