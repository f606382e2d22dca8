"""The retrieval task: captions of images, images of captions, over the whole split.

Recall@k as in CLIP_benchmark and the CLIP papers: a query counts as found if at least one of its
right answers is among the first k. With several captions per image, or several images per caption,
chance is higher that way.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.config import TaskConfig
from eval.metrics import Bools, Floats, Ints, chance_recall
from eval.readers import Dataset
from eval.retrieval import Ranks, nearest, ranks
from eval.tables import columns, text
from eval.tasks import (
    BROKEN,
    Answer,
    Example,
    Inputs,
    Item,
    Result,
    Score,
    check_columns,
    cluster_indices,
    identities,
    keep,
)
from vlp.config import UserError

EXAMPLES = 6  # queries shown, each way
SHOWN = 5  # candidates shown for each


def check(where: str, task: TaskConfig, dataset: Dataset) -> None:
    """Whether there are captions at all, and the columns that the task names.

    Raises:
        UserError: neither captions nor rows, or a column that the data doesn't have.
    """
    if not any(sample.captions for sample in dataset.samples):
        raise UserError(
            f"{where}.data: no captions; set caption_column to one of "
            f"{', '.join(columns(dataset.every_row))}"
        )
    shared = {task.shared_caption: "shared_caption"} if task.shared_caption else {}
    check_columns(where, task, columns(dataset.every_row), shared)


def evaluate(inputs: Inputs) -> Result:
    """Recall@k and median rank, both ways, of a task that `check` has passed.

    Raises:
        UserError: nothing to score.
    """
    excluded: Counter[str] = Counter()
    pairs = _pairs(inputs, excluded)
    device = inputs.embedder.model.device
    images = inputs.images.features[[item.sample for item in pairs.items]]  # [N, D]
    texts = inputs.embedder.texts(pairs.captions, inputs.name)  # [M, D]
    found = ranks(images.to(device), texts.to(device), pairs.indices)

    ks = sorted(set(inputs.task.ks))
    image_cluster, count = cluster_indices(pairs.items, _cluster_column(inputs.task))
    # Numbered anew: not every image is a caption's first.
    _, text_cluster = np.unique(image_cluster[pairs.first_image], return_inverse=True)
    clusters = {"image_to_text": image_cluster, "text_to_image": text_cluster}
    scores, medians = {}, {}
    for direction, cluster in clusters.items():
        own = getattr(found, direction).numpy()
        hits = np.stack([own <= k for k in ks])  # [ks, queries]
        *bounds, median = inputs.intervals(_recalls_and_median(hits, own), cluster)
        for k, hit, (low, high) in zip(ks, hits, bounds, strict=True):
            right, candidates = pairs.right(direction)
            chance = chance_recall(k, right, candidates)
            scores[f"{direction}_recall@{k}"] = Score(float(hit.mean()), low, high, chance)
        medians[direction] = (float(np.median(own)), list(median))
    repeated = len(pairs.captions) - len(set(pairs.captions))
    return Result(
        n=len(pairs.items),
        scores=scores,
        headline=[key for key in scores if key.endswith(f"@{ks[0]}")],
        excluded=dict(excluded),
        clusters=count,
        details={
            "images": len(pairs.items),
            "captions": len(pairs.captions),
            "pairs": len(pairs.indices),
            "median_rank": {direction: value for direction, (value, _) in medians.items()},
            "median_rank_interval": {
                direction: bounds for direction, (_, bounds) in medians.items()
            },
            "repeated_captions": repeated,
        },
        examples=_examples(inputs, pairs, texts, found),
        notes=[f"{repeated} captions repeat another one word for word"] if repeated else [],
        items=_item_rows(inputs, pairs, found, ks[0]),
    )


@dataclass(frozen=True)
class _Pairs:
    """Images, captions, and which of them belong together."""

    items: list[Item]
    captions: list[str]
    indices: Tensor
    """int64 [P, 2]: image and caption of each pair; captions in the order of their first image."""

    @cached_property
    def first_image(self) -> Ints:
        """int64 [M]: the first image of each caption."""
        owner = np.full(len(self.captions), len(self.items))
        np.minimum.at(owner, self.indices[:, 1].numpy(), self.indices[:, 0].numpy())
        return owner

    @cached_property
    def answers(self) -> dict[str, dict[int, set[int]]]:
        """Direction -> query -> its right answers."""
        found: dict[str, dict[int, set[int]]] = {"image_to_text": {}, "text_to_image": {}}
        for image, caption in self.indices.tolist():
            found["image_to_text"].setdefault(image, set()).add(caption)
            found["text_to_image"].setdefault(caption, set()).add(image)
        return found

    def right(self, direction: str) -> tuple[Ints, int]:
        """(right answers of each query, number of candidates)."""
        images, captions = self.indices.unbind(dim=1)
        if direction == "image_to_text":
            return images.bincount().numpy(), len(self.captions)
        return captions.bincount().numpy(), len(self.items)


def _cluster_column(task: TaskConfig) -> str:
    """Images that share their captions aren't independent, so they are drawn together anyway."""
    return task.cluster or task.shared_caption


