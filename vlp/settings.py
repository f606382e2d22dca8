"""All settings of a training run; each part's own settings stand beside its code."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlp.data.loader import DataConfig
from vlp.losses import LossConfig
from vlp.models.dual_encoder import ModelConfig
from vlp.optim import OptimizerConfig
from vlp.parallel import Parallel
from vlp.reporting import ReportConfig


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, how often, on what: the keys that every training program has."""

    steps: int = 0
    """Optimiser steps."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Autocast type of the model; `auto` is bf16 on CUDA devices that have it. Loss, temperature,
    weights and optimiser are always fp32."""
    parallel: Parallel = "ddp"
    """Over several processes: copies of the model (`ddp`), or its shards (`fsdp`), which save
    memory and cost communication."""
    activation_checkpointing: bool = False
    """Keep only the inputs of the model's blocks, and compute the rest again in backward: about a
    tenth of the memory for a third more compute."""
    compile: bool = False
    """Compile the model with torch.compile."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the weights, which evaluations see and the model folder
    holds; 0: none."""
    log_every: int = 50
    """Steps between rows of training metrics."""
    eval_every: int = 1000
    """Steps between evaluations on the validation split; 0: only at the end."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; one is always written at the end."""
    checkpoint_minutes: float = 0.0
    """Minutes after which a checkpoint is written at the next step in any case; 0: never."""
    keep_checkpoints: int = 2
    """Checkpoints kept; older ones are deleted."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` continues from the newest checkpoint in the run's folder; `never` refuses a folder
    that has one."""
    timeout: float = 600.0
    """Seconds without progress on any process after which the run ends with status 70 and says
    which process hangs, and where. Compiling and writing a checkpoint must take less."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("steps", "eval_every", "checkpoint_minutes"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must be at least 0, got {getattr(self, name)}")
        if self.timeout <= 0:
            raise ValueError(f"train.timeout must be positive, got {self.timeout}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay must be in [0, 1), got {self.ema_decay}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """How long, how large, how often."""

    batch_size: int = 4096
    """Global batch: samples per step over all processes."""
    batch_schedule: dict[int, int] = field(default_factory=dict)
    """Other sizes from an epoch on: {8: 65536} takes 65,536 samples per step after 8 epochs."""
    micro_batch: int = 0
    """Samples that a process runs through the towers at a time (GradCache): the gradients of the
    whole batch, in the memory of so many, for one more forward pass. 0: the whole batch at once."""
    epochs: float = 32
    """Passes over the mixture; used if `steps` is 0."""
    max_scale: float = 100.0
    """Bound on the inverse temperature, exp(logit_scale)."""
    validation_samples: int = 8192
    """Pairs of the validation split that are evaluated, the first ones."""
    suite: str = ""
    """Suite of `python -m eval` (configs/eval/*.yaml) that is scored at every evaluation, by rank 0
    while the others wait: keep it small, it must take less than `timeout`. Empty: none."""
    suite_data: str = "."
    """Its data_root."""
    dry_run: bool = False
    """Check settings and data, estimate memory and time, print steps and epochs, train nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "validation_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        if self.micro_batch < 0:
            raise ValueError(f"train.micro_batch must be at least 0, got {self.micro_batch}")
        if self.steps == 0 and self.epochs <= 0:
            raise ValueError("set train.steps or train.epochs to a positive number")
        if self.max_scale < 1:
            raise ValueError(f"train.max_scale must be at least 1, got {self.max_scale}")
        for epoch, batch in self.batch_schedule.items():
            if epoch < 1 or batch < 1 or (self.steps == 0 and epoch >= self.epochs):
                raise ValueError(
                    "train.batch_schedule maps epochs from 1 to below train.epochs to sizes from "
                    f"1, got {epoch}: {batch}"
                )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A pretraining run: shards in, runs/NAME/ out."""

    name: str
    """Name of the run; its folder is RUNS/NAME."""
    runs: str = "runs"
    """Folder of all runs; with several machines, one that all of them see."""
    seed: int = 0
    """Seeds weights, data order and augmentation."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The towers."""
    data: DataConfig = field(default_factory=DataConfig)
    """The shards."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The loss."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimiser."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop."""
    report: ReportConfig = field(default_factory=ReportConfig)
    """Weights & Biases."""

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise ValueError(f"name must be a plain folder name, got '{self.name}'")
        self.loss.check_bias(self.model.init_bias is not None)

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name
