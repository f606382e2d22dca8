"""data_prep: parsing beside pubmed_parser, the pipeline, near-duplicates, and all of PMC.

    python -m benchmarks.prep                                # generated articles: about 20 minutes
    python -m benchmarks.prep xml=FOLDER                     # real articles as well
    python -m benchmarks.prep peer= join=0 https=false       # without the peer, join, downloads

Claims: one core reads 600 articles a second of 90 KB each (metadata, captions, and the paragraphs
that cite the figures); two processes make shards at least 1.8 times as fast as one; a join of all
hashes for near-duplicates takes minutes. From what it measures it works out what 6 million articles
take, and which part of it is the bottleneck.

Articles and images are generated (prep_corpus.py); rates on real articles, of whatever sizes, are
given per article and as if they had 90 KB. The peer, pubmed_parser 0.5.1, runs in an environment of
its own on the same core and the same files, turn by turn: its parse_pubmed_caption (captions only,
which is less than ours does), and all three of its functions (metadata, paragraphs, captions).
A row gives what lxml takes to make the trees alone. Parsing is timed by the CPU's clock,
the pipeline by the wall's. Ratios are medians of the repetitions' own ratios: above 1 ours is
faster, and two processes are faster than one.
"""

import contextlib
import functools
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import https
from benchmarks.loader import one_core
from benchmarks.measure import Result, Row, interleaved, machine, median_row, paired_ratio, report
from benchmarks.peer import Peer, make_environment
from benchmarks.prep_corpus import FIGURES, make_mirror
from benchmarks.prep_projection import Measured, projection
from data_prep.jats import parse_article
from vlp.config import UserError, load_config, run_program

PINS = (
    "pubmed_parser==0.5.1",
    "unidecode==1.4.0",
    "six==1.17.0",
    "requests==2.34.2",
    "urllib3==2.8.0",
    "certifi==2026.10.18",
    "charset-normalizer==3.5.2",
    "idna==3.20",
)
WORKER = Path(__file__).with_name("pubmed_worker.py")
OURS = Path(__file__).with_name("jats_worker.py")
CAPTIONS = ("parse_pubmed_caption",)
EVERYTHING = ("parse_pubmed_xml", "parse_pubmed_paragraph", "parse_pubmed_caption")
PARSED = 400  # generated articles that are parsed; the pipeline takes all
SIZE = 90_000  # bytes of the article that rates are given for


@dataclass(frozen=True, kw_only=True)
class PrepConfig:
    """Measure data_prep on this machine."""

    articles: int = 800
    """Generated articles; drawing the images of the first run takes two minutes. Of few the start
    of the processes would be a large part of the pipeline's time."""
    seed: int = 0
    """Seed of the articles and images."""
    xml: str = ""
    """Folder with real JATS files (.xml, .nxml), for rates and correctness; empty: none."""
    repetitions: int = 5
    """Rounds of each contender of the parsing."""
    pipelines: int = 3
    """Rounds of the pipeline, five minutes each."""
    join: int = 10_000_000
    """Hashes in the near-duplicate join; 0 leaves it out."""
    bits: int = 3
    """Hashes that differ in at most this many bits are near-duplicates."""
    https: bool = True
    """Measure downloads from a server on this machine, too."""
    cores: int = 32
    """Cores of the machine that the projection names the bottleneck for."""
    core: int = -1
    """The core that parsing runs on; -1 takes the last one that is allowed."""
    work: str = "build/bench"
    """Folder for the generated articles."""
    peer: str = ".venv-pubmed"
    """Folder of the peer's environment, made where it is missing; empty leaves the peer out."""
    out: str = ""
    """JSON file for the result; empty writes none."""

    def __post_init__(self) -> None:
        if min(self.articles, self.repetitions, self.pipelines, self.cores) < 1:
            raise ValueError("articles, repetitions, pipelines and cores must be 1 or more")
        if self.join < 0:
            raise ValueError(f"join={self.join}: must be 0 (none) or more")


def parse_rows(
    name: str, files: Sequence[Path], repetitions: int, ours: Peer, peer: Peer | None
) -> list[Row]:
    """Articles a second of all readers on the same files, each turned to articles of 90 KB."""
    plans: dict[str, tuple[Peer, Sequence[str]]] = {
        "ours, all": (ours, ("article",)),
        "lxml, the tree alone": (ours, ("tree",)),
    }
    if peer:
        plans["pubmed_parser, captions only"] = (peer, CAPTIONS)
        plans["pubmed_parser, metadata, paragraphs, captions"] = (peer, EVERYTHING)
    names = [str(file.resolve()) for file in files]
    contenders = {
        contender: functools.partial(_seconds, worker, names, calls)
        for contender, (worker, calls) in plans.items()
    }
    contenders["ours, all"]()  # fills the page cache
    seconds = interleaved(contenders, repetitions)
    size = sum(file.stat().st_size for file in files)
    rows = []
    for contender, found in seconds.items():
        ratio = paired_ratio(found, seconds["ours, all"])
        rates = [len(files) / second for second in found]
        rows.append(median_row(f"{name}: {contender}", "articles/s", rates, ratio))
        if contender == "ours, all":
            like = [size / second / SIZE for second in found]
            rows.append(median_row(f"{name}: {contender}, as of 90 KB", "articles/s", like))
    return rows


