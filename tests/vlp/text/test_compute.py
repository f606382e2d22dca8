"""Counted operations against PyTorch's counter, a run's against its rows one by one."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.vlp.text.test_vocabulary import TEXTS, config_of
from tests.vlp.tiny import MODEL
from vlp.data.text import CaptionTokenizer, PackedText
from vlp.flops import step_flops
from vlp.models.text_tower import TextConfig
from vlp.text.cache import PackedCorpora, tokenize
from vlp.text.cleaning import CleaningConfig
from vlp.text.compute import Costs, RunCosts, costs_of, objective_flops
from vlp.text.corpora import CorpusConfig
from vlp.text.documents import SplitConfig
from vlp.text.lora import add_lora
from vlp.text.masked_lm import MaskedLM
from vlp.text.mixture import MixtureConfig, StageConfig
from vlp.text.objectives import Objective
from vlp.text.settings import LoraConfig
from vlp.text.store import prepare
from vlp.text.vocabulary import train_vocabulary

BERT = dataclasses.replace(MODEL.text, vocab_size=120)
PLAIN = LoraConfig()


def counted(config: TextConfig, lora: LoraConfig, masked: int, cls_only: bool) -> int:
    """What PyTorch counts for 5 sequences of 7 tokens: equally long, so that nothing is padded."""
    model = MaskedLM(config)
    if lora.rank:
        add_lora(model.bert, lora)
    starts = torch.arange(6, dtype=torch.int32) * 7
    text = PackedText(torch.randint(5, 100, (35,)), starts, 24)
    # Fused attention computes the scores once more in backward.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        states = model.bert(text) if cls_only else model.bert.states(text)
        targets = torch.randint(5, 100, (masked,))
        loss = F.cross_entropy(model.logits(states[:masked]), targets) if masked else states.sum()
        loss.backward()
    return int(counter.get_total_flops())


LORAS = [
    PLAIN,
    LoraConfig(rank=4),
    LoraConfig(rank=4, targets=("key",)),
    LoraConfig(rank=2, targets=("dense",)),
    LoraConfig(rank=3, targets=("query", "key", "value", "dense")),
]


@pytest.mark.parametrize("lora", LORAS, ids=lambda lora: f"{lora.rank}-{'-'.join(lora.targets)}")
@pytest.mark.parametrize("cls_only", [False, True])
def test_operations_equal_the_counter(lora: LoraConfig, cls_only: bool) -> None:
    masked = 0 if cls_only else 6
    got = costs_of(BERT, lora, cls_only).of([7] * 5, masked)
    assert got == counted(BERT, lora, masked, cls_only)


def test_cls_only_costs_what_the_text_tower_costs() -> None:
    """Without its projection, which is linear here."""
    config = dataclasses.replace(MODEL, text=dataclasses.replace(MODEL.text, proj="linear"))
    lengths = [3, 24, 9]
    projection = 3 * 2 * config.text.width * config.embed_dim * len(lengths)
    want = step_flops(config, 0, torch.tensor(lengths)) - projection
    assert costs_of(config.text, PLAIN, cls_only=True).of(lengths) == pytest.approx(want, rel=1e-12)


class Drawn(NamedTuple):
    text: PackedText
    labels: torch.Tensor


class Draw:
    """3 texts of a length that differs from step to step."""

    def draw(self, step: int, rank: int, ranks: int) -> Drawn:
        length = 5 + step % 2
        starts = torch.arange(4, dtype=torch.int32) * length
        return Drawn(PackedText(torch.randint(5, 100, (3 * length,)), starts, 24), torch.zeros(3))


class Head(torch.nn.Sequential):
    def forward(self, bert: torch.nn.Module, drawn: Drawn) -> torch.Tensor:
        return super().forward(bert(drawn.text)).sum()


@pytest.mark.parametrize("lora", LORAS[:2], ids=["whole", "lora"])
def test_further_objectives_cost_what_the_counter_counts(lora: LoraConfig) -> None:
    head = Head(torch.nn.Linear(32, 9), torch.nn.GELU(), torch.nn.LayerNorm(9))
    bert = MaskedLM(BERT).bert
    if lora.rank:
        add_lora(bert, lora)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for step in range(2):
            head(bert, Draw().draw(step, 0, 1)).backward()
    got = objective_flops({"one": Objective(1.0, Draw(), head)}, BERT, lora)
    assert got == counter.get_total_flops() / 2
    assert objective_flops({}, BERT, lora) == 0


def corpora_of(folder: Path, stages: list[StageConfig]) -> PackedCorpora:
    """Two corpora of documents of 1 to 7 texts in rows of 24 tokens."""
    tokenizer = folder / "tokenizer"
    train_vocabulary(TEXTS, config_of("wordpiece", size=330), tokenizer)
    tokens = {}
    for name, count in (("one", 23), ("two", 7)):
        lines = []
        for number in range(count):
            texts = [TEXTS[(number + k) % len(TEXTS)] for k in range(1 + number % 7)]
            lines.append(json.dumps({"id": f"{name}{number}", "text": " ".join(texts)}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
        corpus = CorpusConfig(path=str(folder / f"{name}.jsonl"))
        cleaning = CleaningConfig(ill_formed=False, duplicates="none")
        store = prepare(corpus, cleaning, SplitConfig(val_fraction=0), folder / "cache")
        tokens[name] = tokenize(store, "train", tokenizer, folder / "cache")
    sizes = {"one": 3000, "two": 1000}
    config = MixtureConfig(stages=stages)
    return PackedCorpora(tokens, sizes, config, CaptionTokenizer(tokenizer, 24), batch=4)


COSTS = Costs(sequence=5.0, token=3.0, square=2.0, masked=7.0)
STAGES = {
    "one stage": [StageConfig()],
    "amplified": [StageConfig(weights={"one": "auto", "two": "auto"})],
    "broken passes": [
        StageConfig(weights={"one": "0.4"}, steps=9),
        StageConfig(weights={"two": "1.7", "one": "0.6"}, steps=11),
        StageConfig(weights={"two": "2"}),
    ],
    "short sequences first": [
        StageConfig(length=7, steps=13),
        StageConfig(weights={"two": "2"}, length=12, steps=20),
        StageConfig(),
    ],
}


@pytest.mark.parametrize("stages", STAGES.values(), ids=STAGES)
def test_a_run_is_the_sum_of_its_rows(tmp_path: Path, stages: list[StageConfig]) -> None:
    """Against every batch, made and counted one by one."""
    corpora = corpora_of(tmp_path, stages)
    run = RunCosts(corpora, COSTS, share=0.15, batch=4, extra=11.0)
    tokens = masked = 0
    flops = 0.0
    for step in range(70):  # several passes over each corpus
        assert run.spent(step).tokens == tokens
        assert run.spent(step).masked == masked
        assert run.spent(step).flops == pytest.approx(flops, rel=1e-12)
        for position in range(4 * step, 4 * step + 4):
            lengths = corpora.batch([position]).cu_seqlens.diff().numpy()
            chosen = round(0.15 * int((lengths - 2).sum()))
            tokens, masked = tokens + int(lengths.sum()), masked + chosen
            flops += COSTS.of(lengths, chosen)
        flops += 11.0


def test_steps_for_a_budget_are_the_nearest(tmp_path: Path) -> None:
    run = RunCosts(corpora_of(tmp_path, STAGES["broken passes"]), COSTS, share=0.15, batch=4)
    spent = np.array([run.spent(steps).flops for steps in range(200)])
    for flops in np.linspace(1, spent[150], 300):
        steps = run.steps_for(flops)
        assert steps >= 1
        assert abs(spent[steps] - flops) == np.abs(spent[1:] - flops).min()


@given(st.integers(1, 40), st.integers(0, 100))
def test_longer_sequences_cost_more_than_their_parts(length: int, masked: int) -> None:
    """Attention is quadratic; everything else adds up."""
    costs = costs_of(BERT, PLAIN)
    pair, halves = costs.of([2 * length], masked), costs.of([length, length], masked)
    assert pair - halves == pytest.approx(2 * length**2 * costs.square)


def test_known_size_of_bert_base() -> None:
    """6 operations per parameter and token (Kaplan et al. 2020, section 2.1), and attention."""
    base = costs_of(TextConfig(), PLAIN)
    assert base.token == 6 * 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert base.square == 3 * 12 * 4 * 768
    assert base.masked == 6 * (768**2 + 768 * 30522)
