"""The probe on a small BERT that transformers wrote: rows, truncation, learning, the program."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from tests.vlp.text.test_vocabulary import KINDS, TEXTS, config_of
from tests.vlp.tiny import MODEL, make_tokenizer
from vlp.config import UserError, load_config
from vlp.data.text import CaptionTokenizer, clean
from vlp.text.labelled import Labelled
from vlp.text.probe import Course, main, probe, train, train_way
from vlp.text.probe_rows import compute_each_time, compute_once, encode
from vlp.text.probe_setting import ProbeConfig, Setting
from vlp.text.vocabulary import train_vocabulary

DRUGS, ORGANS, OTHER = ("liver", "glands", "brain"), ("DAPI", "CT"), ("the", "of", "and", "a")


def sentences(count: int, seed: int) -> list[dict[str, str]]:
    """Two words in a row of DRUGS are an entity, one of ORGANS is; the class is what is first."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        words, tags = [], []
        for _ in range(rng.integers(2, 5)):
            drug, organ = bool(rng.random() < 0.4), bool(rng.random() < 0.5)
            words += [str(rng.choice(OTHER))]
            tags += ["O"]
            if drug:
                words += rng.choice(DRUGS, 2).tolist()
                tags += ["B-Drug", "I-Drug"]
            elif organ:
                words += [str(rng.choice(ORGANS))]
                tags += ["B-Organ"]
        split = ("train", "train", "val", "test")[number % 4]
        label = next((tag[2:] for tag in tags if tag != "O"), "none")
        rows.append(
            {"text": " ".join(words), "tags": " ".join(tags), "label": label, "split": split}
        )
    return rows


RATES = ("rates.frozen=[3e-2]", "rates.lora=[1e-2]", "rates.full=[3e-3]")
"""For so small a model and so few steps."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BertForMaskedLM with random weights, a tokenizer, and labelled sentences."""
    found = tmp_path_factory.mktemp("probe")
    make_tokenizer(found)
    torch.manual_seed(0)
    text = MODEL.text.hugging_face() | {"vocab_size": 120, "initializer_range": 0.2}
    BertForMaskedLM(BertConfig(**text)).save_pretrained(found)
    lines = [json.dumps(row) + "\n" for row in sentences(160, 0)]
    (found / "data.jsonl").write_text("".join(lines))
    return found


def config(folder: Path, *arguments: str) -> ProbeConfig:
    given = [f"model={folder}", f"data={folder / 'data.jsonl'}", "length=24", "batch=16", "seeds=1"]
    return load_config(
        ProbeConfig, [*given, "lora.rank=4", "resamples=100", "device=cpu", *arguments]
    )


def epochs(number: int) -> list[str]:
    return [f"epochs.{way}={number}" for way in ("frozen", "lora", "full")]


def test_words_are_read_at_their_first_piece(folder: Path) -> None:
    """As transformers' word_ids say; \\u200b is a word without pieces."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = ["T2-weighted", "\u200b", "mitochondria", "(", "µm", ")"]
    one = Labelled(" ".join(words), ("O",) * len(words))
    setting = Setting.of(config(folder))
    encoded = encode(setting.base.tokenizer(), [one], "entities", ["O"])[0]
    theirs = tokenizer(words, is_split_into_words=True)
    assert encoded.ids.tolist() == theirs["input_ids"]
    assert encoded.units.tolist() == [0, 2, 3, 4, 5]
    assert encoded.places.tolist() == [theirs.word_ids().index(n) for n in (0, 2, 3, 4, 5)]


@pytest.mark.parametrize("kind", KINDS)
def test_words_have_the_pieces_of_the_text(kind: str, tmp_path: Path) -> None:
    """Whatever the kind of vocabulary; and a word's first piece is where its text begins."""
    train_vocabulary(TEXTS, config_of(kind, size=330), tmp_path)
    tokenizer = CaptionTokenizer(tmp_path, 512).tokenizer
    for text in map(clean, TEXTS):
        words = text.split(" ")
        one = encode(tokenizer, [Labelled(text, ("O",) * len(words))], "entities", ["O"])[0]
        assert one.ids.tolist() == tokenizer.encode(text).ids
        assert one.units.tolist() == list(range(len(words)))
        edges = [*one.places.tolist(), len(one.ids) - 1]
        for word, (first, end) in zip(words, pairwise(edges), strict=True):
            pieces = tokenizer.decode(one.ids[first:end].tolist()).replace(" ", "")
            assert pieces == tokenizer.normalizer.normalize_str(word)


