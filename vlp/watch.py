"""What a person looks at besides numbers: which figures a caption finds on the validation split."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from vlp.data.image import open_rgb
from vlp.data.index import RawSample
from vlp.data.loader import Batch, EvaluationSamples
from vlp.reporting import NullReporter

QUERIES = 16
"""Captions in the table, spread evenly over the split: the same ones in every evaluation."""
FOUND = 3
"""Figures shown for each."""
SIDE = 160
"""Pixels of a figure in the table."""


class Embedded(NamedTuple):
    """The validation split, embedded.

    Attributes:
        image: normalised features of figures [N, D], on the CPU.
        text: normalised features of their captions [N, D].
        places: of each row, its sample's place in the split; broken samples have no row.
    """

    image: Tensor
    text: Tensor
    places: list[int]


class Answer(NamedTuple):
    """What one caption finds.

    Attributes:
        query: its place in the split.
        rank: place of its own figure among all, from 1; figures of equal cosine count before it.
        found: places of the figures with the greatest cosines, best first.
    """

    query: int
    rank: int
    found: list[int]


def answers(
    image: Tensor, text: Tensor, queries: Sequence[int], count: int = FOUND
) -> list[Answer]:
    """The figures that captions find.

    Args:
        image: normalised features [N, D].
        text: normalised features [N, D]; row i belongs to figure i.
        queries: rows of `text`.
        count: figures to name for each.
    """
    result = []
    for query in queries:
        cosines = image.float() @ text[query].float()
        rank = int((cosines >= cosines[query]).sum())
        result.append(Answer(query, rank, cosines.topk(min(count, len(image))).indices.tolist()))
    return result


def spread(total: int, count: int = QUERIES) -> list[int]:
    """At most `count` places, evenly over 0 ... total - 1."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def show_retrieved(
    reporter: NullReporter,
    step: int,
    samples: EvaluationSamples,
    embedded: Embedded,
) -> None:
    """Report the table `val/retrieved`: caption, its figure, its rank, the figures that it finds.

    Args:
        reporter: does nothing with it unless it takes tables.
        step: steps that were taken.
        samples: the validation split.
        embedded: its features.
    """
    if not reporter.takes_tables:
        return
    rows: list[list[str | float | Image.Image]] = []
    places = embedded.places
    for answer in answers(embedded.image, embedded.text, spread(len(places))):
        caption, figure = _sample(samples, places[answer.query])
        found = [_sample(samples, places[row])[1] for row in answer.found]
        rows.append([caption, figure, answer.rank, *found])
    columns = ["caption", "its figure", "rank"]
    columns += [f"found {number + 1}" for number in range(len(rows[0]) - len(columns))]
    reporter.table(step, "val/retrieved", columns, rows)


def whole_places(samples: EvaluationSamples, places: Sequence[int], batch: Batch) -> list[int]:
    """The places of those samples that a batch holds: all but the broken ones."""
    if not batch.broken:
        return list(places)
    kept = set(batch.keys)
    return [place for place in places if _read(samples, place).key in kept]


def _sample(samples: EvaluationSamples, place: int) -> tuple[str, Image.Image]:
    raw = _read(samples, place)
    image = open_rgb(raw.image)
    image.thumbnail((SIDE, SIDE))
    return raw.caption.decode("utf-8"), image


def _read(samples: EvaluationSamples, place: int) -> RawSample:
    number = int(np.searchsorted(samples.starts, place, side="right")) - 1
    return samples.folders[number].read(place - int(samples.starts[number]))
