"""Whole runs that go on from a base: what moves, what is kept, what is reported."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer

from tests.vlp.ranks import Ranks
from vlp.config import UserError, load_config
from vlp.curves import read_metrics
from vlp.interrupt import Interrupt
from vlp.optim import adamw
from vlp.text.export import WEIGHTS
from vlp.text.forgetting import SCORE
from vlp.text.settings import TextRunConfig
from vlp.text.trainer import TextTrainer
from vlp.text_pretrain import train

CONFIG = """
name: base
corpora:
  general: {path: FOLDER/general.jsonl, cleaning: {duplicates: none}}
  domain: {path: FOLDER/domain.jsonl, cleaning: {duplicates: none}}
cache: FOLDER/cache
runs: FOLDER/runs
split: {val_fraction: 0.2}
own_vocabulary: {size: 200}
model: {length: 32, max_positions: 48, width: 32, layers: 2, heads: 2, mlp_width: 64}
optimizer: {learning_rate: 3e-3, warmup_steps: 2}
train:
  {batch_size: 8, steps: 6, workers: 0, log_every: 1, eval_every: 0, checkpoint_every: 3,
   device: cpu}
"""
"""Steps 3 and 6 are saved; metrics of every step are what resumed runs are compared by."""
GENERAL = "the cat sleeps by a warm stove while rain falls on our old garden wall"
DOMAIN = "dysplastic glands and necrosis of hepatic tissue show mitotic nuclei in biopsy"
TARGET = "mixture.stages=[{weights: {domain: '1'}}]"
CONTINUAL = ["init=continual", "vocabulary=inherited", TARGET]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora without a word in common, and RUNS/base trained on the general one."""
    folder = tmp_path_factory.mktemp("continual")
    rng = random.Random(0)
    for name, words in (("general", GENERAL), ("domain", DOMAIN)):
        lines = [
            json.dumps({"id": f"{name}{i}", "text": " ".join(rng.choices(words.split(), k=40))})
            for i in range(60)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "c.yaml").write_text(CONFIG.replace("FOLDER", str(folder)))
    # The vocabulary is of both, the training of the general text alone.
    stages = "[{weights: {general: '1'}, steps: 20}, {weights: {domain: '1'}}]"
    seldom = ["train.checkpoint_every=20", "train.log_every=20"]
    run(folder, "base", [f"mixture.stages={stages}", "train.steps=20", *seldom])
    return folder


def arguments(home: Path, name: str, overrides: list[str]) -> list[str]:
    """The command line of a run."""
    base = [] if name == "base" else [f"base={home / 'runs' / 'base'}"]
    return [str(home / "c.yaml"), f"name={name}", *base, *overrides]


def config_of(home: Path, name: str, overrides: list[str]) -> TextRunConfig:
    return load_config(TextRunConfig, arguments(home, name, overrides))


def run(home: Path, name: str, overrides: list[str]) -> Path:
    """A run to its end; returns its folder."""
    config = config_of(home, name, overrides)
    with Interrupt() as interrupt:
        train(config, interrupt=interrupt)
    return config.folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model" / WEIGHTS)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Metrics without timings."""
    found = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in found]


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


LORA = [*CONTINUAL, "lora.rank=4", "lora.targets=[query,key,value,dense]"]
DROPOUT = [*LORA, "lora.dropout=0.1"]
DECAY = [*CONTINUAL, "optimizer.text_layer_decay=0.8"]
MIXOUT = [*DECAY, "train.mixout=0.5"]
ARMS = {"lora": LORA, "dropout": DROPOUT, "mixout": MIXOUT}


@pytest.fixture(scope="module")
def done(home: Path) -> dict[str, Path]:
    """Folders of whole runs."""
    return {name: run(home, name, overrides) for name, overrides in ARMS.items()}


