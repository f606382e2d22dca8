"""Text of PubMed's baseline and of JATS articles, read safely: no DTD, no network, bounded.

Entities that only the DTD would define are HTML's in nearly all files, and are read as such.
"""

import html
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from lxml import etree

from vlp.config import UserError
from vlp.text.documents import Document, Section, Tally

Element = etree._Element

_OPTIONS: dict[str, Any] = {
    "load_dtd": False,
    "no_network": True,
    "resolve_entities": False,  # a file's own entities can't grow, nor read other files
    "huge_tree": False,  # libxml2's bounds on depth (256) and on the length of a text
    "remove_comments": True,
    "remove_pis": True,
}

FORMULA = "[formula]"

# Not running text. Reference numbers set high would be glued to words: "cells12".
_FLOATS = {"fig", "fig-group", "table-wrap", "table-wrap-group", "ref-list", "graphic", "media"}
_FLOATS |= {"inline-graphic", "supplementary-material", "fn", "object-id", "sub-article"}
_FORMULAS = {"inline-formula", "disp-formula", "chem-struct-wrap", "math", "tex-math"}
_NO_PARAGRAPHS = _FLOATS | {"title", "label"}


def read_pubmed(stream: IO[bytes], where: str, tally: Tally) -> Iterator[Document]:
    """Title and abstract of each citation of a baseline or update file, one at a time.

    A labelled part of an abstract is a section of its label's name. Citations without an abstract
    have their title only.

    Raises:
        UserError: the file is not the XML of PubMed, or ends too early.
    """
    found = False
    try:
        for _, citation in etree.iterparse(stream, tag="PubmedArticle", **_OPTIONS):
            found = True
            document = _citation(citation)
            if document is None:
                tally.bad(f"{where}:{citation.sourceline}", "citation without PMID")
            else:
                yield document
            # The parser keeps the tree: what was read must go, or the file is in memory at last.
            citation.clear()
            while (before := citation.getprevious()) is not None:
                citation.getparent().remove(before)
    except etree.XMLSyntaxError as error:
        raise UserError(f"{where}: not readable as XML: {error}; fetch it again") from None
    if not found:
        raise UserError(f"{where}: no <PubmedArticle> in it; set another kind")


def _citation(citation: Element) -> Document | None:
    pmid = (citation.findtext("MedlineCitation/PMID") or "").strip()
    if not pmid:
        return None
    article = citation.find("MedlineCitation/Article")
    sections: dict[str, list[str]] = {}
    if article is not None:
        title = text_of(article.find("ArticleTitle"))
        sections["title"] = [title]
        for part in article.iterfind("Abstract/AbstractText"):
            name = (part.get("Label") or "abstract").strip().lower()
            sections.setdefault(name, []).append(text_of(part))
    return Document(f"pmid:{pmid}", _sections(sections))


def read_jats(data: bytes, file: Path, tally: Tally) -> Iterator[Document]:
    """Title, abstract and the body's sections of each article in a JATS (or NLM 2.x) file.

    The body's outermost sections are sections by their titles. Floats, references and translations
    (sub-articles) are left out, formulas read `[formula]`.
    """
    try:
        root = etree.fromstring(data, etree.XMLParser(**_OPTIONS))
    except (etree.XMLSyntaxError, ValueError):
        tally.bad(str(file), "XML not readable")
        return
    articles = [root] if _name(root) == "article" else list(root.iter("{*}article"))
    if not articles:
        tally.bad(str(file), "no <article> in the XML")
    for number, article in enumerate(articles):
        yield _article(article, file.name if len(articles) == 1 else f"{file.name}#{number + 1}")


def _article(article: Element, name: str) -> Document:
    meta = next(article.iter("{*}article-meta"), None)
    sections: dict[str, list[str]] = {}
    identity = name
    if meta is not None:
        ids = {e.get("pub-id-type", ""): text_of(e) for e in meta.iterchildren("{*}article-id")}
        pmcid = ids.get("pmcid") or ids.get("pmc")
        identity = pmcid or ids.get("doi") or ids.get("pmid") or name
        if pmcid and pmcid.isdecimal():
            identity = f"PMC{pmcid}"
        title = next(meta.iter("{*}article-title"), None)
        sections["title"] = [text_of(title)]
        for abstract in meta.iterchildren("{*}abstract"):
            if not abstract.get("abstract-type"):  # graphical, teaser, ...
                sections.setdefault("abstract", []).extend(_paragraphs(abstract))
    for body in article.iterchildren("{*}body"):
        for child in body:
            title = next(child.iterchildren("{*}title"), None) if _name(child) == "sec" else None
            heading = text_of(title).lower() or "body"
            paragraphs = [text_of(child)] if _name(child) == "p" else _paragraphs(child)
            sections.setdefault(heading, []).extend(paragraphs)
    return Document(identity, _sections(sections))


def _sections(found: dict[str, list[str]]) -> tuple[Section, ...]:
    texts = {name: "\n".join(filter(None, parts)) for name, parts in found.items()}
    return tuple(Section(name, text) for name, text in texts.items() if text)


def _paragraphs(element: Element) -> Iterable[str]:
    """The texts of the outermost paragraphs below an element, without titles and floats."""
    for child in element:
        name = _name(child)
        if name == "p":
            yield text_of(child)
        elif name and name not in _NO_PARAGRAPHS:
            yield from _paragraphs(child)


def text_of(element: Element | None) -> str:
    """The running text of an element, on one line."""
    if element is None:
        return ""
    parts: list[str] = []
    _collect(element, parts)
    return " ".join("".join(parts).split())


def _collect(element: Element, parts: list[str]) -> None:
    parts.append(element.text or "")
    for child in element:
        name = _name(child)
        if isinstance(child, etree._Entity):
            parts.append(html.unescape(child.text or ""))
        elif name in _FORMULAS:
            parts.append(f" {FORMULA} ")
        elif name == "p" or name in ("list", "list-item", "break"):
            parts.append(" ")
            _collect(child, parts)
            parts.append(" ")
        elif name and name not in _FLOATS and not _is_reference(child, name):
            _collect(child, parts)
        parts.append(child.tail or "")


def _is_reference(element: Element, name: str) -> bool:
    if name != "sup":
        return False
    return any(xref.get("ref-type") == "bibr" for xref in element.iterchildren("{*}xref"))


def _name(element: Element) -> str:
    """The tag without namespace; empty for entities."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
