"""Which articles a run is about: inventories, lists of numbers, frozen lists, sync."""

import asyncio
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import fetch, pmc, sync
from data_prep.inventory import ROWS, latest_versions
from data_prep.sources import FileProblem
from data_prep.sync import differences
from data_prep.worklist import SCHEMA, WORK_LIST, list_articles, read_ids
from tests.data_prep.bucket_server import (
    QUICK,
    Bucket,
    from_server,
    md5,
    shards,
    with_media,
    write_inventory,
)
from tests.data_prep.factories import (
    encoded,
    manifest_of,
    picture,
    prepare,
    rejects_of,
    rows_of,
    tree,
    write_pmc_article,
)
from vlp.config import UserError


def articles_of(out: Path) -> set[str]:
    """The articles that have samples."""
    return {row["article"] for row in rows_of(out)}


@pytest.mark.parametrize("inventory", ["", "latest", "2026-11-20", "2026-11-20T01-00Z", "local"])
def test_inventories(bucket: Bucket, tmp_path: Path, inventory: str) -> None:
    base = bucket.root / "inventory-reports" / "pmc-oa-opendata" / "metadata"
    if inventory == "local":
        inventory = str(base / "2026-11-20T01-00Z" / "manifest.json")
    from_server(bucket, tmp_path / "out", f"inventory={inventory}")
    assert articles_of(tmp_path / "out") == {f"PMC{n}.1" for n in range(1, 13)}
    assert manifest_of(tmp_path / "out")["inputs"]["articles"] == 12


def test_the_newest_inventory_is_taken(bucket: Bucket, tmp_path: Path) -> None:
    write_inventory(bucket.root, "2026-11-21T01-00Z", leave_out=["PMC1.1"])
    from_server(bucket, tmp_path / "out")
    assert len(articles_of(tmp_path / "out")) == 11
    inputs = manifest_of(tmp_path / "out")["inputs"]
    assert (inputs["inventory"], inputs["inventory_rows"]) == ("2026-11-21T01-00Z", 11)


def test_a_csv_with_other_columns_and_foreign_keys(bucket: Bucket, tmp_path: Path) -> None:
    """An inventory of all objects, with both places of each JSON, unpacked."""
    rows = []
    for path in sorted(bucket.root.rglob("*")):
        key = path.relative_to(bucket.root).as_posix()
        if path.is_file() and not key.startswith("PMC3."):
            rows.append(f'"b","{key}","2026","{md5(path.read_bytes())}"')
    (tmp_path / "all.csv").write_text("\n".join(rows))
    from_server(bucket, tmp_path / "out", f"inventory={tmp_path / 'all.csv'}")
    assert len(articles_of(tmp_path / "out")) == 12  # PMC3's under metadata/ is listed, too
    assert bucket.requests["metadata/PMC1.1.json"] == 1
    assert bucket.requests["PMC1.1/PMC1.1.json"] == 0


@pytest.mark.parametrize(
    ("inventory", "message"),
    [
        ("2020-01-01", "the bucket has none under inventory-reports"),
        ("none.csv.gz", "no such file"),
        ("broken.csv.gz", "inventory=.*broken"),
        ("empty.csv", "inventory=.*empty"),
        ("foreign.csv", "lists no article"),
        ("manifest.json", "manifest.json not understood"),
        ("other.json", "Key and ETag are needed"),
    ],
)
def test_bad_inventories(bucket: Bucket, tmp_path: Path, inventory: str, message: str) -> None:
    (tmp_path / "broken.csv.gz").write_bytes(gzip.compress(b'"a","b","c","d"\n' * 99)[:-9])
    (tmp_path / "empty.csv").touch()
    (tmp_path / "foreign.csv").write_text('"b","x/y.json","2026","0"\n')
    (tmp_path / "manifest.json").write_text("[1]")
    (tmp_path / "x.csv").write_text("1,2\n")
    other = {"files": [{"key": "x.csv"}], "fileSchema": "Bucket, Size"}
    (tmp_path / "other.json").write_text(json.dumps(other))
    path = inventory if inventory[0] == "2" else str(tmp_path / inventory)
    with pytest.raises(UserError, match=message):
        from_server(bucket, tmp_path / "out", f"inventory={path}")


def test_latest_versions_like_the_obvious_way() -> None:
    rng = np.random.default_rng(0)
    pairs = sorted({(int(n), int(v)) for n, v in rng.integers(1, 40, (300, 2))})
    columns = [[n for n, _ in pairs], [v for _, v in pairs], [""] * len(pairs), [True] * len(pairs)]
    names = ("number", "version", "etag", "in_metadata")
    table = pa.table(dict(zip(names, columns, strict=True))).cast(ROWS)
    latest, others = latest_versions(table)
    obvious = dict(pairs)  # later pairs win
    assert {row["number"]: row["version"] for row in latest.to_pylist()} == obvious
    assert len(latest) + len(others) == len(pairs)


