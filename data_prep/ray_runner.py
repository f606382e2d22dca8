"""Units on a Ray cluster, or on a Ray that is started on this machine."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

from data_prep.runners import Problem, Task, call, problem_of
from vlp.config import UserError

T = TypeVar("T")
R = TypeVar("R")

_REPOSITORY = Path(__file__).resolve().parents[1]
_IN_FLIGHT = 2  # tasks for each core, so that none waits for the driver


class RayWorkers(Generic[T, R]):
    """Workers of a Ray cluster, one core each; see runners.Workers.

    All machines need this checkout and the data under the same paths. Ray's own retries are off:
    the caller counts attempts.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, work: Callable[[T], R], address: str) -> None:
        try:
            import ray
        except ImportError:
            raise UserError(
                "runner=ray: Ray is not installed; `pip install ray`, or choose runner=local"
            ) from None
        self._ray: Any = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                ray.init(
                    address=address or None,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    runtime_env={"env_vars": {"PYTHONPATH": str(_REPOSITORY)}},
                )
            except ConnectionError as error:
                raise UserError(f"ray_address={address}: {error}") from None
        self._call: Any = ray.remote(max_retries=0)(call)
        self._work = ray.put(work)
        self._running: dict[Any, Task[T]] = {}

    def has_room(self) -> bool:
        """See Workers."""
        cores = int(self._ray.cluster_resources().get("CPU", 1))  # a cluster may grow
        return len(self._running) < _IN_FLIGHT * cores

    def is_busy(self) -> bool:
        """See Workers."""
        return bool(self._running)

    def start(self, task: Task[T]) -> None:
        """See Workers."""
        self._running[self._call.remote(self._work, task.item)] = task

    def wait(self) -> Iterable[tuple[Task[T], R | Problem]]:
        """See Workers."""
        ready, _ = self._ray.wait(list(self._running), num_returns=1)
        return [(self._running.pop(reference), self._result(reference)) for reference in ready]

    def close(self) -> None:
        """See Workers."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        if self._ours:
            self._ray.shutdown()

    def _result(self, reference: Any) -> R | Problem:
        errors = self._ray.exceptions
        try:
            result: R | Problem = self._ray.get(reference)
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError) as error:
            problem = problem_of(error)
            return Problem(problem.error, problem.details, killed=True)
        except errors.RayError as error:
            return problem_of(error)
        return result
