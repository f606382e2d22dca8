"""Several processes that embed for one: torchrun starts them, rank 0 runs the program.

The others wait for requests. A batch holds the same images on whichever rank it is embedded, so the
numbers don't depend on how many ranks there are. Embeddings come to the CPU anyway, so gloo carries
everything, and nothing spins on a GPU while rank 0 scores.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vlp import distributed
from vlp.config import UserError

WAIT = 7 * 24 * 3600.0
"""Seconds for which a helper waits: rank 0 may score for hours between two requests. Where a
process dies, torchrun ends the others at once."""


@dataclass(frozen=True)
class Team:
    """This process among those that embed; alone by default, even inside a training run."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def tell(self, request: Any) -> None:
        """Rank 0: what the others shall do now; None sends them home."""
        if self.size > 1:
            dist.broadcast_object_list([request], src=0)

    def requests(self) -> Iterator[Any]:
        """The others: what rank 0 tells, until it sends them home."""
        while True:
            request = [None]
            dist.broadcast_object_list(request, src=0)
            if request[0] is None:
                return
            yield request[0]

    def gather(self, value: Any) -> list[Any]:
        """Each rank's value, in rank order, on all ranks."""
        return distributed.gather_objects(value) if self.size > 1 else [value]

    def add(self, rows: Tensor) -> Tensor:
        """Sum over the ranks, on all of them: exact where only one rank's value isn't 0."""
        if self.size > 1:
            dist.all_reduce(rows)
        return rows

    def leave(self) -> None:
        """Nothing is asked of this process any more."""
        if self.size > 1:
            distributed.stop()


def join(device: str) -> tuple[Team, str]:
    """Join the processes that torchrun started, if it did.

    Args:
        device: as the user gave it.

    Returns:
        The team, and this rank's own device.
    """
    world = distributed.start("cpu", timeout=WAIT)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if world.size > 1 and (device == "cuda" or (device == "auto" and torch.cuda.is_available())):
        device = f"cuda:{local}"
    return Team(world.rank, world.size), device


def check_same_model(team: Team, sha256: str) -> None:
    """Whether all ranks hold the same weights.

    Raises:
        UserError: on all ranks, if they don't.
    """
    if len(set(team.gather(sha256))) > 1:
        raise UserError("the ranks loaded different weights; give all of them the same files")
