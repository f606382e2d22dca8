"""The tiled losses against open_clip's on the whole batch, over 1, 2 and 4 processes.

Tolerance 1e-6 relative to the largest gradient: float32 sums in another order.
"""

import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from open_clip.loss import SigLipLoss

from benchmarks.memory import LiveMemory
from vlp.distributed import gather
from vlp.losses import LossConfig, contrastive_loss
from vlp.models.dual_encoder import Features
from vlp.settings import Config

BATCH, WIDTH = 24, 16
LOSSES = ["infonce", "siglip"]


def whole_batch(loss: str) -> list[torch.Tensor]:
    """Unnormalised features, a log temperature and a bias, the same in every process."""
    torch.manual_seed(0)
    features = [torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH), torch.tensor(math.log(20.0))]
    return features + ([torch.tensor(-3.0)] if loss == "siglip" else [])


def unit_features(image: Any, text: Any, log_scale: Any, bias: Any = None) -> Features:
    return Features(F.normalize(image, dim=-1), F.normalize(text, dim=-1), log_scale.exp(), bias)


def open_clip_reference(loss: str) -> dict[str, torch.Tensor]:
    leaves = [x.requires_grad_() for x in whole_batch(loss)]
    features = [x for x in unit_features(*leaves) if x is not None]
    peer = SigLipLoss() if loss == "siglip" else open_clip.ClipLoss()
    value = peer(*features)
    value.backward()
    return {"loss": value.detach()} | named_gradients(leaves)


def named_gradients(leaves: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    names = ("image", "text", "scale", "bias")
    return {name: x.grad for name, x in zip(names, leaves, strict=False) if x.grad is not None}


def meet(rank: int, ranks: int, folder: str) -> None:
    """Join the other ranks over a file of the test's folder: another test may take a port."""
    place = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=ranks)


def run_rank(rank: int, ranks: int, loss: str, folder: str) -> None:
    """Loss and gradients of one rank, with one tile and with tiles across the borders of ranks."""
    torch.set_num_threads(1)
    if ranks > 1:
        meet(rank, ranks, folder)
    rows = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    for tile in (1024, 5):
        leaves = [(x[rows] if x.ndim else x).clone().requires_grad_() for x in whole_batch(loss)]
        config = LossConfig(name=loss, tile=tile)  # type: ignore[arg-type]
        value = contrastive_loss(unit_features(*leaves), config)
        value.backward()
        torch.save({"loss": value.detach()} | named_gradients(leaves), f"{folder}/{tile}.{rank}.pt")
    if ranks > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_equals_open_clip_on_the_whole_batch(ranks: int, loss: str, tmp_path: Path) -> None:
    mp.start_processes(
        run_rank,
        (ranks, loss, str(tmp_path)),
        nprocs=ranks,
        start_method="fork" if not torch.cuda.is_available() else "spawn",
    )
    want = open_clip_reference(loss)
    for tile in (1024, 5):
        parts = [
            torch.load(tmp_path / f"{tile}.{rank}.pt", weights_only=True) for rank in range(ranks)
        ]
        # What DDP does to parameters: gradients are averaged over the ranks.
        got = {
            name: torch.cat([part[name] for part in parts]) / ranks
            if value.ndim
            else torch.stack([part[name] for part in parts]).mean()
            for name, value in want.items()
        }
        for name, value in want.items():
            assert got[name].shape == value.shape
            assert (got[name] - value).abs().max() <= 1e-6 * max(1, value.abs().max()), name
    assert min(value.abs().max() for value in want.values()) > 1e-3  # not a comparison of zeros


def open_clip_rank(rank: int, ranks: int, folder: str) -> None:
    """open_clip's own distributed SigLIP, whose share per rank ours must equal too."""
    torch.set_num_threads(1)
    meet(rank, ranks, folder)
    rows = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    results = []
    for peer in (True, False):
        parts = [(x[rows] if x.ndim else x).clone() for x in whole_batch("siglip")]
        leaves = [x.requires_grad_() for x in parts]
        features = unit_features(*leaves)
        value = (
            SigLipLoss(rank=rank, world_size=ranks)(*features)
            if peer
            else contrastive_loss(features, LossConfig(name="siglip", tile=7))
        )
        value.backward()
        results.append({"loss": value.detach()} | named_gradients(leaves))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_siglip_equals_open_clips_ranks_one_by_one(tmp_path: Path) -> None:
    ranks = 3
    mp.start_processes(open_clip_rank, (ranks, str(tmp_path)), nprocs=ranks, start_method="fork")
    for rank in range(ranks):
        theirs, ours = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in theirs.items():
            assert (ours[name] - value).abs().max() <= 1e-6 * max(1, value.abs().max()), name


