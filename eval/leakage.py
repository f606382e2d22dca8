"""Images of a task that the model was trained on, and the score without them.

Every image is looked up in index.parquet of the training data by its perceptual hash (the DCT hash
that data_prep writes there): images that differ in few of 64 bits are near-copies. Where a hash is
equal, the training image itself is fetched to see whether the pixels are the same. What this can't
find are crops: a panel of a figure, a tile of a slide.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.progress import Progress
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from eval.console import interval, shown
from eval.options import LeakageConfig
from eval.readers import Dataset, ImageSource
from eval.tasks import Inputs, Result, keep
from vlp.config import UserError
from vlp.data.image import ImageError, open_rgb
from vlp.data.index import open_storage, splits
from vlp.data.storage import Span, Storage
from vlp.duplicates import Hashes, nearest_in
from vlp.hashing import FLAT, perceptual_hash

COLUMNS = ("key", "shard", "split", "width", "height", "image_offset", "image_size", "phash")
LISTED = 1000
"""Matches that are listed in a task's results; all of them are counted."""
COMPARED = 32
"""Training images of one hash whose pixels are compared with an image's, at most."""
UNREADABLE = 0
"""Stands for the hash of an image that can't be decoded; no image has it."""
REASON = "image is in the training data"


@dataclass(frozen=True)
class Match:
    """A training image that seems to be the same as an image of the task."""

    folder: str
    key: str
    bits: int
    """In how many of 64 bits the perceptual hashes differ."""
    same_pixels: bool


@dataclass(frozen=True)
class Overlap:
    """What of one data set was found in the training data."""

    matches: dict[int, Match]
    """Sample -> its nearest training image."""
    not_compared: frozenset[int]
    """Samples that can't be decoded, or have no structure: blank images are alike everywhere."""