@pytest.mark.parametrize("name", ["dropout", "mixout"])
def test_resumed_bit_for_bit(name: str, home: Path, done: dict[str, Path]) -> None:
    """A copy of the run as it was after its first checkpoint goes on."""
    whole, cut = done[name], home / "runs" / f"{name}-cut"
    shutil.copytree(whole, cut)
    (last,) = (cut / "checkpoints").glob("*6")
    shutil.rmtree(last)
    run(home, cut.name, ARMS[name])
    assert rows(cut) == rows(whole)
    assert same_weights(cut, whole)
    assert (cut / "forgetting.json").read_text() == (whole / "forgetting.json").read_text()


@pytest.mark.parametrize(("name", "kind"), [("lora", "ddp"), ("mixout", "ddp"), ("mixout", "fsdp")])
def test_two_ranks_are_one(name: str, kind: str, home: Path, done: dict[str, Path]) -> None:
    """Copies and shards; to 1e-5 of the losses: sums in another order."""
    overrides = [*ARMS[name], f"train.parallel={kind}"]
    command = arguments(home, f"{name}-{kind}", overrides)
    ranks = Ranks(home / f"logs-{name}-{kind}", command, 2, program="vlp.text_pretrain")
    assert ranks.wait() == [0, 0], ranks.output()
    two = home / "runs" / f"{name}-{kind}"
    keys = ("train/loss", "val/bits_per_character/domain", "val/bits_per_character/general")
    for ours, theirs in zip(rows(two), rows(done[name]), strict=True):
        assert ours.keys() == theirs.keys()
        for key in keys:
            if key in ours:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-5), (ours["step"], key)
    # Adam makes steps of equal size out of gradients however small: the weights agree less well.
    for key, value in weights(two).items():
        assert (value - weights(done[name])[key]).abs().max() < 1e-3, key


def test_lora_moves_its_targets_alone_and_leaves_plain_names(
    home: Path, done: dict[str, Path]
) -> None:
    base, now = weights(home / "runs" / "base"), weights(done["lora"])
    assert base.keys() == now.keys()
    changed = {name for name in base if not torch.equal(base[name], now[name])}
    ends = ("query.weight", "key.weight", "value.weight", "dense.weight")
    assert changed == {n for n in base if ".layer." in n and n.endswith(ends)}
    history = json.loads((done["lora"] / "model" / "pretraining.json").read_text())
    assert any(note.startswith("LoRA of rank 4: ") for note in history["notes"])
    assert not same_weights(done["lora"], done["dropout"])


