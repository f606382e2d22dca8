"""Phrase grounding: is the part of the image that a phrase speaks of the one most like it?

As in BioViL (Boecking et al. 2022, arXiv 2204.09817, section 4.3 and hi-ml's inference engine): the
cosine of each patch to the phrase, smoothed by a Gaussian over the patches, enlarged to pixels.

    contrast-to-noise ratio  |mean inside - mean outside| / sqrt(variance inside + outside)
    mIoU                     of the boxes and {cosine > t}, mean over thresholds t
    pointing game            whether the most similar pixel lies in a box (Zhang et al. 2016)

Each is averaged within a finding, then over findings. The pixels are those of the model's input, so
what its centre crop cuts away counts neither inside nor outside. Beside the scores stand a map that
always points to the centre, and the same image's map of another phrase.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from eval.boxes import Mask, Phrase, View, phrases_of, view_of
from eval.config import GroundingConfig, TaskConfig
from eval.metrics import Floats, Ints
from eval.prompts import embed
from eval.readers import Dataset
from eval.readers.base import ImageSource
from eval.robustness import stored_images
from eval.tables import text
from eval.tasks import BROKEN, Example, Inputs, Place, Result, Score, cluster_indices, select
from vlp.config import UserError
from vlp.data.image import ImageError, open_rgb

OUTSIDE = "its boxes lie outside of what the model sees"
EVERYTHING = "its boxes cover all that the model sees"
EPSILON = 1e-12
EXAMPLES = 3  # shown, of the best and of the worst each


class Judged(NamedTuple):
    """How well a map finds its boxes."""

    cnr: float
    miou: float
    pointing: float


class Scored(NamedTuple):
    """A phrase with its own map's scores and those of maps that know nothing of it."""

    phrase: Phrase
    view: View
    map: Tensor
    """[h, w], of similarity_map."""
    toward: bool
    """Whether the map is higher in the boxes than outside: the contrast has no sign."""
    share: float
    """Of what the model sees, the part that lies in the boxes."""
    own: Judged
    centre: Judged
    other: Judged | None


def check(where: str, task: TaskConfig, dataset: Dataset) -> None:
    """Whether phrases and boxes are there, before any model runs.

    Raises:
        UserError: a missing column, or no phrase with a box.
    """
    config = task.grounding
    needed = dict.fromkeys(config.box_columns, "grounding.box_columns")
    needed |= dict.fromkeys(config.size_columns, "grounding.size_columns")
    if not config.box_columns:
        needed[config.boxes] = "grounding.boxes"
    items = select(where, task, dataset, needed)
    phrases, left_out = phrases_of(config, items)
    if not phrases:
        raise UserError(f"{where}: no phrase with boxes: {dict(left_out) or 'all boxes are empty'}")


def evaluate(inputs: Inputs) -> Result:
    """Contrast-to-noise ratio, mIoU and pointing game of a task that `check` has passed."""
    config = inputs.task.grounding
    items = select(inputs.name, inputs.task, inputs.dataset, {})
    phrases, excluded = phrases_of(config, items)
    texts = _phrase_embeddings(inputs, phrases)
    others = _other_phrases(phrases)
    scored = []
    for i, patches, view in _views(inputs, phrases, excluded):
        inside, valid = view.mask(phrases[i].boxes_on(view.stored)), view.image()
        inside &= valid
        if not inside.any() or inside[valid].all():
            excluded[EVERYTHING if inside.any() else OUTSIDE] += 1
            continue
        maps = [similarity_map(patches, texts[k], config.sigma) for k in (i, others[i]) if k >= 0]
        pixels = [enlarge(one, view, config) for one in maps]
        own, centre, *other = (
            judge(values, inside, valid, config)
            for values in (pixels[0], centre_map(view), *pixels[1:])
        )
        toward = bool(pixels[0][inside].mean() > pixels[0][valid & ~inside].mean())
        share = float(inside[valid].mean())
        blind = other[0] if other else None
        scored.append(Scored(phrases[i], view, maps[0], toward, share, own, centre, blind))
    if not scored:
        raise UserError(f"tasks.{inputs.name}: nothing to score: {dict(excluded)}")
    return _result(inputs, scored, excluded)


def similarity_map(patches: Tensor, phrase: Tensor, sigma: float = 1.5) -> Tensor:
    """Cosines float32 [h, w], smoothed; borders are reflected, as in scipy.ndimage.

    Args:
        patches: unit rows [h, w, D], of Model.embed_patches.
        phrase: unit row [D].
        sigma: deviation of the Gaussian in patches; 0 smooths nothing.
    """
    cosines = patches @ phrase
    return _gaussian(len(cosines), sigma) @ cosines @ _gaussian(cosines.shape[1], sigma).T


