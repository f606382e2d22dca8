"""Batches of one rank, in the order of `order.py`, from shards read by offset.

Workers are stateless: a batch is a function of its positions, so the loader starts at any step at
once, and any number of workers and ranks yields the same samples.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from vlp.config import UserError
from vlp.data.augment import AugmentConfig, augment
from vlp.data.image import ImageError, center_pixels, decode_crop, open_rgb
from vlp.data.index import CacheConfig, RawSample, ShardFolder, Verify, open_shards, splits
from vlp.data.order import Order, Positions, Source, generator
from vlp.data.schedule import BatchSchedule
from vlp.data.text import CaptionTokenizer, PackedText
from vlp.data.workers import Batches, Guarded, start_worker

REPLACEMENTS = 8
"""Samples tried in place of a broken one before the run stops."""

SUSPICIOUS = 3
"""Broken samples of one shard, met by one process, that have its checksum compared. Single ones are
common in tars of others, and reading a shard takes seconds."""

CAPTIONS = 4096
"""Captions read at a time for a vocabulary."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One shard folder of a mixture."""

    path: str
    """Folder with manifest.json, index.parquet and tars; or its URL (https, s3, gs, ...)."""
    weight: float = 1.0
    """Passes over the folder per epoch: 2 shows each sample twice, 0.5 each in every second."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Shard folders by name; their training splits are mixed by weight."""
    train_split: str = "train"
    """Split that is trained on."""
    validation_split: str = "val"
    """Split that the evaluations during training see; folders without it are left out of them."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Area of the random crop as a share of the image: least, most."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What else may happen to an image."""
    shuffle_window: int = 16
    """Shards whose samples are shuffled together; more mixes better, fewer reads more locally."""
    workers: int = 2
    """Loader processes per rank; 0 loads in the training process."""
    prefetch: int = 4
    """Batches that each worker prepares ahead."""
    verify: Verify = "size"
    """Check of shards against the manifest at the start: their `size`, or all bytes (`sha256`)."""
    max_broken: float = 0.01
    """Share of broken samples above which the run stops."""
    timeout: float = 600
    """Seconds without a batch after which the run stops, since the storage hangs."""
    cache: str = ""
    """Folder on a local disk where samples of sources at URLs are kept for the next epochs, shared
    by all processes of a machine; empty: none are kept."""
    cache_gb: float = 100
    """Gigabytes in that folder, at most."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"data.crop_scale must be 0 < least <= most <= 1, got {self.crop_scale}"
            )
        if self.workers < 0 or self.prefetch < 1 or self.shuffle_window < 1:
            raise ValueError(
                "data.workers must be >= 0, data.prefetch and data.shuffle_window >= 1"
            )
        if not 0 <= self.max_broken <= 1:
            raise ValueError(f"data.max_broken is a share from 0 to 1, got {self.max_broken}")
        if self.timeout <= 0 or self.cache_gb <= 0:
            raise ValueError("data.timeout and data.cache_gb must be positive")

    def open(self, source: str, split: str) -> ShardFolder:
        """One split of a source."""
        cache = CacheConfig(self.cache, int(self.cache_gb * 1e9)) if self.cache else None
        return open_shards(self.sources[source].path, split, self.verify, cache)

    def validation(self) -> list[ShardFolder]:
        """The validation split of each source that has one."""
        return [
            self.open(name, self.validation_split)
            for name, source in self.sources.items()
            if self.validation_split in splits(source.path)
        ]


class Broken(NamedTuple):
    """A sample that could not be used, and why."""

    key: str
    reason: str


class Batch(NamedTuple):
    """B figures and captions of one rank.

    Attributes:
        images: uint8 [B, 3, H, W], channels last; normalisation is done on the device.
        text: the captions as packed token ids.
        keys: the samples that are in the batch, "source/key".
        broken: the samples that others stand in for.
    """

    images: torch.Tensor
    text: PackedText
    keys: list[str]
    broken: list[Broken]

    def pin_memory(self) -> "Batch":
        return self._replace(images=self.images.pin_memory(), text=self.text.pin_memory())

    def to(self, device: torch.device | str) -> "Batch":
        """The same on a device, without waiting for the copies of pinned memory."""
        return self._replace(
            images=self.images.to(device, non_blocking=True),
            text=self.text.to(device, non_blocking=True),
        )

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Whatever is on the device."""
        return self.images, self.text.input_ids, self.text.cu_seqlens


