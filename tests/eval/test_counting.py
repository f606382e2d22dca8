"""Counting questions: ranges by hand, what is left out, and the shipped tasks on small copies."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from eval import vqa
from eval.config import TaskConfig
from eval.counting import names_of
from eval.readers import Dataset, open_dataset
from eval.suite import run_suite
from eval.suite_files import read_task
from eval.vqa_config import CountConfig
from eval.vqa_items import NO_ANSWER, Parsed, parse, select_items
from tests.eval.tiny import fails, suite_config, write_model, write_table

TASKS = Path(__file__).parents[2] / "configs" / "eval" / "tasks"
SMEARS = [
    # As in the index of BCCD: what isn't there has no key.
    ({"RBC": 10, "WBC": 1}, "val"),
    ({"RBC": 11, "WBC": 1, "Platelets": 1}, "val"),
    ({"RBC": 27, "Platelets": 4}, "val"),
    ({"WBC": 1, "Platelets": 2}, "val"),
    ({"RBC": 13, "WBC": 1}, "train"),
]
MICROGRAPHS = [
    ("fluorescence_nuclei", 1, "test"),
    ("fluorescence_nuclei", 26, "test"),
    ("purple_stained_tissue", 56, "test"),
    ("fluorescence_embryo", 300, "test"),
    ("fluorescence_nuclei", 16, "train"),
]


def write_smears(root: Path) -> None:
    rows = [
        {
            "boxes": [
                {"label": k, "box": [0, 0, 9, 9]} for k, n in counts.items() for _ in "x" * n
            ],
            "counts": counts,
            "width": 48,
            "height": 40,
            "split": split,
        }
        for counts, split in SMEARS
    ]
    write_table(root / "blood_bccd", rows)


def write_micrographs(root: Path) -> None:
    rows = [{"label": kind, "n_nuclei": n, "split": split} for kind, n, split in MICROGRAPHS]
    write_table(root / "microscopy_dsb2018", rows)


def parsed(root: Path, name: str, **keys: object) -> tuple[TaskConfig, Dataset, Parsed]:
    task = read_task(TASKS / f"{name}.yaml")
    dataset = open_dataset(task.data, root)
    vqa.check(name, task, dataset)
    return task, dataset, parse(task, select_items(name, task, dataset), **keys)


def test_ranges_have_no_gap() -> None:
    assert names_of([0, 1, 3]) == ["0", "1 to 2", "3 or more"]
    assert names_of([1, 16, 27]) == ["1 to 15", "16 to 26", "27 or more"]


@pytest.mark.parametrize("choose", [True, False], ids=["by similarity", "for an answer head"])
def test_smears_are_asked_for_each_kind_of_cell(tmp_path: Path, choose: bool) -> None:
    write_smears(tmp_path)
    _, _, found = parsed(tmp_path, "small_blood_counts", choose=choose)
    assert [(q.id, q.kind, q.gold) for q in found.questions] == [
        ("000.png#1:red blood cells", "red blood cells", "1 to 10"),
        ("000.png#1:platelets", "platelets", "0"),
        ("001.png#1:red blood cells", "red blood cells", "11 to 13"),
        ("001.png#1:platelets", "platelets", "1"),
        ("002.png#1:red blood cells", "red blood cells", "14 or more"),
        ("002.png#1:platelets", "platelets", "2 or more"),
        ("003.png#1:platelets", "platelets", "2 or more"),
    ]
    # A smear without a box of a red cell wasn't counted: it is no smear without red cells.
    assert found.left_out == Counter({NO_ANSWER: 1})
    first = found.questions[0]
    assert first.closed
    assert first.statements[first.answer].endswith("few red blood cells, at most ten")


def test_micrographs_of_two_kinds_are_asked(tmp_path: Path) -> None:
    write_micrographs(tmp_path)
    _, _, found = parsed(tmp_path, "small_nuclei_counts")
    assert [q.gold for q in found.questions] == ["1 to 15", "16 to 26", "56 or more"]
    assert not found.left_out


def test_numbers_that_are_none_are_no_answers(tmp_path: Path) -> None:
    write_micrographs(tmp_path)
    path = tmp_path / "microscopy_dsb2018" / "index.jsonl"
    rows = [json.loads(line) for line in path.open()]
    for row, value in zip(rows, ("many", None, "9" * 5000), strict=False):
        row["n_nuclei"] = value
    rows.append({**rows[0], "image": "000.png", "n_nuclei": 30.0})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, _, found = parsed(tmp_path, "small_nuclei_counts")
    assert [q.gold for q in found.questions] == ["27 to 55"]
    assert found.left_out == Counter({NO_ANSWER: 3})


def test_counts_stand_beside_what_does_not_count(tmp_path: Path) -> None:
    """From the file to the record: options, chance and baselines are those of any question."""
    write_smears(tmp_path)
    config = suite_config(tmp_path, write_model(tmp_path / "model"), {})
    config.tasks["counts"] = read_task(TASKS / "small_blood_counts.yaml")
    run = run_suite(config, "suite.yaml", "command")
    assert run is not None
    record = run.tasks["counts"].record
    assert record["n"] == 7
    assert record["scores"]["accuracy"]["chance"] == pytest.approx(1 / 3)
    assert set(record["details"]["baselines"]) == {"majority", "no_image", "shuffled_images"}
    # Of red cells each range occurs once, of platelets the last one twice in four.
    assert record["details"]["baselines"]["majority"] == pytest.approx((1 + 2) / 7)
    assert set(record["details"]["by_question_type"]) == {"red blood cells", "platelets"}
    assert record["interval"]["clusters"] == 4


@pytest.mark.parametrize(
    ("column", "key", "message"),
    [
        ("count", "RBC", "it.vqa.counts.cells.column: no column 'count'; there are boxes, counts"),
        ("counts", "rbc", "it.vqa.counts.cells.key: no 'rbc' in column 'counts'; there are Pla"),
        ("width", "RBC", "no 'RBC' in column 'width'; there are no mappings"),
    ],
)
def test_a_misspelled_count_is_not_zero(
    tmp_path: Path, column: str, key: str, message: str
) -> None:
    write_smears(tmp_path)
    given = read_task(TASKS / "small_blood_counts.yaml")
    given.vqa.counts.clear()
    given.vqa.counts["cells"] = CountConfig(column=column, key=key, question="?", ranges=[0, 1])
    with fails(message):
        select_items("it", given, open_dataset(given.data, tmp_path))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ranges": [0]}, "ranges=[0]: write two numbers or more, ascending"),
        ({"ranges": [0, 3, 3]}, "ranges=[0, 3, 3]: write"),
        ({"ranges": [-1, 3]}, "ranges=[-1, 3]: write"),
        ({"ranges": [0, 1], "statements": ["none"]}, "1 statements for 2 ranges"),
    ],
)
def test_bad_ranges(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        CountConfig(column="n", question="?", **keys)
