"""Probes from end to end, their scores against scikit-learn, their intervals against loops."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as peer

from eval import logistic
from eval.__main__ import main
from eval.class_scores import class_scores
from eval.logistic import Labelled
from eval.multilabel import UNKNOWN
from eval.probe import over_draws
from eval.probe_kinds import FindingBench, class_statistic
from tests.eval.tiny import draw, fails, suite_config, write_model, write_table

LIGHT = {"dark": 60, "middle": 130, "bright": 200}
DATA = {"reader": "table", "path": "set/index.jsonl"}
TASK = {
    "kind": "classification",
    "source": "made up",
    "data": DATA,
    "classes": {label: [label] for label in LIGHT},
    "templates": ["an image that is {c}"],
    "cluster": "patient",
}
PAIRS = {"kind": "retrieval", "source": "made up", "data": DATA, "ks": [1]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "model")


def write_set(folder: Path, splits: dict[str, int], patients: int = 10_000) -> None:
    """Images of three kinds of light, which any model's embeddings tell apart."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, number = [], 0
    for split, count in splits.items():
        for i in range(count):
            label = list(LIGHT)[i % 3]
            pixels = np.asarray(draw(number)).astype(float) / 255 * 50 + LIGHT[label] - 25
            name = f"{number:03}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            rows.append({"image": name, "split": split, "label": label})
            rows[-1] |= {"caption": f"figure {number}", "patient": f"p{number % patients}"}
            number += 1
    write_table(folder, rows)


def run(root: Path, model: Path, *arguments: str, **tasks: dict) -> dict[str, dict]:
    suite_config(root, model, tasks or {"light": TASK})
    main(["probe", str(root / "suite.yaml"), *arguments])
    return {path.stem: json.loads(path.read_text()) for path in (root / "out/probe").glob("*.json")}


def test_probes_of_separable_classes(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path / "set", {"train": 60, "val": 30, "test": 30})
    found = run(tmp_path, model, "probe.shots=[2,8]", "probe.seeds=3")["light"]
    scores = found["scores"]
    shots = ["accuracy_2_shots", "accuracy_8_shots"]
    assert list(scores)[:4] == ["zero_shot_accuracy", *shots, "accuracy"]
    assert scores["accuracy"]["value"] > 0.9
    assert scores["auroc"]["value"] > 0.99
    assert scores["accuracy_8_shots"]["value"] > scores["zero_shot_accuracy"]["value"]
    assert found["headline"] == ["accuracy"]
    assert found["kind"] == "probe"
    assert found["n"] == 30
    details = found["details"]
    assert (details["train"], details["val"]) == (60, 30)
    for name, entry in zip(shots, details["few_shot"], strict=True):
        assert len(entry["values"]) == len(entry["strengths"]) == 3
        assert scores[name]["value"] == pytest.approx(np.mean(entry["values"]))
        assert scores[name]["low"] <= scores[name]["value"] <= scores[name]["high"]
        assert scores[name]["chance"] == pytest.approx(1 / 3)
    assert np.trace(details["confusion"]) == round(30 * scores["accuracy"]["value"])
    assert found["items"]["rows"] == 30
    shown = capsys.readouterr().out
    assert "zero shot accuracy" in shown
    assert (tmp_path / "out" / "probe" / "report.html").is_file()


def test_labels_of_chance_give_chance(tmp_path: Path, model: Path) -> None:
    write_set(tmp_path / "set", {"train": 90, "val": 60, "test": 90})
    lines = [json.loads(line) for line in (tmp_path / "set/index.jsonl").read_text().splitlines()]
    rng = np.random.default_rng(0)
    shuffled = [{**row, "label": str(rng.choice(list(LIGHT)))} for row in lines]
    write_table(tmp_path / "set", shuffled)
    scores = run(tmp_path, model, "probe.shots=[4]", "probe.seeds=3")["light"]["scores"]
    for name in ("accuracy_4_shots", "accuracy"):
        assert scores[name]["low"] < 1 / 3 < scores[name]["high"]


def test_what_is_finished_is_not_fitted_again(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path / "set", {"train": 12, "val": 6, "test": 6})
    options = ["probe.shots=[1]", "probe.seeds=1"]
    first = run(tmp_path, model, *options)["light"]
    calls = []
    whole = logistic.fit
    monkeypatch.setattr(logistic, "fit", lambda *args: calls.append(args) or whole(*args))
    assert run(tmp_path, model, *options)["light"] == first
    assert not calls
    run(tmp_path, model, "probe.shots=[1]", "probe.seeds=2")
    assert len(calls) == 3, "two draws and the whole split"
    calls.clear()
    write_set(tmp_path / "set", {"train": 15, "val": 6, "test": 6})
    run(tmp_path, model, "probe.shots=[1]", "probe.seeds=2")
    assert len(calls) == 3, "other training data"


