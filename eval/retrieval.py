"""Image-text retrieval: exact ranks in fixed memory.

The score of an image and a text is their cosine. The full matrix of a large test set doesn't fit
(725,739 pairs make 2.1 TB), so it is computed block by block, each block once for both directions,
and only counted: the rank of the right answer is one more than the number of candidates before it.

Ties: candidates of equal score stand in the order of their index, as in a stable sort. A collapsed
model, whose scores are all equal, therefore gets chance and not 100%.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = 2048  # a block of scores is BLOCK x BLOCK float32: 16 MiB


@dataclass(frozen=True)
class Ranks:
    """The rank (from 1) of the first right answer to each query."""

    image_to_text: Tensor
    """int64 [N]: per image, the rank of the best of its captions among all M captions."""
    text_to_image: Tensor
    """int64 [M]: per caption, the rank of its image among all N images."""


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
    found = ranks(image_features, text_features, torch.arange(len(text_features)))
    return recall_of_ranks(found, ks)


def recall_of_ranks(found: Ranks, ks: Sequence[int]) -> dict[str, float]:
    """Share of queries, by direction and k, whose first right answer is within the first k."""
    return {
        f"{direction}_recall@{k}": (getattr(found, direction) <= k).double().mean().item()
        for direction in ("image_to_text", "text_to_image")
        for k in ks
    }


def ranks(
    image_features: Tensor, text_features: Tensor, image_of_text: Tensor, block: int = BLOCK
) -> Ranks:
    """Exact ranks both ways; an image may have several captions.

    Args:
        image_features: [N, D], any length and float type; normalised here.
        text_features: [M, D].
        image_of_text: int64 [M], the index of the image to which each text belongs.
        block: rows and columns of scores in memory at a time; the result doesn't depend on it
            (but for rounding, where two scores differ in the last bit).

    Raises:
        ValueError: no rows, values that aren't finite, or an image without a caption.
    """
    images = _unit_rows(image_features, "image")
    texts = _unit_rows(text_features, "text")
    owner = image_of_text.to(images.device)
    _check_owners(owner, len(images), len(texts))
    image_target, image_position, text_target = _targets(images, texts, owner, block)

    image_before = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    text_before = torch.zeros(len(texts), dtype=torch.int64, device=images.device)
    for rows, columns, scores in _blocks(images, texts, block):
        image_before[rows] += _count_before(
            scores, image_target[rows], image_position[rows], columns.start
        )
        text_before[columns] += _count_before(
            scores.T, text_target[columns], owner[columns], rows.start
        )
    return Ranks(image_before.cpu() + 1, text_before.cpu() + 1)


def nearest(
    queries: Tensor, candidates: Tensor, k: int, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """The k best candidates of each query: scores [Q, k] and indices int64 [Q, k], best first.

    Ties are in the order of the index, as in `ranks`.
    """
    queries, candidates = _unit_rows(queries, "query"), _unit_rows(candidates, "candidate")
    k = min(k, len(candidates))
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


def _targets(
    images: Tensor, texts: Tensor, owner: Tensor, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the right answers: image_target [N], its caption's index [N], text_target [M].

    The scores are taken out of the very blocks that `ranks` counts over: a separate dot product
    may differ in the last bit, and the right answer would then stand before or behind itself.
    """
    image_target = torch.full((len(images),), -torch.inf, device=images.device)
    image_position = torch.full_like(owner.new_empty(len(images)), len(texts))
    text_target = torch.full((len(texts),), -torch.inf, device=images.device)
    for rows, columns, scores in _blocks(images, texts, block, owner):
        inside = (owner[columns] >= rows.start) & (owner[columns] < rows.stop)
        column = inside.nonzero().squeeze(1)  # [P]: columns whose image is among the rows
        row = owner[columns][column] - rows.start
        value = scores[row, column]
        text_target[columns.start + column] = value
        image_target.scatter_reduce_(0, rows.start + row, value, "amax")
    # The best caption of each image; of equally good ones the first.
    best = text_target == image_target[owner]
    image_position.scatter_reduce_(0, owner[best], best.nonzero().squeeze(1), "amin")
    return image_target, image_position, text_target


def _blocks(
    images: Tensor, texts: Tensor, block: int, owner: Tensor | None = None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, scores [rows, columns]); with `owner`, only blocks that hold a pair."""
    for top in range(0, len(images), block):
        rows = slice(top, min(top + block, len(images)))
        for left in range(0, len(texts), block):
            columns = slice(left, min(left + block, len(texts)))
            if owner is not None:
                part = owner[columns]
                if not ((part >= rows.start) & (part < rows.stop)).any():
                    continue
            yield rows, columns, images[rows] @ texts[columns].T


def _count_before(scores: Tensor, target: Tensor, position: Tensor, first: int) -> Tensor:
    """Per row, how many candidates stand before the target: higher, or equal with lower index.

    Args:
        scores: [Q, C], the candidates `first` to `first + C - 1`.
        target: [Q], the score of the right answer; position: int64 [Q], its index.
    """
    target = target[:, None]
    index = torch.arange(first, first + scores.shape[1], device=scores.device)
    tied_before = (scores == target) & (index < position[:, None])
    return (scores > target).sum(dim=1) + tied_before.sum(dim=1)


def _unit_rows(features: Tensor, name: str) -> Tensor:
    if features.ndim != 2 or not len(features):
        raise ValueError(f"{name} features need the shape [rows, dimensions], with rows")
    features = features.float()
    if not features.isfinite().all():
        raise ValueError(f"{name} features hold values that aren't finite")
    return normalize(features, dim=1)


def _check_owners(owner: Tensor, images: int, texts: int) -> None:
    if owner.shape != (texts,):
        raise ValueError(f"each of the {texts} texts needs the index of its image")
    counts = torch.bincount(owner.clamp(0), minlength=images)
    if len(counts) > images or (owner < 0).any():
        raise ValueError(f"a text belongs to an image outside 0..{images - 1}")
    if (counts == 0).any():
        missing = int((counts == 0).nonzero()[0])
        raise ValueError(f"image {missing} has no caption; leave it out")
