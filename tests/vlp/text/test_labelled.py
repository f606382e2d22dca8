"""Labelled sentences: what is read, what is refused, and the guess that knows no context."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.real_data import real_data
from vlp.config import UserError
from vlp.text.entities import count_entities, micro_f1
from vlp.text.labelled import Labelled, labels_of, majority, read_labelled

ROW = {"text": "the cancer", "tags": "O B-D", "split": "train"}


def write(folder: Path, *rows: Any) -> Path:
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_splits_and_fields(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        ROW,
        ROW | {"text": " of\u00a0it \n", "tags": ["O", "O"], "split": "dev"},
        ROW | {"kind": "x"},
        ROW | {"split": "test", "text": "\ud83d lung"},  # half a surrogate pair
    )
    found = read_labelled(file, "entities", ("text", "tags"), {})
    assert found["train"] == [Labelled("the cancer", ("O", "B-D"))] * 2
    assert found["val"] == [Labelled("of it", ("O", "O"))]
    assert found["test"] == [Labelled("? lung", ("O", "B-D"))]
    with pytest.raises(UserError, match=r"no sentences of split 'test' only.kind=x"):
        read_labelled(file, "entities", ("text", "tags"), {"kind": "x"})


def test_classes(tmp_path: Path) -> None:
    rows = [{"body": "a b", "topic": t, "split": s} for t in "xy" for s in ("train", "test")]
    found = read_labelled(write(tmp_path, *rows), "sentences", ("body", "topic"), {})
    assert found["test"] == [Labelled("a b", ("x",)), Labelled("a b", ("y",))]
    assert labels_of(found["train"]) == ["x", "y"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW | {"tags": "O"}, "1 tags for 2 words"),
        (ROW | {"tags": "O D"}, "field 'tags' holds no IOB tags"),
        (ROW | {"tags": ["O", 1]}, "field 'tags' holds no IOB tags"),
        (ROW | {"tags": None}, "field 'tags' holds no IOB tags"),
        (ROW | {"text": "  "}, "no text in field 'text'"),
        (ROW | {"text": 3}, "no text in field 'text'"),
        ({"text": "a", "tags": "O"}, "no field 'split'"),
        (ROW | {"split": "fold1"}, "split 'fold1' is none of train, val, test"),
        ([1], "not a JSON object"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"data.jsonl:2: .*{message}"):
        read_labelled(write(tmp_path, ROW, row), "entities", ("text", "tags"), {})


def test_no_json_and_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"data.jsonl:1: not JSON"):
        read_labelled(file, "entities", ("text", "tags"), {})
    monkeypatch.setattr("vlp.text.labelled.MAX_LINE", 1000)
    with pytest.raises(UserError, match="longer than 1,000 bytes"):
        read_labelled(file, "entities", ("text", "tags"), {})
    with pytest.raises(UserError, match=r"missing.jsonl: can't be read: No such file"):
        read_labelled(tmp_path / "missing.jsonl", "entities", ("text", "tags"), {})


def test_texts_are_no_classes(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": str(n), "split": "train"} for n in range(600)]
    with pytest.raises(UserError, match="over 500 labels; is 'label' one"):
        read_labelled(write(tmp_path, *rows), "sentences", ("text", "label"), {})
    with pytest.raises(UserError, match="field 'label' is no class"):
        read_labelled(write(tmp_path, rows[0] | {"label": 1}), "sentences", ("text", "label"), {})


def test_majority() -> None:
    train = [
        Labelled("lung cancer", ("O", "B-D")),
        Labelled("cancer cancer", ("B-D", "O")),
        Labelled("lung", ("B-D",)),  # a tie with O, which was met first
    ]
    guessed = majority(
        train, [Labelled("lung cancer", ("O", "O")), Labelled("x", ("O",))], "entities"
    )
    assert guessed == [("O", "B-D"), ("O",)]
    classes = [Labelled("a", ("x",)), Labelled("b", ("y",)), Labelled("c", ("y",))]
    assert majority(classes, classes, "sentences") == [("y",)] * 3


def test_real_sentences() -> None:
    """The official splits; each word's most frequent tag finds some of the entities, not most."""
    file = real_data("text_en/ner_sentences.jsonl")
    found = read_labelled(file, "entities", ("text", "tags"), {"dataset": "BC5CDR-IOB"})
    assert {split: len(of) for split, of in found.items()} == {
        "train": 4547,
        "val": 4564,
        "test": 4782,
    }
    guessed = majority(found["train"], found["test"], "entities")
    true = [one.labels for one in found["test"]]
    reached = micro_f1(count_entities(true, guessed, ["Chemical", "Disease"]).sum(0))
    assert 0.4 < reached < 0.8
