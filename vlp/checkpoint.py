"""Checkpoints: written by all ranks in the background, verified before they are used.

A checkpoint is a folder `step-000000120` of safetensors, one file per writing rank, and
`checkpoint.json`, which holds everything that is no tensor and the SHA-256 of each file.

    saving    into step-000000120.tmp; one rename makes it step-000000120 once all is on the disk
    loading   only what still has the sizes and sums of checkpoint.json; else the one before
    stopping  at any moment leaves the earlier checkpoints as they are, and at most a .tmp folder

torch.distributed.checkpoint plans who writes what (shards by their owners, copies once, by turns)
and puts shards together again on any number of ranks. The files of its usual storage are pickles,
which can run code when they are loaded; its storage of safetensors, used here, holds data alone.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future as TorchFuture

from vlp import distributed
from vlp.config import UserError
from vlp.models.weights import differences

FACTS = "checkpoint.json"
VERSION = 1
_NAME = re.compile(r"step-(\d{9})")


@dataclass(frozen=True)
class Found:
    """A verified checkpoint.

    Attributes:
        path: its folder.
        step: optimiser steps taken when it was made.
        facts: what was saved besides tensors.
        damaged: newer checkpoints that could not be used, each with the reason.
    """

    path: Path
    step: int
    facts: dict[str, Any]
    damaged: list[str]


@dataclass(frozen=True)
class Saved:
    """How a save went.

    Attributes:
        step: its step.
        error: what could not be written and why; empty if all was.
        stall: seconds that training waited for it.
        seconds: from its begin to the rename, most of them in the background.
    """

    step: int
    error: str
    stall: float
    seconds: float


class Checkpoints:
    """The checkpoints of one run. All ranks make the same calls in the same order."""

    def __init__(self, folder: str | Path, keep: int) -> None:
        """Checkpoints in `folder`, which all ranks see, of which the newest `keep` are kept."""
        self.folder, self.keep = Path(folder), keep
        self.main, self.alone = distributed.rank() == 0, distributed.size() == 1
        # Its own group: the thread's messages must not mix with those of the training loop.
        self.group = distributed.cpu_group()
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        pinned = torch.cuda.is_available()
        self.stager = DefaultStager(StagingOptions(pinned, False, False, pinned))
        self.pending: Future[Saved] | None = None
        if self.main:
            remove_unfinished(self.folder)
        distributed.barrier()
        # One process has nothing to distribute, and needs no warning of it.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")

    def newest(self) -> Found | None:
        """The newest checkpoint that is whole; None if there is none at all.

        Damaged ones are set aside as `step-N.damaged`.

        Raises:
            UserError: there are checkpoints, but every one is damaged.
        """
        found = distributed.from_main(newest(self.folder) if self.main else None)
        if isinstance(found, str):
            raise UserError(found)
        return found

    def load(self, found: Found, tensors: Mapping[str, Tensor]) -> None:
        """Copy a checkpoint into `tensors` (plain or sharded), which must be the ones it holds.

        Raises:
            UserError: names the first missing, unexpected and misshapen tensors.
        """
        reader = dcp.HuggingFaceStorageReader(str(found.path))
        saved = reader.read_metadata().state_dict_metadata
        flat = _flat(tensors)
        unlike = differences(
            {name: tuple(value.shape) for name, value in flat.items()},
            {name: tuple(getattr(value, "size", ())) for name, value in saved.items()},
        )
        if unlike:
            raise UserError(
                f"{found.path}: of another model or optimiser ({unlike}); use the settings that it "
                "was made with, or choose another name"
            )
        dcp.load(flat, storage_reader=reader, process_group=self.group, no_dist=self.alone)

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        export: Callable[[], None] | None = None,
    ) -> None:
        """Copy the tensors and begin to write them as the checkpoint after `step` steps.

        Returns when training may go on. A save that is still being written is waited for first.

        Args:
            step: optimiser steps taken.
            tensors: plain or sharded, the same names on all ranks.
            facts: JSON values; rank 0's are kept.
            export: what rank 0 writes besides, in the background, before the checkpoint.
        """
        started = time.perf_counter()
        self.wait()
        staged = self.stager.stage(_flat(tensors))
        stall = time.perf_counter() - started

        def write() -> Saved:
            problems = []
            if export is not None and self.main:
                try:
                    export()
                except (OSError, SafetensorError) as error:
                    problems.append(f"model folder: {error}")
            try:
                dcp.save(
                    staged,
                    storage_writer=_Writer(self.folder, step, facts),
                    process_group=self.group,
                    no_dist=self.alone,
                )
            except CheckpointException as error:
                problems.append(_reason(error))
                if self.main:
                    remove_unfinished(self.folder)  # room for the next attempt
            if self.main:
                _rotate(self.folder, self.keep)
            return Saved(step, "; ".join(problems), stall, time.perf_counter() - started)

        self.pending = self.thread.submit(write)

    def done(self) -> Saved | None:
        """The outcome of a save that has ended since the last call; never waits."""
        return self.wait() if self.pending is not None and self.pending.done() else None

    def wait(self, seconds: float | None = None) -> Saved | None:
        """Wait for the save that is being written, if there is one; its outcome.

        Raises:
            TimeoutError: it takes more than `seconds`.
        """
        if self.pending is None:
            return None
        saved = self.pending.result(seconds)
        self.pending = None
        return saved

    def close(self) -> None:
        """End the thread; call after `wait`."""
        self.thread.shutdown(wait=False)
        self.stager.close()


class _Writer(dcp.HuggingFaceStorageWriter):
    """Safetensors of every rank, their sums, and one rename at the end."""

    def __init__(self, folder: Path, step: int, facts: Mapping[str, Any]) -> None:
        self.final = folder / _name(step)
        super().__init__(str(self.final.with_suffix(".tmp")), save_distributed=True)
        self.facts = {"version": VERSION, "step": step, "facts": dict(facts)}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> TorchFuture[list[WriteResult]]:
        """On each rank: write its file, then read it back for its sum."""
        results = super().write_data(plan, planner).wait()
        names = {result.storage_data.relative_path for result in results}
        sums = {name: _file_facts(Path(self.path) / name) for name in names}
        summed: TorchFuture[list[WriteResult]] = TorchFuture()
        summed.set_result([dataclasses.replace(result, storage_data=sums) for result in results])
        return summed

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On rank 0, when all have written: the list of files, and the rename."""
        files: dict[str, Any] = {}
        for rank in results:
            for result in rank:
                files |= result.storage_data
        unfinished = Path(self.path)
        with (unfinished / FACTS).open("w", encoding="utf-8") as file:
            json.dump(self.facts | {"files": files}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(unfinished)
        os.replace(unfinished, self.final)
        _sync_folder(self.final.parent)


def steps(folder: str | Path) -> list[int]:
    """Steps of the finished checkpoints in a folder, ascending; empty if there is no folder."""
    names = (_NAME.fullmatch(path.name) for path in Path(folder).glob("step-*"))
    return sorted(int(match[1]) for match in names if match)


def newest(folder: Path) -> Found | str | None:
    """The newest whole checkpoint, None if there is none, or why none of them can be used."""
    damaged: list[str] = []
    for step in reversed(steps(folder)):
        path = folder / _name(step)
        content = verify(path)
        if isinstance(content, dict):
            return Found(path, step, content["facts"], damaged)
        damaged.append(f"{path}: {content}")
        aside = path.with_suffix(".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
    if damaged:
        return (
            f"{'; '.join(damaged)}; no whole checkpoint is left: copy one back to {folder}, or "
            "choose another name to start anew"
        )
    return None


def verify(path: Path) -> dict[str, Any] | str:
    """A checkpoint's JSON if all its files are as they were written, else why it can't be used."""
    try:
        content = json.loads((path / FACTS).read_text(encoding="utf-8"))
        for name, written in content["files"].items():
            now = _file_facts(path / name)
            if now["bytes"] != written["bytes"]:
                return f"{name} has {now['bytes']} bytes, {written['bytes']} were written"
            if now["sha256"] != written["sha256"]:
                return f"{name} was changed after it was written (its SHA-256 differs)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"not readable: {error}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{FACTS} is damaged: {error!r}"
    if content.get("version") != VERSION or not isinstance(content.get("facts"), dict):
        return f"{FACTS} is of version {content.get('version')}, this code reads {VERSION}"
    return dict(content)


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process left half written or half deleted."""
    for stray in [*folder.glob("step-*.tmp"), *folder.glob("step-*.old")]:
        shutil.rmtree(stray, ignore_errors=True)


def _rotate(folder: Path, keep: int) -> None:
    for step in steps(folder)[:-keep]:
        path = folder / _name(step)
        old = path.with_suffix(".old")  # never half a folder under the name of a whole one
        os.replace(path, old)
        shutil.rmtree(old, ignore_errors=True)


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _flat(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same memory; scalars as one element, since slices of safetensors need a dimension."""
    return {
        name: value.detach().view(1) if value.ndim == 0 else value.detach()
        for name, value in tensors.items()
    }


def _file_facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: CheckpointException) -> str:
    """The first failure, in one line."""
    rank, (failure, _) = min(error.failures.items())
    return f"rank {rank}: {str(failure).splitlines()[0] or type(failure).__name__}"
