"""Shards at a URL: the samples of the folder, over HTTP with faults, through a bounded cache."""

import errno
import json
import os
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from tests.shard_factory import make_samples, make_shards, write_shards
from tests.vlp.shard_server import PAUSE, ShardServer, serve
from tests.vlp.tiny import make_tokenizer
from vlp.config import UserError
from vlp.data import cache as cache_module
from vlp.data import remote
from vlp.data.cache import Cache
from vlp.data.index import CacheConfig, ShardFolder, open_shards, splits
from vlp.data.loader import Batch, DataConfig, Mixture, RankPositions, SourceConfig, TrainSamples
from vlp.data.loader import batches as make_batches
from vlp.data.storage import Span

SIZES = (7, 1, 12)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShardServer]:
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01, 0.01))
    make_shards(tmp_path / "shards", SIZES, val=(5,), width=60, height=48)
    make_tokenizer(tmp_path / "tok")
    with serve(tmp_path / "shards") as running:
        yield running


def everything(shards: ShardFolder) -> list[tuple[str, bytes, bytes]]:
    return [tuple(raw) for raw in shards.read_many(range(len(shards)))]


def load(where: str, tokenizer: Path, workers: int = 0, **keys: object) -> list[Batch]:
    """Two steps."""
    data = DataConfig(sources={"s": SourceConfig(path=where)}, workers=workers, **keys)
    samples = TrainSamples(Mixture.open(data, 3), make_tokenizer(tokenizer), 32, (0.5, 1))
    return list(make_batches(samples, RankPositions(0, 2, 8, 0, 1), data))


def test_the_same_samples_as_from_a_folder(server: ShardServer) -> None:
    local = open_shards(server.root, "train")
    there = open_shards(server.url, "train", verify="sha256")
    assert splits(server.url) == ["train", "val"]
    assert there.shards == local.shards
    assert everything(there) == everything(local)
    assert there.read(13) == local.read(13)
    assert list(there.captions(range(20))) == list(local.captions(range(20)))
    assert there.caption(3) == local.caption(3)


def test_any_file_system_that_is_not_asynchronous(tmp_path: Path) -> None:
    """fsspec's in-memory file system stands for sftp, ftp, smb and the like."""
    folder = make_shards(tmp_path / "s", (4, 2))
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/shards/", recursive=True)
    assert everything(open_shards("memory://shards", "train", "sha256")) == everything(
        open_shards(folder, "train")
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_from_a_url(server: ShardServer, tmp_path: Path, workers: int) -> None:
    """Also in forked workers, whose parent has used the network before."""
    want = load(str(server.root), tmp_path / "tok")
    for name in os.listdir(server.root):
        server.faults[name] = ["503", "reset", "short", "cut"]  # passing ones
    got = load(server.url, tmp_path / "tok", workers)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.keys == theirs.keys
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.text.input_ids, theirs.text.input_ids)


