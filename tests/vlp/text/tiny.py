"""A small run of language-model pretraining: two corpora, a model of a few thousand weights."""

import json
from pathlib import Path

from tests.vlp.text.test_vocabulary import TEXTS
from vlp.config import load_config
from vlp.text.settings import TextRunConfig

RUN = """
name: run
own_vocabulary: {size: 300}
model: {length: 24, max_positions: 32, width: 32, layers: 2, heads: 4, mlp_width: 48}
optimizer: {warmup_steps: 2, learning_rate: 3e-3}
split: {val_fraction: 0.2}
train: {batch_size: 8, steps: 12, log_every: 1, eval_every: 6, checkpoint_every: 4, workers: 0}
"""
"""Settings of a run of a few seconds."""


def write_corpus(path: Path, documents: int) -> None:
    """Documents of 1 to 6 captions and sentences, in paragraphs; every second has a summary."""
    lines = []
    for number in range(documents):
        texts = [TEXTS[(number + 3 * k) % len(TEXTS)] for k in range(1 + number % 6)]
        record = {"id": f"{path.stem}{number}", "text": texts}
        lines.append(
            json.dumps(record | ({"summary": f"{number}. {TEXTS[0]}"} if number % 2 else {}))
        )
    path.write_text("\n".join(lines))


def make_home(folder: Path) -> Path:
    """A folder with a configuration and the corpora `a` and `b`."""
    corpora = {}
    for name, documents in (("a", 40), ("b", 24)):
        write_corpus(folder / f"{name}.jsonl", documents)
        corpora[name] = {
            "path": str(folder / f"{name}.jsonl"),
            "fields": ["text", "summary"],
            "cleaning": {"ill_formed": False, "duplicates": "none"},
        }
    folders = {"runs": str(folder / "runs"), "cache": str(folder / "cache")}
    settings = json.dumps({**folders, "corpora": corpora})  # JSON is YAML, too
    (folder / "data.yaml").write_text(settings)
    (folder / "c.yaml").write_text(RUN)
    return folder


def arguments(home: Path, *overrides: str) -> list[str]:
    """The command line of a run in `home`, which `make_home` has made."""
    return [str(home / "c.yaml"), str(home / "data.yaml"), *overrides]


def settings(home: Path, *overrides: str) -> TextRunConfig:
    """The same as a configuration."""
    return load_config(TextRunConfig, arguments(home, *overrides))