def _seconds(worker: Peer, files: list[str], calls: Sequence[str]) -> float:
    """CPU seconds of a worker."""
    return float(worker.ask({"files": files, "calls": calls})["seconds"])


def correctness(files: Sequence[Path], peer: Peer | None) -> list[Row]:
    """Share of figures with the right image and the full caption, by the tests' slow oracle.

    Captions are compared by letters and digits, so that the ways to write exponents and the marks
    for formulas that no reader can read count for nobody.
    """
    from tests.data_prep.jats_oracle import read_figures

    ours: list[list[tuple[str, str, str]]] = []
    expected: list[list[tuple[str, str, str]]] = []
    for file in files:
        data = file.read_bytes()
        figures = parse_article(data).figures
        ours.append([(f.id, f.caption, f.graphics[0][0] if f.graphics else "") for f in figures])
        oracle = read_figures(data)
        expected.append([(f.id, f.caption, f.graphics[0] if f.graphics else "") for f in oracle])
    rows = _shares("ours", ours, expected)
    if peer:
        request = {"files": [str(f) for f in files], "calls": CAPTIONS, "figures": True}
        answer = peer.ask(request)
        theirs = [
            []
            if isinstance(figures, str)
            else [(f[0] or "", f[1] or "", f[2] or "") for f in figures]
            for figures in answer["figures"]
        ]
        rows += _shares("pubmed_parser", theirs, expected)
        rows.append(Row("pubmed_parser: articles lost to an error", "", answer["failed"]))
    return rows


def _shares(
    name: str,
    found: list[list[tuple[str, str, str]]],
    expected: list[list[tuple[str, str, str]]],
) -> list[Row]:
    total = sum(len(figures) for figures in expected)
    image = caption = both = 0
    for ours, truth in zip(found, expected, strict=True):
        # By place: ids may be missing or occur twice. A list of another length is wrong from there.
        for figure, right in zip(ours, truth, strict=False):
            same_image = figure[0] == right[0] and figure[2] == right[2]
            same_caption = figure[0] == right[0] and _letters(figure[1]) == _letters(right[1])
            image, caption = image + same_image, caption + same_caption
            both += same_image and same_caption
    what = f"{name}: of {total} figures"
    return [
        Row(f"{what}, right image", "", image / total),
        Row(f"{what}, full caption", "", caption / total),
        Row(f"{what}, both", "", both / total),
    ]


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", re.sub(r"\[(formula|image)\]", "", text))


def pipeline_rows(mirror: Path, articles: int, work: Path, repetitions: int) -> list[Row]:
    """`python -m data_prep pmc` from start to end, with one and with two processes.

    Two runs side by side, which share nothing, show how much of a second process the machine gives:
    the cores of a virtual machine may be threads of one.
    """
    plans = {"1 process": (1, 1), "2 processes": (1, 2), "2 runs of 1 process": (2, 1)}
    contenders = {
        name: functools.partial(_pipeline, mirror, work / "prep-shards", runs, workers)
        for name, (runs, workers) in plans.items()
    }
    seconds = interleaved(contenders, repetitions)
    rates = {
        name: [plans[name][0] * articles / second for second in found]
        for name, found in seconds.items()
    }
    rows = []
    for name, found in rates.items():
        ratio = paired_ratio(found, rates["1 process"])
        rows.append(median_row(f"pipeline, {name}", "articles/s", found, ratio))
        rows.append(median_row(f"pipeline, {name}", "figures/s", [r * FIGURES for r in found]))
    share = [two / runs for two, runs in zip(*list(rates.values())[1:], strict=True)]
    rows.append(median_row("pipeline, 2 processes, share of what 2 runs reach", "", share))
    return rows


