"""All objectives together: what is drawn, and the same gradients on one process and on two."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from tests.vlp.test_losses import meet
from tests.vlp.text.objectives_data import Home
from vlp.config import UserError
from vlp.data.text import PackedText
from vlp.text import objectives as module
from vlp.text.objectives import Objective, identity, objectives
from vlp.text.sections import Recall, SectionMates, retrieve_mates

NAMES = ["next_sentence", "sections", "graph"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("objectives"))


def made(home: Home, *overrides: str) -> dict[str, Objective]:
    return objectives(home.config(*overrides), home.tokens(), home.sizes, home.tokenizer)


def leaves(value: Any) -> list[Tensor]:
    parts = [part for part in value for part in (part if isinstance(part, tuple) else (part,))]
    return [part for part in parts if isinstance(part, Tensor)]


def sequences(text: PackedText) -> list[list[int]]:
    return [row.tolist() for row in text.input_ids.split(text.cu_seqlens.diff().tolist())]


def test_those_with_a_weight(home: Home) -> None:
    found = made(home)
    assert list(found) == NAMES
    assert [one.weight for one in found.values()] == [0.5, 0.7, 0.3]
    off = ("next_sentence", "sections.weight", "graph.weight")
    assert list(made(home, *(f"objectives.{key}=0" for key in off[:2]))) == ["graph"]
    assert made(home, *(f"objectives.{key}=0" for key in off)) == {}


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_functions_of_seed_and_step(home: Home, name: str) -> None:
    drawer = made(home)[name].drawer
    again = pickle.loads(pickle.dumps(made(home)[name].drawer))
    for step in (5, 0, 1):
        pairs = zip(leaves(drawer.draw(step, 0, 1)), leaves(again.draw(step, 0, 1)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    other_seed = made(home, "seed=1")[name].drawer
    texts = [
        sequences(d.draw(s, 0, 1).text) for d, s in ((drawer, 0), (drawer, 1), (other_seed, 0))
    ]
    assert texts[0] != texts[1] != texts[2] != texts[0]


def test_shares_of_ranks_make_up_the_whole(home: Home) -> None:
    found = made(home)
    for step in (0, 7):
        for name in ("next_sentence", "sections"):
            whole = found[name].drawer.draw(step, 0, 1)
            parts = [found[name].drawer.draw(step, rank, 4) for rank in range(4)]
            shared = [sequences(part.text) for part in parts]
            if name == "sections":  # first all of the one section, then all of the other
                half = len(shared[0]) // 2
                shared = [rows[:half] for rows in shared] + [rows[half:] for rows in shared]
                assert torch.equal(torch.cat([part.digests for part in parts]), whole.digests)
            assert [row for rows in shared for row in rows] == sequences(whole.text)
        whole, *parts = [found["graph"].drawer.draw(step, *of) for of in ((0, 1), (0, 2), (1, 2))]
        assert torch.equal(torch.cat([part.false for part in parts]), whole.false)
        for rows in (whole, *parts):
            assert len(set(map(tuple, sequences(rows.text)))) == len(rows.text.cu_seqlens) - 1


def run(rank: int, ranks: int, home: Home, folder: str) -> None:
    """Loss and gradients of a rank, and its answer to retrieval."""
    torch.set_num_threads(1)
    if ranks > 1:
        meet(rank, ranks, folder)
    torch.manual_seed(0)
    bert, found = home.bert().double(), made(home)
    heads = torch.nn.ModuleDict({name: one.head for name, one in found.items()}).double()
    model = torch.nn.ModuleDict({"bert": bert, "heads": heads})
    losses = {
        name: heads[name](bert, one.drawer.draw(2, rank, ranks)) for name, one in found.items()
    }
    sum(found[name].weight * loss for name, loss in losses.items()).backward()
    result = {f"loss {name}": loss.detach() for name, loss in losses.items()}
    result |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    config = home.config().objectives.sections
    mates = SectionMates.open(config, home.tokens("val"), home.tokenizer)
    with torch.no_grad():
        recall = retrieve_mates(
            mates, lambda text: heads["sections"].embed(bert, text), documents=17, part=3
        )
    result["recall"] = torch.tensor(recall)
    torch.save(result, f"{folder}/{ranks}.{rank}.pt")
    if ranks > 1:
        dist.destroy_process_group()


def test_two_ranks_learn_what_one_does(home: Home, tmp_path: Path) -> None:
    """Averaged over the ranks, as DDP does, losses and gradients are those of one process; double
    precision but for the losses themselves, which are in fp32: 1e-5 of the largest gradient."""
    run(0, 1, home, str(tmp_path))
    mp.start_processes(run, (2, home, str(tmp_path)), nprocs=2, start_method="fork")
    one, *two = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1.0", "2.0", "2.1")
    )
    assert {name for name in one if name.startswith("loss")} == {f"loss {name}" for name in NAMES}
    assert "heads.graph.relations.weight" in one
    assert "bert.embeddings.token_type_embeddings.weight" in one
    largest = max(value.abs().max() for value in one.values())
    for name, want in one.items():
        got = torch.stack([part[name] for part in two]).double().mean(0)
        assert (got - want).abs().max() <= 1e-5 * largest, name
    assert not torch.allclose(two[0]["loss sections"], two[1]["loss sections"])
    assert torch.equal(two[0]["recall"], two[1]["recall"])
    assert one["recall"][2] == 17


def test_retrieval_stops_at_the_documents_there_are(home: Home) -> None:
    config = home.config().objectives.sections
    mates = SectionMates.open(config, home.tokens("val"), home.tokenizer)
    there = home.tokens("val")["reports"].meta["documents"]

    def embed(text: PackedText) -> Tensor:
        """Equal vectors for both sections of a document, others for each document."""
        count = (len(text.cu_seqlens) - 1) // 2
        vectors = torch.eye(there)[place[0] : place[0] + count]
        place[0] += count
        return vectors.repeat(2, 1)

    place = [0]
    assert retrieve_mates(mates, embed, 10_000, part=4) == Recall(1.0, 1.0, there)


def test_a_run_goes_on_with_the_same_draws_alone(home: Home, tmp_path: Path) -> None:
    """Another file of the same triples, another weight: the same. Others are refused."""

    def identity_of(*overrides: str) -> str:
        wanted = home.config(*overrides).objectives
        return json.dumps(identity(wanted, made(home, *overrides)))

    copy = tmp_path / "copy.tsv"
    graph = (home.folder / "graph.tsv").read_text()
    copy.write_text(graph)
    same = ("objectives.graph.weight=2", "objectives.sections.documents=3")
    assert identity_of(f"objectives.graph.triples={copy}", *same) == identity_of()
    copy.write_text(graph.replace("skull\n", "jaw\n"))
    for change in (
        f"objectives.graph.triples={copy}",
        "objectives.graph.shuffled=true",
        "objectives.graph.weight=0",
        "objectives.sections.pairs=6",
        "objectives.next_sentence_pairs=4",
    ):
        assert identity_of(change) != identity_of(), change


def test_what_is_missing_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"sections\.corpus=notes: no such corpus; there are"):
        made(home, "objectives.sections.corpus=notes")
    with pytest.raises(UserError, match="none is called 'history'; there are findings"):
        made(home, "objectives.sections.first=history")
    with pytest.raises(UserError, match="can't be read: No such file"):
        made(home, "objectives.graph.triples=none.tsv")
    monkeypatch.setattr(module.distributed, "size", lambda: 3)
    with pytest.raises(UserError, match=r"next_sentence_pairs=8 is not divisible by 3.*; set 9"):
        made(home)
