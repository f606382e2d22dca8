"""Time and memory of everything around the units: plan, scan of sidecars, index and manifest.

    python -m benchmarks.units units=5000 out=build/units

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
    """Run a step; print its wall and processor seconds and the largest memory so far."""
    start, start_cpu = time.perf_counter(), time.process_time()
    result = step()
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:10} {seconds:8.1f} s, cpu {cpu:8.1f} s   peak memory so far {peak:7,.0f} MiB")
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
        timed("sidecars", partial(write_sidecars, config, out, units))
        timed("scan", lambda: prepare(out, plan, "mark"))
        timed("finish", lambda: finish(out, plan, provenance(settings), Console(quiet=True)))


def write_sidecars(config: UnitsConfig, out: Path, units: Sequence[Unit]) -> None:
    """What made units leave, beside empty shards; the tables are copies of one."""
    rows = [index_row(number) for number in range(config.samples)]
    rejects = [
        Reject(
            f"PMC{number}.1", f"fig{number}", f"PMC{number}.1/g{number}.jpg", "image", "too small"
        )
        for number in range(config.rejects)
    ]
    write_table(out / "index", INDEX_SCHEMA, [index_table(rows)])
    write_table(out / "rejects", REJECT_SCHEMA, reject_tables(rejects))
    tables = {
        ".parquet": (out / "index").read_bytes(),
        ".rejects.parquet": (out / "rejects").read_bytes(),
    }
    sizes = {suffix: len(data) for suffix, data in tables.items()}
    for unit in units:
        sidecar = out / "units" / unit.name
        for suffix, data in tables.items():
            sidecar.with_suffix(suffix).write_bytes(data)
        shard = asdict(ShardEntry(f"{unit.name}.tar", unit.split, config.samples, 0, "0" * 64))
        (out / f"{unit.name}.tar").touch()
        content = {"fingerprint": unit.fingerprint, "shard": shard, "tables": sizes}
        write_json(sidecar.with_suffix(".json"), content)


def index_row(number: int) -> dict[str, Any]:
    """A row with values of the usual length."""
    article = f"PMC{9_000_000 + number // 4}.1"
    row = {"key": f"{article.replace('.', '-')}_fig{number}", "shard": "train-00000.tar"}
    row |= {"split": "train", "image_ext": "jpg", "article": article, "licence": "CC BY 4.0"}
    numbers = {"image_offset": number * 95_232, "image_size": 90_000, "width": 700, "height": 512}
    numbers |= {"text_offset": number * 95_232 + 90_624, "text_size": 400, "caption_length": 400}
    numbers |= {"json_offset": number * 95_232 + 91_648, "json_size": 3000}
    return row | numbers | {"phash": random.Random(number).getrandbits(64)}


if __name__ == "__main__":
    run_program(main)
