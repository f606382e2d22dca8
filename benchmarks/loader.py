"""Samples per second and core of the loader, against open_clip's on the same tars.

    python -m benchmarks.loader                     # 2,000 images, five repetitions: 5 minutes
    python -m benchmarks.loader peer= out=FILE.json # without the peer

Claim: on images as articles have them, one core prepares several times as many samples as
open_clip 3.3.0's WebDataset pipeline (get_wds_dataset, its own code, in its own environment), and
the pixels stay near those that Pillow gives, decoding whole and resizing the same crop.

Both load whole epochs of the same tars, turn by turn, on one and the same core, with one thread and
no workers, the files in the page cache, and give random 224-pixel crops and token ids, which are
compared before. Ours leaves normalisation to the device, as training does; a row shows it done on
the CPU as well. Ours remembers the token ids of words; the corpus has 6,000 of them and numbers,
real captions have more, so another row has every caption encoded anew, as if no word ever came
twice. The table ends with where our time goes and with the pixels' PSNR. A ratio is the median of
the repetitions' own ratios; in stages it is the share of the time.
"""

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

import vlp.data.image
import vlp.data.storage
from benchmarks.corpus import CONTEXT, Corpus, make_corpus
from benchmarks.measure import Result, Row, interleaved, machine, median_row, paired_ratio, report
from benchmarks.peer import Peer, make_environment
from vlp.config import UserError, load_config, run_program
from vlp.data.image import Normalise, decode_crop, open_rgb, random_crop, reduction, snap
from vlp.data.index import open_shards
from vlp.data.loader import (
    Batch,
    DataConfig,
    Mixture,
    RankPositions,
    SourceConfig,
    TrainSamples,
    batches,
)
from vlp.data.order import generator
from vlp.data.text import CaptionTokenizer
from vlp.models.vision_tower import OPENAI_MEAN, OPENAI_STD

SIZE = 224
CROP_SCALE = (0.9, 1.0)  # open_clip's default, and ours


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """Measure the loader on one core, against open_clip's where its environment can be made."""

    samples: int = 2000
    """Images in the generated shards; drawing 2,000 takes a minute and happens once."""
    seed: int = 0
    """Seed of the images, the captions and the order."""
    batch: int = 250
    """Samples in a batch; it divides `samples`."""
    repetitions: int = 5
    """Epochs that each side loads."""
    quality_samples: int = 500
    """Images whose pixels are compared with Pillow's."""
    figures: str = ""
    """Folder of real JPEG files, whose pixels are compared in the same way; empty: none."""
    core: int = -1
    """The core that everything runs on; -1 takes the last one that is allowed."""
    work: str = "build/bench"
    """Folder for the generated shards."""
    peer: str = ".venv-peer"
    """Folder of open_clip's environment, made where it is missing; empty leaves the peer out."""
    out: str = ""
    """JSON file for the result; empty writes none."""

    def __post_init__(self) -> None:
        if min(self.samples, self.batch, self.repetitions, self.quality_samples) < 1:
            raise ValueError("samples, batch, repetitions and quality_samples must be 1 or more")
        if self.samples % self.batch:
            raise ValueError(f"batch={self.batch} does not divide samples={self.samples}")


class Ours:
    """Our loader over one shard folder, an epoch at a time."""

    def __init__(self, folder: Path, tokenizer: Path, config: LoaderConfig) -> None:
        self.config = config
        self.data = DataConfig(sources={"bench": SourceConfig(path=str(folder))}, workers=0)
        mixture = Mixture.open(self.data, config.seed)
        self.samples = TrainSamples(mixture, CaptionTokenizer(tokenizer, CONTEXT), SIZE, CROP_SCALE)
        self.normalise = Normalise(OPENAI_MEAN, OPENAI_STD)
        self.epoch = 0

    def batches(self) -> Iterator[Batch]:
        """The batches of the next epoch."""
        steps = self.config.samples // self.config.batch
        first, self.epoch = self.epoch * steps, self.epoch + 1
        yield from batches(
            self.samples,
            RankPositions(first, first + steps, self.config.batch, rank=0, ranks=1),
            self.data,
        )

    def time(self, normalise: bool = False) -> float:
        """Seconds for an epoch."""
        start = time.perf_counter()
        for batch in self.batches():
            if normalise:
                self.normalise(batch.images)
        return time.perf_counter() - start

    def time_without_memory(self) -> float:
        """Seconds for an epoch in which every caption is encoded anew."""
        with mock.patch.object(self.samples.tokenizer, "_words", None):
            return self.time()

    def captions(self) -> str:
        """Digest of an epoch's token ids, as open_clip_worker.py makes it."""
        rows = [
            row.tolist()
            for batch in self.batches()
            for row in batch.text.input_ids.split(batch.text.cu_seqlens.diff().tolist())
        ]
        return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()


