"""The JATS parser: hazards first, then every figure of the real articles."""

import json
import re
from pathlib import Path

import pytest

from data_prep.jats import Article, JatsError, NotAnArticle, parse_article
from tests.data_prep.factories import article_xml, figure
from tests.real_data import real_data

FORMULA = (
    "<inline-formula><alternatives><tex-math>\\documentclass{x}$x^2$</tex-math>"
    "<mml:math><mml:mi>x</mml:mi><mml:mn>2</mml:mn></mml:math></alternatives></inline-formula>"
)


def parse(body: str, head: str = "") -> Article:
    return parse_article(article_xml(body, head=head))


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("<title>A title.</title><p>A sentence.</p>", "A title. A sentence."),
        ("<p>One.</p><p>Two.</p>", "One. Two."),
        ("<p>Effect on <italic>B. <bold>subtilis</bold></italic> cells</p>",
         "Effect on B. subtilis cells"),
        (f"<p>Mean of {FORMULA} in vivo</p>", "Mean of x2 in vivo"),
        ("<p>Legend:</p><list><list-item><p>A first</p></list-item><list-item><p>B second</p>"
         "</list-item></list>", "Legend: A first B second"),
        ("<p>One <?Pub Caret?>two<!-- c --> three.</p>", "One two three."),
        ("<p>10<sup>3</sup> cells (<xref ref-type='bibr' rid='b'>Lee, 2001</xref>)</p>",
         "103 cells (Lee, 2001)"),
        ("<p>An icon <inline-graphic xlink:href='i'/> here</p>", "An icon here"),
        ("<p>Text.</p><permissions><copyright-statement>(c) X</copyright-statement>"
         "</permissions>", "Text."),
        ("", ""),
    ],
)  # fmt: skip
def test_caption_text(caption: str, text: str) -> None:
    (found,) = parse(figure(caption=caption)).figures
    assert found.caption == text


def test_a_figure_without_caption_does_not_take_anothers() -> None:
    article = parse(figure("F1") + figure("F2", caption=""))
    assert [f.caption for f in article.figures] == ["Section of the liver.", ""]


def test_figure_without_id() -> None:
    (found,) = parse("<fig><caption><p>A graph.</p></caption></fig>").figures
    assert (found.id, found.caption, found.graphics) == ("", "A graph.", ())


@pytest.mark.parametrize(
    ("graphic", "graphics"),
    [
        ('<graphic position="float" xlink:href="a.jpg"/>', (("a.jpg",),)),
        ('<graphic xlink:href="a1"/><graphic xlink:href="a2"/>', (("a1",), ("a2",))),
        ('<alternatives><graphic xlink:href="a.tif"/><graphic xlink:href="a.jpg"/></alternatives>',
         (("a.tif", "a.jpg"),)),
        ('<alternatives><graphic content-type="thumb" xlink:href="a.gif"/>'
         '<graphic content-type="image" xlink:href="a.webp"/></alternatives>', (("a.webp",),)),
        ('<graphic xlink:href="a.jpg"><?image-name a.jpg?><?image-size 97536?></graphic>',
         (("a.jpg",),)),
        ('<p><graphic xlink:href="a"/></p>', (("a",),)),
        ('<graphic xlink:href="O\'Neil g001"/>', (("O'Neil g001",),)),
        ('<media xlink:href="v.mp4"/>', ()),
        ("<graphic/>", ()),
    ],
)  # fmt: skip
def test_graphics(graphic: str, graphics: tuple[tuple[str, ...], ...]) -> None:
    (found,) = parse(figure(graphic=graphic)).figures
    assert found.graphics == graphics


def test_figure_group() -> None:
    group = (
        "<fig-group id='G'><label>Figure 3</label><caption><p>About both.</p></caption>"
        f"{figure('F1', '<p>Panel A.</p>')}{figure('F2', '')}</fig-group>"
    )
    first, second = parse(group).figures
    assert (first.caption, first.group_caption, first.group_label) == (
        "Panel A.", "About both.", "Figure 3",
    )  # fmt: skip
    assert (second.caption, second.group_caption) == ("", "About both.")


