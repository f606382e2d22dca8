"""card.html and card.json: what is in a shard folder, for people and for programs."""

import base64
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from data_prep.croissant import croissant
from data_prep.drawings import bars, columns
from data_prep.findings import DUPLICATES, LEAKS
from data_prep.images import ImageRejected
from data_prep.inspection import decode, read_member, read_record
from data_prep.shards import (
    INDEX,
    MANIFEST,
    REJECTS,
    SPLITS,
    atomic,
    read_manifest,
    write_json,
)
from vlp.config import UserError
from vlp.duplicates import Neighbourhood
from vlp.hashing import FLAT

CARD, CROISSANT = "card.html", "card.json"
_THUMBNAIL = 240  # pixels of the longer side
_NEAR_BITS = 3
_ASPECTS = np.array([0, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 3, 99])

NLM_CITATION = (
    "NIH NLM NCBI PubMed Central (PMC) Article Datasets - Full-Text Biomedical and Life Sciences "
    "Journal Articles on AWS, accessed from https://registry.opendata.aws/ncbi-pmc."
)


@dataclass(frozen=True, kw_only=True)
class CardConfig:
    """A page about a shard folder (card.html), and its Croissant metadata (card.json).

    Example: python -m data_prep card out=shards/pmc
    """

    out: str
    """Shard folder that gets the card."""
    name: str = ""
    """What the set is called; empty takes the folder's name."""
    url: str = ""
    """Where the set is published; for card.json."""
    creator: str = ""
    """Who made the set; for card.json."""
    samples: int = 48
    """Random samples on the contact sheet."""
    records: int = 100_000
    """Samples whose JSON is read for journals, years and kinds; of more, a random choice."""
    seed: int = 0
    """Decides which samples are shown and read."""
    max_pixels: int = 100_000_000
    """Images that declare more pixels than this are not shown."""

    def __post_init__(self) -> None:
        if self.samples < 0 or self.records < 1:
            raise ValueError("samples and records: set 0 or more, and 1 or more")


def run(config: CardConfig) -> None:
    """The stage `card`."""
    folder = Path(config.out)
    manifest = read_manifest(folder)
    index = pq.read_table(folder / INDEX)
    if not len(index):
        raise UserError(f"{folder}: holds no sample")
    rng = np.random.default_rng(config.seed)
    shown = rng.permutation(len(index))[: config.samples]
    read = np.sort(rng.permutation(len(index))[: config.records])
    facts = _facts(folder, config, manifest, index, read)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # captions and names come from strangers
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("card.html.j2").render(
        **facts, sheet=_sheet(folder, config, index, shown)
    )
    with atomic(folder / CARD) as temporary:
        temporary.write_text(page, encoding="utf-8")
    write_json(folder / CROISSANT, croissant(folder, facts["about"], manifest))
    print(f"written: {folder / CARD} and {folder / CROISSANT}")


def _facts(
    folder: Path,
    config: CardConfig,
    manifest: dict[str, Any],
    index: Any,
    read: NDArray[np.int64],
) -> dict[str, Any]:
    """Everything that the template shows, save the samples."""
    articles = index["article"].to_pylist()
    from_pmc = sum(name.startswith("PMC") for name in set(articles))
    licences = Counter(index["licence"].to_pylist())
    tags = {name: Counter[str]() for name in ("journal", "year", "kind", "article_type")}
    for _, record, _ in _records(folder, index, read):
        tags["year"][_text(record.get("date"))[:4]] += 1
        for name in ("journal", "kind", "article_type"):
            tags[name][_text(record.get(name))] += 1
    lengths = index["caption_length"].to_numpy()
    width, height = index["width"].to_numpy(), index["height"].to_numpy()
    years = {year: n for year, n in sorted(tags["year"].items()) if re.fullmatch(r"\d{4}", year)}
    day = datetime.fromtimestamp((folder / MANIFEST).stat().st_mtime, UTC).date().isoformat()
    name = config.name or folder.resolve().name
    about = {
        "name": name,
        "description": f"{len(index):,} biomedical images with captions from "
        f"{len(set(articles)):,} articles or groups, as WebDataset shards with an index.",
        "url": config.url,
        "creator": config.creator,
        "date": day,
        "licences": sorted(licences),
        "citation": NLM_CITATION if from_pmc else "",
    }
    return {
        "about": about,
        "manifest": manifest,
        "bytes": sum(shard["bytes"] for shard in manifest["shards"]),
        "articles": len(set(articles)),
        "from_pmc": from_pmc,
        "splits": _splits(manifest, index),
        "read": len(read),
        "total": len(index),
        "journals": len([name for name in tags["journal"] if name]),
        "tags": {k: bars(v) for k, v in tags.items() if k != "year" and set(v) != {""}},
        "licences": bars(licences),
        "years": columns(*_filled(years)) if years else "",
        "first_year": min(years, default=""),
        "last_year": max(years, default=""),
        "captions": _histogram(lengths, _caption_edges(lengths)),
        "caption_quantiles": np.quantile(lengths, [0.05, 0.5, 0.95]).astype(int).tolist(),
        "sides": _histogram(np.minimum(width, height), np.arange(0, 577, 32)),
        "aspects": _histogram(width / height, _ASPECTS),
        "formats": bars(Counter(index["image_ext"].to_pylist())),
        "rejects": _rejects(folder),
        "findings": _findings(folder, index),
    }


