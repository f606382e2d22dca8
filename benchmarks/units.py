"""Time and memory of everything around the units: plan, scan of sidecars, index and manifest.

    python -m benchmarks.units units=5000 out=/tmp/units

The units are those of articles in PubMed Central's bucket; their sidecars are written here, without
shards, as if the units had been made. Each step runs once, in this process.
"""

import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from data_prep.articles import ArticleConfig, ArticleItem, plan_articles
from data_prep.build import provenance
from data_prep.shards import (
    INDEX_SCHEMA,
    REJECT_SCHEMA,
    Reject,
    ShardEntry,
    index_table,
    reject_tables,
    write_json,
    write_table,
)
from data_prep.units import Plan, Unit, claim, finish, prepare
from vlp.config import load_config, run_program

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class UnitsConfig:
    """What to measure."""

    out: str
    """Folder for the sidecars; it must be empty."""
    units: int = 5000
    """Units, about."""
    articles: int = 256
    """Articles in a unit."""
    samples: int = 900
    """Index rows of a unit."""
    rejects: int = 300
    """Rejects of a unit."""


def timed(name: str, step: Callable[[], R]) -> R:
    """Run a step; print its seconds and the largest memory of this process so far."""
    start = time.perf_counter()
    result = step()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:10} {seconds:8.1f} s   peak memory so far {peak:7,.0f} MiB", flush=True)
    return result


def main(argv: list[str]) -> None:
    """Measure."""
    config = load_config(UnitsConfig, argv, "python -m benchmarks.units")
    print(
        f"{config.units:,} units of {config.articles} articles, {config.samples} samples and "
        f"{config.rejects} rejects each; Python {sys.version.split()[0]}"
    )
    settings = ArticleConfig(out=config.out, source="mirror", articles_per_shard=config.articles)
    rng, out = random.Random(0), Path(config.out)

    def items() -> list[ArticleItem]:
        names = (f"PMC{9_000_000 + n}" for n in range(config.units * config.articles))
        return [
            ArticleItem(
                f"{name}-1",
                f"{name}.1",
                name,
                f"{name}.1/{name}.1.xml",
                "",
                rng.randbytes(32).hex(),
            )
            for name in names
        ]

    listed = timed("items", items)
    units = timed("plan", partial(plan_articles, settings, "pmc", listed))
    plan = Plan(stage="pmc", units=units, inputs={})
    with claim(out, plan):
        timed("prepare", lambda: prepare(out, plan, "mark"))
        timed("sidecars", partial(write_all, config, out, units))
        timed("scan", lambda: prepare(out, plan, "mark"))
        timed("finish", lambda: finish(out, plan, provenance(settings), Console(quiet=True)))


def write_all(config: UnitsConfig, out: Path, units: Sequence[Unit]) -> None:
    """What all units leave."""
    for unit in units:
        write_sidecars(config, out, unit)


def write_sidecars(config: UnitsConfig, out: Path, unit: Unit) -> None:
    """What a made unit leaves, beside an empty shard."""
    name = f"{unit.name}.tar"
    rows: list[dict[str, Any]] = []
    for number in range(config.samples):
        article = unit.items[number * len(unit.items) // config.samples].article
        place = {"shard": name, "split": unit.split, "image_offset": number, "image_size": 90_000}
        place |= {"text_offset": number, "text_size": 400, "json_offset": number, "json_size": 4000}
        rows.append(
            place
            | {"key": f"{article.replace('.', '-')}_fig{number}", "image_ext": "jpg", "width": 700}
            | {"height": 512, "caption_length": 400, "article": article, "licence": "CC BY 4.0"}
            | {"phash": number << 40}
        )
    rejects = [
        Reject(item.article, f"fig{number}", f"{item.article}/g{number}.jpg", "image", "too small")
        for number, item in enumerate(unit.items[:1] * config.rejects)
    ]
    sidecar = out / "units" / unit.name
    write_table(sidecar.with_suffix(".rejects.parquet"), REJECT_SCHEMA, reject_tables(rejects))
    write_table(sidecar.with_suffix(".parquet"), INDEX_SCHEMA, [index_table(rows)])
    (out / name).touch()
    shard = asdict(ShardEntry(name, unit.split, len(rows), 0, "0" * 64))
    tables = (".parquet", ".rejects.parquet")
    sizes = {suffix: sidecar.with_suffix(suffix).stat().st_size for suffix in tables}
    content = {"fingerprint": unit.fingerprint, "shard": shard, "tables": sizes}
    write_json(sidecar.with_suffix(".json"), content)


if __name__ == "__main__":
    run_program(main)
