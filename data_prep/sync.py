"""What a newer work list leaves of the shards that are there: unchanged articles are not fetched.

Before units are made anew, their shards are linked into `previous/`. A unit then takes each article
whose state is the same out of the old shard and fetches the others, so that the result equals that
of a run from nothing. Articles with failed downloads count as changed.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.articles import ArticleConfig, shard_number
from data_prep.build import Unit
from data_prep.fetch import BucketItem
from data_prep.shards import INDEX_SCHEMA, REJECTS, Reject, Sample, atomic, write_json
from data_prep.worklist import WORK_LIST, read_frozen

PREVIOUS = "previous"
REPORT = "sync.json"
_STASH = re.compile(r"([a-z]+)-(\d+)-of-(\d+)")
_SAMPLE = frozenset(field.name for field in fields(Sample))


def stash(out: Path, old: Sequence[Unit], new: Sequence[Unit]) -> None:
    """Keep the shards of finished `old` units that `new` ones will replace.

    Units in which a download failed are marked as unfinished, too.
    """
    previous = out / PREVIOUS
    previous.mkdir(parents=True, exist_ok=True)
    _forget()
    for name in (WORK_LIST, REJECTS):  # for the report; those of the first of several tries
        if (out / name).is_file() and not (previous / name).exists():
            _link(out / name, previous / name)
    staying = {(unit.name, unit.fingerprint) for unit in new}
    counts: dict[str, int] = {}
    for unit in old:
        counts[unit.split] = counts.get(unit.split, 0) + 1
    for unit in old:
        sidecar = out / "units" / f"{unit.name}.json"
        if not _is_made(sidecar, unit):
            continue
        failed = _failed(sidecar.with_suffix(".rejects.parquet"))
        if (unit.name, unit.fingerprint) in staying and not failed:
            continue
        number = int(unit.name.rpartition("-")[2])
        target = previous / f"{unit.split}-{number:05d}-of-{counts[unit.split]:05d}.json"
        target.unlink(missing_ok=True)  # it vouches for the other three
        for file in (sidecar.with_suffix(".parquet"), sidecar.with_suffix(".rejects.parquet")):
            _link(file, target.with_suffix(file.name.removeprefix(unit.name)))
        _link(out / f"{unit.name}.tar", target.with_suffix(".tar"))
        states = {item.article: item.state for item in unit.items if item.article not in failed}
        write_json(target, states)
        sidecar.unlink()


class Previous:
    """Articles of earlier shards that a unit can take over."""

    def __init__(self, config: ArticleConfig, unit: Unit) -> None:
        self._where: dict[str, Path] = {}
        stashes = _stashes(Path(config.out) / PREVIOUS)
        for item in unit.items if stashes else ():
            for count in {c for split, _, c in stashes if split == unit.split}:
                number = shard_number(config, unit.split, item.group, count)
                path = stashes.get((unit.split, number, count))
                if path and _states(path).get(item.article) == item.state:
                    self._where[item.article] = path

    def has(self, item: BucketItem) -> bool:
        """Whether the article is there as it is now."""
        return item.article in self._where

    def results(self, item: BucketItem) -> Iterator[Sample | Reject]:
        """What was made of the article."""
        path = self._where[item.article]
        rows = _rows(path).get(item.article, [])
        if rows:
            with path.with_suffix(".tar").open("rb") as shard:
                for row in rows:
                    yield _sample(shard.fileno(), row)
        yield from _rejects(path).get(item.article, [])


def finish(out: Path) -> dict[str, Any] | None:
    """Report what a finished run changed, and let go of the old shards; None: nothing to report."""
    previous = out / PREVIOUS
    if not previous.is_dir():
        return None
    old, new = read_frozen(previous / WORK_LIST), read_frozen(out / WORK_LIST)
    report = None
    if old is not None and new is not None:
        report = {"from": old.origin, "to": new.origin} | differences(old.rows, new.rows)
        report["retracted"] = sorted(_retracted(out / REJECTS) - _retracted(previous / REJECTS))
        write_json(out / REPORT, report)
    shutil.rmtree(previous)
    _forget()
    return report


def differences(old: pa.Table, new: pa.Table) -> dict[str, Any]:
    """How work lists differ: counts of new, changed and equal articles, names of removed ones."""
    sides = []
    for side, table in (("old", old), ("new", new)):
        table = table.filter(pc.equal(table["reason"], ""))
        pmcid = pc.list_element(pc.split_pattern(table["article"], "."), 0)
        columns = [pmcid, table["article"], table["state"]]
        sides.append(pa.table(columns, names=["pmcid", f"{side}_article", f"{side}_state"]))
    both = sides[0].join(sides[1], keys="pmcid", join_type="full outer")
    added, removed = pc.is_null(both["old_article"]), pc.is_null(both["new_article"])
    same = pc.and_(
        pc.equal(both["old_article"], both["new_article"]),
        pc.equal(both["old_state"], both["new_state"]),
    )
    equal = pc.sum(same).as_py() or 0
    return {
        "new": pc.sum(added).as_py() or 0,
        "changed": len(both)
        - equal
        - (pc.sum(added).as_py() or 0)
        - (pc.sum(removed).as_py() or 0),
        "equal": equal,
        "removed": sorted(both["old_article"].filter(removed).to_pylist()),
    }


def _is_made(sidecar: Path, unit: Unit) -> bool:
    if not sidecar.is_file():
        return False
    content = json.loads(sidecar.read_text(encoding="utf-8"))
    return bool(content["fingerprint"] == unit.fingerprint)


def _failed(path: Path) -> set[str]:
    """Articles of which something could not be downloaded."""
    if not path.is_file():
        return set()
    rows = pq.read_table(path, columns=["article", "stage"])
    return set(rows["article"].filter(pc.equal(rows["stage"], "fetch")).to_pylist())


def _retracted(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    rows = pq.read_table(path, columns=["article", "reason"])
    return set(rows["article"].filter(pc.equal(rows["reason"], "article retracted")).to_pylist())


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    if source.is_file():
        try:
            os.link(source, target)
        except OSError:  # a file system without hard links
            with atomic(target) as temporary:
                shutil.copyfile(source, temporary)


def _sample(shard: int, row: dict[str, Any]) -> Sample:
    def member(kind: str) -> bytes:
        return os.pread(shard, row[f"{kind}_size"], row[f"{kind}_offset"])

    known = {name: value for name, value in row.items() if name in _SAMPLE}
    return Sample(
        **known,
        image=member("image"),
        extension=row["image_ext"],
        caption=member("text").decode("utf-8"),
        record=json.loads(member("json")),
    )


@lru_cache(maxsize=1)
def _stashes(previous: Path) -> dict[tuple[str, int, int], Path]:
    """The stashed units by split, number and number of units in the split."""
    found = {}
    for path in previous.glob("*-of-*.json"):
        if match := _STASH.fullmatch(path.stem):
            found[match[1], int(match[2]), int(match[3])] = path
    return found


@lru_cache(maxsize=4)
def _states(path: Path) -> dict[str, str]:
    states: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return states


@lru_cache(maxsize=4)
def _rows(path: Path) -> dict[str, list[dict[str, Any]]]:
    table = pq.read_table(path.with_suffix(".parquet"), schema=INDEX_SCHEMA)
    return _by_article(table.to_pylist())


@lru_cache(maxsize=4)
def _rejects(path: Path) -> dict[str, list[Reject]]:
    file = path.with_suffix(".rejects.parquet")
    rows = pq.read_table(file).to_pylist() if file.is_file() else []
    found = _by_article(rows)
    return {article: [Reject(**row) for row in rows] for article, rows in found.items()}


def _forget() -> None:
    for cache in (_stashes, _states, _rows, _rejects):
        cache.cache_clear()


def _by_article(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["article"], []).append(row)
    return found
