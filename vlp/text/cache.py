"""Corpora as token ids, made once: arrays on disk that are mapped into memory, not read.

A folder holds one split of one corpus: tokens.bin, all ids one after the other without special
tokens, and where documents and sections begin. Its name is a digest of the cleaned corpus and of
the tokenizer, it appears when it is finished, and all processes of a machine share its pages.

For pretraining, documents are cut into sequences of at most `length` tokens, and neighbouring
sequences put into rows of at most `length` tokens. In a row they stay apart: each has its [CLS],
its [SEP] and its own place in PackedText.cu_seqlens, so none attends to another.
"""

import hashlib
import json
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vlp.config import UserError, write_text
from vlp.data.order import Positions
from vlp.data.text import ID, CaptionTokenizer, PackedText, WordCache, clean, splits_at_blanks
from vlp.text.mixture import MixtureConfig, Sampler
from vlp.text.store import Report, TextStore, digest_of, finished_folder

VERSION = 1
_AT_A_TIME = 256  # documents that are tokenised together

Spans = NDArray[np.int64]
"""[N, 2]: where runs of tokens begin and end in a TokenStore."""


@dataclass(frozen=True)
class TokenStore:
    """One split of a corpus as token ids.

    Attributes:
        ids: uint16 or uint32 [T].
        documents: int64 [D + 1], where documents begin in `ids`.
        sections: int64 [S + 1], where sections begin in `ids`.
        section_names: uint16 [S], index into meta["sections"].
        meta: `documents`, `tokens`, `characters`, `words`, `sections`, `vocabulary`.
    """

    ids: NDArray[Any]
    documents: NDArray[np.int64]
    sections: NDArray[np.int64]
    section_names: NDArray[np.uint16]
    meta: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "TokenStore":
        """A finished folder.

        Raises:
            UserError: its files do not fit together.
        """
        meta = json.loads((folder / "meta.json").read_text())
        with np.load(folder / "starts.npz", allow_pickle=False) as starts:
            documents, sections = starts["documents"], starts["sections"]
            names = starts["names"]
        file, dtype = folder / "tokens.bin", np.dtype(meta["dtype"])
        if file.stat().st_size != documents[-1] * dtype.itemsize:
            raise UserError(f"{file}: not as long as starts.npz says; remove {folder}")
        # An empty file can't be mapped.
        empty = np.empty(0, dtype=dtype)
        ids = np.memmap(file, dtype=dtype, mode="r") if documents[-1] else empty
        return cls(ids, documents, sections, names, meta)

    def sequences(self, length: int) -> Spans:
        """The documents, cut to sequences of `length` tokens with [CLS] and [SEP]; [N, 2]."""
        room = length - 2
        sizes = np.diff(self.documents)
        pieces = -(-sizes // room)
        first = np.repeat(np.cumsum(pieces) - pieces, pieces)
        within = np.arange(len(first)) - first
        starts = np.repeat(self.documents[:-1], pieces) + within * room
        ends = np.minimum(starts + room, np.repeat(self.documents[1:], pieces))
        return np.stack([starts, ends], 1)

    def section_pairs(self, first: str, second: str) -> tuple[Spans, Spans]:
        """The two sections of each document that has both: spans [N, 2], spans [N, 2].

        Raises:
            UserError: no section has that name.
        """
        found = []
        document = np.searchsorted(self.documents, self.sections[:-1], side="right") - 1
        for name in (first, second):
            if name not in self.meta["sections"]:
                has = ", ".join(self.meta["sections"])
                raise UserError(f"sections: none is called '{name}'; there are {has}")
            filled = np.diff(self.sections) > 0
            mine = (self.section_names == self.meta["sections"].index(name)) & filled
            of_document, where = np.unique(document[mine], return_index=True)
            found.append((of_document, np.flatnonzero(mine)[where]))
        _, left, right = np.intersect1d(found[0][0], found[1][0], return_indices=True)
        chosen = found[0][1][left], found[1][1][right]
        one, other = (np.stack([self.sections[s], self.sections[s + 1]], 1) for s in chosen)
        return one, other


def tokenize(
    store: TextStore, split: str, tokenizer: Path, cache: Path, report: Report = lambda line: None
) -> TokenStore:
    """One split of a corpus as ids from the cache, or tokenised now.

    Args:
        store: the cleaned corpus.
        split: `train`, `val` or `test`.
        tokenizer: folder with tokenizer.json.
        cache: folder for all of them.
        report: gets a line on what was made.

    Raises:
        UserError: there is no such tokenizer.
    """
    loaded = CaptionTokenizer(tokenizer, 8)  # reports a missing or broken file
    digest = hashlib.sha256((loaded.folder / "tokenizer.json").read_bytes()).hexdigest()
    folder = cache / f"tokens-{digest_of(VERSION, store.key, digest, split)[:16]}"
    if not (folder / "meta.json").is_file():
        start = time.monotonic()
        with finished_folder(folder) as unfinished:
            meta = _build(store, split, loaded, unfinished)
            write_text(unfinished / "meta.json", json.dumps(meta, indent=2))
        took = time.monotonic() - start
        rate = meta["characters"] / max(took, 1e-9) / 1e6
        report(
            f"{store.meta['path']} ({split}): {meta['tokens']:,} tokens in {took:.0f} s, "
            f"{rate:.1f} million characters/s"
        )
    return TokenStore.open(folder)


def _build(
    store: TextStore, split: str, tokenizer: CaptionTokenizer, folder: Path
) -> dict[str, Any]:
    size = tokenizer.vocab_size
    dtype = np.dtype(np.uint16 if size <= 2**16 else np.uint32)
    documents, sections, names = array("q", [0]), array("q", [0]), array("H")
    known: dict[str, int] = {}
    characters = words = 0
    encode = Encoder(tokenizer)
    with (folder / "tokens.bin").open("wb") as stream:
        chosen = store.numbers(split)
        for start in range(0, len(chosen), _AT_A_TIME):
            found = list(store.documents(chosen[start : start + _AT_A_TIME]))
            texts = [clean(section.text) for document in found for section in document.sections]
            characters += sum(map(len, texts))
            words += sum(len(text.split()) for text in texts)
            rows = encode(texts)
            for document in found:
                for section in document.sections:
                    if len(known) < _MANY:
                        known.setdefault(section.name, len(known))
                    names.append(known.get(section.name, _MANY))
                    sections.append(sections[-1] + _append(stream, next(rows), dtype))
                documents.append(sections[-1])
    np.savez(
        folder / "starts.npz",
        documents=np.array(documents, dtype=np.int64),
        sections=np.array(sections, dtype=np.int64),
        names=np.array(names, dtype=np.uint16),
    )
    return {
        "documents": len(documents) - 1,
        "tokens": documents[-1],
        "characters": characters,
        "words": words,
        "vocabulary": size,
        "dtype": dtype.name,
        "sections": list(known),
    }


_MANY = 2**16 - 1
"""Names of sections that are kept apart; JATS bodies have more, which are of no use to pairs."""


def _append(stream: BinaryIO, ids: NDArray[np.int64], dtype: np.dtype[Any]) -> int:
    stream.write(ids.astype(dtype).tobytes())
    return len(ids)


class Encoder:
    """Texts to ids without special tokens; by a memory of words where that is exact."""

    def __init__(self, tokenizer: CaptionTokenizer) -> None:
        self._tokenizer = tokenizer.tokenizer
        self._tokenizer.no_truncation()
        self._words = WordCache(self._tokenizer) if splits_at_blanks(self._tokenizer) else None

    def __call__(self, texts: Sequence[str]) -> Iterator[NDArray[np.int64]]:
        """int64 [T] of each text, which is clean already."""
        if self._words is None:
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            yield from (np.array(text.ids, dtype=np.int64) for text in encoded)
            return
        before, after = len(self._words.before), len(self._words.after)
        endless = sum(map(len, texts)) + before + after + ID  # no text has more ids than that
        for row in self._words.encode(texts, endless):
            yield np.frombuffer(row[before : len(row) - after], dtype=np.int64)


def pack(ids: NDArray[Any], spans: Spans, length: int, ends: tuple[int, int]) -> PackedText:
    """Spans of ids as packed sequences.

    Args:
        ids: [T], of a TokenStore.
        spans: [N, 2]; longer ones are cut to fit.
        length: tokens of a sequence at most, [CLS] and [SEP] included.
        ends: ids of [CLS] and [SEP].
    """
    rows = [ids[start : min(end, start + length - 2)] for start, end in spans.tolist()]
    return pack_rows(rows, length, ends)


def pack_rows(rows: Sequence[NDArray[Any]], length: int, ends: tuple[int, int]) -> PackedText:
    """Rows of ids, each of at most `length` - 2, between `ends`, the ids of [CLS] and [SEP]."""
    starts = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) + 2 for row in rows], out=starts[1:])
    packed = np.empty(starts[-1], dtype=np.int64)
    packed[starts[:-1]], packed[starts[1:] - 1] = ends
    for row, start in zip(rows, starts[:-1].tolist(), strict=True):
        packed[start + 1 : start + 1 + len(row)] = row
    return PackedText(torch.from_numpy(packed), torch.from_numpy(starts), length)


