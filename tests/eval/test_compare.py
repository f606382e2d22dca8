"""`python -m eval compare`: equal items, the reported scores, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from eval.__main__ import main
from eval.contrasts import Side, compare_score, why_not
from eval.paired import Resampling
from eval.results import read_folder
from tests.eval.test_probe import FINDINGS, write_findings
from tests.eval.tiny import fails, suite_config, write_model, write_table

FEW = Resampling(0, 100, 100)
CLASSES = ["a", "b", "c"]


def side(kind: str, items: dict, scores: dict, **details: object) -> Side:
    n = len(items["id"])
    record = {
        "kind": kind,
        "task": "t",
        "details": {"classes": CLASSES, **details},
        "config": {"positive": ""},
        "scores": {key: {"value": value} for key, value in scores.items()},
    }
    return Side(Path("t.json"), record, {"cluster": [str(i // 2) for i in range(n)], **items})


def choices(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray, Side]:
    """(true, scores, the side of one model that is right more often than not)."""
    true = np.arange(n) % 3
    scores = np.random.default_rng(seed).normal(size=(n, 3)) + np.eye(3)[true]
    said = scores.argmax(axis=1)
    items = {
        "id": [f"{i:03}" for i in range(n)],
        "value": (true == said).astype(float).tolist(),
        "label": [CLASSES[i] for i in true],
        "predicted": [CLASSES[i] for i in said],
        "scores": scores.tolist(),
    }
    onehot = np.eye(3)[true]
    found = {
        "accuracy": (true == said).mean(),
        "mean_per_class_recall": np.mean([(said == c)[true == c].mean() for c in range(3)]),
        "macro_f1": f1_score(true, said, average="macro"),
        "auroc": roc_auc_score(onehot, scores, average="macro"),
        "average_precision": average_precision_score(onehot, scores, average="macro"),
    }
    return true, scores, side("classification", items, found)


@pytest.mark.parametrize(
    "key", ["accuracy", "mean_per_class_recall", "macro_f1", "auroc", "average_precision"]
)
def test_classification(key: str) -> None:
    """The difference is that of scikit-learn's scores."""
    (_, _, a), (_, _, b) = choices(0), choices(1)
    found = compare_score(key, a, b, FEW)
    assert found is not None
    told = [s.record["scores"][key]["value"] for s in (a, b)]
    change = found.difference
    assert change.value == pytest.approx(told[1] - told[0])
    assert change.low < change.value < change.high
    assert 0 < change.p <= 1
    assert (found.n, found.clusters) == (60, 30)


def test_multilabel() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=(40, 3))
    sides = []
    for seed in (1, 2):
        scores = labels + np.random.default_rng(seed).normal(size=(40, 3))
        items = {
            "id": [f"{i:02}" for i in range(40)],
            "value": [0.0] * 40,
            "label": labels.tolist(),
            "scores": scores.tolist(),
        }
        found = {
            "auroc": roc_auc_score(labels, scores, average="macro"),
            "average_precision": average_precision_score(labels, scores, average="macro"),
            "macro_f1": f1_score(labels, scores > 0, average="macro"),
        }
        sides.append(side("multilabel", items, found, score="difference"))
    for key in ("auroc", "average_precision", "macro_f1"):
        found = compare_score(key, *sides, FEW)
        assert found is not None
        told = [s.record["scores"][key]["value"] for s in sides]
        assert found.difference.value == pytest.approx(told[1] - told[0])


def test_recall_of_either_direction() -> None:
    def ranked(ranks: list[int], i2t: float, t2i: float) -> Side:
        items = {
            "id": ["i0", "i1", "i2", "t0", "t1"],
            "direction": ["image_to_text"] * 3 + ["text_to_image"] * 2,
            "rank": ranks,
        }
        scores = {"image_to_text_recall@2": i2t, "text_to_image_recall@2": t2i}
        return side("retrieval", items, scores)

    a, b = ranked([1, 2, 3, 4, 5], 2 / 3, 0.0), ranked([1, 2, 2, 1, 3], 1.0, 0.5)
    found = [
        compare_score(f"{way}_recall@2", a, b, FEW) for way in ("image_to_text", "text_to_image")
    ]
    assert [f.difference.value for f in found if f] == pytest.approx([1 / 3, 0.5])
    assert [(f.n, f.clusters) for f in found if f] == [(3, 2), (2, 2)]


