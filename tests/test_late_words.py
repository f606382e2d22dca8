"""Captions with running text before them: everything else stays as it is."""

import json
from pathlib import Path

import pytest

from benchmarks.late_words import LateWordsConfig, late_words
from tests.shard_factory import make_shards
from vlp.config import UserError
from vlp.data.index import open_shards


def config(folder: Path, words: int, seed: int = 0) -> LateWordsConfig:
    paths = {name: str(folder / name) for name in ("shards", "out")}
    return LateWordsConfig(text=str(folder / "text.jsonl"), words=words, seed=seed, **paths)


def test_captions_come_after_words_of_the_text(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", (9, 8), val=(7,))
    text = [f"w{number}" for number in range(300)]
    (tmp_path / "text.jsonl").write_text(json.dumps({"id": "1", "text": " ".join(text)}))
    assert late_words(config(tmp_path, words=20)) == 24
    lines = (tmp_path / "out" / "table.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    counts = []
    for split in ("train", "val"):
        shards = open_shards(tmp_path / "shards", split)
        of_split = [row for row in rows if row["split"] == split]
        assert len(of_split) == len(shards)
        for number, row in enumerate(of_split):
            caption = shards.caption(number)
            before = row["caption"].removesuffix(caption).split()
            assert row["caption"].endswith(caption)
            assert not before or before == text[int(before[0][1:]) :][: len(before)]
            assert (tmp_path / "out" / row["image"]).read_bytes() == shards.read(number).image
            counts.append(len(before))
    assert min(counts) >= 0
    assert 10 < max(counts) <= 20
    assert len({row["article"] for row in rows}) < len(rows)  # several figures have one article

    late_words(config(tmp_path, words=20))
    assert (tmp_path / "out" / "table.jsonl").read_text().splitlines() == lines
    late_words(config(tmp_path, words=20, seed=1))
    assert (tmp_path / "out" / "table.jsonl").read_text().splitlines() != lines


def test_a_text_that_is_too_short_is_told(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", (3,))
    (tmp_path / "text.jsonl").write_text(json.dumps({"id": "1", "text": "only four words here"}))
    with pytest.raises(UserError, match="only 4 words"):
        late_words(config(tmp_path, words=20))
    with pytest.raises(ValueError, match="set shards, text, out"):
        LateWordsConfig(text="x")
