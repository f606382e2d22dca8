"""Being stopped: SIGTERM or SIGUSR1 to any rank ends all ranks after the same step.

Slurm and clouds announce the end of a job by such a signal, minutes or seconds ahead. The handler
only remembers it; once per step the ranks compare notes, so all save and leave at the same place.
"""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from torch.distributed import ProcessGroup

from vlp import distributed

STOPPED = 75
"""Exit status of a run that was stopped and saved: EX_TEMPFAIL, "try again later"."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_SAVE = 1  # below every signal's number


class Interrupt:
    """Listens for signals while it is entered: from the start of a program, so that one that comes
    while the run is being built is not lost, nor its process."""

    def __init__(self) -> None:
        self.heard = 0
        self.group: ProcessGroup | None = None
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self.before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def join(self) -> None:
        """Prepare to agree; all ranks call it, once."""
        self.group = distributed.cpu_group()

    def agreed(self, save: bool) -> tuple[bool, str]:
        """What the ranks want, the same on all of them.

        Args:
            save: this rank wants a checkpoint.

        Returns:
            Whether to save now, and the name of the signal to stop for ("" if there is none).
        """
        wish = distributed.highest(max(self.heard, _SAVE * save), self.group)
        return wish > 0, signal.Signals(wish).name if wish > _SAVE else ""

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = number
