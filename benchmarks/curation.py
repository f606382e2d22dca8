"""What curation finds and what it drops by mistake; how long a selection takes.

    python -m benchmarks.curation                            # drawn images: 3 minutes
    python -m benchmarks.curation images=FOLDER              # also files of yours
    python -m benchmarks.curation texts=FOLDER               # language: en_*.jsonl, es_*.jsonl ...

Claims: copies that were made smaller or recompressed are found, cropped ones are not; unlike images
whose hashes agree by chance are told apart by their thumbnails; English captions are not taken for
foreign. And 100,000 of 5 million pairs are chosen in seconds.

A copy is found as `curate` finds it: the hashes differ in at most `bits` bits and the thumbnails
correlate. Unlike images are drawn ones of the demo's kinds, whose radiographs and scans are made to
look alike. Paragraphs of `texts` are the values of `text`, one JSON object a line; the language is
the file's name up to the first `_`.
"""

import io
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import Result, Row, machine, report
from data_prep.decisions import MIN_CORRELATION
from data_prep.inspection import thumbnail
from data_prep.kind_examples import example
from data_prep.selection import select
from vlp.config import UserError, load_config, run_program
from vlp.duplicates import near_pairs
from vlp.hashing import FLAT, perceptual_hash
from vlp.language import foreign_language

SEED = 977


@dataclass(frozen=True, kw_only=True)
class CurationConfig:
    """Measure duplicates, languages and selection."""

    drawn: int = 2000
    """Drawn images that are unlike each other; copies are made of the first 200."""
    images: str = ""
    """Folder with image files to make copies of as well; empty for none."""
    texts: str = ""
    """Folder with JSONL files of paragraphs; empty for none."""
    bits: int = 3
    """Hashes that differ in at most this many bits are compared."""
    pairs: int = 5_000_000
    """Pairs to select from; 0 leaves the selection out."""
    budget: int = 100_000
    """Pairs to select."""
    out: str = ""
    """JSON file for the result; empty writes none."""


