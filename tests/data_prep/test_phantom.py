"""The phantom corpus: the same bytes for any number of processes, valid articles, honest truth."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from lxml import etree
from PIL import Image

from data_prep.phantom import PhantomConfig, corpus, run
from data_prep.phantom.articles import TOPICS
from data_prep.phantom.captions import NUMBERS, statement
from data_prep.phantom.questions import ask
from data_prep.phantom.subjects import COMPOUND, SUBJECTS, choose
from vlp.config import UserError

FIGURES = 48
XLINK = "{http://www.w3.org/1999/xlink}href"
METADATA = {
    "pmcid", "version", "pmid", "doi", "mid", "title", "citation", "is_pmc_openaccess",
    "is_manuscript", "is_historical_ocr", "is_retracted", "license_code", "xml_url", "text_url",
    "pdf_url", "media_urls",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "corpus"
    run(PhantomConfig(out=str(out), figures=FIGURES, seed=3, image_size=320, workers=2))
    return out


@pytest.fixture(scope="module")
def truth(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "truth.parquet").to_pylist()


@pytest.fixture(scope="module")
def captions(folder: Path) -> dict[tuple[str, str], str]:
    """Plain caption by article and figure."""
    found = {}
    for path in sorted(folder.glob("articles/*/*.xml")):
        for fig in parse(path).iter("fig"):
            text = " ".join("".join(part.itertext()) for part in fig.find("caption"))
            found[path.parent.name, fig.get("id")] = " ".join(text.split())
    return found


def parse(path: Path) -> Any:
    parser = etree.XMLParser(
        load_dtd=False,
        no_network=True,
        resolve_entities=False,
        remove_comments=True,
        remove_pis=True,
    )
    return etree.parse(str(path), parser)


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_bytes_for_any_number_of_workers(folder: Path, tmp_path: Path) -> None:
    run(PhantomConfig(out=str(tmp_path / "b"), figures=FIGURES, seed=3, image_size=320, workers=1))
    assert contents(tmp_path / "b") == contents(folder)


def test_a_longer_corpus_begins_the_same(folder: Path, tmp_path: Path) -> None:
    run(PhantomConfig(out=str(tmp_path), figures=8, seed=3, image_size=320, workers=1))
    whole = contents(folder / "articles")
    short = contents(tmp_path / "articles")
    complete = [name for name in short if not name.startswith(max(short)[:15])]
    assert complete
    assert all(whole[name] == short[name] for name in complete)


def test_another_seed_gives_other_figures(folder: Path, tmp_path: Path) -> None:
    run(PhantomConfig(out=str(tmp_path), figures=4, seed=4, image_size=320, workers=1))
    images = {v for k, v in contents(tmp_path / "articles").items() if "-g" in k}
    assert not images & set(contents(folder / "articles").values())


def test_as_many_figures_as_asked_for(folder: Path, truth: list[dict[str, Any]]) -> None:
    articles = list((folder / "articles").iterdir())
    figures = [len(list(parse(a / f"{a.name}.xml").iter("fig"))) for a in articles]
    assert sum(figures) == len(truth) == FIGURES
    assert set(figures) <= set(range(1, 7))
    assert not (folder / "tmp").exists()


def test_articles_have_the_layout_of_the_bucket(folder: Path) -> None:
    for article in (folder / "articles").iterdir():
        root = parse(article / f"{article.name}.xml").getroot()
        record = json.loads((article / f"{article.name}.json").read_text(encoding="utf-8"))
        assert set(record) == METADATA
        assert f"{record['pmcid']}.{record['version']}" == article.name
        assert root.findtext(".//article-id[@pub-id-type='doi']") == record["doi"]
        assert root.findtext(".//article-title") == record["title"]
        hashes = {}
        for url in record["media_urls"]:
            name, _, md5 = url.rpartition("/")[2].partition("?md5=")
            hashes[name] = md5
        files = {p.name: p for p in article.iterdir() if p.suffix not in (".xml", ".json")}
        assert set(files) == set(hashes)
        for name, path in files.items():
            assert hashlib.md5(path.read_bytes()).hexdigest() == hashes[name]
        stems = {name.rpartition(".")[0] for name in files}
        for graphic in root.iter("graphic"):
            assert graphic.get(XLINK) in set(files) | stems
        identifiers = {fig.get("id") for fig in root.iter("fig")}
        cited = {rid for xref in root.iter("xref") for rid in xref.get("rid").split()}
        assert cited == identifiers


def test_articles_say_that_they_are_synthetic(folder: Path) -> None:
    for path in folder.glob("articles/*/*.xml"):
        assert "synthetic" in "".join(parse(path).find(".//abstract").itertext())


def test_images_decode_and_vary(folder: Path, truth: list[dict[str, Any]]) -> None:
    formats, modes = Counter(), Counter()
    for row in truth:
        with Image.open(folder / "articles" / row["image"]) as image:
            image.load()
            assert image.size == (row["width"], row["height"])
            assert np.asarray(image).std() > 5
            formats[image.format] += 1
            modes[image.mode] += 1
            for box in json.loads(row["boxes"]):
                left, top, right, bottom = box["box"]
                assert left < right <= row["width"] + 1
                assert top < bottom <= row["height"] + 1
    assert {"JPEG", "PNG"} <= set(formats)
    assert {"L", "RGB"} <= set(modes)


def test_captions_state_the_truth(
    truth: list[dict[str, Any]], captions: dict[tuple[str, str], str]
) -> None:
    sided = 0
    for row in truth:
        caption = captions[row["article"], row["figure"]]
        assert 5 <= len(caption.split()) <= 130
        if row["kind"] == COMPOUND:
            for panel in json.loads(row["panels"]):
                assert re.search(rf"(^|[ (\[]){panel['letter']}[)\],:]", caption)
            continue
        words = set(re.findall(r"\b(left|right)\b", caption.lower()))
        assert words == ({row["side"]} if row["side"] else set()), caption
        sided += bool(row["side"])
        if row["finding"] == "liver lesion":
            assert NUMBERS[row["count"]] in caption.lower().split()
    assert sided > 5


def test_truth_stays_outside_the_articles(folder: Path, truth: list[dict[str, Any]]) -> None:
    """Findings appear in captions alone: not in the body, the metadata or the file names."""
    for row in truth:
        if row["kind"] == COMPOUND or row["finding"] in ("normal", "fracture"):
            continue
        article = folder / "articles" / row["article"]
        root = parse(article / f"{row['article']}.xml").getroot()
        for caption in list(root.iter("caption")):
            caption.getparent().remove(caption)
        text = " ".join(root.itertext()) + (article / f"{row['article']}.json").read_text()
        assert row["finding"] not in text
        assert row["finding"].replace(" ", "-") not in row["image"]
    assert {p.name for p in folder.iterdir()} == {
        "articles", "units", "corpus.json", "truth.parquet", "vqa.jsonl"
    }  # fmt: skip


def test_questions_are_closed_and_fair(folder: Path, truth: list[dict[str, Any]]) -> None:
    questions = [json.loads(line) for line in (folder / "vqa.jsonl").read_text().splitlines()]
    assert {q["image"] for q in questions} == {row["image"] for row in truth}
    for question in questions:
        assert 2 <= len(question["options"]) <= 6
        assert len(set(question["options"])) == len(question["options"])
        assert question["answer"] in question["options"]
        assert len(set(question["statements"])) == len(question["options"])


def test_words_alone_do_not_answer_the_questions() -> None:
    """Neither the options' order nor the commonest answer to a question beats guessing."""
    rng = np.random.default_rng(0)
    topics = list(TOPICS.values())
    asked = [
        question
        for number in range(6000)
        for question in ask(SUBJECTS[choose(rng, topics[number % len(topics)][0])].sample(rng), rng)
    ]
    places: dict[int, Counter[int]] = {}
    answers: dict[str, Counter[str]] = {}
    for question in asked[::2]:
        place = question.options.index(question.answer)
        places.setdefault(len(question.options), Counter())[place] += 1
        answers.setdefault(question.question, Counter())[question.answer] += 1
    for number, counts in places.items():
        shares = np.array([counts[place] for place in range(number)]) / sum(counts.values())
        assert np.abs(shares - 1 / number).max() < 5 * (0.25 / sum(counts.values())) ** 0.5
    right: dict[str, list[float]] = {}
    for question in asked[1::2]:
        counts = answers.get(question.question, Counter())
        guess = max(sorted(question.options), key=lambda option: counts[option])
        chance = 1 / len(question.options)
        right.setdefault(question.question_type, []).append((guess == question.answer) - chance)
    for kind, gains in right.items():
        assert np.mean(gains) < 4 * (0.25 / len(gains)) ** 0.5, kind


