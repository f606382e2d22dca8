"""Class embeddings, labels, and what is left out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn import metrics as sk
from torch.nn.functional import normalize

from eval import classification
from eval.config import DataConfig, TaskConfig
from eval.embed import ImageFeatures
from eval.prompts import mean_embeddings, prompts
from eval.readers import Dataset, Sample
from eval.tasks import BROKEN, Inputs
from tests.eval.tiny import fails

TEXTS = {"a x": (1, 0), "b x": (0, 1), "c x": (0.6, 0.8)}


def task(**keys: object) -> TaskConfig:
    data = DataConfig(reader="table", path="x.jsonl")
    default = {"templates": ["{c} x"], "classes": {"A": ["a"], "B": ["b"]}}
    return TaskConfig(kind="classification", data=data, source="test", **{**default, **keys})


def dataset(*labels: object) -> Dataset:
    rows = [[{"label": label}] if label != "unjoined" else [] for label in labels]
    samples = [Sample(f"{i}.png", [], row) for i, row in enumerate(rows)]
    every = [row for group in rows for row in group]
    return Dataset(samples, "f", every, images=SimpleNamespace(read=None))


def evaluate(
    task: TaskConfig,
    data: Dataset,
    features: torch.Tensor,
    broken: dict | None = None,
    texts: dict | None = None,
):
    vectors = {name: torch.tensor(v).float() for name, v in (texts or TEXTS).items()}

    def embed(wanted: list[str], name: str, unit: bool) -> torch.Tensor:
        rows = torch.stack([vectors[text] for text in wanted])
        return normalize(rows, dim=1) if unit else rows

    embedder = SimpleNamespace(texts=embed, model=SimpleNamespace(scale=10.0))
    images = ImageFeatures(normalize(features, dim=1), broken or {})
    return classification.evaluate(Inputs(task, data, images, embedder, "it", 0, 100))


def test_scores_by_hand() -> None:
    features = torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.1, 1.0], [0.9, 0.3]])
    result = evaluate(task(), dataset("A", "A", "B", "B"), features)
    assert result.details["confusion"] == [[2, 0], [1, 1]]
    assert result.scores["accuracy"].value == 0.75
    assert result.scores["mean_per_class_recall"].value == 0.75
    assert result.scores["accuracy"].chance == 0.5
    assert result.details["majority_share"] == 0.5
    row = result.details["per_class"]["B"]
    assert (row["n"], row["recall"], row["f1"]) == (2, 0.5, pytest.approx(2 / 3))
    assert result.details["prompts"] == {"A": ["a x"], "B": ["b x"]}
    # The mistake is an example, with the right answer second.
    (example,) = result.examples
    assert [(a.text, a.right) for a in example.answers] == [("A", False), ("B", True)]


def test_every_score_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    true = rng.choice(["A", "B", "C"], size=90, p=[0.6, 0.3, 0.1])
    classes = {"A": ["a"], "B": ["b"], "C": ["c"]}
    texts = {"a x": (1, 0, 0), "b x": (0, 1, 0), "c x": (0, 0, 1)}
    features = torch.from_numpy(
        rng.normal(size=(90, 3)) + 0.8 * np.eye(3)[np.searchsorted(list("ABC"), true)]
    )
    result = evaluate(task(classes=classes), dataset(*true), features.float(), texts=texts)

    cosines = normalize(features.float(), dim=1).double().numpy()
    number = np.searchsorted(list("ABC"), true)
    predicted, probability = cosines.argmax(axis=1), softmax(10 * cosines, axis=1)
    one_hot = np.eye(3)[number]
    expected = {
        "accuracy": sk.accuracy_score(number, predicted),
        "mean_per_class_recall": sk.balanced_accuracy_score(number, predicted),
        "macro_f1": sk.f1_score(number, predicted, average="macro"),
        "auroc": sk.roc_auc_score(number, probability, multi_class="ovr"),
        "average_precision": sk.average_precision_score(one_hot, probability),
    }
    assert {key: score.value for key, score in result.scores.items()} == pytest.approx(expected)
    for score in result.scores.values():
        assert score.low < score.value < score.high
        assert score.value > score.chance
    per_class = result.details["per_class"]
    assert per_class["C"]["auroc"] == pytest.approx(
        sk.roc_auc_score(number == 2, probability[:, 2])
    )
    low, high = per_class["C"]["auroc_interval"]
    assert low < per_class["C"]["auroc"] < high
    # The items give the scores again: what `compare` relies on.
    assert np.mean([item["value"] for item in result.items]) == result.scores["accuracy"].value
    kept = np.exp([item["scores"] for item in result.items])
    assert kept == pytest.approx(probability)
    assert [item["label"] for item in result.items] == true.tolist()
    assert result.items[7]["id"] == result.items[7]["cluster"] == "7.png"


def test_of_two_classes_one_may_be_looked_for() -> None:
    rng = np.random.default_rng(1)
    true = rng.choice(["A", "B"], size=60, p=[0.8, 0.2])
    features = torch.from_numpy(rng.normal(size=(60, 2))).float()
    macro = evaluate(task(), dataset(*true), features).scores
    found = evaluate(task(positive="B", metric="f1"), dataset(*true), features)
    cosines = normalize(features, dim=1).double().numpy()
    margin = cosines[:, 1] - cosines[:, 0]
    scores = {key: score.value for key, score in found.scores.items()}
    assert scores["f1"] == pytest.approx(sk.f1_score(true == "B", margin > 0))
    assert scores["average_precision"] == pytest.approx(
        sk.average_precision_score(true == "B", margin)
    )
    assert scores["auroc"] == pytest.approx(sk.roc_auc_score(true == "B", margin))
    assert scores["auroc"] == pytest.approx(macro["auroc"].value)
    assert found.headline == ["f1"]
    assert found.scores["average_precision"].chance < macro["average_precision"].chance
    assert "f1" not in macro


def test_scores_of_one_class_alone() -> None:
    data = dataset("A", "A")
    assert set(evaluate(task(), data, torch.eye(2)).scores) >= {"accuracy", "macro_f1"}
    assert "auroc" not in evaluate(task(), data, torch.eye(2)).scores
    with fails("tasks.it.metric: auroc needs items of two classes or more"):
        evaluate(task(metric="auroc"), data, torch.eye(2))


def test_names_and_templates_are_averaged_and_normalised_again() -> None:
    texts = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    classes = mean_embeddings(texts, [2, 1])
    expected = torch.tensor([0.8, 0.4]) / torch.tensor([0.8, 0.4]).norm()
    assert torch.allclose(classes[0], expected)
    assert torch.equal(classes[1], texts[2])


def test_ensembles_differ_where_prompts_differ_in_length() -> None:
    """The long prompt of class A carries BioViL's mean, CLIP's mean lies between the two."""
    texts = {"long": (4, 0), "short": (0, 1), "other": (1, 0.8)}
    classes = {"A": ["long", "short"], "B": ["other"]}
    image = torch.tensor([[1.0, 0.35]])  # at 19 degrees; B at 39
    answer = {}
    for ensemble in ("clip", "biovil"):
        one = task(classes=classes, templates=["{c}"], ensemble=ensemble)
        answer[ensemble] = evaluate(one, dataset("A"), image, texts=texts).items[0]["predicted"]
    assert answer == {"clip": "B", "biovil": "A"}  # A at 45 or 14 degrees


def test_the_nearest_name_may_speak_for_the_class() -> None:
    """Class A has two opposite names, whose mean points nowhere near its images."""
    vectors = {"up": (0, 1), "up!": (0.1, 1), "down": (0, -1), "down!": (0.1, -1)}
    vectors |= {"right": (1, 0), "right!": (1, 0.1)}
    images = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
    classes = {"A": ["up", "down"], "B": ["right"]}
    right = {}
    for pool in ("mean", "max"):
        one = task(classes=classes, templates=["{c}", "{c}!"], pool=pool)
        found = evaluate(one, dataset("A", "A", "B"), images, texts=vectors)
        right[pool] = found.scores["accuracy"].value
    assert right["max"] == 1.0
    assert right["mean"] < 1.0


def test_prompts_are_every_name_in_every_template() -> None:
    one = task(templates=["{c}", "a {c}"], classes={"A": ["u", "v"], "B": ["w"]})
    expected = {"A": ["u", "a u", "v", "a v"], "B": ["w", "a w"]}
    assert prompts(one, dataset("A", "B")) == expected


def test_what_is_left_out_is_counted() -> None:
    data = dataset("A", "B", None, "unjoined", "B", float("nan"))
    data.samples[4] = Sample("4.png", [], [{"label": "A"}, {"label": "B"}])
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 3)
    result = evaluate(task(), data, features, broken={1: "damaged"})
    assert result.n == 1
    assert result.excluded == {
        "no label": 2,
        "no row in the table of labels": 1,
        "several different labels": 1,
        BROKEN: 1,
    }
    assert result.notes == [
        "class 'B' has no item in this split",
        "few items of 'A' 1: class means are less sure than their intervals",
    ]
    row = result.details["per_class"]["B"]
    assert (row["n"], row["recall"], row["recall_interval"], row["auroc"]) == (0, None, None, None)


def test_two_rows_that_agree_are_one_label() -> None:
    data = dataset("A", "B")
    data.samples[0] = Sample("0.png", [], [{"label": "A"}, {"label": None}, {"label": "A"}])
    result = evaluate(task(), data, torch.eye(2))
    assert (result.n, result.scores["accuracy"].value) == (2, 1.0)


def test_a_label_of_two_columns() -> None:
    one = task(label="{organ}, {finding}")
    assert classification.label_of(one, {"organ": "lung", "finding": "mass"}) == "lung, mass"
    assert classification.label_of(one, {"organ": "lung", "finding": None}) == ""


@pytest.mark.parametrize(
    ("value", "label"), [(True, "true"), (3.0, "3"), (3.5, "3.5"), (" x ", "x"), (0, "0")]
)
def test_labels_of_other_types_become_text(value: object, label: str) -> None:
    assert classification.label_of(task(), {"label": value}) == label


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            {"A": ["a"], "B": ["b"], "D": ["d"]},
            "suite: tasks.it.classes.D: no row has the label 'D'; there are A, B, C",
        ),
        (
            {"A": ["a"], "B": ["b"]},
            "suite: tasks.it.classes: the data has the label 'C', the suite has only A, B; add",
        ),
    ],
)
def test_classes_that_do_not_fit_the_data(classes: dict, message: str) -> None:
    with fails(message):
        classification.check("suite: tasks.it", task(classes=classes), dataset("A", "B", "C"))


def test_a_class_of_another_split_is_no_misspelling() -> None:
    data = dataset("A", "B")
    data.every_row.append({"label": "C"})
    classes = {"A": ["a"], "B": ["b"], "C": ["c"]}
    classification.check("it", task(classes=classes), data)


def test_missing_columns_are_named() -> None:
    with fails("it.label: no column 'finding'; there are label"):
        classification.check("it", task(label="finding"), dataset("A", "B"))
    with fails("it.cluster: no column 'patient'; there are label"):
        classification.check("it", task(cluster="patient"), dataset("A", "B"))
    with fails("it.where.age: no column 'age'; there are label"):
        classification.check("it", task(where={"age": ["3"]}), dataset("A", "B"))
    with fails("it.where: leaves no row of split 'test'"):
        classification.check("it", task(where={"label": ["Z"]}), dataset("A", "B"))
