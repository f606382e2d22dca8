"""The page of curves and the workspace: every metric of a run has its place in both."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vlp.config import UserError
from vlp.curves import Panel, draw, read_metrics, series_of
from vlp.dashboard import SECTIONS, DashboardConfig, workspace, write_page

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    {"step": 1, "epoch": 0.1, "train/loss": 2.0, "train/gradient_norm_text": 0.5},
    {"step": 2, "epoch": 0.2, "train/loss": 1.0, "train/gradient_norm_text": 0.25},
    {"step": 2, "val/text_to_image_recall@1": 0.125},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "<run>"
    folder.mkdir()
    lines = [json.dumps(row) + "\n" for row in ROWS]
    (folder / "metrics.jsonl").write_text("".join(lines) + '{"step": 3, "train/lo')
    return folder


def test_page_shows_what_the_run_has_and_nothing_else(run: Path) -> None:
    page = write_page(run).read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Learning", "Validation", "Data"]
    assert re.findall(r"<h3>(.*?)</h3>", page) == [
        *("loss", "gradient norm", "recall, caption → image", "epoch"),
    ]
    assert "train/gradient_norm_text <b>0.25</b>" in page
    assert "<run>" not in page  # names are strangers' text
    assert page.count("<polyline") == 4
    assert "http" not in page  # nothing is loaded from elsewhere


def test_series() -> None:
    panel = Panel("x", ("train/gradient_norm*", "train/loss"))
    assert series_of(ROWS, panel) == {
        "train/gradient_norm_text": [(1, 0.5), (2, 0.25)],
        "train/loss": [(1, 2.0), (2, 1.0)],
    }
    assert series_of([{"step": 1, "train/loss": float("nan")}], panel) == {}
    recalls = {"step": 1, "r@10": 1.0, "r@5": 0.5, "r@1": 0.1}
    assert list(series_of([recalls], Panel("x", ("r@*",)))) == ["r@1", "r@5", "r@10"]


def test_lines_lie_within_the_axes() -> None:
    drawn = str(draw({"a": [(0, 0.0), (10, 2.0)], "b": [(10, 1.0)]}))
    points = [tuple(map(float, p.split(","))) for p in re.findall(r"[\d.]+,[\d.]+", drawn)]
    assert ">2,500<" in draw({"a": [(0, 0.0), (10, 2100.0)]})
    # The axis goes from 0 to 2.5, from y=108 to y=12.
    assert points == [(42.0, 108.0), (290.0, 31.2), (290.0, 69.6)]


def test_a_cut_off_row_is_left_out(run: Path) -> None:
    assert read_metrics(run / "metrics.jsonl") == ROWS


def test_workspace_has_the_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces")
    found = workspace(DashboardConfig(project="p", entity="e"))
    assert (found.entity, found.project) == ("e", "p")
    assert [section.name for section in found.sections] == list(SECTIONS)
    learning = found.sections[0].panels
    assert [panel.title for panel in learning] == [panel.title for panel in SECTIONS["Learning"]]
    assert learning[0].y == ["train/loss"]
    assert re.search(learning[2].metric_regex, "train/gradient_norm_image")
    spec = found._to_model().spec  # what is sent
    assert len(spec.section.panel_bank_config.sections) >= len(SECTIONS)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["run=absent"], "absent/metrics.jsonl: no such file; give the folder of a run, runs/NAME"),
        ([], "set run=FOLDER for a page, or project=NAME for a workspace"),
        (["project=x"], "entity: set the user or team that the project belongs to"),
    ],
)
def test_errors(arguments: list[str], error: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vlp.dashboard", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().endswith(error)


def test_an_empty_run_is_said(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no metrics yet"):
        write_page(tmp_path)
