"""What a run would be: its data, steps, memory and time, measured on a few samples, not trained."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlp import distributed
from vlp.data.loader import Batch, TrainSamples
from vlp.trainer import Trainer

PROBE = 8
"""Samples that are read and run through the towers."""

GB = 1e9


class Memory(NamedTuple):
    """Bytes on one device."""

    state: float
    """Weights, gradients, two moments of AdamW, and the average of the weights."""
    activations: float
    """What forward keeps for backward."""
    loss: float
    """Features of the global batch, and one tile of logits with its gradients."""


class Speed(NamedTuple):
    """Seconds per sample."""

    load: float
    """To read, decode and tokenise, in one process."""
    compute: float
    """Forward and backward on this device."""


def dry_run(trainer: Trainer) -> Iterator[str]:
    """Lines for a person. The model is not changed. All ranks call it and get the same.

    Raises:
        UserError: the first samples can't be read.
    """
    config, world = trainer.config, trainer.world
    train, data = config.train, config.data
    order, schedule = trainer.mixture.order, trainer.schedule
    for name, source in order.sources.items():
        yield f"data: {name}: {source.size:,} samples, {source.share:,} in an epoch"
    yield f"validation: {sum(len(part) for part in trainer.validation.parts):,} pairs"
    epochs = schedule.position(schedule.steps) / order.epoch_size
    done = f", {trainer.step:,} of them taken" if trainer.step else ""
    yield (
        f"steps: {schedule.steps:,} of {schedule}{done}; {epochs:.2f} epochs of "
        f"{order.epoch_size:,}; warm-up {config.optimizer.warmup_steps:,}"
    )
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in trainer.model.parameters())
    yield f"model: {whole / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them trained"

    batch, load = _read(trainer)
    local = max(stage.batch for stage in schedule.stages) // world.size
    memory = estimate_memory(trainer, batch, min(local, train.micro_batch or local), local)
    yield (
        f"memory of each of {world.size} x {world.device.type}: {sum(memory) / GB:.1f} GB: "
        f"{memory.state / GB:.1f} weights and optimiser, {memory.activations / GB:.1f} "
        f"activations, {memory.loss / GB:.2f} loss"
    )
    if world.device.type == "cuda":
        has = torch.cuda.get_device_properties(world.device).total_memory
        if sum(memory) > 0.95 * has:
            yield (
                f"WARNING: the device has {has / GB:.1f} GB: set train.micro_batch or "
                "train.activation_checkpointing=true"
            )
    speed = Speed(load, _seconds(trainer, batch) / len(batch.images))
    workers = max(1, data.workers)
    each = max(speed.compute * (4 / 3 if train.micro_batch else 1), speed.load / workers)
    left = schedule.position(schedule.steps) - schedule.position(trainer.step)
    hours = left / world.size * each / 3600
    slower = "computing" if speed.compute > speed.load / workers else "loading"
    yield (
        f"time: about {hours:.2g} hours, as long as {slower} takes: {1 / speed.compute:.0f} "
        f"samples/s computed and {workers / speed.load:.0f} loaded by {workers} processes, per "
        f"rank, as {len(batch.images)} samples went; larger batches are faster on a GPU"
    )


def estimate_memory(trainer: Trainer, batch: Batch, together: int, local: int) -> Memory:
    """Bytes on a device, from what a forward pass of 2 and of more samples keeps.

    Args:
        trainer: of the run.
        batch: at least 4 samples.
        together: samples that go through the towers at a time.
        local: samples of the rank per step.
    """
    few, many = 2, len(batch.images)
    kept = [_kept_by_forward(trainer, _first(batch, count)) for count in (few, many)]
    each = (kept[1] - kept[0]) / (many - few)
    state = 0
    for parameter in trainer.model.parameters():
        shard: Any = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        copies = 1 + (3 + (trainer.average is not None)) * parameter.requires_grad
        state += shard.numel() * 4 * copies
    dim, tile = trainer.config.model.embed_dim, trainer.config.loss.tile
    whole = local * trainer.world.size
    # Features and gradients of both towers; 12 bytes for each logit of a tile (LossConfig.tile).
    loss = 4 * 4 * dim * whole + 12 * local * min(tile, whole)
    return Memory(state, kept[0] + each * (together - few), loss)


def _read(trainer: Trainer) -> tuple[Batch, float]:
    """The first samples of this rank's next step, and seconds per sample."""
    config = trainer.config
    samples = TrainSamples(
        trainer.mixture,
        trainer.tokenizer,
        config.model.image.size,
        config.data.crop_scale,
        config.data.augment,
    )
    start = trainer.schedule.position(trainer.step) + trainer.world.rank * PROBE
    samples.__getitems__([start])  # opens files
    begin = time.perf_counter()
    batch = samples.__getitems__(list(range(start, start + PROBE)))
    return batch, (time.perf_counter() - begin) / PROBE


def _first(batch: Batch, count: int) -> Batch:
    places = batch.text.cu_seqlens[: count + 1]
    text = batch.text._replace(input_ids=batch.text.input_ids[: int(places[-1])], cu_seqlens=places)
    return batch._replace(images=batch.images[:count], text=text, keys=batch.keys[:count])


def _kept_by_forward(trainer: Trainer, batch: Batch) -> int:
    """Bytes of the distinct tensors that autograd keeps, without the parameters."""
    own = {parameter.data_ptr() for parameter in trainer.model.parameters()}
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        features = trainer.features((batch.images, batch.text))
    del features
    return sum(seen.values())


def _seconds(trainer: Trainer, batch: Batch) -> float:
    """Of a forward and a backward pass, the second time, the slowest rank's."""
    for _ in range(2):
        if trainer.world.device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        features = trainer.features((batch.images, batch.text))
        (features.image.sum() + features.text.sum()).backward()
        if trainer.world.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
    trainer.optimizer.zero_grad(set_to_none=True)
    return max(distributed.gather_objects(seconds))
