"""The JATS parser on small articles; test_real_articles.py has the real ones."""

from pathlib import Path

import pytest

from data_prep.front_matter import Metadata
from data_prep.jats import Article, JatsError, NotAnArticle, identify, parse_article
from tests.data_prep.factories import article_xml, figure


def parse(body: str, head: str = "") -> Article:
    return parse_article(article_xml(body, head=head))


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
        ('<graphic href="a.jpg"/>', (("a.jpg",),)),
        ('<alternatives><graphic xlink:href="a.tif"/><graphic content-type="scielo-267x140" '
         'xlink:href="b.jpg"/></alternatives>', (("a.tif",),)),
        ('<alternatives><graphic specific-use="thumbnail" xlink:href="a.gif"/></alternatives>', ()),
        ('<attrib>Logo <graphic xlink:href="logo"/></attrib>', ()),
        ('<disp-formula><graphic xlink:href="e1"/></disp-formula>', ()),
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


def test_several_articles_in_one_file() -> None:
    parts = [article_xml(figure(caption=f"<p>Figure {n}.</p>"), {"pmc": str(n)}) for n in (1, 2)]
    data = b"<pmc-articleset>" + b"".join(parts) + b"</pmc-articleset>"
    articles = [parse_article(data, number) for number in (0, 1)]
    assert [a.metadata.pmcid for a in articles] == ["PMC1", "PMC2"]
    assert [f.caption for a in articles for f in a.figures] == ["Figure 1.", "Figure 2."]
    assert [m.pmcid for m in identify(data)] == ["PMC1", "PMC2"]
    with pytest.raises(JatsError, match=r"^article 3 of the file is missing$"):
        parse_article(data, 2)


def test_identify_reads_no_further_than_the_front_matter() -> None:
    data = article_xml("", {"pmc": "7", "doi": "10.1/x", "pmcid-ver": "PMC7.3"})
    (found,) = identify(data[: data.index(b"</front>")] + b"<<<" + b"x" * 100_000)
    assert (found.pmcid, found.version, found.doi) == ("PMC7", 3, "10.1/x")


@pytest.mark.parametrize("pad", [0, 20_000])
def test_identify_agrees_with_parse_article(pad: int) -> None:
    ids = {"pmc": "7", "doi": "10.1/&eacute;", "pmid": "9"}
    head = f"<!-- {'x' * pad} -->"
    data = article_xml(figure(), ids, head=head)
    meta = parse_article(data).metadata
    assert identify(data) == [Metadata(pmcid=meta.pmcid, doi=meta.doi, pmid=meta.pmid)]
    assert meta.doi == "10.1/é"


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


def test_a_floating_figure_has_the_sections_of_its_first_mention() -> None:
    body = "<sec><title>Mice</title><p><xref rid='F1'>Fig. 1</xref></p></sec>"
    data = article_xml(body).replace(
        b"</article>", f"<floats-group>{figure()}</floats-group></article>".encode()
    )
    (found,) = parse_article(data).figures
    assert found.sections == ("Mice",)


def test_language_is_that_of_the_sub_article() -> None:
    other = (
        "<sub-article article-type='translation' xml:lang='pt'>"
        f"<body>{figure('F1pt')}</body></sub-article>"
    )
    data = article_xml(figure()).replace(b"</article>", f"{other}</article>".encode())
    data = data.replace(b"<article ", b'<article xml:lang="EN" ')
    assert [f.language for f in parse_article(data).figures] == ["en", "pt"]


@pytest.mark.parametrize(
    ("pub_date", "date"),
    [
        ("<pub-date><year>2020</year><month>Sept</month><day>3</day></pub-date>", "2020-09-03"),
        ("<pub-date><year>2020</year><month>13</month><day>3</day></pub-date>", "2020"),
        ("<pub-date><year>2020</year><month>2</month><day>40</day></pub-date>", "2020-02"),
        ("<pub-date iso-8601-date='2019-01-02'><year>2019</year></pub-date>", "2019-01-02"),
        ("<pub-date pub-type='pmc-release'><year>2021</year><month>1</month><day>1</day></pub-date>"
         "<pub-date pub-type='ppub'><year>2020</year><month>7</month></pub-date>", "2020-07"),
        ("<pub-date><season>Spring</season><year>in 2020</year></pub-date>", ""),
    ],
)  # fmt: skip
def test_dates(pub_date: str, date: str) -> None:
    data = article_xml("").replace(b"</article-meta>", f"{pub_date}</article-meta>".encode())
    assert parse_article(data).metadata.date == date


def test_metadata() -> None:
    ids = {"pmc": "123", "doi": "10.1/x", "pmid": "99"}
    extra = (
        "<contrib-group><contrib contrib-type='author'><name><surname>Curie</surname>"
        "<given-names>M</given-names></name></contrib></contrib-group>"
        "<pub-date><year>2020</year></pub-date>"
        "<pub-date><day>5</day><month>7</month><year>2021</year></pub-date><volume>3</volume>"
        "<kwd-group><kwd>liver</kwd><kwd>mouse</kwd></kwd-group>"
        "<kwd-group kwd-group-type='MeSH'><kwd>Liver Diseases</kwd></kwd-group>"
        "<kwd-group kwd-group-type='abbreviations'><kwd>LD</kwd></kwd-group></article-meta>"
    )
    data = article_xml("", ids).replace(b"</article-meta>", extra.encode())
    meta = parse_article(data).metadata
    assert (meta.language, meta.mesh) == ("", ("Liver Diseases",))
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
        ("<graphic><permissions><copyright-statement>© X</copyright-statement></permissions>"
         "</graphic>", ""),
        ("<attrib>Reprinted from [3] with permission from Elsevier.</attrib>", ""),
        ("<attrib>Reprinted from [3] under a CC BY license, with permission from X.</attrib>",
         "CC BY"),
        ("<attrib>Photograph: the authors.</attrib>", None),
    ],
)  # fmt: skip
def test_licence_of_a_figure(permissions: str, licence: str | None) -> None:
    (found,) = parse(figure(graphic=permissions)).figures
    assert found.licence == licence


def test_licence_of_a_group_is_that_of_its_figures() -> None:
    notice = "<permissions><copyright-statement>© X</copyright-statement></permissions>"
    article = parse(f"<fig-group>{notice}{figure('F1')}</fig-group>{figure('F2')}")
    assert [f.licence for f in article.figures] == ["", None]


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
    ],
)
def test_what_is_no_article(data: bytes, error: type[JatsError], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_article(data)
