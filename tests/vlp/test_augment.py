"""Augmentation: off means untouched, shares and strengths hold, each sample has its own draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms import ColorJitter

from tests.shard_factory import make_shards
from tests.vlp.tiny import make_tokenizer
from vlp.data.augment import AugmentConfig, augment
from vlp.data.loader import DataConfig, Mixture, RankPositions, SourceConfig, TrainSamples, batches
from vlp.data.order import generator

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 24, 32), dtype=np.uint8))


def changed(seed: int = 0, **keys: float) -> torch.Tensor:
    pixels = PIXELS.clone()
    augment(pixels, AugmentConfig(**keys), generator(seed))
    return pixels


def test_off_is_untouched() -> None:
    assert not AugmentConfig().enabled
    assert torch.equal(changed(), PIXELS)


def test_flip_mirrors_left_and_right() -> None:
    assert torch.equal(changed(flip=1), PIXELS.flip(2))
    flipped = sum(torch.equal(changed(seed, flip=0.3), PIXELS.flip(2)) for seed in range(400))
    assert 80 < flipped < 160  # 120 +- 4 standard deviations
    assert all(
        torch.equal(changed(seed, flip=0.3), PIXELS)
        or torch.equal(changed(seed, flip=0.3), PIXELS.flip(2))
        for seed in range(40)
    )


def test_grey_is_pillows() -> None:
    grey = changed(grey=1)
    assert torch.equal(grey[0], grey[1])
    image = Image.fromarray(PIXELS.permute(1, 2, 0).numpy()).convert("L")
    # Pillow rounds the weighted sum, torchvision cuts it.
    assert np.abs(grey[0].numpy().astype(int) - np.asarray(image).astype(int)).max() <= 1


def test_strength_of_the_jitter() -> None:
    """Only brightness: the factors are uniform in [1 - b, 1 + b], as the brightest pixels show."""
    pixels = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    values = []
    for seed in range(300):
        image = pixels.clone()
        only = AugmentConfig(jitter=1, brightness=0.5, contrast=0, saturation=0, hue=0)
        augment(image, only, generator(seed))
        values.append(int(image[0, 0, 0]))
    assert 50 <= min(values) < 55
    assert 145 < max(values) <= 150
    assert 95 < np.mean(values) < 105


def test_brightness_is_pillows() -> None:
    pixels = changed(3, jitter=1, brightness=0.4, contrast=0, saturation=0, hue=0)
    rng = generator(3)
    rng.random(3)
    factor = 1 + 0.4 * (2 * rng.random(4)[0] - 1)
    image = Image.fromarray(PIXELS.permute(1, 2, 0).numpy())
    want = np.asarray(ImageEnhance.Brightness(image).enhance(factor)).transpose(2, 0, 1)
    assert np.abs(pixels.numpy().astype(int) - want.astype(int)).max() <= 1


def test_jitter_is_distributed_as_torchvisions() -> None:
    """Mean and spread over 600 draws, in grey levels; a standard error is about 1."""
    image = torch.full((3, 4, 4), 0, dtype=torch.uint8)
    image[0], image[1], image[2] = 120, 80, 160
    image[:, 0] = 200
    strengths = {"brightness": 0.32, "contrast": 0.32, "saturation": 0.32, "hue": 0.08}
    torch.manual_seed(0)
    theirs = torch.stack([ColorJitter(**strengths)(image) for _ in range(600)]).double()
    ours = torch.stack([image.clone() for _ in range(600)])
    for seed, pixels in enumerate(ours):
        augment(pixels, AugmentConfig(jitter=1), generator(seed))
    assert (ours.double().mean(0) - theirs.mean(0)).abs().max() < 6
    assert (ours.double().std(0) - theirs.std(0)).abs().max() < 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_looks_the_same_on_any_rank_and_worker(tmp_path: Path, workers: int) -> None:
    folder = make_shards(tmp_path / "s", (16,))
    tokenizer = make_tokenizer(tmp_path / "tok")

    def load(config: DataConfig, rank: int, ranks: int) -> torch.Tensor:
        mixture = Mixture.open(config, 3)
        samples = TrainSamples(mixture, tokenizer, 32, config.crop_scale, config.augment)
        return torch.cat(
            [b.images for b in batches(samples, RankPositions(0, 2, 8, rank, ranks), config)]
        )

    sources = {"s": SourceConfig(path=str(folder))}
    strong = AugmentConfig(flip=0.5, jitter=0.8, grey=0.2)
    whole = load(DataConfig(sources=sources, workers=0, augment=strong), 0, 1)
    halves = [
        load(DataConfig(sources=sources, workers=workers, augment=strong), rank, 2)
        for rank in range(2)
    ]
    steps = [half.split(4) for half in halves]
    assert torch.equal(torch.cat([steps[0][0], steps[1][0], steps[0][1], steps[1][1]]), whole)
    plain = load(DataConfig(sources=sources, workers=0), 0, 1)
    assert not torch.equal(plain, whole)
    # The crops are drawn before anything else: switching it on moves none of them.
    flips = load(DataConfig(sources=sources, workers=0, augment=AugmentConfig(flip=1)), 0, 1)
    assert torch.equal(flips, plain.flip(3))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"flip": 1.5}, "data.augment.flip is a share"),
        ({"hue": 0.6}, "data.augment.hue is a strength from 0 to 0.5"),
        ({"contrast": -1}, "data.augment.contrast is a strength"),
    ],
)
def test_impossible_settings(keys: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**keys)
