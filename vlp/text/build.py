"""The parts of a run of language-model pretraining as its settings describe them."""

import dataclasses
import json
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from vlp.config import UserError
from vlp.data.text import CaptionTokenizer
from vlp.distributed import World
from vlp.flops import peak_flops
from vlp.models.text_tower import TextConfig
from vlp.reporting import Costs
from vlp.text import compute
from vlp.text.base import Base
from vlp.text.cache import TokenStore
from vlp.text.continual import adapt
from vlp.text.export import FACTS
from vlp.text.masked_lm import MaskedLM
from vlp.text.objectives import Objective
from vlp.text.sections import SectionMates
from vlp.text.settings import EncoderConfig, TextRunConfig


def with_architecture(config: TextRunConfig, base: Base | None) -> TextRunConfig:
    """The settings with the base's architecture, where there is one.

    Raises:
        UserError: `model.length` is more than it has positions.
    """
    if base is None:
        return config
    encoder = base.encoder(config.model.length, base.config.vocab_size)
    keys = ("max_positions", "width", "layers", "heads", "mlp_width")
    shape = {key: getattr(encoder, key) for key in keys}
    return dataclasses.replace(config, model=EncoderConfig(length=config.model.length, **shape))


def encoder_config(
    config: TextRunConfig, base: Base | None, tokenizer: CaptionTokenizer
) -> TextConfig:
    """The encoder's settings, with the size of the vocabulary."""
    if base is None:
        return config.model.bert(tokenizer.vocab_size)
    return base.encoder(config.model.length, tokenizer.vocab_size)


def masked_lm(
    config: TextRunConfig, encoder: TextConfig, base: Base | None, tokenizer: CaptionTokenizer
) -> tuple[MaskedLM, list[str]]:
    """The model with its first weights, the same on every rank, and notes on them.

    torch's generator is left in a state that depends on the settings alone, for what is made next.

    Raises:
        UserError: the base doesn't fit.
    """
    torch.manual_seed(config.seed)
    lm = MaskedLM(encoder, tokenizer.pad_id)
    notes = adapt(lm, base, config, tokenizer) if base is not None else []
    lm.set_grad_checkpointing(config.train.activation_checkpointing)
    return lm, notes


def start_heads(used: Mapping[str, Objective], base: Base | None) -> list[str]:
    """Give the heads of further objectives the base's weights, in place.

    Returns:
        What the base lacks, a line each.
    """
    if base is None or "next_sentence" not in used:
        return []
    if not base.next_sentence:
        return ["the base has no head for next sentences: a new one is learnt"]
    used["next_sentence"].head.load_state_dict(base.next_sentence)
    return []


def held_out_mates(
    config: TextRunConfig, held_out: Mapping[str, TokenStore], tokenizer: CaptionTokenizer
) -> SectionMates | None:
    """The held-out documents whose sections are to be matched in evaluations, if they are learnt.

    Raises:
        UserError: none of them has both sections.
    """
    wanted = config.objectives.sections
    if not wanted.weight or not wanted.documents or wanted.corpus not in held_out:
        return None
    return SectionMates.open(wanted, held_out, tokenizer)


def run_steps(config: TextRunConfig, spending: compute.RunCosts) -> int:
    """Steps of the run: as given; as many as a budget of operations pays for; or all stages but the
    last, and then `epochs` of the last one."""
    train = config.train
    if train.flops:
        return spending.steps_for(train.flops)
    if train.steps:
        return train.steps
    before = sum(stage.steps for stage in config.mixture.stages)
    rows = train.epochs * spending.sampler.orders[-1].epoch_size
    return before + max(1, round(rows / train.batch_size))


def window_costs(config: TextRunConfig, costs: compute.Costs, world: World) -> Costs:
    """For the shares of the device's work and memory that are reported."""
    flops = partial(_flops, costs, config.masking.share)
    return Costs(config.model.length, flops, peak_flops(world.device), world.device)


def _flops(costs: compute.Costs, share: float, _: int, lengths: Tensor) -> float:
    """Useful operations of sequences of these lengths, of whose pieces a share is predicted."""
    return costs.of(lengths.numpy(), round(share * int((lengths - 2).sum())))


def base_flops(base: Base | None) -> float:
    """What was spent on the base, as far as its folder tells.

    Raises:
        UserError: it tells something else.
    """
    if base is None or not (base.folder / FACTS).is_file():
        return 0.0
    try:
        return float(json.loads((base.folder / FACTS).read_text("utf-8"))["flops"]["all"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{base.folder / FACTS}: no flops.all in it: {error!r}") from None