@pytest.mark.parametrize("inventory", ["", "latest"])
def test_numbers_in_a_file(bucket: Bucket, tmp_path: Path, inventory: str) -> None:
    for version in (2, 3):
        write_pmc_article(bucket.root, 30, version=version)
    write_inventory(bucket.root)
    ids = tmp_path / "ids.txt"
    ids.write_text("# mine\nPMC1\n 2  # two\npmc30\nPMC30.2\n\nPMC99\nPMC1.7\n")
    from_server(bucket, tmp_path / "out", f"ids={ids}", f"inventory={inventory}")
    assert articles_of(tmp_path / "out") == {"PMC1.1", "PMC2.1", "PMC30.2", "PMC30.3"}
    where = "inventory" if inventory else "bucket"
    reason = f"article not in the {where}"
    missing = {row[0] for row in rejects_of(tmp_path / "out") if row[4] == reason}
    assert missing == {"PMC99", "PMC1.7"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("PMC1\nx7\n", "line 2: 'x7' is no PMC number"), ("# none\n", "holds no PMC number")],
)
def test_bad_numbers(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "ids").write_text(text)
    with pytest.raises(UserError, match=message):
        read_ids(tmp_path / "ids")
    with pytest.raises(UserError, match="no such file"):
        read_ids(tmp_path / "none")


def test_a_repeated_run_keeps_to_its_list(bucket: Bucket, tmp_path: Path) -> None:
    from_server(bucket, tmp_path / "out")
    before = tree(tmp_path / "out")
    write_pmc_article(bucket.root, 50)
    write_inventory(bucket.root, "2026-11-21T01-00Z")
    bucket.requests.clear()
    from_server(bucket, tmp_path / "out")
    assert tree(tmp_path / "out") == before
    assert bucket.requests.total() == 0
    shutil.rmtree(tmp_path / "out" / "units")
    for shard in (tmp_path / "out").glob("*.tar"):
        shard.unlink()
    from_server(bucket, tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_a_list_that_is_no_list(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / WORK_LIST).write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"worklist.parquet: not readable .* delete it"):
        from_server(bucket, tmp_path)


def test_a_source_that_is_not_listed_is_one_line() -> None:
    """Folders are asked for side by side; what comes of it is no group of exceptions."""

    class Closed:
        async def folders(self, prefix: str) -> list[str]:
            raise FileProblem("HTTP 403")

    wanted = list_articles(Closed(), "s3://closed", "", ["PMC1", "PMC2"])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^s3://closed: cannot be listed: HTTP 403$"):
        asyncio.run(wanted)


def change_bucket(bucket: Bucket) -> None:
    """One article new, one with another image, one retracted, one removed, one in a new version."""
    root = bucket.root
    write_pmc_article(root, 50)
    (root / "PMC2.1" / "g1.jpg").write_bytes(encoded(picture(seed=777)))
    record = root / "PMC3.1" / "PMC3.1.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"is_retracted": True}))
    shutil.rmtree(root / "PMC4.1")
    write_pmc_article(root, 5, version=2)
    with_media(root)
    write_inventory(root, "2026-11-21T01-00Z")


@pytest.mark.parametrize("size", [3, 256])
def test_sync_fetches_what_changed(bucket: Bucket, tmp_path: Path, size: int) -> None:
    out, more = tmp_path / "out", f"articles_per_shard={size}"
    from_server(bucket, out, more)
    change_bucket(bucket)
    bucket.requests.clear()
    from_server(bucket, out, more, "sync=true")
    fetched = {key.partition("/")[0] for key in bucket.requests if key.endswith((".xml", ".jpg"))}
    assert fetched == {"PMC50.1", "PMC2.1", "PMC5.2"}
    report = json.loads((out / "sync.json").read_text())
    counts = {key: report[key] for key in ("new", "changed", "equal", "removed", "retracted")}
    assert counts == {
        "new": 1,
        "changed": 3,
        "equal": 8,
        "removed": ["PMC4.1"],
        "retracted": ["PMC3.1"],
    }
    from_server(bucket, tmp_path / "afresh", more)
    assert shards(out) == shards(tmp_path / "afresh")
    assert manifest_of(out) == manifest_of(tmp_path / "afresh")
    assert not (out / "previous").exists()
    bucket.requests.clear()
    from_server(bucket, out, more, "sync=true")
    assert not any(key.startswith(("PMC", "metadata")) for key in bucket.requests)
    assert shards(out) == shards(tmp_path / "afresh")


