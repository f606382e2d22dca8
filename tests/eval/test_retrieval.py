"""Block-wise retrieval equals the naive way, ties included."""

import pytest
import torch
from torch.nn.functional import normalize

from eval.retrieval import nearest, ranks, recall


def naive_ranks(images: torch.Tensor, texts: torch.Tensor, pairs: torch.Tensor):
    """Ranks by sorting the full matrix."""
    scores = normalize(images, dim=1) @ normalize(texts, dim=1).T
    right = {tuple(pair) for pair in pairs.tolist()}
    by_image = scores.argsort(dim=1, descending=True, stable=True).tolist()
    by_text = scores.T.argsort(dim=1, descending=True, stable=True).tolist()
    image_ranks = [
        next(r for r, text in enumerate(row, 1) if (i, text) in right)
        for i, row in enumerate(by_image)
    ]
    text_ranks = [
        next(r for r, image in enumerate(row, 1) if (image, t) in right)
        for t, row in enumerate(by_text)
    ]
    return torch.tensor(image_ranks), torch.tensor(text_ranks)


def assert_equals_naive(images, texts, pairs, block) -> None:
    found = ranks(images, texts, pairs, block=block)
    expected = naive_ranks(images, texts, pairs)
    assert torch.equal(found.image_to_text, expected[0])
    assert torch.equal(found.text_to_image, expected[1])


@pytest.mark.parametrize(("count", "captions"), [(1, 1), (7, 1), (37, 3), (64, 2), (101, 5)])
@pytest.mark.parametrize("block", [7, 16, 64, 1000])
def test_equals_naive(count: int, captions: int, block: int) -> None:
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, 8, generator=generator, dtype=torch.float64).float()
    extra = torch.randint(count, (count * (captions - 1),), generator=generator)
    owner = torch.cat([torch.arange(count), extra])
    owner = owner[torch.randperm(len(owner), generator=generator)]
    texts = images[owner] + torch.randn(len(owner), 8, generator=generator)
    pairs = torch.stack([owner, torch.arange(len(owner))], dim=1)
    assert_equals_naive(images, texts, pairs, block)


@pytest.mark.parametrize("block", [5, 16, 1000])
def test_several_images_of_a_caption(block: int) -> None:
    """Any right answer counts, both ways; pairs come in any order, and twice."""
    generator = torch.Generator().manual_seed(2)
    images, texts = torch.randn(2, 40, 8, generator=generator)
    random = torch.randint(40, (60, 2), generator=generator)
    every = torch.arange(40)
    pairs = torch.cat([random, torch.stack([every, every.flip(0)], dim=1), random[:5]])
    assert_equals_naive(images, texts, pairs[torch.randperm(105, generator=generator)], block)


@pytest.mark.parametrize("block", [1, 3, 4, 5, 50])
def test_ties_are_in_index_order(block: int) -> None:
    # One-hot rows have exact cosines 0 and 1, so a third of all candidates tie.
    images = torch.eye(3).repeat(6, 1)
    texts = torch.eye(3).repeat(12, 1)
    generator = torch.Generator().manual_seed(block)
    for owner in (torch.arange(18).repeat(2), torch.arange(36) % 18, torch.arange(36) // 2):
        order = torch.randperm(36, generator=generator)
        pairs = torch.stack([owner, torch.arange(36)], dim=1)[order]
        assert_equals_naive(images, texts, pairs, block)
        assert_equals_naive(images, -texts, pairs, block)  # ties at 0 and -1


def test_a_collapsed_model_scores_chance() -> None:
    features = torch.ones(20, 4)
    assert recall(features, features, ks=(1, 5)) == {
        "image_to_text_recall@1": 1 / 20,
        "image_to_text_recall@5": 5 / 20,
        "text_to_image_recall@1": 1 / 20,
        "text_to_image_recall@5": 5 / 20,
    }


def test_recall_by_hand() -> None:
    # Image 1's caption points at image 0: both directions find it second.
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    assert recall(images, texts, ks=(1, 2)) == {
        "image_to_text_recall@1": 1.0,  # image 1 is orthogonal to text 0, so text 1 is first
        "image_to_text_recall@2": 1.0,
        "text_to_image_recall@1": 0.5,
        "text_to_image_recall@2": 1.0,
    }


def test_recall_takes_half_precision_and_any_length() -> None:
    features = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    scores = recall(features.bfloat16() * 7, features.bfloat16())
    assert scores["image_to_text_recall@1"] == scores["text_to_image_recall@1"] == 1.0


@pytest.mark.parametrize("block", [1, 4, 1000])
def test_nearest_equals_a_stable_sort(block: int) -> None:
    generator = torch.Generator().manual_seed(3)
    queries = torch.eye(4)[torch.randint(4, (9,), generator=generator)]
    candidates = torch.eye(4)[torch.randint(4, (23,), generator=generator)]
    scores, indices = nearest(queries, candidates, k=6, block=block)
    expected, order = (queries @ candidates.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(scores, expected[:, :6])
    assert torch.equal(indices, order[:, :6])


def test_bad_input_is_refused() -> None:
    good = torch.randn(3, 4)
    with pytest.raises(ValueError, match="equal shapes"):
        recall(good, good[:2])
    with pytest.raises(ValueError, match="aren't finite"):
        recall(good, torch.full((3, 4), torch.nan))
    with pytest.raises(ValueError, match="with rows"):
        recall(good[:0], good[:0])
    with pytest.raises(ValueError, match="image 2 has no caption"):
        ranks(good, good, torch.tensor([[0, 0], [1, 1], [1, 2]]))
    with pytest.raises(ValueError, match="text 1 has no image"):
        ranks(good, good, torch.tensor([[0, 0], [1, 0], [2, 2]]))
    with pytest.raises(ValueError, match=r"image 3, outside 0\.\.2"):
        ranks(good, good, torch.tensor([[0, 0], [1, 1], [3, 2]]))
    with pytest.raises(ValueError, match="shape"):
        ranks(good, good, torch.tensor([0, 1, 2]))
