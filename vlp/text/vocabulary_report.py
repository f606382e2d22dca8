"""What a vocabulary does to the words of a domain, beside another one.

A word is a run of letters and digits. Each is tokenised after a blank, as it stands in a text, so
that vocabularies of all kinds are asked the same thing.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from vlp.data.text import clean

_WORD = re.compile(r"\w+")
_LONG = 5  # letters of a word that may be a term
_SEEN = 3  # times that it must occur
_RARE = 0.1  # times as frequent in general text as in the domain, at most


@dataclass(frozen=True)
class VocabularyReport:
    """Figures of one vocabulary."""

    size: int
    in_domain: float
    """Pieces per word."""
    general: float
    """Pieces per word of general text; nan if there is none."""
    single_piece: float
    """Share of the terms that are one piece."""
    unknown: float
    """Share of the domain's words with an unknown piece."""
    longest: tuple[tuple[str, tuple[str, ...]], ...]
    """Terms of the most pieces, and these."""


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs, as it is written."""
    counts = Counter[str]()
    for text in texts:
        counts.update(_WORD.findall(clean(text)))
    return counts


def domain_terms(
    in_domain: Mapping[str, int], general: Mapping[str, int], count: int = 1000
) -> list[str]:
    """The most frequent longer words of the domain that general text has hardly: its terms.

    Args:
        in_domain: counts of the domain's words.
        general: those of general text.
        count: terms at most.
    """
    total, other = sum(in_domain.values()), max(sum(general.values()), 1)
    terms = [
        (-times, word)
        for word, times in in_domain.items()
        if len(word) >= _LONG
        and word.isalpha()
        and times >= _SEEN
        and general.get(word, 0) / other <= _RARE * times / total
    ]
    return [word for _, word in sorted(terms)[:count]]


def vocabulary_report(
    tokenizer: Tokenizer,
    in_domain: Mapping[str, int],
    general: Mapping[str, int],
    terms: Sequence[str],
    longest: int = 10,
) -> VocabularyReport:
    """Figures of a vocabulary on counted words of held-out text.

    Args:
        tokenizer: own or inherited.
        in_domain: word counts of the domain (count_words).
        general: those of general text.
        terms: words of the domain that one would like to be single pieces (domain_terms).
        longest: terms to show that are cut into the most pieces.
    """
    unknown_id = tokenizer.token_to_id("[UNK]")
    pieces = {word: tokenizer.encode(word, add_special_tokens=False) for word in terms}
    cut = sorted(terms, key=lambda word: (-len(pieces[word].ids), word))[:longest]
    broken = 0
    for word, ids in _encoded(tokenizer, in_domain):
        broken += in_domain[word] * (unknown_id in ids)
    return VocabularyReport(
        size=tokenizer.get_vocab_size(),
        in_domain=pieces_per_word(tokenizer, in_domain),
        general=pieces_per_word(tokenizer, general),
        single_piece=_share(sum(len(pieces[term].ids) == 1 for term in terms), len(terms)),
        unknown=_share(broken, sum(in_domain.values())),
        longest=tuple((word, tuple(pieces[word].tokens)) for word in cut),
    )


def pieces_per_word(tokenizer: Tokenizer, words: Mapping[str, int]) -> float:
    """Mean number of pieces of a word, each word as often as it occurs; nan without words."""
    pieces = sum(words[word] * len(ids) for word, ids in _encoded(tokenizer, words))
    return _share(pieces, sum(words.values()))


def _encoded(tokenizer: Tokenizer, words: Mapping[str, int]) -> Iterable[tuple[str, list[int]]]:
    encoded = tokenizer.encode_batch_fast(list(words), add_special_tokens=False)
    return zip(words, (row.ids for row in encoded), strict=True)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def describe(reports: Mapping[str, VocabularyReport]) -> str:
    """The reports as a table in Markdown, with the longest splits below."""
    lines = [
        "| vocabulary | pieces | in domain | general | single-piece terms | unknown |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, r in reports.items():
        lines.append(
            f"| {name} | {r.size:,} | {r.in_domain:.3f} | {r.general:.3f} "
            f"| {r.single_piece:.1%} | {r.unknown:.2%} |"
        )
    for name, r in reports.items():
        lines += ["", f"Longest splits of {name}:"]
        lines += [f"- {word}: {' '.join(pieces)}" for word, pieces in r.longest]
    return "\n".join(lines)
