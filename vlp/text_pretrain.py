"""Pretrain a text encoder: `python -m vlp.text_pretrain CONFIG.yaml [key=value ...]`.

On several devices `torchrun --nproc-per-node N -m vlp.text_pretrain ...`. RUNS/NAME/model is then a
folder that transformers loads, and the CLIP trainer by `model.text.init=RUNS/NAME/model`.

Exit status: 0 the run is complete; 75 it was stopped by SIGTERM or SIGUSR1 and saved, the same
command goes on; 2 something has to be put right; 70 it hung. torchrun itself ends with 1 whenever
one of its processes has not ended with 0.
"""

from functools import partial

from vlp import distributed
from vlp.config import load_config, run_program
from vlp.interrupt import STOPPED, Interrupt
from vlp.text import forgetting
from vlp.text.clip_retrieval import check_clip, encoder_retrieval
from vlp.text.factorial import Approve, run_arms
from vlp.text.settings import TextRunConfig
from vlp.text.trainer import TextTrainer


def main(argv: list[str]) -> None:
    """Train to the end, and say where the model is."""
    with distributed.session(), Interrupt() as interrupt:
        config = load_config(TextRunConfig, argv, "python -m vlp.text_pretrain")
        if config.arms:
            if config.clip:
                check_clip(config.clip)
            run_arms(
                *(config, argv),
                lambda arm, approve: train(arm, interrupt, approve),
                partial(encoder_retrieval, clip=config.clip, heard=lambda: interrupt.heard),
                print,
            )
        else:
            train(config, interrupt)


def train(
    config: TextRunConfig, interrupt: Interrupt, approve: Approve = lambda flops: None
) -> None:
    """One run; at the end of one with a base, what it gained and what it forgot.

    Args:
        config: the settings.
        interrupt: listens for signals that stop the run.
        approve: gets the operations that the model will have behind it, before the first step.

    Raises:
        SystemExit: status 75, it was stopped and saved.
    """
    trainer = TextTrainer(config, report=print)
    approve(trainer.history(trainer.schedule.steps)["flops"]["all"])
    if not trainer.fit(interrupt):
        raise SystemExit(STOPPED)
    if trainer.world.is_main:
        if config.init == "continual":
            stand = forgetting.roles(config.corpora, config.mixture, config.base_corpora)
            print(forgetting.report(config.folder, stand))
        print(f"model: {config.folder / 'model'}")


if __name__ == "__main__":
    run_program(main)
