"""How a run goes on from a base: what of it is trained, and what the base itself could do."""

from collections.abc import Mapping
from pathlib import Path

from vlp.data.text import CaptionTokenizer
from vlp.distributed import World
from vlp.text.base import Base, start
from vlp.text.cache import TokenStore, tokenize
from vlp.text.evaluation import bits_per_character
from vlp.text.lora import add_lora, trainable_share
from vlp.text.masked_lm import MaskedLM
from vlp.text.mixout import Mixout
from vlp.text.prepare import inherited_vocabulary, main_first
from vlp.text.settings import TextRunConfig
from vlp.text.store import TextStore


def adapt(
    lm: MaskedLM, base: Base, config: TextRunConfig, tokenizer: CaptionTokenizer
) -> list[str]:
    """Give a new model the base's weights, and LoRA if it is wanted.

    With LoRA the base's head is frozen, too; a head that the base hasn't is learnt.

    Returns:
        What is not as in the base, a line each.

    Raises:
        UserError: see `start` and `add_lora`.
    """
    notes = start(lm, base, tokenizer)
    if config.lora.rank:
        add_lora(lm.bert, config.lora)
        lm.cls.requires_grad_(not base.has_head)
        notes.append(f"LoRA of rank {config.lora.rank}: {trainable_share(lm):.2%} are trained")
    return notes


def mixout(lm: MaskedLM, base: Base | None, config: TextRunConfig) -> Mixout | None:
    """Mixout with what came from the base, if it is wanted; a new head has nothing to stay near."""
    if base is None or not config.train.mixout:
        return None
    return Mixout(lm if base.has_head else lm.bert, config.train.mixout, config.seed)


def base_scores(
    base: Base, config: TextRunConfig, stores: Mapping[str, TextStore], world: World
) -> dict[str, float]:
    """Bits per character of the base itself, read with its own vocabulary; all ranks call it.

    Where the run has another vocabulary, its model before the first step is no longer the base:
    what that costs belongs to what is forgotten.

    Args:
        base: one that has a head for masked tokens.
        config: the run's.
        stores: corpora with held-out text.
        world: this process among all.
    """
    cache = Path(config.cache)

    def tokens() -> tuple[CaptionTokenizer, dict[str, TokenStore]]:
        folder = inherited_vocabulary(config.base, cache)
        held_out = {name: tokenize(store, "val", folder, cache) for name, store in stores.items()}
        return CaptionTokenizer(folder, config.model.length), held_out

    tokenizer, held_out = main_first(world, f"base of {config.name}", tokens)
    lm = MaskedLM(base.encoder(config.model.length, tokenizer.vocab_size), tokenizer.pad_id)
    start(lm, base, tokenizer)
    lm.to(world.device).eval()
    return {
        name: bits_per_character(lm, store, tokenizer, world.device).bits_per_character
        for name, store in held_out.items()
    }
