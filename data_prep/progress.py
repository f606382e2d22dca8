"""How far a run is: a bar on a terminal, else a plain line every so many seconds."""

import threading
import time
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Counted(Protocol):
    """What a finished unit of work reports of itself."""

    @property
    def items(self) -> int:
        """Articles, rows or tars read."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes of the shard."""
        ...

    @property
    def samples(self) -> int:
        """Samples written."""
        ...

    @property
    def rejected(self) -> int:
        """Figures dropped."""
        ...


class Meter:
    """Counts what is done and says it as text; rates and the time left come from this run alone.

    Args:
        total: units to do.
        noun: what a unit's items are called.
    """

    def __init__(self, total: int, noun: str) -> None:
        self.total, self.noun = total, noun
        self.done = self.failed = self.retried = 0
        self.items = self.bytes = self.samples = self.rejected = 0
        self._start = time.monotonic()

    def add(self, report: Counted) -> None:
        """A unit is done."""
        self.done += 1
        self.items += report.items
        self.bytes += report.bytes
        self.samples += report.samples
        self.rejected += report.rejected

    def text(self) -> str:
        """One line, without the bar."""
        gone = time.monotonic() - self._start
        ended = self.done + self.failed
        left = _clock(gone / ended * (self.total - ended)) if ended else "unknown"
        parts = [
            f"{self.done:,}/{self.total:,} units",
            f"{self.items:,} {self.noun} ({self.items / gone:,.1f}/s)",
            f"{self.bytes / 1e6:,.0f} MB ({self.bytes / 1e6 / gone:,.1f}/s)",
            f"{self.samples:,} samples",
            f"{self.rejected:,} rejects",
        ]
        if self.retried or self.failed:
            parts.append(f"{self.failed} failed, {self.retried} retried")
        return ", ".join([*parts, f"{_clock(gone)} gone, {left} left"])


class Display:
    """Shows a meter while a run goes on; use it as a context manager.

    Args:
        every: seconds between two lines where the console is no terminal.
    """

    def __init__(self, meter: Meter, console: Console, every: float) -> None:
        self.meter, self._console, self._every = meter, console, every
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._print_lines, daemon=True)
        self._bar = Progress(BarColumn(), TextColumn("{task.description}"), console=console)

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._task = self._bar.add_task("", total=self.meter.total)
            self._bar.start()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self.refresh()
            self._bar.stop()
            return
        self._end.set()
        self._thread.join()
        self.say(self.meter.text())

    def refresh(self) -> None:
        """Bring the bar up to date; lines come by themselves."""
        if self._console.is_terminal:
            ended = self.meter.done + self.meter.failed
            self._bar.update(self._task, completed=ended, description=self.meter.text())

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _print_lines(self) -> None:
        while not self._end.wait(self._every):
            self.say(self.meter.text())


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
