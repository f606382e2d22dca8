"""JATS articles (and their NLM 2.x ancestors): metadata, every figure, its caption and mentions.

markup.py reads the file, running_text.py turns elements into text, front_matter.py reads the
metadata; here is where figures are found and put together.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lxml import etree

from data_prep.front_matter import (
    Metadata,
    article_meta,
    language_of,
    licence_texts,
    read_ids,
    read_metadata,
)
from data_prep.licences import licence_name
from data_prep.markup import (
    Element,
    ancestor,
    children,
    descendants,
    local_name,
    parse_xml,
    parser_options,
)
from data_prep.mentions import Cited, find_mentions, mention_texts
from data_prep.running_text import joined

_HREF = ("{http://www.w3.org/1999/xlink}href", "xlink:href", "href")
"""The latter two occur where the namespace was not declared."""
_NOT_PICTURES = {"fig", "fig-group", "caption", "label", "permissions", "attrib", "alt-text"}
_NOT_PICTURES |= {"supplementary-material", "disp-formula"}
_THUMBNAIL = re.compile(r"thumb", re.I)
_BORROWED = re.compile(
    r"\b(?:reprinted|reproduced|republished|used|adapted|modified|taken)\b[^.]{0,200}?"
    r"\b(?:with|by)\s+(?:the\s+)?(?:kind\s+|written\s+|express\s+)?permission\b",
    re.I,
)
_CHUNK = 1 << 14


class JatsError(Exception):
    """The file is no readable JATS article; the message is the reason for rejects.parquet."""


class NotAnArticle(JatsError):
    """Well-formed XML of another kind, such as a package's manifest."""


@dataclass(frozen=True)
class Figure:
    """One `<fig>` element."""

    id: str
    label: str
    caption: str
    group_label: str
    group_caption: str
    graphics: tuple[tuple[str, ...], ...]
    """One entry for each picture: the hrefs of its alternatives, thumbnails left out."""
    mentions: tuple[str, ...]
    """Paragraphs of the text that cite the figure, in order."""
    sections: tuple[str, ...]
    """Titles of the sections around the figure, outermost first."""
    sub_article: str
    """Type of the sub-article (translation, reply...) that holds the figure, else empty."""
    language: str
    """Language code of the article or sub-article that holds the figure, as it is given there."""
    attribution: str
    """The figure's own credit line."""
    licence: str | None
    """The figure's own licence; empty where it has a copyright notice of its own, or is reprinted
    by permission; None: the article's."""


@dataclass(frozen=True)
class Article:
    """A parsed article."""

    metadata: Metadata
    figures: tuple[Figure, ...]
    recovered: bool
    """The XML was broken, and libxml2 mended it: text may be missing."""


def parse_article(data: bytes, number: int = 0) -> Article:
    """All figures and the metadata of article `number` (from 0) of one JATS file.

    Raises:
        JatsError: not XML at all, or no such article in it.
    """
    articles, recovered = _articles(data)
    if number >= len(articles):
        raise JatsError(f"article {number + 1} of the file is missing")
    root = articles[number]
    return Article(read_metadata(root), tuple(_figures(root)), recovered)


def identify(data: bytes) -> list[Metadata]:
    """The articles in a file, in order, with their identifiers only.

    A file that begins with an article is read no further than its front matter, so it may turn out
    to be broken when `parse_article` reads it whole.

    Raises:
        JatsError: see `parse_article`.
    """
    try:
        meta = _first_article_meta(data)
    except etree.XMLSyntaxError:
        meta = None  # parse_xml() has means to read it all the same
    if meta is not None:
        return [read_ids(meta)]
    return [read_ids(article_meta(article)) for article in _articles(data)[0]]


def _articles(data: bytes) -> tuple[list[Element], bool]:
    """The outermost `<article>` elements, and whether the parser had to mend the file."""
    root, recovered = parse_xml(data)
    if root is None:
        raise JatsError("XML not readable")
    if local_name(root) == "article":
        return [root], recovered
    articles = [a for a in descendants(root, "article") if ancestor(a, "article") is None]
    if not articles:
        raise NotAnArticle(f"XML of another kind: <{local_name(root)}>")
    return articles, recovered


