"""Calibration against hand-computed cases and simulated models whose calibration is known."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve

from eval import calibration as cal
from eval.__main__ import main
from eval.config import CalibrationConfig, DataConfig, TaskConfig, problems
from eval.labelled import labelled_part
from eval.readers import Dataset, Sample
from eval.results import read_folder, read_items
from eval.tasks import Inputs
from tests.eval.tiny import fails, suite_config, write_model, write_table

DATA = DataConfig(reader="table", path="x")


def drawn(scale: float, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(cosines [n, 4], true [n]) of a model whose probabilities at this scale are right."""
    rng = np.random.default_rng(seed)
    cosines = rng.uniform(-0.3, 0.3, (n, 4))
    true = [rng.choice(4, p=p) for p in softmax(scale * cosines, axis=1)]
    return cosines, np.array(true)


def test_error_by_hand() -> None:
    # Upper edges belong to their bin: .5 to the second of four, .75 to the third.
    confidence = np.array([0.5, 0.4, 0.75, 0.9, 1.0, 0.95])
    right = np.array([True, False, False, True, True, False])
    found = cal.reliability(confidence, right, bins=4)
    assert found.count.tolist() == [0, 2, 1, 3]
    assert found.confidence[1:] == pytest.approx([0.45, 0.75, 0.95])
    assert found.accuracy[1:] == pytest.approx([0.5, 0.0, 2 / 3])
    gaps = [0.05, 0.75, 0.95 - 2 / 3]
    assert found.error == pytest.approx((2 * gaps[0] + gaps[1] + 3 * gaps[2]) / 6)
    assert found.rows()[0] == {
        "low": 0.25,
        "high": 0.5,
        "n": 2,
        "confidence": pytest.approx(0.45),
        "accuracy": 0.5,
    }


def test_diagram_equals_scikit_learn() -> None:
    """scikit-learn's curve is of a binary probability, which a confidence of being right is."""
    rng = np.random.default_rng(3)
    confidence, right = rng.random(300), rng.random(300) < 0.6
    found = cal.reliability(confidence, right, bins=10)
    accuracy, mean = calibration_curve(right, confidence, n_bins=10)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.confidence == pytest.approx(mean)


def test_weights_repeat_answers() -> None:
    rng = np.random.default_rng(5)
    confidence, right = rng.random(50).round(1), rng.random(50) < 0.5
    weights = np.bincount(rng.integers(50, size=50), minlength=50)
    items = np.repeat(np.arange(50), weights)
    weighted = cal.reliability(confidence, right, 7, weights)
    assert weighted.error == pytest.approx(
        cal.reliability(confidence[items], right[items], 7).error
    )
    risk = cal.risk_coverage(confidence, right, weights)
    assert risk == pytest.approx(cal.risk_coverage(confidence[items], right[items]))


def test_a_perfect_model_has_the_error_that_is_told() -> None:
    errors = []
    for seed in range(30):
        cosines, true = drawn(10, 400, seed)
        confidence = softmax(10 * cosines, axis=1).max(axis=1)
        right = cosines.argmax(axis=1) == true
        errors.append(cal.reliability(confidence, right, 15).error)
    # The deviation of one error is about .01, that of the mean of 30 about .002.
    assert cal.perfect_error(confidence, 15, seed=0) == pytest.approx(np.mean(errors), abs=0.006)
    assert np.mean(errors) > 0.02  # far from 0, although nothing is wrong


def test_the_fitted_scale_is_the_one_that_made_the_labels() -> None:
    cosines, true = drawn(12, 20_000)
    found = cal.fit_scale(cosines, true)
    assert found == pytest.approx(12, rel=0.05)
    best = cal.negative_log_likelihood(found * cosines, true)
    for other in (0.9 * found, 1.1 * found):
        assert cal.negative_log_likelihood(other * cosines, true) > best
    expected = -log_softmax(found * cosines, axis=1)[np.arange(len(true)), true].mean()
    assert best == pytest.approx(expected)


def test_separable_items_have_a_bounded_scale() -> None:
    cosines, true = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
    assert np.isfinite(cal.fit_scale(cosines, true))


def test_risk_coverage_by_hand() -> None:
    confidence = np.array([0.2, 0.9, 0.6, 0.8])
    right = np.array([False, True, True, False])
    assert cal.risk_coverage(confidence, right) == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])


def test_ties_are_the_mean_over_their_orders() -> None:
    confidence = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    right = np.array([True, False, True, True, False])
    curves = []
    for order in itertools.permutations([1, 2, 3]):
        wrong = ~right[[0, *order, 4]]
        curves.append(np.cumsum(wrong) / np.arange(1, 6))
    assert cal.risk_coverage(confidence, right) == pytest.approx(np.mean(curves, axis=0))
    # Confidences that are all equal tell nothing: the risk is the error rate throughout.
    assert cal.risk_coverage(np.ones(5), right) == pytest.approx(np.full(5, 0.4))