def ends_of(tokenizer: CaptionTokenizer) -> tuple[int, int]:
    """The ids of [CLS] and [SEP]."""
    tokens = tokenizer.tokenizer.get_vocab()
    return tokens["[CLS]"], tokens["[SEP]"]


def row_starts(spans: Spans, length: int) -> NDArray[np.int64]:
    """Rows of neighbouring sequences: [R + 1], where each row begins among the spans [N, 2]."""
    ends = np.cumsum(spans[:, 1] - spans[:, 0] + 2)
    starts = [0]
    while starts[-1] < len(spans):
        before = ends[starts[-1] - 1] if starts[-1] else 0
        starts.append(int(np.searchsorted(ends, before + length, side="right")))
    return np.array(starts, dtype=np.int64)


class Rows(NamedTuple):
    """R rows of packed sequences, side by side.

    Attributes:
        text: all their sequences.
        starts: [R + 1], the number of the sequence that each row begins with.
        names: [R], "corpus/row", or "corpus@length/row" where sequences are shorter than rows.
    """

    text: PackedText
    starts: list[int]
    names: list[str]


class Cut(NamedTuple):
    """A corpus as sequences of a certain length in rows.

    Attributes:
        spans: [N, 2], see TokenStore.sequences.
        rows: [R + 1], where each row begins among them.
    """

    spans: Spans
    rows: NDArray[np.int64]


