"""Every figure of 210 real articles, against a slow reader, a table made by eye, and the files.

expected_figures.tsv holds 48 figures whose captions, graphics and labels were compared by eye with
the XML; of the captions it has the length, a hash, and the first and last characters.
"""

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from data_prep.front_matter import Metadata
from data_prep.jats import identify, parse_article
from data_prep.markup import parse_xml
from tests.data_prep.factories import member, prepare, rejects_of, rows_of
from tests.data_prep.jats_oracle import read_figures
from tests.real_data import real_data

TABLE = Path(__file__).with_name("expected_figures.tsv")
PACKS = {"jats_xml": (192, 1265), "jats_with_images": (18, 109)}
LICENCES = {"CC BY (text)": "CC BY", "CC0/PD": "CC0 1.0", "BMC-OA-verbatim": "BMC verbatim"}


def articles(pack: str) -> list[Path]:
    """The XML files of a pack."""
    folder = real_data(pack)
    name = {"jats_xml": "path", "jats_with_images": "xml"}[pack]
    rows = map(json.loads, (folder / "index.jsonl").read_text().splitlines())
    return [folder / path for path in dict.fromkeys(row[name] for row in rows)]


@pytest.mark.parametrize("pack", PACKS)
def test_every_figure_is_there_and_reads_as_the_oracle_reads_it(pack: str) -> None:
    files, figures = articles(pack), 0
    for path in files:
        data = path.read_bytes()
        article = parse_article(data)
        assert not article.recovered, path.name
        plain = etree.fromstring(data).xpath("count(//*[local-name()='fig'])")
        expected = read_figures(data)
        assert len(article.figures) == len(expected) == plain, path.name
        for found, oracle in zip(article.figures, expected, strict=True):
            where = f"{path.name} {oracle.id}"
            assert (found.id, found.label) == (oracle.id, oracle.label), where
            assert found.caption == oracle.caption, where
            hrefs = [href for hrefs in found.graphics for href in hrefs]
            assert hrefs == oracle.graphics, where
            assert len(found.mentions) == oracle.mentions, where
        figures += len(expected)
    assert (len(files), figures) == PACKS[pack]


def test_figures_checked_by_eye() -> None:
    rows = list(csv.DictReader(TABLE.open(encoding="utf-8"), delimiter="\t"))
    assert len(rows) == 48
    for row in rows:
        figure = parse_article(real_data(row["xml"]).read_bytes()).figures[int(row["number"])]
        digest = hashlib.sha256(figure.caption.encode()).hexdigest()
        assert {
            "id": figure.id,
            "label": figure.label,
            "graphics": " ".join("|".join(hrefs) for hrefs in figure.graphics),
            "mentions": str(len(figure.mentions)),
            "length": str(len(figure.caption)),
            "sha256": digest[:16],
            "begins": figure.caption[:24],
            "ends": figure.caption[-14:],
        } == {key: row[key] for key in row if key not in ("xml", "number")}, row["xml"]


def test_cutting_before_parsing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (*articles("jats_xml"), *articles("jats_with_images")):
        data = path.read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr("data_prep.jats.parse_xml", lambda data, unread: parse_xml(data))
            whole = parse_article(data)
        assert parse_article(data) == whole, path.name


def test_planning_sees_the_same_identifiers() -> None:
    for path in (*articles("jats_xml"), *articles("jats_with_images")):
        data = path.read_bytes()
        meta = parse_article(data).metadata
        ids = Metadata(pmcid=meta.pmcid, version=meta.version, doi=meta.doi, pmid=meta.pmid)
        assert identify(data) == [ids], path.name


def test_identifiers_and_licences() -> None:
    """What the index says of 192 articles, NLM 2.x to JATS 1.4."""
    root = real_data("jats_xml")
    for line in (root / "index.jsonl").read_text().splitlines():
        row = json.loads(line)
        article = parse_article((root / row["path"]).read_bytes())
        captions = sum(bool(figure.caption) for figure in article.figures)
        assert (len(article.figures), captions) == (row["n_fig"], row["n_caption"]), row["path"]
        assert row["doi"].startswith(article.metadata.doi.lower())
        licence = LICENCES.get(row["license"], row["license"])
        if row["path"] == "xml/ceedf62d28c3.nxml":
            licence = ""  # the index has it from the journal; the file states none
        assert article.metadata.licence in (licence, "PDM 1.0"), row["path"]


def test_reprinted_figures_do_not_have_the_articles_licence() -> None:
    path = real_data("jats_xml/xml/10.1186_s40580_020_00237_4.nxml")
    article = parse_article(path.read_bytes())
    assert article.metadata.licence == "CC BY 4.0"
    assert [figure.licence for figure in article.figures] == [""] * 6


@pytest.fixture(scope="module")
def expected_images() -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of the pack's index by article and figure id."""
    lines = (real_data("jats_with_images") / "index.jsonl").read_text().splitlines()
    return {(row["article"], row["fig_id"]): row for row in map(json.loads, lines)}


def test_every_image_is_resolved(
    tmp_path: Path, expected_images: dict[tuple[str, str], dict[str, Any]]
) -> None:
    """109 figures, by an index that another program made; its captions lack formulas."""
    source = real_data("jats_with_images/articles")
    prepare("jats", f"source={source}", f"out={tmp_path}", "license=any", "short_side=64")
    assert rejects_of(tmp_path) == []
    found = set()
    for row in rows_of(tmp_path):
        record = json.loads(member(tmp_path, row, "json"))
        folder = record["image"].partition("/")[0]
        expected = expected_images[folder, record.get("figure", "")]
        assert f"articles/{record['image']}" in expected["all_images"], record["image"]
        caption = member(tmp_path, row, "text").decode().replace("[formula]", "").replace("^", "")
        reference = re.sub(r"10\.7554/eLife\.\d+\.\d{3}", "", expected["text"])
        assert letters(caption) == letters(reference), record["image"]
        found.add((folder, record.get("figure", "")))
    assert found == set(expected_images)


def test_old_packages(
    tmp_path: Path, expected_images: dict[tuple[str, str], dict[str, Any]]
) -> None:
    """A tar.gz of PubMed Central's old service, and two MECA zips, as they came."""
    source = real_data("jats_with_images/packages")
    prepare("jats", f"source={source}", f"out={tmp_path}", "license=any", "short_side=64")
    assert rejects_of(tmp_path) == []
    names = {path.name.split(".")[0] for path in source.iterdir()}
    records = [json.loads(member(tmp_path, row, "json")) for row in rows_of(tmp_path)]
    found = {(r["image"].split(".")[0], r["figure"]) for r in records}
    assert found == {
        (article.removesuffix("-meca") + "-meca" * article.endswith("-meca"), figure)
        for article, figure in expected_images
        if article in names
    }


def letters(text: str) -> str:
    """Without white space and with straight quotes, as ftfy makes them."""
    straight = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0xFEFF: None}
    return "".join(text.translate(straight).split())
