"""Findings that occur together: labels of all layouts, scores by hand and against scikit-learn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn import metrics as sk
from torch.nn.functional import normalize

from eval import multilabel
from eval.config import DataConfig, MultilabelConfig, TaskConfig, problems
from eval.embed import ImageFeatures
from eval.label_config import PromptPair
from eval.multilabel import UNKNOWN, labels_of
from eval.readers import Dataset, Sample
from eval.tasks import BROKEN, Inputs
from tests.eval.tiny import fails

CLASSES = {"Edema": ["edema"], "Mass": ["mass"], "Fracture": ["fracture"]}


def task(**keys: object) -> TaskConfig:
    own = {key: keys.pop(key) for key in list(keys) if key in MultilabelConfig.__annotations__}
    default = {"templates": ["{c}"], "classes": CLASSES}
    return TaskConfig(
        kind="multilabel",
        data=DataConfig(reader="table", path="x.csv"),
        source="test",
        multilabel=MultilabelConfig(**own),
        **{**default, **keys},
    )


def dataset(rows: list[dict]) -> Dataset:
    samples = [Sample(f"{i}.png", [], [row]) for i, row in enumerate(rows)]
    return Dataset(samples, "f", rows, images=SimpleNamespace(read=None))


def evaluate(task: TaskConfig, rows: list[dict], features: np.ndarray, texts: dict, broken=()):
    vectors = {name: torch.tensor(v).float() for name, v in texts.items()}

    def embed(wanted: list[str], name: str, unit: bool) -> torch.Tensor:
        found = torch.stack([vectors[text] for text in wanted])
        return normalize(found, dim=1) if unit else found

    embedder = SimpleNamespace(texts=embed, model=SimpleNamespace(scale=10.0))
    images = ImageFeatures(
        normalize(torch.from_numpy(features).float(), dim=1), dict.fromkeys(broken, "damaged")
    )
    return multilabel.evaluate(Inputs(task, dataset(rows), images, embedder, "it", 0, 200))


def random_case(seed: int = 0, n: int = 120):
    """Images whose first three dimensions hint at the findings, labels partly unknown."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 3)) < [0.5, 0.3, 0.1]).astype(int)
    features = rng.normal(size=(n, 6)) + np.hstack([labels, np.zeros((n, 3))])
    cells = np.where(rng.random((n, 3)) < 0.2, "-1", labels.astype(str))
    rows = [dict(zip(CLASSES, row, strict=True)) for row in cells.tolist()]
    texts = {}
    for i, name in enumerate(["edema", "mass", "fracture"]):
        texts[name] = np.eye(6)[i].tolist()
        texts[f"no {name}"] = (np.eye(6)[3 + i] * 0.7 + 0.2).tolist()
    return rows, np.where(cells == "-1", UNKNOWN, labels), features, texts


def margins(features: np.ndarray, texts: dict) -> np.ndarray:
    images = features / np.linalg.norm(features, axis=1, keepdims=True)
    unit = {name: np.array(v) / np.linalg.norm(v) for name, v in texts.items()}
    names = ["edema", "mass", "fracture"]
    return np.stack([images @ (unit[name] - unit[f"no {name}"]) for name in names], axis=1)


@pytest.mark.parametrize("score", ["softmax", "difference"])
def test_every_score_equals_scikit_learn(score: str) -> None:
    rows, labels, features, texts = random_case()
    result = evaluate(task(score=score), rows, features, texts)
    margin = margins(features, texts)
    expected: dict[str, list[float]] = {key: [] for key in result.scores}
    for c in range(3):
        known = labels[:, c] != UNKNOWN
        truth, own = labels[known, c], margin[known, c]
        expected["auroc"].append(sk.roc_auc_score(truth, own))
        expected["average_precision"].append(sk.average_precision_score(truth, own))
        expected["macro_f1"].append(sk.f1_score(truth, own > 0))
        expected["mean_balanced_accuracy"].append(sk.balanced_accuracy_score(truth, own > 0))
    table = list(result.details["per_class"].values())
    for key, values in expected.items():
        found = result.scores[key]
        assert found.value == pytest.approx(np.mean(values))
        assert found.low < found.value < found.high
        assert found.value > found.chance
        name = {"macro_f1": "f1", "mean_balanced_accuracy": "balanced_accuracy"}.get(key, key)
        assert [row[name] for row in table] == pytest.approx(values)
        assert all(row[f"{name}_interval"][0] <= row[name] for row in table)
    assert [row["n"] for row in table] == (labels != UNKNOWN).sum(axis=0).tolist()
    assert [row["positives"] for row in table] == (labels == 1).sum(axis=0).tolist()
    shown = expit(10 * margin) if score == "softmax" else margin
    kept = np.array([item["scores"] for item in result.items])
    ids = [int(item["id"].removesuffix(".png")) for item in result.items]
    assert kept == pytest.approx(shown[ids], abs=1e-6)


