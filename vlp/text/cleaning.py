"""Cleaning passes over documents, each switched per corpus; what goes is counted by its reason.

A paragraph is a line of a section. The order: Unicode, ill-formed, language, short documents. Then,
over the whole corpus, duplicate paragraphs (duplicates.py) and once more short documents.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import ftfy

from vlp.language import foreign_language
from vlp.text.documents import Document, Section

_LETTERS = 0.5
"""Share of letters among the characters of a paragraph below which it is numbers or symbols."""
_RUN = 200
"""Characters without a blank that are no word, but base64 or a broken table."""
# Scripts that write no blanks: Thai, Lao, Burmese, Khmer, Han, kana.
_NO_BLANKS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff]")

_WORD = re.compile(r"[^\W\d_]{2,}")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^\W\d_a-z]|[(\[©])")
_BOILERPLATE = re.compile(
    r"""
    \A\W*(?:copyright\b|©|\(c\)\s*(?:19|20)\d\d) |
    \A\W*published\ by\ (?:elsevier|(?:john\ )?wiley|springer|oxford|lippincott|bmj|karger|s\.) |
    \ball\ rights\ reserved\b | \babstract\ truncated\ at\ \d+\ words\b |
    \bprotected\ by\ copyright\b | \bdownloaded\ from\ (?:https?:|www\.) |
    \bdistributed\ under\ the\ (?:terms\ of\ the\ )?creative\ commons\b |
    \b(?:website|site)\ uses\ cookies\b | \benable\ javascript\b |
    \bclick\ here\ (?:to|for)\b | \bfor\ (?:reprints?|permissions?),?\ (?:please|contact)\b |
    \ball\ claims\ expressed\ in\ this\ article\ are\ solely\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """Which passes a corpus goes through. A corpus as it is: all off, `min_words=0`."""

    unicode: bool = True
    """Repair mixed-up encodings with ftfy, collapse white space, drop empty paragraphs."""
    ill_formed: bool = True
    """Drop paragraphs that are mostly no letters, and sentences of publishers' boilerplate."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes: paragraphs that surely are in none of them go; empty keeps all."""
    min_words: int = 0
    """Documents with fewer words go. PubMedBERT: 128."""
    duplicates: Literal["none", "exact", "near"] = "near"
    """Paragraphs that stood earlier in the corpus go: never, if they differ in case, spacing and
    punctuation at most, or if they share most of their word sequences, too."""
    similarity: float = 0.8
    """Near: share of the sequences of five words that two paragraphs have in common, of all that
    either has (Jaccard), from which on the later one is a copy."""

    def __post_init__(self) -> None:
        if self.min_words < 0:
            raise ValueError("min_words: set 0 or more")
        if not 0.6 <= self.similarity <= 1:
            raise ValueError("similarity: set 0.6 to 1; what is less alike is not surely found")


def clean_document(
    document: Document, config: CleaningConfig, dropped: Counter[str]
) -> Document | None:
    """The document after the passes that look at it alone, or None.

    Args:
        document: as read.
        config: the passes.
        dropped: gets the number of paragraphs (for `document ...`: of documents) by reason.
    """
    sections = []
    for section in document.sections:
        kept = []
        for line in section.text.split("\n"):
            paragraph, reason = _clean_paragraph(line, config, dropped)
            if reason:
                dropped[reason] += 1
            elif paragraph:
                kept.append(paragraph)
        if kept:
            sections.append(Section(section.name, "\n".join(kept)))
    return with_enough_words(document._replace(sections=tuple(sections)), config, dropped)


def with_enough_words(
    document: Document, config: CleaningConfig, dropped: Counter[str]
) -> Document | None:
    """The document itself, or None if it has no text or too few words (counted)."""
    words = sum(len(section.text.split()) for section in document.sections)
    if not document.sections:
        dropped["document without text left"] += 1
    elif words < config.min_words:
        dropped[f"document of fewer than {config.min_words} words"] += 1
    else:
        return document
    return None


def _clean_paragraph(line: str, config: CleaningConfig, dropped: Counter[str]) -> tuple[str, str]:
    """(paragraph, why it is dropped): both empty for a blank line."""
    if config.unicode:
        line = " ".join(repair(line).split())
    if not line.strip():
        return "", ""
    if config.ill_formed:
        line = _without_boilerplate(line, dropped)
        if not line:
            return "", ""  # counted by its sentences
        if reason := ill_formed(line):
            return "", reason
    if config.languages and (language := foreign_language(line, config.languages)):
        return "", f"paragraph in language {language}"
    return line, ""


def repair(text: str) -> str:
    """Text with its encoding repaired."""
    # ftfy takes most of the time, and changes nothing of printable ASCII but HTML's entities.
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    return ftfy.fix_text(text)


def ill_formed(paragraph: str) -> str:
    """Why a paragraph is no running text, or ""."""
    characters = sum(map(len, paragraph.split()))
    letters = sum(map(str.isalpha, paragraph))
    if letters < _LETTERS * characters:
        return "paragraph mostly without letters"
    if not _WORD.search(paragraph):
        return "paragraph without a word"
    longest = max(paragraph.split(), key=len)
    if len(longest) > _RUN and not _NO_BLANKS.search(longest):
        return f"paragraph with over {_RUN} characters without a blank"
    return ""


def _without_boilerplate(paragraph: str, dropped: Counter[str]) -> str:
    if not _BOILERPLATE.search(paragraph) and "©" not in paragraph and "opyright" not in paragraph:
        return paragraph
    sentences = _SENTENCE.split(paragraph)
    kept = [sentence for sentence in sentences if not _BOILERPLATE.search(sentence)]
    if len(kept) < len(sentences):
        dropped["boilerplate sentence"] += len(sentences) - len(kept)
        return " ".join(kept)
    return paragraph
