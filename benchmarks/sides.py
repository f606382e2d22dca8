"""The two sides of `train_step.py`: our training step and open_clip's, on the same batch.

Each does what its trainer does between two batches that lie ready on the host: copy to the device,
forward under autocast (bf16 on CUDA, fp32 on the CPU), loss, backward, AdamW, bound on the
temperature. Neither clips gradients, as is open_clip's default.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vlp.data.image import Normalise
from vlp.data.text import PackedText
from vlp.losses import LossConfig, contrastive_loss
from vlp.models.dual_encoder import DualEncoder, ModelConfig
from vlp.models.hub import open_clip_config
from vlp.optim import OptimizerConfig, adamw

RECIPE = OptimizerConfig(clip_norm=0)
"""BiomedCLIP's AdamW; the schedule plays no part here."""
DISTINCT = 256
"""Different images in a batch, at most."""
MAX_LOG_SCALE = math.log(100)


@dataclass(frozen=True)
class Inputs:
    """A batch on the host as each side's loader delivers it.

    Attributes:
        images: uint8 [B, 3, H, W], channels last: ours.
        text: packed: ours.
        pixels: the same images, normalised fp32: open_clip's.
    """

    images: Tensor
    text: PackedText
    pixels: Tensor

    def padded(self, length: int) -> Tensor:
        """int64 [B, length]: token ids, padded on the right; 0: to the longest of the batch."""
        ids = self.text.padded()
        return F.pad(ids, (0, length - ids.shape[1])) if length else ids


def draw_inputs(config: ModelConfig, lengths: Sequence[int], pin: bool, seed: int) -> Inputs:
    """Random pixels, and random token ids of the given lengths; none is 0, which is padding.

    Large batches repeat their first images: to draw them all would take longer than the steps.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (min(len(lengths), DISTINCT), 3, config.image.size, config.image.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images = images[torch.arange(len(lengths)) % DISTINCT]
    images = images.contiguous(memory_format=torch.channels_last)
    ids = torch.randint(5, config.text.vocab_size, (sum(lengths),), generator=generator)
    starts = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    text = PackedText(ids, starts, config.text.context_length)
    normalise = Normalise(config.image.mean, config.image.std, torch.device("cpu"))
    pixels = normalise(images).contiguous()
    if pin:
        return Inputs(images.pin_memory(), text.pin_memory(), pixels.pin_memory())
    return Inputs(images, text, pixels)


class Ours:
    """Packed towers, tiled loss, fused AdamW."""

    def __init__(self, config: ModelConfig, device: torch.device, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = DualEncoder(config).to(device).train()
        self.normalise = Normalise(config.image.mean, config.image.std, device)
        self.optimizer = adamw(self.model, RECIPE)
        self.loss = LossConfig()
        self.device = device

    def backward(self, inputs: Inputs) -> Tensor:
        """Gradients of one batch; returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        text = inputs.text.to(self.device, non_blocking=True)
        images = self.normalise(inputs.images.to(self.device, non_blocking=True))
        with autocast(self.device):
            features = self.model(images, text)
        value = contrastive_loss(features, self.loss)
        value.backward()
        return value.detach()

    def step(self, inputs: Inputs) -> None:
        self.backward(inputs)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOG_SCALE)


class OpenClip:
    """open_clip 3.3.0's model, ClipLoss and AdamW, as its train.py and main.py use them."""

    def __init__(self, config: ModelConfig, like: DualEncoder, device: torch.device) -> None:
        """The same weights as `like`."""
        self.model = build_peer(config).to(device).train()
        self.model.load_state_dict(like.state_dict())
        self.forward: Callable[..., Any] = self.model
        self.loss = open_clip.ClipLoss(cache_labels=True)
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        plain = [p for name, p in named if p.ndim < 2 or "bias" in name or "logit_scale" in name]
        matrices = [p for _, p in named if not any(p is other for other in plain)]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": plain, "weight_decay": 0.0},
                {"params": matrices, "weight_decay": RECIPE.weight_decay},
            ],
            lr=RECIPE.learning_rate,
            betas=RECIPE.betas,
            eps=RECIPE.eps,
            fused=True,  # faster than what open_clip leaves to the default
        )
        self.device = device

    def compile(self) -> None:
        """As its --torchcompile."""
        self.forward = torch.compile(self.model)

    def backward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Gradients of one batch; returns the loss."""
        images = pixels.to(self.device, non_blocking=True)
        texts = ids.to(self.device, non_blocking=True)
        self.optimizer.zero_grad()
        with autocast(self.device):
            losses = self.loss(**self.forward(images, texts), output_dict=True)
        value: Tensor = sum(losses.values())
        value.backward()
        return value.detach()

    def step(self, pixels: Tensor, ids: Tensor) -> None:
        self.backward(pixels, ids)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOG_SCALE)


def build_peer(config: ModelConfig) -> Any:
    """open_clip's CustomTextCLIP with the towers of `config`."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config.text.hugging_face()), "utf-8")
        settings = open_clip_config(config, folder)["model_cfg"]
        return open_clip.CustomTextCLIP(**settings, output_dict=True)


def peer_flops(config: ModelConfig, images: int, length: int) -> float:
    """Operations of open_clip's step with captions of `length` tokens, padding included.

    Counted in a run on tensors that have shapes only, without fused attention, whose backward
    computes the scores once more.
    """
    with torch.device("meta"):
        peer = build_peer(config)
        pixels = torch.empty(1, 3, config.image.size, config.image.size)
        ids = torch.ones(1, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        peer.visual(pixels).sum().backward()
        # Without a mask, which meta tensors can't make; it changes no product's size.
        hidden = peer.text.transformer(input_ids=ids).last_hidden_state
        peer.text.proj(hidden[:, 0]).sum().backward()
    return float(counter.get_total_flops()) * images


def relative_difference(ours: nn.Module, theirs: nn.Module) -> float:
    """Norm of the difference of all gradients, over the norm of open_clip's."""
    mine = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    other = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    if mine.keys() != other.keys():
        raise ValueError(f"gradients of other parameters: {sorted(mine.keys() ^ other.keys())}")
    apart = sum(float((mine[name] - other[name]).square().sum()) for name in mine)
    whole = sum(float(value.square().sum()) for value in other.values())
    return math.sqrt(apart / whole)


@contextmanager
def autocast(device: torch.device) -> Iterator[None]:
    """bf16 on CUDA: open_clip's --precision amp_bf16."""
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        yield
