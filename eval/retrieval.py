"""Image-text retrieval: exact ranks in fixed memory.

The score of an image and a text is their cosine. The full matrix of a large test set doesn't fit
(725,739 pairs make 2.1 TB), so it is computed block by block, each block once for both directions,
and only counted: the rank of the right answer is one more than the number of candidates before it.

Ties: candidates of equal score stand in the order of their index, as in a stable sort. A collapsed
model, whose scores are all equal, therefore gets chance and not 100%.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = {"cpu": 2048, "cuda": 16384}
"""Rows and columns of scores in memory at a time: 16 MiB, on a GPU 1 GiB.
"""


@dataclass(frozen=True)
class Ranks:
    """The rank (from 1) of the first right answer to each query."""

    image_to_text: Tensor
    """int64 [N]: per image, the rank of the best of its captions among all M captions."""
    text_to_image: Tensor
    """int64 [M]: per caption, the rank of the best of its images among all N images."""


def recall(
    image_features: Tensor, text_features: Tensor, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall@k both ways for pairs: image i belongs to text i.

    Args:
        image_features: [N, D], any length and float type; normalised here.
        text_features: [N, D].
        ks: the cut-offs.

    Returns:
        {"image_to_text_recall@1": share of images whose caption is found, ...}, in [0, 1].

    Raises:
        ValueError: unequal shapes, no rows, or values that aren't finite.
    """
    if image_features.shape != text_features.shape:
        raise ValueError(
            f"pairs need equal shapes, found images {tuple(image_features.shape)} "
            f"and texts {tuple(text_features.shape)}"
        )
    diagonal = torch.arange(len(text_features))
    found = ranks(image_features, text_features, torch.stack([diagonal, diagonal], dim=1))
    return recall_of_ranks(found, ks)


def recall_of_ranks(found: Ranks, ks: Sequence[int]) -> dict[str, float]:
    """Share of queries, by direction and k, whose first right answer is within the first k."""
    return {
        f"{direction}_recall@{k}": (getattr(found, direction) <= k).double().mean().item()
        for direction in ("image_to_text", "text_to_image")
        for k in ks
    }


def ranks(
    image_features: Tensor, text_features: Tensor, pairs: Tensor, block: int | None = None
) -> Ranks:
    """Exact ranks both ways; an image may have several captions, a caption several images.

    The time goes into N x M x D multiplications, and up to twice that where pairs lie far from the
    diagonal of the matrix: keep a caption's place near its image's.

    Args:
        image_features: [N, D], any length and float type; normalised here.
        text_features: [M, D].
        pairs: int64 [P, 2], image and text of each right pair, in any order.
        block: rows and columns of scores in memory at a time; the result doesn't depend on it
            (but for rounding, where two scores differ in the last bit).

    Raises:
        ValueError: no rows, values that aren't finite, or an image or text without a pair.
    """
    images = _unit_rows(image_features, "image")
    texts = _unit_rows(text_features, "text")
    pairs = pairs.to(images.device)
    _check_pairs(pairs, len(images), len(texts))
    block = block or BLOCK[images.device.type]
    image_best, text_best = _best_pairs(images, texts, pairs, block)

    image_before = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    text_before = torch.zeros(len(texts), dtype=torch.int64, device=images.device)
    for top in range(0, len(images), block):
        rows = slice(top, min(top + block, len(images)))
        for left in range(0, len(texts), block):
            columns = slice(left, min(left + block, len(texts)))
            scores = images[rows] @ texts[columns].T
            image_before[rows] += _count_before(scores, image_best[rows], left)
            text_before[columns] += _count_before(scores.T, text_best[columns], top)
    return Ranks(image_before.cpu() + 1, text_before.cpu() + 1)


