"""Figures of a vocabulary against counting by hand."""

import math
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from vlp.data.text import save_tokenizer
from vlp.text.vocabulary import VocabularyConfig, train_vocabulary
from vlp.text.vocabulary_report import (
    count_words,
    describe,
    domain_terms,
    pieces_per_word,
    vocabulary_report,
)

DOMAIN = ["Acute pancreatitis and pancreatitis.", "Pancreatitis, acute; cholangitis: 3 cases"]
GENERAL = ["An acute sense of the cases of others and of 3 more."]


def test_counts_and_terms() -> None:
    words = count_words(DOMAIN * 2)
    assert words["pancreatitis"] == 4
    assert words["Acute"] == words["acute"] == words["3"] == 2
    assert "." not in words
    assert domain_terms(words, count_words(GENERAL)) == ["pancreatitis"]
    assert domain_terms(words, {}, count=1) == ["pancreatitis"]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_figures(tmp_path: Path, kind: str) -> None:
    config = VocabularyConfig(kind=kind, size=330)  # type: ignore[arg-type]
    train_vocabulary(DOMAIN * 20, config, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    words, general = count_words(DOMAIN), count_words(GENERAL)
    report = vocabulary_report(tokenizer, words, general, ["pancreatitis", "zzzz"], longest=1)

    def pieces(word: str) -> int:
        return len(tokenizer.encode(word, add_special_tokens=False).ids)

    total = sum(count * pieces(word) for word, count in words.items())
    assert report.in_domain == pytest.approx(total / sum(words.values()))
    other = sum(count * pieces(word) for word, count in general.items())
    assert report.general == pytest.approx(other / sum(general.values()))
    assert report.single_piece == (pieces("pancreatitis") == 1) / 2 + (pieces("zzzz") == 1) / 2
    assert report.unknown == 0
    assert len(report.longest) == 1
    text = describe({"own": report})
    assert f"| own | {tokenizer.get_vocab_size():,} | {report.in_domain:.3f} |" in text
    assert "Longest splits of own:\n- " in text
    save_tokenizer(tokenizer, tmp_path)
    assert math.isnan(pieces_per_word(tokenizer, {}))