@pytest.mark.parametrize("how", ["words", "mean", "cls"])
def test_rows_equal_transformers(folder: Path, how: str) -> None:
    """Sentence by sentence without padding; 1e-5: fp32, sums in another order."""
    task = "entities" if how == "words" else "sentences"
    setting = Setting.of(
        config(folder, f"task={task}", f"pool={'cls' if how == 'cls' else 'mean'}")
    )
    chosen = setting.encoded["test"][:5]
    encoder = setting.encoder("frozen", 0).eval()
    bert = BertForMaskedLM.from_pretrained(folder).bert.eval()
    with torch.no_grad():
        found = encoder(chosen)
        want = []
        for one in chosen:
            states = bert(input_ids=torch.from_numpy(one.ids)[None]).last_hidden_state[0]
            want.append(states.mean(0, keepdim=True) if how == "mean" else states[one.places])
    torch.testing.assert_close(found, torch.cat(want), rtol=1e-5, atol=1e-5)


def test_rows_kept_are_rows_computed(folder: Path) -> None:
    """A frozen encoder's rows in another order and other batches; 1e-6: fp32."""
    setting = Setting.of(config(folder))
    encoder, some = setting.encoder("frozen", 0), setting.encoded["val"]
    kept, computed = compute_once(encoder, some, 7), compute_each_time(encoder, some)
    with torch.no_grad():
        torch.testing.assert_close(kept([9, 2, 30]), computed([9, 2, 30]), rtol=1e-6, atol=1e-6)


def test_words_cut_off_are_missed(folder: Path) -> None:
    """With room for two pieces the rest of each sentence is O, and its entities still count."""
    setting = Setting.of(config(folder, "length=4", *epochs(1)))
    trained, counts = train_way(setting, "frozen", 0)
    true = [one.labels for one in setting.splits["test"]]
    predicted = trained.predict(setting, "test")
    cut = 0
    for tags, guessed, one in zip(true, predicted, setting.encoded["test"], strict=True):
        assert len(guessed) == len(tags)
        hidden = set(range(len(tags))) - set(one.units.tolist())
        assert all(guessed[place] == "O" for place in hidden)
        cut += len(hidden)
    assert cut == setting.facts()["words cut off"]["test"] > 100
    whole = Setting.of(config(folder)).count("test", true)
    assert counts.sum(0)[:, 2].tolist() == whole.sum(0)[:, 2].tolist()


def test_what_is_trained(folder: Path) -> None:
    """Frozen and LoRA leave the base's weights bit for bit, full changes all of them."""
    setting = Setting.of(config(folder, *epochs(1)))
    base = {name.removeprefix("bert."): value for name, value in setting.base.weights.items()}
    head = 32 * 4 + 4  # O, B-Drug, I-Drug, B-Organ
    for way, size in (("frozen", head), ("lora", head + 3 * 2 * 2 * 4 * 32), ("full", None)):
        encoder = setting.encoder(way, 0)  # type: ignore[arg-type]
        rows = {split: compute_each_time(encoder, of) for split, of in setting.encoded.items()}
        trained = train(setting, encoder, rows, Course(1e-2, 1, 0))
        assert size is None or trained.trained == size
        state = encoder.bert.state_dict()
        same = {name for name in base if name in state and torch.equal(state[name], base[name])}
        if way == "full":
            assert not [name for name in same if "query.weight" in name or "dense.weight" in name]
        else:
            assert same == {name for name in base if not name.startswith("cls.")}
        assert not [p for p in trained.head.parameters() if not p.requires_grad]


