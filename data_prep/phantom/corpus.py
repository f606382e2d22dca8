"""The phantom corpus: articles with drawn figures, and the truth about them in separate files."""

import hashlib
import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import MISSING
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from data_prep.phantom import articles, captions, questions, subjects
from data_prep.phantom.articles import Article, FigureEntry
from vlp.config import UserError

VERSION = 1
"""Raise it when pictures or words change, so that no corpus mixes two versions."""
FIGURES_PER_ARTICLE = (0.16, 0.22, 0.22, 0.18, 0.12, 0.10)
"""Probabilities of 1, 2 ... 6 figures."""
FORMATS = {"jpg": 0.62, "png": 0.30, "webp": 0.08}
ID_STYLES = ("F{}", "fig{}", "figure-{}", "f{}-phantom")
LABELS = ("Figure {}", "Fig. {}", "Figure {}.", "FIGURE {}")


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """Draw a corpus of articles with figures: radiographs, CT, MRI, micrographs, plots."""

    out: str = MISSING
    """Folder to write: articles/, truth.parquet, vqa.jsonl."""
    figures: int = 3000
    """Number of figures, in articles of one to six."""
    seed: int = 0
    """Seed of everything; the same seed and sizes give the same bytes."""
    image_size: int = 640
    """Longest side of the largest figures in pixels; the smallest have half of it."""
    workers: int = 0
    """Processes; 0 takes one for each CPU core. Changes no byte of the result."""

    def __post_init__(self) -> None:
        if self.figures < 1:
            raise ValueError(f"figures={self.figures}: set figures to at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: set seed to 0 or more")
        if not 160 <= self.image_size <= 2048:
            raise ValueError(f"image_size={self.image_size}: set it between 160 and 2048 pixels")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers}: set workers to 0 (all cores) or more")


