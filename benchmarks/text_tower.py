"""Forward and backward of the text tower, packed against padded as open_clip does it.

    python -m benchmarks.text_tower                     # CPU, two threads: 4 minutes
    python -m benchmarks.text_tower device=cuda out=FILE.json

Claim: on captions as long as ROCO's and PubMed Central's, the packed tower computes the same
embeddings and gradients as open_clip's HFTextEncoder on captions padded to 256 tokens, several
times faster; the more captions fall short of 256, the more so.

Same weights, same captions, turn by turn. On the CPU a small BERT in fp32, on CUDA BERT-base under
bf16 autocast. "Padded to 256" is what open_clip 3.3.0's tokeniser gives its tower; "padded to the
longest" is what it could give at best without sorting. Random token ids: only lengths matter to
speed, and they follow lognormal fits or, with `shards`, are those of real captions.
"""

import functools
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from benchmarks.measure import Result, Row, interleaved, machine, median_row, paired_ratio, report
from vlp.config import UserError, load_config, run_program
from vlp.data.index import open_shards
from vlp.data.text import CaptionTokenizer, PackedText
from vlp.models.text_tower import TextConfig, TextTower

EMBED_DIM = 512
STANDARD = NormalDist()


class Lengths(NamedTuple):
    """A lognormal fit to caption lengths in tokens, and the batch that is drawn from it."""

    median: float
    p95: float
    cpu_batch: int
    cuda_batch: int


# ROCO: 16,359 captions, own 30k WordPiece, mean 27. PMC: histogram of 11.16 million captions,
# bert-base-uncased, mean 126.
CORPORA = {"ROCO": Lengths(22, 63, 192, 256), "PMC": Lengths(88, 384, 64, 256)}


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """Time the text tower on packed and on padded captions."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a device."""
    layers: int = 0
    """Transformer layers; 0: 4 on the CPU, 12 on CUDA."""
    width: int = 0
    """Size of a token's vector, a multiple of 64; 0: 256 on the CPU, 768 on CUDA."""
    batch: int = 0
    """Captions in a batch; 0: ROCO 192 and PMC 64 on the CPU, 256 on CUDA."""
    context_length: int = 256
    """Tokens that captions are cut and padded to."""
    vocab_size: int = 30522
    """Rows of the word table."""
    threads: int = 2
    """Threads on the CPU."""
    repetitions: int = 5
    """Steps that each contender takes."""
    seed: int = 0
    """Seed of weights, lengths and token ids."""
    shards: str = ""
    """Shard folder whose training captions give a third set of lengths; empty: none."""
    tokenizer: str = ""
    """Tokenizer for those captions: a folder or tokenizer.json."""
    out: str = ""
    """JSON file for the result; empty writes none."""

    def __post_init__(self) -> None:
        if bool(self.shards) != bool(self.tokenizer):
            raise ValueError("shards and tokenizer belong together: set both or neither")
        if self.width % 64 or min(self.layers, self.batch) < 0:
            raise ValueError("width must be a multiple of 64; layers and batch 0 or more")
        if self.repetitions < 1 or self.threads < 1 or self.context_length < 3:
            raise ValueError("repetitions and threads must be 1 or more, context_length 3 or more")


class Towers(NamedTuple):
    """The same weights, twice."""

    packed: TextTower
    padded: HFTextEncoder


def draw_lengths(name: str, count: int, limit: int, rng: np.random.Generator) -> list[int]:
    """`count` caption lengths from a corpus's fit, between 3 and `limit`, in random order.

    They are the fit's quantiles, not draws, so that a small batch has the corpus's spread, too.
    """
    fit = CORPORA[name]
    spread = math.log(fit.p95 / fit.median) / STANDARD.inv_cdf(0.95)
    quantiles = [STANDARD.inv_cdf((place + 0.5) / count) for place in range(count)]
    lengths = np.clip(fit.median * np.exp(spread * np.array(quantiles)), 3, limit)
    return [int(length) for length in rng.permutation(lengths.round())]


def shard_lengths(config: TextTowerConfig, count: int, rng: np.random.Generator) -> list[int]:
    """Lengths of `count` captions of a shard folder, drawn without replacement."""
    shards = open_shards(config.shards, "train")
    if len(shards) < count:
        raise UserError(f"{config.shards}: {len(shards)} captions, batch={count} needs more")
    chosen = rng.choice(len(shards), count, replace=False)
    tokenizer = CaptionTokenizer(config.tokenizer, config.context_length)
    packed = tokenizer([shards.caption(int(index)) for index in chosen])
    return [int(length) for length in packed.cu_seqlens.diff()]


def captions(lengths: Sequence[int], config: TextTowerConfig, device: torch.device) -> PackedText:
    """Random token ids of the given lengths; none is 0, which is padding."""
    generator = torch.Generator().manual_seed(config.seed)
    ids = torch.randint(5, config.vocab_size, (sum(lengths),), generator=generator)
    starts = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return PackedText(ids, starts, config.context_length).to(device)


