"""What every corpus is made of: documents with named sections, and a tally of what was lost."""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from vlp.config import UserError
from vlp.splits import hash_fraction


class Section(NamedTuple):
    """A part of a document: `findings`, `abstract`, `caption`, ..."""

    name: str
    text: str
    """Paragraphs, one a line."""


class Document(NamedTuple):
    """One text that stands for itself: an article, a report, a figure's caption."""

    id: str
    sections: tuple[Section, ...]
    split: str = ""
    """`train`, `val` or `test` where the source says so; empty leaves it to the hash."""
    group: str = ""
    """What no split may divide, such as the article that several figures are from; empty: id."""


class Tally:
    """Documents read, and those that could not be: each by its reason.

    A large collection always has some bad documents, a wrong setting makes all of them bad. So they
    are counted, and too many of them stop the reading.
    """

    def __init__(self, max_bad: float = 1.0) -> None:
        """`max_bad`: share of bad documents above which `bad` and `finish` raise."""
        self.max_bad = max_bad
        self.good = 0
        self.counts: Counter[str] = Counter()
        self._first = ""

    def bad(self, where: str, reason: str) -> None:
        """Count a document that can't be read; `where` names its file and line.

        Raises:
            UserError: there are too many of them.
        """
        self.counts[reason] += 1
        self._first = self._first or f"{where}: {reason}"
        if self.counts.total() >= _ENOUGH:
            self.finish()

    def finish(self) -> None:
        """Raise UserError if too large a share of what was read is bad."""
        bad = self.counts.total()
        if bad > self.max_bad * (bad + self.good):
            raise UserError(
                f"{self._first}; so are {bad} of {bad + self.good} documents read, more than "
                f"max_bad={self.max_bad:g} allows: repair the files or raise max_bad"
            )


_ENOUGH = 100
"""Bad documents from which on their share says something."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which documents are held out. The rule is that of `data_prep`'s shards."""

    seed: int = 0
    """Another seed holds out other documents."""
    val_fraction: float = 0.05
    """Share of documents for validation during training."""
    test_fraction: float = 0.0
    """Share of documents for the final scores."""

    def __post_init__(self) -> None:
        fractions = (self.val_fraction, self.test_fraction)
        if min(fractions) < 0 or sum(fractions) >= 1:
            raise ValueError(
                "val_fraction and test_fraction: set them from 0 to 1, with a sum below 1"
            )


SPLITS = ("train", "val", "test")

UNUSED = "unused"
"""Split of training documents that a corpus' `share` leaves out."""

_NAMES = {"dev": "val", "valid": "val", "validation": "val", "devel": "val"}


def split_of(document: Document, config: SplitConfig) -> str:
    """The document's own split, or that of its hashed group; adding others never changes it.

    Raises:
        UserError: its own split has an unknown name.
    """
    if document.split:
        split = _NAMES.get(document.split, document.split)
        if split not in SPLITS:
            raise UserError(
                f"document {document.id}: split '{document.split}' is none of "
                f"{', '.join(SPLITS)}; rename it or leave split_field empty"
            )
        return split
    u = hash_fraction(config.seed, document.group or document.id)
    if u < config.test_fraction:
        return "test"
    return "val" if u < config.test_fraction + config.val_fraction else "train"


def with_share(split: str, document: Document, share: float, seed: int) -> str:
    """The split again, or UNUSED for training documents beyond a share of them.

    By the hash of the group: what is held out stays the same, and of two shares the larger one
    holds the smaller.
    """
    name = f"share:{document.group or document.id}"
    return UNUSED if split == "train" and hash_fraction(seed, name) >= share else split
