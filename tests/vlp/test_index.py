"""Shard folders: what is read equals what was written, and every way in which one can be wrong."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main as run_stage
from tests.shard_factory import jpeg, make_shards
from vlp.config import UserError
from vlp.data.index import open_shards, splits


def test_reads_every_member_by_offset(tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "s", (4, 1, 3), val=(2,), test=(2,))
    shards = open_shards(folder, "train", verify="sha256")
    assert splits(folder) == ["test", "train", "val"]
    assert len(shards) == 8
    assert shards.shard_sizes == (4, 1, 3)
    index = 0
    for name in shards.shards:
        with tarfile.open(folder / name) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
        for key in sorted({name.split(".")[0] for name in members}):
            raw = shards.read(index)
            assert raw.key == key == shards.key(index)
            assert raw.image == members[f"{key}.jpg"]
            assert raw.caption == members[f"{key}.txt"]
            assert shards.caption(index) == raw.caption.decode()
            index += 1
    assert index == 8


def test_captions_inside_json(tmp_path: Path) -> None:
    """Tars of others may hold the caption in JSON alone; `data_prep index` points there."""
    folder = tmp_path / "others"
    folder.mkdir()
    members = [("a.jpg", jpeg(np.random.default_rng(0))), ("a.json", b'{"caption": "5 \u00b5m"}')]
    members += [("b.jpg", members[0][1]), ("b.json", b'{"text": "two"}')]
    with tarfile.open(folder / "0.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    run_stage(["index", str(folder)])
    shards = open_shards(folder, "train")
    assert [shards.read(i).caption.decode() for i in range(2)] == ["5 µm", "two"]
    assert shards.caption(0) == "5 µm"


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such shard folder"):
        open_shards(tmp_path / "absent", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no manifest.json; if it holds tars: `python -m"):
        open_shards(tmp_path / "empty", "train")
    folder = make_shards(tmp_path / "s", (3,))
    with pytest.raises(UserError, match="no samples in split 'dev'; it has train"):
        open_shards(folder, "dev")
    change(folder / "manifest.json", version=99)
    with pytest.raises(UserError, match="version 99, this code reads"):
        open_shards(folder, "train")
    (folder / "manifest.json").write_text("[")
    with pytest.raises(UserError, match="not a manifest of shards"):
        open_shards(folder, "train")


def test_missing_or_wrong_index(tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "s", (3,))
    (folder / "index.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"index.parquet: not readable as Parquet"):
        open_shards(folder, "train")
    (folder / "index.parquet").unlink()
    with pytest.raises(UserError, match=r"index.parquet: missing; run `python -m data_prep index"):
        open_shards(folder, "train")


def test_shards_that_differ_from_the_manifest(tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "s", (3, 3))
    shard = folder / "train-00001.tar"
    data = shard.read_bytes()
    flipped = bytearray(data)
    flipped[700] ^= 1
    shard.write_bytes(flipped)
    open_shards(folder, "train", verify="size")  # of the same size: only the checksum sees it
    with pytest.raises(UserError, match=r"train-00001.tar: SHA-256 .* the manifest says"):
        open_shards(folder, "train", verify="sha256")
    shard.write_bytes(data[:-512])
    with pytest.raises(UserError, match=r"train-00001.tar: \d+ bytes, the manifest says"):
        open_shards(folder, "train")
    shard.unlink()
    with pytest.raises(UserError, match=r"train-00001.tar: the manifest lists this shard"):
        open_shards(folder, "train")


def test_a_shard_cut_while_it_is_read(tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "s", (3,))
    shards = open_shards(folder, "train")
    with (folder / "train-00000.tar").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match=r"train-00000.tar: ends inside the member"):
        shards.read(2)