def compare(corpus: Corpus, config: LoaderConfig, peer: Peer | None) -> list[Row]:
    """Throughput of both sides on both variants of the images.

    Raises:
        UserError: the two sides do not see the same captions.
    """
    rows = []
    for name, folder in (("original size", corpus.original), ("short side 288", corpus.short)):
        ours = Ours(folder, corpus.tokenizer, config)
        contenders: dict[str, Callable[[], float]] = {
            f"{name}: ours": ours.time,
            f"{name}: ours, every caption encoded anew": ours.time_without_memory,
            f"{name}: ours, normalised on the CPU": functools.partial(ours.time, normalise=True),
        }
        theirs = f"{name}: open_clip"
        digest = ours.captions()  # fills the page cache, too
        if peer:
            answer = _ask(peer, folder, corpus.tokenizer, config)
            if answer["captions"] != digest:
                raise UserError(f"{folder}: open_clip and this loader give different token ids")
            ask = functools.partial(_peer_time, peer, folder, corpus.tokenizer, config)
            contenders = {theirs: ask, **contenders}
        seconds = interleaved(contenders, config.repetitions)
        for contender, found in seconds.items():
            ratio = paired_ratio(seconds[theirs], found) if peer else None
            speeds = [config.samples / second for second in found]
            rows.append(median_row(contender, "samples/s", speeds, ratio))
    return rows


def _peer_time(peer: Peer, folder: Path, tokenizer: Path, config: LoaderConfig) -> float:
    """Seconds for an epoch of the peer's."""
    return float(_ask(peer, folder, tokenizer, config)["wall"])


def _ask(peer: Peer, folder: Path, tokenizer: Path, config: LoaderConfig) -> dict[str, Any]:
    last = len(list(folder.glob("train-*.tar"))) - 1
    request = {
        "shards": str(folder / f"train-{{00000..{last:05d}}}.tar"),
        "samples": config.samples,
        "batch": config.batch,
        "size": SIZE,
        "crop_scale": CROP_SCALE,
        "tokenizer": str(tokenizer),
        "context": CONTEXT,
        "seed": config.seed,
    }
    answer = peer.ask(request)
    if answer["samples"] != config.samples:
        raise UserError(f"open_clip loaded {answer['samples']} of {config.samples} samples")
    return answer


@contextmanager
def _stopwatch(owner: object, name: str, seconds: dict[str, float], stage: str) -> Iterator[None]:
    """While this is open, the time spent in `owner.name` is added to seconds[stage]."""
    original = getattr(owner, name)

    def timed(*args: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args, **keywords)
        finally:
            seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start

    with mock.patch.object(owner, name, timed):
        yield