def test_merged_weights_compute_what_was_trained(home: Path, done: dict[str, Path]) -> None:
    """The folder in plain transformers against the model with its changes beside the weights; to
    1e-5, a sum in another order."""
    trainer = TextTrainer(config_of(home, "lora", LORA))  # takes up the last checkpoint
    assert trainer.step == 6
    lm = trainer.model.lm.eval()
    model = AutoModelForMaskedLM.from_pretrained(done["lora"] / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(done["lora"] / "model")
    text = "necrosis of the old garden wall"
    packed = trainer.tokenizer([text])
    with torch.no_grad():
        want = model(**tokenizer(text, return_tensors="pt")).logits[0]
        got = lm.logits(lm.bert.states(packed))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    changes = [value for name, value in lm.named_parameters() if "lora_b" in name]
    assert all(value.abs().max() > 0 for value in changes)


def test_mixout_changes_values_alone(home: Path, done: dict[str, Path]) -> None:
    plain = run(home, "plain", DECAY)
    assert weights(done["mixout"]).keys() == weights(plain).keys()
    assert not same_weights(done["mixout"], plain)
    losses = [
        [row["train/loss"] for row in rows(folder) if "train/loss" in row]
        for folder in (done["mixout"], plain)
    ]
    assert losses[0][0] == losses[1][0]  # before the first step both are the base
    assert losses[0][2] != losses[1][2]


def test_mixout_needs_the_base_that_it_began_with(home: Path, done: dict[str, Path]) -> None:
    """Of the same architecture and vocabulary, but other weights."""
    folder = home / "other"
    shutil.copytree(home / "runs" / "base" / "model", folder)
    changed = {name: value + 0.01 for name, value in load_file(folder / WEIGHTS).items()}
    save_file(changed, folder / WEIGHTS)
    with pytest.raises(UserError, match="made with base's weights="):
        TextTrainer(config_of(home, "mixout", [*MIXOUT, f"base={folder}"]))


def test_layer_decay(home: Path) -> None:
    """0.8 to the power of how far a layer is below the heads: 2 layers, hence 3 for embeddings."""
    config = config_of(home, "decay", DECAY)
    model = TextTrainer(config).model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {
        names[id(parameter)]: group["lr_scale"]
        for group in adamw(model, config.optimizer).param_groups
        for parameter in group["params"]
    }
    assert set(scales) == set(names.values())
    for name, scale in scales.items():
        below = 0
        if name.startswith("lm.bert.embeddings."):
            below = 3
        elif name.startswith("lm.bert.encoder.layer."):
            below = 2 - int(name.split(".")[4])
        assert scale == pytest.approx(0.8**below), name


def test_the_report_is_printed_and_written(
    home: Path, done: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by a run that is called again after its end."""
    (done["mixout"] / "forgetting.json").unlink()
    run(home, "mixout", MIXOUT)
    assert "gain on the target" in capsys.readouterr().out
    report = json.loads((done["mixout"] / "forgetting.json").read_text())
    assert [(row["corpus"], row["role"]) for row in report["corpora"]] == [
        ("domain", "target"),
        ("general", "base"),
    ]
    assert report["steps"] == 6
    compare_with_base(report, home)
    assert report["gain_on_target"] > 0


def compare_with_base(report: dict[str, Any], home: Path) -> None:
    """Before the first step a run is the base; to 1e-6, other rows are computed together."""
    last = rows(home / "runs" / "base")[-1]
    for row in report["corpora"]:
        wanted = last[f"val/bits_per_character/{row['corpus']}"]
        assert row["before"] == pytest.approx(wanted, rel=1e-6)


def test_replay_keeps_the_base(home: Path) -> None:
    """With base text in the mixture, half as many passes over it as over the domain, the base is
    lost less."""
    settings = ["train.steps=40", "train.checkpoint_every=40", "train.log_every=40"]
    mixtures = {
        "alone": [TARGET],
        "replay": [TARGET.replace("'1'", "'1', general: '0.5'"), "base_corpora=[general]"],
    }
    lost = {}
    for name, mixture in mixtures.items():
        folder = run(home, name, [*CONTINUAL, *settings, *mixture])
        lost[name] = json.loads((folder / "forgetting.json").read_text())["loss_on_base"]
    assert lost["replay"] < lost["alone"] - 0.05


def test_another_vocabulary_is_compared_with_the_base_itself(home: Path) -> None:
    folder = run(home, "own", ["init=continual", "vocabulary=own", TARGET, "train.steps=2"])
    report = json.loads((folder / "forgetting.json").read_text())
    compare_with_base(report, home)
    (own,) = (r for r in rows(folder) if r["step"] == 0 and f"{SCORE}general" in r)
    (general,) = (row for row in report["corpora"] if row["corpus"] == "general")
    assert own[f"{SCORE}general"] > general["before"] + 0.01  # what the other vocabulary costs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init=scratch", "lora.rank=2"], "lora and train.mixout need init=continual"),
        ([*LORA, "train.mixout=0.5"], "with LoRA the base's weights never move"),
        ([*LORA, "vocabulary=own"], "new pieces are not learnt; set vocabulary=inherited"),
        ([*DROPOUT, "train.activation_checkpointing=true"], "would draw anew"),
        (["optimizer.image_layer_decay=0.9"], "here are no images"),
        (["base_corpora=[none]"], "base_corpora: no such corpus none"),
    ],
)
def test_what_cannot_be_together(overrides: list[str], message: str, home: Path) -> None:
    with pytest.raises(UserError, match=message):
        config_of(home, "refused", overrides)
