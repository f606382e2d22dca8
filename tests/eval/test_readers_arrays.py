"""Arrays, Hugging Face files, folders and boxes: same pixels, and damage is named."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.config import DataConfig
from eval.readers import Dataset, open_dataset
from eval.tables import read_table
from tests.eval.layouts import arrow, document, encoded, parquet, picture
from tests.eval.tiny import draw, fails


def open_it(root: Path, reader: str, path: str, **keys: object) -> Dataset:
    return open_dataset(DataConfig(reader=reader, path=path, **keys), root)


def pixels(found: Dataset, index: int) -> np.ndarray:
    with Image.open(io.BytesIO(found.images.read(index))) as image:
        return np.asarray(image)


# --- npz ------------------------------------------------------------------------------------


def arrays(shape: tuple[int, ...], labels: np.ndarray | None = None) -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(shape[0])[:, None] % 3 if labels is None else labels
    return {"test_images": images, "test_labels": labels}


@pytest.mark.parametrize("shape", [(5, 8, 6), (5, 8, 6, 3)])
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz_gives_the_pixels_back(tmp_path: Path, shape: tuple[int, ...], write: object) -> None:
    given = arrays(shape)
    write(tmp_path / "a.npz", **given)  # type: ignore[operator]
    found = open_it(tmp_path, "npz", "a.npz")
    for i in (3, 0, 4):
        assert np.array_equal(pixels(found, i), given["test_images"][i])
    assert [s.rows[0]["label"] for s in found.samples] == ["0", "1", "2", "0", "1"]
    copy = pickle.loads(pickle.dumps(found.images))  # as a worker gets it
    assert copy.read(2) == found.images.read(2)
    assert len(pickle.dumps(found.images)) < 2000, "pixels don't travel"


def test_what_is_unpacked_is_deleted(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", **arrays((5, 8, 6)))
    found = open_it(tmp_path, "npz", "a.npz")
    found.images.read(0)
    folder = Path(found.images.folder)  # type: ignore[attr-defined]
    assert (folder / "array.npy").is_file()
    del found
    assert not folder.exists()


def lying_npz(path: Path) -> None:
    """A header that claims more images than the member holds."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 6)}
    )
    np.savez(path, test_labels=np.zeros((5, 1), np.uint8))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("test_images.npy", buffer.getvalue() + bytes(240))


def test_bad_npz(tmp_path: Path) -> None:
    with fails("a.npz: no such file; set data_root"):
        open_it(tmp_path, "npz", "a.npz")
    (tmp_path / "a.npz").write_bytes(b"PK no")
    with fails("a.npz: not readable as npz: "):
        open_it(tmp_path, "npz", "a.npz")
    np.savez(tmp_path / "a.npz", **arrays((5, 8, 6)))
    with fails("a.npz: no split 'val'; it has test"):
        open_it(tmp_path, "npz", "a.npz", split="val")
    np.savez(tmp_path / "a.npz", **arrays((5, 8, 6), np.zeros((4, 1), int)))
    with fails("split 'test': 4 labels for 5 images"):
        open_it(tmp_path, "npz", "a.npz")
    np.savez(tmp_path / "a.npz", **{**arrays((5, 8, 6)), "test_images": np.zeros((5, 8, 6))})
    with fails("test_images.npy: 8-bit images [N, H, W] or [N, H, W, 3] are read, not float64"):
        open_it(tmp_path, "npz", "a.npz")
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "a.npz", **{**arrays((5, 8, 6)), "test_labels": objects})
    with fails("holds Python objects, which are never unpickled"):
        open_it(tmp_path, "npz", "a.npz")
    (tmp_path / "a.npz").unlink()
    lying_npz(tmp_path / "a.npz")
    with fails("bytes don't fit the shape [1099511627776, 8, 6]"):
        open_it(tmp_path, "npz", "a.npz")


# --- Hugging Face ---------------------------------------------------------------------------


def rows(count: int = 5) -> list[dict]:
    return [
        {"image": {"bytes": encoded(i % 3), "path": f"{i % 3}.png"}, "question": f"q{i}"}
        for i in range(count)
    ]


