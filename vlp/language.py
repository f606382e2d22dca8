"""Whether a text is surely in none of the languages that are wanted."""

import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_LETTERS = 60
"""Texts with fewer show no language: they are names of genes, drugs, methods and places."""
_CHANCE = 0.01
"""A text is foreign if the languages to keep have a smaller chance than this, all together."""
_HEAD = 200  # characters that are looked at
_NAMES = "la"  # lists of species pass for Latin in any language
_WORD = re.compile(r"[^\W\d_]{2,}")


def foreign_language(text: str, languages: tuple[str, ...]) -> str:
    """The text's language if it surely is none of `languages` (ISO 639-1 codes), else ""."""
    if sum(map(len, _WORD.findall(text))) < _LETTERS:
        return ""
    chances = dict(_identifier().rank(text[:_HEAD]))
    language = max(chances, key=lambda name: chances[name])
    wanted = sum(chances.get(name, 0.0) for name in languages)
    return "" if wanted >= _CHANCE or language == _NAMES else str(language)


@functools.cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # reads its model when used

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