def test_a_batch_is_read_in_few_requests_at_the_same_time(
    server: ShardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = open_shards(server.url, "train")
    server.requests.clear()
    everything(shards)
    assert len(server.gets()) == 3  # neighbours share a request: one per shard
    monkeypatch.setattr(remote, "MERGE", 1024)  # less than a sample's JSON with its header
    server.requests.clear()
    for name in shards.shards:
        server.faults[name] = ["always", "pause"]
    start = time.perf_counter()
    everything(shards)
    assert len(server.gets()) == 20  # image and caption of a sample still share one
    assert server.most_open > 5
    assert time.perf_counter() - start < 20 * PAUSE


def test_one_request_of_a_sample_is_not_larger_than_the_sample(server: ShardServer) -> None:
    shards = open_shards(server.url, "train")
    server.requests.clear()
    raw = shards.read(9)
    (wanted,) = server.gets()
    first, last = (int(end) for end in wanted.removeprefix("bytes=").split("-"))
    assert last + 1 - first <= len(raw.image) + len(raw.caption) + 1024


def test_merging_never_joins_files_nor_grows_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MERGE", 10)
    monkeypatch.setattr(remote, "LONGEST", 100)
    spans = [
        Span("a", 0, 50),
        Span("a", 20, 10),  # within the one before
        Span("a", 60, 40),  # 10 after it
        Span("a", 105, 20),  # near, but 125 bytes together
        Span("a", 136, 5),  # 11 after it
        Span("b", 140, 5),
        Span("b", 150, 500),  # alone longer than LONGEST
    ]
    asked = [(request, members) for request, members in remote.merge(spans)]
    assert [request for request, _ in asked] == [
        ("a", 0, 100), ("a", 105, 20), ("a", 136, 5), ("b", 140, 5), ("b", 150, 500),
    ]  # fmt: skip
    assert [span for _, members in asked for span in members] == spans


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("503", r"train-00002.tar: HTTP status 503; given up after 4 tries"),
        ("reset", r"train-00002.tar: \w+: .*; given up after 4 tries"),
        ("cut", r"train-00002.tar: ClientPayloadError: .*; given up after 4 tries"),
        ("short", r"train-00002.tar: ends inside the member at byte \d+; given up after 4 tries"),
        ("slow", r"train-00002.tar: no answer within 0.2 s; given up after 4 tries"),
        ("403", r"train-00002.tar: access denied"),
        ("404", r"train-00002.tar: is not there; put it back"),
    ],
)
def test_faults_that_stay(
    server: ShardServer, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    monkeypatch.setattr(remote, "TIMEOUT", 0.2)
    shards = open_shards(server.url, "train")
    server.faults["train-00002.tar"] = ["always", fault]
    server.requests.clear()
    with pytest.raises(UserError, match=message):
        everything(shards)
    tried = len(server.gets("train-00002.tar"))
    # aiohttp asks once more by itself where a connection that was kept open is reset.
    assert tried == (1 if fault in ("403", "404") else 8 if fault == "reset" else 4)
    # The others are as well as ever.
    assert shards.read(0).image


def test_a_shard_that_vanishes_stops_a_run_with_workers(
    server: ShardServer, tmp_path: Path
) -> None:
    data = DataConfig(sources={"s": SourceConfig(path=server.url)}, workers=1, prefetch=1)
    samples = TrainSamples(Mixture.open(data, 3), make_tokenizer(tmp_path / "tok"), 32, (0.5, 1))
    (server.root / "train-00002.tar").unlink()
    with pytest.raises(
        UserError, match=r"^http.*train-00002.tar: is not there; put it back[^\n]*$"
    ):
        list(make_batches(samples, RankPositions(0, 20, 8, 0, 1), data))


def test_what_the_server_has_not(server: ShardServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no samples in split 'dev'; it has train, val"):
        open_shards(server.url, "dev")
    shard = server.root / "train-00001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole + bytes(512))
    with pytest.raises(UserError, match=r"train-00001.tar: \d+ bytes, the manifest says"):
        open_shards(server.url, "train")
    shard.write_bytes(whole[:-1] + b"!")
    with pytest.raises(UserError, match=r"train-00001.tar: SHA-256 .* the manifest says"):
        open_shards(server.url, "train", "sha256")
    shard.unlink()
    with pytest.raises(UserError, match=r"train-00001.tar: is not there"):
        open_shards(server.url, "train")
    (server.root / "index.parquet").unlink()
    with pytest.raises(UserError, match=r"index.parquet: missing"):
        open_shards(server.url, "train")
    with pytest.raises(UserError, match=r"/absent: no manifest.json"):
        open_shards(f"{server.url}/absent", "train")
    with pytest.raises(UserError, match="gopher://x"):
        open_shards("gopher://x", "train")


def test_a_busy_server_is_not_taken_for_an_empty_one(server: ShardServer) -> None:
    """fsspec's HTTP `info` says FileNotFoundError for every failure."""
    server.faults["manifest.json"] = ["503"] * 3  # HEAD and GET of one `info`, and the next HEAD
    assert splits(server.url) == ["train", "val"]
    server.faults["manifest.json"] = ["always", "500"]
    with pytest.raises(UserError, match=r"manifest.json: HTTP status 500; given up after 4 tries"):
        splits(server.url)


def test_a_server_without_ranges(server: ShardServer) -> None:
    shards = open_shards(server.url, "train")
    server.ranges = False
    with pytest.raises(UserError, match="does not honour ranged requests"):
        shards.read(0)


# --- cache -----------------------------------------------------------------------------------


def cached(server: ShardServer, folder: Path, limit: int = 10**9) -> ShardFolder:
    return open_shards(server.url, "train", cache=CacheConfig(str(folder), limit))


def test_the_second_epoch_asks_for_nothing(server: ShardServer, tmp_path: Path) -> None:
    first = everything(cached(server, tmp_path / "cache"))
    again = cached(server, tmp_path / "cache")
    server.requests.clear()
    assert everything(again) == first == everything(open_shards(server.root, "train"))
    assert server.gets() == []
    assert again.caption(2) == first[2][2].decode()
    assert server.gets() == []


def test_workers_share_the_cache(server: ShardServer, tmp_path: Path) -> None:
    keys = {"cache": str(tmp_path / "cache")}
    want = load(server.url, tmp_path / "tok", 2, **keys)
    server.requests.clear()
    got = load(server.url, tmp_path / "tok", 1, **keys)
    assert all(torch.equal(a.images, b.images) for a, b in zip(got, want, strict=True))
    assert server.gets(".tar") == []


def test_damaged_copies_are_fetched_again(server: ShardServer, tmp_path: Path) -> None:
    """A flipped bit, a torn write, a file cut short: each costs a request and nothing else."""
    shards = cached(server, tmp_path / "cache")
    want = everything(shards)
    copies = sorted((tmp_path / "cache").glob("*.spans"))
    assert len(copies) == 3
    for copy in copies:
        data = bytearray(copy.read_bytes())
        data[len(data) // 2] ^= 1
        copy.write_bytes(data[:-200])
    server.requests.clear()
    assert everything(cached(server, tmp_path / "cache")) == want
    assert server.gets(".tar")
    server.requests.clear()
    assert everything(cached(server, tmp_path / "cache")) == want
    assert server.gets(".tar") == []


def test_a_shard_that_was_written_again_has_another_copy(
    server: ShardServer, tmp_path: Path
) -> None:
    everything(cached(server, tmp_path / "cache"))
    for name in os.listdir(server.root):
        (server.root / name).unlink()
    write_shards(server.root, [("train", make_samples(20, seed=5, width=60, height=48))])
    assert everything(cached(server, tmp_path / "cache")) == everything(
        open_shards(server.root, "train")
    )


def disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.glob("*"))


def big_folder(root: Path, seed: int = 0) -> Path:
    """60 samples of about 30 kB."""
    return write_shards(root, [("train", make_samples(60, seed, width=150, height=150))])


def test_the_bound_holds_and_the_rest_comes_from_the_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "RECOUNT", 64 * 1024)
    monkeypatch.setattr(cache_module, "PAUSE", 3600.0)  # however slow the machine: one look
    with serve(big_folder(tmp_path / "s")) as server:
        limit = 400_000
        shards = cached(server, tmp_path / "cache", limit)
        want = everything(open_shards(server.root, "train"))
        total = 0
        for _ in range(3):
            server.requests.clear()
            server.sent = 0
            assert [tuple(shards.read(i)) for i in range(60)] == want
            total, before = server.sent, total
        assert limit / 2 < disk(tmp_path / "cache") <= limit + 64 * 1024
        # A fixed share is here in every epoch: a cache that dropped the oldest would have none.
        assert before == total
        assert 5 < len(server.gets()) < 55


def test_copies_of_other_folders_make_room_when_nobody_used_them_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "RECOUNT", 64 * 1024)
    monkeypatch.setattr(cache_module, "PAUSE", 0.0)
    folder, limit = tmp_path / "cache", 400_000
    with serve(big_folder(tmp_path / "old")) as server:
        old = cached(server, folder, limit)
        for i in range(60):
            old.read(i)
    (copy,) = folder.glob("*.spans")
    with serve(big_folder(tmp_path / "new", seed=1)) as server:
        new = cached(server, folder, limit)
        for i in range(60):
            new.read(i)
        assert copy.exists()
        full = disk(folder)
        os.utime(copy, (0, 0))
        for i in range(60):
            new.read(i)
        assert not copy.exists()
        assert disk(folder) <= limit + 64 * 1024
        assert full <= limit + 2 * 64 * 1024
        server.requests.clear()
        assert everything(new) == everything(open_shards(server.root, "train"))
        assert len(server.gets()) < 55


