"""The parts of a run as its settings describe them."""

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vlp import distributed
from vlp.data.loader import Batch, Mixture
from vlp.data.schedule import BatchSchedule
from vlp.data.text import CaptionTokenizer, PackedText, train_wordpiece
from vlp.distributed import World
from vlp.flops import peak_flops, step_flops
from vlp.models.dual_encoder import DualEncoder, ModelConfig
from vlp.models.init import initialise
from vlp.models.vocabulary import needs_writing, tokenizer_source, write_tokenizer
from vlp.reporting import Costs
from vlp.settings import Config


def tokenizer(config: Config, mixture: Mixture, world: World) -> CaptionTokenizer:
    """The one configured, or that of the weights to start from, or one trained here, once."""
    text, own = config.model.text, config.folder / "tokenizer"
    source = tokenizer_source(config.model)
    folder = own if not source or needs_writing(source) else Path(source)
    if folder == own and world.is_main and not folder.exists():
        unfinished = folder.with_name("tokenizer.tmp")
        if source:
            write_tokenizer(source, unfinished)
        else:
            train_wordpiece(mixture.captions(), text.vocab_size, unfinished)
        os.replace(unfinished, folder)
    distributed.barrier()
    return CaptionTokenizer(folder, text.context_length)


def with_vocabulary(config: Config, tokenizer: CaptionTokenizer) -> Config:
    """The settings with the vocabulary's real size."""
    text = dataclasses.replace(config.model.text, vocab_size=tokenizer.vocab_size)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))


def schedule(config: Config, mixture: Mixture) -> BatchSchedule:
    """Steps and their batches."""
    train, samples = config.train, mixture.order.epoch_size
    return BatchSchedule(train.batch_size, train.batch_schedule, samples, train.epochs, train.steps)


def identity(config: Config, mixture: Mixture) -> dict[str, Any]:
    """What the order of samples depends on: it must not change within a run. JSON values."""
    shares = {name: source.share for name, source in mixture.order.sources.items()}
    schedule = config.train.batch_schedule
    return {
        "train.batch_size": config.train.batch_size,
        "train.batch_schedule": {str(epoch): schedule[epoch] for epoch in sorted(schedule)},
        "seed": config.seed,
        "data.shuffle_window": config.data.shuffle_window,
        "samples per epoch": shares,
    }


def model(config: Config, tokenizer: CaptionTokenizer, world: World) -> DualEncoder:
    """The dual encoder on its device, with its first weights, the same on every rank."""
    torch.manual_seed(config.seed)
    model = DualEncoder(config.model, tokenizer.pad_id)
    initialise(model, config.model, tokenizer)
    if config.train.activation_checkpointing:
        model.set_grad_checkpointing(True)
    if config.train.compile:
        model.compile_towers()
    return model.to(world.device)


def costs(config: Config, world: World) -> Costs:
    """For the shares of the device's work and memory that are reported."""
    flops = partial(step_flops, config.model)
    context = config.model.text.context_length
    return Costs(context, flops, peak_flops(world.device), world.device)


def blank_batch(count: int, model: ModelConfig) -> Batch:
    """`count` black images with captions of 8 times token 0."""
    ids = torch.zeros(count * 8, dtype=torch.int64)
    starts = torch.arange(0, count * 8 + 1, 8, dtype=torch.int32)
    images = torch.zeros(count, 3, model.image.size, model.image.size, dtype=torch.uint8)
    return Batch(images, PackedText(ids, starts, model.text.context_length), [], [])
