"""No silence: when no rank gets on any more, each says where it is, and the run ends.

A rank that hangs makes all others wait in the next collective operation, on some networks for ever.
So a thread of each rank publishes how far its rank is, and watches the others. When no rank has got
on for `train.timeout` seconds, each writes the stacks of its threads to a file, the rank that is
behind prints its own, and all exit with status 70. A rank that is frozen, or whose machine is gone,
is named by the others.
"""

import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from vlp import distributed
from vlp.distributed import World

STALLED = 70
"""Exit status of a run that hung: EX_SOFTWARE."""

PHASES = ("data", "forward", "loss", "backward", "optimizer", "report", "evaluate", "save")
"""What a rank may be doing, in the order of a step."""


class Place(NamedTuple):
    """Where a rank is: steps finished, index of what it does now in PHASES, and how often it has
    got on."""

    step: int
    phase: int
    moves: int

    def __str__(self) -> str:
        return f"after step {self.step}, in '{PHASES[self.phase]}'"


class Word(NamedTuple):
    """What a rank said last, and for how many seconds nothing else has been heard of it."""

    place: Place
    age: float


class Watchdog:
    """Watches all ranks, from a thread of each, while it is entered."""

    def __init__(self, world: World, seconds: float, folder: Path) -> None:
        """End the run when no rank has got on for `seconds`; stacks are written to `folder`."""
        self.world, self.seconds, self.folder = world, seconds, folder
        self.period = min(10.0, seconds / 8)
        self.place = Place(0, 0, 0)
        self.beats = 0
        self.heard: dict[int, tuple[str, float]] = {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        world.store.set_timeout(timedelta(seconds=seconds))

    def __enter__(self) -> Self:
        self._publish()
        distributed.barrier()  # now everyone's first word is there to be read
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ended.set()
        self.thread.join()

    def at(self, step: int, phase: str) -> None:
        """This rank has finished `step` steps and begins `phase`."""
        self.place = Place(step, PHASES.index(phase), self.place.moves + 1)

    def _watch(self) -> None:
        moves: list[int] = []
        since = time.monotonic()
        while not self.ended.wait(self.period):
            # A timer in C behind this thread: it speaks even if a call never gives Python back.
            faulthandler.dump_traceback_later(2 * self.seconds, exit=True)
            try:
                self._publish()
                words = self._listen()
                problem = self._describe(words)
            except RuntimeError as error:  # the store is gone, and with it rank 0 or torchrun
                words, problem = [], f"the other ranks can't be asked ({_first_line(error)})"
            now = [word.place.moves for word in words]
            if now != moves and words:
                moves, since = now, time.monotonic()
            elif time.monotonic() - since > self.seconds:
                self._end(words, problem)
        faulthandler.cancel_dump_traceback_later()

    def _publish(self) -> None:
        self.beats += 1
        self.world.store.set(_key(self.world.rank), json.dumps([*self.place, self.beats]))

    def _listen(self) -> list[Word]:
        """The last words of all ranks."""
        words, now = [], time.monotonic()
        for rank in range(self.world.size):
            text = self.world.store.get(_key(rank)).decode()
            if text != self.heard.get(rank, ("",))[0]:
                self.heard[rank] = text, now
            *place, _ = json.loads(text)
            words.append(Word(Place(*place), now - self.heard[rank][1]))
        return words

    def _silent(self, word: Word) -> bool:
        """Not even the watching thread of that rank speaks."""
        return word.age > self.seconds / 2

    def _describe(self, words: list[Word]) -> str:
        """Who is behind, who is silent."""
        behind = _behind(words)
        if len(behind) == len(words) > 1:
            parts = [f"all ranks are {words[0].place}"]
        else:
            parts = [f"rank {rank} is behind, {words[rank].place}" for rank in behind]
        parts += [
            f"rank {rank} gives no sign of life: frozen, or its machine is gone"
            for rank, word in enumerate(words)
            if self._silent(word)
        ]
        return "; ".join(parts)

    def _end(self, words: list[Word], problem: str) -> None:
        """Leave the stacks, say what is known, and exit: the main thread can't."""
        rank = self.world.rank
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"rank-{rank}.txt").open("w", encoding="utf-8") as file:
            file.write(f"rank {rank}, {self.place}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        speaker = next((i for i, word in enumerate(words) if not self._silent(word)), rank)
        if rank == speaker:
            print(  # noqa: T201
                f"error: no rank got on for {self.seconds:g} s (train.timeout): {problem}; the "
                f"stacks of all ranks are in {self.folder}",
                file=sys.stderr,
            )
        if not words or rank in _behind(words):
            main = sys._current_frames()[threading.main_thread().ident or 0]
            stack = "".join(traceback.format_stack(main))
            print(f"rank {rank}, {self.place}:\n{stack}", file=sys.stderr)  # noqa: T201
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(3 * self.period)  # torchrun ends all at the first exit; let the others speak
        os._exit(STALLED)


def _behind(words: list[Word]) -> list[int]:
    """The ranks that are least far."""
    least = min(word.place[:2] for word in words)
    return [rank for rank, word in enumerate(words) if word.place[:2] == least]


def _key(rank: int) -> str:
    return f"place-{rank}"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
