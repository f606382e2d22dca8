"""Documents out of every format, and what is said about those that are broken."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.real_data import real_data
from tests.shard_factory import make_samples, write_shards
from vlp.config import UserError
from vlp.text import corpora
from vlp.text.cleaning import CleaningConfig
from vlp.text.corpora import CorpusConfig, read_documents
from vlp.text.documents import Document, Section, SplitConfig, Tally, split_of
from vlp.text.store import prepare

PUBMED = """<?xml version="1.0"?>
<!DOCTYPE PubmedArticleSet SYSTEM "http://dtd.nlm.nih.gov/x.dtd" [<!ENTITY big "BOOM">]>
<PubmedArticleSet>
<PubmedArticle><MedlineCitation><PMID>11</PMID><Article><ArticleTitle>A <i>title</i>.</ArticleTitle>
<Abstract><AbstractText Label="METHODS">CO<sub>2</sub> &big;&micro;m.</AbstractText>
<AbstractText Label="RESULTS">None.</AbstractText></Abstract></Article></MedlineCitation>
</PubmedArticle>
<PubmedArticle><MedlineCitation><Article><ArticleTitle>No number</ArticleTitle></Article>
</MedlineCitation></PubmedArticle>
<PubmedArticle><MedlineCitation><PMID>12</PMID><Article><ArticleTitle>Two</ArticleTitle>
<Abstract><AbstractText>First.</AbstractText><AbstractText>Second.</AbstractText></Abstract>
</Article></MedlineCitation></PubmedArticle>
</PubmedArticleSet>"""

JATS = """<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta>
<article-id pub-id-type="pmc">77</article-id>
<title-group><article-title>On <italic>cells</italic></article-title></title-group>
<abstract abstract-type="teaser"><p>Wow</p></abstract><abstract><sec><title>Aim</title>
<p>To see.</p></sec></abstract></article-meta></front>
<body><p>Before.</p><sec><title>Methods</title><p>Cells<sup><xref ref-type="bibr">1</xref></sup>
grew <inline-formula>x</inline-formula>.<fig><caption><p>Not this</p></caption></fig></p>
<sec><title>Sub</title><p>Deeper.</p>
<table-wrap><caption><p>Nor this</p></caption></table-wrap></sec>
</sec></body><back><ref-list><ref><p>Nor that</p></ref></ref-list></back></article>"""


def read(path: Path, tally: Tally | None = None, **settings: object) -> list[Document]:
    return list(read_documents(CorpusConfig(path=str(path), **settings), tally))  # type: ignore[arg-type]


def test_text_files_and_blocks(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\n\n \nthree\n")
    (tmp_path / "sub" / "a.txt.gz").write_bytes(gzip.compress(b"vier\n"))
    (tmp_path / "c.md").write_text("not a text file of ours")
    files = read(tmp_path, kind="text")
    assert [(d.id, d.sections[0].text) for d in files] == [
        ("b.txt", "one\ntwo\n\n \nthree\n"),
        ("a.txt.gz", "vier\n"),
    ]
    blocks = read(tmp_path, kind="text", split_at="blank_line")
    assert [(d.id, d.sections[0].text) for d in blocks] == [
        ("b.txt:1", "one\ntwo\n"),
        ("b.txt:5", "three\n"),
        ("a.txt.gz:1", "vier\n"),
    ]


def test_jsonl_counts_bad_lines_and_stops_at_too_many(tmp_path: Path) -> None:
    lines = [
        json.dumps({"id": "a#1", "text": "x", "more": ["p", "q"], "split": "dev"}),
        "{broken",
        "[1]",
        "",
        json.dumps({"id": "a#2", "text": 3}),
        json.dumps({"id": "a#3", "text": " ", "split": "val"}),
        json.dumps({"id": "a#4", "text": "z"}),
        json.dumps({"text": "without id"}),
    ]
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(lines))
    tally = Tally()
    settings = {"fields": ("text", "more"), "split_field": "split", "group_until": "#"}
    (document,) = read(file, tally, **settings)
    want = (Section("text", "x"), Section("more", "p\nq"))
    assert document == Document("a#1", want, "dev", "a")
    assert split_of(document, SplitConfig()) == "val"
    assert dict(tally.counts) == {
        "not JSON": 1,
        "not a JSON object": 1,
        "field 'text' is neither a string nor a list of strings": 1,
        "no text": 1,
        "no field id": 1,
        "no field split": 1,
    }
    with pytest.raises(UserError, match=r"x\.jsonl:2: not JSON; so are 6 of 7 documents read"):
        read(file, **settings)
    file.write_text("{broken\n" * 300)
    with pytest.raises(UserError, match="100 of 100"):  # not read to its end
        read(file)


def test_long_lines_are_no_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "MAX_DOCUMENT", 64)
    long = json.dumps({"id": "1", "text": "x" * 1000})
    short = json.dumps({"id": "2", "text": "y"})
    (tmp_path / "x.jsonl").write_text(f"{long}\n{short}\n{long}")
    tally = Tally()
    assert [d.id for d in read(tmp_path, tally)] == ["2"]
    assert dict(tally.counts) == {"line too long": 2}
    (tmp_path / "x.txt").write_text("a\n" * 40 + "\nb\n")
    with pytest.raises(UserError, match="set split_at=blank_line"):
        read(tmp_path, kind="text")
    tally = Tally()
    assert [d.sections[0].text for d in read(tmp_path, tally, kind="text", split_at="blank_line")]
    assert dict(tally.counts) == {"line or block too long": 1}


def test_parquet_equals_jsonl(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": f"text {n}", "split": "train"} for n in range(1200)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(tmp_path, kind="parquet", split_field="split") == read(
        tmp_path, kind="jsonl", split_field="split"
    )
    with pytest.raises(UserError, match=r"no column body; it has id, text, split"):
        read(tmp_path, kind="parquet", fields=("body",))
    (tmp_path / "x.parquet").write_text("no table")
    with pytest.raises(UserError, match=r"x\.parquet: not readable as Parquet"):
        read(tmp_path, kind="parquet")


def test_pubmed(tmp_path: Path) -> None:
    (tmp_path / "p.xml.gz").write_bytes(gzip.compress(PUBMED.encode()))
    tally = Tally()
    first, second = read(tmp_path, tally, kind="pubmed")
    assert first.id == "pmid:11"
    # The file's own entity is not expanded, HTML's is read.
    assert first.sections[0] == ("title", "A title.")
    assert first.sections[1] == ("methods", "CO2 &big;µm.")
    assert first.sections[2] == ("results", "None.")
    assert second.sections[1] == ("abstract", "First.\nSecond.")
    assert dict(tally.counts) == {"citation without PMID": 1}
    (tmp_path / "p.xml.gz").write_bytes(gzip.compress(PUBMED.encode()[:-40]))
    with pytest.raises(UserError, match=r"p\.xml\.gz: not readable as XML"):
        read(tmp_path, Tally(), kind="pubmed")
    (tmp_path / "p.xml.gz").write_bytes(gzip.compress(PUBMED.encode())[:-30])
    with pytest.raises(UserError, match=r"p\.xml\.gz: can't be read"):
        read(tmp_path, Tally(), kind="pubmed")
    (tmp_path / "p.xml.gz").write_bytes(gzip.compress(b"<a/>"))
    with pytest.raises(UserError, match="no <PubmedArticle>"):
        read(tmp_path, kind="pubmed")


def test_jats(tmp_path: Path) -> None:
    (tmp_path / "a.nxml").write_text(JATS)
    (document,) = read(tmp_path, kind="jats")
    assert document.id == "PMC77"
    assert document.sections == (
        ("title", "On cells"),
        ("abstract", "To see."),
        ("body", "Before."),
        ("methods", "Cells grew [formula] .\nDeeper."),
    )


def test_hostile_xml(tmp_path: Path) -> None:
    """Neither files nor the network are read, nothing grows, nothing recurses without bound."""
    (tmp_path / "secret").write_text("SECRET")
    entities = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 12))
    head = f"<!DOCTYPE article [<!ENTITY e0 'lol'>{entities}"
    head += f"<!ENTITY f SYSTEM 'file://{tmp_path}/secret'>]>"
    body = "<article><body><p>safe &e11; &f;</p></body></article>"
    (tmp_path / "a.xml").write_text(head + body)
    tally = Tally()
    assert read(tmp_path, tally, kind="jats") == []  # libxml2 refuses what would grow so
    (tmp_path / "a.xml").write_text(head + body.replace("&e11;", "&e0;"))
    (document,) = read(tmp_path, tally, kind="jats")
    assert document.sections[0].text == "safe &e0; &f;"
    (tmp_path / "a.xml").write_text("<article><body>" + "<sec>" * 9999)
    assert read(tmp_path, tally, kind="jats") == []
    assert dict(tally.counts) == {"XML not readable": 2}


def test_real_articles_have_text_and_names() -> None:
    tally = Tally()
    files = sorted(real_data("jats_xml/xml").iterdir())[::8]
    documents = [d for file in files for d in read(file, tally, kind="jats")]
    assert len(documents) >= len(files) - 1 > 20
    assert tally.counts.total() <= 1
    words = sum(len(s.text.split()) for d in documents for s in d.sections)
    assert words > 1500 * len(files)
    assert not any("<" in s.text and "</" in s.text for d in documents for s in d.sections)


def test_shards_give_captions_and_mentions(tmp_path: Path) -> None:
    samples = make_samples(4)
    samples[1].record["mentions"] = ["Fig. 1 shows it.", "See Fig. 1."]
    folder = write_shards(tmp_path / "s", [("train", samples[:3]), ("val", samples[3:])])
    documents = {d.id: d for d in read(folder, kind="shards")}
    assert documents.keys() == {s.key for s in samples}
    one = documents[samples[1].key]
    assert one.sections == (
        ("caption", samples[1].caption),
        ("mention", "Fig. 1 shows it.\nSee Fig. 1."),
    )
    assert (one.split, one.group) == ("train", samples[1].article)
    assert documents[samples[3].key].split == "val"
    with pytest.raises(UserError, match="no such shard folder"):
        read(tmp_path / "none", kind="shards")
    plain = CleaningConfig(ill_formed=False, duplicates="none")
    config = CorpusConfig(path=str(folder), kind="shards")
    store = prepare(config, plain, SplitConfig(), tmp_path / "cache")
    assert store.meta["documents"] == {"train": 3, "val": 1}  # the shards' own splits


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*no file of kind 'jsonl'"):
        read(tmp_path / "nowhere")


def test_split_has_its_shares_and_keeps_groups_together() -> None:
    config = SplitConfig(val_fraction=0.2, test_fraction=0.1)
    splits = [split_of(Document(str(n), ()), config) for n in range(4000)]
    assert abs(splits.count("val") / 4000 - 0.2) < 0.03
    assert abs(splits.count("test") / 4000 - 0.1) < 0.02
    group = [split_of(Document(str(n), (), group="one"), config) for n in range(20)]
    assert len(set(group)) == 1
    with pytest.raises(UserError, match="split 'holdout' is none of"):
        split_of(Document("x", (), "holdout"), config)


def test_importing_loads_neither_lxml_nor_pyarrow() -> None:
    names = "import vlp.text.corpora, vlp.text.documents, sys; print([m for m in "
    names += "('lxml', 'pyarrow', 'torch') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", names], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
