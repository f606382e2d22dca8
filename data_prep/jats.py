"""JATS articles (and their NLM 2.x ancestors): metadata and every figure with its caption.

The reader is strict first and never loads a DTD, follows a link or expands entities beyond
libxml2's own bound: article files come from the network. Tags are compared by local name, since
JATS is found with and without a namespace.
"""

import html.entities
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lxml import etree

from data_prep.licences import licence_name

Element = etree._Element

_HREF = "{http://www.w3.org/1999/xlink}href"
_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
# Not part of what a reader sees in running text. MathML stays, its TeX twin does not.
_SKIPPED = {"tex-math", "annotation", "permissions", "object-id", "graphic", "inline-graphic"}
_SKIPPED |= {"media", "alt-text", "long-desc", "fig", "fig-group", "table-wrap"}
# Elements that end a word: without the space "Title.First sentence" would be glued.
_BLOCKS = {"p", "title", "list", "list-item", "def-item", "def", "disp-formula", "sec", "label"}
_BLOCKS |= {"break", "caption", "supplementary-material", "table", "tr", "td", "th"}
_THUMBNAIL = re.compile(r"thumb", re.I)
_RANGE = re.compile(r"\s*(?:[-\u2010-\u2015\u2212]|to|through)\s*")
_MAX_MENTIONS = 20
_MAX_RANGE = 50
_ENTITY = re.compile(rb"&([A-Za-z][A-Za-z0-9]*);")
_XML_ENTITIES = {b"amp", b"lt", b"gt", b"quot", b"apos"}


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
    licence: str | None
    """The figure's own licence, empty for a copyright notice of its own; None: the article's."""


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What the front matter says; unknown fields are empty."""

    pmcid: str = ""
    doi: str = ""
    pmid: str = ""
    title: str = ""
    journal: str = ""
    date: str = ""
    """ISO date, as much of it as is known."""
    citation: str = ""
    article_type: str = ""
    language: str = ""
    """Of the article: a code such as `en`; JATS makes it `en` where the file says nothing."""
    keywords: tuple[str, ...] = field(default=())
    licence: str = ""


@dataclass(frozen=True)
class Article:
    """A parsed article."""

    metadata: Metadata
    figures: tuple[Figure, ...]
    recovered: bool
    """The XML was broken, and libxml2 mended it: text may be missing."""


def parse_article(data: bytes) -> Article:
    """All figures and the metadata of one JATS file.

    Raises:
        JatsError: not XML at all, no article in it, or more than one.
    """
    root, recovered = read_xml(data)
    return Article(read_metadata(root), tuple(_figures(root)), recovered)


def read_xml(data: bytes) -> tuple[Element, bool]:
    """The `<article>` element, and whether the parser had to mend the file.

    Raises:
        JatsError: see `parse_article`.
    """
    root, recovered = _parse(data)
    if root is None:
        raise JatsError("XML not readable")
    if _tag(root) == "article":
        return root, recovered
    articles = [child for child in root if _tag(child) == "article"]
    if not articles:
        raise NotAnArticle(f"XML of another kind: <{_tag(root)}>")
    if len(articles) > 1:
        raise JatsError(f"{len(articles)} articles in one file: split it")
    return articles[0], recovered


def _parse(data: bytes) -> tuple[Element | None, bool]:
    """Strictly; then with HTML's entity names replaced; then with libxml2's repair."""
    try:
        root = etree.fromstring(data, _parser())
        if not any(True for _ in root.iter(etree.Entity)):
            return root, False
    except etree.XMLSyntaxError:
        pass  # the next attempts are for such files
    named = _ENTITY.sub(_character_reference, data)
    try:
        return etree.fromstring(named, _parser()), False
    except etree.XMLSyntaxError:
        pass
    try:
        return etree.fromstring(named, _parser(recover=True)), True
    except etree.XMLSyntaxError:
        return None, True


def _parser(recover: bool = False) -> etree.XMLParser:
    options: dict[str, Any] = {
        "load_dtd": False,
        "no_network": True,
        "resolve_entities": "internal",  # never from files; libxml2 bounds their expansion
        "huge_tree": False,
        "remove_comments": True,
        "remove_pis": True,
        "recover": recover,
    }
    return etree.XMLParser(**options)


def _character_reference(match: re.Match[bytes]) -> bytes:
    """`&micro;` as `&#181;`: NLM's DTD, which is not loaded, defines HTML's names and more."""
    text = html.entities.html5.get(match[1].decode("ascii") + ";")
    if text is None or match[1] in _XML_ENTITIES:
        return match[0]
    return b"".join(b"&#%d;" % ord(character) for character in text)


def _tag(element: Element) -> str:
    """Local name; empty for comments, processing instructions and unresolved entities."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _children(element: Element, name: str) -> list[Element]:
    return [child for child in element if _tag(child) == name]


