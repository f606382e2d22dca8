"""The trainer, in running order: build, resume, step, report, evaluate, save."""

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from vlp import build, distributed, parallel, state
from vlp.checkpoint import Checkpoints, Saved
from vlp.config import UserError
from vlp.data.device import on_device
from vlp.data.image import Normalise
from vlp.data.loader import Batch, Mixture, RankPositions, TrainSamples, batches
from vlp.data.order import generator
from vlp.data.text import PackedText
from vlp.data.workers import lost_worker
from vlp.ema import EMA
from vlp.grad_cache import cached_step, split_batch
from vlp.interrupt import Interrupt
from vlp.losses import contrastive_loss
from vlp.models.dual_encoder import Features
from vlp.models.hub import save_pretrained
from vlp.optim import adamw, learning_rate
from vlp.reporting import NullReporter, Window
from vlp.settings import Config
from vlp.validation import Evaluate, Validation
from vlp.watch import show_retrieved
from vlp.watchdog import Watchdog

Score = Callable[[Path], dict[str, float]]
"""Folder of a model -> scores by name."""

LEAST_SAMPLES = 1000
"""Broken samples are counted against at least so many, so that a first bad one stops nothing."""


class StepResult(NamedTuple):
    """Scalars of one step, on the device: reading them waits for it."""

    loss: Tensor
    norms: parallel.Norms
    learning_rate: float


