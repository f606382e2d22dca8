"""What `pmc` and `jats` share: from one article's files to samples and rejects."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from data_prep.archives import ArchiveError
from data_prep.build import (
    BUILD,
    BuildConfig,
    Unit,
    fingerprint,
    provenance,
    split_of,
)
from data_prep.captions import CaptionRejected, clean_caption
from data_prep.images import ImageRejected
from data_prep.jats import Article, Figure, JatsError, parse_article
from data_prep.kinds import KINDS
from data_prep.licences import Use, allows, licence_name
from data_prep.metadata import BadRecord, is_true, read_record
from data_prep.pictures import Panels, Picture, PictureRules, pictures
from data_prep.shards import FORMAT, SPLITS, VERSION, Reject, Sample, make_key, unique_keys
from data_prep.sources import (
    FetchFailed,
    FileProblem,
    Files,
    FolderFiles,
    PackageFiles,
    find_file,
    format_rank,
)
from vlp.splits import hash_fraction


@dataclass(frozen=True, kw_only=True)
class ArticleConfig(BuildConfig):
    """What the stages that read articles have in common."""

    source: str
    """Where the articles are; see the stage."""
    license: Use = "noncommercial"
    """Figures to keep: `commercial` those that may be used commercially (CC0, CC BY, CC BY-SA,
    CC BY-ND), `noncommercial` also CC BY-NC..., `any` also those of unknown or other licence,
    which you may not be allowed to pass on."""
    panels: Panels = "whole"
    """Compound figures: `whole` keeps them as they are, `split` stores their panels, each with its
    part of the caption, where caption and picture agree on what these are, `both` stores all."""
    tag_kinds: bool = False
    """Note in each sample's JSON what kind of image it probably is."""
    kinds: tuple[str, ...] = ()
    """Kinds to keep (image, plot, diagram, table, other); empty keeps all."""
    articles_per_shard: int = 256
    """Articles in a shard, between a half of this and this on average: 256 have about 1,000
    figures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.articles_per_shard < 1:
            raise ValueError(f"articles_per_shard={self.articles_per_shard}: set 1 or more")
        unknown = sorted(set(self.kinds) - set(KINDS))
        if unknown:
            raise ValueError(f"kinds: no kind '{unknown[0]}'; the kinds are {', '.join(KINDS)}")

    def picture_rules(self) -> PictureRules:
        """What pictures.py needs to know."""
        return PictureRules(
            image=self.image_rules(),
            panels=self.panels,
            tag_kinds=self.tag_kinds,
            kinds=self.kinds,
            min_caption=self.min_caption,
        )


@dataclass(frozen=True)
class ArticleItem:
    """An article on its way to a unit."""

    key: str
    """Beginning of its samples' keys."""
    article: str
    """Its identifier: PMC number with version, or DOI."""
    group: str
    """What its split depends on: the same for all versions of an article."""
    xml: str
    """The JATS file, relative to the source."""
    package: str
    """The archive that holds it, relative to the source; empty for files in a folder."""
    state: str
    """Hash of names, sizes and times of its files."""
    number: int = 0
    """Its place among the articles of the JATS file."""


class Item(Protocol):
    """What `figure_results` needs to know of an article."""

    @property
    def key(self) -> str:
        """Beginning of its samples' keys."""
        ...

    @property
    def article(self) -> str:
        """Its identifier."""
        ...

    @property
    def group(self) -> str:
        """What its split depends on."""
        ...

    @property
    def xml(self) -> str:
        """The JATS file, relative to the source."""
        ...


