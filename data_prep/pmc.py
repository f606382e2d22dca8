"""PubMed Central's open-data bucket: `PMC<n>.<v>/PMC<n>.<v>.xml`, `.json` and figure files.

The layout is that of s3://pmc-oa-opendata since 2026. The bucket itself, any copy of it under a URL
and any copy in a folder are read by the same code and give the same shards.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console

from data_prep import sync
from data_prep.articles import figure_results, named_in_errors, plan_articles
from data_prep.bucket import PMC_BUCKET
from data_prep.build import BuildConfig, Plan, Unit, build
from data_prep.fetch import Engine, close_engines, engine_for, fetch_in_order
from data_prep.http import Network
from data_prep.screening import ScreeningConfig
from data_prep.search import EUTILS, search_pmc
from data_prep.shards import Reject, Sample
from data_prep.worklist import WORK_LIST, WorkList, digest, list_articles, read_frozen, read_ids
from vlp.config import UserError


@dataclass(frozen=True, kw_only=True)
class PmcConfig(ScreeningConfig):
    """Articles in PubMed Central's bucket layout become shards.

    source is s3://pmc-oa-opendata (read over HTTPS, without an account), another https:// address
    of the bucket, a copy under any URL that fsspec reads, or a folder with PMC<n>.<v> folders.
    Example: python -m data_prep pmc query='retina[title]' out=shards/retina license=commercial
    """

    NOT_PROVENANCE: ClassVar[frozenset[str]] = BuildConfig.NOT_PROVENANCE | {
        *("inventory", "ids", "query", "sync", "eutils"),  # units hold the articles themselves
        *("requests", "attempts", "timeout", "first_wait", "memory_mib"),
    }

    source: str = PMC_BUCKET
    """The bucket, a URL or folder with a copy of it or of a part."""
    inventory: str = ""
    """Take the articles from the bucket's inventory: `latest`, a date (2026-11-20), or the path of
    a manifest.json or csv.gz. Empty: `latest` for s3:// and https:// sources without ids or query,
    otherwise the articles that the source is found to hold."""
    ids: str = ""
    """Take only the articles that this file names: PMC numbers, one a line."""
    query: str = ""
    """Take only the articles that this search in PubMed Central finds."""
    sync: bool = False
    """List the articles anew instead of continuing with the list in `out`; only articles that are
    new, changed or could not be downloaded are fetched."""
    eutils: str = EUTILS
    """Address of NCBI's E-utilities, which `query` asks."""
    requests: int = 64
    """Requests in flight at once from each worker process."""
    attempts: int = 6
    """Tries for each file."""
    timeout: float = 30.0
    """Seconds without a byte after which a try has failed."""
    first_wait: float = 0.5
    """Seconds before the second try of a file; doubled for each further one, up to 30."""
    memory_mib: int = 512
    """Memory of each worker process for files that were fetched ahead, beside one article's."""
    max_article_mib: int = 256
    """Articles whose figure files are larger than this are rejected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("requests", "attempts", "memory_mib", "max_article_mib"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: set 1 or more")
        if self.timeout <= 0 or self.first_wait < 0:
            raise ValueError("timeout: set it above 0; first_wait: set 0 or more")
        if self.ids and self.query:
            raise ValueError("ids, query: set one of them")

    def network(self) -> Network:
        """How requests are made."""
        return Network(
            requests=self.requests,
            attempts=self.attempts,
            timeout=self.timeout,
            first_wait=self.first_wait,
        )

    def engine(self) -> Engine:
        """This process's connections to the source."""
        memory, article_memory = self.memory_mib << 20, self.max_article_mib << 20
        return engine_for(self.source, self.network(), memory, article_memory)


def run(config: PmcConfig) -> None:
    """The stage `pmc`."""
    out, console = Path(config.out), Console()
    close_engines()  # an earlier run in this process may remember another state of the source
    ids = read_ids(Path(config.ids)) if config.ids else []
    frozen = read_frozen(out / WORK_LIST)
    work = frozen if frozen and _continues(config, frozen, ids) else _list(config, ids)
    items = work.items()
    units = plan_articles(config, "pmc", items)
    if work is not frozen:
        # On request also where nothing changed: what could not be downloaded is tried again.
        if frozen is not None and (config.sync or not work.rows.equals(frozen.rows)):
            sync.stash(out, plan_articles(config, "pmc", frozen.items()), units)
        work.freeze(out / WORK_LIST)
    plan = Plan(
        stage="pmc",
        units=units,
        inputs={"source": config.source, "articles": len(items)} | work.origin,
        rejects=list(work.rejects()),
    )
    if build(config, plan, produce) is not None and (report := sync.finish(out)) is not None:
        _print(report, out, console)


def produce(config: PmcConfig, unit: Unit) -> Iterator[Sample | Reject]:
    """Samples and rejects of one unit, article by article."""
    previous = sync.Previous(config, unit)
    wanted = [item for item in unit.items if not previous.has(item)]
    fetched = fetch_in_order(config.engine(), config, wanted, ahead=config.requests)
    for item in unit.items:
        with named_in_errors(f"article {item.article} ({item.xml})"):
            if previous.has(item):
                yield from previous.results(item)
                continue
            result = next(fetched)
            if isinstance(result, Reject):
                yield result
            else:
                yield from figure_results(config, item, result.files, result.article, result.record)


def _continues(config: PmcConfig, frozen: WorkList, ids: Sequence[str]) -> bool:
    """Whether the frozen list is what this run asks for; a folder is always looked at anew."""
    if config.sync or not (_inventory(config) or _is_remote(config)):
        return False
    return bool(frozen.origin["selection"] == _selection(config, ids))


def _list(config: PmcConfig, ids: Sequence[str]) -> WorkList:
    """A new work list."""
    origin: dict[str, Any] = {"selection": _selection(config, ids)}
    if config.query:
        ids = search_pmc(config.query, config.network(), config.eutils)
        origin["found"] = len(ids)
    engine = config.engine()
    rows, more = engine.run(list_articles(engine.store, config.source, _inventory(config), ids))
    work = WorkList(rows, origin | more)
    if not work.items():
        raise UserError(f"{config.source}: holds none of the articles asked for")
    return work


def _selection(config: PmcConfig, ids: Sequence[str]) -> dict[str, str]:
    """What decides which articles are on the list."""
    return {
        "source": config.source,
        "inventory": _inventory(config),
        "ids": digest(ids) if ids else "",
        "query": config.query,
    }


def _inventory(config: PmcConfig) -> str:
    """The inventory to take; empty: none."""
    bucket = config.source.startswith(("https://", "http://")) or config.source == PMC_BUCKET
    everything = bucket and not config.ids and not config.query
    return config.inventory or ("latest" if everything else "")


def _is_remote(config: PmcConfig) -> bool:
    return "://" in config.source


def _print(report: dict[str, Any], out: Path, console: Console) -> None:
    console.print(
        f"since the work list before: {report['new']:,} articles new, {report['changed']:,} "
        f"changed, {len(report['removed']):,} removed, {len(report['retracted']):,} retracted, "
        f"{report['equal']:,} as they were; names are in {out / sync.REPORT}",
        soft_wrap=True,
    )