@dataclass(frozen=True)
class Hasher:
    """Hashes images, and keeps the hashes."""

    cache: Path
    """The folder in which they are kept."""
    workers: int = 0
    """Processes that decode images."""
    progress: Progress = field(default_factory=lambda: Progress(disable=True))

    def hashes(self, images: ImageSource, count: int, fingerprint: str, what: str) -> Hashes:
        """uint64 [count]; UNREADABLE for images that can't be decoded.

        Args:
            fingerprint: of what decides the pixels.
            what: what the progress bar shows.
        """
        path = self.cache / f"hashes-{fingerprint[:32]}.npy"
        if path.is_file():
            try:
                kept = np.load(path, allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise UserError(f"{path}: damaged ({error}); delete it") from None
            if kept.shape == (count,):
                return np.asarray(kept, dtype=np.uint64)
        loader: DataLoader = DataLoader(
            _Hashed(images, count), batch_size=64, num_workers=self.workers, collate_fn=list
        )
        task = self.progress.add_task(what, total=count)
        found: list[int] = []
        for batch in loader:
            found += batch
            self.progress.advance(task, len(batch))
        hashes = np.array(found, dtype=np.uint64)
        self.cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.save(file, hashes)
        os.replace(temporary, path)
        return hashes

    def of(self, dataset: Dataset) -> Hashes:
        """The hashes of a data set's images."""
        images, count = dataset.images, len(dataset.samples)
        return self.hashes(images, count, dataset.fingerprint, "hashes of test images")


@dataclass(frozen=True)
class Training:
    """The images of training data, by their hashes."""

    storages: Sequence[Storage]
    rows: pa.Table
    """COLUMNS and `folder`, an index into `storages`; a row for each image that has a hash."""
    unreadable: int
    """Images that can't be decoded."""

    @property
    def hashes(self) -> Hashes:
        """uint64 [N]."""
        return np.asarray(self.rows["phash"].to_numpy())


def training_sha256(config: LeakageConfig) -> list[str]:
    """SHA-256 of each training folder's manifest, which holds those of its shards.

    Raises:
        UserError: a folder that isn't there, or that has none of the splits.
    """
    found = []
    for folder in config.train:
        if not set(there := splits(folder)) & set(config.splits):
            raise UserError(
                f"leakage.splits: {folder} has no split {', '.join(config.splits)}; "
                f"it has {', '.join(there)}"
            )
        found.append(hashlib.sha256(open_storage(folder).whole("manifest.json")).hexdigest())
    return found


def read_training(config: LeakageConfig, hasher: Hasher) -> Training:
    """The index of all training folders; images whose hash isn't in it are read and hashed.

    Raises:
        UserError: as `training_sha256`.
    """
    digests = training_sha256(config)
    tables, storages = [], []
    unreadable = 0
    for number, folder in enumerate(config.train):
        storages.append(open_storage(folder))
        table = storages[-1].table("index.parquet", COLUMNS)
        table = table.filter(pc.is_in(table["split"], pa.array(list(config.splits))))
        hashed = table.filter(pc.is_valid(table["phash"]))
        rest = table.filter(pc.is_null(table["phash"]))
        if rest.num_rows:  # shards of others, as `data_prep index` describes them
            hashes = _hash_stored(storages[-1], rest, digests[number] + str(config.splits), hasher)
            rest = rest.set_column(rest.column_names.index("phash"), "phash", pa.array(hashes))
            hashed = pa.concat_tables([hashed, rest.filter(pa.array(hashes != UNREADABLE))])
            unreadable += int((hashes == UNREADABLE).sum())
        tables.append(hashed.append_column("folder", pa.array([number] * hashed.num_rows)))
    return Training(storages, pa.concat_tables(tables).combine_chunks(), unreadable)


def find_overlaps(
    datasets: Iterable[Dataset], training: Training, config: LeakageConfig, hasher: Hasher
) -> dict[str, Overlap]:
    """Fingerprint of each data set -> its images that are in the training data."""
    sets = {dataset.fingerprint: dataset for dataset in datasets}
    hashes = [hasher.of(dataset) for dataset in sets.values()]
    together = np.concatenate(hashes)
    # A blank image is in every set: it is no sign of leakage.
    usable = np.flatnonzero((together != UNREADABLE) & (together != FLAT))
    known = np.flatnonzero(training.hashes != FLAT)
    near, nearest = nearest_in(training.hashes[known], together[usable], config.bits)
    pairs = dict(zip(usable[near].tolist(), known[nearest].tolist(), strict=True))
    by_hash = _Lookup(training)
    overlaps, start = {}, 0
    for (fingerprint, dataset), own in zip(sets.items(), hashes, strict=True):
        matches = {}
        for sample, value in enumerate(own.tolist()):
            if start + sample in pairs:
                row = pairs[start + sample]
                matches[sample] = by_hash.match(row, value, dataset.images.read(sample), config)
        unusable = (own == UNREADABLE) | (own == FLAT)
        overlaps[fingerprint] = Overlap(matches, frozenset(np.flatnonzero(unusable).tolist()))
        start += len(own)
    return overlaps


def with_overlap(
    result: Result,
    inputs: Inputs,
    evaluate: Callable[[Inputs], Result],
    overlap: Overlap,
    training: Training,
    config: LeakageConfig,
) -> Result:
    """A task's result with what the model has seen of it: `details["leakage"]`, and a note.

    Where something was found, the task is scored again without it, as if those images were broken:
    `scores_without` is None where nothing would be left, and otherwise as `scores`.

    Args:
        result: of the task on all images.
        evaluate: the task's kind.
    """
    samples = {
        i
        for i, sample in enumerate(inputs.dataset.samples)
        if any(keep(row, inputs.task.where) for row in sample.rows)
    }
    matches = {i: match for i, match in overlap.matches.items() if i in samples}
    same = sum(match.same_pixels for match in matches.values())
    compared = len(samples - overlap.not_compared)
    details: dict[str, Any] = {
        "training": list(config.train),
        "splits": list(config.splits),
        "bits": config.bits,
        "training_images": training.rows.num_rows,
        "training_images_unreadable": training.unreadable,
        "images": compared,
        "not_compared": len(samples & overlap.not_compared),
        "near": len(matches),
        "same_pixels": same,
        "matches": [
            {"image": inputs.dataset.samples[i].image, **asdict(match)}
            for i, match in sorted(matches.items())[:LISTED]
        ],
    }
    note = f"in the training data: {len(matches)} of {compared} images ({same} with equal pixels)"
    if matches:
        clean = _without(matches, inputs, evaluate)
        details["n_without"] = clean.n if clean else 0
        details["scores_without"] = clean.score_rows() if clean else None
        if clean:
            key = result.headline[0]
            score = clean.score_rows()[key]
            note += f"; without them {key} {shown(key, score['value'])} ({interval(key, score)})"
            note += f", n = {clean.n}"
    return replace(
        result, details={**result.details, "leakage": details}, notes=[*result.notes, note]
    )


def _hash_stored(storage: Storage, rows: pa.Table, version: str, hasher: Hasher) -> Hashes:
    """Hashes of images in shards; `version` says which images these are."""
    digest = hashlib.sha256(version.encode()).hexdigest()
    columns = [rows[name].to_pylist() for name in ("shard", "image_offset", "image_size")]
    spans = [Span(*row) for row in zip(*columns, strict=True)]
    what = f"hashes of {storage.root}"
    return hasher.hashes(_Stored(storage, spans), len(spans), digest, what)


def _without(
    matches: dict[int, Match], inputs: Inputs, evaluate: Callable[[Inputs], Result]
) -> Result | None:
    """The task's result without some samples; None where that leaves nothing to score."""
    broken = {**inputs.images.broken, **dict.fromkeys(matches, REASON)}
    images = replace(inputs.images, broken=broken)
    samples = [  # grounding reads the images again, and so knows them by their rows only
        replace(sample, rows=[]) if i in matches else sample
        for i, sample in enumerate(inputs.dataset.samples)
    ]
    dataset = replace(inputs.dataset, samples=samples)
    try:
        return evaluate(replace(inputs, dataset=dataset, images=images))
    except UserError:  # which the kinds raise where no item is left
        return None


class _Lookup:
    """Training images by their hash."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.order = np.argsort(training.hashes, kind="stable")
        self.sorted = training.hashes[self.order]

    def match(self, row: int, value: int, data: bytes, config: LeakageConfig) -> Match:
        """The match of an image with its nearest training image, or with one of equal pixels."""
        for candidate in self._equal(value):
            if self._same_pixels(candidate, data):
                return self._match(candidate, value, config, same_pixels=True)
        return self._match(row, value, config, same_pixels=False)

    def _equal(self, value: int) -> list[int]:
        """Training images of this very hash."""
        low, high = (
            int(np.searchsorted(self.sorted, np.uint64(value), side)) for side in ("left", "right")
        )
        return self.order[low : min(high, low + COMPARED)].tolist()

    def _same_pixels(self, row: int, data: bytes) -> bool:
        found = self._row(row)
        image = open_rgb(data)
        if image.size != (found["width"], found["height"]):
            return False
        span = Span(found["shard"], found["image_offset"], found["image_size"])
        stored = next(iter(self.training.storages[found["folder"]].read([span])))
        try:
            return stored == data or open_rgb(stored).tobytes() == image.tobytes()
        except ImageError:
            return False

    def _match(self, row: int, value: int, config: LeakageConfig, same_pixels: bool) -> Match:
        found = self._row(row)
        bits = (int(found["phash"]) ^ value).bit_count()
        return Match(config.train[found["folder"]], found["key"], bits, same_pixels)

    def _row(self, row: int) -> dict[str, Any]:
        return dict(self.training.rows.slice(row, 1).to_pylist()[0])


@dataclass(frozen=True)
class _Stored:
    """Images in shards."""

    storage: Storage
    spans: Sequence[Span]

    def read(self, index: int) -> bytes:
        return next(iter(self.storage.read([self.spans[index]])))


@dataclass(frozen=True)
class _Hashed(TorchDataset):
    """The hash of each image, for the workers of a loader."""

    images: ImageSource
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        try:
            return perceptual_hash(open_rgb(self.images.read(index)))
        except (ImageError, OSError):
            return UNREADABLE