def stages(corpus: Corpus, config: LoaderConfig) -> list[Row]:
    """Where our time goes on images of original size, in milliseconds per sample."""
    ours = Ours(corpus.original, corpus.tokenizer, config)
    runs: list[dict[str, float]] = []
    for _ in range(config.repetitions):
        seconds: dict[str, float] = {}
        aten = torch.ops.aten._upsample_bicubic2d_aa
        with (
            _stopwatch(vlp.data.storage.OpenFile, "read", seconds, "read"),
            _stopwatch(vlp.data.image.simplejpeg, "decode_jpeg", seconds, "decode"),
            _stopwatch(vlp.data.image, "cut", seconds, "crop and resize"),
            _stopwatch(aten, "out", seconds, "crop and resize"),
            _stopwatch(CaptionTokenizer, "__call__", seconds, "tokenise"),
        ):
            total = ours.time()
        seconds["all else"] = total - sum(seconds.values())
        runs.append(seconds)
    rows = []
    for stage in runs[0]:
        times = [1e3 * run[stage] / config.samples for run in runs]
        share = float(np.median([run[stage] / sum(run.values()) for run in runs]))
        rows.append(median_row(f"our time: {stage}", "ms/sample", times, share))
    return rows


def quality(corpus: Corpus, config: LoaderConfig) -> list[Row]:
    """PSNR of training pixels against Pillow's full decode and bicubic resize of the same crop."""
    shards = open_shards(corpus.original, "train")
    count = min(config.quality_samples, len(shards))
    chosen = np.linspace(0, len(shards) - 1, count).astype(int)
    rows = _psnr_rows("generated", [shards.read(int(i)).image for i in chosen], config.seed)
    if config.figures:
        files = sorted(Path(config.figures).rglob("*.jp*g"))[: config.quality_samples]
        if not files:
            raise UserError(f"figures={config.figures}: no JPEG files in this folder")
        rows += _psnr_rows("real", [file.read_bytes() for file in files], config.seed)
    return rows


def _psnr_rows(name: str, images: list[bytes], seed: int) -> list[Row]:
    found = np.array([psnr(image, seed, number) for number, image in enumerate(images)])
    named = {"mean": found.mean(), "5th percentile": np.percentile(found, 5), "least": found.min()}
    what = f"pixels of {len(images)} {name} figures against Pillow's"
    return [Row(f"{what}, {each}", "dB PSNR", float(value)) for each, value in named.items()]


def psnr(data: bytes, *key: int) -> float:
    """PSNR in dB of one random crop, drawn from `generator(*key)`, against Pillow's."""
    whole = open_rgb(data)
    box = random_crop(*whole.size, CROP_SCALE, generator(*key))
    left, top, width, height = snap(box, reduction(min(box[2:]), SIZE), *whole.size)
    corners = (left, top, left + width, top + height)
    exact = np.asarray(whole.resize((SIZE, SIZE), Image.Resampling.BICUBIC, corners), np.float64)
    fast = decode_crop(data, SIZE, CROP_SCALE, generator(*key)).permute(1, 2, 0).numpy()
    error = float(np.mean((fast - exact) ** 2))
    return 10 * float(np.log10(255**2 / max(error, 1e-10)))


def one_core(core: int) -> int:
    """Pin this process and its children to one core, with one thread; returns the core."""
    allowed = sorted(os.sched_getaffinity(0))
    if core >= 0 and core not in allowed:
        raise UserError(f"core={core}: this process may use {allowed}")
    chosen = core if core >= 0 else allowed[-1]
    os.sched_setaffinity(0, {chosen})
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    return chosen


def measure(config: LoaderConfig) -> Result:
    """Make the shards, then measure."""
    corpus = make_corpus(config.work, config.samples, config.seed)
    python = make_environment(Path(config.peer)) if config.peer else None
    facts = machine()
    chosen = one_core(config.core)
    facts["torch"] = f"{torch.__version__}, 1 thread on core {chosen}"
    facts |= corpus.facts
    with Peer(python) if python else nullcontext() as peer:
        if peer:
            facts["peer"] = ", ".join(f"{name} {v}" for name, v in peer.versions.items())
        rows = compare(corpus, config, peer)
    rows += stages(corpus, config) + quality(corpus, config)
    facts["repetitions"] = f"{config.repetitions}, interleaved, {config.samples} samples each"
    return Result("loader", facts, tuple(rows))


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    config = load_config(LoaderConfig, argv, "python -m benchmarks.loader")
    report([measure(config)], config.out)


if __name__ == "__main__":
    run_program(main)