@pytest.mark.parametrize("write", [parquet, arrow])
def test_equal_images_are_one(tmp_path: Path, write: object) -> None:
    suffix = write.__name__  # type: ignore[attr-defined]
    write(tmp_path / f"set/data/test-00000-of-00002.{suffix}", rows()[:3])  # type: ignore[operator]
    write(tmp_path / f"set/data/test-00001-of-00002.{suffix}", rows()[3:])  # type: ignore[operator]
    apart = open_it(tmp_path, "huggingface", "set")
    assert len(apart.samples) == 5
    assert apart.samples[4].image == "test/000004", "paths that repeat tell nothing apart"
    found = open_it(tmp_path, "huggingface", "set", same_images=True)
    assert [s.image for s in found.samples] == ["0.png", "1.png", "2.png"]
    assert [r["question"] for r in found.samples[1].rows] == ["q1", "q4"]
    for i in (2, 0, 1):
        assert found.images.read(i) == encoded(i)
    copy = pickle.loads(pickle.dumps(found.images))
    assert copy.read(1) == encoded(1)
    assert found.fingerprint != apart.fingerprint


@pytest.mark.parametrize(
    "name",
    [
        "data/test-00000-of-00001.parquet",
        "data/test-00000-of-00001-0a1b2c3d.parquet",
        "default/test/0000.parquet",
        "test/data-00000-of-00001.parquet",
        "set-test.parquet",
        "test.parquet",
    ],
)
def test_names_of_splits(tmp_path: Path, name: str) -> None:
    parquet(tmp_path / "set" / name, rows(2))
    parquet(tmp_path / "set" / name.replace("test", "train"), rows(4))
    assert len(open_it(tmp_path, "huggingface", "set").samples) == 2
    assert len(open_it(tmp_path, "huggingface", "set", split="").samples) == 6


def test_bad_huggingface_files(tmp_path: Path) -> None:
    parquet(tmp_path / "set/test.parquet", rows())
    with fails("no .parquet or .arrow files of split 'val'"):
        open_it(tmp_path, "huggingface", "set", split="val")
    with fails("test.parquet: no column 'picture'; it has image, question; set image_column"):
        open_it(tmp_path, "huggingface", "set", image_column="picture")
    with fails("test.parquet: no column 'answer'; it has image, question"):
        open_it(tmp_path, "huggingface", "set", columns=["answer"])
    parquet(tmp_path / "none/test.parquet", [{"image": {"bytes": None, "path": "a.png"}}])
    with pytest.raises(OSError, match=r"test\.parquet has no bytes for this image"):
        open_it(tmp_path, "huggingface", "none").images.read(0)
    for suffix in ("parquet", "arrow"):
        (tmp_path / f"bad.{suffix}").write_bytes(b"PAR1 ARROW1 no")
        with fails(f"bad.{suffix}: not readable: "):
            open_it(tmp_path, "huggingface", f"bad.{suffix}")


# --- folders, COCO, tables ------------------------------------------------------------------


def test_folders(tmp_path: Path) -> None:
    for name in ("test/b/1.PNG", "test/a/x/2.png", "train/a/3.png"):
        picture(tmp_path / "set" / name, 1)
    (tmp_path / "set/test/a/notes.txt").write_text("x")
    found = open_it(tmp_path, "folders", "set")
    assert [(s.image, s.rows[0]["label"]) for s in found.samples] == [
        ("test/a/x/2.png", "a"),
        ("test/b/1.PNG", "b"),
    ]
    assert found.notes == ["1 files in the folders of classes are no images"]
    assert np.array_equal(pixels(found, 0), np.asarray(draw(1)))
    with fails("set/val: no such split; "):
        open_it(tmp_path, "folders", "set", split="val")
    with fails("other: no such folder; set data_root"):
        open_it(tmp_path, "folders", "other")
    (tmp_path / "empty/test/a").mkdir(parents=True)
    with fails("no images in folders of classes; images end in "):
        open_it(tmp_path, "folders", "empty")


COCO = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 48, "height": 40},
        {"id": 8, "file_name": "b.jpg"},
    ],
    "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "plate"}],
    "annotations": [
        {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]},
        {"image_id": 7, "category_id": 2, "bbox": [5, 6, 7, 8.5]},
        {"image_id": 7, "category_id": 1, "bbox": [9, 9, 1, 1]},
    ],
}


