"""Training as its users run it: killed, resumed, reported, exported, and configured wrongly."""

import dataclasses
import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from eval.retrieval import recall
from tests.shard_factory import make_samples, make_shards, write_shards
from tests.vlp.tiny import RUN
from vlp import checkpoint
from vlp.config import UserError, load_config
from vlp.data.image import open_rgb
from vlp.data.index import open_shards
from vlp.models.hub import load_pretrained
from vlp.reporting import read_metrics, rewind
from vlp.settings import Config
from vlp.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_shards(tmp_path / "shards", (9, 8, 5, 1), val=(7,), width=64, height=64)
    (tmp_path / "c.yaml").write_text(RUN)
    return tmp_path


def settings(home: Path, *overrides: str) -> list[str]:
    return [
        str(home / "c.yaml"),
        f"runs={home / 'runs'}",
        f"data.sources.a.path={home / 'shards'}",
        *overrides,
    ]


def train(home: Path, *overrides: str) -> Trainer:
    """Train in this process."""
    trainer = Trainer(load_config(Config, settings(home, *overrides)), evaluate=recall)
    trainer.fit()
    return trainer


def start(home: Path, *overrides: str, ranks: int = 2) -> subprocess.Popen[str]:
    """Train as a user does; 0 ranks is without torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *(torchrun if ranks else []), "train.py"]
    return subprocess.Popen(
        [*command, *settings(home, *overrides)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_tree(process: subprocess.Popen[str]) -> None:
    """kill -9 for torchrun, its ranks (which lead groups of their own) and their workers."""
    doomed = [process.pid]
    for pid in doomed:  # grows while it is read: children of children
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            doomed += [int(child) for child in task.read_text().split()]
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def numbers(home: Path, run: str = "run") -> list[dict[str, Any]]:
    """The metrics without timings."""
    rows = read_metrics(home / "runs" / run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]


def test_killed_and_restarted_equals_uninterrupted(home: Path) -> None:
    """Two ranks, kill -9 between checkpoints; every metric of every step is the same, exactly."""
    long = ["train.steps=24", "train.eval_every=12"]
    finish(start(home, "name=whole", *long))
    process = start(home, "name=cut", *long)
    metrics = home / "runs" / "cut" / "metrics.jsonl"
    deadline = time.time() + 200
    while not metrics.is_file() or len(read_metrics(metrics)) < 7:
        assert time.time() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    kill_tree(process)
    assert checkpoint.steps(home / "runs" / "cut" / "checkpoints")[-1] < 24
    output = finish(start(home, "name=cut", *long))
    assert "resumed after step" in output
    assert numbers(home, "cut") == numbers(home, "whole")
    assert len(numbers(home, "whole")) == 24 + 2  # and two evaluations
    folders = [home / "runs" / name / "model" for name in ("cut", "whole")]
    first, second = (load_pretrained(folder).model.state_dict() for folder in folders)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_one_rank_equals_two(home: Path) -> None:
    """The same global batches; sums in another order move a loss of about 2 by less than 1e-3."""
    finish(start(home, "name=two"))
    train(home, "name=one", "data.workers=0")
    for one, two in zip(numbers(home, "one"), numbers(home, "two"), strict=True):
        assert one["step"] == two["step"]
        if "train/loss" in one:
            assert one["train/loss"] == pytest.approx(two["train/loss"], abs=1e-3)
            assert one["train/learning_rate"] == two["train/learning_rate"]


def test_folder_of_a_run(home: Path) -> None:
    """The resolved configuration, metrics, checkpoints, and a model that open_clip loads."""
    trainer = train(home)
    folder = home / "runs" / "run"
    assert load_config(Config, [str(folder / "config.yaml")]) == trainer.config
    assert checkpoint.steps(folder / "checkpoints") == [8, 12]
    rows = read_metrics(folder / "metrics.jsonl")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 12
    assert all(math.isfinite(loss) for loss in losses)
    assert [row["step"] for row in rows if "val/image_to_text_recall@1" in row] == [6, 12]
    for key in ("train/scale", "train/gradient_norm", "perf/data_wait", "perf/tokens_per_second"):
        assert rows[0][key] >= 0
    assert rows[0]["train/scale"] == pytest.approx(1 / 0.07, rel=0.01)

    name = f"local-dir:{folder / 'model'}"
    theirs, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenize = open_clip.get_tokenizer(name)
    shards = open_shards(home / "shards", "val")
    raw = [shards.read(i) for i in range(len(shards))]
    with torch.no_grad():
        images = torch.stack([preprocess(open_rgb(sample.image)) for sample in raw])
        texts = [sample.caption.decode() for sample in raw]
        trainer.model.eval()
        got = trainer.model.encode_image(images, normalize=True)
        assert (got - theirs.eval().encode_image(images, normalize=True)).abs().max() <= 1e-5
        got = trainer.model.encode_text(trainer.tokenizer(texts), normalize=True)
        want = theirs.encode_text(tokenize(texts), normalize=True)
        assert (got - want).abs().max() <= 1e-5
        # The evaluation in the loop used the same features.
        scores = recall(theirs.encode_image(images), theirs.encode_text(tokenize(texts)))
    assert rows[-1]["val/text_to_image_recall@5"] == pytest.approx(scores["text_to_image_recall@5"])


def test_it_learns(home: Path) -> None:
    """Eight distinct pairs are told apart: the loss falls far below chance, log 8 = 2.08."""
    write_shards(home / "eight", [("train", make_samples(8, 5, width=64, height=64))])
    train(
        home,
        f"data.sources.a.path={home / 'eight'}",
        "train.steps=150",
        "data.workers=0",
        "train.checkpoint_every=150",
        "data.crop_scale=[1,1]",
    )
    losses = [row["train/loss"] for row in numbers(home)]
    assert losses[-1] < 0.7 < 2 < losses[0]


def test_learns_the_same_with_stochastic_depth_after_resume(home: Path) -> None:
    overrides = ["model.image.drop_path=0.3", "data.workers=0"]
    train(home, "name=whole", *overrides)
    train(home, "name=cut", *overrides)
    shutil.rmtree(home / "runs/cut/checkpoints/step-000000012")  # as if killed after step 8
    train(home, "name=cut", *overrides)
    assert numbers(home, "cut") == numbers(home, "whole")


def test_a_finished_run_stays_as_it_is(home: Path) -> None:
    train(home, "data.workers=0")
    before = (home / "runs" / "run" / "metrics.jsonl").read_bytes()
    train(home, "data.workers=0")
    assert (home / "runs" / "run" / "metrics.jsonl").read_bytes() == before


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: protocol buffers in LevelDB's log format.

    After a header of 7 bytes come blocks of 32 KiB with chunks of (crc, length, type, data), where
    type 1 is a whole record and 2, 3, 4 are its first, middle and last part.
    """
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # waits for W&B's process, which writes the file's last 32 KiB when it ends
    data, at, record = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block that is too short for a chunk
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            message = wandb_internal_pb2.Record()
            message.ParseFromString(record)
            yield message
            record = b""


