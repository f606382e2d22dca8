"""Whole trainers for `text_pretrain.py`: transformers' Trainer with padding, and our TextTrainer.

Each loads, masks, steps, clips and reports as it does in use. The first half of the steps is not
counted.
"""

import dataclasses
import importlib.util
import json
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.measure import Row, interleaved, median_row, paired_ratio
from benchmarks.text_sides import RECIPE, OurBatches, TheirBatches, build_peer
from vlp import distributed
from vlp.config import UserError
from vlp.models.text_tower import TextConfig
from vlp.text.documents import SplitConfig
from vlp.text.masking import MaskingConfig
from vlp.text.settings import EncoderConfig, TextRunConfig, TextSource, TextTrainConfig
from vlp.text.trainer import TextTrainer

REPETITIONS = 3
WORKERS = 8
"""Loader processes of either side on CUDA; none on the CPU."""


@dataclass(frozen=True)
class Job:
    """What both train on.

    Attributes:
        texts: the corpus as JSON lines, as given.
        vocabulary: folder with its tokenizer.json.
        batches: rows of it, as many in a batch as ours takes.
        collate: pads and masks for theirs.
        model: the architecture.
        masking: what is hidden.
        steps: steps that are timed, after as many that are not.
        folder: for the runs.
        device: where.
    """

    texts: str
    vocabulary: Path
    batches: OurBatches
    collate: TheirBatches
    model: TextConfig
    masking: MaskingConfig
    steps: int
    folder: Path
    device: torch.device

    @property
    def workers(self) -> int:
        return WORKERS if self.device.type == "cuda" else 0


def trainer_rows(job: Job) -> list[Row]:
    """Tokens a second of both, in turn.

    Raises:
        UserError: transformers' Trainer needs `accelerate`, which isn't installed.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise UserError("trainer_steps: transformers' Trainer needs the package accelerate")
    numbers = count()
    seconds = interleaved(
        {THEIRS: lambda: time_theirs(job), OURS: lambda: time_ours(job, next(numbers))},
        REPETITIONS,
    )
    return [
        median_row(way, "tokens/s", [1 / t for t in found], paired_ratio(seconds[THEIRS], found))
        for way, found in seconds.items()
    ]


THEIRS, OURS = "whole trainers: transformers', padded", "whole trainers: ours"


class Clock(TrainerCallback):
    """Seconds per real token after a number of steps."""

    def __init__(self, first: int) -> None:
        self.first, self.tokens = first, list[torch.Tensor]()
        self.began = self.seconds = 0.0

    def count(self, model: Any, _: Any, named: dict[str, Any]) -> None:
        """A hook before the model's forward; waits for nothing."""
        self.tokens.append(named["attention_mask"].sum())

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == self.first:
            self.began = _now()

    def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.seconds = _now() - self.began

    def seconds_per_token(self) -> float:
        return self.seconds / sum(int(tokens) for tokens in self.tokens[self.first :])


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def time_theirs(job: Job) -> float:
    """Seconds per real token, of batches with as many sequences as ours have in the mean."""
    batches, cuda = job.batches, job.device.type == "cuda"
    (cut,) = batches.corpora.last
    rows = len(cut.rows) - 1
    sequences = len(cut.spans) * batches.rows / rows
    clock, peer = Clock(job.steps), build_peer(job.model)
    peer.register_forward_pre_hook(clock.count, with_kwargs=True)
    Trainer(
        model=peer,
        args=TrainingArguments(
            output_dir=str(job.folder / "theirs"),
            per_device_train_batch_size=max(1, round(sequences)),
            max_steps=2 * job.steps,
            learning_rate=RECIPE.learning_rate,
            weight_decay=RECIPE.weight_decay,
            optim="adamw_torch_fused",
            bf16=cuda,
            use_cpu=not cuda,
            dataloader_num_workers=job.workers,
            dataloader_drop_last=True,
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=batches.examples(0, max(1, rows // batches.rows)),  # one pass over the text
        data_collator=job.collate,
        callbacks=[clock],
    ).train()
    return clock.seconds_per_token()


def time_ours(job: Job, number: int) -> float:
    """Seconds per token as the run itself reports them."""
    model = job.model
    shape = {name: getattr(model, name) for name in ("width", "layers", "heads", "mlp_width")}
    config = TextRunConfig(
        name=f"ours-{number}",
        runs=str(job.folder / "runs"),
        cache=str(job.folder / "cache"),
        corpora={"all": TextSource(path=job.texts, id_field="")},
        split=SplitConfig(val_fraction=0.0),
        vocabulary="inherited",
        base=str(job.vocabulary),
        model=EncoderConfig(
            length=model.context_length, max_positions=model.max_positions, **shape
        ),
        masking=job.masking,
        optimizer=dataclasses.replace(RECIPE, clip_norm=1.0, schedule="linear"),
        train=TextTrainConfig(
            steps=2 * job.steps,
            batch_size=job.batches.rows,
            log_every=job.steps,
            eval_every=0,
            workers=job.workers,
            device="cuda" if job.device.type == "cuda" else "cpu",
        ),
    )
    trainer = TextTrainer(config)
    try:
        trainer.fit()
    finally:
        distributed.stop()
    lines = (config.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    key = "perf/tokens_per_second"
    rates = [row[key] for row in map(json.loads, lines) if key in row]
    return 1 / float(rates[-1])
