"""The trainer, in running order: build, resume, step, report, evaluate, save."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vlp import checkpoint, distributed
from vlp.config import UserError, save_config, to_dict
from vlp.data.device import on_device
from vlp.data.image import Normalise
from vlp.data.loader import (
    Batch,
    DataConfig,
    EvaluationSamples,
    Mixture,
    RankPositions,
    TrainSamples,
    batches,
)
from vlp.data.order import generator
from vlp.data.text import CaptionTokenizer, train_wordpiece
from vlp.losses import LossConfig, contrastive_loss
from vlp.models.dual_encoder import DualEncoder, ModelConfig
from vlp.models.hub import load_weights, save_pretrained
from vlp.optim import OptimizerConfig, adamw, learning_rate
from vlp.reporting import NullReporter, ReportConfig, Reporter, Window

Evaluate = Callable[[Tensor, Tensor], dict[str, float]]
"""Normalised image and text features [N, D] of N pairs -> scores by name."""

LEAST_SAMPLES = 1000
"""Broken samples are counted against at least so many, so that a first bad one stops nothing."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how large, how often."""

    batch_size: int = 4096
    """Global batch: samples per step over all processes."""
    epochs: float = 32
    """Passes over the mixture; used if `steps` is 0."""
    steps: int = 0
    """Optimiser steps."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Autocast type of the towers; `auto` is bf16 on CUDA devices that have it. Loss, temperature,
    weights and optimiser are always fp32."""
    max_scale: float = 100.0
    """Bound on the inverse temperature, exp(logit_scale)."""
    log_every: int = 50
    """Steps between rows of training metrics."""
    eval_every: int = 1000
    """Steps between evaluations on the validation split; 0: only at the end."""
    validation_samples: int = 8192
    """Pairs of the validation split that are evaluated, the first ones."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = 2
    """Checkpoints kept; older ones are deleted."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` continues from the newest checkpoint in the run's folder; `never` refuses a folder
    that has one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        if self.eval_every < 0 or self.validation_samples < 1:
            raise ValueError("train.eval_every must be >= 0, train.validation_samples >= 1")
        if self.steps < 0 or (self.steps == 0 and self.epochs <= 0):
            raise ValueError("set train.steps or train.epochs to a positive number")
        if self.max_scale < 1:
            raise ValueError(f"train.max_scale must be at least 1, got {self.max_scale}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A pretraining run: shards in, runs/NAME/ out."""

    name: str
    """Name of the run; its folder is RUNS/NAME."""
    runs: str = "runs"
    """Folder of all runs."""
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

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name


class StepResult(NamedTuple):
    """Scalars of one step, on the device: reading them waits for it."""

    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float


class Trainer:
    """Trains a dual encoder on a mixture of shard folders."""

    def __init__(self, config: Config, evaluate: Evaluate | None = None) -> None:
        """Build everything; nothing is trained yet.

        Raises:
            UserError: data, tokenizer or checkpoint don't fit the configuration.
        """
        self.world = distributed.start(config.train.device)
        self.evaluate = evaluate
        self.mixture = Mixture.open(config.data, config.seed)
        self.tokenizer = self._tokenizer(config)
        text = dataclasses.replace(config.model.text, vocab_size=self.tokenizer.vocab_size)
        self.config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, text=text)
        )
        self.steps = self._count_steps()
        self.positions = RankPositions(
            0, self.steps, config.train.batch_size, self.world.rank, self.world.size
        )
        self.validation = config.data.validation()

        torch.manual_seed(config.seed)  # the same weights on every rank
        self.model = DualEncoder(self.config.model, self.tokenizer.pad_id).to(self.world.device)
        image = config.model.image
        self.normalise = Normalise(image.mean, image.std, self.world.device)
        self.optimizer = adamw(self.model, config.optimizer)
        self.step = self._resume()
        self.parallel = self._parallelise()
        self.autocast = self._autocast()

    # -- build ----------------------------------------------------------------------------------

    def _tokenizer(self, config: Config) -> CaptionTokenizer:
        """The one configured, or a vocabulary trained on the training captions, once per run."""
        text = config.model.text
        folder = Path(text.tokenizer or config.folder / "tokenizer")
        if not text.tokenizer and self.world.is_main and not folder.exists():
            unfinished = folder.with_name("tokenizer.tmp")
            train_wordpiece(self.mixture.captions(), text.vocab_size, unfinished)
            os.replace(unfinished, folder)
        distributed.barrier()
        return CaptionTokenizer(folder, text.context_length)

    def _count_steps(self) -> int:
        train, samples = self.config.train, self.mixture.order.epoch_size
        if train.batch_size > samples:
            raise UserError(
                f"train.batch_size={train.batch_size} is more than the {samples} training samples; "
                "a batch would hold the same pair twice: lower it"
            )
        return train.steps or max(1, round(train.epochs * samples / train.batch_size))

    def _parallelise(self) -> nn.Module:
        if self.world.size == 1:
            return self.model
        devices = [self.world.device] if self.world.device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=devices, gradient_as_bucket_view=True)

    def _autocast(self) -> torch.autocast:
        device, precision = self.world.device.type, self.config.train.precision
        if precision == "auto":
            half = device == "cuda" and torch.cuda.is_bf16_supported()
        else:
            half = precision == "bf16"
        return torch.autocast(device, torch.bfloat16, enabled=half)

    # -- resume ---------------------------------------------------------------------------------

    def _resume(self) -> int:
        """Load the newest checkpoint, if there is one; returns the steps already taken."""
        folder = self.config.folder / "checkpoints"
        steps = checkpoint.steps(folder)
        if not steps:
            return 0
        if self.config.train.resume == "never":
            raise UserError(
                f"{folder}: holds a checkpoint, and train.resume=never; choose another name"
            )
        path, state = checkpoint.load(folder, steps[-1])
        for key, now in self._identity().items():
            before = state["identity"].get(key)
            if before != now:
                raise UserError(
                    f"{path}: made with {key}={before}, now it is {now}; samples would be repeated "
                    "or lost: set it back or choose another name"
                )
        load_weights(self.model, state["model"], str(path))
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def _identity(self) -> dict[str, Any]:
        """What the order of samples depends on: it must not change within a run."""
        shares = {name: source.share for name, source in self.mixture.order.sources.items()}
        return {
            "train.batch_size": self.config.train.batch_size,
            "seed": self.config.seed,
            "data.shuffle_window": self.config.data.shuffle_window,
            "samples per epoch": shares,
        }

    # -- loop -----------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train to the last step; evaluate and save on the way."""
        train = self.config.train
        with self._reporter() as self.reporter:
            self._announce()
            self.window = Window(self.step)
            for batch in self._timed(self._train_batches()):
                result = self._train_step(batch)
                self.step += 1
                self.window.add(self.step, batch, result.loss)
                self.reporter.advance(self.step)
                last = self.step == self.steps
                saves = last or self.step % train.checkpoint_every == 0
                scores = last or (train.eval_every > 0 and self.step % train.eval_every == 0)
                if saves or scores or self.step % train.log_every == 0:
                    self._log(result)
                if scores:
                    self._evaluate()
                if saves:
                    self._save()
                if saves or scores:
                    self.window.restart(self.step)  # their time is not training's
        distributed.barrier()

    def _train_batches(self) -> Iterator[Batch]:
        self.positions.steps = range(self.step, self.steps)
        samples = TrainSamples(
            self.mixture,
            self.tokenizer,
            self.config.model.image.size,
            self.config.data.crop_scale,
            self.config.data.augment,
        )
        pin = self.world.device.type == "cuda"
        loaded = batches(samples, self.positions, self.config.data, pin_memory=pin)
        yield from on_device(loaded, self.world.device)

    def _timed(self, source: Iterator[Batch]) -> Iterator[Batch]:
        """Count the time spent waiting for data."""
        while True:
            start = time.perf_counter()
            batch = next(source, None)
            if batch is None:
                return
            self.window.waited += time.perf_counter() - start
            yield batch

    def _train_step(self, batch: Batch) -> StepResult:
        rate = learning_rate(self.step, self.steps, self.config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Stochastic depth draws from this: a function of the step, so that nothing need be saved.
        draw = generator(self.config.seed, self.step, self.world.rank)
        torch.manual_seed(int(draw.integers(2**63)))
        text = batch.text.to(self.world.device, non_blocking=True)
        with self.autocast:
            features = self.parallel(self.normalise(batch.images), text)
        loss = contrastive_loss(features, self.config.loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.optimizer.clip_norm or math.inf
        )
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(self.config.train.max_scale))
        return StepResult(loss.detach(), norm, rate)

    # -- report ---------------------------------------------------------------------------------

    def _reporter(self) -> NullReporter:
        if not self.world.is_main:
            return NullReporter()
        folder = self.config.folder
        folder.mkdir(parents=True, exist_ok=True)
        save_config(self.config, folder / "config.yaml")
        return Reporter(folder, self.config.report, to_dict(self.config), self.step, self.steps)

    def _announce(self) -> None:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        facts = [
            f"{self.mixture.order.epoch_size:,} samples an epoch",
            f"{self.steps:,} steps of {self.config.train.batch_size}",
            f"{parameters / 1e6:.1f} M parameters",
            f"vocabulary of {self.tokenizer.vocab_size:,}",
            f"{self.world.size} x {self.world.device.type}",
        ]
        if self.step:
            facts.append(f"resumed after step {self.step:,}")
        self.reporter.message(f"{self.config.name}: {', '.join(facts)}")

    def _log(self, result: StepResult) -> None:
        """Read the device and tell; the only place of the loop that waits for it."""
        self.window.check_finite()
        loss = distributed.mean(result.loss).item()
        batch = self.config.train.batch_size
        rates = self.window.rates(self.world.size)
        self._count_broken()
        self.reporter.log(
            self.step,
            {
                "epoch": self.step * batch / self.mixture.order.epoch_size,
                "train/loss": loss,
                "train/scale": self.model.logit_scale.exp().item(),
                "train/gradient_norm": result.gradient_norm.item(),
                "train/learning_rate": result.learning_rate,
                "data/broken": self.window.broken_total,
                **rates,
            },
        )
        self.window.restart(self.step)

    def _count_broken(self) -> None:
        """Name the samples that could not be used; stop if they are too many."""
        window = self.window
        seen = window.seen * self.world.size
        for broken in (one for rank in distributed.gather_objects(window.broken) for one in rank):
            window.broken_total += 1
            self.reporter.message(f"broken sample {broken.key}: {broken.reason}; replaced")
        bound = self.config.data.max_broken * max(LEAST_SAMPLES, seen)
        if window.broken_total > bound:
            raise UserError(
                f"{window.broken_total} of {seen} samples were broken, more than "
                f"data.max_broken={self.config.data.max_broken} allows: check the shards with "
                "`python -m data_prep check FOLDER`"
            )

    # -- evaluate -------------------------------------------------------------------------------

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Score the first `validation_samples` pairs of the validation split."""
        if self.evaluate is None or not self.validation:
            return
        samples = EvaluationSamples(self.validation, self.tokenizer, self.config.model.image.size)
        count = min(len(samples), self.config.train.validation_samples)
        local = max(1, self.config.train.batch_size // self.world.size)
        parts = [list(range(i, min(i + local, count))) for i in range(0, count, local)]
        self.model.eval()
        embedded = []
        for batch in batches(samples, parts[self.world.rank :: self.world.size], self.config.data):
            with self.autocast:
                text = batch.text.to(self.world.device)
                features = self.model(self.normalise(batch.images), text)
            embedded.append((features.image.cpu(), features.text.cpu()))
        self.model.train()
        pairs = [pair for rank in distributed.gather_objects(embedded) for pair in rank]
        if self.world.is_main:
            image, text = (torch.cat(side) for side in zip(*pairs, strict=True))
            scores = self.evaluate(image, text)
            self.reporter.log(self.step, {f"val/{key}": value for key, value in scores.items()})

    # -- save -----------------------------------------------------------------------------------

    def _save(self) -> None:
        """Checkpoint and model folder, by rank 0; all ranks hold the same state."""
        if self.world.is_main:
            state = {
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "identity": self._identity(),
            }
            folder, keep = self.config.folder, self.config.train.keep_checkpoints
            save_pretrained(folder / "model", self.model, self.config.model, self.tokenizer)
            checkpoint.save(folder / "checkpoints", self.step, state, keep)
