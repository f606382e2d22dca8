"""The benchmark of data_prep: its articles, its shares and its projection."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.curation import CurationConfig
from benchmarks.curation import measure as measure_curation
from benchmarks.measure import Result, Row
from benchmarks.prep import _shares, correctness, https_rows
from benchmarks.prep_corpus import FIGURES, _article
from benchmarks.prep_projection import Measured, projection
from data_prep.jats import parse_article


def test_generated_articles_are_like_real_ones() -> None:
    articles = [_article(np.random.default_rng(n), "PMC1", n).encode() for n in range(30)]
    assert np.mean([len(article) for article in articles]) == pytest.approx(90_000, rel=0.1)
    references = sum(len(a[a.index(b"<ref-list>") :]) for a in articles)
    assert references / sum(map(len, articles)) == pytest.approx(0.34, abs=0.05)
    parsed = [parse_article(article) for article in articles]
    assert all(len(article.figures) == FIGURES for article in parsed)
    assert not any(article.recovered for article in parsed)
    assert any(figure.mentions for figure in parsed[0].figures)


def test_shares() -> None:
    truth = [[("f1", "A cell (10^3).", "a"), ("f2", "B [formula].", "b")], [("f1", "C", "c")]]
    found = [[("f1", "A cell (103).", "a"), ("f2", "B.", "x")], []]
    assert [row.value for row in _shares("x", found, truth)] == pytest.approx([1 / 3, 2 / 3, 1 / 3])


def test_correctness_of_ours_on_generated_articles(tmp_path: Path) -> None:
    file = tmp_path / "a.xml"
    file.write_text(_article(np.random.default_rng(0), "PMC1", 0), encoding="utf-8")
    assert [row.value for row in correctness([file], None)] == [1, 1, 1]


def test_requests_a_second_are_those_for_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("HTTPS, 5 KB, 64 in flight", "HTTPS, 100 KB, 64 in flight")
    rows = tuple(Row(name, "GETs/s", value) for name, value in zip(names, (9.0, 7.0), strict=True))
    monkeypatch.setattr("benchmarks.https.measure", lambda config: Result("https", {}, rows))
    assert https_rows() == (list(rows), 7.0)


def test_projection() -> None:
    measured = Measured(
        parse=600, pipeline=20, join=1e6, gets=2000, bytes_per_article=500_000, figures=4
    )
    rows, bottleneck = projection(measured, cores=10)
    values = {row.what.partition(": ")[2]: row for row in rows}
    assert values["to download"] == Row("6 million articles: to download", "TB", 3.0)
    assert values["download at 1 Gb/s"].value == pytest.approx(3e12 / 125e6 / 3600)
    assert values["parsing"].value == pytest.approx(6e6 / 600 / 3600)
    assert values["whole pipeline"].value == pytest.approx(6e6 / 20 / 3600)
    assert values["cores that keep up with 1 Gb/s"].value == pytest.approx(300_000 / 24_000)
    assert values["requests of one process"].value == pytest.approx(36e6 / 2000 / 3600)
    assert values["near-duplicates of 24 million figures"].value == pytest.approx(24 / 3600)
    assert bottleneck.startswith("10 cores (")


def test_curation_finds_smaller_copies_and_not_crops(tmp_path: Path) -> None:
    english = "The patient was seen by two radiologists, who found no sign of a fracture. "
    spanish = "El paciente fue visto por dos radiólogos, que no hallaron signos de fractura. "
    for name, text in (("en_few", english), ("es_few", spanish)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text * 3}) + "\n")
    config = CurationConfig(drawn=12, texts=str(tmp_path), pairs=5000, budget=100)
    rows = {row.what: row for row in measure_curation(config).rows}
    share = {what: row.ratio for what, row in rows.items() if what.startswith("drawn")}
    copies = next(what for what in share if "half the size: found" in what)
    crops = next(what for what in share if "5% cropped from each side: found" in what)
    assert (share[copies] or 0) > 0.8 > 0.2 > (share[crops] or 0)
    assert rows["en_few, 1 paragraphs, keeping en: dropped"].value == 0
    assert rows["es_few, 1 paragraphs, keeping en: dropped"].value == 1
    assert rows["es_few, 1 paragraphs, keeping es: dropped"].value == 0
    for name in ("kind", "journal", "year", "licence"):
        entropy = next(r for what, r in rows.items() if f"entropy of {name} " in what)
        assert 0 < entropy.value <= rows[f"selection: bound for {name}"].value