def test_scikit_learn_is_missed_before_anything_is_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite_config(tmp_path, tmp_path / "no-model", {"light": TASK})
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with fails("a probe needs sklearn, which isn't installed: pip install '.[probe]'"):
        main(["probe", str(tmp_path / "suite.yaml")])


def test_without_a_validation_split_whole_clusters_are_held_out(
    tmp_path: Path, model: Path
) -> None:
    write_set(tmp_path / "set", {"train": 60, "test": 12}, patients=20)
    found = run(tmp_path, model, "probe.shots=[]")["light"]
    assert (found["details"]["train"], found["details"]["val"]) == (48, 12)
    notes = " ".join(found["notes"])
    assert "chosen on a 5th of the training split, held out; no validation split: " in notes
    assert "12 of 12 patients of the test split are in training too" in notes


def test_validation_with_as_many_shots(tmp_path: Path, model: Path) -> None:
    write_set(tmp_path / "set", {"train": 30, "val": 30, "test": 12})
    sizes = []
    whole = logistic.fit

    def watched(train, val, classes, score):
        sizes.append((len(train.labels), len(val.labels)))
        return whole(train, val, classes, score)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logistic, "fit", watched)
        run(tmp_path, model, "probe.shots=[2,8]", "probe.seeds=1", "probe.validation=shots")
    assert sizes == [(6, 6), (24, 12), (30, 30)]


def test_tasks_without_training_data_are_left_out(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path / "set", {"train": 30, "val": 12, "test": 12})
    whole = {**TASK, "data": {**DATA, "split": ""}}
    tasks = {"light": TASK, "whole": whole, "pairs": PAIRS}
    found = run(tmp_path, model, "probe.shots=[]", **tasks)
    assert list(found) == ["light"]
    shown = " ".join(capsys.readouterr().out.split())
    assert "whole: left out: no training split: the task is scored on all of its data" in shown
    assert "pairs: left out: probes need labels, this is retrieval" in shown
    with fails("only: pairs: probes need labels, this is retrieval"):
        run(tmp_path, model, "only=[pairs]", **tasks)
    with fails("no task can be probed: pairs: "):
        run(tmp_path, model, **{"pairs": PAIRS})


def test_duplicates_across_splits_are_told(tmp_path: Path, model: Path) -> None:
    write_set(tmp_path / "set", {"train": 30, "val": 12, "test": 12})
    content = (tmp_path / "set" / "000.png").read_bytes()
    (tmp_path / "set" / "042.png").write_bytes(content)  # the first test image
    notes = run(tmp_path, model, "probe.shots=[]")["light"]["notes"]
    assert "at least 1 test images have the embedding of a training image" in notes


# --- findings that may occur together -------------------------------------------------------

FINDINGS = {
    "kind": "multilabel",
    "source": "made up",
    "data": DATA,
    "classes": {"bright": ["light"], "red": ["blood"], "absent": ["nothing"]},
    "templates": ["{c}"],
}