class Trainer:
    """Trains a dual encoder on a mixture of shard folders."""

    def __init__(
        self, config: Config, evaluate: Evaluate | None = None, score: Score | None = None
    ) -> None:
        """Build everything; nothing is trained yet.

        Args:
            config: the settings.
            evaluate: scores features of the validation split.
            score: scores a model folder; called on rank 0.

        Raises:
            UserError: data, tokenizer or checkpoint don't fit the configuration.
        """
        train = config.train
        self.world = distributed.start(train.device, 2 * train.timeout)
        self.evaluate, self.score = evaluate, score
        self.mixture = Mixture.open(config.data, config.seed)
        self.tokenizer = build.tokenizer(config, self.mixture, self.world)
        self.config = config = build.with_vocabulary(config, self.tokenizer)
        self.schedule = build.schedule(config, self.mixture)
        self.positions = partial(
            RankPositions, batch=self.schedule, rank=self.world.rank, ranks=self.world.size
        )
        self.positions(0, 0)  # batches that the ranks can't share are refused now
        self.validation = Validation(config, self.tokenizer, self.world)

        self.model = build.model(config, self.tokenizer, self.world)
        self.parallel = build.distribute(self.model, config, self.world)
        self.autocast = build.autocast(config, self.world)
        self.normalise = Normalise(
            config.model.image.mean, config.model.image.std, self.world.device
        )
        self.optimizer = adamw(self.model, config.optimizer)
        self.average = EMA(self.model, train.ema_decay) if train.ema_decay else None
        self.window, self.damaged = Window(0, build.costs(config, self.world)), list[str]()
        self.checkpoints = Checkpoints(config.folder / "checkpoints", train.keep_checkpoints)
        self.step = self._resume()

    # -- resume ---------------------------------------------------------------------------------

    def _resume(self) -> int:
        """Load the newest whole checkpoint, if there is one; returns the steps already taken."""
        found = self.checkpoints.newest()
        if found is None:
            return 0
        if self.config.train.resume == "never":
            where = found.path.parent
            raise UserError(f"{where}: has a checkpoint, and train.resume=never; set another name")
        for key, now in build.identity(self.config, self.mixture).items():
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
        for batch, moved in self._timed(self._train_batches()):
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

    def _train_batches(self) -> Iterator[tuple[Batch, Batch]]:
        """Batches as they are loaded, and on their way to the device."""
        positions = self.positions(self.step, self.schedule.steps)
        data, size = self.config.data, self.config.model.image.size
        samples = TrainSamples(self.mixture, self.tokenizer, size, data.crop_scale, data.augment)
        pin = self.world.device.type == "cuda"
        loaded, moving = itertools.tee(batches(samples, positions, data, pin_memory=pin))
        # Chunks are cut on the CPU, and travel one by one.
        moved = moving if self.config.train.micro_batch else on_device(moving, self.world.device)
        yield from zip(loaded, moved, strict=True)

    def _timed(self, source: Iterator[tuple[Batch, Batch]]) -> Iterator[tuple[Batch, Batch]]:
        """Count the time spent waiting for data."""
        while True:
            self.watchdog.at(self.step, "data")
            start = time.perf_counter()
            pair = next(source, None)
            if pair is None:
                return
            self.window.waited += time.perf_counter() - start
            yield pair

    def _train_step(self, batch: Batch) -> StepResult:
        growth = self.schedule.batch(self.step) / self.schedule.batch(0)
        rate = learning_rate(self.step, self.schedule.steps, self.config.optimizer, growth)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        # Random depth, patches and the like draw from this: a function of the step, so that
        # nothing need be saved.
        draw = generator(self.config.seed, self.step, self.world.rank)
        torch.manual_seed(int(draw.integers(2**63)))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._gradients(batch)
        self.watchdog.at(self.step, "optimizer")
        norms = parallel.clip_gradients(self.model, self.config.optimizer.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(self.config.train.max_scale))
        if self.average is not None:
            self.average.update(self.model, self.step + 1)
        return StepResult(loss, norms, rate)

    def _gradients(self, batch: Batch) -> Tensor:
        """Forward and backward; returns this rank's share of the loss."""
        self.watchdog.at(self.step, "forward")
        micro = self.config.train.micro_batch
        share = partial(contrastive_loss, config=self.config.loss)
        if 0 < micro < len(batch.images):
            chunks = split_batch(batch.images, batch.text, micro)
            loss = cached_step(self.features, chunks, share, self.parallel)
        else:
            features = self.features((batch.images, batch.text))
            self.watchdog.at(self.step, "loss")  # here ranks begin to wait for each other
            loss = share(features)
            self.watchdog.at(self.step, "backward")
            loss.backward()
        parallel.reduce_whole(self.model)
        return loss.detach()

    def features(self, pairs: tuple[Tensor, PackedText]) -> Features:
        """uint8 images [b, 3, H, W] and their captions through the towers."""
        images, text = pairs
        with self.autocast:
            return self.parallel(
                self.normalise(images), text.to(self.world.device, non_blocking=True)
            )

    def _pass(self) -> None:
        """A forward and backward pass of the next step's size, of which nothing remains."""
        count = self.schedule.batch(self.step) // self.world.size
        self._gradients(build.blank_batch(count, self.config.model))
        self.optimizer.zero_grad(set_to_none=True)

    # -- report ---------------------------------------------------------------------------------

    def _open_reporter(self) -> NullReporter:
        if not self.world.is_main:
            return NullReporter()
        return build.reporter(self.config, self.step, self.schedule.steps)

    def _announce(self) -> None:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        facts = [
            f"{self.mixture.order.epoch_size:,} samples an epoch",
            f"{self.schedule.steps:,} steps of {self.schedule}",
            f"{parameters / 1e6:.1f} M parameters",
            f"vocabulary of {self.tokenizer.vocab_size:,}",
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
            self._evaluate()
            self.window.restart(self.step)

    def _log(self, result: StepResult) -> None:
        """Read the device and tell; the only place of the loop that waits for it."""
        self._check()
        rates = self.window.rates(self.world.size)
        saved = self.checkpoints.done()
        self.reporter.log(
            self.step,
            {
                "epoch": self.schedule.position(self.step) / self.mixture.order.epoch_size,
                "train/loss": distributed.mean(result.loss).item(),
                "train/scale": self.model.logit_scale.exp().item(),
                "train/gradient_norm": result.norms.total.item(),
                "train/gradient_norm_image": result.norms.image.item(),
                "train/gradient_norm_text": result.norms.text.item(),
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
        window, bound = self.window, self.config.data.max_broken
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

    # -- evaluate -------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Score the validation split, with the averaged weights where there are any."""
        self.watchdog.at(self.step, "evaluate")
        if self.evaluate is not None:
            with self._averaged():
                found = self.validation.embed(self.model, self.autocast)
            if found is not None:
                scores = self.evaluate(found.image, found.text)
                self.reporter.log(self.step, {f"val/{key}": value for key, value in scores.items()})
                show_retrieved(self.reporter, self.step, self.validation.samples, found)
        if self.config.train.suite:
            self._score_suite()

    def _score_suite(self) -> None:
        """Score a suite of eval with the model as it is now."""
        with self._averaged():
            weights = parallel.whole_weights(self.model)
        if self.score is None:
            return
        with tempfile.TemporaryDirectory(dir=self.config.folder, prefix="scored-") as folder:
            save_pretrained(folder, weights, self.config.model, self.tokenizer)
            self.reporter.log(self.step, self.score(Path(folder)))

    def _averaged(self) -> AbstractContextManager[None]:
        return self.average.applied(self.model) if self.average else nullcontext()

    # -- save -----------------------------------------------------------------------------------

    def _save(self) -> None:
        """Begin a checkpoint, and the model folder beside it."""
        self.watchdog.at(self.step, "save")
        self._check()
        before = self.checkpoints.wait()
        if before:
            self._outcome(before)
        folder, broken = self.config.folder / "model", self.window.broken_total
        facts = {"identity": build.identity(self.config, self.mixture), "broken": broken}
        with self._averaged():
            weights = parallel.whole_weights(self.model)
        self.checkpoints.save(
            self.step,
            self._tensors(),
            facts,
            export=partial(save_pretrained, folder, weights, self.config.model, self.tokenizer),
        )
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