@contextmanager
def named_in_errors(name: str) -> Iterator[None]:
    """Adds a note to an unexpected error: which article was being worked on."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while working on {name}")
        raise


def plan_articles(config: ArticleConfig, stage: str, items: Sequence[Item]) -> tuple[Unit, ...]:
    """Units of articles by the hash of their group, so that shards are mixed.

    A split has a power of two of shards, each of which takes an equal part of the hash's range. So
    an article that is added or taken away changes one shard, until their number doubles.
    """
    splits: dict[str, list[tuple[float, str, Item]]] = {split: [] for split in SPLITS}
    for item in items:
        hashed = hash_fraction(config.seed, item.group)
        splits[split_of(config, item.group)].append((hashed, item.article, item))
    units, settings = [], provenance(config)
    for split, members in splits.items():
        needed = -(-len(members) // config.articles_per_shard)
        count = 1 << (needed - 1).bit_length() if needed else 0
        parts: list[list[Item]] = [[] for _ in range(count)]
        for _, _, item in sorted(members, key=lambda member: member[:2]):
            parts[shard_number(config, split, item.group, count)].append(item)
        for number, part in enumerate(parts):
            mark = fingerprint(FORMAT, VERSION, BUILD, stage, settings, part)
            units.append(Unit(f"{split}-{number:05d}", split, tuple(part), mark))
    return tuple(units)


def shard_number(config: ArticleConfig, split: str, group: str, count: int) -> int:
    """Which of the `count` shards of its split an article goes to."""
    test, val = config.test_fraction, config.val_fraction
    start, end = {"test": (0.0, test), "val": (test, test + val), "train": (test + val, 1.0)}[split]
    place = (hash_fraction(config.seed, group) - start) / (end - start)
    return min(int(place * count), count - 1)  # rounding may make `place` 1


def produce(root: Path, config: ArticleConfig, unit: Unit) -> Iterator[Sample | Reject]:
    """Samples and rejects of one unit, article by article."""
    for item in unit.items:
        with named_in_errors(f"article {item.article} ({item.xml})"):
            yield from article_results(config, root, item)


def article_results(
    config: ArticleConfig, root: Path, item: ArticleItem
) -> Iterator[Sample | Reject]:
    """The results of one article in a folder or package; one reject for a bad article."""
    name = PurePosixPath(item.xml).name
    try:
        files = open_files(root, item)
        article = parse_article(files.read(name), item.number)
        record = bucket_record(files, name)
    except (ArchiveError, FileProblem, JatsError, BadRecord) as error:
        yield Reject(item.article, "", item.xml, "article", str(error))
        return
    if is_true(record.get("is_retracted")):
        yield Reject(item.article, "", item.xml, "article", "article retracted")
        return
    yield from figure_results(config, item, files, article, record)


def figure_results(
    config: ArticleConfig, item: Item, files: Files, article: Article, record: dict[str, Any]
) -> Iterator[Sample | Reject]:
    """One sample or one reject for every picture of every figure, or for every panel."""
    keys = iter(figure_keys(item.key, list(_picture_names(article))))
    about = _about(article, record)
    for figure in article.figures:
        for number, hrefs in enumerate(figure.graphics or ((),)):
            more = about | {"graphic": number + 1}
            yield from _picture(config, item, files, figure, hrefs, next(keys), more)
    for _ in range(article.lost):
        yield Reject(item.article, "", "", "figure", "figure lost in broken XML")


def figure_keys(article: str, names: Sequence[str]) -> list[str]:
    """A key for each picture; none of them can be that of another one's panel.

    A figure that is called like another one's panel (F1_pA beside F1) gets a hash at its end.
    """
    keys = unique_keys([(article, name) for name in names])
    known = set(keys)
    return [
        make_key(key, fingerprint(key)[:12])
        if re.search(r"_p[A-Za-z]$", key) and key[:-3] in known
        else key
        for key in keys
    ]


def wanted_files(
    config: ArticleConfig, article: Article, record: dict[str, Any], names: Sequence[str]
) -> list[str]:
    """Those of `names` that `figure_results` will read: what to fetch of an article far away."""
    of_article = _licence(article.metadata.licence, record)
    wanted = {}
    for figure in article.figures:
        licence = of_article if figure.licence is None else figure.licence
        if allows(licence, config.license):
            for hrefs in figure.graphics:
                wanted.update(dict.fromkeys(_best_file(hrefs, names)))
    return list(wanted)


def open_files(root: Path, item: ArticleItem) -> Files:
    """The files around an article, in a folder or in a package."""
    if item.package:
        inside = PurePosixPath(item.xml).relative_to(item.package).parent.as_posix()
        return PackageFiles(root / item.package, "" if inside == "." else inside)
    return FolderFiles((root / item.xml).parent)


def bucket_record(files: Files, xml: str) -> dict[str, Any]:
    """PMC's JSON beside the XML (`PMC<n>.<v>.json`); empty where there is none.

    Raises:
        BadRecord: see `read_record`.
    """
    name = PurePosixPath(xml).with_suffix(".json").name
    return read_record(files.read(name)) if name in files.names() else {}


def _picture_names(article: Article) -> Iterator[str]:
    """The name of each picture within its article, for keys: the figure's id, then a number."""
    for number, figure in enumerate(article.figures, 1):
        name = figure.id or f"figure-without-id-{number}"
        for picture in range(len(figure.graphics) or 1):
            yield f"{name}_{picture + 1}" if picture else name