def build(config: TextTowerConfig, device: torch.device) -> Towers:
    """Both towers with the same random weights."""
    cuda = device.type == "cuda"
    width = config.width or (768 if cuda else 256)
    text = TextConfig(
        vocab_size=config.vocab_size,
        context_length=config.context_length,
        max_positions=max(512, config.context_length),
        width=width,
        layers=config.layers or (12 if cuda else 4),
        heads=width // 64,
        mlp_width=4 * width,
    )
    torch.manual_seed(config.seed)
    packed = TextTower(text, EMBED_DIM)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(text.hugging_face()), encoding="utf-8")
        padded = HFTextEncoder(
            folder,
            output_dim=EMBED_DIM,
            pooler_type="cls_last_hidden_state_pooler",
            proj_type=text.proj,
            pretrained=False,
        )
    padded.load_state_dict(packed.state_dict())
    return Towers(packed.to(device).train(), padded.to(device).train())


def step(tower: nn.Module, text: PackedText | Tensor, target: Tensor) -> Tensor:
    """Forward and backward; returns the L2-normalised embeddings [B, EMBED_DIM]."""
    tower.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=target.is_cuda):
        features = tower(text)
    embeddings = F.normalize(features.float(), dim=-1)
    (embeddings * target).sum().backward()
    return embeddings.detach()


def seconds(tower: nn.Module, text: PackedText | Tensor, target: Tensor) -> float:
    """Time of one step."""
    if target.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(tower, text, target)
    if target.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def gradients(tower: nn.Module) -> Tensor:
    """All gradients in one vector, by parameter name."""
    named = sorted(tower.named_parameters())
    return torch.cat([p.grad.flatten().float() for _, p in named if p.grad is not None])


def compare(name: str, lengths: list[int], towers: Towers, config: TextTowerConfig) -> list[Row]:
    """Speed and exactness on one batch."""
    device = next(towers.packed.parameters()).device
    text = captions(lengths, config, device)
    longest = text.padded()
    full = F.pad(longest, (0, config.context_length - longest.shape[1]))
    generator = torch.Generator().manual_seed(config.seed + 1)
    target = torch.randn((len(lengths), EMBED_DIM), generator=generator).to(device)
    # The warm-up is the comparison, too.
    wanted = step(towers.padded, full, target)
    found = step(towers.packed, text, target)
    reference, ours = gradients(towers.padded), gradients(towers.packed)
    step(towers.padded, longest, target)
    base, ours_name = f"padded to {config.context_length} (open_clip)", "packed (ours)"
    contenders: dict[str, Callable[[], float]] = {
        base: functools.partial(seconds, towers.padded, full, target),
        "padded to the longest": functools.partial(seconds, towers.padded, longest, target),
        ours_name: functools.partial(seconds, towers.packed, text, target),
    }
    times = interleaved(contenders, config.repetitions)
    what = f"{name}, B={len(lengths)}"
    rows = [
        median_row(
            f"{what}: {way}", "ms", [1e3 * t for t in taken], paired_ratio(times[base], taken)
        )
        for way, taken in times.items()
    ]
    apart = float((found - wanted).abs().max())
    relative = float((ours - reference).norm() / reference.norm())
    tokens = sum(lengths) / full.numel()
    return [
        *rows,
        Row(f"{what}: tokens that are no padding", "of B x context", tokens),
        Row(f"{what}: greatest difference of embeddings", "of unit vectors", apart),
        Row(f"{what}: difference of gradients", "relative norm", relative),
    ]


def measure(config: TextTowerConfig) -> Result:
    """Build the towers and compare them on each corpus's lengths."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UserError("device=cuda: there is no CUDA device; use device=cpu")
    device = torch.device("cuda" if available and config.device != "cpu" else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(config.threads)
    towers = build(config, device)
    rng = np.random.default_rng(config.seed)
    facts = machine()
    rows = []
    for name, fit in CORPORA.items():
        count = config.batch or (fit.cpu_batch if device.type == "cpu" else fit.cuda_batch)
        lengths = draw_lengths(name, count, config.context_length, rng)
        facts[f"{name} lengths"] = _describe(lengths)
        rows += compare(name, lengths, towers, config)
    if config.shards:
        lengths = shard_lengths(config, config.batch or 64, rng)
        facts["lengths in shards"] = _describe(lengths)
        rows += compare(Path(config.shards).name, lengths, towers, config)
    bert = towers.padded.config
    facts["tower"] = (
        f"{bert.num_hidden_layers} layers, width {bert.hidden_size}, "
        + ("bf16 autocast" if device.type == "cuda" else "fp32")
        + f"; peer's attention: {bert._attn_implementation}"
    )
    facts["repetitions"] = f"{config.repetitions}, interleaved"
    return Result("text tower", facts, tuple(rows))


def _describe(lengths: list[int]) -> str:
    found = np.array(lengths)
    return (
        f"mean {found.mean():.0f}, median {np.median(found):.0f}, "
        f"95th percentile {np.percentile(found, 95):.0f}, longest {found.max()}"
    )


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    config = load_config(TextTowerConfig, argv, "python -m benchmarks.text_tower")
    report([measure(config)], config.out)


if __name__ == "__main__":
    run_program(main)
