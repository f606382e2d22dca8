"""A BERT over packed tokens, with the parameters and names of Hugging Face's BertModel.

Padding never exists: linear layers and norms see [T, width] rows of real tokens, and attention
runs within the sequences that `cu_seqlens` marks. Only the [CLS] row of the last layer is used, so
that layer computes nothing else. Both are exact (tests/vlp/test_towers.py).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlp.data.text import PackedText
from vlp.models.attention import Layout, attend, plan


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text tower: its architecture, its tokenizer and its projection."""

    kind: Literal["bert", "gpt"] = "bert"
    """`bert` reads both ways and gives [CLS]; `gpt` is CLIP's, reads one way and gives the last
    token."""
    init: str = ""
    """BERT weights to start from: a folder or hub id of Hugging Face's format (`BertModel`,
    `BertForMaskedLM`, ...); its tokenizer is taken, too, if `tokenizer` is empty."""
    tokenizer: str = ""
    """Folder with tokenizer.json or vocab.txt, or that file; `clip` for the one that open_clip
    brings. Empty: that of the weights to start from, if any, otherwise a WordPiece vocabulary is
    trained on the training captions and saved in the run's folder."""
    vocab_size: int = 30522
    """Size of the vocabulary when one is trained; a given tokenizer's own size replaces it."""
    context_length: int = 256
    """Tokens that a caption is cut to, [CLS] and [SEP] included."""
    max_positions: int = 512
    """Rows of the position table; at least context_length. A `gpt` has context_length rows."""
    width: int = 768
    """Size of a token's vector."""
    layers: int = 12
    """Transformer layers."""
    heads: int = 12
    """Attention heads; they divide width."""
    mlp_width: int = 3072
    """Hidden size of the feed-forward blocks."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in every LayerNorm; a `gpt` has CLIP's 1e-5."""
    proj: Literal["linear", "mlp"] = "mlp"
    """Projection to the shared space; `mlp` is what BiomedCLIP's checkpoint has. A `gpt` has
    `linear`."""
    quick_gelu: bool = False
    """A `gpt`'s activation x * sigmoid(1.702 x), as OpenAI's CLIP has it; otherwise GELU."""
    frozen: int = 0
    """Layers that don't learn: n > 0 for the embeddings and the first n layers, -1 for all but the
    projection."""

    def __post_init__(self) -> None:
        if self.kind == "gpt" and (self.proj != "linear" or self.init):
            raise ValueError(
                "model.text.kind=gpt has a linear projection and no weights from a BERT: set "
                "model.text.proj=linear and model.text.init="
            )
        if self.quick_gelu and self.kind != "gpt":
            raise ValueError("model.text.quick_gelu is for model.text.kind=gpt")
        for key in ("width", "layers", "heads", "mlp_width"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.text.{key}={getattr(self, key)} must be at least 1")
        if self.frozen < -1 or self.frozen > self.layers:
            raise ValueError(
                f"model.text.frozen must be -1 or one of 0 to model.text.layers={self.layers}, "
                f"got {self.frozen}"
            )
        if self.width % self.heads:
            raise ValueError(
                f"model.text.width={self.width} is not divisible by model.text.heads={self.heads}"
            )
        if not 2 < self.context_length <= self.max_positions:
            raise ValueError(
                f"model.text.context_length={self.context_length} must be above 2 and at most "
                f"model.text.max_positions={self.max_positions}"
            )

    def hugging_face(self, pad_id: int = 0) -> dict[str, object]:
        """The config.json with which transformers builds the same BERT."""
        return {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.mlp_width,
            "max_position_embeddings": self.max_positions,
            "type_vocab_size": 2,
            "hidden_act": "gelu",
            "layer_norm_eps": self.layer_norm_eps,
            # Contrastive pretraining is long and never repeats a batch; dropout would also make the
            # towers differ between packed and padded runs.
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "pad_token_id": pad_id,
        }


class Embeddings(nn.Module):
    """Word, position and segment embeddings."""

    def __init__(self, config: TextConfig, pad_id: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width, padding_idx=pad_id)
        self.position_embeddings = nn.Embedding(config.max_positions, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(
        self, input_ids: Tensor, positions: Tensor, segments: Tensor | None = None
    ) -> Tensor:
        """int64 [T], int64 [T], int64 [T] of 0 and 1 (None: all 0) -> [T, width]."""
        kinds = self.token_type_embeddings
        segment = kinds.weight[0] if segments is None else kinds(segments)
        embedded = self.word_embeddings(input_ids) + segment
        return self.LayerNorm(embedded + self.position_embeddings(positions))


class SelfAttention(nn.Module):
    """The three input projections of attention."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, asking: Tensor, layout: Layout, cls_only: bool) -> Tensor:
        """Tokens [T, width] and the rows that ask, [T or B, width] -> as the latter."""
        q, k, v = (
            rows.unflatten(-1, (self.heads, -1))
            for rows in (self.query(asking), self.key(x), self.value(x))
        )
        return attend(q, k, v, layout, one_query=cls_only).flatten(-2)


class Output(nn.Module):
    """Linear layer, residual, norm: the end of both halves of a BERT layer."""

    def __init__(self, config: TextConfig, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Layer(nn.Module):
    """A BERT layer; the containers exist for Hugging Face's parameter names."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(config), "output": Output(config, config.width)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.width, config.mlp_width)})
        self.output = Output(config, config.mlp_width)

    def forward(self, x: Tensor, layout: Layout, cls_only: bool = False) -> Tensor:
        """[T, width] -> [T, width], or [B, width] of the [CLS] rows alone."""
        asking = x[layout.firsts] if cls_only else x
        attended = self.attention["self"](x, asking, layout, cls_only)
        asking = self.attention["output"](attended, asking)
        return self.output(F.gelu(self.intermediate["dense"](asking)), asking)


class PackedBert(nn.Module):
    """BertModel without pooler: packed captions -> the last layer's [CLS] vectors."""

    def __init__(self, config: TextConfig, pad_id: int = 0) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.embeddings = Embeddings(config, pad_id)
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(Layer(config) for _ in range(config.layers))}
        )
        self.apply(initialise)

    def forward(self, text: PackedText, segments: Tensor | None = None) -> Tensor:
        """B packed captions -> [B, width], the last layer's [CLS] rows.

        Args:
            text: the captions.
            segments: int64 [T], BERT's segment ids; None: all 0.
        """
        x, layout, last = self._until_last(text, segments)
        return call(last, self.grad_checkpointing, x, layout, True)

    def states(self, text: PackedText) -> Tensor:
        """B packed captions -> [T, width], the last layer's rows of all tokens."""
        x, layout, last = self._until_last(text)
        return call(last, self.grad_checkpointing, x, layout)

    def depths(self) -> dict[str, int]:
        """Layer of each parameter: 0 the embeddings, 1 to n the layers."""
        prefix = "encoder.layer."
        return {
            name: int(name[len(prefix) :].partition(".")[0]) + 1 if name.startswith(prefix) else 0
            for name, _ in self.named_parameters()
        }

    def _until_last(
        self, text: PackedText, segments: Tensor | None = None
    ) -> tuple[Tensor, Layout, nn.Module]:
        """Rows before the last layer, where the sequences lie, and that layer."""
        x = self.embeddings(text.input_ids, positions(text), segments)
        layout = plan(text.cu_seqlens, text.max_length, compute_dtype(x))
        *layers, last = self.encoder["layer"].children()
        for layer in layers:
            x = call(layer, self.grad_checkpointing, x, layout)
        return x, layout, last