def write_findings(folder: Path, splits: dict[str, int]) -> None:
    """Images that are bright or not, and red or not; some labels aren't known."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for split, count in splits.items():
        for _ in range(count):
            number = len(rows)
            bright, red = number % 2, number // 2 % 2
            pixels = np.asarray(draw(number)).astype(float) / 255 * 40 + 60 + 120 * bright
            pixels[:, :, 1:] *= 0.4 if red else 1
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03}.png")
            labels = {"bright": bright, "red": "" if number % 7 == 0 else red, "absent": 0}
            rows.append({"image": f"{number:03}.png", "split": split, **labels})
    write_table(folder, rows)


def test_findings(tmp_path: Path, model: Path) -> None:
    write_findings(tmp_path / "set", {"train": 64, "val": 32, "test": 40})
    options = ["probe.shots=[4]", "probe.seeds=2"]
    found = run(tmp_path, model, *options, findings=FINDINGS)["findings"]
    scores, details = found["scores"], found["details"]
    assert list(scores)[:3] == ["zero_shot_auroc", "auroc_4_shots", "auroc"]
    assert scores["auroc"]["value"] > 0.95
    assert scores["auroc_4_shots"]["value"] == pytest.approx(
        np.mean(details["few_shot"][0]["values"])
    )
    per_class = details["per_class"]
    assert (per_class["bright"]["n"], per_class["bright"]["positives"]) == (40, 20)
    assert per_class["red"]["n"] == 34, "labels that aren't known count nowhere"
    assert per_class["absent"]["auroc"] is None
    assert details["strengths"][2] is None
    notes = " ".join(found["notes"])
    assert "class 'absent': training needs images with and without it" in notes
    assert "class 'absent' has only 0 training images" in notes
    assert found["items"]["rows"] == 40


def test_a_finding_is_fitted_where_its_label_is_known() -> None:
    """As a choice of two classes among the images that have the label."""
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(80, 5)), rng.integers(2, size=(80, 2))
    rows += labels @ rng.normal(size=(2, 5))
    labels[:30, 1] = UNKNOWN
    val = Labelled(rows[40:], labels[40:])
    bench = FindingBench.__new__(FindingBench)
    bench.metric, bench.findings = "auroc", ["a", "b"]
    bench.test = type("Items", (), {"items": [0] * 80, "data": Labelled(rows, labels)})
    found = bench.fit(Labelled(rows[:40], labels[:40]), val)
    direct = logistic.fit(
        Labelled(rows[30:40], labels[30:40, 1]),
        Labelled(rows[40:], labels[40:, 1]),
        2,
        lambda true, p: peer.roc_auc_score(true, p[:, 1] - p[:, 0]),
    )
    expected = direct.log_probabilities(rows)
    assert found.strengths[1] == direct.strength
    np.testing.assert_allclose(found.outputs[:, 1], expected[:, 1] - expected[:, 0])


def test_shots_of_findings() -> None:
    """So many with and without each finding; other labels of the same images are hidden."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=(60, 3))
    labels[:20, 2] = UNKNOWN
    bench = FindingBench.__new__(FindingBench)
    drawn = bench.draw(Labelled(rng.normal(size=(60, 4)), labels), 4, rng).labels
    for own, given in zip(drawn.T, labels.T, strict=True):
        assert ((own == 1).sum(), (own == 0).sum()) == (4, 4)
        assert (own[own != UNKNOWN] == given[own != UNKNOWN]).all()


# --- scores and intervals -------------------------------------------------------------------


def scored(n: int = 40, classes: int = 3, seed: int = 0, positive: int | None = None):
    rng = np.random.default_rng(seed)
    true = rng.integers(classes, size=n)
    logits = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[true]
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return class_scores(true, logits, logits.argmax(axis=1), positive), np.exp(logits)


def test_statistics_equal_scikit_learn() -> None:
    scores, probabilities = scored()
    true, predicted = scores.true, scores.predicted
    expected = {
        "accuracy": peer.accuracy_score(true, predicted),
        "mean_per_class_recall": peer.balanced_accuracy_score(true, predicted),
        "macro_f1": peer.f1_score(true, predicted, average="macro"),
        "auroc": peer.roc_auc_score(true, probabilities, multi_class="ovr"),
    }
    for metric, value in expected.items():
        # roc_auc_score normalises by probabilities, ours by log-probabilities: the same order.
        assert class_statistic(scores, metric)(None) == pytest.approx(value, abs=1e-12)
        assert class_statistic(scores, metric)(np.ones(40, np.int64)) == pytest.approx(
            value, abs=1e-12
        )
    overall = scores.overall()
    for metric in (*expected, "average_precision"):
        assert class_statistic(scores, metric)(None) == pytest.approx(overall[metric], abs=1e-12)
    two, _ = scored(classes=2, positive=1)
    for metric, value in two.overall().items():
        assert class_statistic(two, metric)(None) == pytest.approx(value, abs=1e-12)


def test_over_draws_against_a_loop() -> None:
    """Draws and clusters are resampled together; items of a cluster stay together."""
    rng = np.random.default_rng(0)
    right = rng.random((4, 30)) < np.array([0.5, 0.6, 0.7, 0.8])[:, None]
    clusters = np.arange(30) // 3
    statistics = [lambda w, row=row: float(np.average(row, weights=w)) for row in right]
    low, high = over_draws(statistics, clusters, seed=1, replicates=4000)
    naive = []
    for _ in range(4000):
        items = np.concatenate([np.flatnonzero(clusters == c) for c in rng.integers(10, size=10)])
        naive.append(np.mean([right[s, items].mean() for s in rng.integers(4, size=4)]))
    # Quantiles of 4,000 resamples of this deviation have an error of about 0.003.
    np.testing.assert_allclose([low, high], np.quantile(naive, [0.025, 0.975]), atol=0.015)


def test_draws_widen_the_interval() -> None:
    """Draws that differ among themselves are a doubt that items alone don't show."""
    right = np.repeat([[1.0], [0.0], [1.0], [0.0]], 50, axis=1)
    statistics = [lambda w, row=row: float(np.average(row, weights=w)) for row in right]
    low, high = over_draws(statistics, np.arange(50), seed=0, replicates=500)
    assert (low, high) == (0, 1)
    alike = [lambda w: float(np.average(right[0], weights=w))] * 4
    assert over_draws(alike, np.arange(50), seed=0, replicates=100) == (1, 1)
