"""Matching two sections of one document: RSM of CXR-BERT (Boecking et al. 2022, arXiv:2204.09817,
section 3.1), for findings and impression or for a caption and the paragraph that mentions it.

[CLS] of each section is projected and normalised; a section is to find its mate among those of the
global batch. Two documents that share a text are no negatives of each other: "No acute finding."
belongs to a thousand reports. Their logits are minus infinity, so they take no part. (A logit of
zero, which a public implementation puts there, is that of an orthogonal section: still a negative.)
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vlp.config import UserError
from vlp.data.text import CaptionTokenizer, PackedText
from vlp.distributed import gather, gather_objects, rank, size
from vlp.models.text_tower import PackedBert, initialise
from vlp.text.cache import Spans, TokenStore, ends_of, pack
from vlp.text.mixture import MixtureConfig, Sampler
from vlp.text.settings import SectionsConfig

_BLOCK = 1024
"""Rows of the matrix of similarities that exist at a time in retrieval."""


class Mates(NamedTuple):
    """Both sections of b documents.

    Attributes:
        text: 2b sequences: the first section of each document, then the second of each.
        digests: int64 [b, 2], equal where texts are equal as the model reads them.
    """

    text: PackedText
    digests: Tensor

    def to(self, device: torch.device | str) -> "Mates":
        """The same on a device, without waiting for the copies of pinned memory."""
        return Mates(
            self.text.to(device, non_blocking=True), self.digests.to(device, non_blocking=True)
        )


@dataclass(frozen=True)
class SectionMates:
    """Documents with both sections; draws `pairs` of them per step, each once per epoch."""

    ids: NDArray[Any]
    spans: tuple[Spans, Spans]
    length: int
    ends: tuple[int, int]
    order: Sampler
    pairs: int

    @classmethod
    def open(
        cls,
        config: SectionsConfig,
        tokens: Mapping[str, TokenStore],
        tokenizer: CaptionTokenizer,
        seed: int = 0,
    ) -> "SectionMates":
        """The documents of a split.

        Args:
            config: the corpus, the sections' names, and how many are drawn.
            tokens: that split of each corpus.
            tokenizer: the one that made the tokens; longer sections are cut to its context.
            seed: of the order.

        Raises:
            UserError: no such corpus, or no document of it has both sections.
        """
        if config.corpus not in tokens:
            raise UserError(
                f"objectives.sections.corpus={config.corpus}: no such corpus; there are "
                f"{', '.join(tokens)}"
            )
        store = tokens[config.corpus]
        spans = store.section_pairs(config.first, config.second)
        count = len(spans[0])
        if not count:
            raise UserError(
                f"corpora.{config.corpus}: no document has both '{config.first}' and "
                f"'{config.second}'; set objectives.sections.first and .second"
            )
        order = Sampler.open(MixtureConfig(seed=seed), {config.corpus: count}, {config.corpus: 1})
        length = tokenizer.context_length
        return cls(store.ids, spans, length, ends_of(tokenizer), order, config.pairs)

    def draw(self, step: int, rank: int, ranks: int) -> Mates:
        """A rank's documents of a step."""
        local = self.pairs // ranks
        start = step * self.pairs + rank * local
        return self.read(self.order.samples(range(start, start + local))[1])

    def read(self, documents: NDArray[np.int64]) -> Mates:
        """The documents of these numbers."""
        both = np.concatenate([spans[documents] for spans in self.spans])
        text = pack(self.ids, both, self.length, self.ends)
        rows = torch.split(text.input_ids, text.cu_seqlens.diff().tolist())
        digests = torch.tensor([_digest(row) for row in rows], dtype=torch.int64)
        return Mates(text, digests.view(2, -1).T.contiguous())


