"""Train a dual encoder: `torchrun --nproc-per-node N train.py CONFIG.yaml [key=value ...]`.

One process without torchrun works too. This is the one place that hands evaluations to the trainer.
"""

import os

from eval.retrieval import recall
from vlp import distributed
from vlp.config import UserError, load_config, run_program
from vlp.trainer import Config, Trainer


def main(argv: list[str]) -> None:
    try:
        config = load_config(Config, argv, "torchrun --nproc-per-node N train.py")
    except UserError:
        if os.environ.get("RANK", "0") != "0":
            raise SystemExit(2) from None  # every rank finds the same: one line is enough
        raise
    try:
        trainer = Trainer(config, evaluate=recall)
        trainer.fit()
        if trainer.world.is_main:
            print(f"model: {config.folder / 'model'}")
    finally:
        distributed.stop()


if __name__ == "__main__":
    run_program(main)
