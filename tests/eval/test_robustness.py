"""Scores on corrupted images: what stands in the results, and what doesn't change."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.__main__ import main
from eval.config import DataConfig
from eval.corruptions import Corruption
from eval.options import RobustnessConfig
from eval.readers import open_dataset
from eval.robustness import conditions, corrupted
from eval.suite_files import load_suite
from tests.eval.tiny import TASKS, draw, fails, suite_config, write_model, write_table
from vlp.data.image import open_rgb


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rows = [
        {"split": "test", "label": ["mass", "none"][i % 2], "caption": f"figure {i}"}
        for i in range(12)
    ]
    write_table(tmp_path / "set", rows)
    return tmp_path


def test_scores_under_corruption(
    root: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["robustness.corruptions=[gaussian_noise,pixelate]", "robustness.severities=[1,5]"]
    suite_config(root, model, TASKS)
    main([str(root / "suite.yaml"), *options])
    for task, metric in (("kinds", "accuracy"), ("pairs", None)):
        record = json.loads((root / "out" / f"{task}.json").read_text())
        found = record["details"]["robustness"]
        assert found["metric"] == (metric or record["headline"][0])
        # The images are smaller than 224 pixels: nothing is reduced, and clean is what it was.
        assert found["clean"] == record["scores"][found["metric"]]
        assert [(c["corruption"], c["severity"], c["amount"]) for c in found["conditions"]] == [
            ("gaussian_noise", 1, 0.04),
            ("gaussian_noise", 5, 0.26),
            ("pixelate", 1, 0.3),
            ("pixelate", 5, 0.1),
        ]
        values = [c["score"]["value"] for c in found["conditions"]]
        assert found["mean"] == pytest.approx(np.mean(values))
        for condition in found["conditions"]:
            score = condition["score"]
            assert score["low"] <= score["value"] <= score["high"]
    # Twelve images, a clean pass and five more: both tasks share them.
    assert len(list((root / "out" / "cache").glob("images-*"))) == 6
    shown = " ".join(capsys.readouterr().out.split())
    assert "kinds: corrupted images: accuracy" in shown
    assert "in the mean of 4 conditions, lowest" in shown


def test_without_the_option_nothing_is_added(root: Path, model: Path) -> None:
    suite_config(root, model, TASKS)
    main([str(root / "suite.yaml"), "only=[kinds]"])
    record = json.loads((root / "out" / "kinds.json").read_text())
    assert "robustness" not in record["details"]
    assert len(list((root / "out" / "cache").glob("images-*"))) == 1


def test_a_corrupted_set_differs_in_its_pixels_only(root: Path) -> None:
    clean = open_dataset(DataConfig(reader="table", path="set/index.jsonl"), root)
    found = corrupted(clean, Corruption("brightness_down", 5, 224))
    assert found.samples == clean.samples
    expected = np.asarray(draw(3)).astype(float) / 2
    pixels = np.asarray(open_rgb(found.images.read(3)))
    assert np.abs(pixels - expected).max() < 1, "PNG loses nothing"


def test_each_condition_has_a_fingerprint_of_its_own(root: Path) -> None:
    clean = open_dataset(DataConfig(reader="table", path="set/index.jsonl"), root)
    found = {clean.fingerprint}
    for side in (224, 384):
        for condition in conditions(RobustnessConfig(corruptions=["all"], side=side)):
            found.add(corrupted(clean, condition).fingerprint)
    assert len(found) == 1 + 2 * (1 + 9 * 3)


def test_impossible_settings() -> None:
    start = ["name=x", "model=y"]
    with fails("robustness.corruptions: no 'fog'; there are jpeg_compression"):
        load_suite([*start, "robustness.corruptions=[fog]"])
    with fails("robustness.severities=[0, 6]: write some of 1 to 5"):
        load_suite([*start, "robustness.severities=[0,6]"])