def test_wandb_offline_run_holds_the_metrics(home: Path) -> None:
    train(home, "report.wandb=offline", "data.workers=0", "train.steps=4")
    (path,) = (home / "runs" / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    rows, names, commits = [], set(), set()
    for record in wandb_records(path):
        items = record.history.item
        rows.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
        names |= {item.key for item in record.run.config.update}
        commits |= {record.run.git.commit} - {""}
    logged = [row for row in rows if "train/loss" in row]
    want = [row for row in read_metrics(home / "runs/run/metrics.jsonl") if "train/loss" in row]
    assert [row["train/loss"] for row in logged] == [row["train/loss"] for row in want]
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    assert {"model", "data", "optimizer", "train"} <= names
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert commits == ({git.stdout.strip()} - {""})  # none where this is no checkout


def test_reports_rewind_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "val/x": 1}\n{"step": 3}\n{"step": 4, "tr')
    rewind(path, 2)
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "val/x": 1}]
    rewind(tmp_path / "absent.jsonl", 2)


def test_checkpoint_of_another_architecture(home: Path) -> None:
    train(home, "data.workers=0")
    with pytest.raises(UserError) as caught:
        train(home, "data.workers=0", "model.text.layers=3")
    assert "step-000000012: of another model or optimiser (64 missing: model.text." in str(
        caught.value
    )
    with pytest.raises(UserError, match=r"of another shape: .*settings that it was made with"):
        train(home, "data.workers=0", "model.embed_dim=16")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.batch_size=4",
            "made with train.batch_size=8, now it is 4; samples would be repeated",
        ),
        ("seed=1", "made with seed=0, now it is 1"),
        ("data.sources.a.weight=2", "made with samples per epoch={'a': 23}, now it is {'a': 46}"),
        ("train.resume=never", "has a checkpoint, and train.resume=never; set another name"),
    ],
)
def test_settings_that_would_break_a_resumed_run(home: Path, override: str, message: str) -> None:
    train(home, "data.workers=0", "train.steps=2")
    with pytest.raises(UserError) as caught:
        train(home, "data.workers=0", override)
    assert message in str(caught.value)


