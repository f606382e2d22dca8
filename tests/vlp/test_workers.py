"""Loader processes that are signalled, die, hang or fail; batches on their way to the device."""

import multiprocessing
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from tests.shard_factory import make_shards
from tests.vlp.tiny import make_tokenizer
from vlp.config import UserError
from vlp.data.device import on_device
from vlp.data.index import open_shards
from vlp.data.loader import Batch, DataConfig, EvaluationSamples, batches
from vlp.data.text import PackedText
from vlp.data.workers import lost_worker


class Pids(Dataset[int]):
    """Each item is the process that made it; some items do something else."""

    def __init__(self, **special: int) -> None:
        self.special = special

    def __getitems__(self, numbers: list[int]) -> int:
        number = numbers[0]
        if number == self.special.get("fails"):
            raise UserError("shards/x.tar: ends inside the member at byte 7; copy it again")
        if number == self.special.get("breaks"):
            raise KeyError("a bug")
        if number == self.special.get("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.special.get("hangs"):
            time.sleep(60)
        return os.getpid()


def run(samples: Dataset[int], count: int = 8, workers: int = 2, **keys: object) -> Iterator[int]:
    config = DataConfig(workers=workers, prefetch=1, **keys)
    yield from batches(samples, [[i] for i in range(count)], config)


def send(name: str, pid: int) -> None:
    """From a process that is not the worker's parent, as Slurm and torchrun do."""
    subprocess.run(["kill", f"-{name}", str(pid)], check=True)


def gone(pid: int) -> bool:
    """Whether a process has ended within a few seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if pid not in [child.pid for child in multiprocessing.active_children()]:
            return True
        time.sleep(0.05)
    return False


def test_signals_to_the_job_leave_workers_alone() -> None:
    items = run(Pids(), count=40)
    pids = {next(items) for _ in range(4)}
    for pid in pids:
        for name in ("TERM", "USR1", "USR2"):
            send(name, pid)
    time.sleep(0.2)
    assert set(items) == pids  # 36 more batches, by the same processes
    assert all(gone(pid) for pid in pids)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_no_other_thread_of_a_worker_takes_signals() -> None:
    """Those that torch starts anew in a forked process would be killed by them, and all with it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    many = torch.ones(1000, 1000)
    (many @ many).sum()  # now there are some
    items = run(Pids(), count=4)
    for pid in {next(items) for _ in range(4)}:
        masks = [
            int(re.findall(r"^SigBlk:\s*(\w+)", (task / "status").read_text(), re.M)[0], 16)
            for task in Path(f"/proc/{pid}/task").iterdir()
        ]
        for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            blocked = [bool(mask >> (each - 1) & 1) for mask in masks]
            assert blocked.count(False) <= 1  # the one that waits for them
    torch.set_num_threads(threads)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGTERM, signal.SIGUSR1}


def test_workers_end_with_the_loop() -> None:
    items = run(Pids(), count=1000)
    pids = {next(items) for _ in range(4)}
    items.close()
    assert all(gone(pid) for pid in pids)


def test_the_training_process_can_end_a_worker() -> None:
    """As multiprocessing does at exit, where a worker that ignored SIGTERM would hang it."""
    items = run(Pids(), count=1000)
    pid = next(items)
    (worker,) = [child for child in multiprocessing.active_children() if child.pid == pid]
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0
    items.close()


def test_a_worker_that_is_killed_is_told_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(
        UserError, match=r"a loader process died \(killed by signal: Killed\): often"
    ):
        list(run(Pids(dies=5)))
    assert time.monotonic() - start < 10


def test_a_worker_killed_while_the_device_computes() -> None:
    """torch raises wherever the training process is; `lost_worker` says what it means."""
    items = run(Pids(), count=1000)
    send("KILL", next(items))
    with pytest.raises(RuntimeError) as caught:  # noqa: PT012
        for _ in range(100):
            time.sleep(0.05)
    assert "a loader process died (killed by signal: Killed)" in str(lost_worker(caught.value))
    items.close()


def test_other_errors_are_not_taken_for_lost_workers() -> None:
    assert lost_worker(RuntimeError("CUDA error: out of memory")) is None


def test_a_worker_that_hangs() -> None:
    with pytest.raises(UserError, match=r"no batch came for 1(\.0)? s: the storage hangs"):
        list(run(Pids(hangs=3), timeout=1))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_user_can_put_right_arrives_as_one_line(workers: int) -> None:
    got = run(Pids(fails=3), workers=workers)
    assert len([next(got) for _ in range(3)]) == 3
    with pytest.raises(UserError) as caught:
        next(got)
    assert str(caught.value) == "shards/x.tar: ends inside the member at byte 7; copy it again"


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(KeyError, match="in __getitems__"):
        list(run(Pids(breaks=3)))


def test_pixels_of_workers_are_in_shared_memory(tmp_path: Path) -> None:
    """Written there by the worker, and not copied into the training process."""
    folder = make_shards(tmp_path / "s", (6,))
    samples = EvaluationSamples(
        [open_shards(folder, "train")], make_tokenizer(tmp_path / "tok"), 32
    )
    (here,) = batches(samples, [list(range(6))], DataConfig(workers=0))
    (there,) = batches(samples, [list(range(6))], DataConfig(workers=1))
    assert there.images.is_shared()
    assert torch.equal(here.images, there.images)
    assert there.images.is_contiguous(memory_format=torch.channels_last)


def batch() -> Batch:
    text = PackedText(torch.arange(5), torch.tensor([0, 2, 5], dtype=torch.int32), 9)
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    return Batch(images, text, ["a", "b"], [])


def test_batches_stay_as_they_are_on_a_cpu() -> None:
    first, second = batch(), batch()
    got = list(on_device(iter([first, second]), torch.device("cpu")))
    assert got[0] is first
    assert got[1] is second


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu_equal_those_on_the_cpu() -> None:
    device = torch.device("cuda", 0)
    for moved in on_device((batch().pin_memory() for _ in range(20)), device):
        assert all(tensor.device == device for tensor in moved.tensors())
        torch.randn(2000, 2000, device=device).square_()  # something to overlap with
        for ours, theirs in zip(moved.tensors(), batch().tensors(), strict=True):
            assert torch.equal(ours.cpu(), theirs)
        assert moved.keys == ["a", "b"]