def _pairs(inputs: Inputs, excluded: Counter[str]) -> _Pairs:
    """What takes part; images that share their captions are right answers to each other's."""
    column = inputs.task.shared_caption
    groups: dict[str, list[tuple[Item, list[str]]]] = {}
    for i, sample in enumerate(inputs.dataset.samples):
        rows = [row for row in sample.rows if keep(row, inputs.task.where)]
        found = [caption for caption in map(str.strip, sample.captions) if caption]
        if inputs.task.where and not rows:
            continue
        if not found or i in inputs.images.broken:
            excluded[BROKEN if found else "no caption"] += 1
            continue
        item = Item(i, rows[0] if rows else {})
        # An image without a group's name stands for itself.
        name = text(item.row.get(column)) if column else ""
        groups.setdefault(name or f"\0{i}", []).append((item, found))
    items: list[Item] = []
    captions: list[str] = []
    pairs: list[tuple[int, int]] = []
    for group in groups.values():
        texts = [caption for _, found in group for caption in found]
        texts = list(dict.fromkeys(texts)) if len(group) > 1 else texts
        pairs += [
            (len(items) + i, len(captions) + j)
            for i in range(len(group))
            for j in range(len(texts))
        ]
        items += [item for item, _ in group]
        captions += texts
    if not items:
        raise UserError(f"tasks.{inputs.name}: nothing to score: {dict(excluded)}")
    return _Pairs(items, captions, torch.tensor(pairs, dtype=torch.int64))


def _recalls_and_median(hits: Bools, found: Ints) -> Callable[[Ints], Floats]:
    """Weights [queries] -> recall at each k, then the median rank.

    Args:
        hits: [ks, queries].
        found: ranks [queries].
    """
    order = np.argsort(found, kind="stable")
    ranked, credit = found[order], hits.astype(np.float64)

    def resampled(weights: Ints) -> Floats:
        below = np.cumsum(weights[order])
        n = below[-1]
        # The middle query, or of an even number the two in the middle.
        middle = ranked[np.searchsorted(below, [(n - 1) // 2, n // 2], side="right")]
        return np.array([*(credit @ weights / n), middle.mean()])

    return resampled


def _item_rows(inputs: Inputs, pairs: _Pairs, found: Ranks, k: int) -> list[dict[str, Any]]:
    """A row per query: its rank, and as its value whether that is within the first cut-off."""

    def row(direction: str, query: str, image: int, rank: int) -> dict[str, Any]:
        return {
            "id": f"{direction}: {query}",
            "cluster": names[image]["cluster"],
            "value": float(rank <= k),
            "direction": direction,
            "rank": rank,
        }

    names = identities(pairs.items, inputs, _cluster_column(inputs.task))
    return [
        row("image_to_text", names[i]["id"], i, rank)
        for i, rank in enumerate(found.image_to_text.tolist())
    ] + [
        row("text_to_image", f"{names[i]['id']} #{j}", i, rank)
        for j, (i, rank) in enumerate(
            zip(pairs.first_image.tolist(), found.text_to_image.tolist(), strict=True)
        )
    ]


def _examples(inputs: Inputs, pairs: _Pairs, texts: Tensor, found: Ranks) -> list[Example]:
    """Queries both ways with their nearest candidates, and the right one if it isn't among them."""
    images = inputs.images.features[[item.sample for item in pairs.items]]
    names = [inputs.dataset.samples[item.sample].image for item in pairs.items]
    samples = [item.sample for item in pairs.items]
    examples = []
    for q, nearby in _neighbours(inputs, pairs, "image_to_text", (images, texts), found):
        right = pairs.answers["image_to_text"][q]
        answers = [
            Answer(pairs.captions[j], None, score, j in right, rank) for score, j, rank in nearby
        ]
        hit = int(found.image_to_text[q]) == 1
        examples.append(Example("image to caption", names[q], "", samples[q], answers, hit))
    for q, nearby in _neighbours(inputs, pairs, "text_to_image", (texts, images), found):
        right = pairs.answers["text_to_image"][q]
        answers = [
            Answer(names[j], samples[j], score, j in right, rank) for score, j, rank in nearby
        ]
        name, hit = names[pairs.first_image[q]], int(found.text_to_image[q]) == 1
        examples.append(Example("caption to image", name, pairs.captions[q], None, answers, hit))
    return examples


def _neighbours(
    inputs: Inputs,
    pairs: _Pairs,
    direction: str,
    features: tuple[Tensor, Tensor],
    found: Ranks,
) -> list[tuple[int, list[tuple[float, int, int]]]]:
    """(query, [(cosine, candidate, rank)]) of a few queries; the best right one always among them.

    Args:
        features: unit rows of the queries and of the candidates.
    """
    queries, candidates = features
    ranked: Tensor = getattr(found, direction)
    drawn = _draw(ranked, inputs.seed)
    shown = []
    for q, scores, order in zip(drawn, *nearest(queries[drawn], candidates, SHOWN), strict=True):
        nearby = list(zip(scores.tolist(), order.tolist(), range(1, len(order) + 1), strict=True))
        if ranked[q] > SHOWN:
            own = sorted(pairs.answers[direction][q])
            cosines = candidates[own] @ queries[q]
            nearby.append((float(cosines.max()), own[int(cosines.argmax())], int(ranked[q])))
        shown.append((q, nearby))
    return shown


def _draw(query_ranks: Tensor, seed: int) -> list[int]:
    """Indices of queries to show: found ones and missed ones in turn."""
    shuffled = np.random.default_rng(seed).permutation(len(query_ranks)).tolist()
    found = [q for q in shuffled if query_ranks[q] == 1]
    missed = [q for q in shuffled if query_ranks[q] > 1]
    half = EXAMPLES // 2
    few = min(len(found), max(half, EXAMPLES - len(missed)))
    return found[:few] + missed[: EXAMPLES - few]
