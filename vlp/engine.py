"""The loop that every training program shares: resume, step, report, evaluate, save, stop.

What is trained, on what, and with which loss is the matter of a subclass: `vlp.trainer.Trainer` for
pairs of images and captions, `vlp.text.trainer.TextTrainer` for text alone.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vlp import distributed, parallel, state
from vlp.checkpoint import Checkpoints, Saved
from vlp.config import UserError, save_config, to_dict
from vlp.data.order import generator
from vlp.data.schedule import BatchSchedule
from vlp.data.workers import lost_worker
from vlp.distributed import World
from vlp.ema import EMA
from vlp.interrupt import Interrupt
from vlp.optim import OptimizerConfig, adamw, learning_rate
from vlp.reporting import Countable, NullReporter, ReportConfig, Reporter, Window
from vlp.settings import LoopConfig
from vlp.watchdog import Watchdog

LEAST_SAMPLES = 1000
"""Broken samples are counted against at least so many, so that a first bad one stops nothing."""


class Run(Protocol):
    """What the loop reads of a run's settings."""

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def folder(self) -> Path: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def train(self) -> LoopConfig: ...
    @property
    def report(self) -> ReportConfig: ...


C = TypeVar("C", bound=Run)
B = TypeVar("B", bound=Countable)


class StepResult(NamedTuple):
    """Scalars of one step, on the device: reading them waits for it."""

    loss: Tensor
    norms: parallel.Norms
    learning_rate: float


