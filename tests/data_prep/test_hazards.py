"""Hostile and odd articles through the whole stage: what must become of each figure.

Every hazard is an article of its own, in a folder with the image files a.jpg, b.webp, c d.PNG and
thumb.gif, and beside it lies a file that no article may reach. The run must end well, every `<fig>`
must be a sample or a reject, and each must be what is written down here.
"""

import pytest

from tests.data_prep.factories import (
    CC_BY,
    article_xml,
    encoded,
    member,
    picture,
    prepare,
    rejects_of,
    rows_of,
)

A = '<graphic xlink:href="a.jpg"/>'
SECRET = "TOPSECRET"


def fig(inside: str, name: str = "F1") -> str:
    return f'<fig id="{name}">{inside}</fig>'


def captioned(text: str, graphic: str = A, name: str = "F1") -> str:
    return fig(f"<caption><p>{text}</p></caption>{graphic}", name)


def entities(levels: int) -> str:
    nested = "".join(f'<!ENTITY a{level} "{f"&a{level - 1};" * 10}">' for level in range(1, levels))
    return f'<!DOCTYPE article [<!ENTITY a0 "lol">{nested}]>'


def reject(reason: str) -> str:
    return f"reject: {reason}"


HEAD_OF_MANY = '<?xml version="1.0"?>\n<!-- exported -->\n'
EXTERNAL = '<!DOCTYPE article [<!ENTITY x SYSTEM "../secret.txt">]>'
PARAMETER = '<!DOCTYPE article [<!ENTITY % x SYSTEM "../secret.txt"> %x;]>'
FOREIGN_DTD = '<!DOCTYPE article SYSTEM "../secret.dtd">'
XINCLUDE = (
    '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="../secret.txt" parse="text"/>'
)
NOTICE = "<permissions><copyright-statement>© X</copyright-statement></permissions>"
TEX = "<inline-formula><tex-math>\\documentclass{x}$x$</tex-math></inline-formula>"
WHOLE = article_xml(captioned("Whole text."))

