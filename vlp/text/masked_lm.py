"""A BERT that guesses masked tokens, named as Hugging Face's BertForMaskedLM.

The vocabulary's logits are made of masked tokens alone, a tile at a time, and made again in
backward: of 30,522 entries they would be larger than all else that a batch takes.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlp.data.text import PackedText
from vlp.models.text_tower import PackedBert, TextConfig

TILE = 2048
"""Masked tokens whose logits exist at a time: 250 MB in fp32 with 30,522 entries."""


class Transform(nn.Module):
    """The layer before the vocabulary."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, states: Tensor) -> Tensor:
        """[M, width] -> [M, width]."""
        return self.LayerNorm(F.gelu(self.dense(states)))


class Predictions(nn.Module):
    """The head; its matrix is that of the word embeddings."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        nn.init.normal_(self.transform.dense.weight, std=0.02)
        nn.init.zeros_(self.transform.dense.bias)


class MaskedLM(nn.Module):
    """PackedBert and the head; the state dict is key for key BertForMaskedLM's, without the copies
    that transformers ties (`cls.predictions.decoder.*`)."""

    def __init__(self, config: TextConfig, pad_id: int = 0) -> None:
        super().__init__()
        self.bert = PackedBert(config, pad_id)
        self.cls = nn.ModuleDict({"predictions": Predictions(config)})

    @property
    def predictions(self) -> Predictions:
        """The head."""
        return cast(Predictions, self.cls["predictions"])

    def forward(self, text: PackedText, places: Tensor, targets: Tensor) -> Tensor:
        """The summed cross-entropy of the tokens that belong at some places.

        Args:
            text: B packed sequences, with [MASK] and the like in them.
            places: int64 [M], rows of `text.input_ids`.
            targets: int64 [M], the tokens that were there.

        Returns:
            A scalar in fp32, in nats: the sum over the M tokens, not their mean, so that parts of a
            batch add up.
        """
        rows = self.bert.states(text)[places]
        tiles = zip(rows.split(TILE), targets.split(TILE), strict=True)
        parts = [
            checkpoint(self._loss, *tile, use_reentrant=False, preserve_rng_state=False)
            for tile in tiles
        ]
        return torch.stack(parts).sum()

    def logits(self, rows: Tensor) -> Tensor:
        """States [M, width] -> [M, vocabulary], fp32."""
        head = self.predictions
        words = self.bert.embeddings.word_embeddings.weight
        return F.linear(head.transform(rows), words, head.bias).float()

    def _loss(self, rows: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(rows), targets, reduction="sum")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each layer's input for backward, and compute the rest again."""
        self.bert.grad_checkpointing = enable
