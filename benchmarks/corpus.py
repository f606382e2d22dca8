"""Figure-caption shards with the sizes of PubMed Central's, generated: what loaders are fed.

Of 2,000 images: about 0.86 megapixels and 90 kB in the mean, a fifth with a longest side of 1,500
to 2,000 pixels, 9% grey, 5% progressive; captions of about 56 tokens, more than half of them with
characters outside ASCII, as in real captions. Pages of panels with natural image statistics
(amplitude 1/f), lines and letters; their bytes per pixel decide what decoding costs.
"""

import functools
import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from data_prep.shards import (
    INDEX,
    INDEX_SCHEMA,
    MANIFEST,
    Sample,
    ShardWriter,
    index_table,
    read_manifest,
    write_manifest,
    write_table,
)
from vlp.data.text import CaptionTokenizer, train_wordpiece

VERSION = 1
"""Raise it when pixels or captions change, so that old folders are not reused."""
SHARDS = 4
IMAGES_PER_PAGE, PAGE_SIDE = 250, 2400
CONTEXT = 256

# Words, separated by blanks.
_STEMS = (
    "hepat cardi neur nephr oste derm gastr pulmon arthr cyt hist leuk lymph my path angi bronch "
    "cerebr chondr col cyst encephal fibr haemat immun kerat lip mamm necr ocul pancreat rhin "
    "sarc splen thromb tox vas aden carcin"
)
_ENDINGS = (
    "o ic al itis oma osis pathy ogram oid ular ocyte ectomy emia ation olysis otic opathic "
    "ogenesis ography ophil"
)
_COMMON = (
    "the of and in with a shows to by left right from section image arrow bar scale after control "
    "patients cells tissue mean days (A) (B) (C) (D) n=3 50 100 p<0.05 were is for"
)
_SYMBOLS = ("µm", "±", "–", "°C", "β-actin", "×400", "≤", "patient’s", "α", "10−6")


@dataclass(frozen=True)
class Corpus:
    """Generated shards.

    Attributes:
        original: shard folder with the images as an article has them.
        short: the same images with a short side of 288 pixels, quality 95.
        tokenizer: folder of a WordPiece vocabulary trained on the captions.
        facts: what the corpus holds, for the report.
    """

    original: Path
    short: Path
    tokenizer: Path
    facts: dict[str, str]


def make_corpus(work: str | Path, samples: int, seed: int) -> Corpus:
    """Generate the corpus under `work`, or find the one of an earlier run there.

    Args:
        work: folder for generated data.
        samples: number of images; four shards.
        seed: the same seed and number give the same pixels and captions.
    """
    folder = Path(work) / f"loader-v{VERSION}-{samples}-{seed}"
    original, short = folder / "original", folder / "short288"
    tokenizer = folder / "tokenizer"
    if not (short / MANIFEST).is_file():  # the last file that is written
        texts = captions(samples, seed)
        train_wordpiece(texts, 30522, tokenizer)
        for place in (original, short):
            place.mkdir(parents=True, exist_ok=True)
        both = list(_images(samples, seed))
        for place, images in zip((original, short), zip(*both, strict=True), strict=True):
            _write(place, list(images), texts, _facts(list(images), texts, tokenizer))
    facts = read_manifest(original)["config"]
    facts["images at short side 288"] = read_manifest(short)["config"]["images"]
    return Corpus(original, short, tokenizer, facts)


