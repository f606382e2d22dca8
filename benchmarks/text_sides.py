"""The two sides of `text_pretrain.py`: our pretraining step, and that of a loop of transformers.

Both see the same sequences: documents, cut at `length`. Ours come packed from `PackedCorpora`;
theirs go through DataCollatorForLanguageModeling, which pads a batch to its longest and masks it.
Each step is forward under autocast (bf16 on CUDA, fp32 on the CPU), loss, backward, AdamW, on a
batch that lies ready on the host.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
)

from benchmarks.sides import autocast
from vlp.data.text import CaptionTokenizer
from vlp.models.text_tower import TextConfig
from vlp.optim import OptimizerConfig, adamw
from vlp.text.batches import TextBatch, TextSamples
from vlp.text.cache import PackedCorpora
from vlp.text.masked_lm import MaskedLM
from vlp.text.masking import IGNORE, SPECIAL, MaskingConfig, Words

RECIPE = OptimizerConfig(learning_rate=1e-4, weight_decay=0.01, clip_norm=0)
"""AdamW of both sides; the schedule plays no part here."""

Padded = dict[str, Tensor]
"""What BertForMaskedLM is called with: input_ids, attention_mask, labels [B, longest]."""
Example = dict[str, Any]
"""A sequence before padding: input_ids, attention_mask, special_tokens_mask, offset_mapping."""
Ints = NDArray[np.int64]


def padded(batch: TextBatch) -> Padded:
    """A batch of ours with the same masks as transformers takes it."""
    labels = torch.full_like(batch.text.input_ids, IGNORE)
    labels[batch.places] = batch.targets
    ids = batch.text.padded()
    inside = torch.arange(ids.shape[1]) < batch.text.cu_seqlens.diff()[:, None]
    wide = torch.full_like(ids, IGNORE)
    wide[inside] = labels
    return {"input_ids": ids, "attention_mask": inside.long(), "labels": wide}


def blocks(batch: TextBatch) -> Padded:
    """The same tokens, cut every `max_length`, whatever document they are of."""
    found, length = padded(batch), batch.text.max_length
    inside = found["attention_mask"].bool()
    more = -len(batch.text.input_ids) % length
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORE}
    return {
        name: F.pad(value[inside], (0, more), value=fill[name]).unflatten(0, (-1, length))
        for name, value in found.items()
    }


class OurBatches:
    """Steps -> masked batches, by the dataset of our trainer."""

    def __init__(
        self, corpora: PackedCorpora, tokenizer: CaptionTokenizer, masking: MaskingConfig, rows: int
    ) -> None:
        """`rows`: rows of `length` tokens in a batch."""
        self.corpora, self.rows = corpora, rows
        self.words = Words(tokenizer.tokenizer)
        self.samples = TextSamples(corpora, masking, self.words, 0, rows, {})

    def __call__(self, step: int) -> TextBatch:
        return self.samples.__getitems__(self._positions(step, 1))

    def examples(self, step: int, steps: int = 1) -> list[Example]:
        """The sequences of one or more steps, each as a tokenizer of transformers gives it."""
        text = self.corpora.batch(self._positions(step, steps))
        ids = text.input_ids.numpy()
        numbers = self.words.number(ids)
        return [
            _example(ids[start:end], numbers[start:end])
            for start, end in pairwise(text.cu_seqlens.tolist())
        ]

    def _positions(self, step: int, steps: int) -> list[int]:
        return list(range(step * self.rows, (step + steps) * self.rows))


def _example(ids: Ints, words: Ints) -> Example:
    """With offsets as if every piece had one character and every word a blank before it."""
    place = np.arange(len(ids)) + words
    special = words == SPECIAL
    offsets = np.stack([place, place + 1], 1) * ~special[:, None]
    return {
        "input_ids": ids.tolist(),
        "attention_mask": [1] * len(ids),
        "special_tokens_mask": special.astype(int).tolist(),
        "offset_mapping": [tuple(pair) for pair in offsets.tolist()],
    }


class TheirBatches:
    """Examples -> padded and masked, by transformers' collator."""

    def __init__(self, tokenizer: CaptionTokenizer, masking: MaskingConfig) -> None:
        self.whole = masking.unit == "whole_word"
        # Its whole words are all masked; swapped ones it can't do.
        shares = (1.0, 0.0) if self.whole else (masking.masked, masking.random)
        self.collate = DataCollatorForLanguageModeling(
            PreTrainedTokenizerFast(
                tokenizer_file=str(tokenizer.folder / "tokenizer.json"),
                **{f"{name}_token": f"[{name.upper()}]" for name in _NAMES},
            ),
            whole_word_mask=self.whole,
            mlm_probability=masking.share,
            mask_replace_prob=shares[0],
            random_replace_prob=shares[1],
            seed=0,
        )

    def __call__(self, examples: Sequence[Example]) -> Padded:
        rows = [dict(one) for one in examples]
        longest = max(len(row["input_ids"]) for row in rows)
        for row in rows:
            offsets = row.pop("offset_mapping")
            if self.whole:  # it needs them, and pads all but them
                row["offset_mapping"] = offsets + [(0, 0)] * (longest - len(offsets))
        return dict(self.collate(rows))


_NAMES = ("pad", "unk", "cls", "sep", "mask")


class Ours:
    """The packed model and fused AdamW."""

    def __init__(self, config: TextConfig, device: torch.device, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = MaskedLM(config).to(device).train()
        self.optimizer = adamw(self.model, RECIPE)
        self.device = device

    def backward(self, batch: TextBatch) -> Tensor:
        """Gradients of one batch; returns the mean loss of its masked tokens."""
        self.optimizer.zero_grad(set_to_none=True)
        moved = batch.to(self.device)
        with autocast(self.device):
            loss = self.model(moved.text, moved.places, moved.targets) / len(moved.places)
        loss.backward()
        return loss.detach()

    def step(self, batch: TextBatch) -> None:
        self.backward(batch)
        self.optimizer.step()


class Theirs:
    """BertForMaskedLM with its loss, and torch's fused AdamW, as their examples use them."""

    def __init__(self, config: TextConfig, like: MaskedLM, device: torch.device) -> None:
        """The same weights as `like`."""
        self.model = build_peer(config)
        missing, unexpected = self.model.load_state_dict(like.state_dict(), strict=False)
        tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
        if unexpected or set(missing) - tied:
            raise ValueError(f"weights that don't fit: {missing} {unexpected}")
        self.model.to(device).train()
        self.optimizer = adamw(self.model, RECIPE)
        self.device = device

    def backward(self, batch: Padded) -> Tensor:
        """Gradients of one batch; returns the mean loss of its masked tokens."""
        self.optimizer.zero_grad(set_to_none=True)
        moved = {key: one.to(self.device, non_blocking=True) for key, one in batch.items()}
        with autocast(self.device):
            loss: Tensor = self.model(**moved).loss
        loss.backward()
        return loss.detach()

    def step(self, batch: Padded) -> None:
        self.backward(batch)
        self.optimizer.step()


def build_peer(config: TextConfig) -> Any:
    """BertForMaskedLM of the same architecture."""
    return BertForMaskedLM(BertConfig.from_dict(config.hugging_face()))