# Body of the article, and what its figures become, in order: captions and rejects.
BODIES: dict[str, tuple[str, list[str]]] = {
    "no-caption-after-one": (captioned("First one.") + fig(A, "F2"),
                             ["First one.", reject("no caption")]),
    "blank-caption": (captioned(" \n "), [reject("no caption")]),
    "no-id": ("<fig><caption><p>Without id.</p></caption>" + A + "</fig>" + captioned("With id."),
              ["Without id.", "With id."]),
    "ids-twice": (captioned("One of two.") + captioned("Two of two."),
                  ["One of two.", "Two of two."]),
    "id-of-other-letters": (captioned("An odd id.", name="../F 1/é"), ["An odd id."]),
    "no-graphic": (captioned("Nothing.", ""), [reject("no graphic")]),
    "video": (captioned("A video.", '<media xlink:href="v.mp4"/>'), [reject("no graphic")]),
    "missing-file": (captioned("Missing.", '<graphic xlink:href="zz.jpg"/>'),
                     [reject("image file missing")]),
    "two-graphics": (captioned("Two pictures.", A + '<graphic xlink:href="b"/>'),
                     ["Two pictures.", "Two pictures."]),
    "alternatives-2026": (captioned("Layout of 2026.",
        '<alternatives><graphic content-type="thumb" xlink:href="thumb.gif"/><graphic '
        'content-type="image" xlink:href="b.webp"><?image-size 97536?></graphic></alternatives>'),
        ["Layout of 2026."]),
    "only-a-thumbnail": (captioned("Thumbnail.",
        '<graphic content-type="thumb" xlink:href="thumb.gif"/>'), [reject("no graphic")]),
    "group": (f"<fig-group><caption><p>About both.</p></caption>{captioned('Panel A.')}"
              f"{fig(A, 'F2')}</fig-group>", ["Panel A.", "About both."]),
    "list": (fig("<caption><p>Legend:</p><list><list-item><p>one</p></list-item><list-item>"
                 f"<p>two</p></list-item></list></caption>{A}"), ["Legend: one two"]),
    "tex": (captioned(f"Where{TEX}is small."), ["Where [formula] is small."]),
    "instructions": (captioned("One <?Pub Caret?>two<!-- three --> four."), ["One two four."]),
    "cdata": (captioned("<![CDATA[p < 0.05 & <b>]]> held."), ["p < 0.05 & <b> held."]),
    "nested-figure": (captioned(f"Outer.{captioned('Inner.', name='F2')}"), ["Outer.", "Inner."]),
    "figure-in-a-table": (f"<table-wrap>{captioned('In a table.')}</table-wrap>", ["In a table."]),
    "figure-in-references": (f"<ref-list><p>{captioned('In references.')}</p></ref-list>",
                             ["In references."]),
    "figure-in-a-comment": (f"<!-- {captioned('In a comment.')} -->{captioned('Outside.')}",
                            ["Outside."]),
    "references-in-a-comment": (f"<!-- <ref-list> -->{captioned('Between.')}<!-- </ref-list> -->",
                                ["Between."]),
    "sub-article": (f"<sub-article>{captioned('In a reply.')}</sub-article>", ["In a reply."]),
    "floats": (f"<floats-group>{captioned('Floating.')}</floats-group>", ["Floating."]),
    "own-notice": (captioned("Not ours.", A + NOTICE), [reject("licence unknown")]),
    "reprinted": (captioned("Cells. Reprinted with permission from Elsevier."),
                  [reject("licence unknown")]),
    "href-quote": (captioned("A quote.", "<graphic xlink:href=\"O'Neil &quot;a&quot;.jpg\"/>"),
                   [reject("image file missing")]),
    "href-percent-and-case": (captioned("Escaped.", '<graphic xlink:href="c%20d.png"/>'),
                              ["Escaped."]),
    "href-url": (captioned("A link.", '<graphic xlink:href="https://example.org/x/a.jpg"/>'),
                 ["A link."]),
    "href-other-extension": (captioned("Said TIFF.", '<graphic xlink:href="a.tif"/>'),
                             ["Said TIFF."]),
    "href-up": (captioned("Path out.", '<graphic xlink:href="../secret.jpg"/>'),
                [reject("image file missing")]),
    "href-absolute": (captioned("Path out.", '<graphic xlink:href="file:///etc/passwd"/>'),
                      [reject("image file missing")]),
    "href-empty": (captioned("Empty.", '<graphic xlink:href=" "/>'), [reject("no graphic")]),
    "xinclude": (captioned(f"Before {XINCLUDE} after."), ["Before after."]),
    "reference-to-itself": (captioned('See <xref rid="F1">Fig. 1</xref>–<xref rid="F1">1</xref>.'),
                            ["See Fig. 1–1."]),
    "entity-undefined": (captioned("5 &micro;m &nosuch; wide."), ["5 µm wide."]),
    "control-character": (captioned("A &#1; character."), ["A character."]),
    "attribute-twice": (captioned("Twice.").replace('id="F1"', 'id="F1" id="F2"'), ["Twice."]),
    "prefix-undeclared": (captioned("No prefix.", '<graphic xl:href="a.jpg"/>'),
                          [reject("no graphic")]),
    "unclosed": ("<p><bold>" + captioned("Unclosed."), ["Unclosed."]),
    "caption-of-a-megabyte": (captioned("word " * 200_000),
                              [reject("caption longer than 50,000 characters")]),
    "deep": (captioned("<italic>" * 5000 + "deep" + "</italic>" * 5000), [reject("no graphic")]),
}  # fmt: skip
# The whole file, and what becomes of it.
FILES: dict[str, tuple[bytes, list[str]]] = {
    "latin-1": (b'<?xml version="1.0" encoding="ISO-8859-1"?>'
                + article_xml(captioned("Müller cells, 5 µm.")).decode().encode("latin-1"),
                ["Müller cells, 5 µm."]),
    "utf-16": (article_xml(captioned("Müller.")).decode().encode("utf-16"), ["Müller."]),
    "byte-order-mark": (b"\xef\xbb\xbf" + WHOLE, ["Whole text."]),
    "namespace": (WHOLE.replace(b"<article ", b'<article xmlns="https://jats.nlm.nih.gov" '),
                  ["Whole text."]),
    "two-articles": (b"<pmc-articleset>" + article_xml(captioned("Of one."), {"pmc": "901"})
                     + article_xml(captioned("Of two."), {"pmc": "902"}) + b"</pmc-articleset>",
                     ["Of one.", "Of two."]),
    "in-an-envelope": (b"<OAI-PMH><GetRecord><metadata>" + WHOLE
                       + b"</metadata></GetRecord></OAI-PMH>", ["Whole text."]),
    "dtd-entity": (article_xml(captioned("5 &micro;m."), head='<!DOCTYPE article PUBLIC '
                   '"-//NLM//DTD JATS//EN" "JATS-archivearticle1.dtd">'), ["5 µm."]),
    "entity-from-a-file": (article_xml(captioned("Leak: &x;."), head=EXTERNAL), ["Leak: ."]),
    "parameter-entity": (article_xml(captioned("Leak: none."), head=PARAMETER), ["Leak: none."]),
    "dtd-from-a-file": (article_xml(captioned("Leak: &x;."), head=FOREIGN_DTD), ["Leak: ."]),
    "billion-laughs": (article_xml(captioned("&a9;"), head=entities(10)), [reject("no graphic")]),
    "few-laughs": (article_xml(captioned("&a1;"), head=entities(2)), ["lol" * 10]),
    "xlink-undeclared": (WHOLE.replace(b'xmlns:xlink="http://www.w3.org/1999/xlink"', b""),
                         ["Whole text."]),
    "text-of-11-megabytes": (article_xml(f"<p>{'x' * 11_000_000}</p>{captioned('After.')}"),
                             [reject("figure lost in broken XML")]),
    "cut-off": (WHOLE[: WHOLE.index(b"</p>")], [reject("no graphic")]),
    "cut-off-in-front": (WHOLE[:200], []),
    "not-xml": (b"<html><body>404 not found<br></body>", []),
    "empty": (b"", [reject("XML not readable")]),
    "binary": (bytes(range(256)) * 10, [reject("XML not readable")]),
    "another-kind": (b"<manifest><item href='a.jpg'/></manifest>", []),
    "no-figures": (article_xml("<p>Text.</p>"), []),
    "no-licence": (article_xml(captioned("No licence."), licence=""),
                   [reject("licence unknown")]),
    "mixed-licences": (article_xml(captioned("Two licences."), licence=CC_BY
                       + CC_BY.replace("by/4.0", "by-nc/4.0")), ["Two licences."]),
}  # fmt: skip
HAZARDS = FILES | {name: (article_xml(body), found) for name, (body, found) in BODIES.items()}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What became of each hazard: captions and rejects, in the order of the figures."""
    root = tmp_path_factory.mktemp("hazards")
    (root / "articles" / "secret.txt").parent.mkdir()
    for name in ("secret.txt", "secret.jpg"):
        (root / "articles" / name).write_text(SECRET)
    (root / "articles" / "secret.dtd").write_text(f'<!ENTITY x "{SECRET}">')
    for name, (data, _) in HAZARDS.items():
        folder = root / "articles" / name
        folder.mkdir()
        (folder / f"{name}.xml").write_bytes(data)
        for file, kind in {"a.jpg": "JPEG", "b.webp": "WEBP", "c d.PNG": "PNG"}.items():
            (folder / file).write_bytes(encoded(picture(), kind))
        (folder / "thumb.gif").write_bytes(encoded(picture(40, 40), "GIF"))
    out = root / "shards"
    prepare("jats", f"source={root / 'articles'}", f"out={out}", "min_caption=3")
    found: dict[str, list[str]] = {name: [] for name in HAZARDS}
    for row in rows_of(out):
        assert SECRET.encode() not in member(out, row, "json")
        name = member(out, row, "json").decode().partition('"image": "')[2].partition("/")[0]
        found[name].append(member(out, row, "text").decode())
    for article, _, image, stage, reason in rejects_of(out):
        name = image if stage in ("plan", "article") else article
        found[name.partition("/")[0]].append(reject(reason))
    return found


@pytest.mark.parametrize("name", HAZARDS)
def test_hazard(name: str, outcome: dict[str, list[str]]) -> None:
    assert sorted(outcome[name]) == sorted(HAZARDS[name][1])


def test_nothing_leaked(outcome: dict[str, list[str]]) -> None:
    assert SECRET not in str(outcome)
