"""Which samples stay, which split they are in, and why the others go.

Decisions depend on the samples alone, not on the order in which they are found: in every group of
duplicates test comes before validation before training, then the larger image, then the longer
caption, then the article and the key.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.inspection import Looks
from data_prep.leakage import EvaluationSet
from data_prep.selection import select
from data_prep.shards import SPLITS
from vlp.duplicates import Indices, Neighbourhood, nearest_in
from vlp.hashing import FLAT

TAGS = ("kind", "journal", "year", "licence", "keyword")
"""What a selection can be spread over. `keyword` is the commonest in the set of a sample's own."""

MIN_CORRELATION = 0.985
"""Of two grey thumbnails of the same image; benchmarks/curation.py measures what it finds."""
MAX_STRETCH = 1.05
"""How far the ratios of the sides of two copies may differ: cropping of a line or rounding."""


class Look(Protocol):
    """Gets a closer look at the images of some samples."""

    def __call__(self, samples: Indices) -> Looks:
        """The looks, in the order of `samples`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Aims:
    """What to decide; see CurateConfig for each."""

    duplicate_bits: int
    leakage_bits: int
    same_caption: int
    budget: int
    budget_tags: tuple[str, ...]


@dataclass
class Decisions:
    """What becomes of each sample."""

    split: NDArray[np.object_]
    """Split in which it is written [N]."""
    reason: NDArray[np.object_]
    """Why it is dropped; "" where it stays [N]."""
    duplicates: list[tuple[int, int]] = field(default_factory=list)
    """(dropped, the sample that it is a copy of)."""
    leaks: list[tuple[int, str, str, int]] = field(default_factory=list)
    """(sample, evaluation set, its item, differing bits), dropped or not."""
    entropies: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of the selection: for each tag its entropy, and the bound of that."""

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Which samples stay [N]."""
        return np.asarray(self.reason == "", dtype=bool)

    def drop(self, samples: Indices, reason: str) -> None:
        """Give a reason to samples that have none."""
        self.reason[samples] = reason


def decide(
    facts: pa.Table,
    aims: Aims,
    frozen: frozenset[str] | None,
    evaluation_sets: list[EvaluationSet],
    look: Look,
) -> Decisions:
    """All decisions, in the order in which they are described in docs/curate.md.

    Args:
        facts: of all samples, as `inspect` makes them.
        frozen: groups (articles without version) of a frozen test split; None leaves the splits.
        evaluation_sets: images that training must not see.
        look: called once, for the samples whose hashes are near another's.
    """
    made = Decisions(_splits(facts, frozen), _objects(facts["problem"]))
    for evaluation_set in evaluation_sets:
        _find_leaks(facts, aims, evaluation_set, made)
    rank = _rank(facts, made.split)
    if aims.duplicate_bits >= 0:
        _drop_duplicates(facts, aims, rank, look, made)
    if aims.same_caption:
        _drop_repeated_captions(facts, aims, rank, made)
    if aims.budget:
        _keep_budget(facts, aims, made)
    return made


def group_of(article: str) -> str:
    """What all versions of an article share: the PMC number, or the name in lower case."""
    head, dot, version = article.partition(".")
    if head.startswith("PMC") and head[3:].isdigit() and (not dot or version.isdigit()):
        return head
    return article.lower()


def _splits(facts: pa.Table, frozen: frozenset[str] | None) -> NDArray[np.object_]:
    splits = _objects(facts["split"])
    if frozen is None:
        return splits
    inside = np.array([group_of(name) in frozen for name in facts["article"].to_pylist()], bool)
    splits[(splits == "test") & ~inside] = "train"
    splits[inside] = "test"
    return splits


def _find_leaks(facts: pa.Table, aims: Aims, known: EvaluationSet, made: Decisions) -> None:
    """Note what is near an image of an evaluation set; drop it where it would be trained on."""
    hashes = facts["phash"].to_numpy()
    samples = np.flatnonzero(made.kept & (hashes != FLAT))
    found, match = nearest_in(known.hashes, hashes[samples], aims.leakage_bits)
    bits = np.bitwise_count(hashes[samples[found]] ^ known.hashes[match])
    for sample, item, far in zip(samples[found].tolist(), match.tolist(), bits, strict=True):
        made.leaks.append((sample, known.name, known.items[item], int(far)))
    leaking = samples[found]
    made.drop(leaking[made.split[leaking] == "train"], f"in the evaluation set {known.name}")


def _rank(facts: pa.Table, split: NDArray[np.object_]) -> Indices:
    """All samples, the one that is to stand for its duplicates first."""
    order = {name: place for place, name in enumerate(reversed(SPLITS))}
    width, height = (facts[name].to_numpy().astype(np.int64) for name in ("width", "height"))
    keys = (
        _codes(facts["key"]),
        _codes(facts["article"]),
        -facts["caption_length"].to_numpy(),
        -width * height,
        np.array([order[name] for name in split], dtype=np.int64),
    )
    return np.lexsort(keys)


def _drop_duplicates(
    facts: pa.Table, aims: Aims, rank: Indices, look: Look, made: Decisions
) -> None:
    hashes = facts["phash"].to_numpy()
    samples = rank[made.kept[rank] & (hashes[rank] != FLAT)]
    near = Neighbourhood(hashes[samples], aims.duplicate_bits)
    looks = look(samples[near.items])
    place = np.zeros(len(samples), dtype=np.int64)
    place[near.items] = np.arange(len(near.items))
    ratio = facts["width"].to_numpy()[samples] / facts["height"].to_numpy()[samples]

    def same(item: int, others: Indices) -> NDArray[np.bool_]:
        correlation = looks.pixels[place[others]] @ looks.pixels[place[item]]
        stretch = ratio[others] / ratio[item]
        alike = (stretch <= MAX_STRETCH) & (stretch >= 1 / MAX_STRETCH)
        alike &= correlation >= MIN_CORRELATION
        alike |= looks.digests[place[others]] == looks.digests[place[item]]
        return np.asarray(alike, dtype=bool)

    leader = near.leaders(same)
    followers = np.flatnonzero(leader != np.arange(len(samples)))
    exact = looks.digests[place[followers]] == looks.digests[place[leader[followers]]]
    made.drop(samples[followers[exact]], "duplicate image")
    made.drop(samples[followers[~exact]], "near-duplicate image")
    pairs = zip(samples[followers].tolist(), samples[leader[followers]].tolist(), strict=True)
    made.duplicates.extend(pairs)


def _drop_repeated_captions(facts: pa.Table, aims: Aims, rank: Indices, made: Decisions) -> None:
    """Of equal captions keep the first few."""
    samples = rank[made.kept[rank]]
    captions = facts["caption"].to_numpy()[samples]
    order = np.argsort(captions, kind="stable")
    ordered = captions[order]
    begins = np.ones(len(ordered), dtype=bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(begins)
    number = np.arange(len(ordered)) - np.repeat(starts, np.diff(np.append(starts, len(ordered))))
    made.drop(samples[order[number >= aims.same_caption]], "caption repeated")


def _keep_budget(facts: pa.Table, aims: Aims, made: Decisions) -> None:
    """Of the training samples keep those that a selection under the budget takes."""
    samples = np.flatnonzero(made.kept & (made.split == "train"))
    if len(samples) <= aims.budget:
        return
    rows = facts.take(pa.array(samples))
    tags = [_codes(_keyword(rows) if tag == "keyword" else rows[tag]) for tag in aims.budget_tags]
    chosen = select(tags, aims.budget)
    rest = np.ones(len(samples), dtype=bool)
    rest[chosen.items] = False
    made.drop(samples[rest], "over the budget")
    for number, tag in enumerate(aims.budget_tags):
        made.entropies[tag] = {
            "entropy": round(abs(float(chosen.entropies[number])), 6),
            "bound": round(float(chosen.bounds[number]), 6),
        }


def _keyword(rows: pa.Table) -> pa.ChunkedArray:
    """Of each sample's keywords the one that most samples have; "" where it has none."""
    column = rows["keywords"].combine_chunks()
    words = pc.utf8_lower(column.flatten()).to_pylist()
    times = Counter(words)
    best: list[tuple[int, str]] = [(0, "")] * len(column)
    for sample, word in zip(pc.list_parent_indices(column).to_pylist(), words, strict=True):
        best[sample] = min(best[sample], (-times[word], word))
    return pa.chunked_array([[word for _, word in best]], pa.string())


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Values as numbers in their alphabetical order, none left out."""
    ranks = pc.rank(column, tiebreaker="dense").to_numpy()
    codes: NDArray[np.int64] = ranks.astype(np.int64) - 1
    return codes


def _objects(column: pa.ChunkedArray) -> NDArray[np.object_]:
    return np.array(column.to_pylist(), dtype=object)
