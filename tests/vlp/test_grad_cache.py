"""A batch in chunks against the same batch at once: gradients, draws, ranks.

Tolerance 1e-6: of the norm of all gradients, of the largest gradient of a parameter's tower, and of
temperature and bias themselves. That is float32 sums in another order: against float64 the big
batch's own gradients are no closer (relative norm 3e-7 to 7e-7, in chunks and at once).
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.vlp.test_losses import meet
from tests.vlp.tiny import MODEL
from vlp.data.text import PackedText
from vlp.grad_cache import cached_step, split_batch
from vlp.losses import LossConfig, contrastive_loss
from vlp.models.dual_encoder import DualEncoder, Features

BATCH = 8
SIGLIP = LossConfig(name="siglip", tile=3)
INFONCE = LossConfig(tile=3)


def build(loss: LossConfig, random: float = 0.0) -> DualEncoder:
    """A tiny model whose layers all matter; `random` is its drop path and patch dropout."""
    image = dataclasses.replace(MODEL.image, drop_path=random, patch_dropout=random)
    bias = -3.0 if loss.name == "siglip" else None
    torch.manual_seed(0)
    model = DualEncoder(dataclasses.replace(MODEL, image=image, init_bias=bias))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("logit"):
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.train()


def batch() -> tuple[torch.Tensor, PackedText]:
    torch.manual_seed(1)
    lengths = [5, 9, 3, 24, 7, 4, 12, 6]
    starts = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    ids = torch.randint(5, MODEL.text.vocab_size, (sum(lengths),))
    return torch.randn(BATCH, 3, 160, 160), PackedText(ids, starts, 24)


def of_rank(rank: int, ranks: int) -> tuple[torch.Tensor, PackedText]:
    return split_batch(*batch(), BATCH // ranks)[rank]


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    named = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in named.items()}


def assert_equal_gradients(
    got: dict[str, Any], want: dict[str, Any], tolerance: float = 1e-6
) -> None:
    assert got.keys() == want.keys()
    towers: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for name, value in want.items():
        assert (got[name] is None) == (value is None), name
        if value is not None:
            towers.setdefault(name.partition(".")[0], []).append((got[name], value))
    assert {"text", "logit_scale"} <= towers.keys()
    for name, pairs in towers.items():
        largest = max(value.abs().max() for _, value in pairs)
        assert largest > 1e-3, name  # not a comparison of zeros
        assert max((mine - value).abs().max() for mine, value in pairs) <= tolerance * largest, name
    mine, value = (
        torch.cat([pair[side].flatten() for pairs in towers.values() for pair in pairs])
        for side in (0, 1)
    )
    assert (mine - value).norm() <= tolerance * value.norm()


def at_once(model: nn.Module, loss: LossConfig) -> torch.Tensor:
    value = contrastive_loss(model(*batch()), loss)
    value.backward()
    return value.detach()


def in_chunks(model: nn.Module, loss: LossConfig, chunks: list[Any]) -> torch.Tensor:
    return cached_step(lambda c: model(*c), chunks, partial(contrastive_loss, config=loss), model)


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("loss", [INFONCE, SIGLIP], ids=lambda loss: loss.name)
def test_gradients_equal_the_big_batch(loss: LossConfig, size: int) -> None:
    model = build(loss)
    want_loss = at_once(model, loss)
    want = gradients(model)
    model.zero_grad(set_to_none=True)
    got_loss = in_chunks(model, loss, split_batch(*batch(), size))
    assert_equal_gradients(gradients(model), want)
    assert abs(got_loss - want_loss) <= 1e-6 * want_loss


NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])])
def test_draws_are_the_same_in_both_passes(device: str) -> None:
    """Features of a chunk agree bit for bit, differ between chunks, and give the gradients."""
    model = build(INFONCE, random=0.4).to(device)
    chunks = [(images.to(device), text.to(device)) for images, text in split_batch(*batch(), 4)]
    passes: list[Features] = []

    def forward(chunk: Any) -> Features:
        passes.append(model(*chunk))
        return passes[-1]

    torch.manual_seed(5)
    cached_step(forward, chunks, partial(contrastive_loss, config=INFONCE), model)
    got, state = gradients(model), torch.get_rng_state()
    assert len(passes) == 4
    for first, second in zip(passes[:2], passes[2:], strict=True):
        assert torch.equal(first.image, second.image)

    model.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    parts = [model(*chunk) for chunk in chunks]
    assert torch.equal(torch.get_rng_state(), state)  # the step draws as often as one pass
    image, text = (torch.cat(rows) for rows in zip(*(part[:2] for part in parts), strict=True))
    contrastive_loss(Features(image, text, parts[0].scale), INFONCE).backward()
    # Kernels of CUDA may add up in another order each time.
    assert_equal_gradients(got, gradients(model), 1e-6 if device == "cpu" else 1e-5)
    with torch.no_grad():  # and there is something to draw
        assert not torch.equal(model(*chunks[0]).image, model(*chunks[0]).image)


def test_gradients_add_up_and_frozen_towers_have_none() -> None:
    model = build(INFONCE)
    model.visual.requires_grad_(False)
    at_once(model, INFONCE)
    want = {name: None if g is None else 2 * g for name, g in gradients(model).items()}
    in_chunks(model, INFONCE, split_batch(*batch(), 3))
    assert_equal_gradients(gradients(model), want)
    assert any(g is None for g in want.values())


def test_activations_are_those_of_a_chunk() -> None:
    """Graphs of two chunks never live at the same time."""
    model, live, most = build(INFONCE), [0], [0]

    def free(_: Any) -> None:
        live[0] -= 1

    def forward(chunk: Any) -> Features:
        features = model(*chunk)
        if features.image.requires_grad:
            live[0] += 1
            most[0] = max(most[0], live[0])
            features.image.register_hook(free)  # backward begins: the graph is being consumed
        return features

    chunks = split_batch(*batch(), 2)
    cached_step(forward, chunks, partial(contrastive_loss, config=INFONCE), model)
    assert (live[0], most[0]) == (0, 1)


def test_split_batch_gives_every_caption_back() -> None:
    images, text = batch()
    chunks = split_batch(images, text, 3)
    assert [len(part) for part, _ in chunks] == [3, 3, 2]
    assert torch.equal(torch.cat([part for part, _ in chunks]), images)
    assert torch.equal(torch.cat([part.input_ids for _, part in chunks]), text.input_ids)
    lengths = torch.cat([part.cu_seqlens.diff() for _, part in chunks])
    assert torch.equal(lengths, text.cu_seqlens.diff())
    assert all(part.cu_seqlens[0] == 0 and part.max_length == 24 for _, part in chunks)
    assert chunks[1][1].cu_seqlens.dtype == torch.int32


def run_rank(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    meet(rank, ranks, folder)
    chunks = split_batch(*of_rank(rank, ranks), 2)
    results: dict[str, Any] = {}
    for loss in (INFONCE, SIGLIP):
        # Buckets so large that one reduction carries all gradients.
        ddp = DistributedDataParallel(build(loss), gradient_as_bucket_view=True, bucket_cap_mb=100)
        reductions: list[int] = []

        def counted(
            _: None, bucket: dist.GradBucket, seen: list[int] = reductions
        ) -> torch.futures.Future[torch.Tensor]:
            seen.append(bucket.buffer().numel())
            work = dist.all_reduce(bucket.buffer(), async_op=True)
            assert work is not None
            return work.get_future().then(lambda done: done.value()[0] / ranks)

        ddp.register_comm_hook(None, counted)
        in_chunks(ddp, loss, chunks)
        results[loss.name] = gradients(ddp)
        results[f"{loss.name} reductions"] = torch.tensor(reductions)

    sharded = build(INFONCE)
    mesh = init_device_mesh("cpu", (ranks,))
    for tower in (sharded.visual, sharded.text):
        fully_shard(tower, mesh=mesh)
    fully_shard(sharded, mesh=mesh, ignored_params={sharded.logit_scale})  # it shards no scalars
    in_chunks(sharded, INFONCE, chunks)
    scale = sharded.logit_scale.grad
    assert scale is not None
    dist.all_reduce(scale)
    scale /= ranks
    results["fsdp"] = gradients(sharded)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_reduce_once_and_equal_the_big_batch(tmp_path: Path) -> None:
    ranks = 2
    mp.start_processes(run_rank, (ranks, str(tmp_path)), nprocs=ranks, start_method="fork")
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    for loss in (INFONCE, SIGLIP):
        model = build(loss)
        at_once(model, loss)
        want = gradients(model)
        for result in results:
            assert_equal_gradients(result[loss.name], want)
            if loss is INFONCE:
                assert_equal_gradients(result["fsdp"], want)
            numbers = sum(p.numel() for p in model.parameters())
            assert result[f"{loss.name} reductions"].tolist() == [numbers]
