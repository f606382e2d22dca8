"""Retrieval after a short CLIP training: the real programs, and how they are run."""

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.shard_factory import make_shards
from tests.vlp.text.tiny import arguments, make_home, settings
from tests.vlp.tiny import RUN
from vlp.config import UserError, load_config
from vlp.curves import read_metrics
from vlp.interrupt import Interrupt
from vlp.settings import Config
from vlp.text import clip_retrieval
from vlp.text.clip_retrieval import SCORES, encoder_retrieval, launcher
from vlp.text_pretrain import main, train


def in_this_process(command: Sequence[str], heard: Callable[[], int]) -> None:
    """Instead of a process of its own, which takes seconds to begin."""
    module, rest = ("eval.__main__", command[3:]) if "-m" in command else ("train", command[2:])
    importlib.import_module(module).main(list(rest))


def no_signal() -> int:
    return 0


def test_an_encoder_is_trained_on_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From text to recall@1 of held-out pairs; a second time nothing is run."""
    home = make_home(tmp_path)
    config = settings(home, "name=arms/one", "train.steps=2", "train.eval_every=0", "seed=5")
    train(config, Interrupt())
    make_shards(tmp_path / "shards", (9, 8), val=(7,), width=64, height=64)
    clip = tmp_path / "clip.yaml"
    clip.write_text(f"{RUN}\n".replace("workers: 1", "workers: 0"))
    options = {"sources": {"figures": {"path": str(tmp_path / "shards")}}, "workers": 0}
    clip.write_text(RUN.replace("data: {workers: 1}", f"data: {json.dumps(options)}"))
    monkeypatch.setattr(clip_retrieval, "_run", in_this_process)
    scores = encoder_retrieval(config, str(clip), no_signal)

    (folder,) = (config.folder / "clip").iterdir()
    made = load_config(Config, [str(folder / "clip" / "config.yaml")])
    assert made.model.text.init == str(config.folder / "model")
    assert made.model.text.context_length == 24  # the encoder's; the file says 32
    assert (made.model.text.width, made.model.text.mlp_width, made.seed) == (32, 48, 5)
    record = json.loads((folder / "eval" / "figures.json").read_text())
    assert record["data"]["split"] == scores["figures"]["split"] == "val"  # there is no test split
    assert scores["figures"]["n"] == record["n"] == 7
    for name in ("image_to_text_recall@1", "text_to_image_recall@10"):
        want = record["scores"][name]
        assert scores["figures"][name] == {k: want[k] for k in ("value", "low", "high", "chance")}
        assert 0 <= want["low"] <= want["value"] <= want["high"] <= 1

    monkeypatch.setattr(clip_retrieval, "_run", lambda *_: pytest.fail("ran again"))
    assert encoder_retrieval(config, str(clip), no_signal) == scores
    assert json.loads((folder / SCORES).read_text())["scores"] == scores
    # With other settings the CLIP is trained again, from the start.
    rate = "learning_rate: 1e-3"
    assert rate in clip.read_text()
    clip.write_text(clip.read_text().replace(rate, "learning_rate: 2e-3"))
    monkeypatch.setattr(clip_retrieval, "_run", in_this_process)
    encoder_retrieval(config, str(clip), no_signal)
    (other,) = set((config.folder / "clip").iterdir()) - {folder}
    first, second = (read_metrics(each / "clip" / "metrics.jsonl") for each in (folder, other))
    assert [row["step"] for row in second] == [row["step"] for row in first]
    key = "train/learning_rate"
    assert second[0][key] == 2 * first[0][key] > 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", r"clip=.*clip\.yaml: it names no data\.sources"),
        ("data: {sources: {x: {path: FOLDER}}}", "has neither a test split nor 'val'"),
        ("data: {sources: {x: {path: FOLDER/none}}}", "none"),
    ],
)
def test_what_a_clip_lacks_is_told_before_the_first_arm(
    tmp_path: Path, data: str, message: str
) -> None:
    home = make_home(tmp_path)
    make_shards(tmp_path / "shards", (3,), width=64, height=64)
    clip = tmp_path / "clip.yaml"
    clip.write_text(f"name: clip\n{data.replace('FOLDER', str(tmp_path / 'shards'))}\n")
    (tmp_path / "arms.yaml").write_text(json.dumps({"arms": {"one": []}}))
    with pytest.raises(UserError, match=message):
        main(arguments(home, str(tmp_path / "arms.yaml"), f"clip={clip}"))
    assert not (home / "runs").exists()
    with pytest.raises(UserError, match="clip: it compares arms"):
        settings(home, f"clip={clip}")


def program(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_programs_are_alone_and_find_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    out = tmp_path / "environment.json"
    write = f"import json, os; json.dump(dict(os.environ), open({str(out)!r}, 'w'))"
    clip_retrieval._run(program(write), no_signal)
    found = json.loads(out.read_text())
    assert not [name for name in found if "RANK" in name or "WORLD" in name or "MASTER" in name]
    assert (Path(found["PYTHONPATH"].split(os.pathsep)[0]) / "train.py").is_file()


def test_a_program_that_fails_is_named() -> None:
    with pytest.raises(UserError, match="ended with status 3; it says why above"):
        clip_retrieval._run(program("raise SystemExit(3)"), no_signal)


def test_a_program_that_was_stopped_stops_this_one() -> None:
    with pytest.raises(SystemExit) as caught:
        clip_retrieval._run(program("raise SystemExit(75)"), no_signal)
    assert caught.value.code == 75


def test_a_signal_is_handed_on() -> None:
    """The program ends by the signal, long before its sleep is over."""
    heard: list[int] = []
    threading.Timer(0.5, heard.append, [signal.SIGTERM]).start()
    start = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        clip_retrieval._run(program("import time; time.sleep(60)"), lambda: sum(heard[:1]))
    assert caught.value.code == 75
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(("count", "more"), [("1", []), ("4", ["--nproc-per-node", "4"])])
def test_as_many_processes_as_this_program_has(
    monkeypatch: pytest.MonkeyPatch, count: str, more: list[Any]
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", count)
    assert launcher()[0] == sys.executable
    assert launcher()[-2:] == more or launcher() == [sys.executable]
    assert len(launcher()) == (1 if count == "1" else 6)
