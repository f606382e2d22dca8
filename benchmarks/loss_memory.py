"""Memory of the contrastive loss against the batch, ours in tiles and open_clip's.

    python -m benchmarks.loss_memory                          # CPU: half a minute
    python -m benchmarks.loss_memory device=cuda out=FILE.json

Claim: forward and backward of InfoNCE over N pairs on one device take memory linear in N, with the
gradients of open_clip 3.3.0's ClipLoss; that one's grows with N squared.

Beyond the features and their gradients, which both need. On the CPU the bytes of all tensors alive
at the same time are counted on tensors without content, so that no such machine is needed; the last
rows count a real run, too. On CUDA it is the allocator's own peak, and what does not fit is inf.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Result, Row, machine, report
from benchmarks.memory import LiveMemory, simulated_peak
from vlp.config import UserError, load_config, run_program
from vlp.losses import LossConfig, contrastive_loss
from vlp.models.dual_encoder import Features

Step = Callable[[], object]
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class LossMemoryConfig:
    """Measure the loss's memory over batch sizes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a device."""
    batches: tuple[int, ...] = (1024, 4096, 16384, 65536)
    """Global batches, on one device."""
    checked: int = 0
    """Batch that is computed for time and gradients; 0: 1,024 on the CPU, 16,384 on CUDA."""
    width: int = 512
    """Size of the features."""
    tile: int = 1024
    """Captions at a time in our loss."""
    seed: int = 0
    """Seed of the features."""
    out: str = ""
    """JSON file for the result; empty writes none."""

    def __post_init__(self) -> None:
        if not self.batches or min(*self.batches, self.width, self.tile) < 1 or self.checked < 0:
            raise ValueError("batches, width and tile must be 1 or more, checked 0 or more")


def leaves(batch: int, config: LossMemoryConfig, device: torch.device) -> list[Tensor]:
    """Unit features of both sides, similar within pairs as after some training, and the scale."""
    generator = torch.Generator(device).manual_seed(config.seed)
    image, noise = torch.randn((2, batch, config.width), generator=generator, device=device)
    features = [F.normalize(side, dim=-1) for side in (image, image + 4 * noise)]
    return [x.requires_grad_() for x in (*features, torch.tensor(50.0, device=device))]


def ours(parts: Sequence[Tensor], config: LossMemoryConfig) -> Step:
    loss = LossConfig(tile=config.tile)
    return lambda: contrastive_loss(Features(*parts), loss).backward()


def peer(parts: Sequence[Tensor], half: bool) -> Step:
    """open_clip's loss; `half`: as under its --precision amp_bf16, which computes logits so."""
    loss = open_clip.ClipLoss()

    def step() -> None:
        with torch.autocast(parts[0].device.type, torch.bfloat16, enabled=half):
            value = loss(*parts)
        value.backward()

    return step


def contenders(config: LossMemoryConfig) -> dict[str, Callable[[Sequence[Tensor]], Step]]:
    return {
        "open_clip, fp32": lambda parts: peer(parts, half=False),
        "open_clip, amp_bf16": lambda parts: peer(parts, half=True),
        f"ours, fp32 in tiles of {config.tile}": lambda parts: ours(parts, config),
    }


def peak(
    make: Callable[[Sequence[Tensor]], Step],
    batch: int,
    config: LossMemoryConfig,
    device: torch.device,
) -> float:
    """MiB at the peak beyond features and their gradients; infinite if it does not fit."""
    gradients = 2 * batch * config.width * 4
    if device.type == "cpu":
        found = simulated_peak(lambda: make(leaves(batch, config, device)))
        return (found - gradients) / MIB
    step = make(leaves(batch, config, device))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        step()
    except torch.cuda.OutOfMemoryError:
        return float("inf")
    return (torch.cuda.max_memory_allocated() - before - gradients) / MIB


def seconds(step: Step, device: torch.device) -> float:
    """Time of the second call."""
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - start


def checks(config: LossMemoryConfig, device: torch.device) -> list[Row]:
    """On a batch that is really computed: gradients, time, and on the CPU real bytes."""
    batch = config.checked or (1024 if device.type == "cpu" else 16384)
    gradients, rows = {}, []
    for name, make in contenders(config).items():
        parts = leaves(batch, config, device)
        step = make(parts)
        if device.type == "cpu":
            with LiveMemory() as memory:
                step()
            counted = (memory.peak - 2 * batch * config.width * 4) / MIB
            rows.append(Row(f"N={batch}: {name}, computed", "MiB", counted))
        else:
            step()
        gradients[name] = [part.grad.clone() for part in parts if part.grad is not None]
        if device.type == "cuda" or "bf16" not in name:  # many CPUs only emulate bf16
            rows.append(Row(f"N={batch}: {name}, time", "ms", 1e3 * seconds(step, device)))
    reference, found = gradients["open_clip, fp32"], list(gradients.values())[-1]
    apart = max(
        float((mine - theirs).norm() / theirs.norm())
        for mine, theirs in zip(found, reference, strict=True)
    )
    rows.append(Row(f"N={batch}: gradients, ours against fp32", "relative norm", apart))
    return rows


def measure(config: LossMemoryConfig) -> Result:
    """All sizes, then the checks."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: there is no CUDA device; use device=cpu")
    on_cuda = torch.cuda.is_available() and config.device != "cpu"
    device = torch.device("cuda" if on_cuda else "cpu")
    facts = machine()
    facts["features"] = f"two sides of N x {config.width}, fp32"
    rows = []
    for batch in config.batches:
        found = {
            name: peak(make, batch, config, device) for name, make in contenders(config).items()
        }
        least = list(found.values())[-1]
        rows += [
            Row(f"N={batch}: {name}", "MiB", value, ratio=value / least)
            for name, value in found.items()
        ]
    return Result("loss memory", facts, (*rows, *checks(config, device)))


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    config = load_config(LossMemoryConfig, argv, "python -m benchmarks.loss_memory")
    report([measure(config)], config.out)


if __name__ == "__main__":
    run_program(main)