def test_without_negative_prompts_nothing_is_decided() -> None:
    rows, labels, features, texts = random_case(1)
    result = evaluate(task(negative=[]), rows, features, texts)
    assert set(result.scores) == {"auroc", "average_precision"}
    cosine = features / np.linalg.norm(features, axis=1, keepdims=True)
    known = labels[:, 0] != UNKNOWN
    found = result.details["per_class"]["Edema"]["auroc"]
    assert found == pytest.approx(sk.roc_auc_score(labels[known, 0], cosine[known, 0]))
    assert result.details["score"] == "cosine"
    assert result.items[0]["value"] is None
    assert result.examples == []


def test_sentences_of_a_finding_replace_its_templates() -> None:
    """As BioViL's for pneumonia; with its mean of embeddings as they are."""
    texts = {
        "mass": (1, 0), "no mass": (-1, 0), "fracture": (0, 1), "no fracture": (0, -1),
        "opacity": (3, 0), "wet": (0, 1), "clear": (0.1, -0.2),
    }  # fmt: skip
    pair = PromptPair(positive=["opacity", "wet"], negative=["clear"])
    rows = [{"Edema": i % 2, "Mass": 1, "Fracture": 0} for i in range(4)]
    features = np.array([[0.0, 1.0], [1.0, 0.4]] * 2)
    one = task(prompts={"Edema": pair}, ensemble="biovil")
    result = evaluate(one, rows, features, texts)
    assert result.details["prompts"]["Edema"] == ["opacity", "wet"]
    assert result.details["negative_prompts"]["Mass"] == ["no mass"]
    positive, negative = np.array([1.5, 0.5]), np.array([0.1, -0.2])
    gap = positive / np.linalg.norm(positive) - negative / np.linalg.norm(negative)
    image = features[1] / np.linalg.norm(features[1])
    assert result.items[1]["scores"][0] == pytest.approx(expit(10 * image @ gap), abs=1e-6)
    assert result.details["per_class"]["Mass"]["auroc"] is None
    assert result.notes == [
        "class 'Mass' has no negatives in this split",
        "class 'Fracture' has no positives in this split",
    ]


def test_images_that_are_left_out_are_counted() -> None:
    rows, _, features, texts = random_case(2, n=60)
    rows[3] = dict.fromkeys(CLASSES, "")
    result = evaluate(task(), rows, features, texts, broken=[5])
    assert result.excluded == {"no label": 1, BROKEN: 1}
    assert result.n == len(result.items) == 58
    assert {"3.png", "5.png"}.isdisjoint(item["id"] for item in result.items)


def test_credit_is_the_share_of_right_decisions() -> None:
    rows, labels, features, texts = random_case(3)
    result = evaluate(task(), rows, features, texts)
    said = margins(features, texts) > 0
    known = labels != UNKNOWN
    right = ((said == (labels == 1)) & known).sum(axis=1) / known.sum(axis=1).clip(1)
    for item in result.items:
        assert item["value"] == pytest.approx(right[int(item["id"].removesuffix(".png"))])


def test_the_surest_mistakes_are_shown() -> None:
    rows, labels, features, texts = random_case(4)
    result = evaluate(task(), rows, features, texts)
    margin = margins(features, texts)
    wrong = (labels != UNKNOWN) & ((margin > 0) != (labels == 1))
    i, c = np.unravel_index(np.where(wrong, np.abs(margin), 0).argmax(), margin.shape)
    first = result.examples[0]
    assert first.title == f"{i}.png"
    word = "found" if margin[i, c] > 0 else "missed"
    assert first.text.startswith(f"{list(CLASSES)[c]} {word}; present: ")


