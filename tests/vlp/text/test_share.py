"""A share of a corpus: of training documents only, nested, the rest in no split."""

import json
from pathlib import Path

import pytest

from tests.vlp.text.test_vocabulary import TEXTS
from vlp.text.cleaning import CleaningConfig
from vlp.text.corpora import CorpusConfig
from vlp.text.documents import SplitConfig
from vlp.text.store import TextStore, prepare


def store_of(folder: Path, share: float) -> TextStore:
    """400 documents, two of each group, every fourth text a copy of an earlier one."""
    lines = [
        json.dumps({"id": f"{n // 2}#{n % 2}", "text": f"{TEXTS[n % len(TEXTS)]} {n - n % 4}"})
        for n in range(400)
    ]
    (folder / "c.jsonl").write_text("\n".join(lines))
    corpus = CorpusConfig(path=str(folder / "c.jsonl"), group_until="#")
    cleaning = CleaningConfig(duplicates="exact")
    return prepare(corpus, cleaning, SplitConfig(val_fraction=0.2), folder / "cache", share=share)


def ids(store: TextStore, split: str) -> list[str]:
    return [document.id for document in store.documents(store.numbers(split))]


def test_shares_are_nested_and_hold_out_the_same(tmp_path: Path) -> None:
    stores = [store_of(tmp_path, share) for share in (0.1, 0.3, 1.0)]
    train = [set(ids(store, "train")) for store in stores]
    assert train[0] < train[1] < train[2]
    for store, share in zip(stores, (0.1, 0.3, 1.0), strict=True):
        assert len(ids(store, "train")) / len(train[2]) == pytest.approx(share, abs=0.06)
        assert ids(store, "val") == ids(stores[2], "val")
        assert store.meta["documents"].get("unused", 0) == len(train[2]) - len(ids(store, "train"))
        assert store.bytes() == sum(
            len(section.text.encode())
            for document in store.documents(store.numbers("train"))
            for section in document.sections
        )


def test_a_group_is_used_or_not_as_a_whole(tmp_path: Path) -> None:
    used = {name.partition("#")[0] for name in ids(store_of(tmp_path, 0.3), "train")}
    unused = {name.partition("#")[0] for name in ids(store_of(tmp_path, 0.3), "unused")}
    assert used
    assert unused
    assert not used & unused