def test_sync_takes_over_articles_when_shards_double(bucket: Bucket, tmp_path: Path) -> None:
    out, more = tmp_path / "out", "articles_per_shard=4"
    from_server(bucket, out, more)
    for number in range(60, 90):
        write_pmc_article(bucket.root, number, 1)
    with_media(bucket.root)
    write_inventory(bucket.root, "2026-11-21T01-00Z")
    bucket.requests.clear()
    from_server(bucket, out, more, "sync=true")
    assert not [key for key in bucket.requests if key.startswith(("PMC1.", "PMC7."))]
    from_server(bucket, tmp_path / "afresh", more)
    assert shards(out) == shards(tmp_path / "afresh")


def test_sync_tries_failed_downloads_again(bucket: Bucket, tmp_path: Path) -> None:
    bucket.faults = {"PMC2.1/g1.jpg": ["500"] * 6, "metadata/PMC7.1.json": ["503"] * 6}
    out = tmp_path / "out"
    from_server(bucket, out)
    assert len(rows_of(out)) == 24 - 3
    bucket.requests.clear()
    from_server(bucket, out)
    assert bucket.requests.total() == 0
    from_server(bucket, out, "sync=true")
    images = {key.partition("/")[0] for key in bucket.requests if key.endswith(".jpg")}
    assert images == {"PMC2.1", "PMC7.1"}
    from_server(bucket, tmp_path / "well")
    assert shards(out) == shards(tmp_path / "well")


@pytest.mark.parametrize(
    ("module", "name"),
    [(sync, "write_json"), (pmc, "build"), (fetch, "parse_article"), (sync, "finish")],
)
def test_a_killed_sync_continues(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    """Whatever step it ends at, running it again ends as if nothing had happened."""

    def killed(*arguments: object, **options: object) -> None:
        raise RuntimeError("killed")

    out, more = tmp_path / "out", ("articles_per_shard=3", "retries=0")
    from_server(bucket, out, *more)
    change_bucket(bucket)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises((RuntimeError, SystemExit)):
            from_server(bucket, out, *more, "sync=true")
    bucket.requests.clear()
    from_server(bucket, out, *more, "sync=true")
    assert not bucket.requests["PMC1.1/PMC1.1.xml"]
    assert json.loads((out / "sync.json").read_text())["removed"] == ["PMC4.1"]
    from_server(bucket, tmp_path / "afresh", *more)
    assert shards(out) == shards(tmp_path / "afresh")


def test_a_folder_is_always_looked_at_anew(bucket: Bucket, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare("pmc", f"source={bucket.root}", f"out={out}", *QUICK)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    prepare("pmc", f"source={bucket.root}", f"out={out}", *QUICK)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")} == before
    change_bucket(bucket)
    prepare("pmc", f"source={bucket.root}", f"out={out}", *QUICK)
    prepare("pmc", f"source={bucket.root}", f"out={tmp_path / 'afresh'}", *QUICK)
    assert shards(out) == shards(tmp_path / "afresh")


def test_differences_like_the_obvious_way() -> None:
    rng = np.random.default_rng(1)
    sides = []
    for _ in range(2):
        numbers = sorted(rng.choice(60, 40, replace=False).tolist())
        names = [f"PMC{n}.{rng.integers(1, 3)}" for n in numbers]
        more = [{"state": str(rng.integers(2)), "record": "", "reason": ""} for _ in names]
        sides.append([{"article": n} | row for n, row in zip(names, more, strict=True)])
    old, new = ({row["article"].partition(".")[0]: row for row in rows} for rows in sides)
    tables = (pa.Table.from_pylist(rows, schema=SCHEMA) for rows in sides)
    assert differences(*tables) == {
        "new": len(new.keys() - old.keys()),
        "changed": sum(old[k] != new[k] for k in old.keys() & new.keys()),
        "equal": sum(old[k] == new[k] for k in old.keys() & new.keys()),
        "removed": sorted(old[k]["article"] for k in old.keys() - new.keys()),
    }


def test_the_frozen_list_is_a_table(bucket: Bucket, tmp_path: Path) -> None:
    from_server(bucket, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / WORK_LIST).to_pylist()
    data = (bucket.root / "metadata" / "PMC1.1.json").read_bytes()
    assert rows[0] == {
        "article": "PMC1.1",
        "state": md5(data),
        "record": "metadata/PMC1.1.json",
        "reason": "",
    }
