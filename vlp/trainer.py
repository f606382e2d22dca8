"""The trainer of dual encoders, in running order: data, model, step, scores, model folder."""

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from vlp import build, distributed, parallel
from vlp.data.device import on_device
from vlp.data.image import Normalise
from vlp.data.loader import Batch, Mixture, RankPositions, TrainSamples, batches
from vlp.data.text import PackedText
from vlp.engine import Engine
from vlp.grad_cache import cached_step, split_batch
from vlp.losses import contrastive_loss
from vlp.models.dual_encoder import DualEncoder, Features
from vlp.models.hub import save_pretrained
from vlp.reporting import Window
from vlp.settings import Config
from vlp.validation import Evaluate, Validation
from vlp.watch import show_retrieved

Score = Callable[[Path], dict[str, float]]
"""Folder of a model -> scores by name."""


class Trainer(Engine[Config, Batch]):
    """Trains a dual encoder on a mixture of shard folders."""

    PARTS: ClassVar = {"image": "visual.", "text": "text."}
    model: DualEncoder

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
        world = distributed.start(config.train.device, 2 * config.train.timeout)
        self.recall, self.score = evaluate, score
        self.mixture = Mixture.open(config.data, config.seed)
        self.tokenizer = build.tokenizer(config, self.mixture, world)
        config = build.with_vocabulary(config, self.tokenizer)
        schedule = build.schedule(config, self.mixture)
        self.positions = partial(RankPositions, batch=schedule, rank=world.rank, ranks=world.size)
        self.positions(0, 0)  # batches that the ranks can't share are refused now
        self.validation = Validation(config, self.tokenizer, world)
        self.normalise = Normalise(config.model.image.mean, config.model.image.std, world.device)
        model = build.model(config, self.tokenizer, world)
        window = Window(0, build.costs(config, world))
        super().__init__(config, world, model, schedule, window)

    # -- data -----------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """See Engine."""
        return build.identity(self.config, self.mixture)

    def batches(self) -> Iterator[tuple[Batch, Batch]]:
        """See Engine."""
        positions = self.positions(self.step, self.schedule.steps)
        data, size = self.config.data, self.config.model.image.size
        samples = TrainSamples(self.mixture, self.tokenizer, size, data.crop_scale, data.augment)
        pin = self.world.device.type == "cuda"
        loaded, moving = itertools.tee(batches(samples, positions, data, pin_memory=pin))
        # Chunks are cut on the CPU, and travel one by one.
        moved = moving if self.config.train.micro_batch else on_device(moving, self.world.device)
        yield from zip(loaded, moved, strict=True)

    def max_broken(self) -> float:
        """See Engine."""
        return self.config.data.max_broken

    # -- step -----------------------------------------------------------------------------------

    def gradients(self, batch: Batch) -> Tensor:
        """See Engine."""
        micro = self.config.train.micro_batch
        share = partial(contrastive_loss, config=self.config.loss)
        if 0 < micro < len(batch.images):
            chunks = split_batch(batch.images, batch.text, micro)
            return cached_step(self.features, chunks, share, self.parallel)
        features = self.features((batch.images, batch.text))
        self.watchdog.at(self.step, "loss")  # here ranks begin to wait for each other
        loss = share(features)
        self.watchdog.at(self.step, "backward")
        loss.backward()
        return loss.detach()

    def features(self, pairs: tuple[Tensor, PackedText]) -> Features:
        """uint8 images [b, 3, H, W] and their captions through the towers."""
        images, text = pairs
        with self.autocast:
            return self.parallel(
                self.normalise(images), text.to(self.world.device, non_blocking=True)
            )

    def blank(self) -> Batch:
        """See Engine."""
        count = self.schedule.batch(self.step) // self.world.size
        return build.blank_batch(count, self.config.model)

    def after_step(self) -> None:
        """See Engine: the temperature's bound."""
        self.model.logit_scale.clamp_(0, math.log(self.config.train.max_scale))

    # -- report ---------------------------------------------------------------------------------

    def facts(self) -> list[str]:
        """See Engine."""
        return [
            f"{self.mixture.order.epoch_size:,} samples an epoch",
            f"vocabulary of {self.tokenizer.vocab_size:,}",
        ]

    def metrics(self) -> dict[str, float]:
        """See Engine."""
        return {
            "epoch": self.schedule.position(self.step) / self.mixture.order.epoch_size,
            "train/scale": self.model.logit_scale.exp().item(),
        }

    # -- evaluate -------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """See Engine: retrieval on the validation split, and the suite."""
        if self.recall is not None:
            with self.averaged():
                found = self.validation.embed(self.model, self.autocast)
            if found is not None:
                scores = self.recall(found.image, found.text)
                self.reporter.log(self.step, {f"val/{key}": value for key, value in scores.items()})
                show_retrieved(self.reporter, self.step, self.validation.samples, found)
        if self.config.train.suite:
            self._score_suite()

    def _score_suite(self) -> None:
        """Score a suite of eval with the model as it is now."""
        with self.averaged():
            weights = parallel.whole_weights(self.model)
        if self.score is None:
            return
        with tempfile.TemporaryDirectory(dir=self.config.folder, prefix="scored-") as folder:
            save_pretrained(folder, weights, self.config.model, self.tokenizer)
            self.reporter.log(self.step, self.score(Path(folder)))

    # -- save -----------------------------------------------------------------------------------

    def export(self, weights: dict[str, Tensor], step: int) -> None:
        """See Engine."""
        save_pretrained(self.config.folder / "model", weights, self.config.model, self.tokenizer)
