"""From shard folders to better ones: filters, leakage, duplicates, selection, frozen test split.

All decisions are taken first, over all samples of all sources at once (decisions.py). Then each
source is written anew without the samples that were dropped; images and captions keep their bytes.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from data_prep.build import OutputConfig, Plan, Unit, build, make_units
from data_prep.decisions import TAGS, Aims, Decisions, decide, group_of
from data_prep.filters import CaptionRules, PictureRules
from data_prep.findings import MIXTURE, print_findings, write_findings, write_mixture
from data_prep.inspection import (
    COPIED,
    Looks,
    Rules,
    Source,
    decode,
    inspect,
    look,
    read_member,
    read_record,
    shard_rows,
)
from data_prep.leakage import read_evaluation_set
from data_prep.runners import core_count
from data_prep.shards import (
    INDEX,
    MANIFEST,
    REJECTS,
    SPLITS,
    Reject,
    Sample,
    read_manifest,
    unique_keys,
)
from vlp.config import UserError
from vlp.duplicates import MAX_BITS, Indices
from vlp.hashing import perceptual_hash

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")  # what a key in our tars is made of


@dataclass(frozen=True, kw_only=True)
class CurateConfig(OutputConfig):
    """Shard folders without bad captions, duplicates and images of evaluation sets.

    Example: python -m data_prep curate source=shards/pmc out=shards/pmc-clean leakage=data/vqa_rad
    """

    source: str
    """Shard folder, or several separated by commas. Of several, each gets a folder of its name in
    `out`, and `out`/mixture.yaml has them as data.sources for train.py."""
    min_caption: int = 5
    """Captions with fewer characters are dropped."""
    max_caption: int = 10_000
    """Captions with more characters are dropped."""
    min_words: int = 3
    """Captions with fewer words are dropped; labels (`Figure 1`) and standing phrases (`see text`,
    `graphical abstract`) don't count. 0 for languages that put no spaces between words."""
    languages: list[str] = field(default_factory=lambda: ["en"])
    """Languages to keep, as ISO 639-1 codes; captions that surely are in another are dropped, short
    ones never. Empty keeps all."""
    same_caption: int = 8
    """Samples that may share a caption; 0 sets no bound. The several pictures of a figure do."""
    min_side: int = 32
    """Images with a shorter side below this many pixels are dropped."""
    max_aspect: float = 8.0
    """Images whose longer side is more than this many times the shorter are dropped."""
    blank: bool = False
    """Whether images without any structure may stay."""
    max_pixels: int = 100_000_000
    """Images that declare more pixels than this are not decoded."""
    duplicate_bits: int = 3
    """Images are compared where their perceptual hashes differ in at most this many bits, and the
    copies dropped; -1 keeps duplicates."""
    leakage: str = ""
    """Evaluation sets, separated by commas: shard folders, folders of images, files of hashes.
    Images near to theirs are dropped from the training split, and reported in all."""
    leakage_bits: int = 4
    """Differing bits of the hashes up to which an image counts as one of an evaluation set."""
    frozen_test: str = ""
    """A shard folder whose test split, or a file whose articles (one name a line), are the test
    split of the result. Articles that `source` has in test besides go to training."""
    budget: int = 0
    """Training samples to keep, chosen so that their tags are spread evenly; 0 keeps all."""
    budget_tags: list[str] = field(default_factory=lambda: ["kind", "journal", "year", "licence"])
    """What the choice is spread over: kind, journal, year, licence, keyword."""
    amplified: bool = False
    """With several sources, show the small ones more often: weight = round(bytes of the largest /
    bytes of this one), in the manifests and in mixture.yaml."""
    samples_per_shard: int = 1000
    """Shards of the source are put together up to about this many samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [tag for tag in self.budget_tags if tag not in TAGS]
        if unknown or (self.budget and not self.budget_tags):
            raise ValueError(f"budget_tags={self.budget_tags}: choose from {', '.join(TAGS)}")
        for name, least in (("duplicate_bits", -1), ("leakage_bits", 0)):
            if not least <= getattr(self, name) <= MAX_BITS:
                raise ValueError(f"{name}={getattr(self, name)}: set {least} to {MAX_BITS}")
        for name in ("budget", "same_caption", "min_words"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: set 0 or more")
        if self.samples_per_shard < 1 or self.max_aspect < 1:
            raise ValueError("samples_per_shard and max_aspect: set both to 1 or more")

    def rules(self) -> Rules:
        """What inspection.py needs to know."""
        caption = CaptionRules(
            min_characters=self.min_caption,
            max_characters=self.max_caption,
            min_words=self.min_words,
            languages=tuple(self.languages),
        )
        picture = PictureRules(min_side=self.min_side, max_aspect=self.max_aspect, blank=self.blank)
        return Rules(caption=caption, picture=picture, max_pixels=self.max_pixels)

    def aims(self) -> Aims:
        """What decisions.py needs to know."""
        return Aims(
            duplicate_bits=self.duplicate_bits,
            leakage_bits=self.leakage_bits,
            same_caption=self.same_caption,
            budget=self.budget,
            budget_tags=tuple(self.budget_tags),
        )


@dataclass(frozen=True)
class Part:
    """Samples of one shard of a source that go into one shard of the result."""

    folder: str
    shard: str
    sha256: str
    rows: tuple[int, ...]
    renamed: tuple[tuple[int, str], ...]
    """Rows whose key another source has too, and their new keys."""


@dataclass(frozen=True)
class Parts:
    """What goes into one shard of the result."""

    parts: tuple[Part, ...]


def run(config: CurateConfig) -> None:
    """The stage `curate`."""
    console, workers = Console(), config.workers or core_count()
    sources = _read_sources(config, workers, console)
    facts = pa.concat_tables([source.facts for source in sources])
    evaluation_sets = [
        read_evaluation_set(Path(path), config.max_pixels, workers)
        for path in _listed(config.leakage)
    ]
    frozen = read_frozen(config.frozen_test) if config.frozen_test else None

    def closer_look(samples: Indices) -> Looks:
        console.print(f"comparing {len(samples):,} images whose hashes are near another's")
        return look(sources, samples, config.max_pixels, workers)

    made = decide(facts, config.aims(), frozen, evaluation_sets, closer_look)
    keys = _new_keys(sources, facts, made)
    weights = _weights(config, sources, made)
    for source in sources:
        out = Path(config.out) / source.name if len(sources) > 1 else Path(config.out)
        plan = _plan(config, source, made, keys, weights)
        write_findings(out, sources, source, facts, made)
        build(replace(config, out=str(out)), plan, produce)
    if len(sources) > 1:
        write_mixture(Path(config.out), weights)
        console.print(f"mixture for train.py: {Path(config.out) / MIXTURE}", soft_wrap=True)
    print_findings(made, frozen, facts)


def produce(config: CurateConfig, unit: Unit) -> Iterator[Sample | Reject]:
    """The samples of one shard of the result."""
    for item in unit.items:
        for part in item.parts:
            yield from _copy(config, part)


def _copy(config: CurateConfig, part: Part) -> Iterator[Sample]:
    folder, renamed = Path(part.folder), dict(part.renamed)
    rows = shard_rows(folder, part.shard)
    with (folder / part.shard).open("rb") as file:
        for place in part.rows:
            row = rows[place]
            record, caption = read_record(file, row)
            image = read_member(file, row, "image")
            phash = row["phash"]
            if phash is None:
                phash = perceptual_hash(decode(image, config.max_pixels))
            yield Sample(
                key=renamed.get(place, row["key"]),
                image=image,
                extension=COPIED[row["image_ext"]],
                width=row["width"],
                height=row["height"],
                caption=caption,
                article=row["article"],
                licence=row["licence"],
                record=record,
                phash=phash,
            )


def read_frozen(path: str) -> frozenset[str]:
    """The groups of articles in a frozen test split.

    Raises:
        UserError: no such file or folder, or it names no article.
    """
    if Path(path).is_dir():
        read_manifest(Path(path))
        table = pq.read_table(Path(path) / INDEX, columns=["article", "split"])
        names = table.filter(pc.equal(table["split"], "test"))["article"].to_pylist()
    elif Path(path).is_file():
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if not line.lstrip().startswith("#")]
    else:
        raise UserError(f"frozen_test={path}: no such file or folder")
    groups = frozenset(group_of(name) for name in names if name)
    if not groups:
        raise UserError(f"frozen_test={path}: names no article")
    return groups


def _listed(paths: str) -> list[str]:
    return [path.strip() for path in paths.split(",") if path.strip()]


def _read_sources(config: CurateConfig, workers: int, console: Console) -> list[Source]:
    paths = [Path(path) for path in _listed(config.source)]
    names = [path.resolve().name for path in paths]
    if not paths or len(set(names)) < len(names):
        raise UserError(f"source={config.source}: name shard folders, each with a name of its own")
    sources: list[Source] = []
    start = 0
    for name, path in zip(names, paths, strict=True):
        if Path(config.out).resolve() in (path.resolve(), *path.resolve().parents):
            raise UserError(f"out={config.out}: holds the source {path}; choose another folder")
        manifest = read_manifest(path)
        with console.status(f"reading {manifest['samples']:,} samples of {path}"):
            facts = inspect(path, config.rules(), workers)
        sources.append(Source(name, path, manifest, facts, start))
        start += len(facts)
    return sources


def _new_keys(sources: list[Source], facts: pa.Table, made: Decisions) -> dict[int, str]:
    """New keys for samples whose key is not fit for our tars, or which several sources have."""
    kept = np.flatnonzero(made.kept)
    keys = facts["key"].take(pa.array(kept)).to_pylist()
    times = Counter(keys)
    starts = [source.start for source in sources]
    odd = [
        n
        for n, key in zip(kept.tolist(), keys, strict=True)
        if times[key] > 1 or not _KEY.fullmatch(key)
    ]
    names = [
        (sources[int(np.searchsorted(starts, n, side="right")) - 1].name, facts["key"][n].as_py())
        for n in odd
    ]
    return dict(zip(odd, unique_keys(names), strict=True))


def _weights(config: CurateConfig, sources: list[Source], made: Decisions) -> dict[str, float]:
    """How often the trainer is to pass over each source in an epoch of the mixture."""
    if not config.amplified:
        return dict.fromkeys((source.name for source in sources), 1.0)
    sizes = {}
    for source in sources:
        trained = made.kept[source.samples] & (made.split[source.samples] == "train")
        sizes[source.name] = int(source.facts["bytes"].to_numpy()[trained].sum())
    largest = max(sizes.values())
    return {name: float(round(largest / size)) if size else 0.0 for name, size in sizes.items()}


def _plan(
    config: CurateConfig,
    source: Source,
    made: Decisions,
    keys: dict[int, str],
    weights: dict[str, float],
) -> Plan:
    splits = {split: _shards(config, source, made, keys, split) for split in SPLITS}
    problems = made.reason[source.samples]
    identity = (source.folder / MANIFEST).read_bytes()
    manifest: dict[str, Any] = {}
    if made.entropies:
        manifest["selection"] = made.entropies
    if config.amplified:
        manifest["weights"] = weights
    return Plan(
        stage="curate",
        units=make_units(config, "curate", splits, 1),
        inputs={
            "source": str(source.folder),
            "manifest_sha256": hashlib.sha256(identity).hexdigest(),
            "stage": source.manifest["stage"],
            "samples": len(source.facts),
            "dropped": int((problems != "").sum()),
        },
        rejects=_rejects(source, problems),
        manifest=manifest,
        noun="shards",
    )


def _shards(
    config: CurateConfig, source: Source, made: Decisions, keys: dict[int, str], split: str
) -> list[Parts]:
    """What goes into each shard of a split: parts of the source's shards, in their order."""
    inside = made.kept[source.samples] & (made.split[source.samples] == split)
    places = np.flatnonzero(inside)
    shard_of = source.facts["shard"].to_numpy()[places]
    row_of = source.facts["row"].to_numpy()[places]
    shards: list[Parts] = []
    waiting: list[Part] = []
    size = 0
    for shard in np.unique(shard_of).tolist():
        entry = source.manifest["shards"][shard]
        here = shard_of == shard
        rows, numbers = row_of[here].tolist(), (places[here] + source.start).tolist()
        pairs = zip(rows, numbers, strict=True)
        renamed = tuple((row, keys[number]) for row, number in pairs if number in keys)
        part = Part(str(source.folder), entry["name"], entry["sha256"], tuple(rows), renamed)
        if waiting and size + len(rows) > config.samples_per_shard:
            shards.append(Parts(tuple(waiting)))
            waiting, size = [], 0
        waiting.append(part)
        size += len(rows)
    return [*shards, Parts(tuple(waiting))] if waiting else shards


def _rejects(source: Source, problems: Any) -> Iterator[Reject]:
    """Those of the source, then those of this stage."""
    for batch in pq.ParquetFile(source.folder / REJECTS).iter_batches():
        for row in batch.to_pylist():
            yield Reject(**row)
    dropped = np.flatnonzero(problems != "")
    rows = source.facts.select(["article", "figure", "image", "key"]).take(pa.array(dropped))
    for row, reason in zip(rows.to_pylist(), problems[dropped], strict=True):
        yield Reject(row["article"], row["figure"] or row["key"], row["image"], "curate", reason)
