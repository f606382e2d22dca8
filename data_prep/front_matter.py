"""What an article says of itself: identifiers, title, journal, date, authors, keywords, licence."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from data_prep.licences import licence_name
from data_prep.markup import Element, children, descendants
from data_prep.running_text import joined, text_of

_AUTHORS = 6
"""Names in a citation before "et al"."""
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NOT_PUBLISHED = ("pmc-release", "nihms-submitted")
_STATEMENTS = ("copyright-statement", "copyright-holder")
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What the front matter says; unknown fields are empty."""

    pmcid: str = ""
    version: int | None = None
    """Version of the article in PubMed Central."""
    doi: str = ""
    pmid: str = ""
    title: str = ""
    journal: str = ""
    date: str = ""
    """ISO date, as much of it as is known."""
    citation: str = ""
    article_type: str = ""
    language: str = ""
    """Code as the article gives it, such as `en`."""
    keywords: tuple[str, ...] = ()
    mesh: tuple[str, ...] = ()
    """Medical Subject Headings, where the article carries them."""
    licence: str = ""


def read_metadata(article: Element) -> Metadata:
    """The front matter of an `<article>`; of the article itself, not of its sub-articles."""
    meta = article_meta(article)
    journal_meta = next(descendants(_front(article), "journal-meta"), None)
    title = next((text_of(t) for t in descendants(meta, "article-title")), "")
    journal = first_text(journal_meta, "journal-title", "abbrev-journal-title", "journal-id")
    date = _date(meta)
    keywords, mesh = _keywords(meta)
    return replace(
        read_ids(meta),
        title=title,
        journal=journal,
        date=date,
        citation=_citation(meta, title, journal, date),
        article_type=article.get("article-type", ""),
        language=language_of(article),
        keywords=keywords,
        mesh=mesh,
        # NLM 2.x names the licence outside of <permissions>, BMC even in the holder's name.
        licence=licence_name(licence_texts(children(meta, "permissions", "license", *_STATEMENTS))),
    )


def article_meta(article: Element) -> Element:
    """Its `<article-meta>`, or what comes nearest to it."""
    front = _front(article)
    return next(descendants(front, "article-meta"), front)


def _front(article: Element) -> Element:
    return next(children(article, "front"), article)


def read_ids(meta: Element) -> Metadata:
    """The identifiers in an `<article-meta>`, and nothing else."""
    ids: dict[str, str] = {}
    for element in children(meta, "article-id"):
        ids.setdefault(element.get("pub-id-type", ""), text_of(element))
    versioned = re.fullmatch(r"(?:PMC)?(\d+)\.(\d+)", ids.get("pmcid-ver", ""), re.I)
    pmc = ids.get("pmcid") or ids.get("pmc") or ids.get("pmcaid") or (versioned or ("", ""))[1]
    return Metadata(
        pmcid=f"PMC{pmc.upper().removeprefix('PMC')}" if pmc else "",
        version=int(versioned[2]) if versioned else None,
        doi=ids.get("doi", ""),
        pmid=ids.get("pmid", ""),
    )


def language_of(element: Element) -> str:
    """Its `xml:lang`, in lower case."""
    return element.get(_LANGUAGE, "").strip().lower()


def licence_texts(elements: Iterable[Element]) -> list[str]:
    """Everything in these elements that may name a licence: attributes, links, paragraphs."""
    texts = []
    for element in elements:
        for part in element.iter("*"):
            texts += [str(value) for value in part.attrib.values()]
        texts.append("".join(str(text) for text in element.itertext()))
    return texts


def first_text(element: Element | None, *names: str) -> str:
    """The first text that is found below `element` under the first of `names` that has any."""
    if element is None:
        return ""
    texts = (text_of(found) for name in names for found in descendants(element, name))
    return next(filter(None, texts), "")


def _date(meta: Element) -> str:
    """The earliest full publication date; else the earliest month or year that is given."""
    dates = []
    for found in children(meta, "pub-date"):
        date = found.get("iso-8601-date", "")
        if not re.fullmatch(r"\d{4}(-\d\d(-\d\d)?)?", date):
            date = _iso_date(*(joined(found, part) for part in ("year", "month", "day")))
        if date:
            kind = found.get("pub-type") or found.get("date-type")
            dates.append((kind in _NOT_PUBLISHED, -len(date), date))
    return min(dates, default=(False, 0, ""))[2]


def _iso_date(year: str, month: str, day: str) -> str:
    """What of it makes sense, from the year on."""
    if not re.fullmatch(r"[0-9]{4}", year):
        return ""
    named = month[:3].lower()
    number = _MONTHS.index(named) + 1 if named in _MONTHS else _whole_number(month, 12)
    if not number:
        return year
    day_number = _whole_number(day, 31)
    return f"{year}-{number:02}" + (f"-{day_number:02}" if day_number else "")


def _whole_number(text: str, largest: int) -> int:
    """The number from 1 to `largest` that `text` is, else 0."""
    number = int(text) if re.fullmatch(r"[0-9]{1,2}", text) else 0
    return number if number <= largest else 0


def _keywords(meta: Element) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keywords, and apart from them MeSH headings; abbreviations are neither."""
    found: dict[bool, dict[str, None]] = {False: {}, True: {}}
    for group in descendants(meta, "kwd-group", "subj-group"):
        kind = " ".join(
            group.get(name, "") for name in ("kwd-group-type", "subj-group-type", "vocab")
        ).lower()
        is_mesh = "mesh" in kind
        if "abbrev" in kind:
            continue
        terms = descendants(group, "kwd", "compound-kwd", *(["subject"] if is_mesh else []))
        found[is_mesh] |= dict.fromkeys(filter(None, map(text_of, terms)))
    return tuple(found[False]), tuple(found[True])


def _citation(meta: Element, title: str, journal: str, date: str) -> str:
    """Authors, title, journal, year, volume and pages, as an attribution needs them."""
    names: list[str] = []
    for group in children(meta, "contrib-group"):
        for contributor in children(group, "contrib"):
            if contributor.get("contrib-type") in (None, "author") and len(names) <= _AUTHORS:
                name = _name(contributor)
                names += [name] if name else []
    authors = ", ".join(names[:_AUTHORS]) + (" et al" if len(names) > _AUTHORS else "")
    volume, page = joined(meta, "volume"), joined(meta, "fpage") or joined(meta, "elocation-id")
    where = date[:4] + (f";{volume}" if volume else "") + (f":{page}" if page else "")
    parts = filter(None, (authors, title, journal, where))
    return " ".join(part.rstrip(".") + "." for part in parts)


def _name(contributor: Element) -> str:
    surname, given = (first_text(contributor, name) for name in ("surname", "given-names"))
    return f"{surname} {given}".strip() or first_text(contributor, "collab")
