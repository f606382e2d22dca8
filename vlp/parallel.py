"""A model on several devices: copies (DDP) or shards (FSDP2), with the same mathematics.

Parameters, gradients and optimiser are fp32 in both; the towers compute under autocast. Shards save
12 of the 16 bytes per parameter that copies take, times (ranks - 1) / ranks, for more
communication. For towers of BiomedCLIP's size copies are faster; shards are for larger ones.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vlp import distributed
from vlp.distributed import World

Parallel = Literal["ddp", "fsdp"]


class Norms(NamedTuple):
    """L2 norms of the gradient before clipping: of all parameters, and of parts by name."""

    total: Tensor
    parts: dict[str, Tensor]


def shard(model: nn.Module, world: World) -> nn.Module:
    """Split the parameters over the ranks, block by block, in place (FSDP2).

    Call it before the optimiser is made. Scalars (the temperature) stay whole on every rank, since
    FSDP2 has no shards of them; `reduce_whole` averages their gradients.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in reversed(list(_blocks(model))):  # inner ones first
        fully_shard(block, mesh=mesh)
    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    # Or the outermost parameters would stay whole between an evaluation and the next step.
    fully_shard(model, mesh=mesh, ignored_params=scalars, reshard_after_forward=True)
    return model


def replicate(model: nn.Module, world: World) -> nn.Module:
    """A copy on each rank (DDP); on one process the model itself."""
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def settle(model: DistributedDataParallel, one_pass: Callable[[], None]) -> None:
    """Let DDP arrange its buckets before the first step.

    It does so after its first backward, and the arrangement decides in which order more than two
    ranks are summed: without this, a run that was resumed would differ in the last bits.

    Args:
        model: the copies.
        one_pass: forward and backward of any batch, which leaves no gradients.
    """
    if distributed.size() < 3:
        return
    buffers = [buffer.clone() for buffer in model.buffers()]
    one_pass()
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)


def autocast(precision: str, world: World) -> torch.autocast:
    """The precision of the model's products."""
    device = world.device.type
    if precision == "auto":
        half = device == "cuda" and torch.cuda.is_bf16_supported()
    else:
        half = precision == "bf16"
    return torch.autocast(device, torch.bfloat16, enabled=half)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def reduce_whole(model: nn.Module) -> None:
    """Average the gradients that FSDP2 does not: those of parameters that are not sharded."""
    if not is_sharded(model):
        return
    for parameter in model.parameters():
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= distributed.size()


def clip_gradients(model: nn.Module, bound: float, parts: Mapping[str, str]) -> Norms:
    """Scale the gradients to a global norm of at most `bound` (0: leave them); returns norms.

    Args:
        model: its parameters have gradients.
        bound: of the norm.
        parts: name -> prefix of the parameters whose norm is wanted, too.
    """
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    norms = Norms(
        _norm(gradients.values()),
        {
            part: _norm(value for name, value in gradients.items() if name.startswith(prefix))
            for part, prefix in parts.items()
        },
    )
    if bound > 0:
        for sharded in (True, False):
            clip_grads_with_norm_(
                [p for p in model.parameters() if isinstance(p, DTensor) == sharded],
                bound,
                norms.total,
            )
    return norms


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict on rank 0, whole and on the CPU; empty on the others, which must call too."""
    weights = {}
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if distributed.rank() == 0:
            weights[name] = whole.detach().to("cpu", copy=True)
    return weights


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of both towers, outer ones before those inside them."""
    for module in model.modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        # isinstance: a tower's last block may be of a class derived for [CLS] alone.
        if all(isinstance(child, type(module[0])) for child in module):
            yield from module


def _norm(gradients: Iterable[Tensor]) -> Tensor:
    """The L2 norm of all together, as `torch.nn.utils.clip_grad_norm_` computes it."""
    whole: list[Tensor] = []
    sharded: list[Tensor] = []
    for gradient in gradients:
        (sharded if isinstance(gradient, DTensor) else whole).append(gradient)
    if not sharded:
        return get_total_norm(whole) if whole else torch.tensor(0.0)
    total = get_total_norm(sharded)
    total = total.full_tensor() if isinstance(total, DTensor) else total
    return torch.linalg.vector_norm(torch.stack([total, get_total_norm(whole)])) if whole else total
