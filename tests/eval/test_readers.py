"""Shards, tables and CLIP_benchmark folders become the same samples; bad ones are named."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.config import DataConfig
from eval.readers import Dataset, open_dataset
from eval.tables import read_table, text, texts
from tests.eval.tiny import draw, fails, write_table
from tests.shard_factory import make_shards
from vlp.data.image import open_rgb


def open_it(root: Path, reader: str, path: str, **keys: str) -> Dataset:
    return open_dataset(DataConfig(reader=reader, path=path, **keys), root)


# --- shards ---------------------------------------------------------------------------------


def test_shards(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", (3,), test=(5, 2))
    found = open_it(tmp_path, "shards", "shards")
    assert len(found.samples) == 7
    first = found.samples[0]
    assert first.image == "A0/f0.jpg"
    assert first.rows[0]["article"] == "A0-0"
    assert first.captions[0].split()
    assert open_rgb(found.images.read(0)).size == (32, 24)
    assert found.fingerprint != open_it(tmp_path, "shards", "shards", split="train").fingerprint


def test_labels_join_on_the_image(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", (), test=(3,))
    rows = [
        {"image": "A0/f2.jpg", "finding": "mass", "question": 1},
        {"image": "A0/f2.jpg", "finding": "mass", "question": 2},
        {"image": "A0/f0.jpg", "finding": "none", "question": 3},
        {"image": "elsewhere.jpg", "finding": "cyst", "question": 4},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "truth.parquet")
    found = open_it(tmp_path, "shards", "shards", labels="truth.parquet")
    by_image = {sample.image: sample.rows for sample in found.samples}
    assert [row["question"] for row in by_image["A0/f2.jpg"]] == [1, 2]
    assert by_image["A0/f0.jpg"][0]["article"] == "A0-0", "provenance stays beside the labels"
    assert by_image["A0/f1.jpg"] == []
    assert {row["finding"] for row in found.every_row} == {"mass", "none", "cyst"}


def test_bad_labels(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", (), test=(2,))
    (tmp_path / "other.csv").write_text("image,finding\nnobody.jpg,mass\n")
    (tmp_path / "columns.csv").write_text("picture,finding\nx.jpg,mass\n")
    with fails("other.csv: no row belongs to an image of"):
        open_it(tmp_path, "shards", "shards", labels="other.csv")
    with fails("columns.csv: no column 'image' to join on; it has finding, picture"):
        open_it(tmp_path, "shards", "shards", labels="columns.csv")
    with fails("absent.csv: no such table"):
        open_it(tmp_path, "shards", "shards", labels="absent.csv")
    with fails("no samples in split 'val'; it has test"):
        open_it(tmp_path, "shards", "shards", split="val")


# --- tables ---------------------------------------------------------------------------------


def test_table_groups_the_rows_of_an_image(tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "split": "test", "caption": ["one", "two"]},
        {"image": "b.png", "split": "train", "caption": "three"},
        {"image": "a.png", "split": "test", "caption": "four"},
    ]
    write_table(tmp_path, rows)
    found = open_it(tmp_path, "table", "index.jsonl")
    assert [(s.image, s.captions) for s in found.samples] == [("a.png", ["one", "two", "four"])]
    assert len(found.every_row) == 3
    assert open_rgb(found.images.read(0)).size == draw(0).size


def test_formats_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "id": "007"}, {"image": "b.png", "id": "8"}]
    with (tmp_path / "t.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["image", "id"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "t.tsv").write_text("image\tid\na.png\t007\nb.png\t8\n")
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for kind in ("csv", "tsv", "jsonl", "parquet"):
        assert read_table(tmp_path / f"t.{kind}") == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", b"", "t.xlsx: not a table; there are .csv, .tsv, .json, .jsonl, .parquet"),
        ("t.csv", b"image\n\xff\xfe\n", "t.csv: not UTF-8 at byte"),
        ("t.csv", b"image,label\na.png\n", "row 1 doesn't have as many cells as the header"),
        ("t.csv", b"image,label\n", "t.csv: no rows"),
        ("t.jsonl", b'{"image": 1}\n{"image"\n', "t.jsonl: not readable as a table: line 2: "),
        ("t.jsonl", b"[1]\n", "line 1: not an object of columns"),
        ("t.parquet", b"PAR1 no", "t.parquet: not readable as a table"),
    ],
)
def test_bad_tables(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with fails(message):
        read_table(tmp_path / name)


def test_bad_columns_and_splits(tmp_path: Path) -> None:
    write_table(tmp_path, [{"image": "a.png", "label": "x"}])
    with fails("no column 'split'; it has image, label; set split='' to take all rows"):
        open_it(tmp_path, "table", "index.jsonl")
    with fails("no column 'file'; it has image, label"):
        open_it(tmp_path, "table", "index.jsonl", image_column="file", split="")
    write_table(tmp_path, [{"image": "a.png", "split": "train"}], "s.jsonl")
    with fails("no rows in split 'test'; it has train"):
        open_it(tmp_path, "table", "s.jsonl")


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png", ""])
def test_images_stay_inside_their_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "t.jsonl").write_text(json.dumps({"image": path}) + "\n")
    with fails(f"image path '{path}' is not inside"):
        open_it(tmp_path, "table", "set/t.jsonl", split="")


def test_image_root(tmp_path: Path) -> None:
    draw(0).save(tmp_path / "a.png")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "t.csv").write_text("image\na.png\n")
    found = open_it(tmp_path, "table", "tables/t.csv", split="", image_root=".")
    assert open_rgb(found.images.read(0)).size == draw(0).size


def test_images_shared_between_splits_are_noted(tmp_path: Path) -> None:
    names = [("a.png", "test"), ("a.png", "train"), ("b.png", "test"), ("c.png", "train")]
    write_table(tmp_path, [{"image": image, "split": split} for image, split in names])
    found = open_it(tmp_path, "table", "index.jsonl")
    assert found.notes == ["1 of 2 images of split 'test' are in other splits too"]


def test_cells(tmp_path: Path) -> None:
    assert texts(["a", "", None, " b "]) == ["a", "b"]
    assert texts('["a", "b"]') == ["a", "b"]
    assert texts("[A] first panel") == ["[A] first panel"]
    assert texts(None) == []
    assert text(float("nan")) == ""


# --- CLIP_benchmark ---------------------------------------------------------------------------


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            source = path.with_name("member")
            source.write_bytes(content)
            tar.add(source, name)
    (path.parent / "nshards.txt").write_text("1\n")


def npy(*values: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(values))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"x", "a.cls": b"2"}, "0.tar/a.cls is '2', not one of the 2 classes"),
        ({"a.png": b"x", "a.cls": b"one"}, "0.tar/a.cls is 'one', not one of the 2 classes"),
        ({"a.png": b"x", "a.json": b"1"}, "none of .cls, .npy and .txt, but json, png"),
        ({"a.png": b"x", "a.npy": b"1"}, "0.tar/a.npy: "),
        ({"a.png": b"x", "a.npy": npy(1, 0, 1)}, "a.npy: int64 [3] instead of a number for each"),
        ({"a.png": b"x", "a.npy": npy(1, 2)}, "a.npy: not 2 numbers that are 0 or 1"),
        ({"a.png": b"x", "a.npy": npy(1, 0)[:-8]}, "a.npy: not 2 numbers that are 0 or 1"),
        ({"a.png": b"x", "a.npy": npy("x", None)}, "a.npy: object [2] instead of a number"),
        ({"a.png": b"x", "a.txt": b"\xff"}, "0.tar/a.txt is not UTF-8"),
        ({"a.txt": b"caption"}, "no images in 1 shards"),
    ],
)
def test_bad_clip_benchmark_samples(tmp_path: Path, members: dict, message: str) -> None:
    write_tar(tmp_path / "test" / "0.tar", members)
    (tmp_path / "classnames.txt").write_text("one\ntwo\n")
    with fails(message):
        open_it(tmp_path, "clip_benchmark", ".")


def test_bad_clip_benchmark_folders(tmp_path: Path) -> None:
    with fails("nshards.txt: missing; set data_root or the suite's path"):
        open_it(tmp_path, "clip_benchmark", ".")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "nshards.txt").write_text("two")
    with fails("nshards.txt: 'two' is not a number of shards"):
        open_it(tmp_path, "clip_benchmark", ".")
    (tmp_path / "test" / "nshards.txt").write_text("1")
    with fails("0.tar: missing, but nshards.txt counts it"):
        open_it(tmp_path, "clip_benchmark", ".")
    (tmp_path / "test" / "0.tar").write_bytes(b"not a tar" * 100)
    with fails("0.tar: not readable as a tar"):
        open_it(tmp_path, "clip_benchmark", ".")
