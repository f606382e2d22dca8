"""Runs that start from weights, or train towers otherwise than by default, through the trainer."""

import json
from pathlib import Path

import pytest
import torch

from eval.retrieval import recall
from tests.shard_factory import make_shards
from tests.vlp.tiny import TOWERS
from vlp.config import UserError, load_config
from vlp.models.hub import load_pretrained
from vlp.reporting import read_metrics
from vlp.settings import Config
from vlp.trainer import Trainer

CONFIG = f"""{TOWERS}
name: first
data: {{workers: 0}}
optimizer: {{warmup_steps: 0, schedule: constant, learning_rate: 1e-3}}
train: {{device: cpu, batch_size: 8, steps: 4, log_every: 1, eval_every: 0, checkpoint_every: 2}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, and a first run to start from."""
    folder = tmp_path_factory.mktemp("home")
    make_shards(folder / "shards", (9, 8, 5, 1), val=(7,), width=64, height=64)
    (folder / "c.yaml").write_text(CONFIG)
    train(folder)
    return folder


def train(home: Path, *overrides: str) -> Trainer:
    places = [f"runs={home / 'runs'}", f"data.sources.a.path={home / 'shards'}"]
    config = load_config(Config, [str(home / "c.yaml"), *places, *overrides])
    trainer = Trainer(config, evaluate=recall)
    trainer.fit()
    return trainer


def losses(home: Path, run: str) -> list[float]:
    rows = read_metrics(home / "runs" / run / "metrics.jsonl")
    return [row["train/loss"] for row in rows if "train/loss" in row]


def test_from_another_run(home: Path) -> None:
    """Its weights and its vocabulary: a step of no length leaves both as they were."""
    first = home / "runs" / "first"
    train(
        home, "name=second", f"model.init={first}", "train.steps=1", "optimizer.learning_rate=1e-9"
    )
    source, got = (load_pretrained(home / "runs" / run / "model") for run in ("first", "second"))
    for key, value in source.model.state_dict().items():
        assert (got.model.state_dict()[key] - value).abs().max() <= 1e-7, key
    assert got.tokenizer.tokenizer.get_vocab() == source.tokenizer.tokenizer.get_vocab()
    assert not (home / "runs" / "second" / "tokenizer").exists()
    with pytest.raises(UserError, match=r"made with other settings; set model.text.layers=2"):
        train(home, "name=third", f"model.init={first}", "model.text.layers=1")


def test_clips_encoder_and_vocabulary(home: Path) -> None:
    gpt = ["model.text.kind=gpt", "model.text.tokenizer=clip", "model.text.context_length=24"]
    trainer = train(home, "name=gpt", *gpt)
    assert trainer.config.model.text.vocab_size == 49408
    values = losses(home, "gpt")
    assert len(values) == 4
    assert all(0 < value < 5 for value in values)  # chance is log 8 = 2.1
    folder = home / "runs" / "gpt" / "model"
    assert load_pretrained(folder).config.text.kind == "gpt"
    stored = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert stored["eos_id"] == 49407


OPTIONS = [
    "model.image.patch_dropout=0.5",
    "model.image.frozen=2",
    "model.text.frozen=1",
    "optimizer.image_layer_decay=0.8",
    "train.ema_decay=0.9",
    "train.activation_checkpointing=true",
]


def test_all_options_together_resume_exactly(home: Path) -> None:
    """Two steps and two more are four: losses, weights and averages, to the last bit."""
    train(home, "name=whole", *OPTIONS)
    for steps in (2, 4):
        train(home, "name=parts", f"train.steps={steps}", *OPTIONS)
    assert losses(home, "parts") == losses(home, "whole")
    assert len(set(losses(home, "whole"))) == 4
    whole, parts = (
        load_pretrained(home / "runs" / run / "model").model.state_dict()
        for run in ("whole", "parts")
    )
    assert all(torch.equal(parts[key], value) for key, value in whole.items())


def test_frozen_layers_leave_the_run_as_they_came(home: Path) -> None:
    first = home / "runs" / "first"
    train(
        home, "name=frozen", f"model.init={first}", "model.image.frozen=-1", "model.text.frozen=1"
    )
    source, got = (
        load_pretrained(home / "runs" / run / "model").model.state_dict()
        for run in ("first", "frozen")
    )
    same = {key for key, value in source.items() if torch.equal(got[key], value)}
    frozen = ("visual.trunk.", "text.transformer.embeddings.", "text.transformer.encoder.layer.0.")
    assert {key for key in source if key.startswith(frozen)} <= same
    assert not same & {"visual.head.proj.weight", "text.proj.weight", "logit_scale"}


def test_the_model_folder_holds_the_average(home: Path) -> None:
    trainer = train(home, "name=average", "train.ema_decay=0.5")
    assert trainer.average is not None
    saved = load_pretrained(home / "runs" / "average" / "model").model.state_dict()
    own = dict(trainer.model.named_parameters())
    for key, value in trainer.average.state_dict().items():
        assert torch.equal(saved[key], value), key
    assert not torch.equal(saved["logit_scale"], own["logit_scale"])
