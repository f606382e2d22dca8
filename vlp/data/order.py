"""The order of samples as a pure function: (seed, epoch, global position) -> sample.

Step `s` of a run with global batch `B` takes positions [s*B, (s+1)*B) of one endless stream; ranks
and workers only decide who fetches which of them. Nothing is carried from step to step, hence:
every sample exactly once per epoch, the same global batches for any number of ranks and workers,
resume at any step and on any world size without replay, and no rank that can run dry.

Within a source, shards are shuffled, then samples within windows of a few shards, so that reads
stay local. Sources are interleaved as evenly as integers allow, so every batch holds its share.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """One dataset as the order sees it.

    Attributes:
        shard_sizes: number of samples of each shard.
        weight: passes over the dataset per epoch of the mixture; 2 shows each sample twice per
            epoch, 0.5 shows each once in two epochs.
    """

    shard_sizes: tuple[int, ...]
    weight: float = 1.0

    @property
    def size(self) -> int:
        return sum(self.shard_sizes)

    @property
    def share(self) -> int:
        """Samples of this source in one epoch of the mixture."""
        return max(1, round(self.weight * self.size))


@dataclass(frozen=True)
class Order:
    """The stream of samples of a mixture.

    Attributes:
        sources: datasets by name.
        seed: two runs with the same seed and data see the same stream.
        window: shards whose samples are shuffled together. Larger mixes better; smaller reads
            more locally, which matters for shards on a network or a spinning disk.
    """

    sources: Mapping[str, Source]
    seed: int = 0
    window: int = 16

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("a mixture needs at least one source")
        if self.window < 1:
            raise ValueError(f"window must be at least 1 shard, got {self.window}")
        for name, source in self.sources.items():
            if source.size < 1 or min(source.shard_sizes) < 0:
                raise ValueError(f"source '{name}' has no samples")
            if not 0 < source.weight < float("inf"):
                raise ValueError(f"source '{name}': weight must be positive, got {source.weight}")

    @property
    def epoch_size(self) -> int:
        """Samples in one epoch of the mixture."""
        return sum(source.share for source in self.sources.values())

    def samples(self, positions: Sequence[int] | Positions) -> tuple[Positions, Positions]:
        """Which samples stand at the given positions of the stream.

        Args:
            positions: [N] positions, each >= 0; epoch e covers [e*epoch_size, (e+1)*epoch_size).

        Returns:
            source [N]: index into `sources`; sample [N]: index of the sample in its source,
            counting through its shards in their given order.
        """
        where = np.asarray(positions, dtype=np.int64)
        if where.size and where.min() < 0:
            raise ValueError("positions start at 0")
        source, rank = self._interleave(where)
        sample = np.empty_like(where)
        for index, member in enumerate(self.sources.values()):
            mine = source == index
            sample[mine] = self._within(index, member, rank[mine])
        return source, sample

    def taken(self, count: int) -> list[int]:
        """How many samples of each source stand at the first `count` positions of the stream."""
        epochs, place = divmod(count, self.epoch_size)
        total, found = self.epoch_size, []
        for member in self.sources.values():
            before = place * member.share // total
            found.append(epochs * member.share + before)
            place -= before
            total -= member.share
        return found

    def of_source(self, index: int, ranks: Sequence[int] | Positions) -> Positions:
        """[N] places in the endless stream of source `index` alone -> [N] its samples."""
        source = list(self.sources.values())[index]
        return self._within(index, source, np.asarray(ranks, dtype=np.int64))

    def _interleave(self, positions: Positions) -> tuple[Positions, Positions]:
        """[N] positions -> ([N] source, [N] rank in that source's own endless stream).

        Splits the epoch in two, source by source: of `total` places, the first source takes those
        p where floor(p * share / total) steps up, which spreads them evenly; the others share the
        rest in the same way. Exact in integers, and O(sources) per position.
        """
        epoch, place = np.divmod(positions, self.epoch_size)
        source = np.full(positions.shape, -1, dtype=np.int64)
        rank = np.zeros(positions.shape, dtype=np.int64)
        total = self.epoch_size
        open_ = np.ones(positions.shape, dtype=bool)
        for index, member in enumerate(self.sources.values()):
            share = member.share
            before = _scaled(place, share, total)
            takes = open_ & (_scaled(place + 1, share, total) > before)
            source[takes] = index
            rank[takes] = epoch[takes] * share + before[takes]
            open_ &= ~takes
            place = place - before
            total -= share
        return source, rank

    def _within(self, index: int, source: Source, rank: Positions) -> Positions:
        """[N] ranks in a source's endless stream -> [N] samples, by windows of shuffled shards."""
        passes, place = np.divmod(rank, source.size)
        sample = np.empty_like(rank)
        for each in np.unique(passes):
            shards, window_ends = _pass_layout(
                source.shard_sizes, self.window, (self.seed, index, int(each))
            )
            this_pass = passes == each
            window = np.searchsorted(window_ends, place, side="right")
            for w in np.unique(window[this_pass]):
                chosen = this_pass & (window == w)
                start = int(window_ends[w - 1]) if w else 0
                members = _window_members(
                    source.shard_sizes,
                    tuple(shards[w * self.window : (w + 1) * self.window]),
                    (self.seed, index, int(each), int(w)),
                )
                sample[chosen] = members[place[chosen] - start]
        return sample


def generator(*key: int) -> np.random.Generator:
    """A random generator that depends on nothing but the integers given.

    Augmentation draws from `generator(seed, epoch, position)`, so that a sample looks the same
    whichever rank or worker fetches it.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _scaled(place: Positions, share: int, total: int) -> Positions:
    """floor(place * share / total); exact while place * share < 2^63, that is, to 3e9 samples."""
    return place * share // max(total, 1)


@functools.lru_cache(maxsize=64)
def _pass_layout(
    shard_sizes: tuple[int, ...], window: int, key: tuple[int, ...]
) -> tuple[tuple[int, ...], Positions]:
    """One pass over a source: (shuffled shards, [windows] position at which each window ends)."""
    shards = generator(*key, 0).permutation(len(shard_sizes))
    ends = np.cumsum(np.asarray(shard_sizes, dtype=np.int64)[shards])
    last = np.append(np.arange(window - 1, len(shards) - 1, window), len(shards) - 1)
    return tuple(int(shard) for shard in shards), ends[last]


# A window of 16 shards of 10,000 samples takes 1.3 MB; two windows per source are in use at once.
@functools.lru_cache(maxsize=64)
def _window_members(
    shard_sizes: tuple[int, ...], shards: tuple[int, ...], key: tuple[int, ...]
) -> Positions:
    """The samples of a window's shards, shuffled: [samples in window] -> sample of the source."""
    starts = np.concatenate(([0], np.cumsum(np.asarray(shard_sizes, dtype=np.int64))))
    members = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards])
    return generator(*key, 1).permutation(members)
