"""The retrieval task by hand: several captions, shared captions, medians, items."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from eval import retrieval_task
from eval.config import DataConfig, TaskConfig
from eval.embed import ImageFeatures
from eval.readers import Dataset, Sample
from eval.tasks import BROKEN, Inputs
from tests.eval.tiny import fails


def dataset(*samples: tuple[list[str], dict]) -> Dataset:
    made = [Sample(f"{i}.png", captions, [row]) for i, (captions, row) in enumerate(samples)]
    every = [row for _, row in samples]
    return Dataset(made, "f", every, images=SimpleNamespace(read=None))


def evaluate(data: Dataset, images: torch.Tensor, texts: dict, broken=(), **keys: object):
    task = TaskConfig(
        kind="retrieval",
        data=DataConfig(reader="table", path="x.csv"),
        source="test",
        **{"ks": [1, 2], **keys},
    )

    def embed(wanted: list[str], name: str) -> torch.Tensor:
        return normalize(torch.stack([torch.tensor(texts[t]).float() for t in wanted]), dim=1)

    embedder = SimpleNamespace(texts=embed, model=SimpleNamespace(device=torch.device("cpu")))
    features = ImageFeatures(normalize(images, dim=1), dict.fromkeys(broken, "damaged"))
    return retrieval_task.evaluate(Inputs(task, data, features, embedder, "it", 0, 100))


# Panels of figure f, and a figure of its own. The caption of f points at its second panel.
PANELS = (
    (["a whole", "of a"], {"figure": "f"}),
    (["a whole"], {"figure": "f"}),
    (["b"], {"figure": ""}),
)
IMAGES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.6, 0.8]])
TEXTS = {"a whole": (0, 1, 0), "of a": (0.2, 0.1, 0.9), "b": (0, 0, 1)}


def test_panels_share_their_captions() -> None:
    result = evaluate(dataset(*PANELS), IMAGES, TEXTS, shared_caption="figure")
    assert result.details["captions"] == 3  # "a whole" counts once
    assert result.details["pairs"] == 5
    scores = {key: score.value for key, score in result.scores.items()}
    assert scores == {
        # Panel 0: "of a" first. Panel 1: "a whole" first. Image 2: "of a", then "b".
        "image_to_text_recall@1": pytest.approx(2 / 3),
        "image_to_text_recall@2": 1.0,
        # "a whole": panel 1 first. "of a": image 2, then panel 0. "b": image 2 first.
        "text_to_image_recall@1": pytest.approx(2 / 3),
        "text_to_image_recall@2": 1.0,
    }
    # Two of three captions are right for a panel, one for image 2; two images for f's captions.
    chance = (2 / 3 + 2 / 3 + 1 / 3) / 3
    assert result.scores["image_to_text_recall@1"].chance == pytest.approx(chance)
    assert result.scores["text_to_image_recall@1"].chance == pytest.approx(chance)


def test_without_the_column_each_image_has_captions_of_its_own() -> None:
    result = evaluate(dataset(*PANELS), IMAGES, TEXTS)
    assert (result.details["captions"], result.details["pairs"]) == (4, 4)
    assert result.notes == ["1 captions repeat another one word for word"]
    # Now the first "a whole" finds panel 1, which is wrong.
    assert result.scores["text_to_image_recall@1"].value == pytest.approx(2 / 4)


def test_items_hold_the_ranks() -> None:
    result = evaluate(dataset(*PANELS), IMAGES, TEXTS, shared_caption="figure", cluster="figure")
    assert result.clusters == 2
    rows = {item["id"]: item for item in result.items}
    assert len(rows) == len(result.items) == 6
    assert rows["text_to_image: 0.png #1"] == {
        "id": "text_to_image: 0.png #1",
        "cluster": "f",
        "value": 0.0,
        "direction": "text_to_image",
        "rank": 2,
    }
    for direction in ("image_to_text", "text_to_image"):
        values = [item["value"] for item in result.items if item["direction"] == direction]
        assert np.mean(values) == result.scores[f"{direction}_recall@1"].value


def test_examples_show_the_right_answer_even_where_it_is_far() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 4, generator=generator)
    texts = {f"t{i}": row.tolist() for i, row in enumerate(torch.randn(30, 4, generator=generator))}
    result = evaluate(dataset(*(([f"t{i}"], {}) for i in range(30))), features, texts)
    for example in result.examples:
        right = [answer for answer in example.answers if answer.right]
        assert len(right) == 1
        assert [a.rank for a in example.answers][:5] == [1, 2, 3, 4, 5]
        assert example.right == (right[0].rank == 1)
        scores = [answer.score for answer in example.answers]
        assert scores == sorted(scores, reverse=True)


def test_interval_of_the_median_equals_a_direct_bootstrap() -> None:
    rng = np.random.default_rng(0)
    found = rng.integers(1, 60, 41)
    resampled = retrieval_task._recalls_and_median(np.stack([found <= 5, found <= 20]), found)
    for _ in range(50):
        drawn = rng.integers(0, 41, size=rng.integers(1, 60))
        one, twenty, median = resampled(np.bincount(drawn, minlength=41))
        assert median == np.median(found[drawn])
        assert (one, twenty) == pytest.approx(
            (np.mean(found[drawn] <= 5), np.mean(found[drawn] <= 20))
        )


def test_what_is_left_out_is_counted() -> None:
    data = dataset((["x"], {"kind": "a"}), ([" "], {"kind": "a"}), (["x"], {"kind": "a"}),
                   (["x"], {"kind": "b"}))  # fmt: skip
    result = evaluate(data, torch.eye(4), {"x": (1, 0, 0, 0)}, broken=[2], where={"kind": ["a"]})
    assert result.excluded == {"no caption": 1, BROKEN: 1}
    assert result.n == 1


def test_a_missing_column_is_named() -> None:
    data = dataset((["x"], {"kind": "a"}))
    task = TaskConfig(kind="retrieval", source="test", shared_caption="figure")
    with fails("it.shared_caption: no column 'figure'; there are kind"):
        retrieval_task.check("it", task, data)
