"""What an encoder knows by itself: a linear layer on it that tags entities or sorts sentences.

    python -m vlp.text.probe model=runs/NAME/model data=ner.jsonl only.dataset=BC5CDR-IOB

`frozen` trains the linear layer alone, `lora` low-rank changes of the encoder too, `full` all of
it; `random` is `frozen` on an encoder of the same shape that has learnt nothing. Each learning rate
is tried, and the one that is best on `val` is scored on `test`.

For entities a word is read at its first piece (Devlin et al. 2019, section 5.3), and an entity is
right if its kind and both its ends are. Words cut off at `length` count: their entities are missed.
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from vlp.config import load_config, run_program, to_dict, write_text
from vlp.optim import OptimizerConfig, adamw, learning_rate
from vlp.text.entities import OUTSIDE, Counts, Floats, Score, f1, macro_f1, micro_f1, score
from vlp.text.labelled import majority
from vlp.text.probe_rows import Encoder, Features, compute_each_time, compute_once
from vlp.text.probe_setting import ProbeConfig, Setting, Way


class Trained(NamedTuple):
    """A linear layer and the rows that it reads, by split."""

    head: nn.Module
    rows: dict[str, Features]
    rate: float
    trained: int
    """Parameters that were trained."""

    @torch.no_grad()
    def predict(self, setting: Setting, split: str) -> list[tuple[str, ...]]:
        """The labels of each sentence; O for words that were cut off."""
        found, batch = [], setting.config.batch
        sentences, encoded = setting.splits[split], setting.encoded[split]
        for start in range(0, len(sentences), batch):
            numbers = range(start, min(start + batch, len(sentences)))
            best = self.head(self.rows[split](numbers)).argmax(-1).tolist()
            place = 0
            for number in numbers:
                labels = [OUTSIDE] * len(sentences[number].labels)
                for unit in encoded[number].units.tolist():
                    labels[unit] = setting.labels[best[place]]
                    place += 1
                found.append(tuple(labels))
        return found


class Course(NamedTuple):
    """One training: what differs between them."""

    rate: float
    epochs: int
    seed: int


def train(setting: Setting, encoder: Encoder, rows: dict[str, Features], course: Course) -> Trained:
    """Train a new linear layer, and of the encoder what is not frozen."""
    config, sentences = setting.config, setting.encoded["train"]
    torch.manual_seed(course.seed)
    head = nn.Linear(setting.base.config.width, len(setting.labels)).to(setting.device)
    both = nn.ModuleDict({"encoder": encoder, "head": head}).train()
    learnt = [p for p in both.parameters() if p.requires_grad]
    steps = course.epochs * -(-len(sentences) // config.batch)
    recipe = OptimizerConfig(
        learning_rate=course.rate,
        betas=(0.9, 0.999),
        weight_decay=0.01,
        warmup_steps=steps // 10,
        schedule="linear",
    )
    optimizer, step = adamw(both, recipe), 0
    rng = np.random.default_rng(course.seed)
    for _ in range(course.epochs):
        order = rng.permutation(len(sentences))
        for start in range(0, len(order), config.batch):
            chosen = order[start : start + config.batch].tolist()
            found = np.concatenate([sentences[number].targets for number in chosen])
            targets = torch.from_numpy(found).to(setting.device)
            loss = F.cross_entropy(head(rows["train"](chosen)), targets, reduction="sum")
            optimizer.zero_grad(set_to_none=True)
            (loss / max(len(targets), 1)).backward()
            nn.utils.clip_grad_norm_(learnt, recipe.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, recipe)
            optimizer.step()
            step += 1
    both.eval()
    return Trained(head, rows, course.rate, sum(p.numel() for p in learnt))


def train_way(setting: Setting, way: Way, seed: int) -> tuple[Trained, Counts]:
    """Train with each learning rate; the best on `val`, and its counts on `test`."""
    config = setting.config
    shared: dict[str, Features] = {}
    if way in ("random", "frozen"):
        encoder = setting.encoder(way, seed)
        shared = {
            split: compute_once(encoder, sentences, config.batch)
            for split, sentences in setting.encoded.items()
        }
    reached: list[tuple[float, Trained]] = []
    rates, epochs = config.training(way)
    for rate in rates:
        rows = shared
        if not shared:
            encoder = setting.encoder(way, seed)
            rows = {
                split: compute_each_time(encoder, sentences)
                for split, sentences in setting.encoded.items()
            }
        trained = train(setting, encoder, rows, Course(rate, epochs, seed))
        counts = setting.count("val", trained.predict(setting, "val"))
        reached.append((float(micro_f1(counts.sum(0))), trained))
    _, best = max(reached, key=lambda pair: pair[0])
    return best, setting.count("test", best.predict(setting, "test"))


def measures(setting: Setting) -> dict[str, Callable[[Counts], Floats]]:
    """The scores of a task by name, the main one first."""
    if setting.config.task == "sentences":
        return {"accuracy": micro_f1, "macro F1": macro_f1}
    single = {
        f"F1 of {kind}": partial(_of_kind, number) for number, kind in enumerate(setting.kinds)
    }
    return {"micro F1": micro_f1, **(single if len(single) > 1 else {})}


def _of_kind(number: int, counts: Counts) -> Floats:
    return f1(counts[..., number, :])


def scores(setting: Setting, counts: Sequence[Counts]) -> dict[str, Score]:
    """Each measure of the counts of one or more seeds."""
    stacked = np.stack(counts)
    return {
        name: score(stacked, of, setting.config.resamples) for name, of in measures(setting).items()
    }


def probe(config: ProbeConfig, console: Console) -> dict[str, Any]:
    """Train and score in every way; returns what `out` gets: plain values for JSON.

    Raises:
        UserError: bad data, a bad model, or settings that don't fit them.
    """
    setting = Setting.of(config)
    console.print(setting.describe(), highlight=False)
    test = setting.splits["test"]
    usual = setting.count("test", majority(setting.splits["train"], test, config.task))
    found: dict[str, Any] = {"baseline": {"scores": _plain(scores(setting, [usual]))}}
    for way in config.ways:
        rates, counts, size = [], [], 0
        for seed in range(config.seeds):
            best, of_test = train_way(setting, way, seed)
            rates.append(best.rate)
            counts.append(of_test)
            size = best.trained
            del best  # with its encoder
        reached = scores(setting, counts)
        found[way] = {"scores": _plain(reached), "trained": size, "rates": rates}
        first = next(iter(reached))
        console.print(f"{way}: {first} {reached[first].value:.3f}", highlight=False)
    result = {"data": setting.facts(), "found": found, "settings": to_dict(config)}
    if config.out:
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        write_text(config.out, json.dumps(result, indent=1) + "\n")
    return result


def _plain(reached: dict[str, Score]) -> dict[str, Any]:
    return {name: one._asdict() for name, one in reached.items()}


def table(result: dict[str, Any]) -> Table:
    """The scores, each with its interval and the least and greatest of the seeds."""
    shown = Table()
    for name in ("what is trained", "score"):
        shown.add_column(name)
    for name in ("value", "95% interval", "seeds", "parameters", "learning rate"):
        shown.add_column(name, justify="right")
    for way, row in result["found"].items():
        shown.add_section()
        first = [f"nothing: {result['data']['baseline']}" if way == "baseline" else WHAT[way]]
        last = ["", ""]
        if way != "baseline":
            rates = sorted(set(row["rates"]))
            last = [f"{row['trained']:,}", ", ".join(f"{rate:g}" for rate in rates)]
        for name, one in row["scores"].items():
            seeds = f"{min(one['seeds']):.3f} - {max(one['seeds']):.3f}"
            interval = f"{one['low']:.3f} - {one['high']:.3f}"
            cells = [name, f"{one['value']:.3f}", interval, seeds if way != "baseline" else ""]
            shown.add_row(*(first or [""]), *cells, *last)
            first, last = [], ["", ""]
    return shown


WHAT = {
    "random": "linear layer on random weights",
    "frozen": "linear layer",
    "lora": "linear layer and LoRA",
    "full": "everything",
}


def main(argv: Sequence[str]) -> None:
    """Probe and print."""
    config = load_config(ProbeConfig, argv, "python -m vlp.text.probe")
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table(probe(config, console)))


if __name__ == "__main__":
    run_program(main)