def report(scale: float, labelled: int = 200) -> dict:
    """What is said of items made at scale 12 by a model that believes in another one."""
    task = TaskConfig(kind="classification", source="test", data=DATA)
    embedder = SimpleNamespace(model=SimpleNamespace(scale=scale))
    inputs = Inputs(task, None, None, embedder, "it", 0, 200)
    few = cal.Answered(*drawn(12, labelled, seed=1)) if labelled else None
    return cal.calibration(inputs, cal.Answered(*drawn(12, 800)), np.arange(800), few)


def test_an_overconfident_model_is_found_and_mended() -> None:
    found = report(scale=60)
    error, gain = found["ece"], found["temperature"]
    assert error["value"] > 0.2
    assert error["low"] < error["value"] < error["high"]
    assert error["perfect"] < 0.05
    assert gain["scale"] == pytest.approx(12, rel=0.2)
    assert gain["ece_after"] < 0.08 < 0.2 < gain["ece_before"]
    assert gain["nll_after"] < gain["nll_before"]
    assert (gain["labelled"], gain["n"]) == (200, 800)
    assert gain["ece_before"] == pytest.approx(error["value"])
    assert gain["ece_after_low"] < gain["ece_after"] < gain["ece_after_high"]
    assert sum(row["n"] for row in found["bins"]) == 800


def test_a_calibrated_model_is_left_in_peace() -> None:
    found = report(scale=12)
    assert found["ece"]["low"] <= found["ece"]["perfect"]
    assert found["ece"]["value"] < 2 * found["ece"]["perfect"]
    curve = found["risk_coverage"]
    assert curve["best"] < curve["area"] < curve["chance"]
    assert curve["low"] < curve["area"] < curve["high"]
    assert curve["risk"][-1] == pytest.approx(curve["chance"])
    assert curve["coverage"][-1] == 1
    assert len(curve["risk"]) == len(curve["coverage"]) == 100
    assert report(scale=12, labelled=0)["temperature"] is None


def test_area_of_the_best_confidences_by_hand() -> None:
    """Two of four wrong: risks 0, 0, 1/3, 1/2."""
    right = np.array([False, True, True, False])
    assert cal._curve(cal.risk_coverage(np.ones(4), right), right, cal.Interval(0, 1))[
        "best"
    ] == pytest.approx((1 / 3 + 1 / 2) / 4)


@pytest.mark.parametrize(("key", "value"), [("bins", 1), ("labelled", 0)])
def test_impossible_settings_are_refused(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"calibration.{key}={value}"):
        CalibrationConfig(**{key: value})


# --- findings, and labels of another split ----------------------------------------------------


def test_findings_are_yes_no_questions() -> None:
    labels = np.array([[1, -1, 0], [0, 1, -1]])
    margins = np.array([[0.3, 0.9, 0.2], [-0.1, 0.0, 0.5]])
    found = cal.as_questions(labels, margins)
    assert found.cosines.tolist() == [[0, 0.3], [0, 0.2], [0, -0.1], [0, 0.0]]
    assert found.true.tolist() == [1, 0, 0, 1]
    # A tie is a no, as in the scores.
    assert found.cosines.argmax(axis=1).tolist() == [1, 1, 0, 0]
    # The probability is that of the softmax over both prompts.
    scores = softmax(10 * found.cosines, axis=1)[:, 1]
    assert scores == pytest.approx(1 / (1 + np.exp(-10 * found.cosines[:, 1])))


def samples(split: str, rows: list[dict]) -> Dataset:
    read = SimpleNamespace(read=lambda i: f"{split}{i}".encode())
    found = [Sample(f"{split}{i}.png", [], [row]) for i, row in enumerate(rows)]
    return Dataset(found, split, rows, images=read)


def classed(**keys: object) -> TaskConfig:
    classes = {"a": ["a"], "b": ["b"]}
    settings = {"templates": ["{c}"], "classes": classes, "cluster": "patient", **keys}
    data = DataConfig(reader="table", path="x", split="test")
    return TaskConfig(kind="classification", source="test", data=data, **settings)


