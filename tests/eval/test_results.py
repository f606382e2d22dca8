"""Results are whole or not there, are known again, and never taken for others."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from eval import suite
from eval.__main__ import main
from eval.results import FORMAT, NEEDED, VERSION, read_folder, read_items, read_record
from tests.eval.tiny import fails, suite_config, write_model, write_table

TABLE = {"reader": "table", "path": "set/index.jsonl", "split": ""}
TASKS = {
    "pairs": {"kind": "retrieval", "source": "made up", "data": TABLE, "ks": [1]},
    "number": {
        "kind": "classification",
        "source": "made up",
        "data": TABLE,
        "label": "parity",
        "classes": {"even": ["even"], "odd": ["odd"]},
        "templates": ["{c}"],
        "cluster": "patient",
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rows = [
        {"caption": f"number {i}", "parity": ["even", "odd"][i % 2], "patient": f"p{i // 2}"}
        for i in range(12)
    ]
    write_table(tmp_path / "set", rows)
    return tmp_path


def run(root: Path, model: Path, *arguments: str, tasks: dict = TASKS) -> dict:
    suite_config(root, model, tasks)
    main([str(root / "suite.yaml"), *arguments])
    return read_folder(root / "out")


def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tasks that are scored from now on."""
    names: list[str] = []
    real = suite.score

    def watched(config, tasks, datasets, embedder):
        for name, *rest in real(config, tasks, datasets, embedder):
            names.append(name)
            yield name, *rest

    monkeypatch.setattr(suite, "score", watched)
    return names


def test_a_record_says_all(root: Path, model: Path) -> None:
    found = run(root, model, "seed=3")
    assert sorted(path.name for path in (root / "out").iterdir() if path.is_file()) == [
        *("config.yaml", "number.items.parquet", "number.json"),
        *("pairs.items.parquet", "pairs.json", "report.html"),
    ]
    record = found["number"]
    assert set(NEEDED) <= set(record)
    assert (record["format"], record["version"]) == (FORMAT, VERSION)
    assert record["options"]["seed"] == 3
    assert record["config"]["templates"] == ["{c}"]
    assert record["details"]["prompts"] == {"even": ["even"], "odd": ["odd"]}
    for key in ("sha256", "labels_sha256", "images_sha256"):
        assert len(record["data"][key]) == 64
    for key in ("sha256", "tokenizer_sha256"):
        assert len(record["model"][key]) == 64
    items = read_items(root / "out", record)
    assert items is not None
    assert items.num_rows == record["items"]["rows"] == record["n"] == 12
    assert items["cluster"].to_pylist() == [f"p{i // 2}" for i in range(12)]
    assert np.mean(items["value"].to_pylist()) == record["scores"]["accuracy"]["value"]


def test_what_is_finished_is_not_scored_again(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(root, model)
    names = scored(monkeypatch)
    page = (root / "out" / "report.html").read_text()
    assert run(root, model, "batch_size=3", "workers=1") == first
    assert names == []
    assert (root / "out" / "report.html").read_text() == page, "the report is of all tasks"
    run(root, model, "overwrite=true")
    assert names == list(TASKS)


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"arguments": ["seed=1"]}, ["pairs", "number"]),
        ({"arguments": ["replicates=101"]}, ["pairs", "number"]),
        ({"arguments": ["tasks.pairs.ks=[2]"]}, ["pairs"]),
        ({"arguments": ["tasks.number.templates=['some {c}']"]}, ["number"]),
        ({"caption": "another"}, ["pairs", "number"]),
        ({"image": "003.png"}, ["pairs", "number"]),
        ({"weights": 1}, ["pairs", "number"]),
        ({"cut": "number.items.parquet"}, ["number"]),
        ({"cut": "pairs.json"}, ["pairs"]),
        ({"version": "pairs.json"}, ["pairs"]),
    ],
    ids=str,
)
def test_what_changed_is_scored_again(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch, change: dict, again: list[str]
) -> None:
    run(root, model)
    names = scored(monkeypatch)
    if "caption" in change:
        table = root / "set" / "index.jsonl"
        table.write_text(table.read_text().replace("number 3", change["caption"]))
    if "image" in change:
        os.utime(root / "set" / change["image"], ns=(1, 1))
    if "weights" in change:
        model = write_model(root / "model", seed=change["weights"])
    if "cut" in change:
        path = root / "out" / change["cut"]
        path.write_bytes(path.read_bytes()[:-9])
    if "version" in change:
        path = root / "out" / change["version"]
        path.write_text(json.dumps({**json.loads(path.read_text()), "version": 0}))
    found = run(root, model, *change.get("arguments", []))
    assert names == again
    assert list(found) == sorted(TASKS)


def test_the_same_files_elsewhere_have_the_same_hash(root: Path, model: Path) -> None:
    """Paths and times don't enter into the images' hash; their bytes do."""
    first = run(root, model)["pairs"]["data"]
    (root / "set").rename(root / "moved")
    moved = {"pairs": {**TASKS["pairs"], "data": {**TABLE, "path": "moved/index.jsonl"}}}
    second = run(root, model, tasks=moved)["pairs"]["data"]
    assert first["sha256"] != second["sha256"]
    assert first["images_sha256"] == second["images_sha256"]
    assert first["labels_sha256"] == second["labels_sha256"]
    (root / "moved" / "000.png").write_bytes((root / "moved" / "001.png").read_bytes())
    assert run(root, model, tasks=moved)["pairs"]["data"]["images_sha256"] != first["images_sha256"]


def test_names_of_tasks_are_names_of_files(root: Path, model: Path) -> None:
    for name in ("../out", "a/b", ".hidden", ""):
        config = suite_config(root, model, {name: TASKS["pairs"]})
        with fails(f"my.yaml: tasks.{name}: names a file; use A-Z a-z 0-9 _ -"):
            suite.run_suite(config, "my.yaml", "")


def test_damaged_results(root: Path, model: Path) -> None:
    record = run(root, model, "only=[pairs]")["pairs"]
    out = root / "out"
    with fails(f"{root / 'none'}: no such folder"):
        read_folder(root / "none")
    with fails(f"{root / 'set'}: no TASK.json in it"):
        read_folder(root / "set")
    for content, message in (
        ("{", "not readable as a result"),
        ("[" * 100_000, "not readable as a result"),
        ("[]", "not a result of `python -m eval`"),
        (json.dumps({**record, "version": VERSION + 1}), "score again"),
        (json.dumps({k: v for k, v in record.items() if k != "scores"}), "no 'scores' in it"),
        (json.dumps({**record, "task": "../pairs"}), "holds the task '../pairs'"),
    ):
        (out / "other.json").write_text(content)
        with fails(message):
            read_record(out / "other.json")
    (out / "other.json").write_text('{"format": "something else"}')
    assert list(read_folder(out)) == ["pairs"], "files of other programs are left alone"
    (out / "pairs.items.parquet").write_bytes(b"PAR1")
    with fails("pairs.items.parquet: not of the same run as pairs.json; score again"):
        read_items(out, record)
    (out / "pairs.items.parquet").unlink()
    with fails("pairs.items.parquet: No such file or directory; score again"):
        read_items(out, record)
