"""An answer head over two towers: fusion by cross-attention, then a choice among known answers.

As METER's co-attention (Dou et al. 2022, arXiv 2111.02387): words attend to words, then to patches;
patches to patches, then to words; both read the layer below. BiomedCLIP (arXiv 2303.00915) was put
into METER for VQA-RAD and SLAKE. This fusion is smaller and starts from nothing, so that it learns
from a few thousand questions.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eval.vqa_config import VqaTrainConfig


class Padded(NamedTuple):
    """Sequences of unequal length."""

    states: Tensor
    """[B, L, C]."""
    mask: Tensor
    """bool [B, L]: true where there is something."""


class FusionHead(nn.Module):
    """Patches and words of a batch -> a score for each answer."""

    def __init__(self, config: VqaTrainConfig, patches: int, words: int, answers: int) -> None:
        """
        Args:
            patches: size of a patch's state.
            words: size of a word's state.
            answers: how many there are to choose from.
        """
        super().__init__()
        width = config.width
        self.from_patches = nn.Sequential(nn.LayerNorm(patches), nn.Linear(patches, width))
        self.from_words = nn.Sequential(nn.LayerNorm(words), nn.Linear(words, width))
        self.of_image = nn.ModuleList(_layer(config) for _ in range(config.layers))
        self.of_text = nn.ModuleList(_layer(config) for _ in range(config.layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.answers = nn.Sequential(
            nn.Linear(2 * width, 2 * width),
            nn.LayerNorm(2 * width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * width, answers),
        )

    def forward(self, patches: Padded, words: Padded) -> Tensor:
        """[B, answers]: logits."""
        image, text = self.from_patches(patches.states), self.from_words(words.states)
        for of_image, of_text in zip(self.of_image, self.of_text, strict=True):
            image, text = (
                of_image(image, text, None, None, ~patches.mask, ~words.mask),
                of_text(text, image, None, None, ~words.mask, ~patches.mask),
            )
        pooled = [
            norm(_mean(states, part.mask))
            for norm, states, part in zip(self.norms, (image, text), (patches, words), strict=True)
        ]
        return self.answers(torch.cat(pooled, dim=1))


def parameter_groups(
    head: FusionHead, towers: nn.Module | None, config: VqaTrainConfig
) -> list[dict[str, Any]]:
    """What the optimiser gets: the answers' layers fastest, towers slowest, vectors undecayed."""
    parts = [(name, p, 1.0) for name, p in head.named_parameters()]
    parts = [(n, p, config.head_factor if n.startswith("answers.") else f) for n, p, f in parts]
    if towers is not None:
        parts += [(n, p, config.tower_factor) for n, p in towers.named_parameters()]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for _, parameter, factor in parts:
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": members, "lr": config.learning_rate * factor, "weight_decay": decay}
        for (factor, decay), members in groups.items()
    ]


def _layer(config: VqaTrainConfig) -> nn.TransformerDecoderLayer:
    """Self-attention, cross-attention and a feed-forward block: PyTorch calls it a decoder's."""
    return nn.TransformerDecoderLayer(
        config.width,
        config.heads,
        4 * config.width,
        config.dropout,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of what there is, [B, L, C] -> [B, C]."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)
