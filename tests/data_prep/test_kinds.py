"""Kinds of images: features, the network, its weights and the program that makes them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import train_kinds
from data_prep.kind_examples import PAINTERS, example
from data_prep.kinds import (
    KINDS,
    WEIGHTS,
    Network,
    _longest_runs,
    classify,
    features,
    load_network,
)
from data_prep.train_kinds import TrainKindsConfig
from tests.real_data import real_data

UNSEEN = 4711  # training takes the seeds 0 and 1


def test_examples_depend_on_the_seed_alone() -> None:
    for kind in KINDS:
        first, again = example(kind, 3, 5), example(kind, 3, 5)
        assert first.tobytes() == again.tobytes()
        assert first.tobytes() != example(kind, 3, 6).tobytes()
        assert first.mode == "RGB"


@pytest.mark.parametrize("kind", KINDS)
def test_every_painter_paints_at_its_size(kind: str) -> None:
    for painter in PAINTERS[kind]:
        drawn = painter(np.random.default_rng(0), (200, 150))
        assert drawn.size == (200, 150)
        assert drawn.convert("L").getextrema()[0] < drawn.convert("L").getextrema()[1]


def test_most_unseen_figures_are_recognised() -> None:
    right = [classify(example(kind, UNSEEN, n)).name == kind for kind in KINDS for n in range(8)]
    assert np.mean(right) >= 0.8


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (3000, 8), (50, 900)])
@pytest.mark.parametrize("value", [0, 1])
def test_odd_images_have_a_kind(mode: str, size: tuple[int, int], value: int) -> None:
    image = Image.new(mode, size, None if mode == "P" else value)
    assert np.isfinite(features(image)).all()
    found = classify(image)
    assert found.name in KINDS
    assert 1 / len(KINDS) <= found.probability <= 1


def test_features_hardly_change_with_size() -> None:
    for kind in KINDS:
        image = example(kind, UNSEEN, 1).resize((1200, 900), Image.Resampling.LANCZOS)
        half = image.resize((600, 450), Image.Resampling.BOX)
        assert np.abs(features(image) - features(half)).mean() < 0.05


def test_longest_runs_against_the_obvious_way() -> None:
    marks = np.random.default_rng(0).random((20, 30)) < 0.6
    lengths = [
        max(map(len, "".join("x" if m else " " for m in row).split()), default=0) for row in marks
    ]
    assert _longest_runs(marks).tolist() == lengths


def test_probabilities_against_the_obvious_way() -> None:
    network, rows = load_network(), np.stack([features(example("plot", 1, n)) for n in range(3)])
    for row, found in zip(rows, network.probabilities(rows), strict=True):
        inner = [
            max(0.0, bias + sum((row - network.mean) / network.scale * weights))
            for weights, bias in zip(network.hidden.T, network.hidden_bias, strict=True)
        ]
        powers = np.exp(np.array(inner) @ network.output + network.output_bias)
        np.testing.assert_allclose(found, powers / powers.sum(), rtol=1e-9)


def test_weights_are_small_and_plain() -> None:
    assert WEIGHTS.stat().st_size < 200_000
    stored = json.loads(WEIGHTS.read_text(encoding="utf-8"))
    assert tuple(stored["kinds"]) == KINDS
    assert np.trace(stored["held_out"]) / np.sum(stored["held_out"]) > 0.8


def test_weights_of_other_features_are_refused(tmp_path: Path) -> None:
    stored = json.loads(WEIGHTS.read_text(encoding="utf-8")) | {"features": 0}
    (tmp_path / "kinds.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(ValueError, match="train_kinds"):
        load_network(tmp_path / "kinds.json")


def test_gradient_against_finite_differences() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in ((4, 3), (3,), (3, 5), (5,))]
    rows, targets = rng.normal(size=(6, 4)), np.eye(5)[rng.integers(0, 5, 6)]
    counted = rng.uniform(0.5, 2, (6, 1))

    def network() -> Network:
        return Network(np.zeros(4), np.ones(4), *arrays)

    def loss() -> float:
        each = np.log((network().probabilities(rows) * targets).sum(axis=1))
        return float(-(counted[:, 0] * each).mean())

    slopes = train_kinds._gradient(network(), rows, targets, counted)
    for values, slope in zip(arrays, slopes, strict=True):
        for index in np.ndindex(values.shape):
            kept = values[index]
            values[index] = kept + 1e-5
            above = loss()
            values[index] = kept - 1e-5
            below = loss()
            values[index] = kept
            assert slope[index] == pytest.approx((above - below) / 2e-5, abs=1e-7)


def test_training_gives_the_same_file_with_any_number_of_workers(tmp_path: Path) -> None:
    files = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}.json"
        train_kinds.run(
            TrainKindsConfig(
                out=str(out), examples=6, held_out=2, hidden=4, steps=60, workers=workers
            )
        )
        files.append(out.read_bytes())
    assert files[0] == files[1]
    stored = json.loads(files[0])
    assert np.sum(stored["held_out"]) == 2 * len(KINDS)
    load_network(tmp_path / "1.json")


@pytest.mark.parametrize("pack", ["cxr_hannover", "microscopy_dsb2018", "blood_bccd", "vqa_rad"])
def test_real_specimens_are_images(pack: str) -> None:
    folder = real_data(pack)
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png"))[::12]
    found = [classify(Image.open(file)).name for file in files]
    assert found.count("image") / len(found) >= 0.8
