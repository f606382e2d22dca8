"""MathML on one line, as one would write it in an e-mail: (a+b)/2, 10^3, √(x+1)."""

import re

from data_prep.markup import Element, local_name

_TOKENS = {"mi", "mn", "mo", "mtext", "ms"}
_LEFT_OUT = {"", "annotation", "annotation-xml", "mphantom", "none", "mprescripts"}
_INVISIBLE = dict.fromkeys(range(0x2061, 0x2065))  # function application, invisible times...
_ONE_THING = re.compile(r"[\w.]*|\([^()]*\)")


def math_text(element: Element) -> str:
    """The text of a `<math>` element or a part of it.

    White space between elements means nothing in MathML; only `<mtext>` keeps its own. An element
    with fewer children than it must have is read as far as it goes.
    """
    name = local_name(element)
    if name in _TOKENS:
        text = "".join(map(str, element.itertext())).translate(_INVISIBLE)
        return text if name == "mtext" else text.strip()
    if name == "mspace":
        return " "
    parts = [math_text(child) for child in element if local_name(child) not in _LEFT_OUT]
    if name == "mfenced":
        return _fenced(element, parts)
    if name in ("mtable", "mtr", "mlabeledtr"):
        return ("; " if name == "mtable" else " ").join(parts)
    if name == "semantics":
        return "".join(parts[:1])
    if name == "msqrt":
        return "√" + _grouped("".join(parts))
    return _arranged(name, parts)


def _arranged(name: str, parts: list[str]) -> str:
    """Elements whose children have places of their own."""
    match name, parts:
        case "mfrac", [above, below]:
            return f"{_grouped(above)}/{_grouped(below)}"
        case "mroot", [base, degree]:
            return f"{degree}√{_grouped(base)}"
        case "msup", [base, upper]:
            return base + _set_off(base, "^", upper)
        case "msub", [base, lower]:
            return base + _set_off(base, "_", lower)
        case "msubsup", [base, lower, upper]:
            return base + _set_off(base, "_", lower) + _set_off(base + lower, "^", upper)
        case "munder" | "munderover", [base, *limits]:
            return " ".join((base, *limits, ""))
        case _:
            return "".join(parts)


def _set_off(before: str, mark: str, script: str) -> str:
    """A sub- or superscript, with a mark in front where it would lengthen a number."""
    return mark + script if before[-1:].isdecimal() and script else script


def _grouped(text: str) -> str:
    return text if _ONE_THING.fullmatch(text) else f"({text})"


def _fenced(element: Element, parts: list[str]) -> str:
    """`<mfenced>` has its brackets and commas in attributes."""
    opening, closing = element.get("open", "("), element.get("close", ")")
    separators = "".join(element.get("separators", ",").split())
    text = ""
    for number, part in enumerate(parts):
        if number and separators:
            text += separators[min(number, len(separators)) - 1]
        text += part
    return opening + text + closing
