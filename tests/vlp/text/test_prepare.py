"""What a run reads, made once: vocabularies from the cache, and who makes them."""

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tokenizers import Tokenizer, models

from tests.vlp.text.tiny import make_home, settings
from tests.vlp.tiny import make_tokenizer
from vlp import distributed
from vlp.config import UserError
from vlp.data.text import CaptionTokenizer
from vlp.distributed import World
from vlp.text.prepare import inherited_vocabulary, main_first, open_run, trained_corpora

WORLD = World(0, 1, torch.device("cpu"), dist.HashStore())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("prepare"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with config.json and a tokenizer, as far as vocabularies go a BERT."""
    make_tokenizer(tmp_path / "base")
    (tmp_path / "base/config.json").write_text("{}")
    return tmp_path / "base"


def open_quietly(home: Path, *overrides: str) -> list[str]:
    """The lines that are told."""
    lines: list[str] = []
    open_run(settings(home, *overrides), WORLD, lines.append)
    return lines


def test_what_a_vocabulary_depends_on(home: Path) -> None:
    """Another mixture or kind makes a new one; lengths, the seed and more corpora that are only
    evaluated on do not."""
    only_a = "mixture.stages=[{weights: {a: 1}}]"
    for change in ([], [only_a], ["own_vocabulary.lowercase=false"]):
        assert any("training a vocabulary" in line for line in open_quietly(home, *change))
    assert open_quietly(home, "model.length=16", "seed=4", "train.steps=3") == []
    assert open_quietly(home, only_a, "corpora.b.cleaning.unicode=true") == []
    staged = "mixture.stages=[{weights: {a: 1}, length: 9, steps: 2}, {weights: {a: 1}}]"
    assert open_quietly(home, staged) == []


def test_a_vocabulary_that_two_processes_make(home: Path, tmp_path: Path) -> None:
    """The first one stays."""
    config = settings(home, f"cache={tmp_path}")
    first = open_run(config, WORLD, lambda line: None).tokenizer.folder
    again = tmp_path / "kept"
    shutil.move(first, again)

    def meanwhile(line: str) -> None:
        if "training a vocabulary" in line:
            shutil.copytree(again, first)

    assert open_run(config, WORLD, meanwhile).tokenizer.folder == first
    assert json.loads((first / "meta.json").read_text())["vocabulary"]["size"] == 300
    assert not list(tmp_path.glob("*.tmp"))


def test_inherited_from_tokenizer_json_or_vocab_txt(base: Path, tmp_path: Path) -> None:
    assert inherited_vocabulary(str(base), tmp_path) == base
    tokens = CaptionTokenizer(base, 8).tokenizer.get_vocab()
    (base / "tokenizer.json").unlink()
    (base / "vocab.txt").write_text("\n".join(sorted(tokens, key=lambda token: tokens[token])))
    written = inherited_vocabulary(str(base), tmp_path)
    assert CaptionTokenizer(written, 8).tokenizer.get_vocab() == tokens
    assert inherited_vocabulary(str(base), tmp_path) == written
    (base / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"base=.*neither tokenizer\.json nor vocab\.txt"):
        inherited_vocabulary(str(base), tmp_path)


def test_a_tokenizer_of_another_kind(home: Path, base: Path) -> None:
    """RoBERTa's special tokens have other names."""
    model = models.BPE(vocab={"<s>": 0, "</s>": 1, "<mask>": 2, "a": 3}, merges=[])
    Tokenizer(model).save(str(base / "tokenizer.json"))
    with pytest.raises(UserError, match=r"no \[PAD\], which masking needs"):
        open_quietly(home, "vocabulary=inherited", f"base={base}")


def test_corpora_of_the_stages(home: Path) -> None:
    def of(stages: str) -> list[str]:
        return trained_corpora(settings(home, f"mixture.stages={stages}"))

    assert of("[{}]") == ["a", "b"]
    assert of("[{weights: {b: auto}}]") == ["b"]
    assert of("[{weights: {b: 1}, steps: 2}, {weights: {a: 1}}]") == ["a", "b"]


@pytest.mark.parametrize("fails", [False, True])
def test_others_wait_for_rank_0(fails: bool) -> None:
    store, order = dist.HashStore(), list[str]()
    ranks = [dataclasses.replace(WORLD, rank=rank, size=2, store=store) for rank in (0, 1)]
    told: list[UserError] = []

    def second() -> None:
        try:
            main_first(ranks[1], "cake", lambda: order.append("second"))
        except UserError as error:
            told.append(error)

    def first() -> None:
        order.append("first")
        if fails:
            raise UserError("no flour")

    thread = threading.Thread(target=second)
    thread.start()
    if fails:
        with pytest.raises(UserError, match="no flour"):
            main_first(ranks[0], "cake", first)
    else:
        main_first(ranks[0], "cake", first)
    thread.join(20)
    assert not thread.is_alive()
    assert order == (["first"] if fails else ["first", "second"])
    assert [str(error) for error in told] == (
        ["rank 0 could not make the cake: its own output says why"] if fails else []
    )
    assert distributed.size() == 1
