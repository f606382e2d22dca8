"""The stage `check`."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.data_prep.factories import manifest_of, prepare
from tests.shard_factory import make_shards
from vlp.config import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_shards(tmp_path, [3, 2], val=[2])


def test_ok(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train-00009.tar").write_bytes(b"")
    prepare("check", str(folder))
    printed = capsys.readouterr().out
    assert "OK: 3 shards, 7 samples" in printed
    assert "train-00009.tar: not in the manifest" in printed


def test_changed_byte(folder: Path) -> None:
    data = bytearray((folder / "train-00001.tar").read_bytes())
    data[1000] ^= 1
    (folder / "train-00001.tar").write_bytes(data)
    message = r"train-00001\.tar differs from its checksum in the manifest"
    with pytest.raises(UserError, match=message):
        prepare("check", str(folder))


def test_short_and_missing_shards_are_all_named(folder: Path) -> None:
    shard = folder / "train-00001.tar"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1])
    (folder / "val-00000.tar").unlink()
    message = rf"train-00001\.tar has {size - 1} bytes, .* says {size}; val-00000\.tar is missing"
    with pytest.raises(UserError, match=message):
        prepare("check", str(folder))


def test_index_rows_beyond_the_shard(folder: Path) -> None:
    table = pq.read_table(folder / "index.parquet")
    rows = table.to_pylist()
    rows[0]["image_size"] = 10**9
    pq.write_table(table.from_pylist(rows, schema=table.schema), folder / "index.parquet")
    with pytest.raises(UserError, match=r"index\.parquet points outside of train-00000\.tar"):
        prepare("check", str(folder))


def test_rows_missing_from_the_index(folder: Path) -> None:
    table = pq.read_table(folder / "index.parquet")
    pq.write_table(table.slice(1), folder / "index.parquet")
    with pytest.raises(UserError, match=r"has 2 rows for train-00000\.tar, the manifest says 3"):
        prepare("check", str(folder))


def test_index_of_another_kind(folder: Path) -> None:
    table = pq.read_table(folder / "index.parquet")
    pq.write_table(table.drop_columns(["width"]), folder / "index.parquet")
    with pytest.raises(UserError, match=r"index\.parquet lacks the columns width"):
        prepare("check", str(folder))
    (folder / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"index\.parquet is not readable"):
        prepare("check", str(folder))


def test_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="python -m data_prep index"):
        prepare("check", str(tmp_path))


def test_manifest_survives_a_copy(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    assert str(folder) not in text
    assert json.loads(text) == manifest_of(folder)
