"""Batches: the same samples for any ranks and workers, at once from any step; broken samples."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.shard_factory import jpeg, make_samples, make_shards, write_shards
from tests.vlp.tiny import make_tokenizer
from vlp.config import UserError
from vlp.data.image import center_pixels, open_rgb
from vlp.data.index import open_shards
from vlp.data.loader import (
    Batch,
    DataConfig,
    EvaluationSamples,
    Mixture,
    RankPositions,
    SourceConfig,
    TrainSamples,
    batches,
)

SIZE = 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uneven shards, one of a single sample; fewer shards than 8 ranks."""
    root = tmp_path_factory.mktemp("shards")
    make_shards(root / "a", (7, 1, 12), val=(5,), width=60, height=48)
    make_shards(root / "b", (9,), val=(3,), seed=1, width=48, height=60)
    make_tokenizer(root / "tok")
    return root


def config(root: Path, workers: int = 0, **weights: float) -> DataConfig:
    sources = {
        name: SourceConfig(path=str(root / name), weight=weights.get(name, 1.0)) for name in "ab"
    }
    return DataConfig(sources=sources, workers=workers, shuffle_window=2)


def load(
    root: Path, data: DataConfig, steps: range, batch: int = 8, rank: int = 0, ranks: int = 1
) -> list[Batch]:
    samples = TrainSamples(Mixture.open(data, seed=3), make_tokenizer(root / "tok"), SIZE, (0.5, 1))
    positions = RankPositions(steps.start, steps.stop, batch, rank, ranks)
    return list(batches(samples, positions, data))


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_global_batches_do_not_depend_on_the_world(folders: Path, ranks: int, workers: int) -> None:
    """Keys, pixels (so the augmentation too) and tokens, bit for bit."""
    want = load(folders, config(folders), range(2, 5))
    parts = [
        load(folders, config(folders, workers), range(2, 5), rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    for step, whole in enumerate(want):
        got = [part[step] for part in parts]
        assert [key for batch in got for key in batch.keys] == whole.keys
        assert torch.equal(torch.cat([batch.images for batch in got]), whole.images)
        assert torch.equal(torch.cat([batch.text.input_ids for batch in got]), whole.text.input_ids)


def test_three_ranks(folders: Path) -> None:
    want = load(folders, config(folders), range(0, 3), batch=9)
    parts = [load(folders, config(folders, 1), range(0, 3), 9, rank, 3) for rank in range(3)]
    for step, whole in enumerate(want):
        assert [key for part in parts for key in part[step].keys] == whole.keys


def test_any_step_at_once(folders: Path) -> None:
    everything = load(folders, config(folders), range(0, 9))
    for start in (1, 4, 8):
        resumed = load(folders, config(folders), range(start, 9))
        assert [b.keys for b in resumed] == [b.keys for b in everything[start:]]
        assert torch.equal(resumed[0].images, everything[start].images)


def test_an_epoch_holds_each_sample_once(folders: Path) -> None:
    keys = [key for b in load(folders, config(folders), range(0, 29), batch=1) for key in b.keys]
    assert len(keys) == len(set(keys)) == 7 + 1 + 12 + 9
    assert {key.split("/")[0] for key in keys} == {"a", "b"}


def test_weights(folders: Path) -> None:
    data = config(folders, b=2.0)
    keys = [key for b in load(folders, data, range(0, 38), batch=1) for key in b.keys]
    assert sorted(keys.count(key) for key in set(keys) if key.startswith("b/")) == [2] * 9
    assert sorted(keys.count(key) for key in set(keys) if key.startswith("a/")) == [1] * 20


def test_layout_of_a_batch(folders: Path) -> None:
    batch = load(folders, config(folders), range(1))[0]
    assert batch.images.shape == (8, 3, SIZE, SIZE)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert len(batch.text.cu_seqlens) == 9
    assert int(batch.text.cu_seqlens[-1]) == len(batch.text.input_ids)
    assert batch.broken == []


def test_augmentation_changes_from_epoch_to_epoch(folders: Path) -> None:
    first, second = (load(folders, config(folders), range(s, s + 1), batch=29)[0] for s in (0, 1))
    assert set(first.keys) == set(second.keys)
    places = [second.keys.index(key) for key in first.keys]
    assert not torch.equal(first.images, second.images[places])


def test_evaluation_samples_are_exact_and_in_order(folders: Path) -> None:
    parts = [open_shards(folders / name, "val") for name in "ab"]
    samples = EvaluationSamples(parts, make_tokenizer(folders / "tok"), SIZE)
    assert len(samples) == 8
    got = list(batches(samples, [[0, 1, 2], [3, 4, 5, 6, 7]], config(folders, 1)))
    keys = [key for batch in got for key in batch.keys]
    assert keys == [part.key(i) for part in parts for i in range(len(part))]
    pixels = torch.cat([batch.images for batch in got])
    want = center_pixels(open_rgb(parts[1].read(1).image), SIZE)
    assert torch.equal(pixels[6], want)


def broken_folder(root: Path, bad: dict[int, bytes], captions: dict[int, bytes]) -> Path:
    """A shard of 12 samples, some of them with other bytes than their names promise."""
    samples = make_samples(12, seed=9)
    for number, data in bad.items():
        samples[number] = dataclasses.replace(samples[number], image=data)
    folder = write_shards(root, [("train", samples)])
    if captions:
        shard = folder / "train-00000.tar"
        whole = shard.read_bytes()
        shards = open_shards(folder, "train")
        for number, text in captions.items():
            offset, size = (int(v) for v in shards.spans[number, 2:])
            whole = whole[:offset] + text.ljust(size)[:size] + whole[offset + size :]
        shard.write_bytes(whole)
        declare_whole(folder)
    return folder


def declare_whole(folder: Path) -> None:
    """Give the manifest the checksums of the shards as they are: written so, not damaged since."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["shards"]:
        entry["sha256"] = hashlib.sha256((folder / entry["name"]).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_broken_samples_are_named_and_replaced_the_same_way(tmp_path: Path) -> None:
    folder = broken_folder(
        tmp_path / "s",
        {3: b"<html>", 7: jpeg(np.random.default_rng(0))[:60]},
        {5: b"\xff\xfe caption"},
    )
    make_tokenizer(tmp_path / "tok")
    for workers in (0, 2):
        data = DataConfig(sources={"s": SourceConfig(path=str(folder))}, workers=workers)
        whole = load(tmp_path, data, range(1), batch=12)[0]
        halves = [load(tmp_path, data, range(1), 12, rank, 2)[0] for rank in range(2)]
        reasons = dict(whole.broken)
        shards = open_shards(folder, "train")
        assert "not an image" in reasons[f"s/{shards.key(3)}"]
        assert "damaged JPEG" in reasons[f"s/{shards.key(7)}"]
        assert "caption is not UTF-8 at byte 0" in reasons[f"s/{shards.key(5)}"]
        assert not set(whole.keys) & set(reasons)
        assert len(whole.keys) == 12
        assert halves[0].keys + halves[1].keys == whole.keys
        assert torch.equal(torch.cat([half.images for half in halves]), whole.images)
        assert halves[0].broken + halves[1].broken == whole.broken


def test_a_shard_damaged_after_it_was_written_stops(tmp_path: Path) -> None:
    """Same size, so that only its checksum tells; it is compared after the third broken sample."""
    samples = make_samples(12, seed=9)
    good = write_shards(tmp_path / "s", [("train", samples)])
    make_tokenizer(tmp_path / "tok")
    data = DataConfig(sources={"s": SourceConfig(path=str(good))}, workers=0)
    shards = open_shards(good, "train")
    damage(good / "train-00000.tar", [int(shards.spans[1, 0])])
    assert 1 <= len(load(tmp_path, data, range(1), batch=12)[0].broken) < 3
    damage(good / "train-00000.tar", [int(shards.spans[i, 0]) for i in (4, 6)])
    with pytest.raises(UserError, match=r"train-00000.tar: SHA-256 .* the file is damaged"):
        load(tmp_path, data, range(1), batch=12)
    declare_whole(good)  # written so: they are replaced, as many as they are
    assert len(load(tmp_path, data, range(1), batch=12)[0].broken) >= 3


def damage(shard: Path, offsets: list[int]) -> None:
    with shard.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            file.write(bytes(16))


def test_nothing_but_broken_samples_stops(tmp_path: Path) -> None:
    folder = broken_folder(tmp_path / "s", dict.fromkeys(range(12), b"no"), {})
    make_tokenizer(tmp_path / "tok")
    data = DataConfig(sources={"s": SourceConfig(path=str(folder))}, workers=0)
    with pytest.raises(UserError, match="8 replacements are broken too"):
        load(tmp_path, data, range(1), batch=4)


def test_evaluation_leaves_broken_samples_out(tmp_path: Path) -> None:
    folder = broken_folder(tmp_path / "s", {0: b"no"}, {2: b"\xff"})
    samples = EvaluationSamples(
        [open_shards(folder, "train")], make_tokenizer(tmp_path / "t"), SIZE
    )
    batch = samples.__getitems__([0, 1, 2, 3])
    assert len(batch.keys) == len(batch.images) == 2
    assert len(batch.broken) == 2
    assert len(samples.__getitems__([0]).images) == 0


def test_world_that_does_not_divide_the_batch() -> None:
    with pytest.raises(UserError) as caught:
        RankPositions(0, 1, 10, 0, 4)
    assert "train.batch_size=10 is not divisible by 4 processes; set train.batch_size=12" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_scale": (0.9, 1.5)}, "data.crop_scale must be"),
        ({"workers": -1}, "data.workers must be >= 0"),
        ({"max_broken": 2.0}, "data.max_broken is a share"),
        ({"timeout": 0}, "data.timeout and data.cache_gb must be positive"),
    ],
)
def test_impossible_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


def test_no_sources() -> None:
    with pytest.raises(UserError, match=r"data.sources is empty"):
        Mixture.open(DataConfig(), 0)
