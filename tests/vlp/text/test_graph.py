"""Links of a graph: against sums triple by triple, and what is drawn from files of users."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.vlp.text.objectives_data import TRIPLES, Home
from vlp.config import UserError
from vlp.models.text_tower import PackedBert
from vlp.text import graph
from vlp.text.graph import GraphHead, GraphLinks, Links, read_triples, shuffled


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("graph"))


def opened(home: Home, *overrides: str) -> GraphLinks:
    return GraphLinks.open(home.config(*overrides).objectives.graph, home.tokenizer, seed=0)


def slow_loss(bert: PackedBert, head: GraphHead, drawn: Links) -> Tensor:
    """Every name encoded by itself, every score a sum of its own."""
    vectors = []
    for ids in drawn.text.input_ids.split(drawn.text.cu_seqlens.diff().tolist()):
        alone = drawn.text._replace(input_ids=ids, cu_seqlens=torch.tensor([0, len(ids)]).int())
        vectors.append(head.norm(bert.states(alone)[0]))

    def score(h: int, r: int, t: int) -> Tensor:
        return (vectors[h] * head.relations.weight[r] * vectors[t]).sum() / math.sqrt(32)

    total, half = torch.zeros(()), len(drawn.others) // 2
    for (h, r, t), false in zip(drawn.triples.tolist(), drawn.false.tolist(), strict=True):
        negatives = [
            -F.logsigmoid(-(score(other, r, t) if place < half else score(h, r, other)))
            for place, other in enumerate(drawn.others.tolist())
            if false[place]
        ]
        total = total - F.logsigmoid(score(h, r, t)) + sum(negatives) / max(1, len(negatives))
    return total / (2 * len(drawn.triples))


def test_equals_the_slow_sum(home: Home) -> None:
    """To 1e-5 of the largest gradient: sums in fp32 in another order."""
    torch.manual_seed(0)
    bert, drawer = home.bert(), opened(home)
    head = GraphHead(32, len(drawer.triples.relations))
    results = []
    for loss in (head, lambda bert, drawn: slow_loss(bert, head, drawn)):
        value = loss(bert, drawer.draw(1, 0, 1))
        value.backward()
        grads = [
            p.grad.clone() for p in (*bert.parameters(), *head.parameters()) if p.grad is not None
        ]
        results.append((value.detach(), grads))
        bert.zero_grad()
        head.zero_grad()
    (ours, grads), (slow, wanted) = results
    assert ours.item() == pytest.approx(slow.item(), rel=1e-5)
    largest = max(grad.abs().max() for grad in wanted)
    assert len(grads) == len(wanted) > 20
    for got, want in zip(grads, wanted, strict=True):
        assert (got - want).abs().max() <= 1e-5 * largest


def names(drawer: GraphLinks, drawn: Links, home: Home) -> list[str]:
    """The concepts of `drawn.text`."""
    tokenized = {
        tuple(home.tokenizer([name]).input_ids.tolist()): name for name in drawer.triples.concepts
    }
    rows = drawn.text.input_ids.split(drawn.text.cu_seqlens.diff().tolist())
    return [tokenized[tuple(row.tolist())] for row in rows]


def test_true_triples_are_never_negatives(home: Home) -> None:
    drawer, true = opened(home), set(TRIPLES)
    relations, seen, refused = drawer.triples.relations, [], 0
    for step in range(6):  # one epoch: 48 triples
        drawn = drawer.draw(step, 0, 1)
        concepts = names(drawer, drawn, home)
        assert drawn.false.shape == (8, 10)
        for (h, r, t), false in zip(drawn.triples.tolist(), drawn.false.tolist(), strict=True):
            head, relation, tail = concepts[h], relations[r], concepts[t]
            seen.append((head, relation, tail))
            for place, other in enumerate(drawn.others.tolist()):
                name = concepts[other]
                corrupted = (name, relation, tail) if place < 5 else (head, relation, name)
                assert false[place] == (corrupted not in true)
                refused += not false[place]
    assert sorted(seen) == sorted(true)  # each once
    assert refused > 10


def test_the_shuffled_control_says_nothing(home: Home) -> None:
    triples = read_triples(home.folder / "graph.tsv")
    control = shuffled(triples, seed=0)
    assert control.concepts == triples.concepts
    for column in (0, 2):  # as often as before, or less where two became one
        before, after = (np.bincount(t.links[:, column], minlength=99) for t in (triples, control))
        assert (after <= before).all()
    common = np.isin(control.keys(control.links), triples.keys(triples.links)).mean()
    assert common < 0.2  # by chance: a tail of four is of the same sign, half of the relations fit
    assert len(control.links) > 40
    drawn, plain = (
        opened(home, f"objectives.graph.shuffled={on}").draw(0, 0, 1) for on in ("true", "false")
    )
    assert not torch.equal(drawn.triples, plain.triples)


def test_files_of_others(tmp_path: Path) -> None:
    file = tmp_path / "g.tsv"
    file.write_bytes(
        "\ufeffpneumonia\tis a\tlung  disease\r\n\r\nflu\tis a\tlung disease\n".encode()
    )
    triples = read_triples(file)
    assert triples.concepts == ("pneumonia", "lung disease", "flu")
    assert triples.links.tolist() == [[0, 0, 1], [2, 0, 1]]
    file.write_text("a\tr\tb\na\tr\tb\nb\tr\ta\n")
    assert read_triples(file).links.tolist() == [[0, 0, 1], [1, 0, 0]]  # each once
    for content, problem in (
        (b"a\tr\tb\na r b\n", r"g\.tsv:2: not head, tab, relation, tab, tail"),
        (b"a\tr\tb\tc\n", r"g\.tsv:1: not head, tab"),
        (b"a\t \tb\n", r"g\.tsv:1: not head, tab"),
        (b"a\tr\tb\n\xff\tr\tb\n", r"g\.tsv:2: not UTF-8"),
        (b"a\tr\tb\n" + b"x" * 5000, r"g\.tsv:2: longer than 4096 bytes"),
        (b"\n\n", r"g\.tsv: no triples in it"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=problem):
            read_triples(file)
    with pytest.raises(UserError, match=r"triples=.*none: can't be read: No such file"):
        read_triples(tmp_path / "none")


def test_graphs_beyond_the_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "g.tsv"
    file.write_text("".join(f"a\tr{number}\tb\n" for number in range(9)))
    for bound, value in (("MAX_TRIPLES", 8), ("MAX_RELATIONS", 8)):
        with monkeypatch.context() as patch:
            patch.setattr(graph, bound, value)
            with pytest.raises(UserError, match=r"g\.tsv:9: more than"):
                read_triples(file)
    monkeypatch.setattr(graph, "MAX_BYTES", 50)
    with pytest.raises(UserError, match=r"g\.tsv: over"):
        read_triples(file)


def test_names_without_tokens(home: Home, tmp_path: Path) -> None:
    (tmp_path / "g.tsv").write_text("rib\tis a\t\u200b\n")  # a blank without width
    with pytest.raises(UserError, match="the tokenizer leaves nothing of the name"):
        opened(home, f"objectives.graph.triples={tmp_path}/g.tsv")
