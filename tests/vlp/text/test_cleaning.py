"""Cleaning: each pass on and off, copies against brute force, and the store that is made of it."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.real_data import real_data
from vlp.config import UserError
from vlp.text import store as store_module
from vlp.text.cleaning import CleaningConfig, clean_document, foreign_language, ill_formed
from vlp.text.corpora import CorpusConfig
from vlp.text.documents import Document, Section, SplitConfig
from vlp.text.duplicates import Duplicates, jaccard
from vlp.text.store import TextStore, prepare

OFF = CleaningConfig(unicode=False, ill_formed=False, duplicates="none")
SPANISH = "La paciente refiere dolor abdominal cólico junto con distensión y varias deposiciones."
ENGLISH = "The patient reported abdominal pain together with distension and several stools a day."


def cleaned(text: str, config: CleaningConfig) -> tuple[str, dict[str, int]]:
    dropped = Counter[str]()
    document = clean_document(Document("d", (Section("s", text),)), config, dropped)
    return (document.sections[0].text if document else ""), dict(dropped)


def test_nothing_is_changed_when_all_passes_are_off() -> None:
    text = "  âœ” odd   spaces \t12 34 56\n© 2001 Elsevier."
    assert cleaned(text, OFF) == (text, {})


def test_unicode() -> None:
    config = CleaningConfig(ill_formed=False)
    assert cleaned(" \xa0caf\u00c3\u00a9  5 &lt; 6\n\n  \nnext ", config)[0] == "café 5 < 6\nnext"


@pytest.mark.parametrize(
    ("paragraph", "reason"),
    [
        ("1.2 3.4 5.6 (7) a", "paragraph mostly without letters"),
        ("A B C", "paragraph without a word"),
        ("Base64: " + "abCD" * 60, "paragraph with over 200 characters without a blank"),
        ("患者は胸痛を訴えた" * 40, ""),
        ("β-blockers (5 mg) were given.", ""),
        ("Fièvre à 39 °C.", ""),
    ],
)
def test_ill_formed(paragraph: str, reason: str) -> None:
    assert ill_formed(paragraph) == reason
    assert cleaned(paragraph, CleaningConfig())[0] == ("" if reason else paragraph)


def test_boilerplate_goes_by_sentence() -> None:
    text = "Cells grew. Copyright © 2010 Elsevier Inc. All rights reserved."
    assert cleaned(text, CleaningConfig()) == ("Cells grew.", {"boilerplate sentence": 2})
    text = "Copyright law protects images. (ABSTRACT TRUNCATED AT 250 WORDS)"
    assert cleaned(text, CleaningConfig())[1]["boilerplate sentence"] == 2
    assert cleaned(text, CleaningConfig(ill_formed=False)) == (text, {})
    about = "Mice were protected by copying genes. Results were published by others."
    assert cleaned(about, CleaningConfig()) == (about, {})


def test_languages() -> None:
    config = CleaningConfig(languages=("en",))
    assert cleaned(f"{ENGLISH}\n{SPANISH}", config) == (
        ENGLISH,
        {"paragraph in language es": 1},
    )
    assert cleaned(SPANISH, CleaningConfig(languages=("es", "en")))[0] == SPANISH
    assert foreign_language("Escherichia coli", ("en",)) == ""  # too short to say


def test_short_documents() -> None:
    config = CleaningConfig(min_words=14)
    assert cleaned(ENGLISH, config) == ("", {"document of fewer than 14 words": 1})
    assert cleaned(ENGLISH, CleaningConfig(min_words=13))[0] == ENGLISH


def variants(rng: np.random.Generator) -> list[str]:
    """Paragraphs, some of them later copies with none to many words changed."""
    words = [f"w{n}" for n in range(400)]
    paragraphs = [" ".join(rng.choice(words, 60)) for _ in range(40)]
    for original in list(paragraphs[:30]):
        for changes in (0, 1, 2, 4):
            changed = original.split()
            for place in rng.choice(60, changes, replace=False):
                changed[place] = "other"
            text = " ".join(changed)
            paragraphs.append(text.upper() + "!" if changes == 0 else text)
    return paragraphs


def test_copies_are_those_of_brute_force(tmp_path: Path) -> None:
    paragraphs = variants(np.random.default_rng(1))
    finder = Duplicates(tmp_path, near=True)
    for paragraph in paragraphs:
        finder.add(paragraph)
    exact, near = finder.copies(0.8, paragraphs.__getitem__)
    sets = [finder._set(paragraph) for paragraph in paragraphs]
    finder.close()
    assert list(tmp_path.iterdir()) == []
    kept: list[int] = []
    for number, mine in enumerate(sets):
        if not any(jaccard(mine, sets[other]) >= 0.8 for other in kept):
            kept.append(number)
    assert np.flatnonzero(~(exact | near)).tolist() == kept
    assert exact.sum() == 30
    assert 20 < near.sum() < 90  # some changed ones are copies, others are not


def test_near_copies_are_found_at_the_promised_rate(tmp_path: Path) -> None:
    """1 - (1 - 0.8^4)^16 = 0.9998 at a Jaccard index of 0.8: of 300 pairs none may be missing."""
    rng = np.random.default_rng(2)
    finder = Duplicates(tmp_path, near=True)
    texts = []
    for pair in range(300):
        words = [f"p{pair}x{n}" for n in range(104)]  # 100 shingles
        changed = words.copy()
        changed[int(rng.integers(20, 80))] = "one"
        changed[2], changed[100] = "two", "three"  # 5 + 3 + 4 of 100 shingles differ
        texts += [" ".join(words), " ".join(changed)]
    for text in texts:
        finder.add(text)
    index = jaccard(finder._set(texts[0]), finder._set(texts[1]))
    assert 0.75 < index < 0.82
    _, near = finder.copies(0.75, texts.__getitem__)
    finder.close()
    assert near.tolist() == [False, True] * 300


def write(file: Path, records: list[dict[str, str]]) -> CorpusConfig:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return CorpusConfig(path=str(file), split_field="split" if "split" in records[0] else "")


def texts_of(store: TextStore, split: str = "train") -> list[str]:
    return [s.text for d in store.documents(store.numbers(split)) for s in d.sections]


def test_store_keeps_documents_apart_and_drops_copies(tmp_path: Path) -> None:
    records = [
        {"id": "1", "text": f"{ENGLISH}\nFirst one here."},
        {"id": "2", "text": f"{ENGLISH.upper()}\nSecond \ud800 half."},
        {"id": "3", "text": ENGLISH},
    ]
    config = write(tmp_path / "c.jsonl", records)
    lines: list[str] = []
    no_split = SplitConfig(val_fraction=0)
    store = prepare(config, CleaningConfig(), no_split, tmp_path / "cache", lines.append)
    documents = list(store.documents([1, 0]))
    assert [d.id for d in documents] == ["2", "1"]
    assert documents[0].sections == (Section("text", "Second \ufffd half."),)
    assert store.meta["dropped"] == {"duplicate paragraph": 2, "document without text left": 1}
    assert store.bytes() == sum(len(t.encode()) for t in texts_of(store))
    assert "2 x duplicate paragraph" in lines[0]
    prepare(config, CleaningConfig(), no_split, tmp_path / "cache", lines.append)
    assert len(lines) == 1  # found in the cache
    assert not list((tmp_path / "cache").glob("*.tmp"))
    as_it_is = prepare(config, OFF, no_split, tmp_path / "cache")
    assert [d.id for d in as_it_is.documents(range(3))] == ["1", "2", "3"]
    write(tmp_path / "c.jsonl", records[:1])  # another content is another corpus
    assert len(prepare(config, OFF, no_split, tmp_path / "cache").numbers("train")) == 1


def test_interrupted_store_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path / "c.jsonl", [{"id": "1", "text": ENGLISH}])
    monkeypatch.setattr(store_module, "_write", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(config, OFF, SplitConfig(), tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["digests.json"]
    monkeypatch.undo()
    assert prepare(config, OFF, SplitConfig(), tmp_path / "cache").meta["documents"]


def test_no_document_is_on_two_sides(tmp_path: Path) -> None:
    records = [
        {"id": "a#1", "text": ENGLISH, "split": "train"},
        {"id": "a#2", "text": SPANISH, "split": "val"},
    ]
    config = write(tmp_path / "c.jsonl", records)
    prepare(config, OFF, SplitConfig(), tmp_path / "cache")
    grouped = CorpusConfig(path=config.path, split_field="split", group_until="#")
    with pytest.raises(UserError, match=r"document a#1: .* in 'train' and 'val'"):
        prepare(grouped, OFF, SplitConfig(), tmp_path / "cache")


def test_all_dropped_is_an_error(tmp_path: Path) -> None:
    config = write(tmp_path / "c.jsonl", [{"id": "1", "text": "1 2 3"}])
    with pytest.raises(UserError, match=r"no text is left after cleaning .*without letters"):
        prepare(config, CleaningConfig(), SplitConfig(), tmp_path / "cache")


def test_real_text_is_kept(tmp_path: Path) -> None:
    """The passes must not eat case reports: over 97% of the characters stay, in each language."""
    folder, split = real_data("text_multilingual"), SplitConfig(val_fraction=0.3)
    for name, language in (("it_ital_j_med", "it"), ("es_spaccc_cases", "es")):
        config = CorpusConfig(path=str(folder / f"{name}.jsonl"))
        lines = Path(config.path).read_text().splitlines()[:40]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        config = CorpusConfig(path=str(tmp_path / f"{name}.jsonl"))
        raw = prepare(config, OFF, split, tmp_path / "cache")
        clean = prepare(config, CleaningConfig(languages=(language,)), split, tmp_path / "cache")
        kept = sum(clean.meta["characters"].values()) / sum(raw.meta["characters"].values())
        assert kept > 0.97, clean.meta["dropped"]
        ids = [{d.id for d in clean.documents(clean.numbers(s))} for s in ("train", "val")]
        assert ids[1]
        assert not any(a & b for a, b in itertools.combinations(ids, 2))