def test_coco(tmp_path: Path) -> None:
    document(tmp_path / "set/_annotations.coco.json", COCO)
    picture(tmp_path / "set/a.jpg")
    found = open_it(tmp_path, "coco", "set/_annotations.coco.json")
    assert [len(s.rows) for s in found.samples] == [2, 0]
    assert found.samples[0].rows[0] == {
        "image": "a.jpg",
        "label": "cell",
        "boxes": [[1, 2, 3, 4], [9, 9, 1, 1]],
        "width": 48,
        "height": 40,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [{"image_id": 7, "category_id": 1, "bbox": [1, 2, 3]}]}, "is not [x, y,"),
        ({"annotations": [{"image_id": 7, "category_id": 9}]}, "annotations: no category 9"),
        ({"images": [{"file_name": "a.jpg"}]}, "images: an entry has no id"),
        ({"images": [{"id": 1, "file_name": "../a.jpg"}]}, "image path '../a.jpg' is not inside"),
        ({"images": {}}, "images: not a list of objects"),
    ],
)
def test_bad_coco(tmp_path: Path, change: dict, message: str) -> None:
    document(tmp_path / "a.json", {**COCO, **change})
    with fails(message):
        open_it(tmp_path, "coco", "a.json")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"image_column": "{name}.png"}, "t.csv: no column 'name'; it has id, label, split"),
        ({"image_column": "{id:>9}.png"}, "image_column: write {id} or {id:.2}"),
        ({"image_column": "{id"}, "image_column: '{id': "),
        ({"join": {"j.csv": "key"}}, "t.csv: no column 'key' to join on; it has id, label, split"),
        ({"join": {"two.csv": "id"}}, "two.csv: two rows have '1' in column 'id'; write it once"),
        ({"join": {"j.csv": "id"}}, "j.csv: no column 'id' to join on; it has key"),
        ({"join": {"none.csv": "id"}}, "none.csv: no row has a 'id' that occurs in "),
        ({"one_hot": ["label"]}, "t.csv: column 'label': 'x' is not a number"),
        ({"image_root": "part_*"}, "part_*: no such folder; set image_root"),
        ({"split": "test|dev"}, "t.csv: no rows in split 'dev'; it has test, train"),
    ],
)
def test_bad_keys_of_tables(tmp_path: Path, keys: dict, message: str) -> None:
    (tmp_path / "t.csv").write_text("id,label,split\n1,x,test\n2,y,train\n")
    (tmp_path / "j.csv").write_text("key\n1\n")
    (tmp_path / "two.csv").write_text("id\n1\n1\n")
    (tmp_path / "none.csv").write_text("id\n9\n")
    with fails(message):
        open_it(tmp_path, "table", "t.csv", **{"image_column": "{id}.png", **keys})


def test_paths_that_stand_for_several_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        document(tmp_path / f"{name}.json", [{"image": f"{name}.png"}])
    found = open_it(tmp_path, "table", "{split}.json", split="a|b")
    assert [s.image for s in found.samples] == ["a.png", "b.png"]
    assert len(open_it(tmp_path, "table", "*.json", split="").samples) == 2
    with fails("c*.json: no such file; set data_root"):
        open_it(tmp_path, "table", "c*.json", split="")
    with fails("{split} stands in the path, and split is empty"):
        open_it(tmp_path, "table", "{split}.json", split="")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([{"a": 1}], [{"a": 1}]),
        ([{"x": {"a": 1}}, {"y": {"a": 2}}], [{"key": "x", "a": 1}, {"key": "y", "a": 2}]),
        ({"x.png": {"a": 1}}, [{"key": "x.png", "a": 1}]),
    ],
)
def test_json_tables(tmp_path: Path, content: object, found: list[dict]) -> None:
    document(tmp_path / "t.json", content)
    assert read_table(tmp_path / "t.json") == found


@pytest.mark.parametrize("content", ['{"a": 1}', "[1]", "{", "[" * 100_000, '"a"'])
def test_bad_json_tables(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with fails("t.json: not readable as a table: "):
        read_table(tmp_path / "t.json")


def test_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    for name, values in (("x", images), ("y", np.array([0, 1, 1, 0])), ("z", np.zeros(3))):
        with h5py.File(tmp_path / f"test_{name}.h5", "w") as file:
            file[name] = values
    found = open_it(tmp_path, "hdf5", "{split}_x.h5", labels="{split}_y.h5")
    assert [s.rows[0]["label"] for s in found.samples] == ["0", "1", "1", "0"]
    assert np.array_equal(pixels(found, 2), images[2])
    assert pickle.loads(pickle.dumps(found.images)).read(1) == found.images.read(1)
    with fails("test_z.h5: 3 labels for 4 images of test_x.h5"):
        open_it(tmp_path, "hdf5", "{split}_x.h5", labels="{split}_z.h5")
    with fails("not 8-bit images"):
        open_it(tmp_path, "hdf5", "{split}_z.h5", labels="{split}_y.h5")
    (tmp_path / "test_no.h5").write_bytes(b"{}")
    with fails("test_no.h5: not readable as HDF5: "):
        open_it(tmp_path, "hdf5", "{split}_no.h5", labels="{split}_y.h5")
