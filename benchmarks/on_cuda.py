"""What `train_step.py` adds on CUDA: kernels of a step, the largest batch, the device's peak."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import Row
from benchmarks.sides import Inputs, OpenClip, Ours, draw_inputs
from benchmarks.text_tower import draw_lengths
from vlp.models.dual_encoder import ModelConfig

FLASH = ("flash", "fmha", "cudnn_generated")
"""Parts of the names of fused attention's kernels: flash attention's, cutlass's, cuDNN's."""
SOFTMAX = ("softmax",)
"""Of attention that writes its scores to memory; the loss has none in its tiles."""
TOP = 12
"""Kernels that are listed."""


def extra_rows(
    ours: Ours, theirs: OpenClip, model: ModelConfig, batch: int, seed: int
) -> list[Row]:
    """The device's peak, and the kernels of one step of both sides on PMC-like captions."""
    torch.compiler.reset()  # compiled towers of before hold on to their memory
    rows = [Row("bf16 product of 8192 x 8192 matrices", "TFLOP/s", matmul_rate() / 1e12)]
    inputs = pmc_inputs(model, batch, seed, pin=True)
    ids = inputs.padded(model.text.context_length)
    rows += kernels("ours", lambda: ours.step(inputs))
    rows += kernels("open_clip", lambda: theirs.step(inputs.pixels, ids))
    return rows


def pmc_inputs(model: ModelConfig, batch: int, seed: int, pin: bool = False) -> Inputs:
    """A batch of PMC-like captions on the host."""
    rng = np.random.default_rng(seed)
    lengths = draw_lengths("PMC", batch, model.text.context_length, rng)
    return draw_inputs(model, lengths, pin, seed)


def matmul_rate(size: int = 8192, repetitions: int = 50) -> float:
    """Operations a second of a large product: what the device reaches at best."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repetitions):
        a @ b
    end.record()
    torch.cuda.synchronize()
    return 2.0 * size**3 * repetitions / (start.elapsed_time(end) / 1e3)


def kernels(side: str, step: Callable[[], None]) -> list[Row]:
    """A profiler's summary of one step: the longest kernels, and which attention ran."""
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        step()
        torch.cuda.synchronize()
    events = [
        event
        for event in trace.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA and event.self_device_time_total
    ]
    total = sum(event.self_device_time_total for event in events)
    rows = [Row(f"trace, {side}: all kernels", "ms", total / 1e3)]
    for title, parts in (("fused attention", FLASH), ("softmax over scores", SOFTMAX)):
        found = [event for event in events if any(part in event.key.lower() for part in parts)]
        taken = sum(event.self_device_time_total for event in found)
        rows += [
            Row(f"trace, {side}: {title}", "launches", sum(event.count for event in found)),
            Row(f"trace, {side}: {title}", "ms", taken / 1e3, ratio=taken / total),
        ]
    for event in sorted(events, key=lambda e: e.self_device_time_total, reverse=True)[:TOP]:
        taken = event.self_device_time_total
        name = f"trace, {side}: {event.count} x {event.key[:70]}"
        rows.append(Row(name, "ms", taken / 1e3, ratio=taken / total))
    return rows


def largest_batch(try_batch: Callable[[int], None], start: int) -> int:
    """The largest batch whose step fits, to within 1/16 of it.

    Args:
        try_batch: takes a step of a batch, or raises OutOfMemoryError.
        start: a first guess.
    """

    def fits(batch: int) -> bool:
        torch.cuda.empty_cache()
        try:
            try_batch(batch)
        except torch.cuda.OutOfMemoryError:
            return False
        return True

    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_rows(model: ModelConfig, device: torch.device, start: int, seed: int) -> list[Row]:
    """Both sides' largest batch on PMC-like captions, plain and with activation checkpointing."""
    rows = []
    for checkpointing in (False, True):
        how = "activation checkpointing" if checkpointing else "plain"
        ours = Ours(model, device, seed)
        theirs = OpenClip(model, ours.model, device)
        if checkpointing:
            ours.model.set_grad_checkpointing(True)
            theirs.model.set_grad_checkpointing(True)
        # One side's weights and moments lie there beside the other's step: 3 GB of BERT and ViT.
        mine = largest_batch(functools.partial(_our_step, ours, model, seed), start)
        other = largest_batch(functools.partial(_their_step, theirs, model, seed), start)
        rows += [
            Row(f"largest batch, {how}: open_clip", "pairs", other, ratio=1.0),
            Row(f"largest batch, {how}: ours", "pairs", mine, ratio=mine / max(1, other)),
        ]
        del ours, theirs
    return rows


def _our_step(ours: Ours, model: ModelConfig, seed: int, batch: int) -> None:
    ours.step(pmc_inputs(model, batch, seed))
    torch.cuda.synchronize()


def _their_step(theirs: OpenClip, model: ModelConfig, seed: int, batch: int) -> None:
    inputs = pmc_inputs(model, batch, seed)
    theirs.step(inputs.pixels, inputs.padded(model.text.context_length))
    torch.cuda.synchronize()