class PackedCorpora:
    """The pretraining stream of a mixture: positions -> rows of packed sequences.

    Attributes:
        length: tokens of a row at most.
        lengths: tokens of a sequence at most, in each stage of the mixture.
        cuts: each of these lengths -> the corpora.
    """

    def __init__(
        self,
        tokens: Mapping[str, TokenStore],
        sizes: Mapping[str, int],
        mixture: MixtureConfig,
        tokenizer: CaptionTokenizer,
        batch: int,
    ) -> None:
        """Rows are as long as the tokenizer's context.

        Args:
            tokens: the training split of each corpus.
            sizes: bytes of each, for `auto`.
            mixture: weights and stages.
            tokenizer: the one that made the tokens.
            batch: rows per step over all ranks, for the lengths of the stages.

        Raises:
            UserError: the context is too short, or as `Sampler.open`.
        """
        self.length = tokenizer.context_length
        if self.length < 3:
            raise UserError(f"length={self.length}: with [CLS] and [SEP] set 3 or more")
        self.ends = ends_of(tokenizer)
        self.ids = [store.ids for store in tokens.values()]
        self.lengths = [stage.length or self.length for stage in mixture.stages]
        self.cuts = {
            length: [_cut(store, length, self.length) for store in tokens.values()]
            for length in dict.fromkeys(self.lengths)
        }
        units = [
            {name: len(cut.rows) - 1 for name, cut in zip(tokens, self.cuts[length], strict=True)}
            for length in self.lengths
        ]
        self.sampler = Sampler.open(mixture, units, sizes, batch)

    @property
    def last(self) -> list[Cut]:
        """The corpora as the mixture's last stage has them."""
        return self.cuts[self.lengths[-1]]

    def read(self, positions: Sequence[int] | Positions) -> Rows:
        """The rows at these positions of the stream; nothing is carried from call to call."""
        found: list[NDArray[Any]] = []
        starts, names = [0], []
        corpora, rows = self.sampler.samples(positions)
        stages = self.sampler.stage(positions).tolist()
        for stage, corpus, row in zip(stages, corpora.tolist(), rows.tolist(), strict=True):
            length = self.lengths[stage]
            cut, ids = self.cuts[length][corpus], self.ids[corpus]
            first, last = cut.rows[row : row + 2].tolist()
            found += [ids[start:end] for start, end in cut.spans[first:last].tolist()]
            starts.append(len(found))
            of_length = f"@{length}" if length < self.length else ""
            names.append(f"{self.sampler.names[corpus]}{of_length}/{row}")
        return Rows(pack_rows(found, self.length, self.ends), starts, names)

    def batch(self, positions: Sequence[int] | Positions) -> PackedText:
        """The same without where the rows begin."""
        return self.read(positions).text


def _cut(store: TokenStore, length: int, row: int) -> Cut:
    spans = store.sequences(length)
    return Cut(spans, row_starts(spans, row))


def unigram_bits_per_character(train: TokenStore, held_out: TokenStore) -> float:
    """The floor: what a model pays that only knows how frequent each piece is in training.

    Counts start at one, so that a piece which training lacks has a price, too.
    """
    size = int(train.meta["vocabulary"])
    counts = np.ones(size)
    for start in range(0, len(train.ids), _CHUNK):
        counts += np.bincount(train.ids[start : start + _CHUNK], minlength=size)
    bits = -np.log2(counts / counts.sum())
    paid = sum(
        float(bits[held_out.ids[start : start + _CHUNK]].sum())
        for start in range(0, len(held_out.ids), _CHUNK)
    )
    return paid / max(int(held_out.meta["characters"]), 1)


_CHUNK = 2**24
