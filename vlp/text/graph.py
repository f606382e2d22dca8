"""Link prediction on a graph of concepts, after DRAGON (Yasunaga et al. 2022, arXiv:2210.09338,
section 2.3): DistMult (Yang et al. 2015) on the encoder's vectors of the concepts' names.

Where DRAGON has a graph network beside the language model, concepts here are what the encoder makes
of their names, so that nothing but the encoder is left after training. Each triple is corrupted
with the same concepts as all others of its step, half of them as heads and half as tails, as
DGL-KE does (Zheng et al. 2020): a step encodes `negatives` names besides its own. A corruption that
is in the graph is true, and no negative.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vlp.config import UserError
from vlp.data.order import generator
from vlp.data.text import CaptionTokenizer, PackedText, clean
from vlp.models.text_tower import PackedBert
from vlp.text.cache import Encoder, ends_of, pack
from vlp.text.mixture import MixtureConfig, Sampler
from vlp.text.settings import GraphConfig

_LINKS, _SHUFFLE = 3, 4
"""Keep these draws apart from others of the same seed."""

MAX_BYTES = 2**31
"""Of a file; its names are kept in memory."""
MAX_LINE = 4096
"""Bytes of a line."""
MAX_TRIPLES = 20_000_000
MAX_RELATIONS = 10_000

_AT_A_TIME = 4096  # names that are tokenised together


@dataclass(frozen=True)
class Triples:
    """A graph.

    Attributes:
        links: int64 [N, 3]: head, relation, tail; each triple once, in the file's order.
        concepts: names, by number.
        relations: names, by number.
    """

    links: NDArray[np.int64]
    concepts: tuple[str, ...]
    relations: tuple[str, ...]

    def keys(self, links: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [..., 3] -> int64 [...], another number for each possible triple."""
        head, relation, tail = np.moveaxis(links, -1, 0)
        return (relation * len(self.concepts) + head) * len(self.concepts) + tail


def read_triples(file: Path) -> Triples:
    """A file of tab-separated lines: head, relation, tail. Empty lines are passed over.

    Raises:
        UserError: the file can't be read or is too large; a line that is no triple, by its number.
    """
    concepts: dict[str, int] = {}
    relations: dict[str, int] = {}
    found = array("q")
    try:
        with file.open("rb") as stream:
            if file.stat().st_size > MAX_BYTES:
                raise UserError(f"{file}: over {MAX_BYTES >> 30} GiB; take a part of the graph")
            for where, (head, relation, tail) in _lines(stream, file):
                found.append(concepts.setdefault(head, len(concepts)))
                found.append(relations.setdefault(relation, len(relations)))
                found.append(concepts.setdefault(tail, len(concepts)))
                if len(found) > 3 * MAX_TRIPLES or len(relations) > MAX_RELATIONS:
                    raise UserError(
                        f"{where}: more than {MAX_TRIPLES:,} triples or {MAX_RELATIONS:,} "
                        "relations; take a part of the graph"
                    )
    except OSError as error:
        raise UserError(
            f"objectives.graph.triples={file}: can't be read: {error.strerror}"
        ) from None
    if not found:
        raise UserError(f"{file}: no triples in it; each line is head, tab, relation, tab, tail")
    if len(relations) * len(concepts) ** 2 >= 2**63:  # numbers of triples, see Triples.keys
        raise UserError(f"{file}: too many concepts and relations; take a part of the graph")
    links = np.frombuffer(found, dtype=np.int64).reshape(-1, 3)
    triples = Triples(links, tuple(concepts), tuple(relations))
    first = np.unique(triples.keys(links), return_index=True)[1]
    return replace(triples, links=links[np.sort(first)])


def _lines(stream: BinaryIO, file: Path) -> Iterator[tuple[str, list[str]]]:
    """ "FILE:LINE" and the three fields of each line that has something in it."""
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        where = f"{file}:{number}"
        if len(line) > MAX_LINE:
            raise UserError(f"{where}: longer than {MAX_LINE} bytes; shorten its names")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{where}: not UTF-8; convert the file") from None
        if not text.strip():
            continue
        fields = [clean(field) for field in text.rstrip("\r\n").split("\t")]
        if len(fields) != 3 or not all(fields):
            raise UserError(f"{where}: not head, tab, relation, tab, tail; mend the line")
        yield where, fields


def shuffled(triples: Triples, seed: int) -> Triples:
    """The same heads, relations and tails, which no longer belong together."""
    links = triples.links.copy()
    links[:, 2] = generator(seed, 0, _SHUFFLE).permutation(links[:, 2])
    return replace(triples, links=np.unique(links, axis=0))