def test_mentions_by_several_ids_ranges_and_nested_references() -> None:
    body = (
        '<p>See <xref ref-type="fig" rid="F1">Fig. 1</xref>&#8211;'
        '<xref ref-type="fig" rid="F3">3</xref>.</p>'
        '<p>And <bold><xref ref-type="fig" rid="F2 F4">2, 4</xref></bold>.</p>'
        '<p>Not <xref ref-type="table" rid="T1">Table 1</xref>.</p>'
    )
    body += "".join(figure(f"F{n}") for n in range(1, 5))
    body += figure("F5", '<p>As <xref ref-type="fig" rid="F1">Fig. 1</xref>.</p>')
    mentions = {f.id: list(f.mentions) for f in parse(body).figures}
    assert mentions == {
        "F1": ["See Fig. 1–3."],
        "F2": ["See Fig. 1–3.", "And 2, 4."],
        "F3": ["See Fig. 1–3."],
        "F4": ["And 2, 4."],
        "F5": [],
    }


def test_a_paragraph_around_a_figure_is_quoted_without_the_caption() -> None:
    body = f'<p>See <xref ref-type="fig" rid="F1">1</xref>. {figure("F1")} More.</p>'
    assert parse(body).figures[0].mentions == ("See 1. More.",)


def test_sections_and_sub_articles() -> None:
    body = f"<sec><title>Results</title><sec><title>Mice</title>{figure()}</sec></sec>"
    reply = f"<sub-article article-type='reply'><body>{figure('R1')}</body></sub-article>"
    data = article_xml(body).replace(b"</article>", f"{reply}</article>".encode())
    first, second = parse_article(data).figures
    assert first.sections == ("Results", "Mice")
    assert (first.sub_article, second.sub_article) == ("", "reply")


def test_metadata() -> None:
    ids = {"pmc": "123", "doi": "10.1/x", "pmid": "99"}
    extra = (
        "<contrib-group><contrib contrib-type='author'><name><surname>Curie</surname>"
        "<given-names>M</given-names></name></contrib></contrib-group>"
        "<pub-date><year>2020</year></pub-date>"
        "<pub-date><day>5</day><month>7</month><year>2021</year></pub-date><volume>3</volume>"
        "<kwd-group><kwd>liver</kwd><kwd>mouse</kwd></kwd-group></article-meta>"
    )
    data = article_xml("", ids).replace(b"</article-meta>", extra.encode())
    meta = parse_article(data).metadata
    assert (meta.pmcid, meta.doi, meta.pmid) == ("PMC123", "10.1/x", "99")
    assert (meta.title, meta.journal, meta.date) == ("A title", "Journal", "2021-07-05")
    assert (meta.article_type, meta.keywords) == ("research-article", ("liver", "mouse"))
    assert meta.citation == "Curie M. A title. Journal. 2021;3."
    assert meta.licence == "CC BY 4.0"


@pytest.mark.parametrize(
    ("permissions", "licence"),
    [
        ("", None),
        ("<permissions><copyright-statement>© Elsevier</copyright-statement></permissions>", ""),
        ("<permissions><license xlink:href='http://creativecommons.org/licenses/by-nc/4.0/'/>"
         "</permissions>", "CC BY-NC 4.0"),
    ],
)  # fmt: skip
def test_licence_of_a_figure(permissions: str, licence: str | None) -> None:
    (found,) = parse(figure(graphic=permissions)).figures
    assert found.licence == licence


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8"])
def test_encodings(encoding: str) -> None:
    text = article_xml(figure(caption="<p>Müller.</p>")).decode()
    name = "iso-8859-1" if encoding == "latin-1" else encoding
    data = f'<?xml version="1.0" encoding="{name}"?>{text}'.encode(encoding)
    assert parse_article(data).figures[0].caption == "Müller."


DOCTYPE = '<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96)//EN" "JATS-archivearticle1.dtd">'


@pytest.mark.parametrize("head", ["", DOCTYPE])
def test_entities_that_only_the_dtd_defines(head: str) -> None:
    article = parse(figure(caption="<p>5 &micro;m, p &lt; 0.05, &alpha;</p>"), head=head)
    assert article.figures[0].caption == "5 µm, p < 0.05, α"
    assert not article.recovered