def _splits(manifest: dict[str, Any], index: Any) -> list[dict[str, Any]]:
    split_of, articles = index["split"].to_pylist(), index["article"].to_pylist()
    groups = Counter(split for split, _ in set(zip(split_of, articles, strict=True)))
    return [
        {
            "name": split,
            "samples": manifest["splits"][split],
            "articles": groups[split],
            "shards": sum(shard["split"] == split for shard in manifest["shards"]),
            "bytes": sum(s["bytes"] for s in manifest["shards"] if s["split"] == split),
        }
        for split in SPLITS
    ]


def _filled(years: dict[str, int]) -> tuple[list[str], list[int]]:
    """Every year from the first to the last; the years before the last 40 count as one."""
    last = int(max(years))
    first = max(int(min(years)), last - 39)
    labels = [str(year) for year in range(first, last + 1)]
    counts = [years.get(label, 0) for label in labels]
    counts[0] += sum(n for year, n in years.items() if int(year) < first)
    return labels, counts


def _caption_edges(lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """Bins of one round width, up to the length that 99 in 100 captions keep to."""
    top = max(float(np.quantile(lengths, 0.99)), 100.0)
    step = next(s for s in (10, 20, 25, 50, 100, 200, 250, 500, 1000, 5000) if top / s <= 30)
    return np.arange(0, top + step, step).astype(np.int64)


def _histogram(values: Any, edges: Any) -> Any:
    """Columns of counts; the last one holds all that is larger."""
    counts, _ = np.histogram(np.minimum(values, edges[-1]), edges)
    labels = [f"{edge:g}" for edge in edges[:-1]]
    labels[-1] += "+"
    return columns(labels, counts.tolist())


def _rejects(folder: Path) -> list[dict[str, Any]]:
    """Stage by stage, the reasons and how often each; the commonest first."""
    table = pq.read_table(folder / REJECTS, columns=["stage", "reason"])
    stages: dict[str, Counter[str]] = {}
    for row in table.group_by(["stage", "reason"]).aggregate([([], "count_all")]).to_pylist():
        stages.setdefault(row["stage"], Counter())[row["reason"]] = row["count_all"]
    order = sorted(stages.items(), key=lambda pair: (-pair[1].total(), pair[0]))
    return [{"stage": s, "total": c.total(), "reasons": bars(c)} for s, c in order]


def _findings(folder: Path, index: Any) -> dict[str, Any]:
    """Duplicates that were dropped, near pairs that are left, images of evaluation sets."""
    found: dict[str, Any] = {"dropped": None, "leaks": [], "near": None}
    if (folder / DUPLICATES).is_file():
        found["dropped"] = pq.ParquetFile(folder / DUPLICATES).metadata.num_rows
        leaks = pq.read_table(folder / LEAKS, columns=["set", "split"]).to_pylist()
        counted = Counter((row["set"], row["split"]) for row in leaks)
        found["leaks"] = [(*key, count) for key, count in sorted(counted.items())]
    hashes = index["phash"].drop_null().to_numpy()
    hashes = hashes[hashes != FLAT].astype(np.uint64)
    if len(hashes):
        found["near"] = len(Neighbourhood(hashes, _NEAR_BITS).items)
    return found


def _records(
    folder: Path, index: Any, places: NDArray[np.int64]
) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """(index row, JSON, caption) of some samples, shard by shard."""
    shards = index["shard"].take(places).to_pylist()
    start = 0
    while start < len(shards):
        end = start
        while end < len(shards) and shards[end] == shards[start]:
            end += 1
        with (folder / shards[start]).open("rb") as file:
            for row in index.take(places[start:end]).to_pylist():
                record, caption = read_record(file, row)
                yield row, record, caption
        start = end


def _sheet(
    folder: Path, config: CardConfig, index: Any, places: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """What the contact sheet shows of each of its samples, in the order given."""
    found = list(_shown(folder, config, index, np.sort(places)))
    return [found[place] for place in np.argsort(np.argsort(places)).tolist()]


def _shown(
    folder: Path, config: CardConfig, index: Any, places: NDArray[np.int64]
) -> Iterator[dict[str, Any]]:
    for row, record, caption in _records(folder, index, places):
        with (folder / row["shard"]).open("rb") as file:
            data = read_member(file, row, "image")
        try:
            picture = _thumbnail(decode(data, config.max_pixels))
        except ImageRejected as error:
            raise UserError(f"{folder / row['shard']}, {row['key']}: {error}") from None
        yield {
            "picture": picture,
            "caption": caption,
            "key": row["key"],
            "size": f"{row['width']} × {row['height']}",
            "split": row["split"],
            "licence": row["licence"] or "licence unknown",
            "label": _text(record.get("label")),
            "kind": _text(record.get("kind")),
            "title": _text(record.get("title")),
            "journal": _text(record.get("journal")),
            "year": _text(record.get("date"))[:4],
            "link": article_link(record | {"article": row["article"]}),
        }


def article_link(record: dict[str, Any]) -> tuple[str, str]:
    """(address, what it is called) of a sample's article; empty if none is known.

    Built from identifiers of the expected form only: a caption's author chooses no address.
    """
    for name in ("pmcid", "article"):
        if match := re.fullmatch(r"(PMC\d+)(?:\.\d+)?", _text(record.get(name))):
            return f"https://pmc.ncbi.nlm.nih.gov/articles/{match[1]}/", match[1]
    for name in ("doi", "article"):
        doi = _text(record.get(name))
        if re.fullmatch(r"10\.\d{4,9}/\S+", doi):
            return f"https://doi.org/{quote(doi, safe='/')}", doi
    return "", _text(record.get("article"))


def _thumbnail(image: Image.Image) -> str:
    """A data: URI of a small JPEG."""
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