class Links(NamedTuple):
    """b triples and what corrupts them.

    Attributes:
        text: U names of concepts, each once.
        triples: int64 [b, 3]: head, relation, tail; heads and tails as rows of `text`.
        others: int64 [n], rows of `text`: the first n // 2 stand in for heads, the rest for tails.
        false: bool [b, n]: the corrupted triple is not in the graph.
    """

    text: PackedText
    triples: Tensor
    others: Tensor
    false: Tensor

    def to(self, device: torch.device | str) -> "Links":
        """The same on a device, without waiting for the copies of pinned memory."""
        return Links(
            self.text.to(device, non_blocking=True),
            self.triples.to(device, non_blocking=True),
            self.others.to(device, non_blocking=True),
            self.false.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class GraphLinks:
    """Draws `batch` triples per step, each once per epoch, and their corruptions."""

    triples: Triples
    known: NDArray[np.int64]
    """Keys of the triples, ascending."""
    ids: NDArray[np.int64]
    spans: NDArray[np.int64]
    """[C, 2], each concept's place in `ids`."""
    length: int
    ends: tuple[int, int]
    order: Sampler
    config: GraphConfig
    seed: int

    @classmethod
    def open(cls, config: GraphConfig, tokenizer: CaptionTokenizer, seed: int) -> "GraphLinks":
        """The user's graph.

        Args:
            config: its file, and how much of it is drawn.
            tokenizer: of the encoder; names are cut to its context.
            seed: of order, corruptions and the shuffled control.

        Raises:
            UserError: see `read_triples`; a name of which the tokenizer leaves nothing.
        """
        file = Path(config.triples)
        triples = read_triples(file)
        if config.shuffled:
            triples = shuffled(triples, seed)
        ids, spans = _tokenized(triples.concepts, tokenizer, file)
        units = {"triples": len(triples.links)}
        return cls(
            triples,
            np.sort(triples.keys(triples.links)),
            ids,
            spans,
            tokenizer.context_length,
            ends_of(tokenizer),
            Sampler.open(MixtureConfig(seed=seed), units, dict.fromkeys(units, 1)),
            config,
            seed,
        )

    def digest(self) -> str:
        """SHA-256 of the triples, whichever file they are from."""
        names = json.dumps([self.triples.concepts, self.triples.relations]).encode()
        return hashlib.sha256(self.triples.links.tobytes() + names).hexdigest()

    def draw(self, step: int, rank: int, ranks: int) -> Links:
        """A rank's triples of a step; all ranks have the same corruptions."""
        local = self.config.batch // ranks
        start = step * self.config.batch + rank * local
        links = self.triples.links[self.order.samples(range(start, start + local))[1]]
        rng = generator(self.seed, step, _LINKS)
        others = rng.integers(len(self.triples.concepts), size=self.config.negatives)
        false = ~self._is_known(_corrupted(links, others))
        concepts, rows = np.unique(
            np.concatenate([links[:, 0], links[:, 2], others]), return_inverse=True
        )
        head, tail, other = np.split(rows, [local, 2 * local])
        triples = np.stack([head, links[:, 1], tail], 1)
        text = pack(self.ids, self.spans[concepts], self.length, self.ends)
        return Links(text, *map(torch.from_numpy, (triples, other, false)))

    def _is_known(self, links: NDArray[np.int64]) -> NDArray[np.bool_]:
        """int64 [..., 3] -> bool [...]: they are in the graph."""
        keys = self.triples.keys(links)
        place = np.searchsorted(self.known, keys).clip(max=len(self.known) - 1)
        return self.known[place] == keys


def _corrupted(links: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [b, 3], int64 [n] -> int64 [b, n, 3]: each triple with each other head or tail."""
    found = np.repeat(links[:, None], len(others), axis=1)
    half = len(others) // 2
    found[:, :half, 0], found[:, half:, 2] = others[:half], others[half:]
    return found


def _tokenized(
    names: tuple[str, ...], tokenizer: CaptionTokenizer, file: Path
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids of all names, one after the other, and where each begins and ends: [T], [C, 2]."""
    # Another instance: the encoder switches truncation off.
    encode = Encoder(CaptionTokenizer(tokenizer.folder, tokenizer.context_length))
    rows = []
    for start in range(0, len(names), _AT_A_TIME):
        rows += list(encode(names[start : start + _AT_A_TIME]))
    ends = np.cumsum([len(row) for row in rows])
    starts = np.concatenate([[0], ends[:-1]])
    if (ends == starts).any():
        name = names[int(np.argmax(ends == starts))]
        raise UserError(f"{file}: the tokenizer leaves nothing of the name {name!r}; take it out")
    return np.concatenate(rows), np.stack([starts, ends], 1)


class GraphHead(nn.Module):
    """A norm of the concepts' vectors, and a vector for each relation."""

    def __init__(self, width: int, relations: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # Of variance one, and so are the scores: smaller ones would hardly move the encoder.
        self.relations = nn.Embedding(relations, width)

    def forward(self, bert: PackedBert, drawn: Links) -> Tensor:
        """The rank's share of the loss, a scalar in fp32; every rank draws as many triples."""
        concepts = self.norm(bert(drawn.text)).float()
        heads, relations, tails = drawn.triples.unbind(1)
        with torch.autocast(concepts.device.type, enabled=False):
            return links_loss(
                concepts[heads],
                self.relations(relations).float(),
                concepts[tails],
                concepts[drawn.others],
                drawn.false,
            )


def links_loss(
    head: Tensor, relation: Tensor, tail: Tensor, others: Tensor, false: Tensor
) -> Tensor:
    """DRAGON's loss of links: L = 1/2 mean [-log s(f(h,r,t)) - mean_neg log s(-f(h',r,t'))], with s
    the logistic function and DistMult's f(h,r,t) = sum(h * r * t) / sqrt(D).

    Args:
        head: [b, D].
        relation: [b, D].
        tail: [b, D].
        others: [n, D]; the first n // 2 stand in for heads, the rest for tails.
        false: bool [b, n]: the corrupted triple is a negative; a triple without any has no second
            term.
    """
    scale, half = head.shape[-1] ** -0.5, len(others) // 2
    true = (head * relation * tail).sum(-1) * scale
    corrupted = torch.cat(
        [(relation * tail) @ others[:half].T, (head * relation) @ others[half:].T], 1
    )
    # -log s(x) is softplus(-x).
    negatives = F.softplus(corrupted * scale) * false
    of_triple = negatives.sum(1) / false.sum(1).clamp(min=1)
    return (F.softplus(-true) + of_triple).mean() / 2