def _digest(ids: Tensor) -> int:
    digest = hashlib.blake2b(ids.numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class SectionsHead(nn.Module):
    """The projection, as CXR-BERT's: linear, GELU, LayerNorm, linear."""

    def __init__(self, width: int, config: SectionsConfig) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.projection = nn.Sequential(
            nn.Linear(width, config.width),
            nn.GELU(),
            nn.LayerNorm(config.width, eps=1e-12),
            nn.Linear(config.width, config.width),
        )
        self.apply(initialise)

    def forward(self, bert: PackedBert, drawn: Mates) -> Tensor:
        """The rank's share of the loss, a scalar in fp32; every rank draws as many documents."""
        first, second = self.embed(bert, drawn.text).chunk(2)
        return mates_loss(first, second, drawn.digests, self.temperature)

    def embed(self, bert: PackedBert, text: PackedText) -> Tensor:
        """B sections -> unit vectors [B, D], fp32."""
        return F.normalize(self.projection(bert(text)).float(), dim=-1)


def mates_loss(first: Tensor, second: Tensor, digests: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE over the global batch; the mean over ranks is the loss.

    L = -1/2b sum_i [log softmax_j(<x_i, y_j> / t)_i + log softmax_j(<y_i, x_j> / t)_i] over the
    rank's b documents i and the global batch j, but for the j that share a text with i.

    Args:
        first: unit vectors [b, D] of one section of each document.
        second: [b, D] of the other.
        digests: int64 [b, 2], equal where texts are equal.
        temperature: t.
    """
    own = torch.arange(len(first), device=first.device) + rank() * len(first)
    no_negative = _share_a_text(digests, gather(digests))
    no_negative.scatter_(1, own[:, None], False)  # a document's own mate stays
    total = torch.zeros((), device=first.device)
    with torch.autocast(first.device.type, enabled=False):
        for x, others in ((first, gather(second)), (second, gather(first))):
            logits = (x @ others.T / temperature).masked_fill(no_negative, -torch.inf)
            total = total + F.cross_entropy(logits, own)
    return total / 2


def _share_a_text(digests: Tensor, others: Tensor) -> Tensor:
    """int64 [b, 2], int64 [N, 2] -> bool [b, N]: either section is the same."""
    return (digests[:, None] == others).any(-1)


class Recall(NamedTuple):
    """Share of sections whose mate is nearest of all; texts that are equal count as one."""

    second_of_first: float
    first_of_second: float
    documents: int


def recall_of_mates(first: Tensor, second: Tensor, digests: Tensor) -> Recall:
    """Recall@1 both ways, exact, a block of rows at a time; ties with others are misses.

    Args:
        first: unit vectors [N, D] of one section of each document.
        second: [N, D] of the other.
        digests: int64 [N, 2]; documents that share a text are no wrong answers to each other.
    """
    found = [0, 0]
    for rows in torch.arange(len(first)).split(_BLOCK):
        same = _share_a_text(digests[rows], digests)
        for way, (x, others) in enumerate(((first, second), (second, first))):
            scores = x[rows] @ others.T
            mate = scores.gather(1, rows[:, None])[:, 0]
            found[way] += int((mate > scores.masked_fill(same, -torch.inf).amax(1)).sum())
    return Recall(found[0] / len(first), found[1] / len(first), len(first))


def retrieve_mates(
    mates: SectionMates, embed: Callable[[PackedText], Tensor], documents: int, part: int
) -> Recall:
    """Recall@1 of the mate section among the first `documents` of a split; all ranks share in it.

    Args:
        mates: of documents that are not trained on.
        embed: B sections -> unit vectors [B, D].
        documents: how many at most.
        part: documents that are embedded at a time.
    """
    count = min(documents, len(mates.spans[0]))
    parts = [np.arange(start, min(start + part, count)) for start in range(0, count, part)]
    ranks = size()
    # All ranks take as many, since sharded models compute together: the first again, if need be.
    turns = range(rank(), -(-len(parts) // ranks) * ranks, ranks)
    found = []
    for turn in turns:
        drawn = mates.read(parts[turn if turn < len(parts) else 0])
        found.append((torch.stack(embed(drawn.text).cpu().chunk(2)), drawn.digests))
    shared = gather_objects(found)
    vectors, digests = zip(
        *(shared[turn % ranks][turn // ranks] for turn in range(len(parts))), strict=True
    )
    first, second = torch.cat(vectors, 1)
    return recall_of_mates(first, second, torch.cat(digests))