def test_means_over_findings() -> None:
    def judged(cnr: list[float], mean: float) -> Side:
        items = {"id": ["a", "b", "c"], "category": ["x", "x", "y"], "cnr": cnr}
        return side("grounding", items, {"cnr": mean})

    a, b = judged([0.0, 1.0, 2.0], 1.25), judged([1.0, 1.0, 3.0], 2.0)
    found = compare_score("cnr", a, b, FEW)
    assert found is not None
    assert found.difference.value == pytest.approx(0.75)


def test_parts_of_the_questions_by_hand() -> None:
    """Items 0 to 2 are closed, 3 to 5 open; 0 and 3 have an image of the training split."""

    def answered(values: list[float], f1: list[float], scores: dict) -> Side:
        items = {
            "id": [str(i) for i in range(6)],
            "value": values,
            "closed": [True] * 3 + [False] * 3,
            "token_f1": [None] * 3 + f1,
            "seen_in_training": [True, False, False] * 2,
        }
        return side("vqa", items, scores)

    a = answered(
        [1, 0, 0, 0, 0, 1],
        [0.5, 0.0, 1.0],
        {
            **{"closed_accuracy": 1 / 3, "open_accuracy": 1 / 3, "open_token_f1": 0.5},
            "accuracy_on_unseen_images": 1 / 4,
        },
    )
    b = answered(
        [1, 1, 0, 1, 1, 1],
        [1.0, 0.8, 1.0],
        {
            **{"closed_accuracy": 2 / 3, "open_accuracy": 1.0, "open_token_f1": 2.8 / 3},
            "accuracy_on_unseen_images": 3 / 4,
        },
    )
    for key, n in {
        **{"closed_accuracy": 3, "open_accuracy": 3, "open_token_f1": 3},
        "accuracy_on_unseen_images": 4,
    }.items():
        found = compare_score(key, a, b, FEW)
        assert found is not None
        told = [s.record["scores"][key]["value"] for s in (a, b)]
        assert found.difference.value == pytest.approx(told[1] - told[0])
        assert found.n == n


def test_items_have_to_give_the_score() -> None:
    (_, _, a), (_, _, b) = choices(0), choices(1)
    b.record["scores"]["auroc"]["value"] += 0.01
    with fails("t.json: auroc is"):
        compare_score("auroc", a, b, FEW)


def test_an_unknown_score_is_not_made_up() -> None:
    a = side("vqa", {"id": ["x"], "value": [1.0]}, {"open_token_f1": 0.5})
    assert compare_score("open_token_f1", a, a, FEW) is None
    assert why_not("open_token_f1", a) == "can't be had from the items of t.json"


# --- the program ----------------------------------------------------------------------------