def test_entities_are_learnt(folder: Path) -> None:
    found = probe(config(folder, *epochs(15), *RATES), Console(quiet=True))["found"]
    reached = {way: row["scores"]["micro F1"]["value"] for way, row in found.items()}
    # Organs show in the word itself, the beginnings of drugs in their neighbours alone.
    assert reached["full"] > 0.75 > 0.6 > reached["baseline"]
    assert reached["lora"] > reached["baseline"]
    assert reached["lora"] > reached["frozen"]
    drugs = {way: row["scores"]["F1 of Drug"]["value"] for way, row in found.items()}
    assert drugs["full"] > drugs["baseline"] + 0.2
    assert set(found["full"]["scores"]) == {"micro F1", "F1 of Drug", "F1 of Organ"}
    assert found["full"]["trained"] > 10 * found["lora"]["trained"]


def test_classes_are_learnt(folder: Path) -> None:
    given = ["task=sentences", *epochs(15), "ways=[frozen,full]", *RATES]
    found = probe(config(folder, *given), Console(quiet=True))["found"]
    reached = {way: row["scores"]["accuracy"]["value"] for way, row in found.items()}
    assert reached["full"] > 0.85 > 0.7 > reached["baseline"]
    assert reached["frozen"] > reached["baseline"]


def test_the_rate_that_is_best_on_val_is_taken(folder: Path) -> None:
    setting = Setting.of(config(folder, "rates.frozen=[1e-9,3e-2]", *epochs(10)))
    trained, counts = train_way(setting, "frozen", 0)
    assert trained.rate == 3e-2
    again, same = train_way(setting, "frozen", 0)
    assert again.rate == 3e-2
    assert np.array_equal(counts, same)  # the same seed, the same result
    _, other = train_way(setting, "frozen", 1)
    assert not np.array_equal(counts, other)


def test_program(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "probe.json"
    arguments = [f"model={folder}", f"data={folder / 'data.jsonl'}", "length=24", *epochs(1)]
    main([*arguments, "seeds=2", "ways=[random,frozen]", f"out={out}", "train_sentences=20"])
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["data"]["sentences"] == {"train": 20, "val": 40, "test": 40}
    for way in ("random", "frozen"):
        score = result["found"][way]["scores"]["micro F1"]
        assert len(score["seeds"]) == len(result["found"][way]["rates"]) == 2
        assert score["low"] <= score["value"] <= score["high"]
        for shown in (f"{score['value']:.3f}", f"{score['low']:.3f} - {score['high']:.3f}"):
            assert shown in printed
    assert result["settings"]["train_sentences"] == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["length=40"], "length=40: .* has 32 positions"),
        (["only.split=train"], "no sentences of split 'test' only.split=train"),
        (["labels=label"], "field 'label' holds no IOB tags"),
        (["task=sentences", "labels=split"], "'split' has one label"),
        (["ways=[]"], "ways: name some of"),
        (["ways=[lora]", "lora.rank=0"], "lora.rank must be 1 or more"),
        (["rates.full=[]"], "rates, epochs: full needs positive numbers"),
        (["epochs.frozen=0"], "rates, epochs: random needs positive numbers"),
        (["model="], "set model=FOLDER and data=FILE.jsonl"),
        (["model=/nowhere/x"], "/nowhere/x"),
        (["seeds=0"], "seeds, batch and resamples must be 1 or more"),
    ],
)
def test_bad_settings(folder: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Setting.of(config(folder, *arguments))


def test_without_val_there_is_one_rate(folder: Path, tmp_path: Path) -> None:
    rows = [row for row in sentences(40, 1) if row["split"] != "val"]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: list[Any] = [f"data={tmp_path / 'data.jsonl'}", "ways=[frozen]", *epochs(1)]
    with pytest.raises(UserError, match="no split 'val' to choose a learning rate by"):
        Setting.of(config(folder, *given))
    found = probe(config(folder, *given, "rates.frozen=[1e-2]"), Console(quiet=True))
    assert found["found"]["frozen"]["rates"] == [1e-2]
