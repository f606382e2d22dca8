"""The text of an XML element as a reader sees it, on one line."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from data_prep.markup import Element, children, descendants, local_name, name_of
from data_prep.mathml import math_text

FORMULA, IMAGE = "[formula]", "[image]"
"""They stand in the text for formulas without MathML (TeX source or a picture) and for pictures
within a line, so that a sentence never loses a word without a trace."""

# Not part of the text around them.
_SKIPPED = {"permissions", "object-id", "alt-text", "long-desc", "annotation", "annotation-xml"}
_FLOATS = {"fig", "fig-group", "table-wrap", "graphic", "media", "ref-list"}
# Elements that end a word: without the space "Title.First sentence" would be glued.
_BLOCKS = {"p", "title", "subtitle", "list", "list-item", "def-item", "def", "term", "sec", "label"}
_BLOCKS |= {"break", "caption", "supplementary-material", "table", "tr", "td", "th", "fn", "attrib"}
_BLOCKS |= {"compound-kwd-part"}
_FORMULAS = {"inline-formula", "disp-formula", "chem-struct"}
_PICTURES = {"inline-graphic", "inline-media", "private-char"}
_UNREADABLE = {"tex-math", "graphic", "media", *_PICTURES}
_MARKS = re.compile(r"(?:\[formula\]\s*)+")
_GLUED = re.compile(r"(?<=\w)(?=\[(?:formula|image)\])|(?<=\[formula\])(?=\w)|(?<=\[image\])(?=\w)")
_NUMBER = re.compile(r"[-+\N{MINUS SIGN}\N{EN DASH}\N{PLUS-MINUS SIGN}]?\d")

Write = Callable[[Element, list[str]], None]
"""Appends the text of an element, without its tail."""


def text_of(element: Element | None) -> str:
    """The text that a reader sees, on one line.

    Formulas are their MathML on one line, never their TeX source. Subscripts and superscripts stay
    plain (CO2, mm2), but a number does not grow by its exponent: 10^3.
    """
    if element is None:
        return ""
    parts: list[str] = []
    _collect(element, parts)
    text = "".join(parts).strip()
    if "  " in text or not text.isprintable():  # as line ends and no-break spaces are not
        text = " ".join(text.split())
    return _GLUED.sub(" ", text) if FORMULA in text or IMAGE in text else text


def _collect(element: Element, parts: list[str]) -> None:
    # libxml2 refuses more than 256 levels, so the recursion is bounded.
    if text := element.text:
        parts.append(text)
    for child in element:
        write = _writer(child.tag)
        if write is _collect and not len(child):  # most are <italic>, <bold>, <xref>
            if text := child.text:
                parts.append(text)
        elif write is not None:
            write(child, parts)
        if tail := child.tail:
            parts.append(tail)


@lru_cache(maxsize=4096)
def _writer(tag: Any) -> Write | None:
    """What an element does with its text; None: it is left out."""
    name = name_of(tag)
    if name in _SKIPPED or not name:
        return None
    if name in _FLOATS:
        return _gap
    if name in _BLOCKS:
        return _block
    if name in _FORMULAS:
        return _formula
    if name in _PICTURES:
        return _picture
    special: dict[str, Write] = {
        "math": _math,
        "sub": _subscript,
        "sup": _superscript,
        "tex-math": _tex,
        "alternatives": _alternatives,
    }
    return special.get(name, _collect)


def _gap(element: Element, parts: list[str]) -> None:
    parts.append(" ")


def _block(element: Element, parts: list[str]) -> None:
    parts.append(" ")
    _collect(element, parts)
    parts.append(" ")


def _superscript(element: Element, parts: list[str]) -> None:
    _script(element, parts, "^")


def _subscript(element: Element, parts: list[str]) -> None:
    _script(element, parts, "_")


def _script(element: Element, parts: list[str], mark: str) -> None:
    if len(element):
        inside: list[str] = []
        _collect(element, inside)
        script = "".join(inside).strip()
    else:
        script = (element.text or "").strip()
    if parts and parts[-1][-1:].isdecimal() and _NUMBER.match(script):
        parts.append(mark)
    parts.append(script)


def _picture(element: Element, parts: list[str]) -> None:
    parts.append(IMAGE)


def _tex(element: Element, parts: list[str]) -> None:
    parts.append(FORMULA)


def _math(element: Element, parts: list[str]) -> None:
    parts.append(math_text(element) or FORMULA)


def _alternatives(element: Element, parts: list[str]) -> None:
    """Outside of a formula: a formula all the same, or versions of one picture."""
    if next(descendants(element, "math", "tex-math"), None) is not None:
        _formula(element, parts)
    elif next(descendants(element, *_PICTURES), None) is not None:
        parts.append(IMAGE)
    else:
        _collect(element, parts)


def _formula(element: Element, parts: list[str]) -> None:
    """Its MathML or plain text; a mark for TeX or a picture that has no such twin."""
    readable = next(descendants(element, "math", "textual-form"), None) is not None
    inside: list[str] = []
    _collect_formula(element, inside, "" if readable else FORMULA)
    text = _MARKS.sub(FORMULA + " ", "".join(inside))
    text = text if text.strip() else FORMULA
    parts.append(text.strip() if local_name(element) == "inline-formula" else f" {text} ")


def _collect_formula(element: Element, parts: list[str], mark: str) -> None:
    if element.text:
        parts.append(element.text)
    for child in element:
        name, write = local_name(child), _writer(child.tag)
        if name in _UNREADABLE:
            parts.append(mark)
        elif write in (_collect, _formula, _alternatives):
            _collect_formula(child, parts, mark)
        elif write is not None:
            write(child, parts)
        if child.tail:
            parts.append(child.tail)


def joined(element: Element | None, name: str) -> str:
    """The text of the children called `name`."""
    if element is None:
        return ""
    return " ".join(filter(None, (text_of(child) for child in children(element, name))))
