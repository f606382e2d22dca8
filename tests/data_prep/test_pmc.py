"""The stage `pmc` over HTTP, fsspec and from folders: equal shards, faults, bounds."""

from pathlib import Path

import fsspec
import pytest

from data_prep.__main__ import main
from tests.data_prep.bucket_server import (
    IMPATIENT,
    QUICK,
    Bucket,
    from_server,
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


def test_http_fsspec_and_folders_give_equal_shards(bucket: Bucket, tmp_path: Path) -> None:
    """Also where articles are left out, files are missing or listed nowhere, JSON is missing."""
    root = bucket.root
    write_pmc_article(root, 20, license_code="TDM")
    write_pmc_article(root, 21, version=1)
    write_pmc_article(root, 21, version=2)
    write_pmc_article(root, 22)  # its JSON lists no media, so the folder is listed
    (root / "PMC3.1" / "g1.jpg").unlink()
    (root / "PMC4.1" / "PMC4.1.xml").unlink()
    (root / "PMC5.1" / "g2.jpg").write_bytes(encoded(picture(seed=99)))  # not what JSON says
    write_inventory(root)
    memory = fsspec.filesystem("memory")
    for name, data in tree(root).items():
        memory.pipe_file(f"/mirror/{name}", data)
    sources = {"http": bucket.url, "folder": str(root), "file": f"file://{root}"}
    sources["memory"] = "memory://mirror"
    made = {}
    for name, source in sources.items():
        out = tmp_path / name
        prepare("pmc", f"source={source}", f"out={out}", *QUICK, "inventory=latest")
        made[name] = shards(out)
    memory.rm("/mirror", recursive=True)
    assert len(rows_of(tmp_path / "http")) == 2 * 14 - 4
    assert manifest_of(tmp_path / "http")["rejected"] == {
        "article XML missing": 1,
        "article superseded by a later version": 1,
        "image file missing": 1,
        "licence unknown": 1,
        "wrong MD5": 1,
    }
    assert made["folder"].keys() == made["http"].keys()
    rejects = {name: set(rejects_of(tmp_path / name)) for name in sources}
    for name in ("folder", "file", "memory"):
        assert rejects[name] == rejects["http"]
        assert made[name] == made["http"]


def test_two_workers_give_the_same(bucket: Bucket, tmp_path: Path) -> None:
    from_server(bucket, tmp_path / "one", "articles_per_shard=3")
    main(
        [
            "pmc",
            f"source={bucket.url}",
            f"out={tmp_path / 'two'}",
            *QUICK,
            "articles_per_shard=3",
            "workers=2",
        ]
    )
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize("key", ["PMC2.1/g1.jpg", "PMC2.1/PMC2.1.xml", "metadata/PMC2.1.json"])
@pytest.mark.parametrize("fault", ["500", "503", "429", "reset", "cut", "stall", "slow", "wrong"])
def test_faults_that_pass(bucket: Bucket, tmp_path: Path, key: str, fault: str) -> None:
    from_server(bucket, tmp_path / "well")
    bucket.requests.clear()
    bucket.faults[key] = [fault] * 2
    from_server(bucket, tmp_path / "ill", *IMPATIENT.get(fault, ()))
    assert shards(tmp_path / "ill") == shards(tmp_path / "well")
    assert bucket.requests[key] == 3
    assert not bucket.faults[key]
    assert bucket.requests["PMC1.1/g1.jpg"] == 1


@pytest.mark.parametrize(
    ("fault", "reason", "requests"),
    [
        ("404", "image file missing", 1),
        ("403", "download failed: HTTP 403", 1),
        ("301", "download failed: HTTP 301", 1),
        ("500", "download failed: HTTP 500", 6),
        ("503", "download failed: HTTP 503", 6),
        ("reset", "download failed: connection lost", 6),
        ("cut", "download failed: reply cut short", 6),
        ("slow", "download failed: no timely reply", 6),
        ("wrong", "wrong MD5", 6),
        ("changed", "wrong MD5", 1),
        ("endless", "download failed: reply without a length", 1),
    ],
)
def test_faults_that_stay(
    bucket: Bucket, tmp_path: Path, fault: str, reason: str, requests: int
) -> None:
    """The figure is rejected with the reason, all others are there, and once."""
    bucket.faults["PMC2.1/g1.jpg"] = [fault] * 20
    from_server(bucket, tmp_path / "out", *IMPATIENT.get(fault, ()))
    stage = "figure" if fault == "404" else "fetch"
    assert rejects_of(tmp_path / "out") == [("PMC2.1", "F1", "g1.jpg", stage, reason)]
    keys = [row["key"] for row in rows_of(tmp_path / "out")]
    assert len(keys) == len(set(keys)) == 23
    asked = bucket.requests["PMC2.1/g1.jpg"]
    # aiohttp asks again by itself where a connection that it had kept open turns out to be dead.
    assert requests <= asked <= (2 * requests if fault == "reset" else requests)
    assert bucket.requests["elsewhere"] == 0


@pytest.mark.parametrize(
    ("key", "fault", "reason"),
    [
        ("PMC2.1/PMC2.1.xml", "503", "download failed: HTTP 503"),
        ("PMC2.1/PMC2.1.xml", "404", "article XML missing"),
        ("metadata/PMC2.1.json", "reset", "download failed: connection lost"),
        ("metadata/PMC2.1.json", "changed", "wrong MD5"),
    ],
)
def test_articles_that_cannot_be_had(
    bucket: Bucket, tmp_path: Path, key: str, fault: str, reason: str
) -> None:
    bucket.faults[key] = [fault] * 20
    from_server(bucket, tmp_path / "out")
    [reject] = rejects_of(tmp_path / "out")
    stage = "article" if fault == "404" else "fetch"
    assert reject == ("PMC2.1", "", "PMC2.1/PMC2.1.xml", stage, reason)
    assert len(rows_of(tmp_path / "out")) == 22


def test_many_faults_at_once(bucket: Bucket, tmp_path: Path) -> None:
    """Every file fails in one way or another before it comes; nothing is lost or doubled."""
    from_server(bucket, tmp_path / "well")
    kinds = ("500", "503", "reset", "cut", "wrong")
    keys = [key for key in bucket.requests if key.startswith(("PMC", "metadata/"))]
    bucket.faults = {key: [kinds[n % 5], kinds[n // 5 % 5]] for n, key in enumerate(keys)}
    from_server(bucket, tmp_path / "ill")
    assert not any(bucket.faults.values())
    assert shards(tmp_path / "ill") == shards(tmp_path / "well")


def test_requests_are_concurrent_and_connections_kept(bucket: Bucket, tmp_path: Path) -> None:
    bucket.latency = 0.1
    from_server(bucket, tmp_path / "out", "requests=8")
    assert bucket.requests.total() > 12 * 4
    assert bucket.connections <= 8
    assert 2 <= bucket.most_open <= 8


def test_bounds_on_bytes(bucket: Bucket, tmp_path: Path) -> None:
    large = encoded(picture(1200, 900, seed=1), "BMP")
    (bucket.root / "PMC2.1" / "g1.jpg").write_bytes(large)
    with_media(bucket.root)
    write_inventory(bucket.root)
    from_server(bucket, tmp_path / "out", "max_article_mib=2")
    assert rejects_of(tmp_path / "out") == [
        ("PMC2.1", "", "PMC2.1/PMC2.1.xml", "article", "article larger than 2,097,152 bytes")
    ]


def test_the_xml_is_fetched_only_if_the_json_passes(bucket: Bucket, tmp_path: Path) -> None:
    root = bucket.root
    write_pmc_article(root, 20, is_retracted="yes")
    write_pmc_article(root, 21, is_historical_ocr=True)
    write_pmc_article(root, 22, license_code="CC BY-NC")
    write_pmc_article(root, 23, citation="Ann Surg. 1931 May;93(5):1001")
    write_inventory(root)
    with pytest.raises(UserError, match="no sample was written"):
        from_server(bucket, tmp_path / "out", "license=commercial", "since=2000", "until=2020-06")
    for number in (20, 21, 22, 23):
        assert bucket.requests[f"metadata/PMC{number}.1.json"] == 1
        assert bucket.requests[f"PMC{number}.1/PMC{number}.1.xml"] == 0
        assert bucket.requests[f"PMC{number}.1/g1.jpg"] == 0
    reasons = manifest_of(tmp_path / "out")["rejected"]
    assert reasons == {
        "date unknown": 12,
        "article from historical OCR": 1,
        "article retracted": 1,
        "date before 2000": 1,
        "licence CC BY-NC": 1,
    }