@pytest.mark.parametrize("kind", SUBJECTS)
def test_every_kind_draws_every_finding(kind: str) -> None:
    subject = SUBJECTS[kind]
    seen = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        facts = subject.sample(rng)
        assert facts.kind == kind
        assert statement(facts).endswith(".")
        if facts.finding in seen:
            continue
        seen.add(facts.finding)
        drawing = subject.draw(facts, rng, (200, 180))
        assert drawing.image.size == (200, 180)
        assert drawing.image.mode == ("RGB" if subject.colour else "L")
    assert len(seen) >= 2


def test_a_killed_run_continues(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    config = PhantomConfig(out=str(tmp_path), figures=12, seed=3, image_size=320, workers=1)
    original, calls = corpus.write_article, []

    def interrupted(config: PhantomConfig, unit: tuple[int, int]) -> int:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(unit)
        return original(config, unit)

    monkeypatch.setattr(corpus, "write_article", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.setattr(corpus, "write_article", original)
    assert len(list((tmp_path / "articles").iterdir())) == 2
    untouched = {p: p.stat().st_mtime_ns for p in (tmp_path / "articles").rglob("*.xml")}
    run(config)
    assert all(p.stat().st_mtime_ns == time for p, time in untouched.items())
    assert pq.read_table(tmp_path / "truth.parquet").num_rows == 12


def test_refuses_the_folder_of_another_corpus(tmp_path: Path) -> None:
    run(PhantomConfig(out=str(tmp_path), figures=1, seed=0, image_size=200, workers=1))
    with pytest.raises(UserError, match="other seed; choose another out or delete"):
        run(PhantomConfig(out=str(tmp_path), figures=1, seed=1, image_size=200, workers=1))


def test_refuses_a_folder_with_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        run(PhantomConfig(out=str(tmp_path), figures=1))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("key", "value"), [("figures", 0), ("seed", -1), ("image_size", 20), ("workers", -2)]
)
def test_impossible_settings(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=key):
        PhantomConfig(out="x", **{key: value})
