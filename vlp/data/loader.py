"""Batches of one rank, in the order of `order.py`, from shards read by offset.

Workers are stateless: a batch is a function of its positions, so the loader starts at any step at
once, and any number of workers and ranks yields the same samples.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vlp.config import UserError
from vlp.data.image import ImageError, center_pixels, decode_crop, open_rgb
from vlp.data.index import RawSample, ShardFolder, Verify, open_shards
from vlp.data.order import Order, Source, generator
from vlp.data.text import CaptionTokenizer, PackedText

REPLACEMENTS = 8
"""Samples tried in place of a broken one before the run stops."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One shard folder of a mixture."""

    path: str
    """Folder with manifest.json, index.parquet and tars."""
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
        folders = {
            name: open_shards(source.path, config.train_split, config.verify)
            for name, source in config.sources.items()
        }
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

    def read(self, source: int, sample: int) -> RawSample:
        """A sample with its source's name before its key."""
        name = list(self.folders)[source]
        raw = self.folders[name].read(sample)
        return raw._replace(key=f"{name}/{raw.key}")

    def captions(self) -> Iterator[str]:
        """Every training caption once, source by source."""
        for folder in self.folders.values():
            for index in range(len(folder)):
                yield folder.caption(index)


class TrainSamples(Dataset[Batch]):
    """Positions of the stream -> one Batch with random crops."""

    def __init__(
        self,
        mixture: Mixture,
        tokenizer: CaptionTokenizer,
        image_size: int,
        crop_scale: tuple[float, float],
    ) -> None:
        self.mixture, self.tokenizer = mixture, tokenizer
        self.image_size, self.crop_scale = image_size, crop_scale

    def __getitems__(self, positions: list[int]) -> Batch:
        """Load a whole batch at once: one tokeniser call, one image tensor."""
        images = _empty_images(len(positions), self.image_size)
        captions, keys, broken = [], [], []
        sources, samples = self.mixture.order.samples(positions)
        for row, position in enumerate(positions):
            raw, caption, failed = self._sample(
                int(sources[row]), int(samples[row]), position, images[row : row + 1]
            )
            captions.append(caption)
            keys.append(raw.key)
            broken += failed
        return Batch(images, self.tokenizer(captions), keys, broken)

    def _sample(
        self, source: int, sample: int, position: int, out: torch.Tensor
    ) -> tuple[RawSample, str, list[Broken]]:
        """The sample at a position, or the first whole one of its fixed replacements.

        Its pixels are written to `out`, uint8 [1, 3, H, W].
        """
        order = self.mixture.order
        epoch, place = divmod(position, order.epoch_size)
        rng = generator(order.seed, epoch, place)
        broken: list[Broken] = []
        for _ in range(1 + REPLACEMENTS):
            raw = self.mixture.read(source, sample)
            try:
                decode_crop(raw.image, self.image_size, self.crop_scale, rng, out)
                return raw, raw.caption.decode("utf-8"), broken
            except ImageError as error:
                broken.append(Broken(raw.key, str(error)))
            except UnicodeDecodeError as error:
                broken.append(Broken(raw.key, f"caption is not UTF-8 at byte {error.start}"))
            # A replacement depends on the position alone, so every run and rank finds the same.
            instead = int(rng.integers(order.epoch_size))
            replaced_source, replaced_sample = order.samples([epoch * order.epoch_size + instead])
            source, sample = int(replaced_source[0]), int(replaced_sample[0])
        raise UserError(
            f"{broken[0].key}: {broken[0].reason}; {REPLACEMENTS} replacements are broken too: "
            "check the shards with `python -m data_prep check FOLDER`"
        )


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
        images, captions, keys, broken = [], [], [], []
        for index in indices:
            folder = int(np.searchsorted(self.starts, index, side="right")) - 1
            raw = self.folders[folder].read(index - int(self.starts[folder]))
            try:
                caption = raw.caption.decode("utf-8")
                images.append(center_pixels(open_rgb(raw.image), self.image_size))
                captions.append(caption)
                keys.append(raw.key)
            except ImageError as error:
                broken.append(Broken(raw.key, str(error)))
            except UnicodeDecodeError as error:
                broken.append(Broken(raw.key, f"caption is not UTF-8 at byte {error.start}"))
        stacked = torch.stack(images) if images else _empty_images(0, self.image_size)
        return Batch(stacked, self.tokenizer(captions), keys, broken)


class RankPositions(Sampler[list[int]]):
    """The positions of one rank's part of each global batch, from a step on."""

    def __init__(self, first_step: int, last_step: int, batch: int, rank: int, ranks: int) -> None:
        if batch % ranks:
            raise UserError(
                f"train.batch_size={batch} is not divisible by {ranks} processes; "
                f"set train.batch_size={-(-batch // ranks) * ranks} or use another --nproc-per-node"
            )
        self.steps = range(first_step, last_step)
        self.batch, self.local, self.rank = batch, batch // ranks, rank

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            start = step * self.batch + self.rank * self.local
            yield list(range(start, start + self.local))


def batches(
    samples: TrainSamples | EvaluationSamples,
    positions: Sampler[list[int]] | Sequence[list[int]],
    config: DataConfig,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """A DataLoader that yields one Batch per list of positions, in order."""
    workers = config.workers
    return DataLoader(
        samples,
        batch_sampler=positions,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin_memory,
        prefetch_factor=config.prefetch if workers else None,
        worker_init_fn=_start_worker,
    )


def _as_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    """Workers share the cores with each other: more threads in each only get in the way."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _empty_images(count: int, size: int) -> torch.Tensor:
    return torch.empty((count, 3, size, size), dtype=torch.uint8, memory_format=torch.channels_last)
