"""Which paragraphs cite which figures."""

import pytest

from data_prep.jats import parse_article
from tests.data_prep.factories import article_xml


def fig(name: str, label: str = "") -> str:
    caption = "<caption><p>c</p></caption>"
    return f"<fig id='{name}'><label>{label or name}</label>{caption}</fig>"


def cited(body: str) -> dict[str, int]:
    """The number of mentions of each figure that has any."""
    found = parse_article(article_xml(body)).figures
    return {figure.id: len(figure.mentions) for figure in found if figure.mentions}


FIVE = "".join(fig(f"f{n}", f"Figure {n}.") for n in range(1, 6))


@pytest.mark.parametrize(
    ("paragraph", "numbers"),
    [
        ("<xref rid='f1'>Fig. 1</xref>", "1"),
        ("<bold><xref rid='f1'>Fig. 1</xref></bold>", "1"),
        ("<xref rid='f1 f3'>Figs 1 and 3</xref>", "13"),
        ("<xref rid='f2'>Fig. 2</xref>–<xref rid='f4'>4</xref>", "234"),
        ("<xref rid='f2'>Fig. 2</xref> to <xref rid='f4'>4</xref>", "234"),
        ("<xref rid='f2'>Fig. 2</xref>, <xref rid='f4'>4</xref>", "24"),
        ("<xref rid='f4'>Fig. 4</xref>-<xref rid='f2'>2</xref>", "24"),
        ("<xref rid='f2'>Figs 2–4</xref>", "234"),
        ("<xref rid='f2 f4'>Figs 2-4</xref>", "234"),
        ("<xref rid='f2'>Figs 2A–4C</xref>", "234"),
        ("<xref rid='f2'>Fig. 2A–C</xref>", "2"),
        ("<xref rid='f1'>Figs 1–400</xref>", "1"),
        ("<xref rid='b1'>1</xref>–<xref rid='f3'>Fig. 3</xref>", "3"),
        ("<xref>Fig. 1</xref>", ""),
        ("<xref rid=''>Fig. 1</xref>", ""),
    ],
)
def test_references(paragraph: str, numbers: str) -> None:
    assert cited(f"<p>{paragraph}</p>{FIVE}") == {f"f{n}": 1 for n in numbers}


def test_a_paragraph_counts_once_and_the_innermost_counts() -> None:
    body = "<p><xref rid='f1'>1</xref> <xref rid='f1'>1</xref></p>"
    body += "<p>Outer<list><list-item><p><xref rid='f2'>2</xref> inner</p></list-item></list></p>"
    figures = parse_article(article_xml(body + FIVE)).figures
    assert [f.mentions for f in figures[:3]] == [("1 1",), ("2 inner",), ()]


def test_captions_and_tables_are_no_mentions() -> None:
    xref = "<p><xref rid='f1'>1</xref></p>"
    body = f"<table-wrap><caption>{xref}</caption><table><tr><td>{xref}</td></tr></table>"
    body += f"</table-wrap><fig id='f9'><caption>{xref}</caption></fig>"
    assert cited(body + FIVE) == {}


def test_supplements_are_not_in_the_range_of_figures() -> None:
    supplement = fig("s1", "Figure 2—figure supplement 1.")
    body = "<p><xref rid='f1'>Figs 1</xref>-<xref rid='f3'>3</xref></p>"
    assert cited(body + FIVE + supplement) == {"f1": 1, "f2": 1, "f3": 1}
    body = f"<p><xref rid='f1'>Figs 1-3</xref></p>{fig('f1', 'Fig 1')}{supplement}"
    assert cited(body + fig("f2", "Fig. 2") + fig("f3", "FIG 3")) == {"f1": 1, "f2": 1, "f3": 1}


def test_a_reference_to_a_group_cites_its_figures() -> None:
    body = f"<p><xref rid='g'>Fig. 3</xref></p><fig-group id='g'>{fig('a')}{fig('b')}</fig-group>"
    assert cited(body) == {"a": 1, "b": 1}


def test_ranges_stay_within_a_translation() -> None:
    body = f"<p><xref rid='f1'>Figs 1-3</xref></p>{FIVE}"
    other = FIVE.replace("id='f", "id='g")
    data = article_xml(body).replace(
        b"</article>", f"<sub-article><body>{other}</body></sub-article></article>".encode()
    )
    found = {f.id for f in parse_article(data).figures if f.mentions}
    assert found == {"f1", "f2", "f3"}


def test_without_labels_a_range_goes_by_place() -> None:
    body = "<p><xref rid='a'>x</xref>-<xref rid='c'>z</xref></p>"
    assert cited(body + fig("a", " ") + fig("b", " ") + fig("c", " ")) == {"a": 1, "b": 1, "c": 1}


def test_mentions_are_bounded() -> None:
    body = "".join(f"<p>{n} <xref rid='f1'>1</xref></p>" for n in range(30))
    assert cited(body + FIVE) == {"f1": 20}
