"""Licences of articles and figures: one short name each, and what it allows.

Names are those of Creative Commons ("CC BY 4.0", "CC BY-NC-ND", "CC0 1.0"); the version is left out
where the article does not say it. "BMC verbatim" is what BioMed Central's articles had until 2004:
copies in all media, for any purpose, with the notice kept, but verbatim; it is treated like CC
BY-ND. The empty name means that no licence is known.
"""

import re
from collections.abc import Iterable
from typing import Literal

Use = Literal["commercial", "noncommercial", "any"]

_FREE = ("CC0", "PDM", "CC BY", "CC BY-SA", "CC BY-ND", "BMC verbatim")
_KINDS = (*_FREE, "CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND")
"""From the freest to the strictest."""

_URL = re.compile(r"creativecommons\.org/licenses?/(by(?:-nc)?(?:-nd|-sa)?)\b/?(\d\.\d)?", re.I)
_PUBLIC_DOMAIN = re.compile(r"creativecommons\.org/publicdomain/(zero|mark)/?(\d\.\d)?", re.I)
_CODE = re.compile(r"\bCC[ -]?(BY(?:-NC)?(?:-ND|-SA)?)\b[ -]?(\d\.\d)?", re.I)
_WORDS = re.compile(r"creative commons.{0,20}?\battribution(.{0,150})", re.I | re.S)
_VERBATIM = re.compile(
    r"verbatim\s+copying\s+and\s+redistribution\s+of\s+this\s+article\s+(?:are|is)\s+permitted\s+in"
    r"\s+all\s+media\s+for\s+any\s+purpose",
    re.I,
)


def licence_name(texts: Iterable[str]) -> str:
    """The licence that URLs, codes or licence paragraphs name; the strictest, should they differ.

    URLs are believed before words: "Creative Commons Attribution License" is what many paragraphs
    say of a licence that their link tells to be non-commercial.
    """
    texts = [text for text in texts if text]
    for patterns in (_url_names, _code_names, _word_names, _publisher_names):
        names = {name for text in texts for name in patterns(text)}
        if names:
            return max(names, key=lambda name: (_rank(name), name))
    return ""


def allows(licence: str, use: Use) -> bool:
    """Whether files under `licence` may be passed on for `use`; unknown licences allow nothing.

    "noncommercial" means at least non-commercial use, so it includes all that "commercial" does;
    "any" keeps every file and leaves the question to whoever uses the shards.
    """
    if use == "any":
        return True
    rank = _rank(licence)
    return rank >= 0 and (use == "noncommercial" or rank < len(_FREE))


def _rank(licence: str) -> int:
    kind = re.sub(r" \d\.\d$", "", licence)
    return _KINDS.index(kind) if kind in _KINDS else -1


def _url_names(text: str) -> list[str]:
    names = [_with_version(f"CC {m[1].upper()}", m[2]) for m in _URL.finditer(text)]
    for match in _PUBLIC_DOMAIN.finditer(text):
        names.append(_with_version("CC0" if match[1].lower() == "zero" else "PDM", match[2]))
    return names


def _code_names(text: str) -> list[str]:
    names = [_with_version(f"CC {m[1].upper()}", m[2]) for m in _CODE.finditer(text)]
    return [*names, "CC0"] if re.search(r"\bCC-?0\b", text) else names


def _word_names(text: str) -> list[str]:
    names = []
    for match in _WORDS.finditer(text):
        more = match[1].lower()
        name = "CC BY"
        name += "-NC" if re.search(r"non[- ]?commercial", more) else ""
        name += "-ND" if re.search(r"no[- ]?deriv", more) else ""
        name += "-SA" if re.search(r"share[- ]?alike", more) else ""
        version = re.search(r"\b(\d\.\d)\b", more)
        names.append(_with_version(name, version[1] if version else None))
    return names


def _publisher_names(text: str) -> list[str]:
    return ["BMC verbatim"] if _VERBATIM.search(text) else []


def _with_version(name: str, version: str | None) -> str:
    return f"{name} {version}" if version else name