def test_labelled_images_are_of_other_patients() -> None:
    scored = samples("test", [{"label": "a", "patient": "p1"}, {"label": "b", "patient": "p2"}])
    rows = [{"label": "ab"[i % 2], "patient": f"p{i}", "kind": "x"} for i in range(1, 9)]
    rows[3]["label"] = ""
    rows[4]["label"] = "c"
    rows[5]["kind"] = "y"
    other = samples("val", rows)
    task = classed(calibration=CalibrationConfig(split="val"), where={"kind": ["x"]})
    part = labelled_part("tasks.it", task, scored, other, seed=0)
    # Of p1 to p8: p1 and p2 are scored, p4 and p5 have no known label, p6 is of another kind.
    assert [sample.rows[0]["patient"] for sample in part.samples] == ["p3", "p7", "p8"]
    assert [part.images.read(i) for i in range(3)] == [b"val2", b"val6", b"val7"]
    few = classed(calibration=CalibrationConfig(split="val", labelled=2))
    draws = [labelled_part("tasks.it", few, scored, other, seed) for seed in (0, 0, 1, 2, 3)]
    assert all(len(draw.samples) == 2 for draw in draws)
    assert draws[0].fingerprint == draws[1].fingerprint
    assert len({draw.fingerprint for draw in draws}) > 1
    with fails("tasks.it.calibration.split: 'val' holds the scored images"):
        labelled_part("tasks.it", few, other, other, 0)
    with fails("'val' has no image with a known label whose patient isn't scored"):
        labelled_part("tasks.it", few, samples("all", rows), samples("val", rows[3:5]), 0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"split": "test"}, "'test' is scored; name a split that isn't"),
        (
            {"data": replace(DATA, split=""), "split": "val"},
            "'val' is scored; name a split that isn't",
        ),
        ({"kind": "retrieval", "split": "val"}, "a temperature needs labels, this is retrieval"),
    ],
)
def test_the_scored_split_fits_no_temperature(keys: dict, message: str) -> None:
    settings = CalibrationConfig(split=keys.pop("split"))
    base = {"kind": "classification", "data": DataConfig(reader="table", path="x", split="a|test")}
    task = TaskConfig(source="test", calibration=settings, **{**base, **keys})
    key, found = next(problems(task))
    assert (key, found[: len(message)]) == ("calibration.split", message)


def test_the_program_fits_on_the_split_that_is_named(tmp_path: Path) -> None:
    rows = [
        {"split": ["test", "val"][i % 2], "label": "ab"[i // 2 % 2], "x": str(i // 4 % 2), "y": "0"}
        for i in range(40)
    ]
    table = write_table(tmp_path / "set", rows)
    data = {"reader": "table", "path": "set/index.jsonl", "split": "test"}
    common = {"source": "made up", "data": data, "templates": ["a {c}"]}
    classes = {"a": ["red"], "b": ["blue"]}
    findings = {"x": ["mass"], "y": ["cyst"]}
    tasks = {
        "plain": {**common, "kind": "classification", "classes": classes},
        "kinds": {**common, "kind": "classification", "classes": classes},
        "findings": {**common, "kind": "multilabel", "classes": findings},
    }
    for name in ("kinds", "findings"):
        tasks[name]["calibration"] = {"split": "val", "labelled": 12}
    suite_config(tmp_path, write_model(tmp_path / "model"), tasks)
    main([str(tmp_path / "suite.yaml")])
    found = read_folder(tmp_path / "out")
    assert found["plain"]["details"]["calibration"]["temperature"] is None
    assert found["plain"]["scores"] == found["kinds"]["scores"], "labels change no score"
    for name, answers in (("kinds", 1), ("findings", 2)):
        gain = found[name]["details"]["calibration"]["temperature"]
        assert (gain["labelled"], gain["n"]) == (12 * answers, 20 * answers)
        assert gain["split"] == "val"
    # The error of the findings' probabilities, from the items.
    items = read_items(tmp_path / "out", found["findings"])
    assert items is not None
    shares, labels = (np.array(items[key].to_pylist()).ravel() for key in ("scores", "label"))
    confidence, right = np.maximum(shares, 1 - shares), (shares > 0.5) == labels
    expected = cal.reliability(confidence, right, 15).error
    ece = found["findings"]["details"]["calibration"]["ece"]
    assert ece["value"] == pytest.approx(expected, abs=1e-9)
    # Another label of the other split is another temperature, and the same scores.
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    table.write_text(
        "".join(json.dumps({**r, "label": "a"} if r["split"] == "val" else r) + "\n" for r in lines)
    )
    main([str(tmp_path / "suite.yaml")])
    again = read_folder(tmp_path / "out")
    assert again["plain"] == found["plain"]
    assert again["kinds"]["scores"] == found["kinds"]["scores"]
    fitted = [r["kinds"]["details"]["calibration"]["temperature"]["scale"] for r in (found, again)]
    assert fitted[0] != fitted[1]
