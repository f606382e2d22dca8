"""The parts of a run as its settings describe them: tokenizer, model, precision."""

import dataclasses
import os
from pathlib import Path

import torch
from torch import nn

from vlp import distributed, parallel
from vlp.data.loader import Mixture
from vlp.data.text import CaptionTokenizer, train_wordpiece
from vlp.distributed import World
from vlp.models.dual_encoder import DualEncoder
from vlp.models.init import initialise
from vlp.models.vocabulary import needs_writing, tokenizer_source, write_tokenizer
from vlp.settings import Config


def build_tokenizer(config: Config, mixture: Mixture, world: World) -> CaptionTokenizer:
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


def build_model(config: Config, tokenizer: CaptionTokenizer, world: World) -> DualEncoder:
    """The dual encoder on its device, with its first weights, the same on every rank."""
    torch.manual_seed(config.seed)
    model = DualEncoder(config.model, tokenizer.pad_id)
    initialise(model, config.model, tokenizer)
    if config.train.activation_checkpointing:
        model.set_grad_checkpointing(True)
    if config.train.compile:
        model.compile_towers()
    return model.to(world.device)


def distribute(model: DualEncoder, config: Config, world: World) -> nn.Module:
    """What training calls instead of the model: its copies, or itself in shards."""
    if config.train.parallel == "fsdp" and world.size > 1:
        return parallel.shard(model, world)
    return parallel.replicate(model, world)


def build_autocast(config: Config, world: World) -> torch.autocast:
    """The precision of the towers."""
    device, precision = world.device.type, config.train.precision
    if precision == "auto":
        half = device == "cuda" and torch.cuda.is_bf16_supported()
    else:
        half = precision == "bf16"
    return torch.autocast(device, torch.bfloat16, enabled=half)