TABLE = {"reader": "table", "path": "set/index.jsonl", "split": ""}
TASKS = {
    "pairs": {"kind": "retrieval", "source": "made up", "data": TABLE, "ks": [3]},
    "parity": {
        "kind": "classification",
        "source": "made up",
        "data": TABLE,
        "label": "parity",
        "classes": {"even": ["even"], "odd": ["odd"]},
        "templates": ["{c}"],
        "metric": "auroc",
        "cluster": "patient",
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write_model(folder / name, seed) for seed, name in enumerate("ab")]


@pytest.fixture
def root(tmp_path: Path, models: list[Path]) -> Path:
    """Results of two models in a/ and b/."""
    rows = [
        {"caption": f"number {i}", "parity": ["even", "odd"][i % 2], "patient": f"p{i // 2}"}
        for i in range(12)
    ]
    write_table(tmp_path / "set", rows)
    score(tmp_path, models)
    return tmp_path


def score(root: Path, models: list[Path], *arguments: str, tasks: dict = TASKS) -> None:
    for name, model in zip("ab", models, strict=True):
        if name == "b" or not (root / "a").exists():
            suite_config(root, model, tasks)
            main([str(root / "suite.yaml"), f"out={root / name}", *arguments])


def test_the_program(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(root / "a"), str(root / "b"), "permutations=200", "replicates=100"]
    main(["compare", *arguments, f"out={root / 'found.json'}"])
    shown = capsys.readouterr().out
    assert "95% interval" in shown
    assert "+" in shown
    found = json.loads((root / "found.json").read_text())
    a, b = read_folder(root / "a"), read_folder(root / "b")
    assert [(line["task"], line["score"]) for line in found["scores"]] == [
        (task, key) for task in sorted(TASKS) for key in a[task]["headline"]
    ]
    for line in found["scores"]:
        told = [records[line["task"]]["scores"][line["score"]]["value"] for records in (a, b)]
        assert [line["a"], line["b"]] == told
        assert line["difference"]["value"] == pytest.approx(told[1] - told[0])
        assert 1 / 201 <= line["difference"]["p"] <= line["p_bh"] <= line["p_holm"] <= 1
    assert {line["clusters"] for line in found["scores"] if line["task"] == "parity"} == {6}
    main(["compare", *arguments, "only=[parity]", "scores=all"])
    assert "macro f1" in capsys.readouterr().out


def test_other_prompts_are_said(
    root: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    score(root, models, "tasks.parity.templates=['a number that is {c}']")
    main(["compare", str(root / "a"), str(root / "b"), "permutations=100", "replicates=100"])
    assert "parity: A and B differ in templates" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace('"odd"', '"even"', 1), "other names, captions or labels"),
        (lambda t: "\n".join(t.splitlines()[:-1]), "other names, captions or labels"),
    ],
)
def test_other_data_is_refused(
    root: Path, models: list[Path], change: object, message: str
) -> None:
    path = root / "set" / "index.jsonl"
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    score(root, models)
    with fails(f"{root / 'a/pairs.json'} and {root / 'b/pairs.json'}: {message}"):
        main(["compare", str(root / "a"), str(root / "b")])


def test_other_images_or_splits_are_refused(root: Path, models: list[Path]) -> None:
    image = root / "set" / "000.png"
    image.write_bytes((root / "set" / "001.png").read_bytes())
    score(root, models)
    with fails("other image files (images_sha256 differs); leave it out with only=[...]"):
        main(["compare", str(root / "a"), str(root / "b")])
    where = {"parity": {**TASKS["parity"], "where": {"patient": ["p0", "p1", "p2"]}}}
    score(root, models, tasks=where)
    with fails("other i"):
        main(["compare", str(root / "a"), str(root / "b"), "only=[parity]"])


def test_what_can_not_be_compared(root: Path) -> None:
    a, b = str(root / "a"), str(root / "b")
    with fails("compare: name two folders of results"):
        main(["compare", a])
    with fails("only: 'pair' is not in both; there are pairs, parity"):
        main(["compare", a, b, "only=[pair]"])
    with fails("permutations=5: set it to 100 or more"):
        main(["compare", a, b, "permutations=5"])
    (root / "b" / "pairs.json").unlink()
    (root / "a" / "parity.json").unlink()
    with fails("no task in common"):
        main(["compare", a, b])


def told_and_found(root: Path, a: str, b: str) -> tuple[set, set, list[str]]:
    """(all scores of the records, those that are compared, why the others are not)."""
    folders = [str(root / a), str(root / b)]
    few = ["scores=all", "permutations=100", "replicates=100"]
    main(["compare", *folders, *few, f"out={root / 'found.json'}"])
    found = json.loads((root / "found.json").read_text())
    told = {(t, key) for t, record in read_folder(root / a).items() for key in record["scores"]}
    for line in found["scores"]:
        assert line["difference"]["value"] == pytest.approx(line["b"] - line["a"])
        assert 0 < line["clusters"] <= line["n"]
    compared = {(line["task"], line["score"]) for line in found["scores"]}
    return told, compared, found["not_compared"]


