"""The training step, ours and open_clip 3.3.0's, in turn in one process.

    python -m benchmarks.train_step                        # CPU: 5 minutes
    python -m benchmarks.train_step device=cuda out=FILE.json

Claim: on the recipe of configs/biomedclip.yaml our step makes the gradients of open_clip's, faster,
for it computes no padding and, in each tower's last block, the [CLS] row alone. How much faster the
saved operations allow is printed beside what was measured.

Same weights, images, captions, batch, AdamW; data lie ready. On the CPU towers of the same shape
and the same proportion of operations as ViT-B/16 and BERT-base (ViT-Ti/16, and a BERT of width 192)
in fp32, on CUDA those themselves under bf16 autocast. open_clip's contenders:

- padded to 256: the only way that release 3.3.0 has. On CUDA also with its --torchcompile.
- padded to the longest: its main branch's variable text, which pads to the longest of a batch.
- length buckets: the same, and batches made of captions of similar lengths, as its main branch can
  for captioning models (`buckets=true`). Not the same recipe: a batch's captions are then all of
  one length, and the loss compares them with each other.

CUDA adds useful operations against the device's peak (MFU), a profiler's list of kernels, and the
largest batch of both sides.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import timm
import torch

from benchmarks import on_cuda
from benchmarks.measure import (
    Result,
    Row,
    interleaved,
    machine,
    median_row,
    paired_ratio,
    report,
)
from benchmarks.memory import LiveMemory
from benchmarks.sides import (
    Inputs,
    OpenClip,
    Ours,
    draw_inputs,
    peer_flops,
    relative_difference,
)
from benchmarks.text_tower import CORPORA, draw_lengths
from vlp.config import UserError, load_config, run_program
from vlp.flops import peak_flops, step_flops
from vlp.models.dual_encoder import ModelConfig
from vlp.models.text_tower import TextConfig
from vlp.models.vision_tower import ImageConfig

RELEASED, LONGEST, OURS = "open_clip, padded to 256", "open_clip, padded to the longest", "ours"
BUCKETS = "open_clip, length buckets"
POOL = 4
"""Batches whose captions are sorted by length together, for the buckets."""


@dataclass(frozen=True, kw_only=True)
class TrainStepConfig:
    """Time the training step against open_clip's."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a device."""
    corpora: tuple[str, ...] = ("PMC", "ROCO")
    """Whose caption lengths."""
    batch: int = 0
    """Pairs in a batch; 0: 16 on the CPU, 384 on CUDA."""
    image: str = ""
    """timm's name of the image tower; empty: vit_tiny_patch16_224 on the CPU, vit_base_patch16_224
    on CUDA."""
    width: int = 0
    """Width of the 12-layer BERT, a multiple of 64; 0: 192 on the CPU, 768 on CUDA."""
    buckets: bool = False
    """Whether to time open_clip on length buckets, too."""
    compile: bool = True
    """On CUDA: time compiled towers, too, on both sides."""
    largest: bool = True
    """On CUDA: look for the largest batch that fits."""
    threads: int = 1
    """Threads on the CPU; the time is that of all of them together."""
    repetitions: int = 0
    """Steps that each contender takes; 0: 5 on the CPU, 20 on CUDA."""
    seed: int = 0
    """Seed of weights, images, lengths and token ids."""
    out: str = ""
    """JSON file for the result; empty writes none."""

    def __post_init__(self) -> None:
        unknown = set(self.corpora) - set(CORPORA)
        if unknown or not self.corpora:
            raise ValueError(f"corpora: known are {', '.join(CORPORA)}, got {self.corpora}")
        if self.width % 64 or min(self.batch, self.width, self.repetitions) < 0:
            raise ValueError("width is a multiple of 64; batch, width, repetitions 0 or more")
        if self.threads < 1:
            raise ValueError(f"threads must be 1 or more, got {self.threads}")