class Engine(ABC, Generic[C, B]):
    """Takes the steps of a run, from the newest checkpoint to the last step.

    A subclass makes its data and its model, then calls `__init__`, and says what is abstract here.

    Attributes:
        step: steps taken.
        parallel: what is called instead of the model: copies, shards, or itself.
    """

    PARTS: ClassVar[Mapping[str, str]] = {}
    """Parts of the model whose gradients' norms are reported: name -> prefix of parameters."""

    def __init__(
        self,
        config: C,
        world: World,
        model: nn.Module,
        schedule: BatchSchedule,
        window: Window,
    ) -> None:
        """Make what trains the model, and load the newest checkpoint.

        Args:
            config: the settings, as they are saved.
            world: this process among all.
            model: on its device, with its first weights, the same on every rank.
            schedule: the global batch of every step.
            window: counts what is reported.

        Raises:
            UserError: a checkpoint that doesn't fit the settings.
        """
        self.config, self.world, self.model, self.schedule = config, world, model, schedule
        train = config.train
        if train.parallel == "fsdp" and world.size > 1:
            self.parallel = parallel.shard(model, world)
        else:
            self.parallel = parallel.replicate(model, world)
        self.autocast = parallel.autocast(train.precision, world)
        self.optimizer = adamw(model, config.optimizer)
        self.average = EMA(model, train.ema_decay) if train.ema_decay else None
        self.window, self.damaged = window, list[str]()
        self.checkpoints = Checkpoints(config.folder / "checkpoints", train.keep_checkpoints)
        self.step = self._resume()

    # -- what a subclass says -------------------------------------------------------------------

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the order of samples depends on: it must not change within a run. JSON values."""

    @abstractmethod
    def batches(self) -> Iterator[tuple[B, B]]:
        """The batches of the steps that are left, as they are loaded, and on their way to the
        device."""

    @abstractmethod
    def gradients(self, batch: B) -> Tensor:
        """Forward and backward; returns this rank's share of the loss, detached."""

    @abstractmethod
    def blank(self) -> B:
        """A batch of the next step's size, of which nothing is learnt."""

    @abstractmethod
    def export(self, weights: dict[str, Tensor], step: int) -> None:
        """Write the model as it is after `step` steps for those who use it, on rank 0."""

    @abstractmethod
    def evaluate(self) -> None:
        """Score the validation split, and report; on all ranks."""

    @abstractmethod
    def facts(self) -> list[str]:
        """What the first line says of this run."""

    def begin(self) -> None:
        """What comes before the first step of a run, on all ranks."""

    def metrics(self) -> dict[str, float]:
        """More numbers for a row of metrics; they may be read from the device."""
        return {}

    def after_step(self) -> None:
        """What bounds the weights have."""

    def max_broken(self) -> float:
        """Share of samples that may be broken."""
        return 0.0

    # -- resume ---------------------------------------------------------------------------------

    def _resume(self) -> int:
        """Load the newest whole checkpoint, if there is one; returns the steps already taken."""
        found = self.checkpoints.newest()
        if found is None:
            return 0
        if self.config.train.resume == "never":
            where = found.path.parent
            raise UserError(f"{where}: has a checkpoint, and train.resume=never; set another name")
        for key, now in self.identity().items():
            before = found.facts["identity"].get(key)
            if before != now:
                raise UserError(
                    f"{found.path}: made with {key}={before}, now it is {now}; samples would be "
                    "repeated or lost: set it back or choose another name"
                )
        state.allocate(self.optimizer)
        self.checkpoints.load(found, self._tensors())
        self.window.broken_total = found.facts["broken"]
        self.damaged = found.damaged
        return found.step

    # -- loop -----------------------------------------------------------------------------------

    def fit(self, interrupt: Interrupt | None = None) -> bool:
        """Train to the last step, or until a signal; evaluate and save on the way.

        Args:
            interrupt: listens for signals that stop the run.

        Returns:
            Whether the last step is done; if not, the same command goes on from here.

        Raises:
            UserError: a loss that is not finite, too many broken samples, no room for the last
                checkpoint.
        """
        stacks = self.config.folder / "stacks"
        try:
            with (
                self._open_reporter() as self.reporter,
                Watchdog(self.world, self.config.train.timeout, stacks) as self.watchdog,
            ):
                interrupt = interrupt or Interrupt()  # one that is not entered hears nothing
                interrupt.join()
                self._announce()
                if isinstance(self.parallel, DistributedDataParallel):
                    parallel.settle(self.parallel, self._pass)
                if self.step == 0:
                    self.begin()
                stop = self._run(interrupt)
                self._finish(stop)
        except RuntimeError as error:
            # A loader process or a rank that dies can make any line fail.
            raise lost_worker(error) or distributed.lost_rank(error) or error from None
        return not stop

    def _run(self, interrupt: Interrupt) -> str:
        """The loop; returns the signal that ended it, or "" after the last step."""
        train = self.config.train
        self.window.restart(self.step)
        last_save = time.monotonic()
        for batch, moved in self._timed(self.batches()):
            result = self._train_step(moved)
            self.step += 1
            self.window.add(self.step, batch, result.loss)
            self.reporter.advance(self.step)
            self._report(result)
            overdue = 0 < train.checkpoint_minutes * 60 < time.monotonic() - last_save
            wanted, stop = interrupt.agreed(overdue)
            if wanted or self._due(train.checkpoint_every):
                self._save()
                last_save = time.monotonic()
            if stop:
                return stop
        return ""

    def _due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the last, happens now."""
        return self.step == self.schedule.steps or (every > 0 and self.step % every == 0)

    def _timed(self, source: Iterator[tuple[B, B]]) -> Iterator[tuple[B, B]]:
        """Count the time spent waiting for data."""
        while True:
            self.watchdog.at(self.step, "data")
            start = time.perf_counter()
            pair = next(source, None)
            if pair is None:
                return
            self.window.waited += time.perf_counter() - start
            yield pair

    def _train_step(self, batch: B) -> StepResult:
        growth = self.schedule.batch(self.step) / self.schedule.batch(0)
        rate = learning_rate(self.step, self.schedule.steps, self.config.optimizer, growth)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        # Random depth, patches and the like draw from this: a function of the step, so that
        # nothing need be saved.
        draw = generator(self.config.seed, self.step, self.world.rank)
        torch.manual_seed(int(draw.integers(2**63)))
        self.optimizer.zero_grad(set_to_none=True)
        self.watchdog.at(self.step, "forward")
        loss = self.gradients(batch)
        parallel.reduce_whole(self.model)
        self.watchdog.at(self.step, "optimizer")
        norms = parallel.clip_gradients(self.model, self.config.optimizer.clip_norm, self.PARTS)
        self.optimizer.step()
        with torch.no_grad():
            self.after_step()
        if self.average is not None:
            self.average.update(self.model, self.step + 1)
        return StepResult(loss, norms, rate)

    def _pass(self) -> None:
        """A forward and backward pass of which nothing remains."""
        self.gradients(self.blank())
        self.optimizer.zero_grad(set_to_none=True)

    # -- report ---------------------------------------------------------------------------------

    def _open_reporter(self) -> NullReporter:
        config = self.config
        if not self.world.is_main:
            return NullReporter()
        config.folder.mkdir(parents=True, exist_ok=True)
        save_config(config, config.folder / "config.yaml")
        return Reporter(
            config.folder, config.report, to_dict(config), self.step, self.schedule.steps
        )

    def _announce(self) -> None:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        facts = [
            *self.facts(),
            f"{self.schedule.steps:,} steps of {self.schedule}",
            f"{parameters / 1e6:.1f} M parameters",
            f"{self.world.size} x {self.world.device.type}",
        ]
        if self.step:
            facts.append(f"resumed after step {self.step:,}")
        for problem in self.damaged:
            self.reporter.message(f"damaged checkpoint set aside: {problem}")
        self.reporter.message(f"{self.config.name}: {', '.join(facts)}")

    def _report(self, result: StepResult) -> None:
        """Log, evaluate: their time is not training's."""
        train = self.config.train
        self.watchdog.at(self.step, "report")
        scores = self._due(train.eval_every)
        if scores or self._due(train.checkpoint_every) or self._due(train.log_every):
            self._log(result)
        if scores:
            self.watchdog.at(self.step, "evaluate")
            self.evaluate()
            self.window.restart(self.step)

    def _log(self, result: StepResult) -> None:
        """Read the device and tell; the only place of the loop that waits for it."""
        self._check()
        rates = self.window.rates(self.world.size)
        saved = self.checkpoints.done()
        norms = {f"train/gradient_norm_{k}": v.item() for k, v in result.norms.parts.items()}
        self.reporter.log(
            self.step,
            {
                **self.metrics(),
                "train/loss": distributed.mean(result.loss).item(),
                "train/gradient_norm": result.norms.total.item(),
                **norms,
                "train/learning_rate": result.learning_rate,
                "data/broken": self.window.broken_total,
                **rates,
                **(self._outcome(saved) if saved else {}),
            },
        )
        self.reporter.histogram(self.step, "data/caption_tokens", self.window.caption_tokens())
        self.window.restart(self.step)

    def _check(self) -> None:
        """Stop at a loss that is not finite, or at too many broken samples; name each of these."""
        window, bound = self.window, self.max_broken()
        if not window.losses:
            return  # all are checked
        window.check_finite()
        for broken in (one for rank in distributed.gather_objects(window.broken) for one in rank):
            window.broken_total += 1
            self.reporter.message(f"broken sample {broken.key}: {broken.reason}; replaced")
        window.broken.clear()
        seen = self.schedule.position(self.step)
        if window.broken_total > bound * max(LEAST_SAMPLES, seen):
            raise UserError(
                f"{window.broken_total} of {seen} samples were broken, more than "
                f"data.max_broken={bound} allows: check the shards with "
                "`python -m data_prep check FOLDER`"
            )

    # -- save -----------------------------------------------------------------------------------

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the model has its averaged weights, where there are any."""
        return self.average.applied(self.model) if self.average else nullcontext()

    def _save(self) -> None:
        """Begin a checkpoint, and the model's folder beside it."""
        self.watchdog.at(self.step, "save")
        self._check()
        before = self.checkpoints.wait()
        if before:
            self._outcome(before)
        facts = {"identity": self.identity(), "broken": self.window.broken_total}
        with self.averaged():
            weights = parallel.whole_weights(self.model)
        write: Callable[[], None] = partial(self.export, weights, self.step)
        self.checkpoints.save(self.step, self._tensors(), facts, export=write)
        self.window.restart(self.step)

    def _tensors(self) -> dict[str, Tensor]:
        return state.tensors(self.model, self.optimizer, self.average)

    def _outcome(self, saved: Saved) -> dict[str, float]:
        """Tell of a save that failed; the times of one that did not."""
        if saved.error:
            self.reporter.message(
                f"CHECKPOINT NOT WRITTEN after step {saved.step}: {saved.error}; training goes on, "
                "and the checkpoints before are as they were"
            )
            return {}
        return {"perf/checkpoint_seconds": saved.seconds, "perf/checkpoint_stall": saved.stall}

    def _finish(self, stop: str) -> None:
        """Wait for the last checkpoint."""
        self.watchdog.at(self.step, "save")
        saved = self.checkpoints.wait()
        self.checkpoints.close()
        if saved and saved.error:
            raise UserError(
                f"the last checkpoint, after step {saved.step}, could not be written: "
                f"{saved.error}; make room, then run the same command again"
            )
        if stop:
            self.reporter.message(
                f"stopped by {stop} after step {self.step:,}, saved; the same command goes on"
            )
        distributed.barrier()