def test_a_full_disk_ends_caching_and_nothing_else(
    server: ShardServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    shards = cached(server, tmp_path / "cache")
    monkeypatch.setattr(cache_module.os, "pwrite", full)
    with pytest.warns(RuntimeWarning, match="No space left on device; this process goes on"):
        got = everything(shards)
    assert got == everything(open_shards(server.root, "train"))


def test_a_record_that_only_looks_right(tmp_path: Path) -> None:
    """Length, checksum and mark must all fit; holes and neighbours don't."""
    cache = Cache(tmp_path, 10**6, {"a.tar": "f" * 64})
    cache.put("a.tar", 512, b"sample")
    assert cache.get("a.tar", 512, 6) == b"sample"
    assert cache.get("a.tar", 512, 5) is None
    assert cache.get("a.tar", 511, 6) is None
    assert cache.get("a.tar", 2048, 6) is None
    (copy,) = tmp_path.iterdir()
    with copy.open("r+b") as file:
        file.seek(512 - 16)
        file.write(struct.pack("<4s", b"none"))
    assert cache.get("a.tar", 512, 6) is None


def test_other_peoples_tars_with_caption_and_image_far_apart(tmp_path: Path) -> None:
    folder = big_folder(tmp_path / "s")
    shards = open_shards(folder, "train")
    far = shards.spans.copy()
    far[:, 2:] = far[::-1, 2:]  # each image with the caption of another sample
    with serve(folder) as server:
        there = cached(server, tmp_path / "cache")
        there.spans[:] = far
        local = open_shards(folder, "train")
        local.spans[:] = far
        want = everything(local)
        assert want[0][2] == shards.read(59).caption
        assert everything(there) == want
        server.requests.clear()
        assert everything(there) == want
        assert server.gets() == []


def test_manifest_of_the_future(server: ShardServer) -> None:
    path = server.root / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(UserError, match="version 99, this code reads"):
        open_shards(server.url, "train")
    shutil.copy(path, server.root / "index.parquet")
    with pytest.raises(UserError, match="version 99"):
        splits(server.url)