@dataclass(frozen=True)
class Setting:
    """What follows from configuration and machine."""

    model: ModelConfig
    device: torch.device
    batch: int
    repetitions: int

    @classmethod
    def of(cls, config: TrainStepConfig) -> "Setting":
        if config.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: there is no CUDA device; use device=cpu")
        cuda = torch.cuda.is_available() and config.device != "cpu"
        width = config.width or (768 if cuda else 192)
        image = config.image or f"vit_{'base' if cuda else 'tiny'}_patch16_224"
        pretrained = timm.get_pretrained_cfg(image)
        if pretrained is None:
            raise UserError(f"image={image}: timm has no such model")
        size = pretrained.input_size[-1]
        text = TextConfig(width=width, heads=width // 64, mlp_width=4 * width)
        return cls(
            ModelConfig(image=ImageConfig(name=image, size=size), text=text),
            torch.device("cuda" if cuda else "cpu"),
            config.batch or (384 if cuda else 16),
            config.repetitions or (20 if cuda else 5),
        )

    @property
    def context(self) -> int:
        return self.model.text.context_length


@dataclass(frozen=True)
class Contender:
    """A way to take training steps.

    Attributes:
        run: takes `batches` steps.
        batches: how many.
        flops: operations of these steps as this contender computes them; 0: not told.
    """

    run: Callable[[], None]
    batches: int = 1
    flops: float = 0.0


@dataclass(frozen=True)
class Sides:
    """Both sides with the same weights; on CUDA compiled ones, too."""

    ours: Ours
    theirs: OpenClip
    compiled: tuple[Ours, OpenClip] | None = None

    @classmethod
    def build(cls, setting: Setting, config: TrainStepConfig) -> "Sides":
        ours = Ours(setting.model, setting.device, config.seed)
        theirs = OpenClip(setting.model, ours.model, setting.device)
        if setting.device.type == "cpu" or not config.compile:
            return cls(ours, theirs)
        fast = Ours(setting.model, setting.device, config.seed)
        fast.model.compile_towers()
        fast_peer = OpenClip(setting.model, ours.model, setting.device)
        fast_peer.compile()
        return cls(ours, theirs, (fast, fast_peer))


def contenders(
    sides: Sides, setting: Setting, inputs: Inputs, lengths: Sequence[int]
) -> dict[str, Contender]:
    """Everyone on one batch; the released open_clip first."""
    full, longest = inputs.padded(setting.context), inputs.padded(0)
    theirs, pixels = sides.theirs, inputs.pixels
    peer = functools.partial(peer_flops, setting.model, setting.batch)
    useful = step_flops(setting.model, setting.batch, torch.tensor(lengths))
    step = functools.partial
    found = {
        RELEASED: Contender(step(theirs.step, pixels, full), flops=peer(full.shape[1])),
        LONGEST: Contender(step(theirs.step, pixels, longest), flops=peer(longest.shape[1])),
        OURS: Contender(step(sides.ours.step, inputs), flops=useful),
    }
    if sides.compiled:
        fast, fast_peer = sides.compiled
        found[f"{RELEASED}, compiled"] = Contender(step(fast_peer.step, pixels, full))
        found[f"{OURS}, compiled"] = Contender(step(fast.step, inputs))
    return found


def buckets(theirs: OpenClip, setting: Setting, name: str, config: TrainStepConfig) -> Contender:
    """open_clip on POOL batches of captions sorted by length, each padded to its longest."""
    rng = np.random.default_rng(config.seed)
    pool = sorted(draw_lengths(name, POOL * setting.batch, setting.context, rng))
    pin, batch = setting.device.type == "cuda", setting.batch
    drawn = [
        draw_inputs(setting.model, pool[start : start + batch], pin, config.seed)
        for start in range(0, len(pool), batch)
    ]
    ready = [(inputs.pixels, inputs.padded(0)) for inputs in drawn]

    def run() -> None:
        for pixels, ids in ready:
            theirs.step(pixels, ids)

    return Contender(run, POOL)


def exactness(what: str, sides: Sides, inputs: Inputs, context: int) -> list[Row]:
    """Both sides' loss and gradients at the same weights."""
    mine = sides.ours.backward(inputs)
    other = sides.theirs.backward(inputs.pixels, inputs.padded(context))
    apart = relative_difference(sides.ours.model, sides.theirs.model)
    for side in (sides.ours, sides.theirs):  # makes the moments, which are no step's memory
        side.optimizer.step()
    return [
        Row(f"{what}: loss, open_clip", "", float(other)),
        Row(f"{what}: difference of the losses", "", abs(float(mine - other))),
        Row(f"{what}: difference of the gradients", "relative norm", apart),
    ]


def memory(run: Callable[[], None], device: torch.device) -> float:
    """MiB that a step takes at its peak, beyond weights and what lies there before it."""
    if device.type == "cpu":
        with LiveMemory() as live:
            run()
        return live.peak / 2**20
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def seconds(contender: Contender, device: torch.device) -> float:
    """Time of one step; on the CPU the process's own, which other processes disturb less."""
    if device.type == "cpu":
        start = time.process_time()
        contender.run()
        return (time.process_time() - start) / contender.batches
    torch.cuda.synchronize()
    start = time.perf_counter()
    contender.run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / contender.batches


def compare(
    name: str, setting: Setting, config: TrainStepConfig, facts: dict[str, str]
) -> list[Row]:
    """Exactness, speed, memory and the ceiling on the caption lengths of one corpus."""
    rng = np.random.default_rng(config.seed)
    lengths = draw_lengths(name, setting.batch, setting.context, rng)
    facts[f"{name} lengths"] = f"mean {np.mean(lengths):.0f}, longest {max(lengths)}"
    what = f"{name}, B={setting.batch}"
    sides = Sides.build(setting, config)
    inputs = draw_inputs(setting.model, lengths, setting.device.type == "cuda", config.seed)
    rows = exactness(what, sides, inputs, setting.context)

    racers = contenders(sides, setting, inputs, lengths)
    needs = {way: memory(racer.run, setting.device) for way, racer in racers.items()}
    if config.buckets:
        racers[BUCKETS] = buckets(sides.theirs, setting, name, config)
        racers[BUCKETS].run()  # kernels of the other shapes
    times = interleaved(
        {way: functools.partial(seconds, racer, setting.device) for way, racer in racers.items()},
        setting.repetitions,
    )
    rows += [
        median_row(
            f"{what}: {way}",
            "samples/s",
            [setting.batch / taken for taken in found],
            paired_ratio(times[RELEASED], found),
        )
        for way, found in times.items()
    ]
    rows += [Row(f"{what}: {way}, memory", "MiB a step", need) for way, need in needs.items()]
    rows += ceilings(what, racers, times)
    if setting.device.type == "cuda":
        rows += utilisation(what, racers[OURS].flops, times, setting.device)
    return rows


def utilisation(
    what: str, useful: float, times: dict[str, list[float]], device: torch.device
) -> list[Row]:
    """MFU: useful operations a second over what the device can do, as sold and as measured."""
    peaks = {"measured": on_cuda.matmul_rate(), "data sheet's": peak_flops(device)}
    return [
        median_row(f"{what}: {way}, of the {kind} peak", "MFU", [useful / t / peak for t in found])
        for kind, peak in peaks.items()
        if peak
        for way, found in times.items()
    ]


def ceilings(what: str, racers: dict[str, Contender], times: dict[str, list[float]]) -> list[Row]:
    """What the saved operations allow against each way of padding, and how much is reached."""
    rows = []
    for way in (RELEASED, LONGEST):
        allowed = racers[way].flops / racers[OURS].flops
        reached = paired_ratio(times[way], times[OURS])
        rows += [
            Row(f"{what}: operations of {way}", "of ours", allowed),
            # Here the ratio is the share of what the saved operations allow.
            Row(f"{what}: ours against {way}", "times as fast", reached, ratio=reached / allowed),
        ]
    return rows


def measure(config: TrainStepConfig) -> Result:
    """Each corpus, then what only CUDA has."""
    setting = Setting.of(config)
    if setting.device.type == "cpu":
        torch.set_num_threads(config.threads)
    facts = machine()
    model = setting.model
    facts["towers"] = (
        f"{model.image.name}; BERT of {model.text.layers} layers, width {model.text.width}; "
        + ("bf16 autocast" if setting.device.type == "cuda" else "fp32")
    )
    facts["repetitions"] = f"{setting.repetitions}, interleaved"
    rows = [row for name in config.corpora for row in compare(name, setting, config, facts)]
    if setting.device.type == "cuda":
        sides = Sides.build(setting, dataclasses.replace(config, compile=False))
        rows += on_cuda.extra_rows(sides.ours, sides.theirs, model, setting.batch, config.seed)
        del sides
        if config.largest:
            rows += on_cuda.largest_rows(model, setting.device, setting.batch, config.seed)
    return Result("training step", facts, tuple(rows))


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    config = load_config(TrainStepConfig, argv, "python -m benchmarks.train_step")
    report([measure(config)], config.out)


if __name__ == "__main__":
    run_program(main)
