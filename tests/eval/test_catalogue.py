"""`list` says what there is, `check` what is wrong with it."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from eval import catalogue, checking
from eval.__main__ import COMMANDS
from eval.__main__ import main as run_eval
from eval.catalogue import all_tasks, chance, described, has_data, main, metric, named, size
from eval.suite import prepare
from eval.suite_files import load_suite
from tests.eval.layouts import LAYOUTS
from tests.eval.tiny import fails, write_table

SHIPPED = Path(__file__).parents[2] / "configs" / "eval"
TASK = {
    "kind": "classification",
    "source": "made up",
    "data": {"reader": "table", "path": "set/index.jsonl", "split": ""},
    "classes": {"mass": ["mass"], "none": ["nothing"]},
    "templates": ["an image of {c}"],
    "expect": {"images": 3, "label=mass": 2},
    "origin": {"get": "Ask them."},
}
TASKS = all_tasks()
ROWS = [{"label": "mass"}, {"label": "none"}, {"label": "mass"}]


def suite(tmp_path: Path, **tasks: dict) -> str:
    OmegaConf.save(OmegaConf.create({"name": "s", "tasks": tasks}), tmp_path / "s.yaml")
    return str(tmp_path / "s.yaml")


def test_list_knows_which_data_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("nct_crc", "slake", "pcam"):
        LAYOUTS[name](tmp_path)
    (tmp_path / "PatchCamelyon/data/test-00000-of-00002-bb04e6313f58efa0.parquet").unlink()
    monkeypatch.setattr(catalogue, "suite_tasks", lambda _: TASKS)
    main([str(SHIPPED / "all.yaml"), f"data_root={tmp_path}"])
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert "6,333 images" in lines["nct_crc"]
    assert "12.5%" in lines["nct_crc"]
    assert "there" in lines["nct_crc"]
    assert "there" in lines["pcam"]
    assert "fetch" in lines["bach"]
    assert "by hand" in lines["tcga_til"]
    assert "agreement" in lines["quilt_vqa"]
    assert "1,061 questions" in lines["slake"]


def test_every_task_can_be_described(tmp_path: Path) -> None:
    assert set(LAYOUTS) <= set(TASKS)
    for name, task in TASKS.items():
        assert not has_data(task.data, tmp_path), name
        assert size(task)
        assert metric(task)
        assert chance(task)
        assert task.source in described(name, task, tmp_path)
    text = described("pcam", TASKS["pcam"], tmp_path)
    assert "class true: lymph node metastasis\nprompt: this is an image of {c}" in text
    assert f"fetch: python -m eval fetch task=pcam data_root={tmp_path}" in text
    told = {name: chance(TASKS[name]) for name in ("slake", "pmc_vqa", "small_nuclei_counts")}
    assert told == {"slake": "50.0%", "pmc_vqa": "1/options", "small_nuclei_counts": "25.0%"}
    with fails("task=pcan: no such task; close names: pcam, "):
        named(TASKS, "pcan")


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_data_is_seen_where_a_layout_was_written(tmp_path: Path, name: str) -> None:
    if name == "pcam_hdf5":
        pytest.importorskip("h5py")
    LAYOUTS[name](tmp_path)
    assert has_data(TASKS[name].data, tmp_path)


def test_check_says_ready(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_table(tmp_path / "set", ROWS)
    checking.main([suite(tmp_path, one=TASK), f"data_root={tmp_path}"])
    assert capsys.readouterr().out == "ready     one: 3 images, 3 rows\n"


def test_check_tells_all_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_table(tmp_path / "set", ROWS)
    (tmp_path / "set/001.png").write_bytes(b"no image")
    tasks = {
        "broken": TASK,
        "counts": {**TASK, "expect": {"images": 4, "label=none": 7}},
        "labels": {**TASK, "classes": {"mass": ["mass"], "cyst": ["cyst"]}},
        "absent": {**TASK, "data": {"reader": "table", "path": "other.csv"}},
        "kept": {**TASK, "where": {"label": ["mass", "none"]}, "expect": {"rows": 3}},
    }
    with fails("s.yaml: 5 of 5 tasks are not ready"):
        checking.main([suite(tmp_path, **tasks), f"data_root={tmp_path}"])
    said = capsys.readouterr().out
    assert "image '001.png' can't be read: not an image" in said
    assert "images: found 3, expected 4" in said
    assert "label=none: found 1, expected 7" in said
    assert "the data has the label" in said or "no row has the label 'cyst'" in said
    assert f"{tmp_path}/other.csv isn't there; Ask them." in said
    (tmp_path / "set/002.png").unlink()
    with fails("1 of 1 tasks are not ready"):
        checking.main([suite(tmp_path, one=TASK), f"data_root={tmp_path}"])
    assert "1 images aren't there; the first is " in capsys.readouterr().out


def test_shipped_counts_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A small copy has the real layout, but not the real counts."""
    LAYOUTS["nct_crc"](tmp_path)
    LAYOUTS["ubench_fine"](tmp_path)
    for name, said in (("pathology", "nct_crc"), ("ubench", "ubench_fine")):
        with fails("1 of 1 tasks are not ready"):
            checking.main(
                [str(SHIPPED / f"{name}.yaml"), f"data_root={tmp_path}", f"only=[{said}]"]
            )
    said = capsys.readouterr().out
    assert "images: found 8, expected 6,333" in said, "background is left out"
    assert "images: found 3, expected 17,315" in said


def test_tasks_without_data_can_be_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_table(tmp_path / "set", ROWS)
    absent = {**TASK, "data": {"reader": "table", "path": "other.csv"}}
    file = suite(tmp_path, one=TASK, two=absent)
    with fails("tasks.two.data: "):
        prepare(load_suite([file, "model=x", f"data_root={tmp_path}"]), file)
    skip = [file, "model=x", f"data_root={tmp_path}", "missing=skip"]
    tasks, _ = prepare(load_suite(skip), file)
    assert list(tasks) == ["one"]
    assert "left out, since their data isn't in " in capsys.readouterr().out
    with fails("s.yaml: no task's data is in data_root="):
        prepare(load_suite([*skip, "only=[two]"]), file)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_table(tmp_path / "set", ROWS)
    run_eval(["list", suite(tmp_path, one=TASK), f"data_root={tmp_path}", "task=one"])
    assert "get: Ask them." in capsys.readouterr().out
    assert {"list", "check", "fetch"} <= set(COMMANDS)
    with fails("lst: neither a suite's file nor a command; commands are check, "):
        run_eval(["lst"])
    assert catalogue.TASKS == SHIPPED / "tasks"