def _first_article_meta(data: bytes) -> Element | None:
    """The article's `<article-meta>`; None where that takes a look at the whole file.

    Raises:
        etree.XMLSyntaxError: the file is broken before it.
    """
    parser = etree.XMLPullParser(("end",), tag="{*}article-meta", **parser_options())
    for start in range(0, len(data), _CHUNK):
        parser.feed(data[start : start + _CHUNK])
        for _, meta in parser.read_events():
            names = [local_name(above) for above in meta.iterancestors()]
            # Undefined entities take parse_xml's second attempt.
            plain = next(meta.iter(etree.Entity), None) is None
            return meta if names == ["front", "article"] and plain else None
    return None


def _figures(article: Element) -> list[Figure]:
    elements: list[Element] = []
    xrefs: list[Element] = []
    for element in descendants(article, "fig", "xref"):
        (elements if local_name(element) == "fig" else xrefs).append(element)
    if not elements:
        return []
    labels = [joined(element, "label") for element in elements]
    groups = [ancestor(element, "fig-group") for element in elements]
    owners = [ancestor(element, "sub-article", "response") for element in elements]
    cited = [
        Cited(element.get("id", ""), "" if group is None else group.get("id", ""), label, owner)
        for element, group, label, owner in zip(elements, groups, labels, owners, strict=True)
    ]
    paragraphs = find_mentions(cited, xrefs)
    mentions = mention_texts(paragraphs)
    return [
        Figure(
            id=cited[n].id,
            label=labels[n],
            caption=(caption := joined(element, "caption")),
            group_label=joined(groups[n], "label"),
            group_caption=joined(groups[n], "caption"),
            graphics=tuple(_graphics(element)),
            mentions=mentions[n],
            sections=_sections(element) or _sections(next(iter(paragraphs[n]), None)),
            sub_article="" if (owner := owners[n]) is None else _kind(owner),
            language=language_of(article if owner is None else owner) or language_of(article),
            attribution=(attribution := joined(element, "attrib")),
            licence=_own_licence(element, groups[n], f"{caption} {attribution}"),
        )
        for n, element in enumerate(elements)
    ]


def _sections(element: Element | None) -> tuple[str, ...]:
    """Titles of the sections around an element, outermost first."""
    if element is None:
        return ()
    return tuple(joined(sec, "title") for sec in reversed([*element.iterancestors("{*}sec")]))


def _kind(sub_article: Element) -> str:
    kind = sub_article.get("article-type") or sub_article.get("response-type")
    return kind or local_name(sub_article)


def _graphics(element: Element) -> Iterator[tuple[str, ...]]:
    """Pictures of a figure: `<alternatives>` is one picture, each other `<graphic>` is one more."""
    for child in element:
        name = local_name(child)
        if name in _NOT_PICTURES:
            continue
        if name == "alternatives":
            hrefs = _hrefs(children(child, "graphic"))
        elif name == "graphic":
            hrefs = _hrefs([child])
        else:
            yield from _graphics(child)
            continue
        if hrefs:
            yield hrefs


def _hrefs(graphics: Iterable[Element]) -> tuple[str, ...]:
    hrefs = []
    for graphic in graphics:
        kind = f"{graphic.get('content-type')} {graphic.get('specific-use')}"
        href = next(filter(None, (graphic.get(name) for name in _HREF)), "").strip()
        if href and not _THUMBNAIL.search(kind):
            hrefs.append(href)
    return tuple(hrefs)


def _own_licence(figure: Element, group: Element | None, text: str) -> str | None:
    """See `Figure.licence`; `text` is caption and credit line."""
    notices = [*descendants(figure, "permissions", "copyright-statement")]
    if group is not None:
        notices += children(group, "permissions", "copyright-statement")
    if notices:
        return licence_name([*licence_texts(notices), text])
    if "ermission" in text and _BORROWED.search(text):
        return licence_name([text])
    return None