def _pipeline(mirror: Path, out: Path, runs: int, workers: int) -> float:
    """Seconds for whole runs side by side, the start of Python included."""
    folders = [out.with_name(f"{out.name}-{run}") for run in range(runs)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "data_prep", "pmc", f"source={mirror}"]
    command += [f"workers={workers}", "articles_per_shard=25"]
    start = time.perf_counter()
    running = [
        subprocess.Popen(
            [*command, f"out={folder}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for folder in folders
    ]
    said = [process.communicate()[0] for process in running]
    seconds = time.perf_counter() - start
    for process, text in zip(running, said, strict=True):
        if process.returncode:
            raise UserError(f"data_prep failed: {text.strip()}")
    for folder in folders:
        shutil.rmtree(folder)
    return seconds


JOIN = """
import sys, time
import numpy as np
from vlp.duplicates import near_pairs
count, bits, seed = map(int, sys.argv[1:])
rng = np.random.default_rng(seed)
hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
copies = count // 20  # one in twenty is a near-copy of another, with one bit turned over
turned = np.uint64(1) << rng.integers(0, 64, copies, dtype=np.uint64)
hashes[count - copies:] = hashes[:copies] ^ turned
start = time.perf_counter()
pairs = near_pairs(hashes, bits)
seconds = time.perf_counter() - start
planted = set(zip(range(copies), range(count - copies, count)))
assert planted <= set(map(tuple, pairs.tolist())), "near-copies were missed"
print(seconds)
"""


def join_rows(count: int, bits: int, seed: int) -> tuple[list[Row], float]:
    """The near-duplicate join in a process of its own, for its memory; and hashes a second."""
    arguments = [sys.executable, "-c", JOIN, str(count), str(bits), str(seed)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the join failed: {done.stderr.strip()}")
    seconds = float(done.stdout)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    what = f"near-duplicates within {bits} bits among {count:,} hashes"
    rows = [
        Row(what, "s", seconds),
        Row(what, "figures/s", count / seconds),
        Row(f"{what}: peak memory of any child process", "GB", peak / 1e9),
    ]
    return rows, count / seconds


def https_rows() -> tuple[list[Row], float]:
    """What benchmarks.https measures; and requests a second for files of a figure's size."""
    rows = list(https.measure(https.HttpsConfig(repetitions=3)).rows)
    size = https.HttpsConfig.bytes
    return rows, next(
        row.value
        for row in rows
        if row.unit == "GETs/s" and row.what.startswith(f"HTTPS, {size / 1e3:.0f} KB")
    )


def measure(config: PrepConfig) -> Result:
    """Make the articles, then measure."""
    mirror = make_mirror(config.work, config.articles, config.seed)
    files = sorted(mirror.rglob("*.xml"))
    images = [file.stat().st_size for file in mirror.rglob("*.jpg")]
    sizes = [file.stat().st_size for file in files]
    facts = machine()
    facts["articles"] = (
        f"{len(files)}, mean {sum(sizes) / len(sizes) / 1e3:.0f} KB of XML, {FIGURES} figures each "
        f"of {sum(images) / len(images) / 1e3:.0f} KB"
    )
    allowed = os.sched_getaffinity(0)
    pipeline = pipeline_rows(mirror, config.articles, Path(config.work), config.pipelines)
    join, join_rate = join_rows(config.join, config.bits, config.seed) if config.join else ([], 0.0)
    requests, gets = https_rows() if config.https else ([], 0.0)
    facts["parsing"] = f"core {one_core(config.core)} of {sorted(allowed)}"
    rows: list[Row] = []
    with contextlib.ExitStack() as workers:
        ours = workers.enter_context(Peer(Path(sys.executable), OURS))
        peer = None
        if config.peer:
            python = make_environment(Path(config.peer), PINS)
            peer = workers.enter_context(Peer(python, WORKER))
            facts["peer"] = ", ".join(f"{name} {v}" for name, v in peer.versions.items())
        rows += parse_rows("generated", files[:PARSED], config.repetitions, ours, peer)
        if config.xml:
            real = _real_files(Path(config.xml))
            facts["real articles"] = (
                f"{len(real)}, mean {sum(f.stat().st_size for f in real) / len(real) / 1e3:.0f} KB"
            )
            rows += parse_rows("real", real, config.repetitions, ours, peer)
            rows += correctness(real, peer)
    os.sched_setaffinity(0, allowed)
    measured = Measured(
        parse=rows[0].value,
        pipeline=pipeline[0].value,
        join=join_rate,
        gets=gets,
        bytes_per_article=(sum(sizes) + sum(images)) / len(files),
        figures=FIGURES,
    )
    projected, facts["bottleneck"] = projection(measured, config.cores)
    facts["repetitions"] = (
        f"{config.repetitions} for parsing, {config.pipelines} for the pipeline, interleaved"
    )
    return Result("prep", facts, (*rows, *pipeline, *join, *requests, *projected))


def _real_files(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.rglob("*") if f.suffix in (".xml", ".nxml"))
    if not files:
        raise UserError(f"xml={folder}: no .xml or .nxml files in this folder")
    return files


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    config = load_config(PrepConfig, argv, "python -m benchmarks.prep")
    report([measure(config)], config.out)


if __name__ == "__main__":
    run_program(main)