def run(config: PhantomConfig) -> None:
    """Write the corpus; articles that a killed run has finished are kept.

    Raises:
        UserError: `out` holds something else, or a corpus of another configuration.
    """
    out = Path(config.out)
    _claim(out, config)
    plan = list(_plan(config))
    waiting = [(index, number) for index, number in plan if not _finished(out, config, index)]
    temporary = out / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    for folder in (temporary, out / "articles", out / "units"):
        folder.mkdir(exist_ok=True)
    columns = (
        TextColumn("drawing figures"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns) as progress:
        total = sum(number for _, number in plan)
        done = total - sum(number for _, number in waiting)
        task = progress.add_task("", total=total, completed=done)
        with _mapper(config.workers or os.cpu_count() or 1) as apply:
            for number in apply(partial(write_article, config), waiting):
                progress.advance(task, number)
    shutil.rmtree(temporary)
    _write_truth(out, [_name(config, index) for index, _ in plan])


@contextmanager
def _mapper(workers: int) -> Iterator[Any]:
    """`map` in this process or over a pool; results come in order."""
    if workers == 1:
        yield map
        return
    # Not forked: the progress bar has a thread, and a forked child could inherit its locks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield partial(pool.map, chunksize=4)


def _plan(config: PhantomConfig) -> Iterator[tuple[int, int]]:
    """(article, number of figures) until the figures suffice; a longer corpus begins the same."""
    left, index = config.figures, 0
    while left > 0:
        rng = np.random.default_rng((config.seed, index))
        number = 1 + int(rng.choice(len(FIGURES_PER_ARTICLE), p=FIGURES_PER_ARTICLE))
        yield index, min(number, left)
        left -= number
        index += 1


def _name(config: PhantomConfig, index: int) -> str:
    """An identifier far above the real ones; the seed keeps corpora apart."""
    return f"PMC99{config.seed % 1000:03d}{index + 1:05d}.1"


def _claim(out: Path, config: PhantomConfig) -> None:
    """Note the configuration in a new folder; refuse a folder that was made with another one."""
    kept = {k: v for k, v in asdict(config).items() if k not in ("out", "workers")}
    wanted = {"version": VERSION, **kept}
    note = out / "corpus.json"
    if note.exists():
        found = json.loads(note.read_text(encoding="utf-8"))
        if found != wanted:
            differing = sorted(k for k in wanted if found.get(k) != wanted[k])
            raise UserError(
                f"{out}: holds a corpus with other {', '.join(differing)}; "
                "choose another out or delete the folder"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not empty and no phantom corpus; choose another out")
    out.mkdir(parents=True, exist_ok=True)
    _write(note, json.dumps(wanted, indent=1).encode())


def _finished(out: Path, config: PhantomConfig, index: int) -> bool:
    """The unit's truth is written after its article: both are there, or it is drawn again."""
    name = _name(config, index)
    if (out / "units" / f"{name}.json").exists() and (out / "articles" / name).is_dir():
        return True
    shutil.rmtree(out / "articles" / name, ignore_errors=True)
    return False


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_article(config: PhantomConfig, unit: tuple[int, int]) -> int:
    """Draw and write one article; returns its number of figures."""
    index, number = unit
    out, name = Path(config.out), _name(config, index)
    rng = np.random.default_rng((config.seed, index, 0))
    topic = captions.pick(rng, tuple(articles.TOPICS))
    article = articles.draft(rng, name, topic)
    folder = out / "tmp" / name
    folder.mkdir()
    ident, label = captions.pick(rng, ID_STYLES), captions.pick(rng, LABELS)
    rows, asked, media = [], [], {}
    for position in range(1, number + 1):
        # A generator per figure: figures do not depend on how many there are or who draws them.
        own = np.random.default_rng((config.seed, index, position))
        figure = _draw(own, articles.TOPICS[topic][0], config.image_size)
        entry = _describe(own, figure, article, position, ident, label)
        media.update(_save(own, figure, entry, folder))
        article.figures.append(entry)
        image = f"{name}/{entry.file}"
        rows.append(_truth(figure, image, name, entry.ident))
        for question in questions.ask(figure.facts, own):
            asked.append({"image": image, **asdict(question)})
    (folder / f"{name}.xml").write_bytes(articles.jats(article, rng))
    (folder / f"{name}.json").write_bytes(articles.metadata(article, media))
    os.replace(folder, out / "articles" / name)
    unit_file = out / "units" / f"{name}.json"
    _write(unit_file, json.dumps({"truth": rows, "vqa": asked}).encode())
    return number


def _draw(rng: np.random.Generator, favourites: tuple[str, ...], longest: int) -> subjects.Figure:
    if rng.random() < subjects.COMPOUND_SHARE:
        return subjects.compound(rng, favourites, longest)
    return subjects.single(rng, subjects.choose(rng, favourites), longest)


def _describe(
    rng: np.random.Generator,
    figure: subjects.Figure,
    article: Article,
    position: int,
    ident: str,
    label: str,
) -> FigureEntry:
    title, text = captions.caption(figure, rng)
    extension = str(rng.choice(list(FORMATS), p=list(FORMATS.values())))
    stem = f"phantom-{article.pmcid[3:]}-g{position:03d}"
    return FigureEntry(
        ident=ident.format(position),
        label=label.format(position),
        title=title,
        text=text,
        file=f"{stem}.{extension}",
        thumbnail=f"{stem}-thumb.gif" if rng.random() < 0.15 else "",
        kind=figure.facts.kind,
    )


def _save(
    rng: np.random.Generator, figure: subjects.Figure, entry: FigureEntry, folder: Path
) -> dict[str, str]:
    """Write the image (and its thumbnail); returns the MD5 of each file by name."""
    image = figure.drawing.image
    if not figure.colour and rng.random() < 0.4:
        image = image.convert("RGB")  # many journals store grey pictures as colour
    options: dict[str, Any] = {
        "jpg": {"format": "JPEG", "quality": int(rng.integers(78, 96))},
        "png": {"format": "PNG", "compress_level": 1},
        "webp": {"format": "WEBP", "quality": int(rng.integers(75, 96)), "method": 0},
    }[entry.file.rpartition(".")[2]]
    hashes = {entry.file: _store(image, folder / entry.file, options)}
    if entry.thumbnail:
        small = image.copy()
        small.thumbnail((100, 100), Image.Resampling.BOX)
        path = folder / entry.thumbnail
        hashes[entry.thumbnail] = _store(small.convert("L"), path, {"format": "GIF"})
    return hashes


def _store(image: Image.Image, path: Path, options: dict[str, Any]) -> str:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    path.write_bytes(buffer.getvalue())
    return hashlib.md5(buffer.getvalue(), usedforsecurity=False).hexdigest()


SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("image", "article", "figure", "kind", "modality")),
        *((name, pa.string()) for name in ("organ", "finding", "side")),
        ("count", pa.int32()),
        *((name, pa.string()) for name in ("stain", "sequence", "detail", "boxes", "panels")),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
"""Columns of truth.parquet; `detail`, `boxes` (pixels) and `panels` hold JSON."""


def _truth(figure: subjects.Figure, image: str, article: str, ident: str) -> dict[str, Any]:
    facts = figure.facts
    panels = [
        {"letter": letter, **asdict(panel), "box": [round(v, 1) for v in box]}
        for letter, panel, box in figure.panels
    ]
    boxes = [
        {"label": label, "box": [round(float(v), 1) for v in box]}
        for label, box in figure.drawing.boxes
    ]
    return {
        "image": image,
        "article": article,
        "figure": ident,
        "kind": facts.kind,
        "modality": facts.modality,
        "organ": facts.organ,
        "finding": facts.finding,
        "side": facts.side,
        "count": facts.count,
        "stain": facts.detail.get("stain", ""),
        "sequence": facts.detail.get("sequence", ""),
        "detail": json.dumps(facts.detail),
        "boxes": json.dumps(boxes),
        "panels": json.dumps(panels),
        "width": figure.drawing.image.width,
        "height": figure.drawing.image.height,
    }


def _write_truth(out: Path, names: list[str]) -> None:
    """Gather the units' truth into truth.parquet and vqa.jsonl."""
    units = [json.loads((out / "units" / f"{name}.json").read_bytes()) for name in names]
    rows = [row for unit in units for row in unit["truth"]]
    temporary = out / "truth.parquet.tmp"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)
    os.replace(temporary, out / "truth.parquet")
    lines = [json.dumps(question) + "\n" for unit in units for question in unit["vqa"]]
    _write(out / "vqa.jsonl", "".join(lines).encode())
