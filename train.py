"""Train a dual encoder: `torchrun --nproc-per-node N train.py CONFIG.yaml [key=value ...]`.

One process without torchrun works too. This is the one place that hands evaluations to the trainer.
"""

import os
import time

from eval.retrieval import recall
from vlp import distributed
from vlp.config import UserError, load_config, run_program
from vlp.trainer import Config, Trainer


def main(argv: list[str]) -> None:
    """Train to the end, and say where the model is."""
    try:
        config = load_config(Config, argv, "torchrun --nproc-per-node N train.py")
        trainer = Trainer(config, evaluate=recall)
        trainer.fit()
        if trainer.world.is_main:
            print(f"model: {config.folder / 'model'}")
    except UserError:
        # Most faults are common to all ranks. Rank 0 tells, torchrun then stops the others; what
        # only another rank sees is told by that rank, after this pause.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(5)
        raise
    finally:
        distributed.stop()


if __name__ == "__main__":
    run_program(main)
