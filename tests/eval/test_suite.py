"""The program from end to end: results, report, and what it says of a wrong suite."""

import asyncio
import json
import re
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from data_prep.phantom.subjects import SUBJECTS
from eval import report
from eval.__main__ import main
from eval.classification import label_of
from eval.config import EvalConfig, chosen_tasks
from eval.in_training import SuiteScorer
from eval.readers import open_dataset
from eval.results import read_folder
from eval.suite import KINDS, default_out, run_suite
from eval.suite_files import load_suite
from eval.tasks import keep
from eval.vqa import OPEN
from tests.browser import page
from tests.eval.tiny import fails, suite_config, write_model, write_table
from tests.real_data import real_data
from tests.vlp.test_trainer import wandb_records
from vlp.config import load_config

ROOT = Path(__file__).parents[2]
HOSTILE = '<script>alert("x")</script> & <img src="http://example.org/x.png">'
TABLE = {"reader": "table", "path": "set/index.jsonl"}
TASKS = {
    "kinds": {
        "kind": "classification",
        "source": "made up",
        "data": TABLE,
        "label": "finding",
        "classes": {"mass": ["mass", "tumour"], "none": ["nothing"]},
        "templates": ["an image of {c}"],
        "cluster": "patient",
        "notes": ["a known trap"],
    },
    "pairs": {"kind": "retrieval", "source": "made up", "data": TABLE, "ks": [1, 2]},
    "questions": {
        "kind": "vqa",
        "source": "made up",
        "data": TABLE,
        "fixed_options": ["yes", "no"],
        "cluster": "image",
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("run") / "model")
    rows = [
        {"step": s, "train/loss": 4 / (s + 1), "val/image_to_text_recall@1": s / 100}
        for s in range(9)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "train/l'
    (folder.parent / "metrics.jsonl").write_text(lines)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """20 images in a table, the last of them broken."""
    rows = [
        {
            "split": "test",
            "finding": "mass" if i % 3 else "none",
            "caption": f"figure number {i}, {HOSTILE}",
            "question": f"Is it number {i}?",
            "answer": ["yes", "no", "maybe"][i % 3],
            "question_type": ["count", "presence"][i % 2],
            "patient": f"p{i // 2}",
        }
        for i in range(20)
    ]
    write_table(tmp_path / "set", rows)
    (tmp_path / "set" / "019.png").write_bytes(b"not an image")
    return tmp_path


def run_program(root: Path, model: Path, *arguments: str) -> dict:
    suite_config(root, model, TASKS)
    main([str(root / "suite.yaml"), *arguments])
    return read_folder(root / "out")


def test_results(root: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_program(root, model)
    kinds, pairs, questions = (found[name] for name in TASKS)
    assert (kinds["n"], pairs["n"], questions["n"]) == (19, 19, 13)
    assert kinds["excluded"] == {"image can't be read": 1}
    assert kinds["broken_images"]["count"] == 1
    assert kinds["broken_images"]["first"][0]["image"] == "019.png"
    assert kinds["details"]["prompts"] == {
        "mass": ["an image of mass", "an image of tumour"],
        "none": ["an image of nothing"],
    }
    assert kinds["interval"]["clusters"] == 10
    assert questions["excluded"] == {OPEN: 6, "image can't be read": 1}, '"maybe" is no option'
    for task in found.values():
        assert task["command"] == f"python -m eval {root / 'suite.yaml'}"
        assert len(task["model"]["sha256"]) == 64
        assert task["versions"]["open_clip_torch"]
        assert task["source"] == "made up"
        for score in task["scores"].values():
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
            assert 0 < score["chance"] < 1
    shown = capsys.readouterr().out
    assert "95% interval" in shown
    assert f"report: {root / 'out' / 'report.html'}" in shown
    assert "kinds: left out: 1 (image can't be read)" in shown
    assert "kinds: a known trap" in shown
    assert not list(root.glob("out/*.tmp"))


def numbers(records: dict) -> dict:
    """Records without what is of the run and not of the scores."""
    return {
        name: {key: value for key, value in record.items() if key not in ("command", "time")}
        for name, record in records.items()
    }


def test_the_second_run_gives_the_same_numbers(root: Path, model: Path) -> None:
    first = run_program(root, model)
    again = run_program(root, model, "overwrite=true")
    assert numbers(first) == numbers(again)
    fresh = run_program(root, model, "overwrite=true", f"cache={root / 'elsewhere'}")
    assert numbers(first) == numbers(fresh)


def test_scores_in_training_are_those_of_the_program(root: Path, model: Path) -> None:
    want = run_program(root, model)
    scorer = SuiteScorer(str(root / "suite.yaml"), str(root), "cpu")
    found = scorer(model)
    assert found == scorer(model)
    tasks = {name: task["headline"] for name, task in want.items()}
    assert found == {
        f"zero_shot/{name}/{key}": want[name]["scores"][key]["value"]
        for name, keys in tasks.items()
        for key in keys
    }


def test_scores_in_training_are_checked_before_there_is_a_model(root: Path, model: Path) -> None:
    suite_config(root, model, TASKS)
    with fails("nowhere"):
        SuiteScorer(str(root / "suite.yaml"), str(root / "nowhere"), "cpu")


def test_examples_of_retrieval_show_the_right_answer(root: Path, model: Path) -> None:
    run = run_suite(suite_config(root, model, TASKS, only=["pairs"]), "my.yaml", "")
    examples = run.tasks["pairs"].record["examples"]
    assert [e["group"] for e in examples] == ["image to caption"] * 6 + ["caption to image"] * 6
    for example in examples:
        number = int(example["title"].removesuffix(".png"))
        (right,) = [answer for answer in example["answers"] if answer["right"]]
        shown = example["text"] if example["image"] is None else right["text"]
        assert shown.startswith(f"figure number {number},")
        assert right["image"] in (None, number)
        assert example["right"] == (right["rank"] == 1)
        scores = [answer["score"] for answer in example["answers"]]
        assert scores == sorted(scores, reverse=True)
        assert [a["rank"] for a in example["answers"][:5]] == [1, 2, 3, 4, 5]


def test_only(root: Path, model: Path) -> None:
    assert list(run_program(root, model, "only=[pairs]")) == ["pairs"]


def test_results_stand_beside_the_model(root: Path, model: Path) -> None:
    suite_config(root, model, TASKS, out="")
    main([str(root / "suite.yaml"), "only=[pairs]"])
    assert (model.parent / "eval" / "suite" / "pairs.json").is_file()
    config = load_config(EvalConfig, [str(model.parent / "eval" / "suite" / "config.yaml")])
    assert config.only == ["pairs"]


# --- report ---------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what the tests ask about."""

    VOID = ("meta", "link", "img", "br", "hr", "line", "path", "circle", "polyline")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_is_well_formed_and_self_contained(root: Path, model: Path) -> None:
    run_program(root, model)
    source = (root / "out" / "report.html").read_text()
    page = Page(source)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert len(page.links) > 20
    assert all(re.fullmatch(r"data:image/jpeg;base64,[\w+/=]+", link) for link in page.links)
    assert not re.search(r"url\(|@import", source)
    assert HOSTILE in page.text, "captions are shown as text"
    for expected in ("pairs: caption to image", "kinds", "By question type", "a known trap"):
        assert expected in page.text
    assert source.count('class="interval"') >= 8


def test_training_curves_come_from_the_run(model: Path, tmp_path: Path) -> None:
    panels = report.training_curves(model)
    assert [panel["title"] for panel in panels] == ["loss", "recall@1 on the validation split"]
    assert panels[0]["svg"].count("polyline") == 1
    assert report.training_curves(tmp_path / "model") == []
    assert report.training_curves(None) == []


def test_a_task_may_show_no_images(root: Path, model: Path) -> None:
    quiet = {name: {**task, "show_images": False} for name, task in TASKS.items()}
    suite_config(root, model, quiet)
    main([str(root / "suite.yaml")])
    assert "img" not in Page((root / "out" / "report.html").read_text()).tags


@pytest.mark.parametrize("width", [1200, 390])
def test_report_fits_the_screen(root: Path, model: Path, width: int) -> None:
    run_program(root, model, "robustness.corruptions=[jpeg_compression]")

    async def look() -> None:
        async with page((root / "out" / "report.html").as_uri(), width, 900) as tab:
            assert await tab.value("document.documentElement.scrollWidth") <= width
            loaded = [asked for asked in tab.requested if not asked.startswith("data:")]
            assert len(loaded) == 1, "nothing is loaded besides the page"
            assert tab.problems == []
            broken = "[...document.images].filter(i => !i.naturalWidth).length"
            assert await tab.value(broken) == 0

    asyncio.run(look())


def test_report_shows_what_a_task_has(root: Path, model: Path) -> None:
    run_program(root, model, "robustness.corruptions=[jpeg_compression]")
    text = Page((root / "out" / "report.html").read_text()).text
    for expected in (
        "Expected calibration error",
        "risk-coverage curve",
        "Scores by class",
        "AUROC",
        "Severity 0 is the clean image",
        "jpeg compression",
    ):
        assert expected in text


def test_wandb_run_holds_scores_and_report(root: Path, model: Path) -> None:
    found = run_program(root, model, "wandb.mode=offline")
    (run,) = (root / "out" / "wandb").glob("offline-run-*/run-*.wandb")
    summary: dict[str, object] = {}
    for record in wandb_records(run):
        for item in record.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    for name, task in found.items():
        for key, score in task["scores"].items():
            assert summary[f"{name}/{key}"] == score["value"]
            assert summary[f"{name}/{key}_low"] == score["low"]
    media = run.parent / "files" / "media"
    (report,) = (media / "html").glob("report_*.html")
    assert report.read_text() == (root / "out" / "report.html").read_text()
    (scores,) = (media / "table").glob("scores_*.json")
    rows = json.loads(scores.read_text())["data"]
    assert len(rows) == sum(len(task["scores"]) for task in found.values())
    assert (media / "table" / "confusion").is_dir()


def test_wandb_that_refuses_is_told_after_the_results(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", str(root / "no-netrc"))
    with fails("wandb.mode=online: "):
        run_program(root, model, "only=[pairs]", "wandb.mode=online")
    assert (root / "out" / "report.html").is_file()


# --- wrong suites ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "templates",
            ["{class}"],
            "templates: '{class}': unknown placeholder {class}; there is {c}",
        ),
        ("templates", ["a photo"], "templates: 'a photo': no placeholder {c}; there is {c}"),
        ("templates", ["a {c"], "templates: 'a {c': expected '}' before end of string"),
        ("templates", ["{c!r}"], "templates: '{c!r}': write '{c}' alone, without ':' or '!'"),
        ("templates", [], "templates: is empty; write at least one prompt with {c}"),
        (
            "classes",
            {"mass": ["a"], "cyst": ["b"]},
            "classes.cyst: no row has the label 'cyst'; there are mass, none",
        ),
        (
            "classes",
            {"mass": ["a"], "none": ["b"], "cyst": ["c"]},
            "classes.cyst: no row has the label 'cyst'; there are mass, none",
        ),
        ("classes", {"mass": ["a"], "none": []}, "classes.none: needs at least one name"),
        ("classes", {"mass": ["a"]}, "classes: one class, mass, is no choice; write at least two"),
        ("classes", {}, "classes: is empty; write `label: [name in prompts]` for each class"),
        ("label", "kind", "label: no column 'kind'; there are answer, caption, finding, image"),
        ("label", "{finding", "label: '{finding': expected '}'"),
        ("cluster", "person", "cluster: no column 'person'; there are answer, caption"),
        ("data", {**TABLE, "path": "x.csv"}, "data: "),
        ("data", {**TABLE, "split": "dev"}, "data: "),
    ],
)
def test_wrong_classification(root: Path, key: str, value: object, message: str) -> None:
    expect_problem(root, "kinds", key, value, message)


@pytest.mark.parametrize(
    ("task", "key", "value", "message"),
    [
        ("pairs", "ks", [0], "ks: [0] needs cut-offs of 1 or more"),
        ("pairs", "where", {"sex": ["f"]}, "where.sex: no column 'sex'; there are answer"),
        (
            "pairs",
            "data",
            {**TABLE, "caption_column": "legend"},
            "data: no captions; set caption_column to one of answer, caption",
        ),
        (
            "questions",
            "statement",
            "{question}",
            "statement: '{question}': no placeholder {option}; there is {option} and {question}",
        ),
        (
            "questions",
            "statement",
            "{answer} {option}",
            "statement: '{answer} {option}': unknown placeholder {answer}; there is {option} and",
        ),
        (
            "questions",
            "fixed_options",
            ["yes"],
            "fixed_options: ['yes'] needs two different options or more",
        ),
        ("questions", "question", "text", "question: no column 'text'; there are answer"),
    ],
)
def test_wrong_tasks(root: Path, task: str, key: str, value: object, message: str) -> None:
    expect_problem(root, task, key, value, message)


def expect_problem(root: Path, task: str, key: str, value: object, message: str) -> None:
    """The model doesn't exist either: a wrong suite is told before any model is loaded."""
    wrong = {**TASKS, task: {**TASKS[task], key: value}}
    config = suite_config(root, root / "no-model", wrong)
    with fails(f"my.yaml: tasks.{task}.{message}"):
        run_suite(config, "my.yaml", "")


def test_wrong_suites(root: Path, model: Path) -> None:
    with fails("my.yaml: tasks is empty"):
        chosen_tasks(suite_config(root, model, {}), "my.yaml")
    config = suite_config(root, model, TASKS, only=["pair"])
    with fails("my.yaml: only: no task 'pair'; there are kinds, pairs, questions"):
        chosen_tasks(config, "my.yaml")
    with fails("unknown key 'tasks.kinds.template'; did you mean 'tasks.kinds.templates'?"):
        suite_config(root, model, {"kinds": {**TASKS["kinds"], "template": ["{c}"]}})
    with fails("replicates=5: set it to 100 or more"):
        suite_config(root, model, TASKS, replicates=5)
    with fails("model is missing"):
        load_config(EvalConfig, ["name=x"])


def test_the_program_ends_with_one_line_and_status_2(root: Path) -> None:
    suite_config(root, root / "no-model", TASKS)
    suite = root / "suite.yaml"
    command = [sys.executable, "-m", "eval", str(suite), "only=[pair]"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"error: {suite}: only: no task 'pair'; there are kinds, pairs, questions\n"
    )


def test_default_out_of_a_model_without_folder() -> None:
    class Named:
        folder, name = None, "hf-hub:org/name"

    assert default_out(Named(), "suite") == Path("eval-results/hf-hub_org_name/suite")


# --- the suites that we ship ----------------------------------------------------------------


def test_real_small_fits_the_real_data() -> None:
    root = real_data("vqa_rad/index.jsonl").parents[1]
    config = load_suite([str(ROOT / "configs/eval/real_small.yaml"), "model=x"])
    for name, task in chosen_tasks(config, "real_small").items():
        dataset = open_dataset(task.data, root)
        KINDS[task.kind].check(name, task, dataset)
        if name == "vqa_rad_closed":
            assert dataset.notes == ["123 of 123 images of split 'test' are in other splits too"]


def test_phantom_fits_the_phantom_corpus() -> None:
    """The suite's classes are all that the corpus draws, no more and no less."""
    facts = [
        asdict(subject.sample(np.random.default_rng((seed, 0))))
        for subject in SUBJECTS.values()
        for seed in range(300)
    ]
    config = load_suite([str(ROOT / "configs/eval/phantom.yaml"), "model=x"])
    for name, task in chosen_tasks(config, "phantom").items():
        if task.kind == "classification":
            drawn = {label_of(task, row) for row in facts if keep(row, task.where)}
            assert drawn == set(task.classes), name
