"""The retrieval task: captions of images, images of captions, over the whole split.

Recall@k as in CLIP_benchmark and the CLIP papers: a query counts as found if at least one of its
right answers is among the first k. With several captions per image, chance is higher one way.
"""

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from eval.config import TaskConfig
from eval.metrics import Ints, chance_recall
from eval.readers import Dataset
from eval.retrieval import Ranks, nearest, ranks, recall_of_ranks
from eval.tables import columns
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
    keep,
)
from vlp.config import UserError

EXAMPLES = 6  # queries shown, each way
SHOWN = 5  # candidates shown for each

Pairs = tuple[list[Item], list[str], Tensor]


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
    check_columns(where, task, columns(dataset.every_row), {})


def evaluate(inputs: Inputs) -> Result:
    """Recall@k and median rank, both ways, of a task that `check` has passed."""
    excluded: Counter[str] = Counter()
    items, captions, owner = _pairs(inputs, excluded)
    images = inputs.images.features[[item.sample for item in items]]  # [N, D]
    texts = inputs.embedder.texts(captions, inputs.name)  # [M, D]
    found = ranks(images, texts, owner)

    ks = sorted(set(inputs.task.ks))
    chance = _chance(owner.numpy(), len(items), len(captions), ks)
    image_cluster, count = cluster_indices(items, inputs.task.cluster)
    clusters = {"image_to_text": image_cluster, "text_to_image": image_cluster[owner.numpy()]}
    scores = {}
    for key, value in recall_of_ranks(found, ks).items():
        direction, _, k = key.partition("_recall@")
        hit = (getattr(found, direction) <= int(k)).double().numpy()
        low, high = inputs.interval(hit, clusters[direction])
        scores[key] = Score(value, low, high, chance[key])
    repeated = len(captions) - len(set(captions))
    return Result(
        n=len(items),
        scores=scores,
        headline=[key for key in scores if key.endswith(f"@{ks[0]}")],
        excluded=dict(excluded),
        clusters=count,
        details={
            "images": len(items),
            "captions": len(captions),
            "median_rank": {
                "image_to_text": float(np.median(found.image_to_text)),
                "text_to_image": float(np.median(found.text_to_image)),
            },
            "repeated_captions": repeated,
        },
        examples=_examples(inputs, (items, captions, owner), texts, found),
        notes=[f"{repeated} captions repeat another one word for word"] if repeated else [],
    )


def _pairs(inputs: Inputs, excluded: Counter[str]) -> Pairs:
    """(images [N], captions [M], index of the image of each caption int64 [M])."""
    items: list[Item] = []
    captions: list[str] = []
    owner: list[int] = []
    for i, sample in enumerate(inputs.dataset.samples):
        rows = [row for row in sample.rows if keep(row, inputs.task.where)]
        found = [caption for caption in map(str.strip, sample.captions) if caption]
        if inputs.task.where and not rows:
            continue
        if not found or i in inputs.images.broken:
            excluded[BROKEN if found else "no caption"] += 1
            continue
        owner += [len(items)] * len(found)
        captions += found
        items.append(Item(i, rows[0] if rows else {}))
    if not items:
        raise UserError(f"tasks.{inputs.name}: nothing to score: {dict(excluded)}")
    return items, captions, torch.tensor(owner, dtype=torch.int64)


def _chance(owner: Ints, images: int, captions: int, ks: list[int]) -> dict[str, float]:
    """Expected recall of a random order, by direction and k."""
    captions_of = np.bincount(owner, minlength=images)
    one = np.ones(1, dtype=np.int64)
    return {
        **{f"image_to_text_recall@{k}": chance_recall(k, captions_of, captions) for k in ks},
        **{f"text_to_image_recall@{k}": chance_recall(k, one, images) for k in ks},
    }


def _examples(inputs: Inputs, pairs: Pairs, texts: Tensor, found: Ranks) -> list[Example]:
    """Queries both ways with their nearest candidates, and the right one if it isn't among them."""
    items, captions, owner = pairs
    images = inputs.images.features[[item.sample for item in items]]
    names = [inputs.dataset.samples[item.sample].image for item in items]
    owners = owner.tolist()
    examples = []
    queries = _draw(found.image_to_text, inputs.seed)
    for q, nearby in zip(queries, _nearest(images[queries], texts), strict=True):
        rank = int(found.image_to_text[q])
        if rank > SHOWN:
            own = (owner == q).nonzero().squeeze(1)
            cosines = texts[own] @ images[q]
            nearby.append((float(cosines.max()), int(own[cosines.argmax()]), rank))
        answers = [
            Answer(captions[j], None, score, owners[j] == q, place) for score, j, place in nearby
        ]
        sample = items[q].sample
        examples.append(Example("image to caption", names[q], "", sample, answers, rank == 1))
    queries = _draw(found.text_to_image, inputs.seed)
    for q, nearby in zip(queries, _nearest(texts[queries], images), strict=True):
        rank = int(found.text_to_image[q])
        if rank > SHOWN:
            nearby.append((float(texts[q] @ images[owners[q]]), owners[q], rank))
        answers = [
            Answer(names[j], items[j].sample, score, j == owners[q], place)
            for score, j, place in nearby
        ]
        name = names[owners[q]]
        examples.append(Example("caption to image", name, captions[q], None, answers, rank == 1))
    return examples


def _nearest(queries: Tensor, candidates: Tensor) -> list[list[tuple[float, int, int]]]:
    """Per query, (score, index, rank) of its first candidates."""
    scores, order = nearest(queries, candidates, SHOWN)
    ranked = range(1, scores.shape[1] + 1)
    return [
        list(zip(row, indices, ranked, strict=True))
        for row, indices in zip(scores.tolist(), order.tolist(), strict=True)
    ]


def _draw(query_ranks: Tensor, seed: int) -> list[int]:
    """Indices of queries to show: found ones and missed ones in turn."""
    shuffled = np.random.default_rng(seed).permutation(len(query_ranks)).tolist()
    found = [q for q in shuffled if query_ranks[q] == 1]
    missed = [q for q in shuffled if query_ranks[q] > 1]
    half = EXAMPLES // 2
    few = min(len(found), max(half, EXAMPLES - len(missed)))
    return found[:few] + missed[: EXAMPLES - few]
