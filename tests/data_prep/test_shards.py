"""The shard format: what we write, other readers of WebDataset read."""

import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shards import Sample, ShardWriter, make_key, read_manifest, unique_keys
from tests.data_prep.factories import manifest_of, rows_of
from tests.shard_factory import make_samples, make_shards
from vlp.config import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), [7, 1, 4], val=[3], test=[2])


def test_offsets_point_at_what_tarfile_reads(folder: Path) -> None:
    seen = 0
    for row in rows_of(folder):
        with tarfile.open(folder / row["shard"]) as tar:
            for kind, extension in (("image", row["image_ext"]), ("text", "txt"), ("json", "json")):
                file = tar.extractfile(f"{row['key']}.{extension}")
                assert file is not None
                fd = os.open(folder / row["shard"], os.O_RDONLY)
                try:
                    data = os.pread(fd, row[f"{kind}_size"], row[f"{kind}_offset"])
                finally:
                    os.close(fd)
                assert data == file.read()
                seen += 1
    assert seen == 17 * 3


def test_index_is_sorted_and_counts_agree(folder: Path) -> None:
    rows, manifest = rows_of(folder), manifest_of(folder)
    order = [(row["shard"], row["image_offset"]) for row in rows]
    assert order == sorted(order)
    assert manifest["samples"] == len(rows) == 17
    assert manifest["splits"] == {"train": 12, "val": 3, "test": 2}
    assert [shard["samples"] for shard in manifest["shards"]] == [2, 7, 1, 4, 3]


def test_webdataset_iterates_shards(folder: Path) -> None:
    urls = [str(path) for path in sorted(folder.glob("train-*.tar"))]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [s["__key__"] for s in samples] == [r["key"] for r in rows_of(folder)][2:14]
    for sample in samples:
        assert sample["jpg"].size == (sample["json"]["width"], sample["json"]["height"])
        assert isinstance(sample["txt"], str)


def test_open_clip_conventions(folder: Path) -> None:
    """The stages of open_clip_train/data.py's `get_wds_dataset`; its module needs pandas."""
    images = ("png", "jpg", "jpeg", "webp")
    urls = [str(path) for path in sorted(folder.glob("train-*.tar"))]
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(urls),
        wds.tarfile_to_samples(),
        wds.select(lambda s: "txt" in s and any(extension in s for extension in images)),
        wds.decode("pilrgb"),
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),
        wds.to_tuple("image", "text"),
    )
    pairs = list(pipeline)
    assert len(pairs) == 12
    assert all(image.mode == "RGB" and text for image, text in pairs)


def test_headers_carry_no_time_and_no_owner(folder: Path) -> None:
    with tarfile.open(folder / "train-00000.tar") as tar:
        for info in tar.getmembers():
            owner = (info.uid, info.gid, info.uname, info.gname)
            assert (info.mtime, *owner, info.mode) == (0, 0, 0, "", "", 0o644)
    assert (folder / "train-00000.tar").stat().st_size % tarfile.RECORDSIZE == 0


def test_equal_samples_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    again = make_shards(tmp_path / "again", [7, 1, 4], val=[3], test=[2])
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def _write_all(writer: ShardWriter, samples: list[Sample]) -> None:
    for sample in samples:
        writer.write(sample)


def test_error_leaves_nothing_behind(tmp_path: Path) -> None:
    first, second = make_samples(2)
    with (
        pytest.raises(ValueError, match=r"occurs twice in train-00000\.tar"),
        ShardWriter(tmp_path / "train-00000.tar", "train") as writer,
    ):
        _write_all(writer, [first, second, first])
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.lists(st.text(max_size=120), min_size=1, max_size=2).map(tuple), max_size=8))
def test_keys_are_legal_and_unique(names: list[tuple[str, ...]]) -> None:
    keys = unique_keys(names)
    assert len(set(keys)) == len(names)
    for key in keys:
        assert 1 <= len(key) <= 80
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def test_keys_stay_readable() -> None:
    assert make_key("PMC9000001.1", "F1") == "PMC9000001-1_F1"
    assert unique_keys([("a.b",), ("c",), ("a-b",)])[1] == "c"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "manifest.json: missing"),
        ("{", "not readable as JSON"),
        ("[]", "not a manifest"),
        ('{"format": "biovlp-shards", "version": 2}', "version 2, this program reads 1"),
    ],
)
def test_bad_manifest_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="pandas is not installed")
def test_shards_are_made_without_importing_pandas() -> None:
    """Which pyarrow would import in each worker; and what needs pandas still finds it."""
    script = """
import sys
from data_prep.shards import index_table
import pyarrow as pa
assert "data_prep.arrow" in sys.modules
index_table([])
table = pa.Table.from_pydict({"a": ["x", None]})
assert "pandas" not in sys.modules
assert table.to_pandas()["a"].tolist()[0] == "x"
import pandas
assert pa.Table.from_pandas(pandas.DataFrame({"a": [1, 2]})).to_pydict() == {"a": [1, 2]}
"""
    subprocess.run([sys.executable, "-c", script], check=True)
