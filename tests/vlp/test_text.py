"""Packed tokens against the tokenizers of transformers and open_clip."""

import string
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ftfy.badness import is_bad
from hypothesis import given
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, _clean_whitespace
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.vlp.tiny import CAPTIONS, make_tokenizer
from vlp.config import UserError
from vlp.data import text
from vlp.data.text import (
    SYMBOLS,
    CaptionTokenizer,
    PackedText,
    clean,
    save_tokenizer,
    splits_at_blanks,
)

AWKWARD = [
    *CAPTIONS,
    "",
    "  white \t space\n\nand &amp;lt;tags&amp;gt; ",
    "mojibake âœ” and ﬁ ligature, 5&nbsp;µm, naïve β-cells – ≥ 3 ± 1",
    "long " * 60,
    "\x1b[31mcontrol\x07 characters",
]


def test_packed_ids_equal_open_clip_padded_ids(tmp_path: Path) -> None:
    ours = make_tokenizer(tmp_path / "tok")
    theirs = HFTokenizer(str(tmp_path / "tok"), context_length=24)
    want = theirs(AWKWARD)
    packed = ours(AWKWARD)
    padded = packed.padded(ours.pad_id)
    assert torch.equal(padded, want[:, : padded.shape[1]])
    assert (want[:, padded.shape[1] :] == ours.pad_id).all()
    lengths = packed.cu_seqlens.diff()
    assert lengths.tolist() == (want != ours.pad_id).sum(1).tolist()
    assert int(lengths.max()) == packed.max_length == 24  # the long one is cut, with its [SEP]
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.input_ids.dtype == torch.int64


def de_bruijn(symbols: str, order: int) -> Iterator[str]:
    """A text that holds every sequence of `order` symbols: the Lyndon words in their order."""
    word = [-1]
    while word:
        word[-1] += 1
        if order % len(word) == 0:
            yield from (symbols[i] for i in word)
        word = [word[i % len(word)] for i in range(order)]
        while word and word[-1] == len(symbols) - 1:
            word.pop()


def test_symbols_of_captions_need_no_repair() -> None:
    """What `clean` spares ftfy: every three neighbours; mojibake is two or three characters."""
    symbols = SYMBOLS + "’'a5.< Z(%-"
    text = "".join(de_bruijn(symbols, 3))
    assert len(text) == len(symbols) ** 3
    assert all(a + b + c in text for a, b, c in [symbols[:3], symbols[-3:], "’’’", "a°±"])
    assert not is_bad(text)  # ftfy looks for mojibake only in texts that are "bad"
    assert clean(text) == _clean_whitespace(text)


@given(st.text(max_size=80))
def test_cleaning_equals_open_clip(text: str) -> None:
    assert clean(text) == _clean_whitespace(text)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80))
def test_cleaning_of_ascii_equals_open_clip(text: str) -> None:
    """The fast path skips ftfy for printable ASCII without '&'."""
    assert clean(text) == _clean_whitespace(text)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[CaptionTokenizer, CaptionTokenizer]:
    """A tokenizer that remembers words, and the same one that encodes every text anew."""
    folder = tmp_path_factory.mktemp("tok")
    remembers, anew = make_tokenizer(folder, 16), CaptionTokenizer(folder, 16)
    assert remembers._words is not None
    anew._words = None
    return remembers, anew


@given(st.lists(st.text(max_size=60), max_size=4))
def test_words_give_the_ids_of_the_text(
    both: tuple[CaptionTokenizer, CaptionTokenizer], texts: list[str]
) -> None:
    """Any Unicode: control characters, combining marks, CJK, blanks of other scripts."""
    remembers, anew = both
    for captions in (texts, [f"left lung {each}" for each in texts], ["[SEP] x[MASK]y", *texts]):
        got, want = remembers(captions), anew(captions)
        assert got.input_ids.tolist() == want.input_ids.tolist()
        assert got.cu_seqlens.tolist() == want.cu_seqlens.tolist()


def test_words_beyond_the_bound_are_encoded_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "WORDS", 5)
    tokenizer = make_tokenizer(tmp_path)
    first = tokenizer(CAPTIONS)
    kept = len(tokenizer._words.known)
    again = tokenizer(["pleural brain", *CAPTIONS])
    assert torch.equal(again.input_ids[-len(first.input_ids) :], first.input_ids)
    assert tokenizer(["unheard-of words"]).input_ids.tolist() != []
    assert len(tokenizer._words.known) == kept


def test_other_tokenizers_see_whole_texts(tmp_path: Path) -> None:
    """Byte-level ones put the blank into the word; special tokens may hold a blank."""
    bytelevel = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(string.printable)}, merges=[])
    )
    bytelevel.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert not splits_at_blanks(bytelevel)
    tokenizer = make_tokenizer(tmp_path).tokenizer
    assert splits_at_blanks(tokenizer)
    tokenizer.add_special_tokens(["two words"])
    assert not splits_at_blanks(tokenizer)
    save_tokenizer(tokenizer, tmp_path / "two")
    ids = CaptionTokenizer(tmp_path / "two", 24)(["left two words"]).input_ids.tolist()
    assert tokenizer.token_to_id("two words") in ids


def test_padded_is_the_inverse_of_packing() -> None:
    packed = PackedText(torch.tensor([5, 6, 7, 8]), torch.tensor([0, 3, 4], dtype=torch.int32), 9)
    assert packed.padded(0).tolist() == [[5, 6, 7], [8, 0, 0]]


def test_training_a_vocabulary_is_repeatable(tmp_path: Path) -> None:
    first, second = make_tokenizer(tmp_path / "a"), make_tokenizer(tmp_path / "b")
    assert first(CAPTIONS).input_ids.tolist() == second(CAPTIONS).input_ids.tolist()
    assert first.vocab_size == 120
    assert first.tokenizer.id_to_token(first.pad_id) == "[PAD]"
    assert first.tokenizer.decode(first(["left lung"]).input_ids.tolist()).startswith("l")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such tokenizer"),
        ("{}", "not a tokenizer.json"),
        ("nonsense", "not a tokenizer.json"),
    ],
)
def test_bad_tokenizer(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=message):
        CaptionTokenizer(tmp_path, 24)
