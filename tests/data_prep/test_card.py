"""The dataset card: right counts, escaped text, links from identifiers only, valid Croissant."""

import json
import re
from pathlib import Path

import pytest

from data_prep.card import CARD, CROISSANT, NLM_CITATION, article_link
from data_prep.croissant import licence_url
from data_prep.drawings import bars, columns
from tests.data_prep.factories import prepare
from tests.data_prep.test_curate import sample, write_set

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7919 * 7907 }}'


def written(folder: Path, *arguments: str) -> str:
    """The page."""
    prepare_card = ["card", f"out={folder}", *arguments]
    from data_prep.__main__ import main

    main(prepare_card)
    return (folder / CARD).read_text(encoding="utf-8")


def test_page_counts_and_shows(tmp_path: Path) -> None:
    train = [
        sample(n, record={"journal": "Gut", "date": "2021-05", "kind": "plot"}) for n in (1, 2)
    ]
    test = [sample(3, record={"journal": "Blood", "date": "2019", "label": "Figure 9"})]
    page = written(write_set(tmp_path / "set", ("train", train), ("test", test)))
    assert re.search(r"<dt>pairs</dt><dd>3</dd>", page)
    assert re.search(r"<dt>years</dt><dd>2019–2021</dd>", page)
    assert "<title>2021: 2</title>" in page
    assert "<title>2020: 0</title>" in page
    assert re.search(r'"what">Gut</td><td class="num">2</td><td class="num soft">66.7%', page)
    assert "image file missing" in page
    assert page.count("data:image/jpeg;base64,") == 3
    assert "https://pmc.ncbi.nlm.nih.gov/articles/PMC3/" in page
    assert "Courtesy of the U.S. National Library of Medicine." in page
    assert "<strong>Figure 9</strong>" in page
    assert not re.search(
        r'(?:src|href)="(?!data:image/jpeg|https://pmc\.ncbi\.nlm\.nih\.gov/)', page
    )


def test_only_sets_from_pmc_carry_nlms_terms(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", ("train", [sample(1, "patient-1")]))
    page = written(folder)
    assert "National Library" not in page
    assert "citeAs" not in json.loads((folder / CROISSANT).read_text())


def test_text_of_strangers_is_escaped(tmp_path: Path) -> None:
    names = (
        "journal",
        "date",
        "kind",
        "label",
        "title",
        "doi",
        "pmcid",
        "article_type",
        "citation",
    )
    hostile = sample(
        1,
        HOSTILE,
        caption=HOSTILE,
        licence=HOSTILE,
        record=dict.fromkeys(names, HOSTILE),
    )
    page = written(write_set(tmp_path / "set", ("train", [hostile])), f"name='{HOSTILE}'")
    assert "<script" not in page
    assert "<img src=x" not in page
    assert str(7919 * 7907) not in page
    assert page.count("&lt;script&gt;") >= 8
    assert "javascript:" not in page


def test_cards_are_repeatable_and_show_what_is_asked(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", ("train", [sample(n) for n in range(8)]))
    first = written(folder, "samples=4", "records=3")
    assert first.count("data:image/jpeg") == 4
    assert "those of 3 pairs drawn at random" in first
    assert written(folder, "samples=4", "records=3") == first
    assert written(folder, "samples=4", "records=3", "seed=1") != first


def test_curated_sets_tell_their_findings(tmp_path: Path) -> None:
    samples = [sample(1), sample(2, image=sample(1).image), sample(3)]
    source = write_set(tmp_path / "s", ("train", samples))
    known = tmp_path / "exam.txt"
    known.write_text(f"{sample(3).phash:016x}\n")
    prepare("curate", f"source={source}", f"out={tmp_path / 'o'}", f"leakage={known}")
    page = written(tmp_path / "o")
    assert "1 copies of other images were dropped" in page
    assert "1 train images were near images of the evaluation set exam.txt, and dropped" in page
    assert "The set was not searched for duplicates" in written(source)


@pytest.mark.parametrize(
    ("record", "link"),
    [
        ({"pmcid": "PMC77"}, "https://pmc.ncbi.nlm.nih.gov/articles/PMC77/"),
        (
            {"article": "PMC77.2", "doi": "10.1234/x"},
            "https://pmc.ncbi.nlm.nih.gov/articles/PMC77/",
        ),
        ({"doi": '10.1234/a"b<c>'}, "https://doi.org/10.1234/a%22b%3Cc%3E"),
        ({"doi": "javascript:alert(1)"}, ""),
        ({"pmcid": "PMC7/../../x", "article": 5}, ""),
        ({}, ""),
    ],
)
def test_links(record: dict[str, object], link: str) -> None:
    assert article_link(record)[0] == link


def test_croissant_is_valid(tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    folder = write_set(tmp_path / "set", ("train", [sample(n) for n in range(3)]))
    written(folder, "url=https://example.org/set", "creator=Somebody")
    dataset = mlcroissant.Dataset(folder / CROISSANT)
    assert not dataset.metadata.issues.errors
    assert not dataset.metadata.issues.warnings
    keys = [record["pairs/key"] for record in dataset.records("pairs")]
    assert [key.decode() if isinstance(key, bytes) else key for key in keys] == ["k0", "k1", "k2"]
    assert dataset.metadata.cite_as == NLM_CITATION


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("CC BY", "CC BY"),
        ("CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/"),
        ("CC BY-NC-ND 3.0", "https://creativecommons.org/licenses/by-nc-nd/3.0/"),
        ("CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
        ("BMC verbatim", "BMC verbatim"),
        ("", "unknown"),
    ],
)
def test_licence_addresses(name: str, url: str) -> None:
    assert licence_url(name) == url


def test_bars_sum_up_the_rest() -> None:
    text = str(bars({f"journal {n}": 30 - n for n in range(25)} | {"<b>": 99}, limit=5))
    assert text.count("<tr>") == 6
    assert "21 more" in text
    assert "&lt;b&gt;" in text
    assert "<title>b: 3</title>" in str(columns(["a", "b"], [1, 3]))
