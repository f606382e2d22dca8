"""Paragraphs that stood earlier in the corpus, exactly or nearly, in bounded memory.

Signatures go to files as paragraphs are read; afterwards one band of them at a time is sorted, so
memory is some 60 bytes a paragraph, whatever the paragraphs' length. Candidates come from MinHash
(Broder 1997) with bands of four: two paragraphs that share 80% of their shingles meet in one of 16
bands with probability 1 - (1 - 0.8^4)^16 = 0.9998, at 60% with 0.89. Each pair is then compared by
its shingles themselves, so nothing goes that is not a copy.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

SHINGLE = 5
"""Words of a shingle."""
BANDS, ROWS = 16, 4
NEIGHBOURS = 4
"""Paragraphs before it in the same bucket that a paragraph is compared with, beside the first."""

# Han and kana are written without blanks: there a character counts as a word.
_WORDS = re.compile("[\u2e80-\u9fff]|[^\\W\u2e80-\u9fff]+")
_KNOWN = 2**18  # words whose hashes are remembered
_MIX = np.random.Generator(np.random.Philox(5)).integers(
    0, 2**64, (2, BANDS * ROWS), dtype=np.uint64
)
_MULTIPLY = _MIX[0] | np.uint64(1)
_ADD = _MIX[1]
_POWERS = np.array([pow(0x9E3779B97F4A7C15, n, 2**64) for n in range(SHINGLE)], dtype=np.uint64)


class Duplicates:
    """Finds later copies of paragraphs; `add` them all in order, then ask `copies`."""

    def __init__(self, folder: Path, near: bool) -> None:
        """`folder` gets the files of signatures, 8 bytes a paragraph, or 136 with near copies."""
        self._words: dict[str, int] = {}
        self._digests = (folder / "digests.tmp").open("w+b")
        self._bands = (folder / "bands.tmp").open("w+b") if near else None

    def add(self, paragraph: str) -> None:
        """The next paragraph of the corpus."""
        words = _WORDS.findall(paragraph.casefold())
        np.array([_digest(" ".join(words))], dtype=np.uint64).tofile(self._digests)
        if self._bands is not None:
            shingles = self._shingles(words)
            # Short paragraphs have no shingles: a number that no other one has, so none is near.
            keys = _band_keys(shingles) if len(shingles) else np.zeros(BANDS, dtype=np.uint64)
            keys.tofile(self._bands)

    def copies(
        self, similarity: float, text_of: Callable[[int], str]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which paragraphs repeat one that stays.

        Args:
            similarity: Jaccard index of shingles from which on two paragraphs are near copies.
            text_of: paragraph number -> its text.

        Returns:
            bool [P], exact copies; bool [P], near copies (none if not asked for).
        """
        digests = _numbers(self._digests)
        exact = np.ones(len(digests), dtype=bool)
        exact[np.unique(digests, return_index=True)[1]] = False  # the first of each stays
        near = np.zeros_like(exact)
        if self._bands is None:
            return exact, near
        earlier: dict[int, list[int]] = defaultdict(list)
        for first, later in self._candidates(np.flatnonzero(~exact)).tolist():
            earlier[later].append(first)
        for later in sorted(earlier):
            mine = self._set(text_of(later))
            near[later] = any(
                jaccard(mine, self._set(text_of(first))) >= similarity
                for first in earlier[later]
                if not near[first]
            )
        return exact, near

    def close(self) -> None:
        """Remove the files."""
        for file in filter(None, (self._digests, self._bands)):
            file.close()
            Path(file.name).unlink(missing_ok=True)

    def _candidates(self, members: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [N, 2]: pairs (earlier, later) of paragraphs that share a bucket of some band."""
        if self._bands is None or not len(members):
            return np.empty((0, 2), dtype=np.int64)
        self._bands.flush()
        table = np.memmap(self._bands.name, dtype=np.uint64, mode="r").reshape(-1, BANDS)
        found = [np.empty((0, 2), dtype=np.int64)]
        for band in range(BANDS):
            keys = table[members, band]
            order = np.argsort(keys, kind="stable")  # within a bucket in the corpus' order
            keys, ordered = keys[order], members[order]
            first = np.searchsorted(keys, keys)  # where each one's bucket begins
            for back in range(1, NEIGHBOURS + 1):
                near = np.flatnonzero((keys[back:] == keys[:-back]) & (keys[back:] != 0))
                found.append(np.stack([ordered[near], ordered[near + back]], 1))
            heads = np.flatnonzero((first != np.arange(len(keys))) & (keys != 0))
            found.append(np.stack([ordered[first[heads]], ordered[heads]], 1))
            found = [np.unique(np.concatenate(found), axis=0)]
        return found[0]

    def _set(self, text: str) -> Hashes:
        return self._shingles(_WORDS.findall(text.casefold()))

    def _shingles(self, words: list[str]) -> Hashes:
        """uint64 [S]: distinct hashes of each sequence of five words."""
        if len(words) < SHINGLE:
            return np.empty(0, dtype=np.uint64)
        known = self._words
        if len(known) > _KNOWN:
            known.clear()
        for word in words:
            if word not in known:
                known[word] = _digest(word)
        hashes = np.array([known[word] for word in words], dtype=np.uint64)
        windows = np.lib.stride_tricks.sliding_window_view(hashes, SHINGLE)
        return np.unique((windows * _POWERS).sum(1, dtype=np.uint64))


def jaccard(left: Hashes, right: Hashes) -> float:
    """Elements that two sets (sorted, distinct) have in common, of all that either has."""
    both = len(np.intersect1d(left, right, assume_unique=True))
    either = len(left) + len(right) - both
    return both / either if either else 0.0


def _band_keys(shingles: Hashes) -> Hashes:
    """uint64 [BANDS]: MinHash signature, four values to a key; never 0."""
    best = np.full(BANDS * ROWS, np.uint64(2**64 - 1))
    for start in range(0, len(shingles), 4096):  # 2 MB at a time, however long the paragraph
        mixed = shingles[start : start + 4096, None] * _MULTIPLY + _ADD
        mixed ^= mixed >> np.uint64(29)
        np.minimum(best, (mixed * _MULTIPLY[::-1]).min(0), out=best)
    keys = (best.reshape(BANDS, ROWS) * _POWERS[:ROWS]).sum(1, dtype=np.uint64)
    return np.maximum(keys, np.uint64(1))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _numbers(file: BinaryIO) -> Hashes:
    file.flush()
    return np.fromfile(file.name, dtype=np.uint64)
