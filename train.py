"""Train a dual encoder: `torchrun --nproc-per-node N train.py CONFIG.yaml [key=value ...]`.

One process without torchrun works too. This is the one place that hands evaluations to the trainer.

Exit status: 0 the run is complete; 75 it was stopped by SIGTERM or SIGUSR1 and saved, the same
command goes on; 2 something has to be put right; 70 it hung. torchrun itself ends with 1 whenever
one of its processes has not ended with 0.
"""

import os

from eval.in_training import SuiteScorer
from eval.retrieval import recall
from vlp import distributed
from vlp.config import load_config, run_program
from vlp.dry_run import dry_run
from vlp.interrupt import STOPPED, Interrupt
from vlp.settings import Config
from vlp.trainer import Trainer


def _scorer(config: Config) -> SuiteScorer | None:
    """What scores the suite of the configuration; it is checked here, before training."""
    train = config.train
    if not train.suite or os.environ.get("RANK", "0") != "0":
        return None
    return SuiteScorer(train.suite, train.suite_data, train.device)


def main(argv: list[str]) -> None:
    """Train to the end, and say where the model is."""
    with distributed.session(), Interrupt() as interrupt:
        config = load_config(Config, argv, "torchrun --nproc-per-node N train.py")
        _train(config, interrupt)


def _train(config: Config, interrupt: Interrupt) -> None:
    trainer = Trainer(config, evaluate=recall, score=_scorer(config))
    if config.train.dry_run:
        for line in dry_run(trainer):
            if trainer.world.is_main:
                print(line)
        return
    if not trainer.fit(interrupt):
        raise SystemExit(STOPPED)
    if trainer.world.is_main:
        print(f"model: {config.folder / 'model'}")


if __name__ == "__main__":
    run_program(main)