def positions(text: PackedText) -> Tensor:
    """int64 [T]: the place of each token in its caption."""
    starts, lengths = text.cu_seqlens[:-1].long(), text.cu_seqlens.diff()
    rows = torch.arange(len(text.input_ids), device=starts.device)
    return rows - starts.repeat_interleave(lengths, output_size=len(text.input_ids))


def compute_dtype(x: Tensor) -> torch.dtype:
    """Type of a linear layer's output: under autocast its type, whatever x is."""
    device = x.device.type
    half = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if half else x.dtype


def call(layer: nn.Module, checkpointing: bool, *arguments: object) -> Tensor:
    """Run a layer; with `checkpointing`, keep its input alone and run it again in backward."""
    if not (checkpointing and torch.is_grad_enabled()):
        return layer(*arguments)
    # The layers draw no random numbers, so that there is no state of generators to restore.
    return checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)


class TextTower(nn.Module):
    """PackedBert and the projection, named as in open_clip's HFTextEncoder."""

    def __init__(self, config: TextConfig, embed_dim: int, pad_id: int = 0) -> None:
        super().__init__()
        self.layers = config.layers
        self.transformer = PackedBert(config, pad_id)
        hidden = (config.width + embed_dim) // 2
        self.proj: nn.Module = (
            nn.Linear(config.width, embed_dim, bias=False)
            if config.proj == "linear"
            else nn.Sequential(
                nn.Linear(config.width, hidden, bias=False),
                nn.GELU(),
                nn.Linear(hidden, embed_dim, bias=False),
            )
        )

    def forward(self, text: PackedText) -> Tensor:
        """B packed captions -> [B, embed_dim], not normalised."""
        return self.proj(self.transformer(text))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each layer's input for backward, and compute the rest again."""
        self.transformer.grad_checkpointing = enable

    def depths(self) -> dict[str, int]:
        """Layer of each parameter: 0 the embeddings, 1 to n the layers, n + 1 the projection."""
        encoder = {
            f"transformer.{name}": depth for name, depth in self.transformer.depths().items()
        }
        return {name: encoder.get(name, self.layers + 1) for name, _ in self.named_parameters()}


def initialise(module: nn.Module) -> None:
    """BERT's initialisation: normal with deviation 0.02, biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx].detach())
