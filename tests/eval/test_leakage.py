"""Test images in the training data: found, told apart from others, and scored without."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.shards import Sample
from eval.__main__ import main
from eval.leakage import UNREADABLE, Hasher, find_overlaps, read_training
from eval.options import LeakageConfig
from eval.readers import Dataset
from tests.eval import tiny
from tests.eval.tiny import draw, fails, suite_config, write_model, write_table
from tests.shard_factory import make_shards, write_shards
from vlp.hashing import perceptual_hash

TASKS = {**tiny.TASKS, "pairs": tiny.TASKS["pairs"] | {"where": {"half": ["second"]}}}


def photograph(seed: int) -> Image.Image:
    """Large enough for its hash to survive JPEG."""
    return draw(seed, 192, 160)


def encoded(image: Image.Image, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def sample(key: str, image: Image.Image, data: bytes, hashed: bool = True) -> Sample:
    return Sample(
        key=key,
        image=data,
        extension="png" if data[:4] == b"\x89PNG" else "jpg",
        width=image.width,
        height=image.height,
        caption="a caption",
        article=key,
        licence="CC BY 4.0",
        record={},
        phash=perceptual_hash(image) if hashed else None,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve test images, of which training has number 2 as it is and 5 as a JPEG.

    Number 10 is blank, as is an image of training; 11 is broken. Training's validation split holds
    number 7.
    """
    rows = []
    for i in range(12):
        name = f"{i:03}.png"
        (tmp_path / "set").mkdir(exist_ok=True)
        photograph(i).save(tmp_path / "set" / name)
        half = "first" if i < 6 else "second"
        rows.append({"image": name, "split": "test", "label": ["mass", "none"][i % 2]})
        rows[-1] |= {"caption": f"figure {i}", "half": half}
    blank = Image.new("RGB", (192, 160), "white")
    blank.save(tmp_path / "set" / "010.png")
    (tmp_path / "set" / "011.png").write_bytes(b"not an image")
    write_table(tmp_path / "set", rows)
    train = [
        sample("other", photograph(50), encoded(photograph(50), "PNG")),
        sample("same", photograph(2), encoded(photograph(2), "PNG", compress_level=1)),
        sample("near", photograph(5), encoded(photograph(5), "JPEG", quality=60)),
        sample("blank", blank, encoded(blank, "PNG")),
    ]
    val = [sample("val", photograph(7), encoded(photograph(7), "PNG"))]
    write_shards(tmp_path / "train", [("train", train), ("val", val)])
    return tmp_path