def test_every_score_of_every_kind(tmp_path: Path, models: list[Path]) -> None:
    rows = [
        {
            "caption": f"number {i}",
            "parity": ["even", "odd"][i % 2],
            "patient": f"p{i // 2}",
            "found": ["x", "y", "x|y"][i % 3],
            "label_text": ["a spot", "a stripe"][i % 2],
            "category_name": ["spot", "stripe"][i % 2],
            "boxes": [[i, 4, 12, 16]],
            "question": f"Is it {i}?",
            "answer": ["yes", "no"][i % 2],
        }
        for i in range(12)
    ]
    write_table(tmp_path / "set", rows)
    common = {"source": "made up", "data": TABLE}
    tasks = {
        "pairs": {**TASKS["pairs"], "ks": [1, 3]},
        "parity": {**TASKS["parity"], "positive": "odd", "metric": "f1"},
        "findings": {
            **common,
            "kind": "multilabel",
            "label": "found",
            "classes": {"x": ["x"], "y": ["y"]},
            "templates": ["{c}"],
            "multilabel": {"labels": "list"},
        },
        "boxes": {**common, "kind": "grounding"},
        "closed": {**common, "kind": "vqa", "fixed_options": ["yes", "no"]},
    }
    score(tmp_path, models, tasks=tasks)
    told, found, reasons = told_and_found(tmp_path, "a", "b")
    assert {task for task, _ in told} == set(tasks)
    assert found == told
    assert reasons == []


def always_yes(images: list, prompts: list[str]) -> list[str]:
    return ["yes"] * len(prompts)


def sees_a_mass(images: list, prompts: list[str]) -> list[str]:
    return ["a mass" if "What" in prompt else "no" for prompt in prompts]


def test_every_score_of_a_generative_model(tmp_path: Path, models: list[Path]) -> None:
    rows = [
        {"question": q, "answer": a, "answer_type": kind}
        for q, a, kind in [
            ("Is it?", "yes", "closed"),
            ("Is it not?", "no", "closed"),
            ("What is it?", "a large mass", "open"),
            ("What else?", "nothing", "open"),
        ]
    ]
    write_table(tmp_path / "set", rows)
    task = {"kind": "vqa", "source": "made up", "data": TABLE, "fixed_options": ["yes", "no"]}
    for name, function in (("a", "always_yes"), ("b", "sees_a_mass")):
        suite_config(tmp_path, models[0], {"it": task})
        model = f"model=python:{__name__}:{function}"
        main([str(tmp_path / "suite.yaml"), model, f"out={tmp_path / name}"])
    told, found, reasons = told_and_found(tmp_path, "a", "b")
    parts = ("accuracy", "closed_accuracy", "open_accuracy", "open_token_f1", "open_token_recall")
    assert told == found == {("it", key) for key in parts}
    assert reasons == []


def test_probes_of_findings_and_what_is_said_of_shots(tmp_path: Path, models: list[Path]) -> None:
    write_findings(tmp_path / "set", {"train": 40, "val": 20, "test": 20})
    for name, model in zip("ab", models, strict=True):
        suite_config(tmp_path, model, {"findings": FINDINGS}, out=str(tmp_path / name))
        few = ["probe.shots=[1]", "probe.seeds=1"]
        main(["probe", str(tmp_path / "suite.yaml"), *few])
    told, found, reasons = told_and_found(tmp_path, "a/probe", "b/probe")
    left = {"zero_shot_auroc", "auroc_1_shot"}
    assert found == {(task, key) for task, key in told if key not in left}
    assert ("findings", "macro_f1") in found, "decisions are by the sign of the probe's margin"
    said = "\n".join(reasons)
    assert "findings: auroc_1_shot is a mean over draws of training images" in said
    assert "findings: zero_shot_auroc is that of the suite without training" in said
