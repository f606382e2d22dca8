"""BERT's next-sentence prediction (Devlin et al. 2019, section 3.1, task 2).

[CLS] A [SEP] B [SEP], A and B marked by segment embeddings. B is what follows A in half of the
pairs, otherwise a passage of another document of the same corpus. As in the original, a "sentence"
is a run of them: A and B together fill a sequence where the document is long enough, a random end
of a sentence divides them, and the pieces are masked as for masked-language modelling, so that
[CLS] sees what it sees there. Other than in the original, the pairs stand beside the rows whose
masked pieces are predicted, not in their place: those rows stay what they are without this loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from vlp.config import UserError
from vlp.data.order import generator
from vlp.data.text import CaptionTokenizer, PackedText
from vlp.models.text_tower import PackedBert, initialise
from vlp.text.cache import TokenStore, ends_of, pack_rows
from vlp.text.masking import MaskingConfig, Words, mask_tokens
from vlp.text.mixture import Sampler
from vlp.text.settings import TextRunConfig

_PAIRS = 2
"""Keeps these draws apart from others of the same seed."""

LEAST = 2
"""Tokens of a document from which a pair can be made."""

SENTENCE_ENDS = tuple(".!?。！？")


class Pairs(NamedTuple):
    """B pairs of passages.

    Attributes:
        text: [CLS] A [SEP] B [SEP] of each.
        segments: int64 [T], 0 for [CLS] A [SEP] and 1 for B [SEP].
        random: int64 [B], 1 where B is not what follows A.
    """

    text: PackedText
    segments: Tensor
    random: Tensor

    def to(self, device: torch.device | str) -> "Pairs":
        """The same on a device, without waiting for the copies of pinned memory."""
        return Pairs(
            self.text.to(device, non_blocking=True),
            self.segments.to(device, non_blocking=True),
            self.random.to(device, non_blocking=True),
        )


class Place(NamedTuple):
    """Where a window begins and ends among the ids, and where its document does."""

    start: int
    end: int
    first: int
    last: int


class Windows:
    """The documents of a store in windows of at most `room` tokens: side by side, but that a
    document's last one reaches back to be as long as the others."""

    def __init__(self, store: TokenStore, room: int) -> None:
        self.ids, self.documents, self.room = store.ids, store.documents, room
        sizes = np.diff(store.documents)
        self.ends = np.cumsum(np.where(sizes < LEAST, 0, -(-sizes // room)))
        """int64 [D]: the number of windows up to and with each document."""

    @property
    def count(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def several(self) -> bool:
        """Whether there are windows of two documents or more."""
        return self.count > 0 and int(np.diff(self.ends, prepend=0).max()) < self.count

    def document(self, window: int) -> int:
        """The number of a window's document."""
        return int(np.searchsorted(self.ends, window, side="right"))

    def place(self, window: int) -> "Place":
        """Where a window lies."""
        number = self.document(window)
        first, last = self.documents[number : number + 2].tolist()
        before = int(self.ends[number - 1]) if number else 0
        start = max(first, min(first + (window - before) * self.room, last - self.room))
        return Place(start, min(start + self.room, last), first, last)

    def elsewhere(self, window: int, rng: np.random.Generator) -> int:
        """A window of another document; each is as likely."""
        number = self.document(window)
        before = int(self.ends[number - 1]) if number else 0
        own = int(self.ends[number]) - before
        other = int(rng.integers(self.count - own))
        return other if other < before else other + own


class Sentences:
    """Where sentences may begin: tables over the vocabulary, so it takes no text.

    Abbreviations end in a full stop, too, as do the first halves of numbers where a vocabulary
    takes "3.5" apart: some passages begin in the midst of a sentence.
    """

    def __init__(self, tokenizer: Tokenizer, words: Words) -> None:
        self.begins = words.begins
        self.closes = np.zeros(words.size, dtype=bool)
        for token, number in tokenizer.get_vocab().items():
            self.closes[number] = token.endswith(SENTENCE_ENDS)

    def starts(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """Places after the first where a sentence begins; if there are none, where a word does; if
        there are none, all. `ids`: two or more."""
        inner = self.begins[ids[1:]]
        for marks in (inner & self.closes[ids[:-1]], inner):
            if marks.any():
                return np.flatnonzero(marks) + 1
        return np.arange(1, len(ids))


@dataclass(frozen=True)
class NextSentence:
    """Draws pairs of passages in the order and the shares of the mixture."""

    windows: tuple[Windows, ...]
    order: Sampler
    pairs: int
    length: int
    ends: tuple[int, int]
    words: Words
    sentences: Sentences
    masking: MaskingConfig
    seed: int

    @classmethod
    def open(
        cls,
        config: TextRunConfig,
        tokens: Mapping[str, TokenStore],
        sizes: Mapping[str, int],
        tokenizer: CaptionTokenizer,
    ) -> "NextSentence":
        """The pairs of a run.

        Args:
            config: the run.
            tokens: the training split of each corpus of the mixture.
            sizes: bytes of each, for `auto`.
            tokenizer: the one that made the tokens; pairs fill its context.

        Raises:
            UserError: a corpus has fewer than two documents, or as `Sampler.open`.
        """
        length, pairs = tokenizer.context_length, config.objectives.next_sentence_pairs
        if length < 3 + LEAST:
            raise UserError(f"model.length={length}: pairs of passages need {3 + LEAST} or more")
        windows = {name: Windows(store, length - 3) for name, store in tokens.items()}
        for name, of_corpus in windows.items():
            if not of_corpus.several():
                raise UserError(
                    f"corpora.{name}: next-sentence prediction takes passages of other documents, "
                    "and there are none; set objectives.next_sentence=0"
                )
        units = {name: of_corpus.count for name, of_corpus in windows.items()}
        words = Words(tokenizer.tokenizer)
        return cls(
            windows=tuple(windows.values()),
            order=Sampler.open(config.mixture, units, sizes, pairs),
            pairs=pairs,
            length=length,
            ends=ends_of(tokenizer),
            words=words,
            sentences=Sentences(tokenizer.tokenizer, words),
            masking=config.masking,
            seed=config.seed,
        )

    def draw(self, step: int, rank: int, ranks: int) -> Pairs:
        """A rank's pairs of a step."""
        local = self.pairs // ranks
        start = step * self.pairs + rank * local
        positions = range(start, start + local)
        corpora, units = self.order.samples(positions)
        rows, firsts, labels = [], [], []
        for position, corpus, window in zip(
            positions, corpora.tolist(), units.tolist(), strict=True
        ):
            rng = generator(self.seed, position, _PAIRS)
            first, second, random = self._pair(self.windows[corpus], window, rng)
            rows.append(self._masked(first, second, rng))
            firsts.append(len(first) + 2)  # [CLS] A [SEP]
            labels.append(int(random))
        text = pack_rows(rows, self.length, self.ends)
        sizes = np.array([len(row) + 2 for row in rows])
        both = np.stack([firsts, sizes - firsts], 1).ravel()
        segments = np.repeat(np.tile([0, 1], len(rows)), both)
        return Pairs(text, torch.from_numpy(segments), torch.tensor(labels))

    def _pair(
        self, windows: Windows, window: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
        """Passages A and B, and whether B is random."""
        start, end, _, _ = windows.place(window)
        ids = windows.ids[start:end].astype(np.int64)
        cut = int(rng.choice(self.sentences.starts(ids)))
        first, second = ids[:cut], ids[cut:]
        if rng.random() < 0.5:
            return first, second, False
        other = windows.place(windows.elsewhere(window, rng))
        starts = other.start + self.sentences.starts(windows.ids[other.start : other.end])
        if other.start == other.first:
            starts = np.append(other.first, starts)
        # As long as what it replaces, where it can be: lengths should not give the answer away.
        fitting = starts[starts + len(second) <= other.last]
        begin = int(rng.choice(fitting)) if len(fitting) else int(starts[0])
        second = windows.ids[begin : min(begin + len(second), other.last)].astype(np.int64)
        return first, second, True

    def _masked(
        self, first: NDArray[np.int64], second: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """A [SEP] B with pieces hidden."""
        ids = np.concatenate([first, self.ends[1:], second])
        return mask_tokens(ids, self.words.number(ids), self.masking, self.words, rng)[0]


class NextSentenceHead(nn.Module):
    """BERT's pooler and the classifier on it, named as in BertForPreTraining."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})
        self.seq_relationship = nn.Linear(width, 2)
        self.apply(initialise)

    def forward(self, bert: PackedBert, drawn: Pairs) -> Tensor:
        """The rank's share of the loss, a scalar in fp32; every rank draws as many pairs."""
        return F.cross_entropy(self.logits(bert, drawn), drawn.random)

    def logits(self, bert: PackedBert, drawn: Pairs) -> Tensor:
        """[B, 2], fp32: B follows A, B is random."""
        pooled = torch.tanh(self.pooler["dense"](bert(drawn.text, drawn.segments)))
        return self.seq_relationship(pooled).float()
