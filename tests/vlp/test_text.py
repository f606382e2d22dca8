"""Packed tokens against the tokenizers of transformers and open_clip."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, _clean_whitespace

from tests.vlp.tiny import CAPTIONS, make_tokenizer
from vlp.config import UserError
from vlp.data.text import CaptionTokenizer, PackedText, clean

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


def test_symbols_of_captions_need_no_repair() -> None:
    """What `clean` spares ftfy: all neighbourhoods of three, since mojibake is two or more."""
    for symbols in itertools.product("°±µ·×–—−≤≥αβγδμ’ a5.<", repeat=3):
        text = "".join(symbols)
        assert clean(text) == _clean_whitespace(text), text


@given(st.text(max_size=80))
def test_cleaning_equals_open_clip(text: str) -> None:
    assert clean(text) == _clean_whitespace(text)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80))
def test_cleaning_of_ascii_equals_open_clip(text: str) -> None:
    """The fast path skips ftfy for printable ASCII without '&'."""
    assert clean(text) == _clean_whitespace(text)


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
