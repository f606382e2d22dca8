"""The cache gives the same numbers and is not taken for another model, image or tokenizer."""

import os
from pathlib import Path

import pytest
import torch

from eval.config import DataConfig
from eval.embed import Embedder
from eval.model import Model, load_model
from eval.readers import Dataset, open_dataset
from tests.eval.tiny import draw, embed_images, fails, write_model, write_table


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(str(write_model(tmp_path_factory.mktemp("model"))), "cpu")


def table(folder: Path, count: int = 5) -> Dataset:
    if not (folder / "index.jsonl").exists():
        write_table(folder, [{"number": i} for i in range(count)])
    return open_dataset(DataConfig(reader="table", path="index.jsonl", split=""), folder)


def files(embedder: Embedder) -> set[str]:
    return {path.name for path in embedder.cache.iterdir()}


def test_images_one_by_one_and_in_batches(tmp_path: Path, model: Model) -> None:
    dataset = table(tmp_path / "set")
    found = Embedder(model, tmp_path / "cache", batch_size=2).images(dataset)
    alone = torch.cat([embed_images(model, [draw(i)]) for i in range(5)])
    assert torch.allclose(found.features, alone, atol=1e-6)
    assert found.broken == {}


def test_workers_change_nothing(tmp_path: Path, model: Model) -> None:
    dataset = table(tmp_path / "set")
    none = Embedder(model, tmp_path / "a", batch_size=2).images(dataset)
    two = Embedder(model, tmp_path / "b", batch_size=2, workers=2).images(dataset)
    assert torch.equal(none.features, two.features)


def test_second_pass_reads_the_cache(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = table(tmp_path / "set")
    (tmp_path / "set" / "003.png").write_bytes(b"damaged")
    dataset = table(tmp_path / "set")
    embedder = Embedder(model, tmp_path / "cache")
    first, texts = embedder.images(dataset), embedder.texts(["a", "b c"])
    monkeypatch.setattr(model, "embed_pixels", None)
    monkeypatch.setattr(model, "embed_texts", None)
    second = embedder.images(dataset)
    assert torch.equal(first.features, second.features)
    assert (
        first.broken
        == second.broken
        == {3: "not an image: the file starts with 64 61 6d 61 67 65 64"}
    )
    assert torch.equal(embedder.texts(["a", "b c"]), texts)


def test_a_changed_image_is_seen(tmp_path: Path, model: Model) -> None:
    embedder = Embedder(model, tmp_path / "cache")
    before = embedder.images(table(tmp_path / "set")).features
    path = tmp_path / "set" / "002.png"
    times = path.stat()
    draw(77).save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    after = embedder.images(table(tmp_path / "set")).features
    changed = (before != after).any(dim=1).tolist()
    assert changed == [False, False, True, False, False]


def test_another_model_or_preprocessing_is_seen(tmp_path: Path, model: Model) -> None:
    dataset = table(tmp_path / "set")
    embedder = Embedder(model, tmp_path / "cache")
    embedder.images(dataset)
    assert len(files(embedder)) == 1
    other = load_model(str(write_model(tmp_path / "model", seed=1)), "cpu")
    Embedder(other, tmp_path / "cache").images(dataset)
    assert len(files(embedder)) == 2
    squash = {**model.preprocess, "resize_mode": "squash"}
    Embedder(Model(model.network, model.tokenizer, squash, "squash"), tmp_path / "cache").images(
        dataset
    )
    assert len(files(embedder)) == 3


def test_another_tokenizer_is_seen(tmp_path: Path, model: Model) -> None:
    first = Embedder(model, tmp_path / "cache").texts(["a lesion"])
    upside_down = Model(
        model.network, lambda texts: model.tokenizer([t[::-1] for t in texts]), {}, "x"
    )
    second = Embedder(upside_down, tmp_path / "cache").texts(["a lesion"])
    assert not torch.allclose(first, second)


def test_texts_do_not_depend_on_the_batch(tmp_path: Path, model: Model) -> None:
    texts = [f"figure {i}" for i in range(7)]
    small = Embedder(model, tmp_path / "a", batch_size=2).texts(texts)
    assert torch.allclose(small, model.embed_texts(texts), atol=1e-6)


def test_broken_images_are_named(tmp_path: Path, model: Model) -> None:
    dataset = table(tmp_path / "set")
    (tmp_path / "set" / "001.png").unlink()
    (tmp_path / "set" / "002.png").write_bytes((tmp_path / "set" / "003.png").read_bytes()[:400])
    found = Embedder(model, tmp_path / "cache").images(table(tmp_path / "set"))
    assert found.broken[1] == "can't be read: No such file or directory"
    assert found.broken[2].startswith("damaged image: ")
    assert (found.features[[1, 2]] == 0).all()
    for i in range(len(dataset.samples)):
        (tmp_path / "set" / f"{i:03}.png").write_bytes(b"")
    with fails("it: none of 5 images can be read; the first, '000.png': not an image"):
        Embedder(model, tmp_path / "cache").images(table(tmp_path / "set"), "it")


def test_a_damaged_cache_is_named(tmp_path: Path, model: Model) -> None:
    dataset = table(tmp_path / "set")
    embedder = Embedder(model, tmp_path / "cache")
    embedder.images(dataset)
    (path,) = embedder.cache.iterdir()
    path.write_bytes(path.read_bytes()[:50])
    with fails(f"{path}: damaged"):
        embedder.images(dataset)