def test_external_entities_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("TOPSECRET")
    head = f'<!DOCTYPE article [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>'
    article = parse(figure(caption="<p>leak: &x;</p>"), head=head)
    assert article.figures[0].caption == "leak:"


def test_external_dtds_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "evil.dtd").write_text('<!ENTITY x "TOPSECRET">')
    head = f'<!DOCTYPE article SYSTEM "file://{tmp_path}/evil.dtd">'
    article = parse(figure(caption="<p>leak: &x;</p>"), head=head)
    assert "TOPSECRET" not in article.figures[0].caption


def test_entity_expansion_is_bounded() -> None:
    entities = '<!ENTITY a0 "lol">'
    for level in range(1, 10):
        content = f"&a{level - 1};" * 10
        entities += f'<!ENTITY a{level} "{content}">'
    article = parse(figure(caption="<p>&a9;</p>"), head=f"<!DOCTYPE article [{entities}]>")
    assert sum(len(f.caption) for f in article.figures) < 1_000_000


def test_depth_is_bounded() -> None:
    deep = "<bold>" * 100_000 + "x" + "</bold>" * 100_000
    assert parse(figure(caption=f"<p>{deep}</p>")).recovered


def test_broken_xml_is_mended_and_flagged() -> None:
    article = parse(figure(caption="<p>An <italic>open tag.</p>"))
    assert article.recovered
    assert article.figures[0].caption.startswith("An open tag.")


def test_default_namespace_and_articleset() -> None:
    data = article_xml(figure())
    named = data.replace(b"<article ", b'<article xmlns="http://jats.nlm.nih.gov" ')
    for wrapped in (named, b"<pmc-articleset>" + data + b"</pmc-articleset>"):
        assert parse_article(wrapped).figures[0].caption == "Section of the liver."


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", JatsError, "XML not readable"),
        (b"\x89PNG", JatsError, "XML not readable"),
        (b"<manifest/>", NotAnArticle, "XML of another kind: <manifest>"),
        (b"<set><article/><article/></set>", JatsError, "2 articles in one file"),
    ],
)
def test_what_is_no_article(data: bytes, error: type[JatsError], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_article(data)


def test_real_figures_with_images() -> None:
    """Ids, labels, hrefs and captions of 109 figures.

    The reference glues titles to paragraphs and quotes the DOIs of figures' data files.
    """
    root = real_data("jats_with_images")
    expected: dict[str, list[dict[str, str]]] = {}
    for line in (root / "index.jsonl").read_text().splitlines():
        row = json.loads(line)
        expected.setdefault(row["xml"], []).append(row)
    count = 0
    for path, rows in expected.items():
        article = parse_article((root / path).read_bytes())
        assert not article.recovered
        assert len(article.figures) == len(rows)
        for found, row in zip(article.figures, rows, strict=True):
            assert (found.id, found.label) == (row["fig_id"], row["label"] or "")
            assert [h for hrefs in found.graphics for h in hrefs] == row["graphic_href"]
            reference = re.sub(r"10\.7554/eLife\.\d+\.\d{3}", "", row["text"])
            assert "".join(found.caption.split()) == "".join(reference.split())
            count += 1
    assert count == 109


LICENCES = {"CC BY (text)": "CC BY", "CC0/PD": "CC0 1.0", "BMC-OA-verbatim": ""}


def test_real_articles() -> None:
    """Counts, identifiers and licences of 192 articles, NLM 2.x to JATS 1.4."""
    root = real_data("jats_xml")
    figures = 0
    for line in (root / "index.jsonl").read_text().splitlines():
        row = json.loads(line)
        article = parse_article((root / row["path"]).read_bytes())
        captions = sum(bool(f.caption) for f in article.figures)
        assert (len(article.figures), captions) == (row["n_fig"], row["n_caption"]), row["path"]
        assert row["doi"].startswith(article.metadata.doi.lower())
        licence = LICENCES.get(row["license"], row["license"])
        assert article.metadata.licence in (licence, "PDM 1.0"), row["path"]
        figures += len(article.figures)
    assert figures == 1265