@pytest.mark.parametrize("tile", [64, 3])
def test_infonce_in_double_precision_matches_finite_differences(tile: int) -> None:
    """Known answer without another implementation: the derivative itself."""
    torch.manual_seed(1)
    image, text = (F.normalize(torch.randn(7, 5).double(), dim=-1) for _ in range(2))

    def loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        logits = scale * image @ text.T
        places = torch.arange(len(image))
        return (F.cross_entropy(logits, places) + F.cross_entropy(logits.T, places)) / 2

    leaves = [x.clone().requires_grad_() for x in (image, text, torch.tensor(9.0).double())]
    wanted = torch.autograd.grad(loss(*leaves), leaves)
    # The loss itself is fp32: 1e-6 of its gradients, which are of size 0.1.
    singles = [x.detach().float().requires_grad_() for x in leaves]
    found = torch.autograd.grad(
        contrastive_loss(Features(*singles), LossConfig(tile=tile)), singles
    )
    for got, want in zip(found, wanted, strict=True):
        assert (got - want).abs().max() <= 1e-6


def test_one_process_gathers_nothing() -> None:
    x = torch.randn(3, 2)
    assert gather(x) is x


def test_perfect_and_uniform_features() -> None:
    """Known answers: log N for equal features, nearly 0 for orthogonal pairs at a large scale."""
    same = F.normalize(torch.ones(8, 4), dim=-1)
    config = LossConfig(tile=3)
    uniform = contrastive_loss(Features(same, same, torch.tensor(10.0)), config)
    assert uniform.item() == pytest.approx(math.log(8), abs=1e-6)
    perfect = contrastive_loss(Features(torch.eye(8), torch.eye(8), torch.tensor(100.0)), config)
    assert 0 <= perfect.item() < 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_changes_nothing(loss: str) -> None:
    """The products are fp32 inside autocast, too."""
    results = []
    for half in (False, True):
        leaves = [x.requires_grad_() for x in whole_batch(loss)]
        config = LossConfig(name=loss, tile=7)  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = contrastive_loss(unit_features(*leaves), config)
        value.backward()
        results.append([value.detach(), *(x.grad for x in leaves)])
    for plain, half_result in zip(*results, strict=True):
        assert torch.equal(plain, half_result)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("loss", LOSSES)
def test_cuda_equals_the_cpu(loss: str) -> None:
    results = []
    for device in ("cpu", "cuda"):
        leaves = [x.to(device).requires_grad_() for x in whole_batch(loss)]
        config = LossConfig(name=loss, tile=7)  # type: ignore[arg-type]
        value = contrastive_loss(unit_features(*leaves), config)
        value.backward()
        results.append([value.detach(), *(x.grad for x in leaves)])
    for want, got in zip(*results, strict=True):
        assert (got.cpu() - want).abs().max() <= 1e-5 * max(1, want.abs().max())


@pytest.mark.parametrize("loss", LOSSES)
def test_memory_is_linear_in_the_batch(loss: str) -> None:
    """Four times the batch at the same tile: four times the memory, while the logits are 16."""
    peaks = []
    for batch in (256, 1024):
        bias = torch.tensor(-10.0) if loss == "siglip" else None
        leaves = [F.normalize(torch.randn(batch, 4), dim=-1).requires_grad_() for _ in range(2)]
        features = Features(*leaves, torch.tensor(10.0, requires_grad=True), bias)
        config = LossConfig(name=loss, tile=16)  # type: ignore[arg-type]
        with LiveMemory() as memory:
            contrastive_loss(features, config).backward()
        peaks.append(memory.peak)
    assert 3.5 * peaks[0] < peaks[1] < 4.5 * peaks[0]
    assert peaks[1] < 8 * 1024 * 16 * 4  # a few tiles; all logits are 64


def test_bias_and_loss_must_fit() -> None:
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"model.init_bias: loss.name=siglip needs it"):
        contrastive_loss(Features(one, one, one.sum()), LossConfig(name="siglip"))
    with pytest.raises(ValueError, match=r"model.init_bias has no use in loss.name=infonce"):
        contrastive_loss(Features(one, one, one.sum(), one.sum()), LossConfig())
    with pytest.raises(ValueError, match=r"model.init_bias: loss.name=siglip needs it"):
        Config(name="a", loss=LossConfig(name="siglip"))
    with pytest.raises(ValueError, match=r"loss.tile must be at least 1"):
        LossConfig(tile=0)
