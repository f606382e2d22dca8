"""What counts in the end: retrieval after the same short CLIP training with each encoder.

train.py and `python -m eval` are programs of the checkout that this library knows nothing of, so
they are run as a person would run them.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlp.config import UserError, load_config, write_text
from vlp.data.index import splits
from vlp.interrupt import STOPPED
from vlp.models.hub import bert_text_config, read_settings
from vlp.settings import Config
from vlp.text.settings import TextRunConfig

CHECKOUT = Path(__file__).parents[2]
SCORES = "retrieval.json"
RECALLS = tuple(f"{way}_recall@{k}" for k in (1, 10) for way in ("image_to_text", "text_to_image"))
_SHAPE = ("max_positions", "width", "layers", "heads", "mlp_width")
_TORCHRUN = ("MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_", "LOCAL_", "WORLD_SIZE", "RANK")
"""Variables that begin like this place a process among others, which a program of its own isn't."""


def check_clip(clip: str) -> Config:
    """The configuration of the CLIP training, before hours are spent on encoders for it.

    Raises:
        UserError: it can't be read or has no data, or train.py is not at hand.
    """
    config = load_config(Config, [clip])
    if not config.data.sources:
        raise UserError(f"clip={clip}: it names no data.sources")
    if not (CHECKOUT / "train.py").is_file():
        raise UserError(f"clip={clip}: {CHECKOUT / 'train.py'} is missing; run from the checkout")
    for name, source in config.data.sources.items():
        _task(name, source.path, config)
    return config


def clip_overrides(clip: str, encoder: Path, length: int, seed: int) -> list[str]:
    """Settings of train.py that put an encoder into a CLIP.

    Args:
        clip: train.py's configuration.
        encoder: folder of a pretrained encoder.
        length: tokens of its sequences; captions are cut to so many, since it knows no more places.
        seed: of weights and order.
    """
    config = load_config(Config, [clip])
    file = encoder / "config.json"
    theirs = bert_text_config(read_settings(file), str(file), context_length=3)
    return [
        f"model.text.init={encoder}",
        f"model.text.context_length={min(length, config.model.text.context_length)}",
        *(f"model.text.{key}={getattr(theirs, key)}" for key in _SHAPE),
        f"seed={seed}",
    ]


def encoder_retrieval(config: TextRunConfig, clip: str, heard: Callable[[], int]) -> dict[str, Any]:
    """Retrieval of a CLIP that starts from the encoder of a finished run: see `score_encoder`."""
    encoder = (config.folder / "model").absolute()
    overrides = clip_overrides(clip, encoder, config.model.length, config.seed)
    return score_encoder(clip, overrides, config.folder / "clip", heard)


def score_encoder(
    clip: str, overrides: Sequence[str], folder: Path, heard: Callable[[], int]
) -> dict[str, Any]:
    """Train a CLIP and score its retrieval on each of its sources, unless that was done before.

    Args:
        clip: train.py's configuration.
        overrides: of `clip_overrides`.
        folder: gets a folder for these settings, with the CLIP run and retrieval.json.
        heard: the number of a signal to stop for, 0 if there is none.

    Returns:
        Source -> split, n and RECALLS with bounds and chance.

    Raises:
        UserError: a program failed; it has said why.
        SystemExit: status 75, it was stopped.
    """
    # Other settings are another run: one that has ended would only be "resumed" with them.
    key = hashlib.sha256(Path(clip).read_bytes() + "\n".join(overrides).encode()).hexdigest()
    folder = folder / key[:12]
    file = folder / SCORES
    if file.is_file():
        return dict(json.loads(file.read_text("utf-8"))["scores"])
    command = [*launcher(), str(CHECKOUT / "train.py"), clip, *overrides]
    _run([*command, "name=clip", f"runs={folder}"], heard)
    suite, out = folder / "suite.yaml", folder / "eval"
    config = load_config(Config, [clip])
    tasks = {name: _task(name, source.path, config) for name, source in config.data.sources.items()}
    write_text(suite, yaml.safe_dump({"name": "retrieval", "tasks": tasks}, sort_keys=False))
    command = [sys.executable, "-m", "eval", str(suite), f"model={folder / 'clip' / 'model'}"]
    _run([*command, "data_root=.", f"out={out}"], heard)
    scores = {name: {"split": t["data"]["split"], **_read(out, name)} for name, t in tasks.items()}
    write_text(file, json.dumps({"clip": clip, "scores": scores}, indent=2) + "\n")
    return scores


def launcher() -> list[str]:
    """How train.py is started: on as many processes of this machine as this program has."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if count == "1":
        return [sys.executable]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*run, "--nproc-per-node", count]


def _task(name: str, path: str, config: Config) -> dict[str, Any]:
    """Retrieval among the held-out pairs of a source, as in configs/eval/tasks."""
    has = splits(path)
    split = "test" if "test" in has else config.data.validation_split
    if split not in has:
        raise UserError(f"{path}: has neither a test split nor '{split}' to score retrieval on")
    return {
        "kind": "retrieval",
        "source": f"Held-out pairs of {name}; recall@k as in CLIP_benchmark.",
        "data": {"reader": "shards", "path": path, "split": split},
        "cluster": "article",
    }


def _read(out: Path, name: str) -> dict[str, Any]:
    record = json.loads((out / f"{name}.json").read_text("utf-8"))
    keys = ("value", "low", "high", "chance")
    kept = {name: {key: record["scores"][name][key] for key in keys} for name in RECALLS}
    return {"n": record["n"], **kept}


def _run(command: Sequence[str], heard: Callable[[], int]) -> None:
    """Run a program to its end, and hand on a signal.

    Raises:
        UserError: it failed.
        SystemExit: status 75, it was stopped.
    """
    kept = {key: v for key, v in os.environ.items() if not key.startswith(_TORCHRUN)}
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    told = 0
    with subprocess.Popen(command, env={**kept, "PYTHONPATH": os.pathsep.join(paths)}) as program:
        while program.poll() is None:
            time.sleep(0.2)
            if heard() and not told:
                told = heard()
                program.send_signal(signal.Signals(told))
    if told or program.returncode == STOPPED:
        raise SystemExit(STOPPED)
    if program.returncode:
        raise UserError(
            f"{' '.join(command[1:4])} ...: ended with status {program.returncode}; it says why "
            "above: put that right, then run the same command again"
        )