@dataclass(frozen=True)
class Mixture:
    """Shard folders and the order in which their samples come."""

    folders: Mapping[str, ShardFolder]
    order: Order

    @classmethod
    def open(cls, config: DataConfig, seed: int) -> "Mixture":
        """The training split of every source.

        Raises:
            UserError: no source, or a folder that can't be read.
        """
        if not config.sources:
            raise UserError("data.sources is empty: set data.sources.NAME.path=SHARD_FOLDER")
        folders = {name: config.open(name, config.train_split) for name in config.sources}
        try:
            order = Order(
                sources={
                    name: Source(folder.shard_sizes, config.sources[name].weight)
                    for name, folder in folders.items()
                },
                seed=seed,
                window=config.shuffle_window,
            )
        except ValueError as error:
            raise UserError(f"data.sources: {error}") from None
        return cls(folders, order)

    def read(self, sources: Positions, samples: Positions) -> Iterator[RawSample]:
        """Samples [N] of sources [N], in order, each with its source's name before its key."""
        readers = {
            source: self._of_source(source, samples[sources == source])
            for source in np.unique(sources).tolist()
        }
        for source in sources.tolist():
            yield next(readers[source])

    def _of_source(self, source: int, samples: Positions) -> Iterator[RawSample]:
        name = list(self.folders)[source]
        for raw in self.folders[name].read_many(samples):
            yield raw._replace(key=f"{name}/{raw.key}")

    def check_shard_of(self, source: int, sample: int) -> None:
        """Raise UserError if the shard that holds a sample is not what the manifest says."""
        list(self.folders.values())[source].check_shard_of(sample)

    def captions(self) -> Iterator[str]:
        """Every training caption once, source by source."""
        for folder in self.folders.values():
            for start in range(0, len(folder), CAPTIONS):
                yield from folder.captions(range(start, min(start + CAPTIONS, len(folder))))


class TrainSamples(Dataset[Batch]):
    """Positions of the stream -> one Batch with random crops."""

    def __init__(
        self,
        mixture: Mixture,
        tokenizer: CaptionTokenizer,
        image_size: int,
        crop_scale: tuple[float, float],
        augmentation: AugmentConfig | None = None,
    ) -> None:
        self.mixture, self.tokenizer = mixture, tokenizer
        self.image_size, self.crop_scale = image_size, crop_scale
        self.augmentation = augmentation or AugmentConfig()
        self.suspects: Counter[tuple[int, int]] = Counter()

    def __getitems__(self, positions: list[int]) -> Batch:
        """Load a whole batch at once: all reads together, one tokeniser call, one image tensor."""
        images = _empty_images(len(positions), self.image_size)
        captions, keys, broken = [], [], []
        sources, samples = self.mixture.order.samples(positions)
        order = self.mixture.order
        turns = [divmod(position, order.epoch_size) for position in positions]
        # Made together: between two images, with cold caches, each takes several times as long.
        rngs = [generator(order.seed, epoch, within) for epoch, within in turns]
        places = zip(turns, sources.tolist(), samples.tolist(), strict=True)
        for raw, place, rng, out in zip(
            self.mixture.read(sources, samples), places, rngs, images.split(1), strict=True
        ):
            (epoch, _), source, sample = place
            raw, caption, failed = self._sample(raw, (source, sample), epoch, rng, out)
            captions.append(caption)
            keys.append(raw.key)
            broken += failed
        return Batch(images, self.tokenizer(captions), keys, broken)

    def _sample(
        self,
        raw: RawSample,
        place: tuple[int, int],
        epoch: int,
        rng: np.random.Generator,
        out: torch.Tensor,
    ) -> tuple[RawSample, str, list[Broken]]:
        """The sample at a position, or the first whole one of its fixed replacements.

        Args:
            raw: the sample that belongs there.
            place: its source and its number in it.
            epoch: that of the position.
            rng: the position's own, for the crop and all else that is drawn.
            out: uint8 [1, 3, H, W], for the pixels.
        """
        order = self.mixture.order
        broken: list[Broken] = []
        for _ in range(1 + REPLACEMENTS):
            try:
                decode_crop(raw.image, self.image_size, self.crop_scale, rng, out)
                caption = raw.caption.decode("utf-8")
                if self.augmentation.enabled:
                    augment(out[0], self.augmentation, rng)
                return raw, caption, broken
            except ImageError as error:
                broken.append(Broken(raw.key, str(error)))
            except UnicodeDecodeError as error:
                broken.append(Broken(raw.key, f"caption is not UTF-8 at byte {error.start}"))
            self._suspect(*place)
            # A replacement depends on the position alone, so every run and rank finds the same.
            instead = int(rng.integers(order.epoch_size))
            sources, samples = order.samples([epoch * order.epoch_size + instead])
            place = int(sources[0]), int(samples[0])
            raw = next(self.mixture.read(sources, samples))
        raise UserError(
            f"{broken[0].key}: {broken[0].reason}; {REPLACEMENTS} replacements are broken too: "
            "check the shards with `python -m data_prep check FOLDER`"
        )

    def _suspect(self, source: int, sample: int) -> None:
        """A sample is broken: was it written so, or is its shard damaged?"""
        shard = int(list(self.mixture.folders.values())[source].shard_of[sample])
        self.suspects[source, shard] += 1
        if self.suspects[source, shard] == SUSPICIOUS:
            self.mixture.check_shard_of(source, sample)


