"""A lock on a shard folder, so that two runs cannot write into it at once."""

import errno
import fcntl
import multiprocessing.context
import os
import time
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from vlp.config import UserError

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
    """Holds `path` with flock(2); one exclusive holder, or many shared ones.

    A lock that goes to a worker process as an argument of its start is held there, too: when the
    main process is killed, the folder becomes free with the end of its last worker, not before.

    Raises:
        UserError: another run holds the lock, and did so for `patience` seconds.
    """

    def __init__(self, path: Path, *, shared: bool = False, patience: float = 5.0) -> None:
        self._path, self._shared, self._patience = path, shared, patience
        self._fd: int | None = None

    def __enter__(self) -> "FolderLock":
        # For writing: some network file systems give an exclusive lock to writers only.
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        mode = fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX
        deadline = time.monotonic() + self._patience
        while True:
            try:
                fcntl.flock(self._fd, mode | fcntl.LOCK_NB)
                return self
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self.__exit__()
                    raise UserError(
                        f"{self._path.parents[1]}: another run is working in this folder; wait "
                        "for its end or stop it, or choose another out"
                    ) from None
                time.sleep(0.05)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                print(
                    f"warning: {self._path.parents[1]} is on a file system without locks; "
                    "see to it that no other run writes there"
                )
                return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __getstate__(self) -> dict[str, Any]:
        """The descriptor goes along to a process that is just being started, and nowhere else."""
        starting = multiprocessing.context.get_spawning_popen() is not None
        duplicate = DupFd(self._fd) if starting and self._fd is not None else None
        return {"_path": self._path, "_shared": self._shared, "_duplicate": duplicate}

    def __setstate__(self, state: dict[str, Any]) -> None:
        duplicate = state.pop("_duplicate")
        self.__dict__.update(state, _patience=0.0)
        self._fd = duplicate.detach() if duplicate is not None else None
