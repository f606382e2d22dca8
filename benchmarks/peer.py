"""open_clip's loader in an environment of its own, as a subprocess that answers requests.

open_clip 3.3.0 pins webdataset <= 0.2.86 (with later ones its pipeline raises KeyError('fname') at
a shard's end), which this project can't have. The environment holds only what differs; all else,
torch and Pillow first, is this interpreter's own, found through a .pth file. So both sides run the
same builds without a second installation of them.
"""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vlp.config import UserError

PINS = (
    "open_clip_torch==3.3.0",
    "webdataset==0.2.86",
    # Its data module imports pandas, for CSV files.
    "pandas==2.3.3",
    "python-dateutil==2.9.0.post0",
    "pytz==2025.2",
    "tzdata==2025.2",
    "six==1.17.0",
)
"""The peer and its pin; installed without dependencies, so that nothing else changes."""
WORKER = Path(__file__).with_name("open_clip_worker.py")


def make_environment(folder: Path, packages: Sequence[str] = PINS) -> Path:
    """The interpreter of a peer's environment, made if it is not there or has other pins.

    Raises:
        UserError: it can't be made, for want of a network, say.
    """
    python = folder / "bin" / "python"
    mark, pins = folder / "pins.txt", "\n".join((sys.executable, *packages))
    if mark.is_file() and mark.read_text(encoding="utf-8") == pins:
        return python
    _call([sys.executable, "-m", "venv", "--clear", str(folder)])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    outer = folder / "lib" / version / "site-packages" / "outer.pth"
    outer.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    # What the outer environment has already would otherwise count as installed.
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed"]
    _call([*install, *packages])
    mark.write_text(pins, encoding="utf-8")
    return python


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise UserError(f"{' '.join(command[:4])} ...: {reason}; to leave the peer out: peer=")


class Peer:
    """The running worker; a context manager that ends it."""

    def __init__(self, python: Path, worker: Path = WORKER) -> None:
        self.worker = worker
        self.process = subprocess.Popen(
            [str(python), str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        self.versions: dict[str, str] = self._answer()["versions"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One round; the worker's file documents requests and answers."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise UserError(f"{self.worker.name} ended with status {status}; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer
