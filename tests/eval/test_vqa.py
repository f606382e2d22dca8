"""Scoring of closed questions by hand-computed cases."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from eval import vqa
from eval.config import DataConfig, TaskConfig, VqaConfig
from eval.embed import ImageFeatures
from eval.readers import Dataset, Sample
from eval.tasks import BROKEN, Inputs, Item
from eval.vqa_items import NOT_AN_OPTION, parse
from eval.vqa_scores import other_images
from tests.eval.tiny import fails

# Texts by direction in the plane; images likewise. The nearest direction wins.
ANGLES = {"up": 90, "right": 0, "left": 180, "down": 270, "up-right": 45}


def plane(names: list[str]) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor([float(ANGLES[name]) for name in names]))
    return normalize(torch.stack([angles.cos(), angles.sin()], dim=1).round(decimals=3), dim=1)


def task(**keys: object) -> TaskConfig:
    data = DataConfig(reader="table", path="x.jsonl")
    return TaskConfig(kind="vqa", data=data, source="test", statement="{option}", **keys)


def inputs(rows: list[dict], images: list[str], broken: dict[int, str], **keys: object) -> Inputs:
    """One row per sample; sample i has the image of direction images[i]."""
    samples = [Sample(f"{i}.png", [], [row]) for i, row in enumerate(rows)]
    dataset = Dataset(samples, "f", rows, images=SimpleNamespace(read=None))
    embedder = SimpleNamespace(texts=lambda texts, name: plane(list(texts)), model=None)
    features = ImageFeatures(plane(images), broken)
    return Inputs(task(**keys), dataset, features, embedder, "it", seed=0, replicates=100)


def test_scores_by_hand() -> None:
    rows = [
        {"question": "a", "options": ["up", "left"], "answer": "up", "question_type": "one"},
        {"question": "b", "options": ["up", "left"], "answer": "left", "question_type": "one"},
        {
            "question": "c",
            "options": ["up", "down", "left"],
            "answer": "UP ",
            "question_type": "two",
        },
        {"question": "d", "options": ["up", "right"], "answer": "up", "question_type": "two"},
        {"question": "e", "options": ["up", "right"], "answer": "neither", "question_type": "two"},
        {"question": "f", "options": ["up", "up"], "answer": "up", "question_type": "two"},
        {"question": "g", "options": ["up", "left"], "answer": "up", "question_type": "two"},
    ]
    images = ["up", "up", "up", "up-right", "up", "up", "up"]
    result = vqa.evaluate(inputs(rows, images, broken={6: "damaged"}))
    # a right, b wrong, c right, d tied between "up" and "right": half a point.
    assert result.n == 4
    assert result.scores["accuracy"].value == pytest.approx(2.5 / 4)
    assert result.scores["accuracy"].chance == pytest.approx((1 / 2 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert result.details["tied"] == 1
    assert result.excluded == {
        NOT_AN_OPTION: 1,
        "not two or more different options": 1,
        BROKEN: 1,
    }
    assert result.details["answers_not_among_options"] == {"neither": 1}
    types = result.details["by_question_type"]
    assert types["one"]["accuracy"] == 0.5
    assert types["two"]["accuracy"] == 0.75
    # Within type "one" up and left tie as most frequent, within "two" it is always up.
    assert (types["one"]["majority"], types["two"]["majority"]) == (0.5, 1.0)
    assert result.details["baselines"]["majority"] == pytest.approx(0.75)


def test_a_model_that_looks_beats_the_baselines_that_do_not() -> None:
    names = ["up", "right", "left", "down"] * 10
    rows = [{"question": "?", "options": list(ANGLES)[:4], "answer": name} for name in names]
    result = vqa.evaluate(inputs(rows, names, broken={}))
    baselines = result.details["baselines"]
    assert result.scores["accuracy"].value == 1.0
    assert baselines["majority"] == 0.25
    # Another image's direction: never its own image, though sometimes an equal one.
    assert baselines["shuffled_images"] < 0.5
    # The mean image is (0, 0): all four options tie, and each item gets a quarter.
    assert baselines["no_image"] == pytest.approx(0.25)


def test_language_alone_shows_in_the_baseline() -> None:
    """Every image is the same, and the answer follows from the options."""
    rows = [{"question": "?", "options": ["left", "up"], "answer": "up"}] * 8
    result = vqa.evaluate(inputs(rows, ["up"] * 8, broken={}))
    assert result.scores["accuracy"].value == result.details["baselines"]["no_image"] == 1.0


def test_statements_come_before_the_template() -> None:
    row = {"question": "?", "options": ["a", "b"], "answer": "b", "statements": ["left", "up"]}
    result = vqa.evaluate(inputs([row], ["up"], broken={}))
    assert result.scores["accuracy"].value == 1.0
    parsed, reasons, _ = parse(task(), [Item(0, {**row, "statements": ["only one"]})])
    assert not parsed
    assert reasons == Counter({"not one statement per option": 1})


@pytest.mark.parametrize(
    "answer", ["normal", "cannot tell", "nothing", "no.", "not seen", "yes and no"]
)
def test_an_answer_is_never_taken_for_another(answer: str) -> None:
    row = {"question": "Is it normal?", "answer": answer, "answer_type": "CLOSED"}
    parsed, reasons, _ = parse(task(fixed_options=["yes", "no"]), [Item(0, row)])
    assert not parsed
    assert reasons == Counter({NOT_AN_OPTION: 1})


def test_an_item_without_answer_is_left_out() -> None:
    for answer in ("", None, float("nan")):
        row = {"question": "Is it normal?", "answer": answer}
        parsed, reasons, _ = parse(task(fixed_options=["yes", "no"]), [Item(0, row)])
        assert not parsed
        assert reasons == Counter({"no answer": 1})


@pytest.mark.parametrize(("answer", "index"), [("No", 1), (" yes ", 0), ("NO", 1)])
def test_case_and_space_do_not_matter(answer: object, index: int) -> None:
    row = {"question": "Is it normal?", "answer": answer}
    parsed, _, _ = parse(task(fixed_options=["yes", "no"]), [Item(0, row)])
    assert [q.answer for q in parsed] == [index]


def test_template_fills_question_and_option() -> None:
    one = TaskConfig(kind="vqa", source="test", fixed_options=["yes", "no"])
    parsed, _, _ = parse(one, [Item(0, {"question": "Effusion?", "answer": "no"})])
    assert parsed[0].statements == ["Effusion? yes", "Effusion? no"]


def test_options_in_a_csv_cell_are_json() -> None:
    row = {"question": "?", "answer": "b", "options": '["a", "b", "c"]'}
    parsed, _, _ = parse(task(), [Item(0, row)])
    assert parsed[0].options == ["a", "b", "c"]


def test_shuffled_images_are_never_the_item_s_own() -> None:
    samples = torch.tensor([4, 4, 1, 9, 2, 2, 2, 0])
    other = other_images(samples, seed=3)
    assert (other != samples).all()
    assert set(other.tolist()) == set(samples.tolist())


def test_open_questions_are_left_to_other_models() -> None:
    rows = [
        {"question": "?", "answer": "up", "answer_type": "closed"},
        {"question": "where?", "answer": "left", "answer_type": "open"},
    ]
    result = vqa.evaluate(inputs(rows, ["up", "up"], broken={}, fixed_options=["up", "down"]))
    assert result.excluded == {vqa.OPEN: 1}
    only = inputs(rows[1:], ["up"], broken={}, fixed_options=["up", "down"])
    with fails("tasks.it: nothing to score: {'open question: needs a generative model"):
        vqa.evaluate(only)


def test_items_hold_what_was_said() -> None:
    row = {"question": "a", "options": ["up", "left"], "answer": "left", "patient": 7}
    result = vqa.evaluate(inputs([row], ["up"], broken={}, cluster="patient"))
    item = result.items[0]
    assert (item["id"], item["cluster"], item["value"]) == ("0.png#1", "7", 0.0)
    assert (item["label"], item["predicted"]) == ("left", "up")
    assert item["scores"] == pytest.approx([1.0, 0.0], abs=1e-3)


def test_groups_are_broken_down_each_with_its_interval() -> None:
    """As u-Bench, by source: 3 of 3 right in one, 1 of 2 in the other."""
    rows = [
        {"question": "?", "options": ["up", "left"], "answer": answer, "dataset": name}
        for name, answer in [("a", "up"), ("a", "up"), ("a", "up"), ("b", "up"), ("b", "left")]
    ]
    groups = VqaConfig(groups=["dataset"])
    result = vqa.evaluate(inputs(rows, ["up"] * 5, broken={}, vqa=groups))
    by_group = result.details["by_group"]["dataset"]
    assert {name: (row["n"], row["accuracy"]) for name, row in by_group.items()} == {
        "a": (3, 1.0),
        "b": (2, 0.5),
    }
    assert (by_group["a"]["low"], by_group["a"]["high"]) == (1.0, 1.0)


def test_nothing_to_choose_from_is_an_error_before_any_model() -> None:
    rows = [{"image": "0.png", "question": "?", "answer": "yes", "answer_type": "closed"}]
    one = inputs(rows, ["up"], broken={}, fixed_options=["a", "b"])
    with fails("it: no item can be scored: {'answer is not among the options': 1}"):
        vqa.check("it", one.task, one.dataset)
    missing = inputs(rows, ["up"], broken={}, vqa=VqaConfig(option_columns=["A", "B"]))
    with fails("it.vqa.option_columns: no column 'A'; there are answer, answer_type, image"):
        vqa.check("it", missing.task, missing.dataset)
    prompt = inputs(
        rows, ["up"], broken={}, fixed_options=["yes", "no"], vqa=VqaConfig(prompt="{q}")
    )
    with fails("it.vqa.prompt: '{q}': unknown placeholder {q}"):
        vqa.check("it", prompt.task, prompt.dataset)


def test_options_of_unequal_number_share_one_matrix() -> None:
    scores = vqa.option_scores(
        plane(["up", "left"]), plane(["up", "left", "down"]), [[0, 1, 2], [1]]
    )
    assert scores.shape == (2, 3)
    assert np.isneginf(scores[1, 1:].numpy()).all()
    assert scores[1, 0] == pytest.approx(1.0)
