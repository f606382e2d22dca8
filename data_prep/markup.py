"""XML that came from elsewhere: read safely, and walked by local names.

JATS is found with and without a namespace, so names are compared without it.
"""

import html.entities
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from lxml import etree

from data_prep.pruning import without

Element = etree._Element

_ENTITY = re.compile(rb"&([A-Za-z][A-Za-z0-9]*);")
_XML_ENTITIES = {b"amp", b"lt", b"gt", b"quot", b"apos"}


def parse_xml(data: bytes, unread: Sequence[str] = ()) -> tuple[Element | None, bool]:
    """The root element, None for what is no XML, and whether libxml2 had to mend the file.

    Strict at first; then with HTML's entity names replaced; then with libxml2's repair. No DTD is
    loaded, no link followed, and entities expand within libxml2's own bound.

    Args:
        data: the file.
        unread: elements that the caller does not look into; they may be missing from the tree.
    """
    try:
        root = etree.fromstring(without(data, unread), safe_parser())
        # Without a DOCTYPE an undefined entity is an error already.
        if b"<!DOCTYPE" not in data or next(root.iter(etree.Entity), None) is None:
            return root, False
    except etree.XMLSyntaxError:
        pass  # the next attempts are for such files
    named = _ENTITY.sub(_character_reference, data)
    try:
        return etree.fromstring(named, safe_parser()), False
    except etree.XMLSyntaxError:
        pass
    try:
        return etree.fromstring(named, safe_parser(recover=True)), True
    except etree.XMLSyntaxError:
        return None, True


@lru_cache
def safe_parser(recover: bool = False) -> etree.XMLParser:
    """A parser for hostile files; making one takes as long as parsing a short file."""
    return etree.XMLParser(**parser_options(), recover=recover)


def parser_options() -> dict[str, Any]:
    """What makes lxml's parsers safe.

    `collect_ids` must stay at its default: with False lxml 6 makes libxml2 ask for the DTD.
    """
    return {
        "load_dtd": False,
        "no_network": True,
        "resolve_entities": "internal",  # never from files; libxml2 bounds their expansion
        "huge_tree": False,
        "remove_comments": True,
        "remove_pis": True,
    }


def _character_reference(match: re.Match[bytes]) -> bytes:
    """`&micro;` as `&#181;`: NLM's DTD, which is not loaded, defines HTML's names and more."""
    text = html.entities.html5.get(match[1].decode("ascii") + ";")
    if text is None or match[1] in _XML_ENTITIES:
        return match[0]
    return b"".join(b"&#%d;" % ord(character) for character in text)


def local_name(element: Element) -> str:
    """The tag without namespace; empty for comments, instructions and unresolved entities."""
    return name_of(element.tag)


@lru_cache(maxsize=4096)
def name_of(tag: Any) -> str:
    """`local_name` of an element with this tag."""
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def children(element: Element, *names: str) -> Iterator[Element]:
    """The children called one of `names`, in any namespace."""
    return element.iterchildren(*("{*}" + name for name in names))


def descendants(element: Element, *names: str) -> Iterator[Element]:
    """`element` and what is below it, where it is called one of `names`; in document order."""
    return element.iter(*("{*}" + name for name in names))


def ancestor(element: Element, *names: str) -> Element | None:
    """The nearest ancestor called one of `names`."""
    return next(element.iterancestors(*("{*}" + name for name in names)), None)
