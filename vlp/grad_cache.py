"""Batches larger than memory, with the gradients of the whole batch (GradCache, Gao et al. 2021).

A contrastive loss needs the features of the whole batch, but the towers need not hold their
activations all at once. Chunk by chunk: features without activations; the loss of all features and
its gradients to them; then each chunk again, with activations, and those gradients sent back
through it. The price is one more forward pass, as with activation checkpointing, and memory is a
chunk's. Temperature and bias get the gradient of the one loss, once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from vlp.data.text import PackedText
from vlp.models.dual_encoder import Features

Chunk = TypeVar("Chunk")


def cached_step(
    forward: Callable[[Chunk], Features],
    batch_chunks: Sequence[Chunk],
    loss: Callable[[Features], Tensor],
    model: nn.Module,
) -> Tensor:
    """Forward and backward of a batch in chunks; the gradients are added to the parameters'.

    Each chunk's random draws (dropout, patch dropout, stochastic depth) are the same in both of its
    passes. Under DDP and FSDP gradients are reduced once, with the last chunk.

    Args:
        forward: a chunk -> its features; it calls `model`, under autocast where that is wanted.
        batch_chunks: the rank's batch in order; every rank has the same number of chunks.
        loss: features of the rank's whole batch -> its share of the loss.
        model: the module that `forward` calls: plain, or wrapped for DDP or FSDP2.

    Returns:
        The rank's share of the loss, detached.
    """
    draws, parts = [], []
    with torch.no_grad():
        for chunk in batch_chunks:
            draws.append(_random_state())
            parts.append(forward(chunk))
    whole = _leaves(parts)
    value = loss(whole)
    value.backward()

    sizes = [len(part.image) for part in parts]
    of_images, of_texts = (torch.split(_gradient(x), sizes) for x in (whole.image, whole.text))
    for place, chunk in enumerate(batch_chunks):
        last = place == len(batch_chunks) - 1
        with reduction(model, last):
            _set_random_state(draws[place])
            features = forward(chunk)
            gradients = [of_images[place], of_texts[place]]
            if last:  # what is the same in all chunks: temperature and bias
                gradients += [_gradient(x) for x in whole[2:] if x is not None]
            # A frozen tower's features, if nothing of it is trained, have no graph.
            pairs = [
                (output, gradient)
                for output, gradient in zip(features, gradients, strict=False)
                if output is not None and output.requires_grad
            ]
            torch.autograd.backward([output for output, _ in pairs], [g for _, g in pairs])
    return value.detach()


def split_batch(images: Tensor, text: PackedText, size: int) -> list[tuple[Tensor, PackedText]]:
    """[B, ...] and B captions -> chunks of `size` pairs, the last one smaller if need be.

    Reads the captions' places: split on the host, since on CUDA this would wait for the device.
    """
    places = text.cu_seqlens.tolist()
    chunks = []
    for start in range(0, len(images), size):
        end = min(start + size, len(images))
        starts = text.cu_seqlens[start : end + 1] - places[start]
        ids = text.input_ids[places[start] : places[end]]
        chunks.append((images[start:end], PackedText(ids, starts, text.max_length)))
    return chunks


def _leaves(parts: Sequence[Features]) -> Features:
    """The whole batch's features as leaves of a graph of their own."""
    image, text = (torch.cat(rows) for rows in zip(*(part[:2] for part in parts), strict=True))
    # Detached: what needs no cast to fp32 is the parameter itself.
    scale, bias = (None if x is None else x.detach().requires_grad_() for x in parts[0][2:])
    assert scale is not None
    return Features(image.requires_grad_(), text.requires_grad_(), scale, bias)


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


@contextmanager
def reduction(model: nn.Module, last: bool) -> Iterator[None]:
    """Gradients go to the other ranks with the last chunk; before, they add up on their rank."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        model.set_is_last_backward(last)
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


def _random_state() -> list[Tensor]:
    """States of the generators that layers draw from: the CPU's and the current device's."""
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda]


def _set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)