def captions(count: int, seed: int) -> list[str]:
    """`count` captions: words by Zipf's law, lognormal lengths, symbols in 57% of them."""
    rng = np.random.default_rng((seed, 1))
    words, parts, endings = _COMMON.split(), _STEMS.split(), _ENDINGS.split()
    while len(words) < 6000:
        stems = rng.choice(parts, int(rng.integers(1, 4)))
        words.append("o".join(stems) + str(rng.choice(endings)))
    weights = 1 / (np.arange(len(words)) + 8)
    weights /= weights.sum()
    texts = []
    for _ in range(count):
        length = int(np.clip(rng.lognormal(3.68, 0.62), 4, 200))
        chosen = [str(word) for word in rng.choice(words, length, p=weights)]
        if rng.random() < 0.57:
            for _ in range(1 + length // 25):
                chosen.insert(int(rng.integers(length)), str(rng.choice(_SYMBOLS)))
        texts.append(" ".join(chosen).capitalize() + ".")
    return texts


def _images(samples: int, seed: int) -> Iterator[tuple[Sample, Sample]]:
    pages = 1 + samples // IMAGES_PER_PAGE
    make = functools.partial(_pair, pages=pages, seed=seed)
    if pages == 1:  # done before other processes have started
        yield from map(make, range(samples))
        return
    # Not forked: torch's threads may hold locks.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        made = pool.map(make, range(samples), chunksize=20)
        yield from track(made, "drawing images", total=samples)


def _pair(number: int, pages: int, seed: int) -> tuple[Sample, Sample]:
    """Image `number`, cut from one of `pages`, at its own size and with a short side of 288."""
    rng = np.random.default_rng((seed, 2, number))
    large = rng.random() < 0.20
    longest = int(rng.integers(1500, 2001) if large else rng.integers(540, 1040))
    shorter = int(longest * rng.uniform(0.55, 1.0))
    width, height = (longest, shorter) if rng.random() < 0.65 else (shorter, longest)
    page = _page(int(rng.integers(pages)), seed)
    zoom = min(rng.uniform(1.0, 1.5), PAGE_SIDE / longest)
    w, h = width * zoom, height * zoom
    left, top = rng.uniform(0, PAGE_SIDE - w), rng.uniform(0, PAGE_SIDE - h)
    image = page.resize((width, height), Image.Resampling.LANCZOS, (left, top, left + w, top + h))
    if rng.random() < 0.09:
        image = image.convert("L")
    quality = int(rng.choice([80, 85, 90]))
    progressive = bool(rng.random() < 0.05)
    scale = 288 / min(width, height)
    size = (round(width * scale), round(height * scale))
    small = image.resize(size, Image.Resampling.BICUBIC)
    return (
        _sample(number, image, quality=quality, progressive=progressive),
        _sample(number, small, quality=95),
    )


def _sample(number: int, image: Image.Image, **options: Any) -> Sample:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return Sample(
        key=f"bench-{number:06d}",
        image=buffer.getvalue(),
        extension="jpg",
        width=image.width,
        height=image.height,
        caption="",
        article=f"bench-{number:06d}",
        licence="CC0",
        record={"mode": image.mode, "progressive": options.get("progressive", False)},
    )


@functools.lru_cache(maxsize=64)  # 17 MB each
def _page(number: int, seed: int) -> Image.Image:
    """A page of panels to cut images from: RGB, PAGE_SIDE square."""
    rng = np.random.default_rng((seed, 3, number))
    page = _texture(rng, PAGE_SIDE)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(28)
    panel = int(rng.integers(500, 1200))
    for top in range(0, PAGE_SIDE, panel):
        for left in range(0, PAGE_SIDE, panel):
            if rng.random() < 0.25:
                page.paste(_plot(rng, panel), (left, top))
            draw.rectangle((left, top, left + panel, top + panel), outline="white", width=12)
            draw.text((left + 16, top + 12), chr(65 + int(rng.integers(8))), "black", font=font)
    return page


def _texture(rng: np.random.Generator, side: int) -> Image.Image:
    """Noise with amplitude 1/f^1.6 and correlated channels: the statistics of photographs."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    noise = rng.standard_normal((3, side, side), dtype=np.float32)
    field = np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.6, (side, side))
    field /= field.std(axis=(1, 2), keepdims=True)
    colour = 0.8 * field[:1] + 0.35 * field
    pixels = np.clip(rng.uniform(90, 180) + 45 * colour, 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _plot(rng: np.random.Generator, side: int) -> Image.Image:
    """Curves, axes and numbers on white."""
    plot = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(plot)
    font = ImageFont.load_default(20)
    draw.line([(40, 20), (40, side - 40), (side - 20, side - 40)], "black", 3)
    for tick in range(40, side - 40, 60):
        draw.text((4, tick), str(int(rng.integers(100))), "black", font=font)
        draw.text((tick + 40, side - 36), str(int(rng.integers(100))), "black", font=font)
    for _ in range(int(rng.integers(2, 6))):
        heights = side / 2 + np.cumsum(rng.normal(0, side / 40, 60))
        places = np.linspace(44, side - 24, 60)
        colour = tuple(int(value) for value in rng.integers(0, 200, 3))
        draw.line(list(zip(places.tolist(), heights.tolist(), strict=True)), colour, 3)
    return plot


def _write(folder: Path, samples: list[Sample], texts: list[str], facts: dict[str, str]) -> None:
    """A shard folder of SHARDS tars of equal size, up to one sample."""
    entries, tables = [], []
    for shard in range(SHARDS):
        with ShardWriter(folder / f"train-{shard:05d}.tar", "train") as writer:
            for sample, text in zip(samples[shard::SHARDS], texts[shard::SHARDS], strict=True):
                writer.write(replace(sample, caption=text))
        entries.append(writer.entry())
        tables.append(index_table(writer.rows))
    write_table(folder / INDEX, INDEX_SCHEMA, tables)
    write_manifest(folder, entries, [], stage="benchmark", config=facts, inputs={})


def _facts(samples: list[Sample], texts: list[str], tokenizer: Path) -> dict[str, str]:
    """Sizes of images and captions, in words."""
    megapixels = np.array([sample.width * sample.height for sample in samples]) / 1e6
    longest = np.array([max(sample.width, sample.height) for sample in samples])
    grey = np.array([sample.record["mode"] == "L" for sample in samples])
    progressive = np.array([sample.record["progressive"] for sample in samples])
    tokens = CaptionTokenizer(tokenizer, CONTEXT)(texts).cu_seqlens.diff().float()
    symbols = np.array([not text.isascii() for text in texts])
    return {
        "images": f"{len(samples)} in {SHARDS} tars, mean "
        f"{np.mean([len(sample.image) for sample in samples]) / 1e3:.0f} kB and "
        f"{megapixels.mean():.2f} MP, {np.mean(longest >= 1500):.0%} at 1,500 pixels or more, "
        f"{grey.mean():.0%} grey, {progressive.mean():.0%} progressive",
        "captions": f"mean {tokens.mean():.0f} tokens, median {tokens.median():.0f}, "
        f"{symbols.mean():.0%} with characters outside ASCII",
    }
