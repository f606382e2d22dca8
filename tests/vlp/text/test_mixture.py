"""Weights, amplification and schedules; the same sampler for documents and rows."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vlp.config import UserError, load_config
from vlp.text.cleaning import CleaningConfig
from vlp.text.corpora import CorpusConfig
from vlp.text.documents import SplitConfig
from vlp.text.mixture import MixedTexts, MixtureConfig, Sampler, StageConfig, passes
from vlp.text.store import prepare


def test_amplification_is_the_rounded_ratio_of_bytes() -> None:
    sizes = {"large": 6_000_000, "small": 800_000, "tiny": 1, "odd": 4_000_000}
    auto = dict.fromkeys(("large", "small"), "auto")
    assert passes(auto, sizes) == {"large": 1.0, "small": 8.0}  # 7.5 to even, as the original
    assert passes({"small": "auto", "odd": "0.5"}, sizes) == {"small": 5.0, "odd": 0.5}
    assert passes({}, sizes) == dict.fromkeys(sizes, 1.0)
    with pytest.raises(UserError, match=r"weights\.none: no such corpus; there are large"):
        passes({"none": "1"}, sizes)
    with pytest.raises(UserError, match="corpus a: no training text"):
        passes({}, {"a": 0, "b": 1})


@pytest.mark.parametrize("weight", ["0", "-1", "inf", "nan", "often"])
def test_impossible_weights(weight: str) -> None:
    with pytest.raises(ValueError, match=r"weights\.a=.*: set a positive number or `auto`"):
        StageConfig(weights={"a": weight})


def test_each_unit_comes_as_often_as_its_weight_says() -> None:
    config = MixtureConfig(stages=[StageConfig(weights={"b": "auto", "a": "2"})])
    sampler = Sampler.open(config, {"a": 1500, "b": 40, "c": 9}, {"a": 600, "b": 100, "c": 1})
    corpus, unit = sampler.samples(range(2 * 1500 + 6 * 40))
    counts = Counter(zip(corpus.tolist(), unit.tolist(), strict=True))
    assert set(counts) == {(0, n) for n in range(1500)} | {(1, n) for n in range(40)}
    assert {counts[0, n] for n in range(1500)} == {2}
    assert {counts[1, n] for n in range(40)} == {6}
    # Evenly interleaved, so every batch holds its share.
    halves = np.split(corpus, 2)
    assert abs((halves[0] == 1).sum() - (halves[1] == 1).sum()) <= 1
    epoch = sampler.epoch(0)
    assert np.array_equal(epoch[0], corpus)
    assert np.array_equal(epoch[1], unit)


def test_stages_follow_each_other() -> None:
    stages = [StageConfig(weights={"a": "1"}, steps=5), StageConfig(weights={"b": "1"})]
    sampler = Sampler.open(MixtureConfig(stages=stages), {"a": 30, "b": 30}, {"a": 1, "b": 1}, 8)
    corpus, unit = sampler.samples(range(5 * 8 + 30))
    assert corpus.tolist() == [0] * 40 + [1] * 30
    assert sorted(unit[40:].tolist()) == list(range(30))
    # A pure function of the position: what rank or worker asks for it makes no difference.
    for position in (0, 39, 40, 69):
        one = sampler.samples([position])
        assert (one[0][0], one[1][0]) == (corpus[position], unit[position])


def test_stages_need_their_steps() -> None:
    with pytest.raises(ValueError, match="all but the last need"):
        MixtureConfig(stages=[StageConfig(), StageConfig()])
    with pytest.raises(ValueError, match="the last takes the steps that are left"):
        MixtureConfig(stages=[StageConfig(steps=3)])


def test_configuration_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("stages: [{weights: {a: '1'}, steps: 3}, {weights: {a: auto, b: '0.5'}}]")
    config = load_config(MixtureConfig, [str(file), "seed=4"])
    assert config.stages[1].weights == {"a": "auto", "b": "0.5"}
    assert (config.stages[0].steps, config.seed) == (3, 4)


def test_texts_of_a_vocabulary_are_amplified(tmp_path: Path) -> None:
    stores = {}
    for name, count in (("large", 60), ("small", 10)):
        lines = [json.dumps({"id": str(n), "text": f"{name} text {n:03}"}) for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        corpus = CorpusConfig(path=str(tmp_path / f"{name}.jsonl"))
        cleaning = CleaningConfig(duplicates="exact", ill_formed=False)
        stores[name] = prepare(corpus, cleaning, SplitConfig(val_fraction=0), tmp_path / "cache")
    weights = {"large": "auto", "small": "auto"}
    texts = MixedTexts(stores, MixtureConfig(stages=[StageConfig(weights=weights)]))
    counts = Counter(texts)
    assert counts == Counter(
        {f"large text {n:03}": 1 for n in range(60)} | {f"small text {n:03}": 6 for n in range(10)}
    )
    assert list(texts) == list(texts)
    short = StageConfig(weights=weights, length=16, steps=9)  # the same texts, cut otherwise
    staged = MixtureConfig(stages=[short, StageConfig(weights=weights)])
    assert list(MixedTexts(stores, staged)) == list(texts)
