"""The text of elements as a reader sees it."""

import pytest
from lxml import etree

from data_prep.running_text import text_of

HEAD = (
    '<p xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML">'
)
TEX = "<tex-math>\\documentclass{x}\\begin{document}$x^2$\\end{document}</tex-math>"
MATH = "<mml:math><mml:msup><mml:mi>x</mml:mi><mml:mn>2</mml:mn></mml:msup></mml:math>"
PICTURE = '<inline-graphic xlink:href="e1.gif"/>'


def text(markup: str) -> str:
    parser = etree.XMLParser(remove_comments=True, remove_pis=True)
    return text_of(etree.fromstring(f"{HEAD}{markup}</p>", parser))


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("<title>A title.</title><p>A sentence.</p>", "A title. A sentence."),
        ("<p>One.</p><p>Two.</p>", "One. Two."),
        ("Of <italic>B. <bold>subtilis</bold></italic> cells", "Of B. subtilis cells"),
        ("<italic>in\n  vivo</italic>\u00a0and\u2009in\tvitro ", "in vivo and in vitro"),
        ("Legend:<list><list-item><label>A</label><p>first</p></list-item>"
         "<list-item><p>second</p></list-item></list>", "Legend: A first second"),
        ("<def-list><def-item><term>AB</term><def><p>antibody</p></def></def-item></def-list>",
         "AB antibody"),
        ("One <?Pub Caret?>two<!-- c --> three.", "One two three."),
        ("End.<break/>Begin", "End. Begin"),
        ("a&lt;b &amp; c", "a<b & c"),
        ("Text.<permissions><copyright-statement>(c) X</copyright-statement></permissions>",
         "Text."),
        ("See<fig><caption><p>Not this.</p></caption></fig>there", "See there"),
        ("x<table-wrap><table><tr><td>1</td></tr></table></table-wrap>y", "x y"),
        ("x<media xlink:href='v.mp4'><label>Video</label></media>y", "x y"),
        ("<named-content content-type='gene'><object-id>1</object-id>BRCA2</named-content>",
         "BRCA2"),
    ],
)  # fmt: skip
def test_text(markup: str, expected: str) -> None:
    assert text(markup) == expected


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        # Plain, as everybody writes it...
        ("CO<sub>2</sub>, mm<sup>2</sup>, Ca<sup>2+</sup>, <sup>13</sup>C", "CO2, mm2, Ca2+, 13C"),
        ("the 1<sup>st</sup> of GFP<sup>+</sup> cells", "the 1st of GFP+ cells"),
        ("mice<sup><xref rid='b1'>12</xref>,<xref rid='b2'>13</xref></sup>", "mice12,13"),
        # ... but a number must not become another one.
        ("10<sup>3</sup> cells", "10^3 cells"),
        ("5 × 10<sup>−<italic>6</italic></sup> M", "5 × 10^−6 M"),
        ("10<sup> -6</sup>", "10^-6"),
        ("<bold>10</bold><sup>6</sup>", "10^6"),
        ("χ<sub>21</sub><sup>2</sup>", "χ21^2"),
        ("base 10<sub>2</sub>", "base 10_2"),
    ],
)  # fmt: skip
def test_scripts(markup: str, expected: str) -> None:
    assert text(markup) == expected


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        # MathML wins over its TeX and picture twins, wherever they stand.
        (f"Mean of <inline-formula><alternatives>{TEX}{MATH}</alternatives></inline-formula> here",
         "Mean of x2 here"),
        (f"Mean of <inline-formula>{MATH}{PICTURE}</inline-formula> here", "Mean of x2 here"),
        (f"Mean of {MATH} here", "Mean of x2 here"),
        ("<inline-formula><mml:math><mml:semantics><mml:mi>y</mml:mi><mml:annotation "
         "encoding='TeX'>\\frac{y}</mml:annotation></mml:semantics></mml:math></inline-formula>",
         "y"),
        ("<inline-formula><alternatives><tex-math>y</tex-math><textual-form>y<sub>0</sub>"
         "</textual-form></alternatives></inline-formula>", "y0"),
        # Without MathML a mark keeps its place, set off from words; TeX source never shows.
        (f"where <inline-formula>{TEX}</inline-formula> is small", "where [formula] is small"),
        (f"where<inline-formula>{PICTURE}</inline-formula>is small", "where [formula] is small"),
        (f"(<inline-formula>{PICTURE}</inline-formula>)", "([formula])"),
        (f"<inline-formula><alternatives>{TEX}{PICTURE}</alternatives></inline-formula>",
         "[formula]"),
        (f"<inline-formula>n = {TEX}</inline-formula>", "n = [formula]"),
        ("as <inline-formula/> shows", "as [formula] shows"),
        ("as <inline-formula><mml:math/></inline-formula> shows", "as [formula] shows"),
        (f"raw {TEX} here", "raw [formula] here"),
        ("in:<disp-formula><label>(3)</label><graphic xlink:href='e'/></disp-formula>where",
         "in: (3) [formula] where"),
        ("in:<disp-formula><label>(3)</label>" + MATH + "</disp-formula>where", "in: (3) x2 where"),
        ("<chem-struct><graphic xlink:href='c'/></chem-struct>", "[formula]"),
        # Pictures within a line.
        (f"red{PICTURE}circles", "red [image] circles"),
        (f"an icon {PICTURE} here", "an icon [image] here"),
        (f"an <alternatives>{PICTURE}{PICTURE}</alternatives> icon", "an [image] icon"),
        ("<private-char><glyph-data>0110</glyph-data></private-char>", "[image]"),
    ],
)  # fmt: skip
def test_formulas_and_pictures(markup: str, expected: str) -> None:
    assert text(markup) == expected


def test_nothing() -> None:
    assert text_of(None) == text("") == text(" <italic/> ") == ""