@pytest.mark.parametrize(
    ("settings", "row", "expected"),
    [
        ({}, {"Edema": 1, "Mass": 0, "Fracture": "1.0"}, [1, 0, 1]),
        ({}, {"Edema": -1.0, "Mass": None, "Fracture": True}, [UNKNOWN, UNKNOWN, 1]),
        ({"uncertain": "positive", "blank": "negative"}, {"Edema": "-1"}, [1, 0, 0]),
        ({"uncertain": "negative"}, {"Edema": "-1.0", "Mass": float("nan")}, [0, UNKNOWN, UNKNOWN]),
        ({"labels": "list"}, {"label": "Mass|Edema"}, [1, 1, 0]),
        ({"labels": "list"}, {"label": ["Fracture"]}, [0, 0, 1]),
        ({"labels": "list"}, {"label": []}, [0, 0, 0]),
        ({"labels": "list"}, {"label": None}, [UNKNOWN] * 3),
        ({"labels": "list"}, {"label": " "}, [UNKNOWN] * 3),
        ({"labels": "vector"}, {"label": ""}, [UNKNOWN] * 3),
        ({"labels": "list", "separator": ";"}, {"label": "Mass; Edema"}, [1, 1, 0]),
        ({"labels": "list", "ignore": ["No Finding"]}, {"label": "No Finding"}, [0, 0, 0]),
        ({"labels": "vector"}, {"label": [0, 1, 1]}, [0, 1, 1]),
        ({"labels": "vector"}, {"label": np.array([1, 0, 0])}, [1, 0, 0]),
        ({"labels": "vector"}, {"label": "[0, 0, 1]"}, [0, 0, 1]),
    ],
)
def test_layouts_of_labels(settings: dict, row: dict, expected: list[int]) -> None:
    assert labels_of(task(**settings), row, list(CLASSES)) == expected


@pytest.mark.parametrize(
    ("settings", "row", "message"),
    [
        ({}, {"Edema": "maybe", "Mass": 0, "Fracture": 0}, "'Edema' is 'maybe', not 1, 0, -1 or"),
        ({"labels": "list"}, {"label": "Hernia"}, "'label' has 'Hernia', which is no class; add"),
        ({"labels": "vector"}, {"label": [0, 1]}, "'label' needs a 0 or 1 for each of 3 classes"),
        ({"labels": "vector"}, {"label": [0, 1, 2]}, "'label' needs a 0 or 1 for each of 3"),
    ],
)
def test_labels_that_say_nothing_known(settings: dict, row: dict, message: str) -> None:
    with fails(f"suite: tasks.it: image '0.png': {message}"):
        multilabel.check("suite: tasks.it", task(**settings), dataset([row]))


def test_missing_columns_are_named() -> None:
    with fails("it.classes.Fracture: no column 'Fracture'; there are Edema, Mass"):
        multilabel.check("it", task(), dataset([{"Edema": 1, "Mass": 0}]))
    with fails("it.label: no column 'label'; there are Edema"):
        multilabel.check("it", task(labels="list"), dataset([{"Edema": 1}]))


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ({"templates": []}, "templates", "is empty"),
        ({"negative": ["none"]}, "multilabel.negative", "no placeholder {c}"),
        (
            {"prompts": {"X": PromptPair(positive=["a"], negative=["b"])}},
            "multilabel.prompts.X",
            "no",
        ),
        ({"prompts": {"Mass": PromptPair(positive=["a"])}}, "multilabel.prompts.Mass", "needs"),
        ({"negative": [], "metric": "macro_f1"}, "multilabel.metric", "macro_f1 needs a decision"),
    ],
)
def test_impossible_settings_are_told(keys: dict, key: str, message: str) -> None:
    (found, problem), *_ = problems(task(**keys))
    assert found == key
    assert problem.startswith(message) or message in problem


def test_a_score_that_no_finding_defines_is_told() -> None:
    rows = [{"Edema": 1, "Mass": 1, "Fracture": 1}] * 3
    _, _, _, texts = random_case()
    with fails("tasks.it: auroc needs a class that some images have and some lack"):
        evaluate(task(), rows, np.eye(6)[:3], texts)
