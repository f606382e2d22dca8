"""PubMed Central's open-data bucket: `PMC<n>.<v>/PMC<n>.<v>.xml`, `.json` and figure files.

The layout is that of s3://pmc-oa-opendata since 2026; this stage reads a local copy of any part
of it, for example one made by `aws s3 sync --no-sign-request`.
"""

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_prep.articles import ArticleConfig, ArticleItem, plan_articles, produce
from data_prep.build import Plan, build
from data_prep.shards import Reject, make_key
from data_prep.sources import forget_folders, state_of, walk
from vlp.config import UserError

_FOLDER = re.compile(r"(PMC\d+)\.(\d+)")


@dataclass(frozen=True, kw_only=True)
class PmcConfig(ArticleConfig):
    """Articles in PubMed Central's bucket layout become shards.

    source is the folder that holds the PMC<n>.<v> folders.
    Example: python -m data_prep pmc source=mirror out=shards/pmc license=commercial
    """


def run(config: PmcConfig) -> None:
    """The stage `pmc`."""
    if "://" in config.source:
        raise UserError(
            f"source={config.source}: only local folders are read so far; copy it first, for "
            "example with `aws s3 sync --no-sign-request`"
        )
    forget_folders()
    root = Path(config.source)
    versions = find_versions(root)
    items, rejects = [], []
    for pmcid, numbers in sorted(versions.items()):
        *superseded, latest = sorted(numbers)
        for number in superseded:
            name = f"{pmcid}.{number}"
            rejects.append(Reject(name, "", name, "plan", "article superseded by a later version"))
        name = f"{pmcid}.{latest}"
        listing = walk(root / name)
        xml = f"{name}.xml"
        if xml not in (file for file, _, _ in listing):
            rejects.append(Reject(name, "", name, "plan", "article XML missing"))
            continue
        items.append(
            ArticleItem(make_key(name), name, pmcid, f"{name}/{xml}", "", state_of(listing))
        )
    plan = Plan(
        stage="pmc",
        units=plan_articles(config, "pmc", items),
        inputs={"source": config.source, "articles": len(items)},
        rejects=tuple(rejects),
    )
    build(config, plan, partial(produce, root))


def find_versions(root: Path) -> dict[str, list[int]]:
    """The versions of each article below `root`.

    Raises:
        UserError: no folder, or nothing in it that looks like the bucket.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    versions: dict[str, list[int]] = {}
    with os.scandir(root) as entries:
        for entry in entries:
            match = _FOLDER.fullmatch(entry.name)
            if match and entry.is_dir():
                versions.setdefault(match[1], []).append(int(match[2]))
    if not versions:
        raise UserError(
            f"{root}: holds no PMC<n>.<v> folders; "
            "for articles in another layout use `python -m data_prep jats`"
        )
    return versions
