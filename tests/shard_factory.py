"""Small valid shard folders for tests, written by the real writer."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.shards import (
    INDEX,
    INDEX_SCHEMA,
    Sample,
    ShardWriter,
    index_table,
    write_manifest,
    write_table,
)

TEXT = (
    "axial chest radiograph section of the liver shows nuclei stained scale bar arrow lesion "
    "fluorescence micrograph control treated mouse kidney µm left right mean of three"
)


def jpeg(rng: np.random.Generator, width: int = 32, height: int = 24, mode: str = "RGB") -> bytes:
    """A tiny random JPEG."""
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def make_samples(
    count: int, seed: int = 0, *, prefix: str = "s", width: int = 32, height: int = 24
) -> list[Sample]:
    """`count` samples with random pixels and captions of 1 to 20 words; every fifth is grey."""
    rng = np.random.default_rng(seed)
    words = TEXT.split()
    samples = []
    for number in range(count):
        caption = " ".join(rng.choice(words, size=int(rng.integers(1, 21))))
        samples.append(
            Sample(
                key=f"{prefix}{seed}-{number:05d}",
                image=jpeg(rng, width, height, "L" if number % 5 == 4 else "RGB"),
                extension="jpg",
                width=width,
                height=height,
                caption=caption,
                article=f"A{seed}-{number // 3}",
                licence="CC BY 4.0",
                record={"figure": f"F{number}", "image": f"A{number // 3}/f{number}.jpg"},
            )
        )
    return samples


def make_shards(
    folder: Path | str,
    sizes: Sequence[int] = (8, 8, 5),
    *,
    val: Sequence[int] = (),
    test: Sequence[int] = (),
    seed: int = 0,
    width: int = 32,
    height: int = 24,
) -> Path:
    """A shard folder with one shard for each number of samples: `sizes` train, then val, test.

    Keys are unique over the folder; another `seed` makes other keys.
    """
    shards, shard_seed = [], seed * 1000
    for split, counts in (("test", test), ("train", sizes), ("val", val)):
        for count in counts:
            shards.append((split, make_samples(count, shard_seed, width=width, height=height)))
            shard_seed += 1
    return write_shards(folder, shards)


def write_shards(folder: Path | str, shards: Sequence[tuple[str, Sequence[Sample]]]) -> Path:
    """A shard folder with one shard for each (split, samples)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries, tables = [], []
    numbers = Counter[str]()
    for split, samples in shards:
        with ShardWriter(folder / f"{split}-{numbers[split]:05d}.tar", split) as writer:
            for sample in samples:
                writer.write(sample)
        numbers[split] += 1
        entries.append(writer.entry())
        tables.append(index_table(writer.rows))
    write_table(folder / INDEX, INDEX_SCHEMA, tables)
    write_manifest(folder, entries, [], stage="factory", config={}, inputs={})
    return folder