def enlarge(similarity: Tensor, view: View, config: GroundingConfig) -> Floats:
    """A map over patches [h, w] -> over the pixels of the model's input, float64 [H, W]."""
    pixels = F.interpolate(similarity[None, None], size=view.size, mode=config.interpolation)
    return pixels[0, 0].double().numpy()


def judge(similarity: Floats, inside: Mask, valid: Mask, config: GroundingConfig) -> Judged:
    """A map over pixels [H, W] against its boxes.

    Args:
        similarity: the map.
        inside: pixels of the boxes; not all of the valid ones, and not none.
        valid: pixels that count.
    """
    values, box = similarity[valid], inside[valid]
    return Judged(contrast(values, box), miou(values, box, config.thresholds), points(values, box))


def contrast(values: Floats, inside: Mask) -> float:
    """Contrast-to-noise ratio of the pixels [n] inside and outside."""
    within, without = values[inside], values[~inside]
    noise = np.sqrt(within.var() + without.var() + EPSILON)
    return float(abs(within.mean() - without.mean()) / noise)


def miou(values: Floats, inside: Mask, thresholds: Sequence[float]) -> float:
    """Intersection over union of {values > t} and the boxes, mean over the thresholds t."""
    found = [values > threshold for threshold in thresholds]
    return float(np.mean([(hit & inside).sum() / (hit | inside).sum() for hit in found]))


def points(values: Floats, inside: Mask) -> float:
    """1 if the greatest value lies inside; where several are greatest, the share that does."""
    return float(inside[values == values.max()].mean())


def centre_map(view: View) -> Floats:
    """A map that always points to the centre, from 1 there to 0 in the corners."""
    down, across = (np.abs(np.linspace(-1, 1, n)) for n in view.size)
    return 1 - np.hypot(down[:, None], across[None, :]) / np.sqrt(2)


def _gaussian(n: int, sigma: float) -> Tensor:
    """float32 [n, n]: what smooths n values in a row, cut off at 4 deviations."""
    if not sigma:
        return torch.eye(n)
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    places = (torch.arange(n)[:, None] + offsets) % (2 * n)  # [n, 2 * radius + 1]
    places = torch.where(places < n, places, 2 * n - 1 - places)
    matrix = torch.zeros(n, n)
    return matrix.scatter_add_(1, places, (weights / weights.sum()).expand(n, -1))


def _phrase_embeddings(inputs: Inputs, phrases: Sequence[Phrase]) -> Tensor:
    """Unit rows [phrases, D]; the ways to say a thing are averaged."""
    groups = list(dict.fromkeys(tuple(phrase.texts) for phrase in phrases))
    places = {group: i for i, group in enumerate(groups)}
    return embed(inputs, groups)[[places[tuple(phrase.texts)] for phrase in phrases]]


def _views(
    inputs: Inputs, phrases: Sequence[Phrase], excluded: Counter[str]
) -> Iterator[tuple[int, Tensor, View]]:
    """(phrase's number, patches [h, w, D] of its image, how the image lies in the input)."""
    model, images = inputs.embedder.model, inputs.dataset.images
    by_sample: dict[int, list[int]] = {}
    for i, phrase in enumerate(phrases):
        by_sample.setdefault(phrase.item.sample, []).append(i)
    samples = list(by_sample)
    bar = inputs.embedder.progress.add_task(f"{inputs.name}: patches", total=len(samples))
    for start in range(0, len(samples), inputs.embedder.batch_size):
        part, kept = samples[start : start + inputs.embedder.batch_size], []
        for sample in part:
            try:
                image = open_rgb(images.read(sample))
            except (ImageError, OSError):
                excluded[BROKEN] += len(by_sample[sample])
                continue
            view = view_of(model.preprocess, *_stored_size(images, sample, image))
            kept.append((sample, view, model.transform(image)))
        if kept:
            embedded = model.embed_patches(torch.stack([pixels for *_, pixels in kept]))
            for (sample, view, _), patches in zip(kept, embedded, strict=True):
                for i in by_sample[sample]:
                    yield i, patches, view
        inputs.embedder.progress.advance(bar, len(part))


def _stored_size(images: ImageSource, sample: int, image: Image.Image) -> tuple[int, int]:
    """Width and height of the stored image; corrupted ones are smaller, of the same shape."""
    stored = stored_images(images)
    return image.size if stored is images else open_rgb(stored.read(sample)).size


def _other_phrases(phrases: Sequence[Phrase]) -> list[int]:
    """For each phrase the number of one that says something else; -1 where there is none."""
    first: dict[tuple[str, ...], int] = {}
    for i, phrase in enumerate(phrases):
        first.setdefault(tuple(phrase.texts), i)
    ring = list(first)
    if len(ring) < 2:
        return [-1] * len(phrases)
    follower = {key: first[ring[(i + 1) % len(ring)]] for i, key in enumerate(ring)}
    return [follower[tuple(phrase.texts)] for phrase in phrases]


