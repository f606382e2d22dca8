"""Which paragraphs of an article cite which of its figures.

A citation is an `<xref>` whose `rid` names a figure, or the group that holds it. Ranges are
resolved: "Figs 2-4" cites figure 3 as well, be it two references with a dash between them, or one.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_prep.markup import Element, ancestor
from data_prep.running_text import text_of

MAX_MENTIONS = 20
"""Paragraphs that are kept for a figure."""
_MAX_RANGE = 50
_DASH = r"\s*(?:[-\u2010-\u2015\u2212]|to|through)\s*"
_BETWEEN = re.compile(_DASH)
_WITHIN = re.compile(rf"(\d{{1,4}})[A-Za-z]?{_DASH}(\d{{1,4}})")
_NUMBERED = re.compile(r"(.*?)(\d{1,4})\W*", re.S)


@dataclass(frozen=True)
class Cited:
    """What of a figure matters to citations."""

    id: str
    group: str
    """Id of the `<fig-group>` around it."""
    label: str
    owner: Element | None
    """The sub-article that holds it; translations have the same labels as the article."""


def find_mentions(figures: Sequence[Cited], xrefs: Iterable[Element]) -> list[dict[Element, None]]:
    """For each figure the paragraphs that cite it, in order; captions and tables do not count."""
    by_id: dict[str, list[int]] = {}
    for index, figure in enumerate(figures):
        for name in {figure.id, figure.group} - {""}:
            by_id.setdefault(name, []).append(index)
    series = [_series(figure) for figure in figures]
    found: list[dict[Element, None]] = [{} for _ in figures]
    is_text: dict[Element, bool] = {}
    for xref in xrefs:
        rid = xref.get("rid", "")
        cited = by_id.get(rid) or (_named(rid, by_id) if " " in rid else None)
        if not cited:  # most references are to literature
            continue
        paragraph = next(xref.iterancestors("{*}p"), None)
        if paragraph is None:
            continue
        if paragraph not in is_text:
            is_text[paragraph] = ancestor(paragraph, "caption", "table-wrap") is None
        if not is_text[paragraph]:
            continue
        for index in (*cited, *_in_ranges(xref, cited, by_id, series)):
            found[index][paragraph] = None
    return found


def mention_texts(found: Sequence[dict[Element, None]]) -> list[tuple[str, ...]]:
    """The paragraphs as text, at most MAX_MENTIONS for a figure; each is read once."""
    texts: dict[Element, str] = {}
    mentions = []
    for paragraphs in found:
        first = list(paragraphs)[:MAX_MENTIONS]
        for paragraph in first:
            if paragraph not in texts:
                texts[paragraph] = text_of(paragraph)
        mentions.append(tuple(texts[paragraph] for paragraph in first))
    return mentions


def _named(rid: str, by_id: dict[str, list[int]]) -> list[int]:
    return [index for name in rid.split() for index in by_id.get(name, ())]


def _in_ranges(
    xref: Element, cited: list[int], by_id: dict[str, list[int]], series: list["_Series"]
) -> list[int]:
    """Figures that the reference cites without naming them."""
    found: list[int] = []
    tail = xref.tail
    if tail and _BETWEEN.fullmatch(tail):
        following = xref.getnext()
        ends = [] if following is None else _named(following.get("rid", ""), by_id)
        if ends:
            found += _between(cited[-1], ends[0], series)
    text = "".join(map(str, xref.itertext())) if len(xref) else xref.text or ""
    for first, last in _WITHIN.findall(text) if len(text) > 2 else ():
        for index in cited:
            if series[index].number == int(first):
                found += _numbered(series[index], int(first), int(last) + 1, series)
    return found


@dataclass(frozen=True)
class _Series:
    """Figures that are counted together, and a figure's number among them."""

    name: str
    owner: Element | None
    number: int | None


def _series(figure: Cited) -> _Series:
    """Of "Figure 2—figure supplement 3" the name is "figure 2 figure supplement", the number 3."""
    match = _NUMBERED.fullmatch(figure.label)
    if match is None:
        return _Series(figure.label, figure.owner, None)
    name = " ".join(re.findall(r"\w+", match[1].casefold()))
    return _Series(name, figure.owner, int(match[2]))


def _between(first: int, last: int, series: list[_Series]) -> list[int]:
    """The figures between two, by their numbers where they are counted together, else by place."""
    one, other = series[first], series[last]
    together = (one.name, one.owner) == (other.name, other.owner)
    if together and one.number and other.number and one.number < other.number:
        return _numbered(one, one.number, other.number, series)
    return list(range(first + 1, last)) if last - first <= _MAX_RANGE else []


def _numbered(one: _Series, first: int, end: int, series: list[_Series]) -> list[int]:
    """The figures of a series with numbers above `first` and below `end`."""
    if end - first > _MAX_RANGE:
        return []
    return [
        index
        for index, other in enumerate(series)
        if (other.name, other.owner) == (one.name, one.owner)
        and other.number is not None
        and first < other.number < end
    ]
