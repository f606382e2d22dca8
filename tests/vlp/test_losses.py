"""The gathered loss against open_clip's ClipLoss on the whole batch, over 1, 2 and 4 processes.

Tolerance 1e-6 relative to the largest gradient: float32 sums in another order.
"""

import math
import socket
from pathlib import Path

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vlp.distributed import gather
from vlp.losses import clip_loss

BATCH, WIDTH = 24, 16


def whole_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unnormalised features and a log temperature, the same in every process."""
    torch.manual_seed(0)
    return torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH), torch.tensor(math.log(20.0))


def open_clip_reference() -> dict[str, torch.Tensor]:
    image, text, log_scale = (x.requires_grad_() for x in whole_batch())
    unit = torch.nn.functional.normalize
    loss = open_clip.ClipLoss()(unit(image, dim=-1), unit(text, dim=-1), log_scale.exp())
    loss.backward()
    return {"loss": loss.detach(), "image": image.grad, "text": text.grad, "scale": log_scale.grad}


def run_rank(rank: int, ranks: int, port: int, chunk: int, folder: str) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks
        )
    rows = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    image, text, log_scale = whole_batch()
    image, text, log_scale = (
        x.clone().requires_grad_() for x in (image[rows], text[rows], log_scale)
    )
    unit = torch.nn.functional.normalize
    loss = clip_loss(unit(image, dim=-1), unit(text, dim=-1), log_scale.exp(), chunk)
    loss.backward()
    result = {
        "loss": loss.detach(),
        "image": image.grad,
        "text": text.grad,
        "scale": log_scale.grad,
    }
    torch.save(result, Path(folder) / f"{rank}.pt")
    if ranks > 1:
        dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("chunk", [1024, 5])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_equals_open_clip_on_the_whole_batch(ranks: int, chunk: int, tmp_path: Path) -> None:
    mp.start_processes(
        run_rank,
        (ranks, free_port(), chunk, str(tmp_path)),
        nprocs=ranks,
        start_method="fork" if not torch.cuda.is_available() else "spawn",
    )
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    want = open_clip_reference()
    # What DDP does to parameters: gradients are averaged over the ranks.
    got = {
        "loss": torch.stack([part["loss"] for part in parts]).mean(),
        "image": torch.cat([part["image"] for part in parts]) / ranks,
        "text": torch.cat([part["text"] for part in parts]) / ranks,
        "scale": torch.stack([part["scale"] for part in parts]).mean(),
    }
    for name, value in want.items():
        assert got[name].shape == value.shape
        assert (got[name] - value).abs().max() <= 1e-6 * max(1, value.abs().max()), name
    assert want["image"].abs().max() > 1e-3  # the comparison is not of zeros


def test_one_process_gathers_nothing() -> None:
    x = torch.randn(3, 2)
    assert gather(x) is x


def test_perfect_and_uniform_features() -> None:
    """Known answers: log N for equal features, nearly 0 for orthogonal pairs at a large scale."""
    same = torch.nn.functional.normalize(torch.ones(8, 4), dim=-1)
    assert clip_loss(same, same, torch.tensor(10.0)).item() == pytest.approx(math.log(8), abs=1e-6)
    assert clip_loss(torch.eye(8), torch.eye(8), torch.tensor(100.0)).item() < 1e-6