def nearest(
    queries: Tensor, candidates: Tensor, k: int, block: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k best candidates of each query: scores [Q, k] and indices int64 [Q, k], best first.

    Ties are in the order of the index, as in `ranks`.
    """
    queries, candidates = _unit_rows(queries, "query"), _unit_rows(candidates, "candidate")
    k, block = min(k, len(candidates)), block or BLOCK[queries.device.type]
    best_scores = queries.new_empty(len(queries), 0)
    best_indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(candidates), block):
        scores = queries @ candidates[start : start + block].T  # [Q, <= block]
        indices = torch.arange(start, start + scores.shape[1], device=queries.device)
        # Earlier candidates stand first, so the stable sort keeps ties in index order.
        best_scores = torch.cat([best_scores, scores], dim=1)
        best_indices = torch.cat([best_indices, indices.expand(len(queries), -1)], dim=1)
        best_scores, order = best_scores.sort(dim=1, descending=True, stable=True)
        best_scores = best_scores[:, :k]
        best_indices = best_indices.gather(1, order[:, :k])
    return best_scores.cpu(), best_indices.cpu()


@dataclass(frozen=True)
class _Best:
    """The best right answer of each query; of equally good ones the first."""

    score: Tensor
    """float32 [Q]"""
    index: Tensor
    """int64 [Q]"""

    def __getitem__(self, part: slice) -> "_Best":
        return _Best(self.score[part], self.index[part])


def _best_pairs(images: Tensor, texts: Tensor, pairs: Tensor, block: int) -> tuple[_Best, _Best]:
    """The best text of each image and the best image of each text.

    The scores are taken out of the very blocks that `ranks` counts over: a separate dot product
    may differ in the last bit, and the right answer would then stand before or behind itself.
    """
    blocks = pairs // block
    _, where, sizes = torch.unique(blocks, dim=0, return_inverse=True, return_counts=True)
    scores = torch.empty(len(pairs), device=images.device)
    for part in where.argsort(stable=True).split(sizes.tolist()):
        top, left = (blocks[part[0]] * block).tolist()
        own = images[top : top + block] @ texts[left : left + block].T
        row, column = (pairs[part] - torch.tensor([top, left], device=pairs.device)).unbind(dim=1)
        scores[part] = own[row, column]
    image, text = pairs.unbind(dim=1)
    return _first_best(scores, image, text, len(images)), _first_best(
        scores, text, image, len(texts)
    )


def _first_best(scores: Tensor, query: Tensor, answer: Tensor, queries: int) -> _Best:
    """Of each query's pairs the highest score, and the lowest answer that has it."""
    best = scores.new_full((queries,), -torch.inf).scatter_reduce_(0, query, scores, "amax")
    at_best = scores == best[query]
    index = torch.full_like(best, torch.iinfo(torch.int64).max, dtype=torch.int64)
    return _Best(best, index.scatter_reduce_(0, query[at_best], answer[at_best], "amin"))


def _count_before(scores: Tensor, best: _Best, first: int) -> Tensor:
    """Per row, how many candidates stand before the right one: higher, or equal and earlier.

    Args:
        scores: [Q, C], the candidates `first` to `first + C - 1`.
        best: of the Q queries.
    """
    end = first + scores.shape[1]
    # All of the block earlier than the right answer: what is at least as high counts, and x >= t is
    # x > the number below t. One comparison does, where two would take twice as long.
    below = best.score.nextafter(best.score.new_tensor(-torch.inf))
    threshold = torch.where(best.index >= end, below, best.score)
    # Into floats, which PyTorch adds up ten times faster than booleans; exact below 2^24.
    higher = torch.gt(scores, threshold[:, None], out=torch.empty_like(scores))
    count = higher.sum(dim=1).long()
    inside = ((best.index > first) & (best.index < end)).nonzero().squeeze(1)
    if len(inside):  # the right answer stands in the block: of equal ones those before it count
        earlier = torch.arange(first, end, device=scores.device) < best.index[inside, None]
        tied = scores[inside] == best.score[inside, None]
        count[inside] += (tied & earlier).sum(dim=1)
    return count


def _unit_rows(features: Tensor, name: str) -> Tensor:
    if features.ndim != 2 or not len(features):
        raise ValueError(f"{name} features need the shape [rows, dimensions], with rows")
    features = features.float()
    if not features.isfinite().all():
        raise ValueError(f"{name} features hold values that aren't finite")
    return normalize(features, dim=1)


def _check_pairs(pairs: Tensor, images: int, texts: int) -> None:
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs need the shape [pairs, 2], found {tuple(pairs.shape)}")
    for column, count, name, other in (
        (0, images, "image", "caption"),
        (1, texts, "text", "image"),
    ):
        found = pairs[:, column]
        outside = found[(found < 0) | (found >= count)]
        if len(outside):
            raise ValueError(f"a pair names {name} {int(outside[0])}, outside 0..{count - 1}")
        missing = (torch.bincount(found, minlength=count) == 0).nonzero()
        if len(missing):
            raise ValueError(f"{name} {int(missing[0])} has no {other}; leave it out")
