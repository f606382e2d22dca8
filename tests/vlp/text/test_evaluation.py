"""Bits per character: every word once, the same as plain transformers computes it."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForMaskedLM

from tests.vlp.text.tiny import make_home, settings
from vlp.config import UserError
from vlp.data.text import PackedText
from vlp.text.cache import TokenStore
from vlp.text.evaluation import PASSES, bits_per_character
from vlp.text.export import save_encoder
from vlp.text.masking import Words
from vlp.text.trainer import TextTrainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> TextTrainer:
    return TextTrainer(settings(make_home(tmp_path_factory.mktemp("evaluation"))))


def test_every_word_is_hidden_once_and_whole(trainer: TextTrainer) -> None:
    """Also: the model is told nothing of what it is to guess, and each pass hides a seventh."""
    store, words = trainer.data.held_out["a"], Words(trainer.tokenizer.tokenizer)
    targets, shares, calls = list[Tensor](), list[float](), 0

    def watch(text: PackedText, places: Tensor, hidden: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        masked = text.input_ids == words.mask_id
        assert masked.nonzero()[:, 0].tolist() == places.tolist()
        read = text.input_ids.clone()
        read[places] = hidden
        numbers = words.number(read.numpy())
        inside = set(numbers[places.numpy()].tolist())
        assert sum(number in inside for number in numbers.tolist()) == len(places)  # whole words
        targets.append(hidden)
        shares.append(len(places) / int((numbers >= 0).sum()))
        return torch.zeros(())

    score = bits_per_character(watch, store, trainer.tokenizer, rows=2)
    assert calls % PASSES == 0
    assert score.pieces == len(store.ids) == store.meta["tokens"]
    assert sorted(torch.cat(targets).tolist()) == sorted(store.ids.tolist())
    assert sum(shares) / len(shares) == pytest.approx(1 / PASSES)
    assert score.bits_per_character == 0
    assert score.characters == store.meta["characters"]


def test_a_model_that_knows_nothing_pays_for_the_size_of_the_vocabulary(
    trainer: TextTrainer,
) -> None:
    size = trainer.tokenizer.vocab_size

    def uniform(text: PackedText, places: Tensor, targets: Tensor) -> Tensor:
        return len(places) * torch.tensor(size).log()

    store = trainer.data.held_out["b"]
    score = bits_per_character(uniform, store, trainer.tokenizer)
    assert score.nats_per_piece == pytest.approx(math.log(size))
    bits = len(store.ids) * math.log2(size) / store.meta["characters"]
    assert score.bits_per_character == pytest.approx(bits)


def test_equals_a_loop_of_transformers(trainer: TextTrainer, tmp_path: Path) -> None:
    """The exported folder, read by transformers, on padded rows; 1e-5: fp32 in another order."""
    with torch.no_grad():
        for parameter in trainer.model.parameters():  # a model with opinions
            parameter += 0.1 * torch.randn(parameter.shape)
    lm = trainer.model.lm.eval()
    save_encoder(tmp_path, lm.state_dict(), trainer.encoder, trainer.tokenizer, {})
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    store, total, count = trainer.data.held_out["a"], 0.0, 0

    def plain(text: PackedText, places: Tensor, targets: Tensor) -> Tensor:
        nonlocal total, count
        lengths = text.cu_seqlens.diff().long()
        ids = text.padded()
        inside = torch.arange(ids.shape[1]) < lengths[:, None]
        logits = theirs(input_ids=ids, attention_mask=inside.long()).logits[inside]
        loss = F.cross_entropy(logits[places], targets, reduction="sum")
        total, count = total + loss.item(), count + len(places)
        return loss

    plain_score = bits_per_character(plain, store, trainer.tokenizer)
    score = bits_per_character(lm, store, trainer.tokenizer)
    assert score.nats_per_piece == pytest.approx(total / count, rel=1e-5)
    assert math.exp(score.nats_per_piece) == pytest.approx(math.exp(total / count), rel=1e-4)
    assert score == pytest.approx(plain_score, rel=1e-5)
    assert score.nats_per_piece != pytest.approx(math.log(trainer.tokenizer.vocab_size), rel=0.01)


def test_rows_at_a_time_change_nothing(trainer: TextTrainer) -> None:
    store, lm = trainer.data.held_out["a"], trainer.model.lm.eval()
    scores = [bits_per_character(lm, store, trainer.tokenizer, rows=rows) for rows in (1, 3, 64)]
    for score in scores[1:]:
        assert score == pytest.approx(scores[0], rel=1e-6)


def test_unknown_pieces_are_told(trainer: TextTrainer) -> None:
    store = trainer.data.held_out["a"]
    ids = store.ids.copy()
    ids[::4] = trainer.tokenizer.tokenizer.token_to_id("[UNK]")
    other = TokenStore(ids, store.documents, store.sections, store.section_names, store.meta)
    score = bits_per_character(trainer.model.lm, other, trainer.tokenizer)
    assert score.unknown == pytest.approx(0.25, abs=0.01)


def test_nothing_held_out(trainer: TextTrainer) -> None:
    store = trainer.data.held_out["a"]
    none = TokenStore(
        store.ids[:0], store.documents[:1], store.sections[:1], store.section_names[:0], store.meta
    )
    with pytest.raises(UserError, match=r"raise split\.val_fraction"):
        bits_per_character(trainer.model.lm, none, trainer.tokenizer)
