"""Features of the validation split, for the scores during training."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from vlp import distributed
from vlp.data.image import Normalise
from vlp.data.loader import Batch, EvaluationSamples, batches
from vlp.data.text import CaptionTokenizer
from vlp.distributed import World
from vlp.settings import Config
from vlp.watch import Embedded, whole_places

Evaluate = Callable[[Tensor, Tensor], dict[str, float]]
"""Normalised image and text features [N, D] of N pairs -> scores by name."""


class Validation:
    """The first `train.validation_samples` pairs of the validation split of all sources.

    Attributes:
        folders: the sources that have the split.
    """

    def __init__(self, config: Config, tokenizer: CaptionTokenizer, world: World) -> None:
        self.data, self.world, image = config.data, world, config.model.image
        self.folders = config.data.validation()
        self.samples = EvaluationSamples(self.folders, tokenizer, image.size)
        self.normalise = Normalise(image.mean, image.std, world.device)
        count = min(len(self.samples), config.train.validation_samples)
        size = config.train.micro_batch or max(1, config.train.batch_size // world.size)
        self.parts = [list(range(i, min(i + size, count))) for i in range(0, count, size)]

    @torch.no_grad()
    def embed(self, model: nn.Module, autocast: torch.autocast) -> Embedded | None:
        """The features, on rank 0.

        None where there is nothing to embed, and on the other ranks, which help.
        """
        if not self.parts:
            return None
        model.eval()
        embedded = []
        for part, batch in self._batches():
            with autocast:
                features = model(self.normalise(batch.images), batch.text.to(self.world.device))
            places = whole_places(self.samples, part, batch)
            embedded.append((features.image.cpu(), features.text.cpu(), places))
        model.train()
        ranks = distributed.gather_objects(embedded)
        if not self.world.is_main:
            return None
        # The part with number i was the turn i // size of rank i % size.
        parts = [ranks[i % len(ranks)][i // len(ranks)] for i in range(len(self.parts))]
        images, texts, found = zip(*parts, strict=True)
        return Embedded(torch.cat(images), torch.cat(texts), list(itertools.chain(*found)))

    def _batches(self) -> Iterator[tuple[list[int], Batch]]:
        """This rank's parts. All ranks get as many, since sharded models compute together: who
        would have one less takes the first part again, in vain."""
        rank, ranks = self.world.rank, self.world.size
        turns = range(rank, -(-len(self.parts) // ranks) * ranks, ranks)
        mine = [self.parts[i if i < len(self.parts) else 0] for i in turns]
        yield from zip(mine, batches(self.samples, mine, self.data), strict=True)