def test_batch_larger_than_the_data(home: Path) -> None:
    with pytest.raises(UserError, match=r"batch_size=64 is more than the 23 training samples"):
        train(home, "train.batch_size=64")


def test_loss_that_is_not_finite_names_step_and_samples(home: Path) -> None:
    class Poisoned(Trainer):
        def _train_step(self, batch: Any) -> Any:
            result = super()._train_step(batch)
            if self.step == 2:
                self.bad = batch.keys
                return result._replace(loss=torch.tensor(math.nan))
            return result

    trainer = Poisoned(
        load_config(Config, settings(home, "train.log_every=4", "data.workers=0")), evaluate=recall
    )
    with pytest.raises(UserError, match="the loss of step 3 is not finite") as caught:
        trainer.fit()
    assert trainer.bad[0] in str(caught.value)
    assert checkpoint.steps(home / "runs" / "run" / "checkpoints") == []  # nothing bad was saved


def broken_shards(folder: Path, bad: int) -> Path:
    samples = make_samples(40, 3, width=64, height=64)
    for number in range(bad):
        samples[number] = dataclasses.replace(samples[number], image=b"not an image")
    return write_shards(folder, [("train", samples)])


def test_broken_samples_are_counted_and_named(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = broken_shards(home / "broken", 2)
    train(home, f"data.sources.a.path={folder}", "data.workers=0", "train.steps=5")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("broken")]
    assert all(
        line.endswith("the file starts with 6e 6f 74 20 61 6e 20 69; replaced") for line in lines
    )
    # One epoch meets both; a replacement may hit the other one, which is told and counted too.
    assert len({line.split(":")[0] for line in lines}) == 2
    assert numbers(home)[-1]["data/broken"] == len(lines)


def test_too_many_broken_samples_stop_the_run(home: Path) -> None:
    folder = broken_shards(home / "broken", 20)
    with pytest.raises(UserError, match=r"of \d+ samples were broken, more than data.max_broken"):
        train(home, f"data.sources.a.path={folder}", "data.workers=0", "train.steps=30")


@pytest.mark.parametrize(
    ("overrides", "ranks", "message"),
    [
        (
            ["train.batchsize=8"],
            1,
            "unknown key 'train.batchsize'; did you mean 'train.batch_size'?",
        ),
        (["train.batch_size=9"], 2, "train.batch_size=9 is not divisible by 2 processes"),
        (["data.sources.a.path=nowhere"], 0, "nowhere: no such shard folder"),
    ],
)
def test_the_program_says_it_in_one_line(
    home: Path, overrides: list[str], ranks: int, message: str
) -> None:
    process = start(home, *overrides, ranks=ranks)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    assert message in lines[0]


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda p: p.name)
def test_every_training_configuration_loads(path: Path) -> None:
    assert load_config(Config, [str(path)]).name