def test_copies_are_found_and_left_out(
    root: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite_config(root, model, TASKS)
    main([str(root / "suite.yaml"), f"leakage.train=[{root / 'train'}]"])
    record = json.loads((root / "out" / "kinds.json").read_text())
    found = record["details"]["leakage"]
    assert [(m["image"], m["key"], m["same_pixels"]) for m in found["matches"]] == [
        ("002.png", "same", True),
        ("005.png", "near", False),
    ]
    assert found["matches"][0]["bits"] == 0
    assert found["matches"][1]["bits"] <= 4
    assert found["matches"][0]["folder"] == str(root / "train")
    assert (found["near"], found["same_pixels"]) == (2, 1)
    assert (found["images"], found["not_compared"]) == (10, 2)
    assert (found["training_images"], found["training_images_unreadable"]) == (4, 0)
    assert record["n"] == 11
    assert found["n_without"] == 9
    assert "kinds: in the training data: 2 of 10 images (1 with equal pixels); without them" in (
        " ".join(capsys.readouterr().out.split())
    )

    # The same as a suite that never had them.
    rows = [json.loads(line) for line in (root / "set" / "index.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["image"] not in ("002.png", "005.png")]
    write_table(root / "set", kept)
    suite_config(root, model, TASKS)
    main([str(root / "suite.yaml"), "only=[kinds]", f"out={root / 'clean'}"])
    clean = json.loads((root / "clean" / "kinds.json").read_text())
    assert clean["scores"] == found["scores_without"]


def test_other_training_data_are_looked_up_again(root: Path, model: Path) -> None:
    """What is finished is kept as long as the manifest of the training data is the same."""
    suite_config(root, model, TASKS)
    command = [str(root / "suite.yaml"), "only=[kinds]", f"leakage.train=[{root / 'train'}]"]
    main(command)
    first = (root / "out" / "kinds.json").read_text()
    main(command)
    assert (root / "out" / "kinds.json").read_text() == first
    fewer = [sample("other", photograph(50), encoded(photograph(50), "PNG"))]
    write_shards(root / "train", [("train", fewer)])
    main(command)
    assert json.loads((root / "out" / "kinds.json").read_text())["details"]["leakage"]["near"] == 0


def test_only_images_of_the_task_count(root: Path, model: Path) -> None:
    suite_config(root, model, TASKS)
    main([str(root / "suite.yaml"), "only=[pairs]", f"leakage.train=[{root / 'train'}]"])
    found = json.loads((root / "out" / "pairs.json").read_text())["details"]["leakage"]
    assert (found["images"], found["near"], found["not_compared"]) == (4, 0, 2)
    assert "scores_without" not in found


def test_other_splits_count_if_asked(root: Path, model: Path) -> None:
    suite_config(root, model, TASKS)
    options = [f"leakage.train=[{root / 'train'}]", "leakage.splits=[train,val]"]
    main([str(root / "suite.yaml"), "only=[pairs]", *options])
    found = json.loads((root / "out" / "pairs.json").read_text())["details"]["leakage"]
    assert [match["key"] for match in found["matches"]] == ["val"]


class Images:
    """Images in memory, and how often each was read."""

    def __init__(self, files: list[bytes]) -> None:
        self.files, self.reads = files, [0] * len(files)

    def read(self, index: int) -> bytes:
        self.reads[index] += 1
        return self.files[index]


def dataset(files: list[bytes], fingerprint: str = "f" * 64) -> Dataset:
    from eval.readers import Sample as EvalSample

    samples = [EvalSample(str(i), [], [{}]) for i in range(len(files))]
    return Dataset(samples, fingerprint, [], Images(files))


def test_equals_comparing_everything(root: Path, tmp_path: Path) -> None:
    """Several folders and sets, against a loop over all pairs."""
    extra = [sample(f"x{i}", photograph(i), encoded(photograph(i), "PNG")) for i in (20, 21, 22)]
    write_shards(tmp_path / "more", [("train", extra)])
    config = LeakageConfig(train=[str(root / "train"), str(tmp_path / "more")], bits=10)
    hasher = Hasher(tmp_path / "cache")
    training = read_training(config, hasher)
    files = [encoded(photograph(i), "JPEG", quality=30) for i in (1, 2, 5, 21, 22, 30)]
    sets = [dataset(files[:3], "a" * 64), dataset(files[3:], "b" * 64)]
    found = find_overlaps(sets, training, config, hasher)
    for each in sets:
        hashes = hasher.of(each)
        expected = {
            i: int(np.bitwise_count(training.hashes ^ own).min())
            for i, own in enumerate(hashes)
            if np.bitwise_count(training.hashes ^ own).min() <= 10
        }
        matches = found[each.fingerprint].matches
        assert {i: match.bits for i, match in matches.items()} == expected
    assert [match.key for match in found["b" * 64].matches.values()] == ["x21", "x22"]
    assert {match.folder for match in found["b" * 64].matches.values()} == {str(tmp_path / "more")}


def test_hashes_are_kept(tmp_path: Path) -> None:
    images = dataset([encoded(photograph(1), "PNG"), b"broken"])
    first = Hasher(tmp_path).of(images)
    assert first.tolist() == [perceptual_hash(photograph(1)), UNREADABLE]
    assert Hasher(tmp_path).of(images).tolist() == first.tolist()
    assert images.images.reads == [1, 1]


def test_one_image_of_many_with_the_same_hash(tmp_path: Path) -> None:
    """The match is the one with equal pixels, wherever it stands."""
    other = photograph(1).copy()
    other.putpixel((0, 0), (255, 0, 0))
    assert perceptual_hash(other) == perceptual_hash(photograph(1))
    samples = [
        sample("a", other, encoded(other, "PNG")),
        sample("b", photograph(1), encoded(photograph(1), "PNG", compress_level=0)),
    ]
    write_shards(tmp_path / "train", [("train", samples)])
    config = LeakageConfig(train=[str(tmp_path / "train")])
    images = dataset([encoded(photograph(1), "PNG")])
    hasher = Hasher(tmp_path / "cache")
    found = find_overlaps([images], read_training(config, hasher), config, hasher)
    match = found[images.fingerprint].matches[0]
    assert (match.key, match.same_pixels) == ("b", True)


def test_shards_without_hashes_are_hashed(root: Path, tmp_path: Path) -> None:
    """Those of other makers have none in their index; a broken image is counted."""
    images = [(f"x{i}", photograph(i)) for i in (20, 21)]
    samples = [sample(key, image, encoded(image, "PNG"), hashed=False) for key, image in images]
    samples.append(sample("broken", photograph(22), b"\x89PNG, but not really", hashed=False))
    hashed = sample("hashed", photograph(23), encoded(photograph(23), "PNG"))
    write_shards(tmp_path / "theirs", [("train", [samples[0], hashed, *samples[1:]])])
    config, hasher = LeakageConfig(train=[str(tmp_path / "theirs")]), Hasher(tmp_path / "cache")
    training = read_training(config, hasher)
    keys = training.rows["key"].to_pylist()
    expected = [perceptual_hash(photograph(i)) for i in (23, 20, 21)]
    assert dict(zip(keys, training.hashes.tolist(), strict=True)) == dict(
        zip(["hashed", "x20", "x21"], expected, strict=True)
    )
    assert training.unreadable == 1
    images_of_test = dataset([encoded(photograph(21), "PNG")])
    found = find_overlaps([images_of_test], training, config, hasher)
    assert found[images_of_test.fingerprint].matches[0].key == "x21"
    assert len(list((tmp_path / "cache").glob("hashes-*"))) == 2


def test_training_data_that_do_not_fit(tmp_path: Path) -> None:
    hasher = Hasher(tmp_path / "cache")
    with fails("nowhere: no such shard folder"):
        read_training(LeakageConfig(train=[str(tmp_path / "nowhere")]), hasher)
    make_shards(tmp_path / "plain", (3,))
    with fails("has no split holdout; it has train"):
        read_training(LeakageConfig(train=[str(tmp_path / "plain")], splits=["holdout"]), hasher)
