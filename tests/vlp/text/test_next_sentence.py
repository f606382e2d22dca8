"""Next-sentence prediction: against transformers, and pairs that are what their labels say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertForNextSentencePrediction

from tests.vlp.text.objectives_data import Home
from tests.vlp.text.test_vocabulary import KINDS, TEXTS, config_of
from vlp.config import UserError
from vlp.data.order import generator
from vlp.data.text import CaptionTokenizer
from vlp.text.cache import TokenStore
from vlp.text.masking import Words
from vlp.text.next_sentence import NextSentence, NextSentenceHead, Pairs, Sentences, Windows
from vlp.text.vocabulary import train_vocabulary

PLAIN = ("masking.masked=0", "masking.random=0")  # pieces are chosen, and stay


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("next_sentence"))


def opened(home: Home, *overrides: str) -> NextSentence:
    return NextSentence.open(home.config(*overrides), home.tokens(), home.sizes, home.tokenizer)


def test_loss_and_gradients_equal_transformers(home: Home) -> None:
    """Padded rows with token_type_ids, its pooler and its head; to 1e-5 of the largest gradient,
    which sums in fp32 in another order."""
    torch.manual_seed(0)
    bert, head = home.bert(), NextSentenceHead(32)
    settings = home.encoder().hugging_face()
    theirs = BertForNextSentencePrediction(BertConfig(**settings)).eval()
    weights = {f"bert.{name}": value for name, value in bert.state_dict().items()}
    for name, value in head.state_dict().items():
        weights[("bert." if name.startswith("pooler") else "cls.") + name] = value
    assert not any(theirs.load_state_dict(weights, strict=True))
    drawn = opened(home).draw(1, 0, 1)
    lengths = drawn.text.cu_seqlens.diff()
    inside = torch.arange(int(lengths.max())) < lengths[:, None]
    segments = torch.zeros(inside.shape, dtype=torch.int64)
    segments[inside] = drawn.segments
    out = theirs(
        input_ids=drawn.text.padded(),
        attention_mask=inside.long(),
        token_type_ids=segments,
        labels=drawn.random,
    )
    torch.testing.assert_close(head.logits(bert, drawn), out.logits, rtol=1e-5, atol=1e-5)
    loss = head(bert, drawn)
    assert loss.item() == pytest.approx(out.loss.item(), rel=1e-5)
    loss.backward()
    out.loss.backward()
    ours = {f"bert.{name}": value.grad for name, value in bert.named_parameters()}
    largest = max(value.abs().max() for value in ours.values() if value is not None)
    for name, value in theirs.named_parameters():
        if name in ours and ours[name] is not None and value.grad is not None:
            assert (ours[name] - value.grad).abs().max() <= 1e-5 * largest, name
    kinds = ours["bert.embeddings.token_type_embeddings.weight"]
    assert kinds.abs().amax(1).min() > 0  # both segments learn


def passages(drawn: Pairs, number: int) -> tuple[list[int], list[int]]:
    """A and B of a pair; the rest of it is as it should be."""
    start, end = drawn.text.cu_seqlens[number : number + 2].tolist()
    ids, segments = drawn.text.input_ids[start:end].tolist(), drawn.segments[start:end].tolist()
    middle = ids.index(3)
    assert (ids[0], ids[-1], ids.count(2), ids.count(3)) == (2, 3, 1, 2)
    assert segments == [0] * (middle + 1) + [1] * (len(ids) - middle - 1)
    return ids[1:middle], ids[middle + 1 : -1]


def documents_with(store: TokenStore, ids: list[int]) -> set[int]:
    """The documents that hold these ids, one after the other."""
    found = set()
    for number, (start, end) in enumerate(zip(store.documents, store.documents[1:], strict=False)):
        document = store.ids[start:end].tolist()
        places = range(len(document) - len(ids) + 1)
        if any(document[place : place + len(ids)] == ids for place in places):
            found.add(number)
    return found


def test_half_follow_each_other_and_half_are_of_two_documents(home: Home) -> None:
    drawer, stores = opened(home, *PLAIN), home.tokens()
    lengths: list[list[int]] = [[], []]
    for step in range(12):
        drawn = drawer.draw(step, 0, 1)
        for number, random in enumerate(drawn.random.tolist()):
            first, second = passages(drawn, number)
            held = [(store, documents_with(store, first)) for store in stores.values()]
            ((store, owners),) = ((store, found) for store, found in held if found)
            if random:  # of another document of the same corpus
                others = documents_with(store, second)
                assert others
                assert len(owners | others) > 1
                assert len(first) + len(second) <= 21
            else:  # they fill the sequence, or are the document
                sizes = np.diff(store.documents)[list(documents_with(store, first + second))]
                assert len(first) + len(second) in np.minimum(21, sizes)
            lengths[random].append(len(second))
    assert min(map(len, lengths)) > 32  # of 96: 48 less 3.3 deviations
    assert abs(np.mean(lengths[0]) - np.mean(lengths[1])) < 2  # they don't tell


def test_pieces_are_hidden_as_in_the_rows(home: Home) -> None:
    plain, masked = (
        opened(home, *overrides) for overrides in (PLAIN, ("masking.masked=1", "masking.random=0"))
    )
    hidden = pieces = 0
    for step in range(10):
        one, other = plain.draw(step, 0, 1), masked.draw(step, 0, 1)
        assert torch.equal(one.segments, other.segments)
        assert torch.equal(one.random, other.random)
        changed = one.text.input_ids != other.text.input_ids
        assert set(other.text.input_ids[changed].tolist()) == {4}  # [MASK]
        hidden, pieces = hidden + int(changed.sum()), pieces + len(changed) - 3 * len(one.random)
    assert hidden / pieces == pytest.approx(0.15, abs=0.02)


def test_windows_cover_documents_and_end_with_them(home: Home) -> None:
    for store in home.tokens().values():
        windows = Windows(store, 7)
        places = [windows.place(number) for number in range(windows.count)]
        covered = {t for place in places for t in range(place.start, place.end)}
        sizes = np.diff(store.documents)
        assert len(covered) == sizes[sizes >= 2].sum()
        assert {place.last for place in places} == set(store.documents[1:][sizes >= 2].tolist())
        for place in places:
            assert place.first <= place.start < place.end <= place.last
            assert place.end - place.start == min(7, place.last - place.first)


def test_elsewhere_is_any_window_but_those_of_the_document() -> None:
    """Documents of 5, 0, 1, 9 and 3 tokens; those below two have no windows."""
    bounds = np.cumsum([0, 5, 0, 1, 9, 3])
    sections = np.zeros(0, dtype=np.int64)
    store = TokenStore(np.arange(18), bounds, sections, sections.astype(np.uint16), {})
    windows = Windows(store, 4)
    owners = [windows.document(number) for number in range(windows.count)]
    assert owners == [0, 0, 3, 3, 3, 4]
    assert windows.several()
    rng = generator(0)
    for number, owner in enumerate(owners):
        draws = [windows.elsewhere(number, rng) for _ in range(600)]
        others = [n for n, other in enumerate(owners) if other != owner]
        counts = np.bincount(draws, minlength=6)
        assert set(draws) == set(others)
        assert np.abs(counts[others] - 600 / len(others)).max() < 70  # 5 deviations
    assert windows.place(1) == (1, 5, 0, 5)
    assert windows.place(4) == (11, 15, 6, 15)


@pytest.mark.parametrize("kind", KINDS)
def test_sentences_begin_after_full_stops(kind: str, tmp_path: Path) -> None:
    train_vocabulary(TEXTS, config_of(kind, size=330), tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    sentences = Sentences(tokenizer, Words(tokenizer))

    def starts(text: str) -> list[str]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        places = sentences.starts(np.array(ids))
        return [tokenizer.decode(ids[place:]).strip()[:5] for place in places]

    text = "mitochondria of the liver. dysplastic glands. stained with DAPI, 12 lesions"
    assert starts(text) == ["dyspl", "stain"]
    assert starts("axial ct")[0][:2] == "ct"  # a word, where no sentence begins
    inner = tokenizer.encode("mitochondria", add_special_tokens=False).ids[:9]
    if len(inner) > 1:  # any piece, where no word begins
        assert sentences.starts(np.array(inner)).tolist() == list(range(1, len(inner)))


def test_what_can_not_be_is_refused(home: Home) -> None:
    with pytest.raises(UserError, match=r"model\.length=4: pairs of passages need 5 or more"):
        NextSentence.open(
            home.config(), home.tokens(), home.sizes, CaptionTokenizer(home.tokenizer.folder, 4)
        )
    tokens, one = home.tokens(), home.tokens()["articles"]
    end = int(one.documents[1])
    single = TokenStore(one.ids[:end], one.documents[:2], one.sections, one.section_names, one.meta)
    with pytest.raises(UserError, match=r"corpora\.articles: next-sentence prediction takes"):
        NextSentence.open(home.config(), tokens | {"articles": single}, home.sizes, home.tokenizer)
