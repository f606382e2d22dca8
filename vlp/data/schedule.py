"""How many steps a run takes, and which positions of the stream each of them takes.

Batches may grow during a run. Each step still takes the positions that follow those of the step
before, so every sample comes once per epoch whatever the sizes are (vlp/data/order.py).
"""

from collections.abc import Mapping
from typing import NamedTuple

from vlp.config import UserError


class Stage(NamedTuple):
    """Steps of one size: they begin at `step`, which takes `batch` samples from `position` on."""

    step: int
    position: int
    batch: int


class BatchSchedule:
    """The global batch of every step of a run.

    Attributes:
        steps: how many steps there are.
        stages: runs of steps of one size.
    """

    def __init__(
        self,
        batch_size: int,
        changes: Mapping[int, int],
        epoch_size: int,
        epochs: float,
        steps: int = 0,
    ) -> None:
        """Plan a run.

        Args:
            batch_size: samples per step at the start.
            changes: epoch -> samples per step from there on.
            epoch_size: samples in an epoch.
            epochs: how long to train; not used if `steps` are given.
            steps: how long to train; 0: as `epochs` say.

        Raises:
            UserError: a batch larger than an epoch.
        """
        self.stages = [Stage(0, 0, batch_size)]
        for epoch, batch in sorted(changes.items()):
            last = self.stages[-1]
            # A stage ends with the whole step that is nearest to the end of its last epoch.
            taken = max(1, round((epoch * epoch_size - last.position) / last.batch))
            self.stages.append(Stage(last.step + taken, last.position + taken * last.batch, batch))
        for stage in self.stages:
            if stage.batch > epoch_size:
                raise UserError(
                    f"train.batch_size={stage.batch} is more than the {epoch_size} training "
                    "samples; a batch would hold the same pair twice: lower it"
                )
        last = self.stages[-1]
        rest = max(1, round((epochs * epoch_size - last.position) / last.batch))
        self.steps = steps or last.step + rest

    @classmethod
    def constant(cls, batch_size: int) -> "BatchSchedule":
        """The same size always, in a stream without end."""
        return cls(batch_size, {}, epoch_size=batch_size, epochs=1)

    def __str__(self) -> str:
        """The sizes: "4096", or "4096, from step 80,000 on 65536"."""
        first, *rest = self.stages
        return ", ".join(
            [str(first.batch), *(f"from step {stage.step:,} on {stage.batch}" for stage in rest)]
        )

    def batch(self, step: int) -> int:
        """Samples that step `step` (0-based) takes."""
        return self._stage(step).batch

    def position(self, step: int) -> int:
        """The first position that step `step` takes: samples seen before it."""
        stage = self._stage(step)
        return stage.position + (step - stage.step) * stage.batch

    def _stage(self, step: int) -> Stage:
        return next(stage for stage in reversed(self.stages) if stage.step <= step)
