"""What is trained: a masked language model, and the heads of what else it learns."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from vlp.data.text import PackedText
from vlp.text.masked_lm import MaskedLM


class Losses(NamedTuple):
    """Of one forward pass.

    Attributes:
        masked: summed cross-entropy of the masked tokens, in nats.
        others: this rank's share of each further objective, by its name.
    """

    masked: Tensor
    others: dict[str, Tensor]


class TextModel(nn.Module):
    """One module with all parameters, so that DDP and FSDP see every forward pass."""

    def __init__(self, lm: MaskedLM, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.lm = lm
        self.heads = nn.ModuleDict(heads)

    def forward(
        self, text: PackedText, places: Tensor, targets: Tensor, extra: Mapping[str, Any]
    ) -> Losses:
        """A TextBatch's fields -> losses; of the objectives, those that something was drawn for."""
        others = {name: self.heads[name](self.lm.bert, drawn) for name, drawn in extra.items()}
        return Losses(self.lm(text, places, targets), others)

    def embed(self, head: str, text: PackedText) -> Tensor:
        """B sequences -> [B, D], as a head embeds them."""
        embedded: Tensor = self.heads[head].embed(self.lm.bert, text)  # type: ignore[operator]
        return embedded

    def depths(self) -> dict[str, tuple[int, int]]:
        """Each encoder parameter's (layer, number of the heads' layer), from the input."""
        layers = self.lm.bert.depths()
        last = max(layers.values()) + 1
        return {f"lm.bert.{name}": (depth, last) for name, depth in layers.items()}

    def compile_layers(self, **options: Any) -> None:
        """torch.compile the encoder's layers in place, once for any number of tokens.

        Args:
            options: of `torch.compile`.
        """
        for layer in self.lm.bert.encoder["layer"].children():
            layer.compile(dynamic=True, **options)
