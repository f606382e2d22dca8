"""`python -m eval table`: three formats of the same numbers, and published ones beside them."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.published import FILE, published_scores
from eval.results import FORMAT, VERSION
from eval.table import Cell, _letters, latex, markdown
from tests.eval.tiny import fails

ROOT = Path(__file__).parents[2]


def write_record(
    folder: Path, model: str, task: str, scores: dict[str, float | None], **changes: object
) -> None:
    """A result with the keys that a table reads."""
    folder.mkdir(exist_ok=True)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "task": task,
        "kind": "classification",
        "source": "made up",
        "model": {"name": model, "sha256": model * 8},
        "data": {"labels_sha256": "same"},
        "config": {"templates": ["{c}"], "data": {"path": "x", "split": "test"}},
        "options": {"seed": 4},
        "n": 1234,
        "headline": [next(iter(scores))],
        "scores": {
            key: {"value": v, "low": v and v - 0.01, "high": v and v + 0.02, "chance": 0.5}
            for key, v in scores.items()
        },
        **changes,
    }
    (folder / f"{task}.json").write_text(json.dumps(record))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for model, accuracy in (("a_1", 0.5), ("b", 0.75)):
        folder = tmp_path / model
        write_record(folder, model, "pcam", {"accuracy": accuracy, "auroc": 0.9})
        write_record(folder, model, "ms_cxr", {"cnr": 1.2345})
    return tmp_path


def table(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    main(["table", *map(str, arguments)])
    return capsys.readouterr().out


def test_markdown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = table(capsys, root / "a_1", root / "b").splitlines()
    bounds = "**1.23** [1.22, 1.25]"
    assert lines[:4] == [
        r"| task | score | n | chance | a\_1 | b |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        rf"| ms\_cxr | cnr | 1,234 | 0.5 | {bounds} | {bounds} |",
        "| pcam | accuracy | 1,234 | 50.0% | 50.0% [49.0%, 52.0%] | **75.0%** [74.0%, 77.0%] |",
    ]
    assert lines[4] == ""


def test_all_scores_of_chosen_tasks(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = table(capsys, root / "b", "scores=all", "tasks=[pcam]", "names=[ours]")
    assert "| pcam | auroc | 1,234 | 50.0% | 90.0%" in found
    assert "ours" in found
    assert "cnr" not in found


def test_latex(root: Path) -> None:
    cells = [
        Cell("50% & more_{x}", "t_1", "accuracy", 0.5, 0.4, 0.6, 0.25, 10, note="a $\\note$ ~^#"),
        Cell("b", "t_1", "accuracy", 0.4, 0.3, 0.5, 0.25, 10),
    ]
    text = latex(cells)
    assert text.startswith("\\begin{tabular}{llrrrr}\n\\toprule\n")
    assert r"task & score & $n$ & chance & 50\% \& more\_\{x\} & b \\" in text
    row = r"t\_1 & accuracy & 10 & 25.0\% & \textbf{50.0\%} {\scriptsize [40.0\%, 60.0\%]}"
    assert row + r"\textsuperscript{a} &" in text
    note = r"a \$\textbackslash{}note\$ \textasciitilde{}\textasciicircum{}\#"
    assert f"\\textsuperscript{{a}} {note}" in text
    assert text.count("&") - text.count(r"\&") == 5 * 2


def test_csv(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = table(capsys, root / "a_1", root / "b", "format=csv", "published=true")
    rows = list(csv.DictReader(io.StringIO(text)))
    (mine,) = [row for row in rows if row["model"] == "b" and row["task"] == "pcam"]
    assert (mine["value"], mine["low"], mine["seed"], mine["n"]) == ("0.75", "0.74", "4", "1234")
    (paper,) = [row for row in rows if row["model"] == "BiomedCLIP (published)"]
    assert (paper["task"], paper["value"], paper["published"]) == ("pcam", "0.7341", "True")
    assert "2303.00915" in paper["source"]
    assert (paper["low"], paper["n"]) == ("", "")


def test_published_numbers_are_marked(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = table(capsys, root / "b", "published=true")
    head, *_ = text.splitlines()
    column = [name.strip() for name in head.split("|")].index("BiomedCLIP (published)")
    line = next(line for line in text.splitlines() if line.startswith("| pcam"))
    cell = line.split(" | ")[column - 1]
    value, mark = re.fullmatch(r"(\S+)<sup>(\w+)</sup>", cell).groups()  # type: ignore[union-attr]
    assert value == "73.4%"
    assert f"<sup>{mark}</sup> BiomedCLIP: Zhang et al., arXiv 2303.00915v3" in text
    assert "the protocol differs: " in text, "of the second card of BioViL"


def test_what_does_not_match_is_marked(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"templates": ["a {c}"], "data": {"path": "elsewhere", "split": "test"}}
    write_record(root / "b", "b", "pcam", {"accuracy": 0.7}, config=other)
    write_record(root / "b", "b", "ms_cxr", {"cnr": 1.0}, data={"labels_sha256": "other"})
    found = table(capsys, root / "a_1", root / "b")
    assert re.search(r"70\.0%\*\* \[.*<sup>b</sup>", found)
    assert r"<sup>a</sup> not the same items as for a\_1" in found
    assert r"<sup>b</sup> another templates than for a\_1" in found


def test_a_score_that_is_not_defined(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(root / "b", "b", "pcam", {"auroc": None})
    assert "| pcam | auroc | 1,234 | 50.0% | – |" in table(capsys, root / "b")


def test_wrong_tables(root: Path, tmp_path: Path) -> None:
    a, b = str(root / "a_1"), str(root / "b")
    with fails("table: name at least one folder"):
        main(["table"])
    with fails("names: 1 for 2 folders; name each"):
        main(["table", a, b, "names=[x]"])
    with fails("tasks: no results of 'pcam2'; there are ms_cxr, pcam"):
        main(["table", a, "tasks=[pcam2]"])
    with fails(f"{a}: ms_cxr of a_1 is in {a} too"):
        main(["table", a, a])


def test_hostile_names_stay_text() -> None:
    cell = Cell("<script>|x", "t", "accuracy", 0.5, n=1, note="[a](http://b) | c\nd")
    lines = markdown([cell]).splitlines()
    assert lines[0].endswith(r"| \<script\>\|x |")
    assert lines[-1] == r"<sup>a</sup> \[a\](http://b) \| c d"


def test_letters() -> None:
    assert [_letters(i) for i in (0, 25, 26, 27, 51, 52)] == ["a", "z", "aa", "ab", "az", "ba"]


def test_out(root: Path) -> None:
    main(["table", str(root / "b"), "format=csv", f"out={root / 'table.csv'}"])
    assert (root / "table.csv").read_text().startswith("model,task,score,value,")


# --- published numbers ----------------------------------------------------------------------


def test_published_numbers() -> None:
    found = {(p.model, p.task, p.score): p for p in published_scores()}
    assert found["BiomedCLIP", "pcam", "accuracy"].value == pytest.approx(0.7341)
    assert found["BioViL-T", "ms_cxr", "cnr"].value == 1.33
    assert found["PubMedCLIP", "slake", "open_accuracy"].evidence == "taken from a third party"
    for number in found.values():
        assert number.source
        assert number.score.startswith("cnr") or 0 < number.value < 1


def test_published_numbers_are_of_our_tasks() -> None:
    tasks = {path.stem for path in ROOT.glob("configs/eval/tasks/*.yaml")}
    assert {p.task for p in published_scores()} <= tasks


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pcam: 73.41", "pcm: 73.41", "rows.BiomedCLIP.pcm: no such column in `columns`"),
        ("pcam: 73.41", "pcam: 734.1", "rows.BiomedCLIP.pcam: 734.1 is not per cent"),
        ("pcam: 73.41", "pcam: high", "tables.biomedclip_zero_shot.rows.BiomedCLIP.pcam"),
        ("evidence: primary", "evidence: hearsay", "tables.biomedclip_zero_shot.evidence"),
    ],
)
def test_wrong_published_numbers(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(FILE.read_text().replace(old, new, 1))
    with fails(message) as caught:
        published_scores(path)
    assert str(caught.value).startswith(f"{path}: ")