def _descendants(element: Element, name: str) -> Iterator[Element]:
    return element.iter("{*}" + name)


def text_of(element: Element | None) -> str:
    """The text that a reader sees, on one line."""
    parts: list[str] = []
    if element is not None:
        _collect(element, parts)
    return " ".join("".join(parts).split())


def _collect(element: Element, parts: list[str]) -> None:
    # libxml2 refuses more than 256 levels, so the recursion is bounded.
    block = _tag(element) in _BLOCKS
    if block:
        parts.append(" ")
    parts.append(element.text or "")
    for child in element:
        if _tag(child) and _tag(child) not in _SKIPPED:
            _collect(child, parts)
        parts.append(child.tail or "")
    if block:
        parts.append(" ")


def _figures(root: Element) -> Iterator[Figure]:
    figures = list(_descendants(root, "fig"))
    mentions = _mentions(root, [figure.get("id") or "" for figure in figures])
    for figure in figures:
        group = next((a for a in figure.iterancestors() if _tag(a) == "fig-group"), None)
        yield Figure(
            id=figure.get("id") or "",
            label=_joined(figure, "label"),
            caption=_joined(figure, "caption"),
            group_label=_joined(group, "label"),
            group_caption=_joined(group, "caption"),
            graphics=tuple(_graphics(figure)),
            mentions=tuple(mentions.get(figure.get("id") or "", ())),
            sections=tuple(reversed([_joined(a, "title") for a in _ancestors(figure, "sec")])),
            sub_article=next(
                (
                    a.get("article-type") or a.get("response-type") or _tag(a)
                    for a in _ancestors(figure, "sub-article", "response")
                ),
                "",
            ),
            licence=_own_licence(figure),
        )


def _ancestors(element: Element, *names: str) -> list[Element]:
    return [ancestor for ancestor in element.iterancestors() if _tag(ancestor) in names]


def _joined(element: Element | None, name: str) -> str:
    """The text of the children called `name`."""
    if element is None:
        return ""
    return " ".join(filter(None, (text_of(child) for child in _children(element, name))))


def _graphics(element: Element) -> Iterator[tuple[str, ...]]:
    """Pictures of a figure: `<alternatives>` is one picture, each other `<graphic>` is one more."""
    for child in element:
        name = _tag(child)
        if name == "alternatives":
            hrefs = _hrefs(_children(child, "graphic"))
        elif name == "graphic":
            hrefs = _hrefs([child])
        elif name in ("fig", "caption", "label", "permissions", "supplementary-material"):
            continue
        else:
            yield from _graphics(child)
            continue
        if hrefs:
            yield hrefs


def _hrefs(graphics: list[Element]) -> tuple[str, ...]:
    hrefs = []
    for graphic in graphics:
        kind = f"{graphic.get('content-type')} {graphic.get('specific-use')}"
        href = (graphic.get(_HREF) or "").strip()
        if href and not _THUMBNAIL.search(kind):
            hrefs.append(href)
    return tuple(hrefs)


def _mentions(root: Element, ids: list[str]) -> dict[str, list[str]]:
    """For each figure id the paragraphs that cite it; "Figs 2-4" cites figure 3 as well."""
    position = {name: number for number, name in enumerate(ids) if name}
    cited: dict[str, dict[Element, None]] = {}
    for xref in _descendants(root, "xref"):
        names = [name for name in (xref.get("rid") or "").split() if name in position]
        paragraph = next(iter(_ancestors(xref, "p")), None)
        if not names or paragraph is None or _ancestors(xref, "caption"):
            continue
        last = position[names[-1]]
        following = xref.getnext()
        if following is not None and _RANGE.fullmatch(xref.tail or ""):
            end = position.get((following.get("rid") or "").partition(" ")[0], last)
            if last < end <= last + _MAX_RANGE:
                names += ids[last + 1 : end]
        for name in names:
            cited.setdefault(name, {})[paragraph] = None
    texts: dict[Element, str] = {}
    mentions = {}
    for name, paragraphs in cited.items():
        first = list(paragraphs)[:_MAX_MENTIONS]
        for paragraph in first:
            if paragraph not in texts:
                texts[paragraph] = text_of(paragraph)
        mentions[name] = [texts[paragraph] for paragraph in first]
    return mentions