def _result(inputs: Inputs, scored: Sequence[Scored], excluded: Counter[str]) -> Result:
    findings, inverse = np.unique([one.phrase.category for one in scored], return_inverse=True)
    strata = inverse.astype(np.int64)
    clusters, count = cluster_indices([one.phrase.item for one in scored], inputs.task.cluster)
    own = np.array([one.own for one in scored])  # [n, 3]
    # A region that knows nothing of the boxes has at most their share as IoU, and points into them
    # as often.
    share = _over_findings(np.array([one.share for one in scored]), strata)
    blind = {"centre": np.array([one.centre for one in scored])}
    if all(one.other is not None for one in scored):
        blind["other_phrase"] = np.array([one.other for one in scored])
    return Result(
        n=len(scored),
        scores={
            name: Score(
                _over_findings(own[:, k], strata),
                *inputs.interval(own[:, k], clusters, strata=strata),
                0.0 if name == "cnr" else share,
            )
            for k, name in enumerate(Judged._fields)
        },
        headline=["cnr", "miou"],
        excluded=dict(excluded),
        clusters=count,
        details={
            "baselines": {
                f"{key}_{name}": _over_findings(values[:, k], strata)
                for name, values in blind.items()
                for k, key in enumerate(Judged._fields)
            },
            "by_finding": _by_finding(findings, strata, own),
        },
        examples=_examples(inputs, scored),
        notes=["chance of cnr is that of a map without any contrast"],
        items=[_item(inputs, one) for one in scored],
    )


def _item(inputs: Inputs, scored: Scored) -> dict[str, Any]:
    phrase, judged = scored.phrase, scored.own
    name = f"{inputs.dataset.samples[phrase.item.sample].image}: {phrase.texts[0]}"
    return {
        "id": name,
        "cluster": text(phrase.item.row.get(inputs.task.cluster)) or name,
        "value": judged.cnr,
        "category": phrase.category,
        **judged._asdict(),
    }


def _examples(inputs: Inputs, scored: Sequence[Scored]) -> list[Example]:
    """The phrases whose maps stand out most in their boxes, and those whose maps avoid them."""

    def contrast_of(one: Scored) -> float:
        return one.own.cnr if one.toward else -one.own.cnr

    order = sorted(scored, key=contrast_of, reverse=True)
    groups = {"most contrast in the boxes": order, "least contrast in the boxes": order[::-1]}
    taken: set[int] = set()
    return [
        Example(
            group=group,
            title=inputs.dataset.samples[one.phrase.item.sample].image,
            text=" / ".join(one.phrase.texts),
            image=one.phrase.item.sample,
            answers=[],
            right=one.own.pointing == 1,
            place=_place(inputs, one, contrast_of(one)),
        )
        for group, ranked in groups.items()
        for one in _first(ranked, taken)
    ]


def _first(ranked: Sequence[Scored], taken: set[int]) -> list[Scored]:
    """The first few: each image once, and all findings before one comes again.

    Args:
        taken: samples that are shown already; those that are chosen are added.
    """
    chosen: list[Scored] = []
    for again in (False, True):
        for one in ranked:
            sample, findings = one.phrase.item.sample, {c.phrase.category for c in chosen}
            fits = sample not in taken and (again or one.phrase.category not in findings)
            if fits and len(chosen) < EXAMPLES:
                taken.add(sample)
                chosen.append(one)
    return chosen


def _place(inputs: Inputs, one: Scored, contrast: float) -> Place:
    view = one.view
    (height, width), (across, down), (left, top) = view.size, view.scale, view.offset
    return Place(
        map=[[round(value, 4) for value in row] for row in one.map.tolist()],
        smooth=inputs.task.grounding.interpolation == "bilinear",
        seen=(-left / across, -top / down, (width - left) / across, (height - top) / down),
        boxes=one.phrase.boxes_on(view.stored),
        size=view.stored,
        contrast=contrast,
        iou=one.own.miou,
        pointing=one.own.pointing,
    )


def _by_finding(findings: np.ndarray, strata: Ints, own: Floats) -> dict[str, dict[str, Any]]:
    return {
        str(finding) or "all": {
            "n": int((strata == k).sum()),
            **{key: float(own[strata == k, j].mean()) for j, key in enumerate(Judged._fields)},
        }
        for k, finding in enumerate(findings)
    }


def _over_findings(values: Floats, strata: Ints) -> float:
    """Mean over findings of the means within them."""
    return float(np.mean([values[strata == k].mean() for k in range(int(strata.max()) + 1)]))
