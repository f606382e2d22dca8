"""Matching sections: against document-by-document sums, and against the bug of a zero logit."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.vlp.text.objectives_data import NORMAL, Home
from vlp.losses import LossConfig, contrastive_loss
from vlp.models.dual_encoder import Features
from vlp.text import sections
from vlp.text.sections import SectionMates, SectionsHead, mates_loss, recall_of_mates


def vectors(count: int = 9, width: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    first = F.normalize(torch.randn(count, width), dim=-1)
    second = F.normalize(first + 0.5 * torch.randn(count, width), dim=-1)
    return first.requires_grad_(), second.requires_grad_()


def digests(count: int = 9, shared: tuple[tuple[int, int, int], ...] = ()) -> Tensor:
    """Numbers that differ, but for (section, document, other document)."""
    numbers = torch.arange(2 * count).view(count, 2)
    for section, one, other in shared:
        numbers[one, section] = numbers[other, section]
    return numbers


SHARED = ((1, 2, 5), (1, 7, 5), (0, 3, 4))


def share_no_text(texts: Tensor, one: int, other: int) -> bool:
    return bool(texts[one, 0] != texts[other, 0] and texts[one, 1] != texts[other, 1])


def slow_loss(first: Tensor, second: Tensor, texts: Tensor, temperature: float) -> Tensor:
    """Document by document, each with the other documents that share no text with it."""
    total = torch.zeros(())
    for queries, answers in ((first, second), (second, first)):
        for i, query in enumerate(queries):
            others = [j for j in range(len(answers)) if share_no_text(texts, i, j)]
            mate = torch.exp(query @ answers[i] / temperature)
            rest = sum(torch.exp(query @ answers[j] / temperature) for j in others)
            total = total - torch.log(mate / (mate + rest))
    return total / (2 * len(first))


@pytest.mark.parametrize("shared", [(), SHARED])
def test_equals_the_slow_sum(shared: tuple[tuple[int, int, int], ...]) -> None:
    """To 1e-5: exponentials and logarithms in fp32."""
    results = []
    for loss in (mates_loss, slow_loss):
        first, second = vectors()
        value = loss(first, second, digests(shared=shared), 0.1)
        value.backward()
        results.append((value.detach(), first.grad, second.grad))
    for ours, slow in zip(*results, strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-5, atol=1e-5)


def test_without_shared_texts_it_is_the_contrastive_loss() -> None:
    first, second = vectors()
    features = Features(first, second, torch.tensor(1 / 0.07), None)
    want = contrastive_loss(features, LossConfig())
    assert mates_loss(first, second, digests(), 0.07).item() == pytest.approx(want.item(), rel=1e-5)


def test_a_zero_logit_would_be_a_negative() -> None:
    """Equal impressions as published code treats them: their logits read 0, not minus infinity."""
    first, second = (2 * mates for mates in vectors())  # logits of 4 and less at t = 1
    texts = digests(shared=SHARED)
    same = (texts[:, None] == texts).any(-1).fill_diagonal_(False)
    logits = (first @ second.T).masked_fill(same, 0.0)
    own = torch.arange(len(first))
    bug = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    ours = mates_loss(first, second, texts, 1.0)
    assert bug - ours > 0.02
    # Of two documents with one impression there is nothing to learn.
    twins = digests(2, ((1, 0, 1),))
    assert mates_loss(first[:2], second[:2], twins, 1.0) == 0
    zeros = torch.eye(2) * (first[:2] @ second[:2].T)
    assert F.cross_entropy(zeros, own[:2]) > 0.02


def test_recall_equals_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "_BLOCK", 4)
    torch.manual_seed(1)
    first = F.normalize(torch.randn(30, 8), dim=-1)
    second = F.normalize(first + 0.6 * torch.randn(30, 8), dim=-1)
    second[11], second[12] = second[10], second[10]
    texts = digests(30, ((1, 11, 10),))  # 12 only happens to have the same vector
    found = []
    for x, y in ((first, second), (second, first)):
        hits = 0
        for i in range(30):
            rivals = [j for j in range(30) if share_no_text(texts, i, j)]
            hits += all(x[i] @ y[i] > x[i] @ y[j] for j in rivals)
        found.append(hits / 30)
    recall = recall_of_mates(first, second, texts)
    assert recall == (*found, 30)
    assert 0.1 < found[0] < 0.9
    unlike = recall_of_mates(first, second, digests(30))
    assert unlike.second_of_first <= recall.second_of_first


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("sections"))


def test_draws_both_sections_of_each_document_once_per_epoch(home: Home) -> None:
    config = home.config("objectives.sections.pairs=4").objectives.sections
    mates = SectionMates.open(config, home.tokens(), home.tokenizer)
    store = home.stores["reports"]
    documents = {
        document.sections[0].text: document.sections[1].text
        for document in store.documents(store.numbers("train"))
    }
    epoch = len(documents) // 4
    seen, equal = [], 0
    for step in range(epoch):
        drawn = mates.draw(step, 0, 1)
        rows = drawn.text.input_ids.split(drawn.text.cu_seqlens.diff().tolist())
        texts = [tuple(row.tolist()) for row in rows]
        for place, (one, other) in enumerate(zip(texts[:4], texts[4:], strict=True)):
            seen.append((one, other))
            for rank in range(4):
                same = drawn.digests[place, 1] == drawn.digests[rank, 1]
                assert same == (other == texts[4 + rank])
                equal += bool(same) and rank != place
    assert equal > 0  # "no acute finding."
    encoded = home.tokenizer(list(documents))
    first = encoded.input_ids.split(encoded.cu_seqlens.diff().tolist())
    encoded = home.tokenizer(list(documents.values()))
    second = encoded.input_ids.split(encoded.cu_seqlens.diff().tolist())
    there = {(tuple(a.tolist()), tuple(b.tolist())) for a, b in zip(first, second, strict=True)}
    assert len(set(seen)) == len(seen) == 4 * epoch
    assert set(seen) <= there
    assert NORMAL in documents.values()


def test_the_head_projects_as_cxr_bert_does(home: Home) -> None:
    """Linear, GELU, LayerNorm, linear of [CLS]; each section encoded by itself."""
    config = home.config().objectives.sections
    torch.manual_seed(0)
    bert, head = home.bert(), SectionsHead(32, config)
    drawn = SectionMates.open(config, home.tokens(), home.tokenizer).draw(0, 0, 1)
    one, _, norm, other = head.projection
    found = []
    for ids in drawn.text.input_ids.split(drawn.text.cu_seqlens.diff().tolist()):
        alone = drawn.text._replace(input_ids=ids, cu_seqlens=torch.tensor([0, len(ids)]).int())
        cls = bert.states(alone)[:1]
        hidden = 0.5 * one(cls) * (1 + torch.erf(one(cls) / math.sqrt(2)))
        found.append(F.normalize(other(norm(hidden)), dim=-1))
    want = mates_loss(*torch.cat(found).chunk(2), drawn.digests, config.temperature)
    torch.testing.assert_close(head(bert, drawn), want, rtol=1e-5, atol=1e-6)
