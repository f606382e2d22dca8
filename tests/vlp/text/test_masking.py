"""Masks: exact counts, and the distribution that transformers' collator draws from."""

from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

from tests.vlp.text.test_vocabulary import KINDS, TEXTS, config_of
from vlp.config import UserError
from vlp.data.text import SPECIAL_TOKENS, CaptionTokenizer
from vlp.text.masking import IGNORE, SPECIAL, MaskingConfig, Words, mask_tokens
from vlp.text.vocabulary import train_vocabulary


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for kind in KINDS:
        found[kind] = tmp_path_factory.mktemp(kind)
        train_vocabulary(TEXTS, config_of(kind, size=330), found[kind])
    return found


def packed(folder: Path, times: int = 1) -> tuple[np.ndarray, Words]:
    tokenizer = CaptionTokenizer(folder, 64)
    return tokenizer(TEXTS * times).input_ids.numpy(), Words(tokenizer.tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_those_of_the_text(folders: dict[str, Path], kind: str) -> None:
    """Runs of letters and digits, and each sign alone, as BERT splits."""
    tokenizer = CaptionTokenizer(folders[kind], 64)
    words = Words(tokenizer.tokenizer)
    text = "dolor (abdominal) cólico, 39-year-old: año"
    ids = tokenizer([text]).input_ids.numpy()
    numbers = words.number(ids)
    assert numbers[0] == numbers[-1] == SPECIAL
    decoded = [
        tokenizer.tokenizer.decode([i for i, _ in pairs]).replace("##", "").replace(" ", "")
        for number, pairs in groupby(zip(ids, numbers, strict=True), key=lambda pair: pair[1])
        if number != SPECIAL
    ]
    want = [
        "dolor",
        "(",
        "abdominal",
        ")",
        "cólico",
        ",",
        "39",
        "-",
        "year",
        "-",
        "old",
        ":",
        "año",
    ]
    assert [word for word in decoded if word] == want
    assert sorted(set(numbers.tolist()) - {SPECIAL}) == list(range(numbers.max() + 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["subword", "whole_word"])
def test_budget_and_words(folders: dict[str, Path], kind: str, unit: str) -> None:
    ids, words = packed(folders[kind])
    numbers = words.number(ids)
    config = MaskingConfig(unit=unit)  # type: ignore[arg-type]
    inputs, labels = mask_tokens(ids, numbers, config, words, np.random.default_rng(0))
    chosen = labels != IGNORE
    special = np.isin(ids, [0, 2, 3, 4])
    assert not (chosen & special).any()
    assert np.array_equal(labels[chosen], ids[chosen])
    assert np.array_equal(inputs[~chosen], ids[~chosen])
    assert chosen.sum() == round(0.15 * (~special).sum())  # to the piece, in both units
    if unit == "whole_word":
        for number in set(numbers[chosen].tolist()):
            assert chosen[numbers == number].all()
    again = mask_tokens(ids, numbers, config, words, np.random.default_rng(0))
    assert np.array_equal(again[0], inputs)
    assert np.array_equal(again[1], labels)
    other = mask_tokens(ids, numbers, config, words, np.random.default_rng(1))
    assert not np.array_equal(other[1], labels)


def test_a_word_that_does_not_fit_is_passed_over(folders: dict[str, Path]) -> None:
    _, words = packed(folders["wordpiece"])
    ids = np.arange(20) + 5
    numbers = np.repeat([0, 1, 2], [9, 9, 2])
    config = MaskingConfig(share=0.15)  # 3 pieces: only the word of 2 fits
    for seed in range(20):
        _, labels = mask_tokens(ids, numbers, config, words, np.random.default_rng(seed))
        assert np.flatnonzero(labels != IGNORE).tolist() == [18, 19]


def test_empty_and_special_only(folders: dict[str, Path]) -> None:
    _, words = packed(folders["wordpiece"])
    for ids in (np.empty(0, dtype=np.int64), np.array([2, 3, 2, 3])):
        numbers = words.number(ids)
        inputs, labels = mask_tokens(ids, numbers, MaskingConfig(), words, np.random.default_rng(0))
        assert np.array_equal(inputs, ids)
        assert (labels == IGNORE).all()


@pytest.mark.parametrize("unit", ["subword", "whole_word"])
def test_distribution_is_that_of_transformers(tmp_path: Path, unit: str) -> None:
    """Share chosen, 80/10/10 and which words: within five standard errors of the collator's."""
    train_vocabulary(TEXTS, config_of("wordpiece", size=130), tmp_path)  # cuts most words
    ids, words = packed(tmp_path, times=40)
    numbers = words.number(ids)
    config = MaskingConfig(unit=unit)  # type: ignore[arg-type]
    inputs, labels = mask_tokens(ids, numbers, config, words, np.random.default_rng(3))

    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    # Whole words can't be swapped for random pieces there: all are masked.
    whole = unit == "whole_word"
    shares = {"mask_replace_prob": 1.0, "random_replace_prob": 0.0} if whole else {}
    collator = DataCollatorForLanguageModeling(tokenizer, whole_word_mask=whole, seed=0, **shares)
    encoded = tokenizer(
        TEXTS * 40,
        padding=True,
        return_token_type_ids=False,
        truncation=True,
        max_length=64,
        return_special_tokens_mask=True,
        return_offsets_mapping=whole,
    )
    rows = [{key: encoded[key][n] for key in encoded} for n in range(len(TEXTS) * 40)]
    batch = collator(rows)
    real = batch["attention_mask"].bool()
    theirs_in, theirs = batch["input_ids"][real].numpy(), batch["labels"][real].numpy()
    assert len(theirs) == len(ids)

    rates = [(label != IGNORE).sum() / (numbers != SPECIAL).sum() for label in (labels, theirs)]
    assert rates[0] == pytest.approx(0.15, abs=1e-4)
    spread = 5 * np.sqrt(0.15 * 0.85 / len(ids)) * (2 if whole else 1)  # words, not pieces
    assert abs(rates[0] - rates[1]) < spread
    for read, label, masked in ((inputs, labels, 0.8), (theirs_in, theirs, 1 if whole else 0.8)):
        chosen = label != IGNORE
        error = 5 * np.sqrt(0.16 / chosen.sum())
        # One of the random pieces in `size` is the very piece.
        same = (1 - masked) / 2 * (1 + 1 / words.size)
        assert abs((read[chosen] == words.mask_id).mean() - masked) < error
        assert abs((read[chosen] == label[chosen]).mean() - same) < error
    # Long words are hidden as often as short ones. Theirs are longer: with their punctuation.
    lengths = Counter(numbers.tolist())
    size = np.array([lengths[number] for number in numbers.tolist()])
    sizes = [n for n in range(1, 10) if ((size == n) & (numbers != SPECIAL)).sum() > 1000]
    assert len(sizes) > 2
    for pieces in sizes:
        of_size = (size == pieces) & (numbers != SPECIAL)
        for label in (labels, theirs):
            rate = (label[of_size] != IGNORE).mean()
            error = np.sqrt(0.15 * 0.85 * (3 + pieces) / of_size.sum())
            assert abs(rate - 0.15) < 5 * error


def test_random_pieces_are_drawn_from_the_whole_vocabulary(folders: dict[str, Path]) -> None:
    _, words = packed(folders["wordpiece"])
    ids = np.full(200_000, 50)
    config = MaskingConfig(unit="subword", share=0.5, masked=0.0, random=1.0)
    inputs, labels = mask_tokens(ids, np.arange(200_000), config, words, np.random.default_rng(0))
    drawn = np.bincount(inputs[labels != IGNORE], minlength=words.size)
    expected = 100_000 / words.size
    chi2 = ((drawn - expected) ** 2 / expected).sum()
    assert abs(chi2 - words.size) < 5 * np.sqrt(2 * words.size)


def test_settings_and_tokenizers_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="share: set it between 0 and 1"):
        MaskingConfig(share=1.5)
    with pytest.raises(ValueError, match="masked, random"):
        MaskingConfig(masked=0.8, random=0.3)
    with pytest.raises(UserError, match=r"it has no \[PAD\]"):
        Words(Tokenizer(models.BPE()))
    names = {name: number for number, name in enumerate(SPECIAL_TOKENS)}
    with pytest.raises(UserError, match="words of a WordLevel are unknown"):
        Words(Tokenizer(models.WordLevel(names, unk_token="[UNK]")))
    assert SPECIAL_TOKENS[4] == "[MASK]"
    assert torch.tensor(IGNORE) == torch.nn.CrossEntropyLoss().ignore_index
