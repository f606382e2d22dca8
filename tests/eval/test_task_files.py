"""Tasks are files: suites include them, mistakes name file and key, and what we ship is right."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from eval.config import EvalConfig, chosen_tasks
from eval.suite_files import load_suite
from tests.eval.tiny import fails
from vlp.config import load_config, save_config

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "configs" / "eval"
SUITES = [path for path in sorted(SHIPPED.glob("*.yaml")) if "include:" in path.read_text()]
TASK = {
    "kind": "classification",
    "source": "made up",
    "data": {"reader": "table", "path": "set/index.jsonl"},
    "classes": {"mass": ["mass", "tumour"], "none": ["nothing"]},
    "templates": ["an image of {c}"],
}


def write_suite(folder: Path, suite: dict, **tasks: dict) -> Path:
    (folder / "tasks").mkdir(exist_ok=True)
    for name, task in tasks.items():
        OmegaConf.save(OmegaConf.create(task), folder / "tasks" / f"{name}.yaml")
    OmegaConf.save(OmegaConf.create({"name": "s", **suite}), folder / "s.yaml")
    return folder / "s.yaml"


def test_included_tasks_are_ordinary_ones(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, {"include": ["one", "two"]}, one=TASK, two=TASK)
    arguments = [str(suite), "model=x", "tasks.two.data.path=elsewhere.csv", "only=[two]"]
    config = load_suite(arguments)
    assert list(config.tasks) == ["one", "two"]
    assert config.tasks["two"].data.path == "elsewhere.csv", "the command line wins"
    assert list(chosen_tasks(config, "s")) == ["two"]
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(EvalConfig, [str(tmp_path / "saved.yaml")]) == config


def test_a_suite_renames_and_changes_what_it_includes(tmp_path: Path) -> None:
    tasks = {"own": {"templates": ["a {c}"], "classes": {"mass": ["lump"]}}, "more": TASK}
    suite = write_suite(tmp_path, {"include": {"own": "one"}, "tasks": tasks}, one=TASK)
    config = load_suite([str(suite), "model=x"])
    assert list(config.tasks) == ["own", "more"]
    assert config.tasks["own"].templates == ["a {c}"]
    assert config.tasks["own"].classes == {"mass": ["lump"], "none": ["nothing"]}
    assert config.tasks["more"].templates == TASK["templates"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({**TASK, "clases": {}}, "one.yaml: unknown key 'clases'; did you mean 'classes'?"),
        ({**TASK, "kind": "clasification"}, "one.yaml: kind: "),
        ({k: v for k, v in TASK.items() if k != "source"}, "one.yaml: source is missing"),
        (
            {**TASK, "templates": ["an image"]},
            "one.yaml: templates: 'an image': no placeholder",
        ),
        ({**TASK, "data": {"reader": "tables"}}, "one.yaml: data.reader: "),
        ({**TASK, "data": {"reader": "table"}}, "one.yaml: data.path is missing"),
    ],
)
def test_a_broken_task_names_its_file(tmp_path: Path, task: dict, message: str) -> None:
    suite = write_suite(tmp_path, {"include": ["one"]}, one=task)
    with fails(f"{tmp_path}/tasks/{message}"):
        load_suite([str(suite), "model=x"])


@pytest.mark.parametrize(
    ("include", "message"),
    [
        (["two"], "s.yaml: include: there is no "),
        (["../s"], "s.yaml: include: '../s' is not the name of a file in "),
        ("one", "s.yaml: include: write a list of names of files in tasks/"),
    ],
)
def test_bad_includes(tmp_path: Path, include: object, message: str) -> None:
    suite = write_suite(tmp_path, {"include": include}, one=TASK)
    with fails(message):
        load_suite([str(suite), "model=x"])


# --- what we ship ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_shipped_suites_are_right(path: Path) -> None:
    config = load_suite([str(path), "model=x"])
    assert config.name == path.stem
    tasks = chosen_tasks(config, str(path))
    for name, task in tasks.items():
        assert task.origin.licence or task.origin.page or task.origin.get, f"{name}: no origin"
        assert set(task.origin.md5) <= set(task.origin.files), f"{name}: MD5 of no file"


def test_every_task_is_in_a_suite() -> None:
    included = {}
    for path in SUITES:
        names = OmegaConf.to_container(OmegaConf.load(path))["include"]
        included[path.stem] = set(names.values() if isinstance(names, dict) else names)
    files = {path.stem for path in SHIPPED.glob("tasks/*.yaml")}
    assert included["all"] | included["phantom"] | included["real_small"] == files
    topics = set().union(*(names for suite, names in included.items() if suite != "all"))
    assert topics | {"pcam_hdf5"} == files, "a task that only the suite `all` has"


def test_openpmc_has_its_sets_and_prompts() -> None:
    tasks = load_suite([str(SHIPPED / "openpmc.yaml"), "model=x"]).tasks
    zero_shot = [name for name, task in tasks.items() if task.kind == "classification"]
    assert len(zero_shot) == 19
    assert len(tasks) == 22
    for name in zero_shot:
        assert tasks[name].templates[0] == "a histopathology slide showing {c}"
    assert tasks["pcam"].classes["true"] == ["lymph node containing metastatic tumor tissue"]
    assert load_suite([str(SHIPPED / "pathology.yaml"), "model=x"]).tasks["pcam"].classes[
        "true"
    ] == ["lymph node metastasis"], "elsewhere BiomedCLIP's"
