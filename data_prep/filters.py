"""What a caption and an image must be like to be worth training on: a reason for each that is not.

Every function returns "" for what passes, and otherwise the reason that rejects.parquet records.
"""

import hashlib
import re
from dataclasses import dataclass

from vlp.hashing import FLAT
from vlp.language import foreign_language

_LABEL = r"""
    (?:(?:supplement(?:ary|al)|supporting|extended\ data|additional|appendix|online)\s+)*
    (?:fig(?:ure|s|ures)?|plate|scheme|chart|graph|image|panel|table|photo(?:graph)?|picture|
       illustration|box|video|movie|file)s?\b[.:]?
    (?:\s*(?:no\.?|number)?\s*(?:[a-z]{0,2}[-.]?\d+(?:[-.–]\d+)*\s*\(?[a-z]?\)?|[a-z]|[ivx]+)\b)?
"""
_PHRASES = r"""
    (?:graphical|visual|pictorial|video)\ abstract | table\ of\ contents\ (?:graphic|image) |
    cover\ (?:image|picture|page) | \(?cont(?:inued|['’.]?d)\b\.?\)? |
    see\ (?:the\ )?(?:main\ )?(?:text|legend|caption)\b[^.;]*[.;]? |
    for\ (?:more\ |further\ )?details?,?\ see\b[^.;]*[.;]? |
    (?:figure\ )?(?:legend|caption)\ (?:is\ )?(?:continued\ )?
        (?:on|in)\ (?:the\ )?(?:next|previous|following|opposite)\ page |
    click\ here\ (?:for|to)\b[^.;]*[.;]? |
    (?:additional|supplement(?:ary|al)|supporting)\ (?:data|information|materials?|files?)\b |
    available\ (?:in|from|as|at)\b[^.;]*[.;]? | source\ data\ (?:are|is)\b[^.;]*[.;]? |
    \[?colou?r\ (?:version\ of\ this\ )?figure\b[^.\]]*(?:\.[a-z]+)*[.\]]* |
    \(?for\ interpretation\ of\ (?:the\ )?references\ to\ colou?rs?\b[^.)]*[.)]* |
    no\ (?:caption|legend|title)(?:\ available)?\b | untitled\b | not\ applicable | n/a\b | none\b |
    (?:the\ )?(?:image|figure|photo|legend|caption)s?\ (?:above|below|shown|not\ available)\b
"""
_BOILERPLATE = re.compile(rf"\A\s*{_LABEL}|{_PHRASES}", re.IGNORECASE | re.VERBOSE)
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True, kw_only=True)
class CaptionRules:
    """What a caption must be like."""

    min_characters: int
    max_characters: int
    min_words: int
    """Words of two letters or more that must be left without the label and standing phrases."""
    languages: tuple[str, ...]
    """ISO 639-1 codes; empty takes all."""


@dataclass(frozen=True, kw_only=True)
class PictureRules:
    """What an image must be like."""

    min_side: int
    max_aspect: float
    """Longer side divided by the shorter."""
    blank: bool
    """Whether images without structure may stay."""


def caption_problem(caption: str, rules: CaptionRules) -> str:
    """Why a caption is not worth training on."""
    if len(caption) < rules.min_characters:
        return f"caption shorter than {rules.min_characters} characters"
    if len(caption) > rules.max_characters:
        return f"caption longer than {rules.max_characters:,} characters"
    if len(_WORD.findall(caption)) < rules.min_words:
        return f"caption of fewer than {rules.min_words} words"
    rest = _BOILERPLATE.sub(" ", caption)
    if len(_WORD.findall(rest)) < max(rules.min_words, 1):
        return "caption is boilerplate"
    if rules.languages and (language := foreign_language(caption, rules.languages)):
        return f"caption in language {language}"
    return ""


def picture_problem(width: int, height: int, phash: int, rules: PictureRules) -> str:
    """Why an image is not worth training on, from its size and its perceptual hash."""
    short, long = sorted((width, height))
    if short < rules.min_side:
        return f"image side shorter than {rules.min_side} pixels"
    if long > rules.max_aspect * short:
        return f"image more than {rules.max_aspect:g} times as long as wide"
    return "image blank" if phash == FLAT and not rules.blank else ""


def caption_digest(caption: str) -> int:
    """64 bits that are equal for captions which differ in case, spacing or punctuation only."""
    words = " ".join(re.findall(r"\w+", caption.casefold()))
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big")