def _own_licence(figure: Element) -> str | None:
    permissions = [*_children(figure, "permissions"), *_children(figure, "copyright-statement")]
    permissions += [p for c in _children(figure, "caption") for p in _children(c, "permissions")]
    return licence_name(_licence_texts(permissions)) if permissions else None


def _licence_texts(elements: list[Element]) -> list[str]:
    """Everything in these elements that may name a licence: attributes, links, paragraphs."""
    texts = []
    for element in elements:
        for part in element.iter(etree.Element):
            texts += [str(value) for value in part.attrib.values()]
        texts.append("".join(str(text) for text in element.itertext()))
    return texts


def read_metadata(root: Element) -> Metadata:
    """The front matter of an `<article>`; of the article itself, not of its sub-articles."""
    front = next(iter(_children(root, "front")), root)
    journal_meta = next(_descendants(front, "journal-meta"), None)
    meta = next(_descendants(front, "article-meta"), front)
    ids = {a.get("pub-id-type", ""): text_of(a) for a in reversed(_children(meta, "article-id"))}
    pmc = ids.get("pmcid") or ids.get("pmc") or ids.get("pmcaid") or ""
    title = next((text_of(t) for t in _descendants(meta, "article-title")), "")
    journal = _first_text(journal_meta, "journal-title", "abbrev-journal-title", "journal-id")
    date = _date(meta)
    return Metadata(
        pmcid=f"PMC{pmc.upper().removeprefix('PMC')}" if pmc else "",
        doi=ids.get("doi", ""),
        pmid=ids.get("pmid", ""),
        title=title,
        journal=journal,
        date=date,
        citation=_citation(meta, title, journal, date),
        article_type=root.get("article-type") or "",
        language=root.get(_LANG) or "en",
        keywords=tuple(filter(None, (text_of(kwd) for kwd in _descendants(meta, "kwd")))),
        licence=licence_name(
            # NLM 2.x names the licence in the copyright statement.
            _licence_texts([*meta.iter("{*}license", "{*}copyright-statement")])
        ),
    )


def _first_text(element: Element | None, *names: str) -> str:
    if element is None:
        return ""
    texts = (text_of(found) for name in names for found in _descendants(element, name))
    return next(filter(None, texts), "")


def _date(meta: Element) -> str:
    """The earliest full publication date; else the earliest year that is given."""
    dates = []
    for found in _children(meta, "pub-date"):
        year, month, day = (_joined(found, part) for part in ("year", "month", "day"))
        parts = [year.zfill(4)] if year.isdecimal() else []
        if parts and month.isdecimal():
            parts += [month.zfill(2)] + ([day.zfill(2)] if day.isdecimal() else [])
        if parts:
            dates.append("-".join(parts))
    return min(dates, key=lambda date: (-len(date), date), default="")


def _citation(meta: Element, title: str, journal: str, date: str) -> str:
    """Authors, title, journal, year, volume and pages, as an attribution needs them."""
    names = []
    for group in _children(meta, "contrib-group"):
        for contributor in _children(group, "contrib"):
            if contributor.get("contrib-type") in (None, "author"):
                surname, given = (_first_text(contributor, n) for n in ("surname", "given-names"))
                name = f"{surname} {given}".strip() or _first_text(contributor, "collab")
                names += [name] if name else []
    authors = ", ".join(names[:6]) + (" et al" if len(names) > 6 else "")
    volume, page = _joined(meta, "volume"), _joined(meta, "fpage") or _joined(meta, "elocation-id")
    where = date[:4] + (f";{volume}" if volume else "") + (f":{page}" if page else "")
    parts = filter(None, (authors, title, journal, where))
    return " ".join(part.rstrip(".") + "." for part in parts)