Change = Callable[[Image.Image], Image.Image]


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def _scaled(image: Image.Image, share: float) -> Image.Image:
    width, height = (max(1, round(side * share)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    dx, dy = round(share * width), round(share * height)
    return image.crop((dx, dy, width - dx, height - dy))


CHANGES: Mapping[str, Change] = {
    "half the size": lambda image: _scaled(image, 0.5),
    "JPEG quality 50": lambda image: _jpeg(image, 50),
    "30% of the size, JPEG quality 70": lambda image: _jpeg(_scaled(image, 0.3), 70),
    "1% cropped from each side": lambda image: _cropped(image, 0.01),
    "5% cropped from each side": lambda image: _cropped(image, 0.05),
}


def copies(name: str, images: Sequence[Image.Image], bits: int) -> Iterator[Row]:
    """For each change: how many copies have near hashes, and how many of all are found."""
    whole = [(perceptual_hash(image), thumbnail(image)) for image in images]
    whole = [(phash, small) for phash, small in whole if phash != FLAT]
    kept = [image for image in images if perceptual_hash(image) != FLAT]
    for what, change in CHANGES.items():
        near, correlations = 0, []
        for image, (phash, small) in zip(kept, whole, strict=True):
            changed = change(image)
            if (perceptual_hash(changed) ^ phash).bit_count() <= bits:
                near += 1
                correlations.append(float(small @ thumbnail(changed)))
        found = sum(value >= MIN_CORRELATION for value in correlations)
        of = f"{name}, {len(kept)} copies, {what}"
        yield Row(f"{of}: near hashes", "", near, ratio=near / len(kept))
        least = min(correlations, default=None)
        yield Row(f"{of}: found", "", found, ratio=found / len(kept))
        if least is not None:
            yield Row(f"{of}: least correlation of those with near hashes", "", least)


def unlike(images: Sequence[Image.Image], bits: int) -> Iterator[Row]:
    """Pairs of different images that the hashes, and then the thumbnails, take for copies."""
    hashes = np.array([perceptual_hash(image) for image in images], dtype=np.uint64)
    kept = np.flatnonzero(hashes != FLAT)
    pairs = kept[near_pairs(hashes[kept], bits)]
    small = {n: thumbnail(images[n]) for n in np.unique(pairs).tolist()}
    mistaken = sum(float(small[i] @ small[j]) >= MIN_CORRELATION for i, j in pairs.tolist())
    of = f"unlike drawn images, {len(kept) * (len(kept) - 1) // 2:,} pairs"
    yield Row(f"{of}: near hashes", "", len(pairs))
    yield Row(f"{of}: taken for copies", "", mistaken)


def languages(folder: Path) -> Iterator[Row]:
    """For each file: paragraphs that are dropped when English, or their own language, is kept."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(f"texts={folder}: no .jsonl files in this folder")
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        own = file.stem.partition("_")[0]
        for kept in dict.fromkeys(("en", own)):
            dropped = sum(bool(foreign_language(text, (kept,))) for text in texts)
            what = f"{file.stem}, {len(texts)} paragraphs, keeping {kept}: dropped"
            yield Row(what, "", dropped, ratio=dropped / len(texts))


def selection(pairs: int, budget: int) -> Iterator[Row]:
    """Kind, journal, year and licence, distributed as unevenly as in PubMed Central."""
    rng = np.random.default_rng(SEED)
    journals = np.minimum((rng.pareto(1.0, pairs) * 20).astype(np.int64), 9999)
    tags = [
        rng.choice(5, pairs, p=[0.45, 0.3, 0.13, 0.07, 0.05]),
        np.unique(journals, return_inverse=True)[1],
        np.minimum(rng.geometric(0.12, pairs) - 1, 29),
        rng.choice(8, pairs, p=[0.6, 0.15, 0.1, 0.06, 0.04, 0.03, 0.015, 0.005]),
    ]
    start = time.process_time()
    chosen = select(tags, budget)
    seconds = time.process_time() - start
    of = f"{budget:,} of {pairs:,} pairs, {journals.max() + 1:,} journals"
    yield Row(f"selection, {of}", "CPU s", seconds)
    first = np.arange(budget)  # as good as chance: the pairs have no order
    for name, codes, entropy, bound in zip(
        ("kind", "journal", "year", "licence"), tags, chosen.entropies, chosen.bounds, strict=True
    ):
        share = np.bincount(codes[first]) / budget
        chance = -sum(p * np.log(p) for p in share[share > 0].tolist())
        yield Row(f"selection: entropy of {name} (chance {chance:.2f})", "nats", entropy)
        yield Row(f"selection: bound for {name}", "nats", bound)


def _drawn(count: int) -> list[Image.Image]:
    kinds = itertools.cycle(("image", "image", "plot", "diagram"))
    return [example(kind, SEED, number) for number, kind in zip(range(count), kinds, strict=False)]


def _files(folder: Path) -> list[Image.Image]:
    found = []
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in (".jpg", ".jpeg", ".png"):
            with Image.open(file) as image:
                found.append(image.convert("RGB"))
    if not found:
        raise UserError(f"images={folder}: no .jpg or .png files in this folder")
    return found


def measure(config: CurationConfig) -> Result:
    """All of it."""
    drawn = _drawn(config.drawn)
    rows = [*copies("drawn images", drawn[:200], config.bits), *unlike(drawn, config.bits)]
    if config.images:
        rows += copies("files", _files(Path(config.images)), config.bits)
    if config.texts:
        rows += languages(Path(config.texts))
    if config.pairs:
        rows += selection(config.pairs, config.budget)
    return Result("curation", machine(), tuple(rows))


def main(argv: list[str]) -> None:
    """Measure and print."""
    config = load_config(CurationConfig, argv, "python -m benchmarks.curation")
    report([measure(config)], config.out)


if __name__ == "__main__":
    run_program(main)