def _about(article: Article, record: dict[str, Any]) -> dict[str, Any]:
    """The part of the samples' JSON that all figures of an article share; PMC's record wins."""
    meta = article.metadata
    known = {key: value for key, value in record.items() if isinstance(value, str | int) and value}
    return {
        "title": str(known.get("title", meta.title)),
        "journal": meta.journal,
        "date": meta.date,
        "doi": str(known.get("doi", meta.doi)),
        "pmid": str(known.get("pmid", meta.pmid)),
        "pmcid": str(known.get("pmcid", meta.pmcid)),
        "version": known.get("version", meta.version),
        "citation": str(known.get("citation", meta.citation)),
        "article_type": meta.article_type,
        "keywords": list(meta.keywords),
        "mesh": list(meta.mesh),
        "recovered": article.recovered or None,
        "licence": _licence(meta.licence, record),
    }


def _licence(of_article: str, record: dict[str, Any]) -> str:
    """PMC's word on the licence, where it has one; the article knows the version besides."""
    if "license_code" not in record:
        return of_article
    code = licence_name([str(record["license_code"])])
    return of_article if code and of_article.startswith(f"{code} ") else code


def _picture(
    config: ArticleConfig,
    item: Item,
    files: Files,
    figure: Figure,
    hrefs: tuple[str, ...],
    key: str,
    about: dict[str, Any],
) -> Iterator[Sample | Reject]:
    """One picture of a figure: the whole, or its panels, or both."""
    where = (item.article, figure.id or figure.label, hrefs[0] if hrefs else "")
    licence = about["licence"] if figure.licence is None else figure.licence
    found: list[str] = []
    if not hrefs:
        problem = ("figure", "no graphic")
    elif not allows(licence, config.license):
        problem = ("licence", f"licence {licence or 'unknown'}")
    else:
        found = _best_file(hrefs, files.names())
        problem = ("figure", "image file missing")
    if not found:
        yield Reject(*where, *problem)
        return
    try:
        caption = clean_caption(figure.caption or figure.group_caption, config.min_caption)
        parts = pictures(files.read(found[0]), caption, config.picture_rules())
    except CaptionRejected as error:
        yield Reject(*where, "caption", str(error))
    except FetchFailed as error:
        yield Reject(*where, "fetch", str(error))
    except (ImageRejected, FileProblem) as error:
        yield Reject(*where, "image", str(error))
    else:
        image = (PurePosixPath(item.xml).parent / found[0]).as_posix()
        record = about | _about_figure(figure) | {"image": image}
        for part in parts:
            if part.reason:
                name = f"{where[1]} {part.panel}".strip()
                yield Reject(item.article, name, where[2], "kind", part.reason)
            else:
                yield _sample(part, key, item.article, licence, record)


def _sample(
    picture: Picture, figure_key: str, article: str, licence: str, record: dict[str, Any]
) -> Sample:
    key, more = figure_key, picture.record
    if picture.panel:
        key, more = make_key(figure_key, f"p{picture.panel}"), more | {"figure_key": figure_key}
    return Sample(
        key=key,
        image=picture.image.data,
        extension=picture.image.extension,
        width=picture.image.width,
        height=picture.image.height,
        phash=picture.image.phash,
        caption=picture.caption,
        article=article,
        licence=licence,
        record=record | more,
    )


def _about_figure(figure: Figure) -> dict[str, Any]:
    """The part of the samples' JSON that the pictures and panels of a figure share."""
    return {
        "figure": figure.id,
        "label": figure.label,
        "graphics": len(figure.graphics),
        "group_label": figure.group_label,
        "group_caption": figure.group_caption,
        "sections": list(filter(None, figure.sections)),
        "sub_article": figure.sub_article,
        "language": figure.language,
        "attribution": figure.attribution,
        "mentions": list(figure.mentions),
    }


def _best_file(hrefs: tuple[str, ...], names: Sequence[str]) -> list[str]:
    """The one file of the best format among a picture's alternatives, if any of them is there."""
    found = filter(None, (find_file(href, names) for href in hrefs))
    return sorted(found, key=format_rank)[:1]
