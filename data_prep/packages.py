"""JATS articles as publishers and archives hand them out: folders, zips, tars, MECA packages.

Planning reads each file no further than its front matter, for the identifiers.
"""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from data_prep.archives import ArchiveError, archive_members, is_archive, unpack
from data_prep.articles import ArticleConfig, ArticleItem, plan_articles, produce
from data_prep.build import Plan, build
from data_prep.front_matter import Metadata
from data_prep.jats import JatsError, NotAnArticle, identify
from data_prep.runners import core_count, map_unordered
from data_prep.shards import Reject, unique_keys
from data_prep.sources import (
    MAX_FILE,
    MAX_PACKAGE,
    folder_state,
    forget_folders,
    state_of,
    walk,
)
from vlp.config import UserError

_XML = (".xml", ".nxml")
_CHUNK = 64  # files to identify in one go


@dataclass(frozen=True, kw_only=True)
class JatsConfig(ArticleConfig):
    """JATS articles with their figure files become shards.

    source is a folder of any depth, a .zip or a .tar(.gz). In it, articles are XML files with their
    figures in the same folder or below, or packages (.zip, .meca, .tar.gz) of such files.
    Example: python -m data_prep jats source=articles.zip out=shards/articles
    """

    max_unpacked_gib: int = 200
    """An archive given as the source is refused if it unpacks to more than this."""


@dataclass(frozen=True)
class Found:
    """An article file before it has a key."""

    article: str
    group: str
    xml: str
    number: int
    package: str
    state: str


def run(config: JatsConfig) -> None:
    """The stage `jats`."""
    source = Path(config.source)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if Path(config.out).resolve().is_relative_to(source.resolve()):
        raise UserError(f"out={config.out}: lies inside of source; choose a folder elsewhere")
    unpacked = Path(config.out) / "unpacked"
    if source.is_file():
        _unpack_source(source, unpacked, config.max_unpacked_gib << 30)
    root = unpacked if source.is_file() else source
    found, rejects = find_articles(root, config.workers or core_count())
    if not found:
        why = f"; {rejects[0].image}: {rejects[0].reason}" if rejects else ""
        raise UserError(f"{source}: holds no JATS article{why}")
    articles, duplicates = _without_duplicates(found)
    keys = unique_keys([(article.article,) for article in articles])
    items = [
        ArticleItem(key, a.article, a.group, a.xml, a.package, a.state, a.number)
        for key, a in zip(keys, articles, strict=True)
    ]
    plan = Plan(
        stage="jats",
        units=plan_articles(config, "jats", items),
        inputs={"source": config.source, "articles": len(items)},
        rejects=(*rejects, *duplicates),
    )
    build(config, plan, partial(produce, root))
    if source.is_file():
        shutil.rmtree(unpacked)
        unpacked.with_suffix(".json").unlink()


def find_articles(root: Path, workers: int) -> tuple[list[Found], list[Reject]]:
    """Every article below `root`, by path, and every file that should be one but is broken."""
    forget_folders()
    paths = [name for name, _, _ in walk(root) if name.lower().endswith(_XML) or is_archive(name)]
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    results = [
        result
        for part in map_unordered(partial(_identify_all, root), chunks, workers)
        for result in part
    ]
    found = sorted((r for r in results if isinstance(r, Found)), key=lambda f: (f.xml, f.number))
    return found, sorted(r for r in results if isinstance(r, Reject))


def _unpack_source(source: Path, unpacked: Path, max_bytes: int) -> None:
    """Unpack an archive once; its tag tells a later run that it is whole and still the same."""
    if not is_archive(source.name):
        raise UserError(f"{source}: neither a folder nor a .zip, .meca, .tar, .tar.gz or .tgz")
    tag = unpacked.with_suffix(".json")
    state = state_of([(source.name, source.stat().st_size, source.stat().st_mtime_ns)])
    if unpacked.is_dir() and tag.is_file() and tag.read_text(encoding="utf-8") == state:
        return
    tag.unlink(missing_ok=True)
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir(parents=True)
    try:
        unpack(source, unpacked, max_bytes)
    except ArchiveError as error:
        shutil.rmtree(unpacked)
        raise UserError(f"{source}: {error}") from None
    tag.write_text(state, encoding="utf-8")


def _identify_all(root: Path, paths: list[str]) -> list[Found | Reject]:
    return [result for path in paths for result in _identify(root, path)]


def _identify(root: Path, path: str) -> list[Found | Reject]:
    """The articles in one file, an XML file or a package."""
    if not is_archive(path):
        size = (root / path).stat().st_size
        if size > MAX_FILE:
            return [Reject("", "", path, "plan", f"file larger than {MAX_FILE:,} bytes")]
        state = folder_state((root / path).parent)
        return _identify_xml((root / path).read_bytes(), path, "", state)
    results: list[Found | Reject] = []
    status = (root / path).stat()
    state = state_of([(path, status.st_size, status.st_mtime_ns)])
    try:
        for member in archive_members(root / path, MAX_PACKAGE):
            if member.name.lower().endswith(_XML):
                where = f"{path}/{member.name}"
                results += _identify_xml(member.read(), where, path, state)
    except ArchiveError as error:
        return [Reject("", "", path, "plan", str(error))]
    return results


def _identify_xml(data: bytes, path: str, package: str, state: str) -> list[Found | Reject]:
    try:
        articles = identify(data)
    except NotAnArticle:
        return []  # manifests and the like
    except JatsError as error:
        return [Reject("", "", path, "plan", str(error))]
    found: list[Found | Reject] = []
    for number, metadata in enumerate(articles):
        stem = PurePosixPath(path).with_suffix("").as_posix()
        article = identifier(metadata) or (f"{stem}-{number + 1}" if number else stem)
        found.append(Found(article, article.lower(), path, number, package, state))
    return found


def identifier(metadata: Metadata) -> str:
    """PMC number, DOI or PubMed number, whichever there is first; the same in every package."""
    pmid = f"pmid-{metadata.pmid}" if metadata.pmid else ""
    return metadata.pmcid or metadata.doi or pmid


def _without_duplicates(found: list[Found]) -> tuple[list[Found], list[Reject]]:
    """The first file of each article, and a reject for each further one."""
    first: dict[str, Found] = {}
    duplicates = []
    for article in found:
        if article.group in first:
            duplicates.append(
                Reject(article.article, "", article.xml, "plan", "article found twice")
            )
        else:
            first[article.group] = article
    return list(first.values()), duplicates
