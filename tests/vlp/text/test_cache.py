"""Token caches: the same ids as tokenising anew, sequences and rows that keep documents apart."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vlp.text.test_vocabulary import KINDS, TEXTS, config_of
from vlp.config import UserError
from vlp.data.text import CaptionTokenizer, PackedText
from vlp.text import cache as cache_module
from vlp.text.cache import (
    PackedCorpora,
    TokenStore,
    pack,
    row_starts,
    tokenize,
    unigram_bits_per_character,
)
from vlp.text.cleaning import CleaningConfig
from vlp.text.corpora import CorpusConfig
from vlp.text.documents import SplitConfig
from vlp.text.mixture import MixtureConfig, StageConfig
from vlp.text.store import TextStore, prepare
from vlp.text.vocabulary import train_vocabulary

PLAIN = CleaningConfig(ill_formed=False, duplicates="none")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    train_vocabulary(TEXTS, config_of(request.param, size=330), folder)
    return folder


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wordpiece")
    train_vocabulary(TEXTS, config_of("wordpiece", size=330), folder)
    return folder


def make_store(folder: Path, name: str = "c", documents: int = 24) -> TextStore:
    """Documents of 1 to 6 texts; every second has a section `b` beside `a`."""
    lines = []
    for number in range(documents):
        texts = [TEXTS[(number + k) % len(TEXTS)] for k in range(1 + number % 6)]
        record = {"id": f"{name}{number}", "a": "\n".join(texts)}
        lines.append(json.dumps(record | ({"b": TEXTS[0]} if number % 2 else {})))
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    corpus = CorpusConfig(path=str(folder / f"{name}.jsonl"), fields=("a", "b"))
    return prepare(corpus, PLAIN, SplitConfig(val_fraction=0.25), folder / "cache")


def sequences(text: PackedText) -> list[list[int]]:
    return [row.tolist() for row in torch.split(text.input_ids, text.cu_seqlens.diff().tolist())]


def test_ids_are_those_of_tokenising_anew(tmp_path: Path, tokenizer: Path) -> None:
    store = make_store(tmp_path)
    lines: list[str] = []
    tokens = tokenize(store, "train", tokenizer, tmp_path / "cache", lines.append)
    plain = CaptionTokenizer(tokenizer, 10_000)
    documents = list(store.documents(store.numbers("train")))
    assert tokens.ids.dtype == np.uint16
    assert len(tokens.documents) - 1 == len(documents) == tokens.meta["documents"]
    section = characters = 0
    for number, document in enumerate(documents):
        assert tokens.documents[number] == tokens.sections[section]
        for name, text in document.sections:
            start, end = tokens.sections[section : section + 2]
            assert tokens.ids[start:end].tolist() == plain([text]).input_ids[1:-1].tolist()
            assert tokens.meta["sections"][tokens.section_names[section]] == name
            characters += len(" ".join(text.split()))
            section += 1
    assert tokens.sections[-1] == tokens.documents[-1] == len(tokens.ids) == tokens.meta["tokens"]
    assert tokens.meta["characters"] == characters
    tokenize(store, "train", tokenizer, tmp_path / "cache", lines.append)
    assert len(lines) == 1  # found in the cache
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_sequences_are_the_documents_in_order(tmp_path: Path, wordpiece: Path) -> None:
    tokens = tokenize(make_store(tmp_path), "train", wordpiece, tmp_path / "cache")
    for length in (3, 16, 40, 4000):
        spans = tokens.sequences(length)
        assert (spans[:, 1] - spans[:, 0] <= length - 2).all()
        assert (spans[:, 1] > spans[:, 0]).all()
        # Side by side they are all tokens, and every document begins a sequence.
        assert spans[0, 0] == 0
        assert np.array_equal(spans[1:, 0], spans[:-1, 1])
        assert spans[-1, 1] == len(tokens.ids)
        assert set(tokens.documents[:-1].tolist()) <= set(spans[:, 0].tolist())
        rows = row_starts(spans, length)
        costs = [int((spans[a:b, 1] - spans[a:b, 0] + 2).sum()) for a, b in pairwise(rows)]
        assert max(costs) <= length
        assert rows[-1] == len(spans)
        # Greedy: no row could have taken the next sequence, too.
        first = (spans[:, 1] - spans[:, 0] + 2)[rows[1:-1]]
        assert (np.array(costs[:-1]) + first > length).all()


def make_stream(
    folder: Path, tokenizer: Path, length: int = 40, stages: list[StageConfig] | None = None
) -> PackedCorpora:
    stores = {name: make_store(folder, name, n) for name, n in (("large", 40), ("small", 8))}
    tokens = {
        name: tokenize(store, "train", tokenizer, folder / "cache")
        for name, store in stores.items()
    }
    weights = {"large": "auto", "small": "auto"}
    mixture = MixtureConfig(stages=stages or [StageConfig(weights=weights)])
    sizes = {name: store.bytes() for name, store in stores.items()}
    return PackedCorpora(tokens, sizes, mixture, CaptionTokenizer(tokenizer, length), batch=4)


def test_batches_hold_every_sequence_and_never_mix_documents(
    tmp_path: Path, wordpiece: Path
) -> None:
    stream = make_stream(tmp_path, wordpiece)
    epoch = len(stream.sampler.epoch(0)[0])
    packed = stream.batch(range(epoch))
    assert packed.max_length == 40
    assert packed.input_ids.dtype == torch.int64
    assert packed.cu_seqlens.dtype == torch.int32
    found = sequences(packed)
    assert all(row[0] == 2 and row[-1] == 3 and 2 < len(row) <= 40 for row in found)
    assert not any({2, 3} & set(row[1:-1]) for row in found)
    # Each sequence of the large corpus once, those of the small as often as it is amplified.
    amplified = round(stream.sampler.orders[0].sources["small"].weight)
    assert amplified >= 2
    want: list[list[int]] = []
    for ids, cut, times in zip(stream.ids, stream.cuts[40], (1, amplified), strict=True):
        want += [[2, *ids[a:b].tolist(), 3] for a, b in cut.spans.tolist()] * times
    assert sorted(found) == sorted(want)


def test_a_stage_of_shorter_sequences(tmp_path: Path, wordpiece: Path) -> None:
    """The same text in sequences of 11 tokens, as many of them in a row as it has room for."""
    weights = {"large": "1", "small": "1"}
    stages = [StageConfig(weights=weights, length=11, steps=3), StageConfig(weights=weights)]
    stream = make_stream(tmp_path, wordpiece, stages=stages)
    rows = stream.read(range(16))
    lengths = rows.text.cu_seqlens.diff().tolist()
    of_rows = [lengths[start:end] for start, end in pairwise(rows.starts)]
    assert {max(row) for row in of_rows[:12]} == {11}
    assert max(max(row) for row in of_rows[12:]) > 11
    assert all(sum(row) <= 40 for row in of_rows)
    assert ["@11/" in name for name in rows.names] == [True] * 12 + [False] * 4
    epoch = [len(stream.sampler.epoch(stage)[0]) for stage in (0, 1)]
    assert epoch[0] >= epoch[1]  # more [CLS] and [SEP]
    stages[0] = StageConfig(weights=weights, length=11, steps=epoch[0] // 4 + 1)
    stream = make_stream(tmp_path, wordpiece, stages=stages)
    want = [
        [2, *ids[a:b].tolist(), 3]
        for ids, cut in zip(stream.ids, stream.cuts[11], strict=True)
        for a, b in cut.spans.tolist()
    ]
    assert sorted(sequences(stream.batch(range(epoch[0])))) == sorted(want)


def test_a_batch_is_a_function_of_its_positions(tmp_path: Path, wordpiece: Path) -> None:
    whole = make_stream(tmp_path, wordpiece).batch(range(8, 16))
    stream = make_stream(tmp_path, wordpiece)  # resumed: from the cache
    parts = [stream.batch(range(start, start + 2)) for start in range(8, 16, 2)]
    assert torch.equal(whole.input_ids, torch.cat([part.input_ids for part in parts]))
    assert [row for part in parts for row in sequences(part)] == sequences(whole)


def test_pairs_of_sections(tmp_path: Path, wordpiece: Path) -> None:
    store = make_store(tmp_path)
    tokens = tokenize(store, "train", wordpiece, tmp_path / "cache")
    first, second = tokens.section_pairs("a", "b")
    both = [d for d in store.documents(store.numbers("train")) if len(d.sections) == 2]
    assert len(first) == len(second) == len(both) > 3
    plain = CaptionTokenizer(wordpiece, 20)
    for spans, place in ((first, 0), (second, 1)):
        packed = pack(tokens.ids, spans, 20, (2, 3))
        want = plain([document.sections[place].text for document in both])
        assert torch.equal(packed.input_ids, want.input_ids)
        assert torch.equal(packed.cu_seqlens, want.cu_seqlens)
    with pytest.raises(UserError, match="none is called 'findings'; there are a, b"):
        tokens.section_pairs("findings", "b")


def test_unigram_floor(tmp_path: Path, wordpiece: Path) -> None:
    store = make_store(tmp_path)
    train, held_out = (
        tokenize(store, split, wordpiece, tmp_path / "cache") for split in ("train", "val")
    )
    counts = np.ones(train.meta["vocabulary"])
    np.add.at(counts, train.ids, 1)
    want = -np.log2(counts[held_out.ids] / counts.sum()).sum() / held_out.meta["characters"]
    assert unigram_bits_per_character(train, held_out) == pytest.approx(want, rel=1e-12)


def test_interrupted_or_damaged_caches(
    tmp_path: Path, wordpiece: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_append", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tokenize(store, "train", wordpiece, tmp_path / "tokens")
    assert list((tmp_path / "tokens").iterdir()) == []
    assert len(tokenize(store, "train", wordpiece, tmp_path / "tokens").ids)
    (folder,) = (tmp_path / "tokens").iterdir()
    with (folder / "tokens.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"tokens\.bin: not as long as starts\.npz says; remove"):
        tokenize(store, "train", wordpiece, tmp_path / "tokens")
    with pytest.raises(UserError, match="no such tokenizer"):
        tokenize(store, "train", tmp_path / "none", tmp_path / "tokens")


def test_an_empty_split_is_an_empty_store(tmp_path: Path, wordpiece: Path) -> None:
    tokens = tokenize(make_store(tmp_path), "test", wordpiece, tmp_path / "cache")
    assert isinstance(tokens, TokenStore)
    assert len(tokens.ids) == len(tokens.sequences(16)) == 0
