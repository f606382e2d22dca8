"""Cutting elements out before parsing, against parsing everything."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from data_prep.pruning import without

NAMES = ("ref-list", "table-wrap")


def reference(data: bytes) -> bytes:
    """The canonical form of a document without these elements, and without white space."""
    root = etree.fromstring(data, etree.XMLParser(remove_comments=True, remove_pis=True))
    for element in root.xpath("//ref-list[not(.//fig)] | //table-wrap[not(.//fig)]"):
        # Outermost first, so what lies in one that is gone has no effect.
        before, parent = element.getprevious(), element.getparent()
        tail = element.tail or ""
        if before is not None:
            before.tail = (before.tail or "") + tail
        else:
            parent.text = (parent.text or "") + tail
        parent.remove(element)
    return b"".join(etree.tostring(root, method="c14n").split())


def element(name: str) -> st.SearchStrategy[str]:
    return PARTS.map(lambda parts: f"<{name}>{''.join(parts)}</{name}>")


LEAVES = st.sampled_from(
    [
        "text", " ", "-", "--&gt;", "!?", "<x/>", "<ref-list/>", "<fig/>",
        "<table-wrap-foot>f</table-wrap-foot>", '<table-wrap id="t">cells</table-wrap>',
        "<ref-list\n>r</ref-list>", "<ref-listing>no</ref-listing>", "<?pi <ref-list> ?>",
        "<!-- <ref-list> -->", "<!-- </ref-list> -->", "<!-- <table-wrap>x</table-wrap> -->",
        "<![CDATA[<ref-list>]]>", "<![CDATA[</table-wrap> --> ?> ]]>", "<!-- ?> ]]> -->",
    ]
)  # fmt: skip
PARTS: st.SearchStrategy[list[str]] = st.deferred(
    lambda: st.lists(
        LEAVES | element("ref-list") | element("table-wrap") | element("p"), max_size=4
    )
)


@settings(max_examples=150)
@given(PARTS)
def test_what_is_left_is_what_would_be_left(parts: list[str]) -> None:
    data = f"<article>{''.join(parts)}</article>".encode()
    assert reference(without(data, NAMES)) == reference(data)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a<ref-list><ref/></ref-list>b", "a b"),
        ('a<ref-list id="1"><ref/></ref-list>b<table-wrap>t</table-wrap>', "a b "),
        ("a<table-wrap>t<table-wrap-foot>f</table-wrap-foot></table-wrap>b", "a b"),
        ("<!-- c -->a<ref-list>r</ref-list>", "<!-- c -->a "),
        ("<table-wrap>t<ref-list>r</ref-list></table-wrap>b", " b"),
        # These stay.
        ("<ref-list><fig/></ref-list>", None),
        ("<ref-list><jats:fig/></ref-list>", None),
        ("<!-- <ref-list> --><p/><!-- </ref-list> -->", None),
        ("<ref-list><!-- </ref-list> --></ref-list>", None),
        ("<ref-list>", None),
        ("<!-- <ref-list></ref-list>", None),
    ],
)
def test_cuts(body: str, left: str | None) -> None:
    data = f"<article>{body}</article>".encode()
    expected = body if left is None else left
    assert without(data, NAMES) == f"<article>{expected}</article>".encode()


def test_only_the_inner_of_nested_elements_goes() -> None:
    data = b"<a><ref-list>1<ref-list>2</ref-list>3</ref-list></a>"
    assert without(data, NAMES) == b"<a><ref-list>1 3</ref-list></a>"


def test_files_that_define_entities_are_left_alone() -> None:
    data = b'<!DOCTYPE a [<!ENTITY e "x">]><a><ref-list>r</ref-list></a>'
    assert without(data, NAMES) == data
    plain = b'<!DOCTYPE a PUBLIC "-//NLM" "a.dtd"><a><ref-list>r</ref-list></a>'
    assert without(plain, NAMES) == plain.replace(b"<ref-list>r</ref-list>", b" ")


def test_other_encodings_are_left_alone() -> None:
    data = "<a><ref-list>r</ref-list></a>".encode("utf-16")
    assert without(data, NAMES) == data


@pytest.mark.parametrize(
    "pattern", ["<ref-list>", "<ref-list><fig/>", "<!---->", "<ref-list><!---->"]
)
@pytest.mark.timeout(20)
def test_hostile_files_take_no_longer_than_others(pattern: str) -> None:
    data = b"<a>" + pattern.encode() * 300_000 + b"</ref-list>" * 300_000 + b"</a>"
    assert len(without(data, NAMES)) > 1_000_000
