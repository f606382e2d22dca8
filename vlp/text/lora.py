"""Low-rank changes of a BERT's linear layers (LoRA: Hu et al. 2021, arXiv:2106.09685, section 4.1).

A layer W x becomes W x + (alpha / rank) B A x with W frozen. The weights keep their names and get
`lora_a` and `lora_b` beside them, so that a checkpoint is like any other, and `merged` gives the
plain model's weights back.
"""

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from vlp.config import UserError
from vlp.models.text_tower import PackedBert
from vlp.text.settings import LoraConfig

A, B = "lora_a", "lora_b"


class LoraLinear(nn.Linear):
    """A linear layer, frozen, with a low-rank change that is learnt."""

    def __init__(self, plain: nn.Linear, config: LoraConfig) -> None:
        """Take over a layer's parameters; at first the change is nothing, since B is zero."""
        super().__init__(plain.in_features, plain.out_features, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.requires_grad_(False)
        self.scale = config.alpha / config.rank
        self.dropout = config.dropout
        self.lora_a = nn.Parameter(plain.weight.new_empty(config.rank, plain.in_features))
        self.lora_b = nn.Parameter(plain.weight.new_zeros(plain.out_features, config.rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as Hu et al.'s code

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        down = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a)
        return super().forward(x) + self.scale * F.linear(down, self.lora_b)


def add_lora(bert: PackedBert, config: LoraConfig) -> None:
    """Freeze a BERT and give the layers that `config.targets` names a change to learn, in place.

    A's first values come from torch's generator: with the same seed they are the same on all ranks.

    Args:
        bert: with the weights to start from; not yet wrapped, sharded or compiled.
        config: with a rank above 0.

    Raises:
        UserError: the rank is larger than a layer, where it would save nothing.
    """
    bert.requires_grad_(False)
    for name, module in list(bert.named_modules()):
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in config.targets:
            if config.rank > min(module.in_features, module.out_features):
                raise UserError(
                    f"lora.rank={config.rank}: {name} has {module.in_features} inputs and "
                    f"{module.out_features} outputs; set less"
                )
            bert.set_submodule(name, LoraLinear(module, config))


def merged(weights: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """The weights of the plain model that computes the same: W + (alpha / rank) B A.

    Args:
        weights: a state dict, whole; left as it is.
        config: the one that the changes were learnt with.

    Returns:
        A state dict without `lora_a` and `lora_b`; tensors that have no change are the same ones.
    """
    plain = {name: value for name, value in weights.items() if not name.endswith((A, B))}
    for name in weights:
        if name.endswith(A):
            layer = name.removesuffix(A)
            down, up = weights[name], weights[layer + B]
            change = up.float() @ down.float() * (config.alpha / config.rank)
            weight = plain[layer + "weight"]
            plain[layer + "weight"] = (weight.float() + change).to(weight.dtype)
    return plain


def trainable_share(model: nn.Module) -> float:
    """Trainable parameters by all of them."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained) / sum(size for size, _ in sizes)
