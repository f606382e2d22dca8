"""Starting from BERTs that transformers saved, with their vocabulary and with another one."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForTokenClassification,
    BertModel,
)

from tests.vlp.tiny import CAPTIONS
from vlp.config import UserError
from vlp.data.text import CaptionTokenizer, PackedText
from vlp.text.base import Base, load_base, start, transfer
from vlp.text.build import start_heads
from vlp.text.masked_lm import MaskedLM
from vlp.text.next_sentence import NextSentenceHead, Pairs
from vlp.text.objectives import Objective
from vlp.text.vocabulary import VocabularyConfig, train_vocabulary

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "hidden_act": "gelu",
}
WORDS = "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    train_vocabulary(CAPTIONS * 3, VocabularyConfig(size=150), folder)
    return folder


def make(folder: Path, vocabulary: Path, kind: Any = BertForMaskedLM, **changes: Any) -> Any:
    """A model of transformers in a folder with its tokenizer; random weights, biases too."""
    torch.manual_seed(0)
    size = CaptionTokenizer(vocabulary, 8).vocab_size
    model = kind(BertConfig(**(SHAPE | {"vocab_size": size} | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((vocabulary / name).read_bytes())
    return model


def begun(base: Base, tokenizer: CaptionTokenizer) -> tuple[MaskedLM, list[str]]:
    torch.manual_seed(1)
    config = base.encoder(tokenizer.context_length, tokenizer.vocab_size)
    lm = MaskedLM(config, tokenizer.pad_id)
    return lm, start(lm, base, tokenizer)


def logits(lm: MaskedLM, text: PackedText) -> Tensor:
    with torch.no_grad():
        return lm.logits(lm.bert.states(text))


def theirs(model: Any, text: PackedText) -> Tensor:
    """Logits of transformers for packed text, row by row."""
    rows = torch.split(text.input_ids, text.cu_seqlens.diff().tolist())
    with torch.no_grad():
        outputs = [model(input_ids=row[None]) for row in rows]
    key = "prediction_logits" if isinstance(model, BertForPreTraining) else "logits"
    return torch.cat([output[key][0] for output in outputs])


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining])
def test_logits_are_transformers(kind: Any, vocabulary: Path, tmp_path: Path) -> None:
    """To 1e-5, the fp32 rounding of two ways to sum."""
    model = make(tmp_path, vocabulary, kind)
    tokenizer = CaptionTokenizer(tmp_path, 40)
    lm, notes = begun(load_base(str(tmp_path)), tokenizer)
    text = tokenizer(CAPTIONS)
    torch.testing.assert_close(logits(lm, text), theirs(model, text), rtol=1e-5, atol=1e-5)
    assert notes == []


def test_the_head_of_next_sentences_is_transformers(vocabulary: Path, tmp_path: Path) -> None:
    """To 1e-5, as above; a model that has only the pooler of it has none."""
    model = make(tmp_path / "both", vocabulary, BertForPreTraining)
    base, tokenizer = load_base(str(tmp_path / "both")), CaptionTokenizer(vocabulary, 40)
    lm, _ = begun(base, tokenizer)
    head = NextSentenceHead(32)
    used = {"next_sentence": Objective(1.0, ANY, head)}
    assert start_heads(used, base) == []
    text = tokenizer(CAPTIONS)
    pairs = Pairs(text, torch.zeros_like(text.input_ids), torch.zeros(len(CAPTIONS)).long())
    rows = torch.split(text.input_ids, text.cu_seqlens.diff().tolist())
    with torch.no_grad():
        want = torch.cat([model(input_ids=row[None]).seq_relationship_logits for row in rows])
        torch.testing.assert_close(head.logits(lm.bert, pairs), want, rtol=1e-5, atol=1e-5)
    make(tmp_path / "pooler", vocabulary, BertModel)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    notes = start_heads(used, load_base(str(tmp_path / "pooler")))
    assert notes == ["the base has no head for next sentences: a new one is learnt"]
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert start_heads({}, base) == start_heads(used, None) == []


def test_a_model_without_the_head_gets_a_new_one(vocabulary: Path, tmp_path: Path) -> None:
    model = make(tmp_path, vocabulary, BertModel)
    base = load_base(str(tmp_path))
    tokenizer = CaptionTokenizer(tmp_path, 40)
    lm, notes = begun(base, tokenizer)
    assert not base.has_head
    assert notes == ["the base has no head for masked tokens: a new one is learnt"]
    text = tokenizer(CAPTIONS)
    rows = torch.split(text.input_ids, text.cu_seqlens.diff().tolist())
    with torch.no_grad():
        want = torch.cat([model(input_ids=row[None]).last_hidden_state[0] for row in rows])
        torch.testing.assert_close(lm.bert.states(text), want, rtol=1e-5, atol=1e-5)
    assert not lm.cls["predictions"].bias.any()


def test_heads_for_other_tasks_are_left_out(vocabulary: Path, tmp_path: Path) -> None:
    make(tmp_path, vocabulary, BertForTokenClassification)
    assert not load_base(str(tmp_path)).has_head


def test_old_files_load(vocabulary: Path, tmp_path: Path) -> None:
    """As the first models were published: pickled tensors, TensorFlow's names, vocab.txt."""
    model = make(tmp_path, vocabulary)
    weights = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in weights.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
    torch.save(old, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    ids = CaptionTokenizer(tmp_path, 8).tokenizer.get_vocab()
    tokens = sorted(ids, key=lambda token: ids[token])
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    (tmp_path / "tokenizer.json").unlink()
    tokenizer = CaptionTokenizer(vocabulary, 40)
    lm, notes = begun(load_base(str(tmp_path)), tokenizer)
    text = tokenizer(CAPTIONS)
    torch.testing.assert_close(logits(lm, text), theirs(model, text), rtol=1e-5, atol=1e-5)
    assert notes == []


def test_fewer_positions(vocabulary: Path, tmp_path: Path) -> None:
    """A shorter table is the first rows of the base's; a longer one there is not."""
    model = make(tmp_path, vocabulary)
    base = load_base(str(tmp_path))
    tokenizer = CaptionTokenizer(tmp_path, 16)
    config = base.encoder(16, tokenizer.vocab_size)
    assert (config.context_length, config.max_positions) == (16, 40)
    lm = MaskedLM(dataclasses.replace(config, max_positions=16))
    assert start(lm, base, tokenizer) == ["the first 16 of 40 positions are kept"]
    text = tokenizer(CAPTIONS)
    torch.testing.assert_close(logits(lm, text), theirs(model, text), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"model.length=41: .* has 40 positions; set at most"):
        base.encoder(41, 150)


def test_rows_that_no_piece_has(vocabulary: Path, tmp_path: Path) -> None:
    """Tables are often padded to a multiple of 8 or 64."""
    size = CaptionTokenizer(vocabulary, 8).vocab_size
    model = make(tmp_path, vocabulary, vocab_size=size + 10)
    tokenizer = CaptionTokenizer(tmp_path, 40)
    lm, _ = begun(load_base(str(tmp_path)), tokenizer)
    text = tokenizer(CAPTIONS)
    want = theirs(model, text)[:, :size]
    torch.testing.assert_close(logits(lm, text), want, rtol=1e-5, atol=1e-5)


def test_another_vocabulary(vocabulary: Path, tmp_path: Path) -> None:
    """Each row against the definition, a piece at a time; all else is the base's."""
    make(tmp_path / "base", vocabulary)
    base = load_base(str(tmp_path / "base"))
    texts = ["Dysplastic glands of the mucosa, 猫 and mitochondria; 12 lesions"] * 5 + CAPTIONS * 2
    train_vocabulary(texts, VocabularyConfig(size=170, min_frequency=1), tmp_path / "new")
    tokenizer = CaptionTokenizer(tmp_path / "new", 40)
    lm, (note,) = begun(base, tokenizer)
    torch.manual_seed(1)
    fresh = MaskedLM(base.encoder(40, tokenizer.vocab_size), tokenizer.pad_id)
    old = base.tokenizer()
    rows, bias = base.weights[WORDS], base.weights["cls.predictions.bias"]
    counts = dict.fromkeys(("same", "mean", "random"), 0)
    for token, number in tokenizer.tokenizer.get_vocab().items():
        if (same := old.token_to_id(token)) is not None:
            kind, want, of_bias = "same", rows[same], bias[same]
        else:
            ids = old.encode(token.removeprefix("##"), add_special_tokens=False).ids
            if old.token_to_id("[UNK]") in ids:
                kind, want = "random", fresh.bert.embeddings.word_embeddings.weight[number]
                of_bias = torch.tensor(0.0)
            else:
                kind, want, of_bias = "mean", rows[ids].mean(0), bias[ids].mean(0)
        counts[kind] += 1
        torch.testing.assert_close(lm.bert.embeddings.word_embeddings.weight[number], want)
        torch.testing.assert_close(lm.cls["predictions"].bias[number], of_bias)
    assert all(counts.values()), counts
    size = tokenizer.vocab_size
    assert f"{counts['same']} of {size} pieces have the base's vectors" in note
    assert f"{counts['mean']} means of them, {counts['random']} random ones" in note
    for name, value in lm.state_dict().items():
        if name not in (WORDS, "cls.predictions.bias"):
            assert torch.equal(value, base.weights[name]), name


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_another_kind_of_vocabulary(kind: Any, vocabulary: Path, tmp_path: Path) -> None:
    """A piece that begins a word is that of the same text, whatever marks it."""
    train_vocabulary(CAPTIONS * 3, VocabularyConfig(kind=kind, size=400), tmp_path)
    new, old = (CaptionTokenizer(folder, 8).tokenizer for folder in (tmp_path, vocabulary))
    sources, _ = transfer(new, old)
    mark = {"bpe": "Ġ", "unigram": "▁"}[kind]
    for token in ("[MASK]", "[CLS]"):
        assert sources[new.token_to_id(token)] == [old.token_to_id(token)]
    begins = [t for t in new.get_vocab() if t.startswith(mark) and old.token_to_id(t[1:])]
    inside = [t for t in new.get_vocab() if t.isalnum() and old.token_to_id(f"##{t}")]
    assert begins
    assert inside
    for token in begins:
        assert sources[new.token_to_id(token)] == [old.token_to_id(token[1:])]
    for token in inside:
        assert sources[new.token_to_id(token)] == [old.token_to_id(f"##{token}")]
    assert sources[new.token_to_id(",")] == [old.token_to_id(",")]


def _change(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change config.json or the tensors of a folder."""

    def apply(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if name.endswith(".json") else load_file(path)
        change(content)
        if name.endswith(".json"):
            path.write_text(json.dumps(content))
        else:
            save_file(content, path)

    return apply


NORM = "bert.encoder.layer.1.output.LayerNorm.weight"
FAULTS = {
    "layers": (
        _change("config.json", lambda c: c.update(num_hidden_layers=10**9)),
        r"2 layers and \d+ pieces, config.json says 1000000000 and",
    ),
    "pieces": (
        _change("config.json", lambda c: c.update(vocab_size=10**12)),
        r"config.json says 2 and 1,000,000,000,000; take both files from one model",
    ),
    "width": (
        _change("config.json", lambda c: c.update(hidden_size=64)),
        r"not the weights of its config.json \(.* of another shape",
    ),
    "missing key": (
        _change("config.json", lambda c: c.pop("hidden_size")),
        r"config.json: not a BERT's configuration: KeyError\('hidden_size'\)",
    ),
    "nonsense": (
        _change("config.json", lambda c: c.update(hidden_size="wide")),
        r"config.json: not a BERT's configuration",
    ),
    "another architecture": (
        _change("config.json", lambda c: c.update(model_type="roberta")),
        r"not a BERT with exact GELU",
    ),
    "segments": (
        _change("config.json", lambda c: c.update(type_vocab_size=3)),
        r"type_vocab_size=3; only 2 is built",
    ),
    "missing weight": (
        _change("model.safetensors", lambda w: w.pop(NORM)),
        rf"1 missing: {NORM}",
    ),
    "not finite": (
        _change("model.safetensors", lambda w: w[NORM].fill_(float("nan"))),
        rf"{NORM} holds numbers that are not finite",
    ),
    "untied": (
        _change(
            "model.safetensors",
            lambda w: w.update({"cls.predictions.decoder.weight": w[WORDS] + 1}),
        ),
        r"cls.predictions.decoder.weight is not the word embeddings",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"no weights in this folder"),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        r"has neither tokenizer.json nor vocab.txt",
    ),
    "cut off": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x08"),
        r"model.safetensors: not readable as safetensors",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault: str, vocabulary: Path, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    make(tmp_path, vocabulary)
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        begun(load_base(str(tmp_path)), CaptionTokenizer(vocabulary, 40))


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"base=.*nowhere: no such folder"):
        load_base(str(tmp_path / "nowhere"))


def test_a_tokenizer_of_a_larger_model(vocabulary: Path, tmp_path: Path) -> None:
    make(tmp_path, vocabulary, vocab_size=20)
    with pytest.raises(UserError, match=r"its tokenizer has pieces up to \d+, its weights 20 rows"):
        begun(load_base(str(tmp_path)), CaptionTokenizer(vocabulary, 40))
