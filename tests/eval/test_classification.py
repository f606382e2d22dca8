"""Class embeddings, labels, and what is left out."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import normalize

from eval import classification
from eval.config import DataConfig, TaskConfig
from eval.embed import ImageFeatures
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


def evaluate(task: TaskConfig, data: Dataset, features: torch.Tensor, broken: dict | None = None):
    embedder = SimpleNamespace(
        texts=lambda texts, name: torch.tensor([TEXTS[t] for t in texts]).float()
    )
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
    assert result.details["per_class"]["B"] == {"n": 2, "recall": 0.5}
    assert result.details["prompts"] == {"A": ["a x"], "B": ["b x"]}
    # The mistake is an example, with the right answer second.
    (example,) = result.examples
    assert [(a.text, a.right) for a in example.answers] == [("A", False), ("B", True)]


def test_names_and_templates_are_averaged_and_normalised_again() -> None:
    texts = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    classes = classification.mean_embeddings(texts, [2, 1])
    expected = torch.tensor([0.8, 0.4]) / torch.tensor([0.8, 0.4]).norm()
    assert torch.allclose(classes[0], expected)
    assert torch.equal(classes[1], texts[2])


def test_the_nearest_name_may_speak_for_the_class() -> None:
    """Class A has two opposite names, whose mean points nowhere near its images."""
    vectors = {"up": (0, 1), "up!": (0.1, 1), "down": (0, -1), "down!": (0.1, -1)}
    vectors |= {"right": (1, 0), "right!": (1, 0.1)}
    unit = {name: normalize(torch.tensor(v).float(), dim=0) for name, v in vectors.items()}
    embedder = SimpleNamespace(texts=lambda texts, name: torch.stack([unit[t] for t in texts]))
    images = ImageFeatures(torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0]]), {})
    classes = {"A": ["up", "down"], "B": ["right"]}
    right = {}
    for pool in ("mean", "max"):
        one = task(classes=classes, templates=["{c}", "{c}!"], pool=pool)
        inputs = Inputs(one, dataset("A", "A", "B"), images, embedder, "it", 0, 100)
        right[pool] = classification.evaluate(inputs).scores["accuracy"].value
    assert right["max"] == 1.0
    assert right["mean"] < 1.0


def test_prompts_are_every_name_in_every_template() -> None:
    one = task(templates=["{c}", "a {c}"], classes={"A": ["u", "v"], "B": ["w"]})
    expected = {"A": ["u", "a u", "v", "a v"], "B": ["w", "a w"]}
    assert classification.prompts(one, dataset("A", "B")) == expected


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
    assert result.notes == ["class 'B' has no item in this split"]
    assert result.details["per_class"]["B"] == {"n": 0, "recall": None}


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