class EvaluationSamples(Dataset[Batch]):
    """Samples of shard folders in their order, decoded exactly: short side resized, centre crop."""

    def __init__(
        self, folders: Sequence[ShardFolder], tokenizer: CaptionTokenizer, image_size: int
    ) -> None:
        self.folders, self.tokenizer, self.image_size = folders, tokenizer, image_size
        self.starts = np.cumsum([0] + [len(folder) for folder in folders])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitems__(self, indices: list[int]) -> Batch:
        """Broken samples are left out of the batch and named in `broken`."""
        images = _empty_images(len(indices), self.image_size)
        captions: list[str] = []
        keys: list[str] = []
        broken: list[Broken] = []
        for raw in self._read(np.asarray(indices)):
            try:
                caption = raw.caption.decode("utf-8")
                images[len(keys)] = center_pixels(open_rgb(raw.image), self.image_size)
                captions.append(caption)
                keys.append(raw.key)
            except ImageError as error:
                broken.append(Broken(raw.key, str(error)))
            except UnicodeDecodeError as error:
                broken.append(Broken(raw.key, f"caption is not UTF-8 at byte {error.start}"))
        return Batch(images[: len(keys)], self.tokenizer(captions), keys, broken)

    def _read(self, indices: Positions) -> Iterator[RawSample]:
        """The samples, folder by folder; indices of a batch ascend."""
        of_folder = np.searchsorted(self.starts, indices, side="right") - 1
        for number in np.unique(of_folder).tolist():
            mine = indices[of_folder == number] - self.starts[number]
            yield from self.folders[number].read_many(mine)


class RankPositions(Sampler[list[int]]):
    """The positions of one rank's part of each global batch, from a step on."""

    def __init__(
        self, first_step: int, last_step: int, batch: int | BatchSchedule, rank: int, ranks: int
    ) -> None:
        """Steps `first_step` to `last_step` - 1 of one batch size, or of a schedule of sizes."""
        self.schedule = BatchSchedule.constant(batch) if isinstance(batch, int) else batch
        for stage in self.schedule.stages:
            if stage.batch % ranks:
                raise UserError(
                    f"train.batch_size={stage.batch} is not divisible by {ranks} processes; "
                    f"set train.batch_size={-(-stage.batch // ranks) * ranks} or use another "
                    "--nproc-per-node"
                )
        self.steps, self.rank, self.ranks = range(first_step, last_step), rank, ranks

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            local = self.schedule.batch(step) // self.ranks
            start = self.schedule.position(step) + self.rank * local
            yield list(range(start, start + local))


def batches(
    samples: Dataset[Any],
    positions: Sampler[list[int]] | Sequence[list[int]],
    config: DataConfig,
    pin_memory: bool = False,
) -> Batches:
    """One Batch per list of positions, in order, made by `config.workers` processes.

    Args:
        samples: what makes a Batch of a list of positions.
        positions: the lists.
        config: workers, prefetch and time-out.
        pin_memory: put batches where the device can fetch them by itself.
    """
    workers = config.workers
    loader: DataLoader[Any] = DataLoader(
        Guarded(samples),
        batch_sampler=positions,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin_memory,
        prefetch_factor=config.prefetch if workers else None,
        timeout=config.timeout if workers else 0,
        worker_init_fn=start_worker,
    )
    return Batches(loader)


def _as_is(batch: Any) -> Any:
    return batch


def _empty_images(count: int, size: int) -> torch.Tensor:
    """uint8 [count, 3, size, size], channels last, its bytes not set."""
    shape = (count, size, size, 3)
    if get_worker_info() is None:
        # numpy asks the system for huge pages, which spares a fault for each 4 kB.
        return torch.from_numpy(np.empty(shape, np.uint8)).permute(0, 3, 1, 2)
    # Memory that the training process sees, too, as torch's own collate function has it: elsewhere
    # the pixels would be copied there when the batch is sent.
    shared = torch.UntypedStorage._new_shared(max(1, int(np.prod(shape))), device="cpu")
    flat = torch.empty(0, dtype=torch.uint8).set_(shared)
    return flat[: int(np.prod(shape))].view(shape).permute(0, 3, 1, 2)
