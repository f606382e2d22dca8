"""What is learnt besides masked tokens: each objective draws its own texts and has its own head.

    loss = masked tokens + weight * next sentence + weight * sections + weight * links

A head gives its rank's share: the mean over ranks is the loss of the global batch, so gradients
that are averaged over ranks, as DDP and FSDP do, are exact (see vlp.losses).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import nn

from vlp import distributed
from vlp.config import UserError
from vlp.data.text import CaptionTokenizer
from vlp.text.cache import TokenStore
from vlp.text.graph import GraphHead, GraphLinks
from vlp.text.next_sentence import NextSentence, NextSentenceHead
from vlp.text.sections import SectionMates, SectionsHead
from vlp.text.settings import ObjectivesConfig, TextRunConfig


class Drawer(Protocol):
    """Draws what a head needs for a step; can be pickled, for loader processes."""

    def draw(self, step: int, rank: int, ranks: int) -> Any:
        """A rank's share of a step, a NamedTuple of packed texts and tensors: a pure function of
        seed and step, whose shares make up the same whatever the number of ranks."""


@dataclass(frozen=True)
class Objective:
    """A loss beside that of masked tokens.

    Attributes:
        weight: factor on it.
        drawer: what it learns from.
        head: `head(bert, drawn)` is the rank's share of the loss, a scalar.
    """

    weight: float
    drawer: Drawer
    head: nn.Module


def objectives(
    config: TextRunConfig,
    tokens: Mapping[str, TokenStore],
    sizes: Mapping[str, int],
    tokenizer: CaptionTokenizer,
) -> dict[str, Objective]:
    """The objectives with a weight, by name: `next_sentence`, `sections`, `graph`.

    Args:
        config: the run.
        tokens: the training split of each corpus.
        sizes: bytes of each corpus of the mixture, as for PackedCorpora.
        tokenizer: the one that made the tokens; its context is `model.length`.

    Raises:
        UserError: data that an objective needs is missing, or can't be shared out over the ranks.
    """
    wanted, found = config.objectives, dict[str, Objective]()
    width = config.model.width
    head: nn.Module
    if wanted.next_sentence:
        _check_divisible("next_sentence_pairs", wanted.next_sentence_pairs)
        mixed = {name: tokens[name] for name in sizes}
        pairs = NextSentence.open(config, mixed, sizes, tokenizer)
        head = NextSentenceHead(width)
        found["next_sentence"] = Objective(wanted.next_sentence, pairs, head)
    if wanted.sections.weight:
        _check_divisible("sections.pairs", wanted.sections.pairs)
        mates = SectionMates.open(wanted.sections, tokens, tokenizer, config.seed)
        head = SectionsHead(width, wanted.sections)
        found["sections"] = Objective(wanted.sections.weight, mates, head)
    if wanted.graph.weight:
        _check_divisible("graph.batch", wanted.graph.batch)
        links = GraphLinks.open(wanted.graph, tokenizer, config.seed)
        head = GraphHead(width, len(links.triples.relations))
        found["graph"] = Objective(wanted.graph.weight, links, head)
    return found


def identity(config: ObjectivesConfig, used: Mapping[str, Objective]) -> dict[str, Any]:
    """What the draws and the heads' shapes depend on, as JSON values.

    Args:
        config: the settings.
        used: what `objectives` made of them.
    """
    found: dict[str, Any] = {}
    if "next_sentence" in used:
        found["next_sentence"] = config.next_sentence_pairs
    if "sections" in used:
        found["sections"] = asdict(config.sections)
        for free in ("weight", "temperature", "documents"):
            del found["sections"][free]
    if "graph" in used:
        links = used["graph"].drawer
        assert isinstance(links, GraphLinks)
        found["graph"] = [links.digest(), config.graph.batch, config.graph.negatives]
    return found


def _check_divisible(key: str, value: int) -> None:
    """Raises UserError if the ranks can't share a step's draws evenly."""
    ranks = distributed.size()
    if value % ranks:
        raise UserError(
            f"objectives.{key}={value} is not divisible by {ranks} processes; set "
            f"{-(-value // ranks) * ranks}"
        )
