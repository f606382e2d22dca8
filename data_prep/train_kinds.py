"""`python -m data_prep.train_kinds`: trains the classifier of image kinds on generated figures.

Writes kinds.json beside this module, with the confusion matrix on other generated figures. The
same settings and library versions give the same bytes; other versions may move the last digits.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from data_prep.kind_examples import example
from data_prep.kinds import FEATURES, KINDS, WEIGHTS, Floats, Network, features
from vlp.config import load_config, run_program

HELD_OUT = 1
"""Added to the seed for the figures on which the result is tested."""
_DECIMALS = 4
_SHARES = {"image": 0.3, "plot": 0.3, "diagram": 0.13, "table": 0.05, "other": 0.22}
"""How common the kinds are taken to be; examples of each are equally many, but count so much."""


@dataclass(frozen=True, kw_only=True)
class TrainKindsConfig:
    """Train the classifier of image kinds."""

    out: str = str(WEIGHTS)
    """File to write."""
    examples: int = 400
    """Generated figures of each kind to train on."""
    held_out: int = 100
    """Generated figures of each kind, of another seed, to test on."""
    seed: int = 0
    """Seed of figures and weights."""
    hidden: int = 32
    """Width of the hidden layer."""
    steps: int = 1500
    """Steps of Adam on all figures at once."""
    decay: float = 0.02
    """Weight decay."""
    noise: float = 0.3
    """Noise on the standardised features: generated figures are more alike than real ones."""
    workers: int = 0
    """Processes; 0 takes one for each CPU core. Changes no byte of the result."""

    def __post_init__(self) -> None:
        if min(self.examples, self.held_out, self.hidden, self.steps) < 1:
            raise ValueError("examples, held_out, hidden, steps: set all to 1 or more")


def run(config: TrainKindsConfig) -> None:
    """Draw, train, test, write."""
    rows, kinds = draw(config.examples, config.seed, config.workers)
    network = rounded(train(rows, kinds, config))
    counts = confusion(network, *draw(config.held_out, config.seed + HELD_OUT, config.workers))
    stored = {
        "features": FEATURES,
        "kinds": KINDS,
        "examples": config.examples,
        "seed": config.seed,
        "held_out": counts.tolist(),
        "network": {name: values.tolist() for name, values in vars(network).items()},
    }
    out = Path(config.out)
    temporary = out.with_name(out.name + ".tmp")
    temporary.write_text(json.dumps(stored) + "\n", encoding="utf-8")
    os.replace(temporary, out)
    Console().print(confusion_table(counts))


def draw(number: int, seed: int, workers: int) -> tuple[Floats, np.ndarray]:
    """Features [N, D] and kinds [N] of `number` generated figures of each kind."""
    jobs = [(kind, index) for index in range(number) for kind in KINDS]
    with ProcessPoolExecutor(workers or os.cpu_count(), get_context("spawn")) as pool:
        found = pool.map(partial(_features_of, seed), jobs, chunksize=16)
        rows = np.stack(list(track(found, "drawing figures", len(jobs))))
    return rows, np.array([KINDS.index(kind) for kind, _ in jobs])


def _features_of(seed: int, job: tuple[str, int]) -> Floats:
    return features(example(job[0], seed, job[1]))


def train(rows: Floats, kinds: np.ndarray, config: TrainKindsConfig) -> Network:
    """Fit the network by Adam on the mean cross-entropy, all rows in each step."""
    rng = np.random.default_rng(config.seed)
    mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-3
    inputs = (rows - mean) / scale
    targets = np.eye(len(KINDS))[kinds]
    counted = np.array([len(KINDS) * _SHARES[kind] for kind in KINDS])[kinds][:, None]
    width = rows.shape[1]
    weights = [
        rng.normal(0, (2 / width) ** 0.5, (width, config.hidden)),
        np.zeros(config.hidden),
        rng.normal(0, config.hidden**-0.5, (config.hidden, len(KINDS))),
        np.zeros(len(KINDS)),
    ]
    first = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    unscaled = Network(np.zeros(width), np.ones(width), *weights)
    for step in range(1, config.steps + 1):
        noisy = inputs + rng.normal(0, config.noise, inputs.shape)
        rate = 0.01 * (1 - (step - 1) / config.steps)
        for index, slope in enumerate(_gradient(unscaled, noisy, targets, counted)):
            first[index] = 0.9 * first[index] + 0.1 * slope
            second[index] = 0.99 * second[index] + 0.01 * slope**2
            change = first[index] / (1 - 0.9**step)
            change /= np.sqrt(second[index] / (1 - 0.99**step)) + 1e-8
            weights[index] = weights[index] - rate * (change + config.decay * weights[index])
        unscaled = Network(np.zeros(width), np.ones(width), *weights)
    return Network(mean, scale, *weights)


def _gradient(
    network: Network, inputs: Floats, targets: Floats, counted: Floats
) -> tuple[Floats, ...]:
    """Of the mean cross-entropy, each row `counted` so much, for the four arrays of weights."""
    inner = np.maximum(0, inputs @ network.hidden + network.hidden_bias)
    error = counted * (network.probabilities(inputs) - targets) / len(inputs)
    back = (error @ network.output.T) * (inner > 0)
    return inputs.T @ back, back.sum(axis=0), inner.T @ error, error.sum(axis=0)


def rounded(network: Network) -> Network:
    """With as many digits as the file holds."""
    return Network(**{name: values.round(_DECIMALS) for name, values in vars(network).items()})


def confusion(network: Network, rows: Floats, kinds: np.ndarray) -> np.ndarray:
    """Counts [K, K]: rows are true kinds, columns found ones."""
    found = network.probabilities(rows).argmax(axis=1)
    counts = np.zeros((len(KINDS), len(KINDS)), np.int64)
    np.add.at(counts, (kinds, found), 1)
    return counts


def confusion_table(counts: np.ndarray) -> Table:
    """For the terminal."""
    table = Table("true kind", *KINDS, "recall")
    for kind, row in zip(KINDS, counts, strict=True):
        share = row[KINDS.index(kind)] / max(1, row.sum())
        table.add_row(kind, *(str(count) for count in row), f"{share:.3f}")
    table.add_row(
        "precision", *(f"{counts[k, k] / max(1, counts[:, k].sum()):.3f}" for k in range(5))
    )
    table.caption = f"accuracy {np.trace(counts) / counts.sum():.3f} of {counts.sum()}"
    return table


def main(argv: list[str]) -> None:
    """Entry point."""
    run(load_config(TrainKindsConfig, argv, "python -m data_prep.train_kinds"))


if __name__ == "__main__":
    run_program(main)
