"""JATS articles (and their NLM 2.x ancestors): metadata, every figure, its caption and mentions.

markup.py reads the file, running_text.py turns elements into text, front_matter.py reads the
metadata; here is where figures are found and put together.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

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
from data_prep.running_text import joined, text_of

_HREF = ("{http://www.w3.org/1999/xlink}href", "xlink:href", "href")
"""The latter two occur where the namespace was not declared."""
_NOT_PICTURES = {"fig", "fig-group", "caption", "label", "permissions", "attrib", "alt-text"}
_NOT_PICTURES |= {"supplementary-material", "disp-formula"}
_UNREAD = ("ref-list", "table-wrap")
"""They hold no figures and no text that is quoted."""
_FIGURE = re.compile(rb"<(?:\w+:)?fig[\s>]")
_THUMBNAIL = re.compile(r"thumb|\d{2,3}x\d{2,3}", re.I)  # SciELO has content-type="scielo-267x140"
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
    lost: int = 0
    """Figures that a broken file begins but that could not be read."""


def parse_article(data: bytes, number: int = 0) -> Article:
    """All figures and the metadata of article `number` (from 0) of one JATS file.

    Raises:
        JatsError: not XML at all, or no such article in it.
    """
    articles, recovered = _articles(data)
    if number >= len(articles):
        raise JatsError(f"article {number + 1} of the file is missing")
    root = articles[number]
    figures = tuple(_figures(root))
    begun = len(_FIGURE.findall(data)) if recovered and len(articles) == 1 else 0
    return Article(read_metadata(root), figures, recovered, max(0, begun - len(figures)))


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
    root, recovered = parse_xml(data, _UNREAD)
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
        for _, found in parser.read_events():
            meta = cast(Element, found)  # of other kinds of events it would be something else
            names = [local_name(above) for above in meta.iterancestors()]
            # Undefined entities take parse_xml's second attempt.
            plain = next(meta.iter(etree.Entity), None) is None
            return meta if names == ["front", "article"] and plain else None
    return None


def _figures(article: Element) -> list[Figure]:
    figures = [_FigureElement(element) for element in descendants(article, "fig")]
    if not figures:
        return []
    cited = [Cited(f.id, f.group_id, f.label, f.owner) for f in figures]
    paragraphs = find_mentions(cited, descendants(article, "xref"))
    titles = _SectionTitles()
    return [
        Figure(
            id=figure.id,
            label=figure.label,
            caption=figure.caption,
            group_label=joined(figure.group, "label"),
            group_caption=joined(figure.group, "caption"),
            graphics=tuple(_graphics(figure.element)),
            mentions=mentions,
            sections=titles.around(figure.element) or titles.around(next(iter(citing), None)),
            sub_article=_kind(figure.owner),
            language=_language(figure.owner) or _language(article),
            attribution=figure.attribution,
            licence=_own_licence(figure),
        )
        for figure, citing, mentions in zip(
            figures, paragraphs, mention_texts(paragraphs), strict=True
        )
    ]


class _FigureElement:
    """A `<fig>` with its texts and surroundings."""

    def __init__(self, element: Element) -> None:
        self.element = element
        self.id = element.get("id", "")
        texts: dict[str, list[str]] = {"label": [], "caption": [], "attrib": []}
        for child in element:
            name = local_name(child)
            if name in texts:
                texts[name].append(text_of(child))
        self.label, self.caption, self.attribution = (
            " ".join(filter(None, parts)) for parts in texts.values()
        )
        self.group = ancestor(element, "fig-group")
        self.group_id = "" if self.group is None else self.group.get("id", "")
        self.owner = ancestor(element, "sub-article", "response")


class _SectionTitles:
    """Titles of sections, each read once."""

    def __init__(self) -> None:
        self._titles: dict[Element, str] = {}

    def around(self, element: Element | None) -> tuple[str, ...]:
        """Titles of the sections around an element, outermost first."""
        sections = [] if element is None else [*element.iterancestors("{*}sec")]
        for section in sections:
            if section not in self._titles:
                self._titles[section] = joined(section, "title")
        return tuple(self._titles[section] for section in reversed(sections))


def _kind(sub_article: Element | None) -> str:
    if sub_article is None:
        return ""
    kind = sub_article.get("article-type") or sub_article.get("response-type")
    return kind or local_name(sub_article)


def _language(element: Element | None) -> str:
    return "" if element is None else language_of(element)


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


def _own_licence(figure: _FigureElement) -> str | None:
    """See `Figure.licence`."""
    text = f"{figure.caption} {figure.attribution}"
    notices = [*descendants(figure.element, "permissions", "copyright-statement")]
    if figure.group is not None:
        notices += children(figure.group, "permissions", "copyright-statement")
    if notices:
        return licence_name([*licence_texts(notices), text])
    if "ermission" in text and _BORROWED.search(text):
        return licence_name([text])
    return None
