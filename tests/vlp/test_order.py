"""The data order is a pure function; its promises, over generated mixtures."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp.data.order import Order, Source, generator

# Uneven, one-sample and empty shards; fewer shards than ranks happen often.
shard_sizes = st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(lambda s: sum(s) > 0)
mixtures = st.builds(
    Order,
    sources=st.dictionaries(
        st.sampled_from("abcd"),
        st.builds(Source, shard_sizes.map(tuple), st.sampled_from([1.0, 1.0, 2.0, 0.5, 3.0, 1.7])),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 2**31),
    window=st.integers(1, 12),
)


def stream(order: Order, start: int, stop: int) -> list[tuple[int, int]]:
    source, sample = order.samples(range(start, stop))
    return list(zip(source.tolist(), sample.tolist(), strict=True))


@given(mixtures, st.integers(0, 3))
def test_each_sample_exactly_once_per_epoch(order: Order, epoch: int) -> None:
    """With weight 1; and in general each source has its share, each sample floor or ceil of it."""
    size = order.epoch_size
    counts = Counter(stream(order, epoch * size, (epoch + 1) * size))
    for index, source in enumerate(order.sources.values()):
        of_source = [counts[index, sample] for sample in range(source.size)]
        assert sum(of_source) == source.share
        if source.weight == 1:
            assert set(of_source) == {1}
        # A pass that began in the epoch before may overlap the next one by a sample's second turn.
        assert max(of_source) <= -(-source.share // source.size) + 1
    assert sum(counts.values()) == size


@given(mixtures)
def test_passes_of_a_weighted_source_are_whole(order: Order) -> None:
    """Over as many epochs as make whole passes, every sample comes equally often."""
    index, (_, source) = 0, next(iter(order.sources.items()))
    epochs = source.size  # share * size samples = `share` whole passes
    everything = Counter(stream(order, 0, epochs * order.epoch_size))
    assert {everything[index, sample] for sample in range(source.size)} == {source.share}


@given(mixtures, st.integers(0, 300))
def test_what_a_prefix_takes_is_known_without_it(order: Order, count: int) -> None:
    """`taken` counts the stream's samples, `of_source` names them in their order."""
    found = stream(order, 0, count)
    for index, taken in enumerate(order.taken(count)):
        want = [sample for source, sample in found if source == index]
        assert order.of_source(index, range(taken)).tolist() == want


@given(mixtures, st.integers(1, 40))
def test_sources_are_spread_evenly(order: Order, batch: int) -> None:
    """Any prefix holds each source's share, to within one sample per source before it."""
    source, _ = order.samples(range(order.epoch_size))
    for index, member in enumerate(order.sources.values()):
        got = np.cumsum(source == index)
        due = np.arange(1, order.epoch_size + 1) * member.share / order.epoch_size
        assert np.abs(got - due).max() <= index + 1


@given(mixtures, st.integers(0, 5), st.sampled_from([1, 2, 3, 8]), st.integers(0, 4))
def test_global_batch_is_the_same_for_any_world(
    order: Order, step: int, ranks: int, workers: int
) -> None:
    """Ranks and workers cut positions, in any order of asking, and nothing else."""
    batch = 24
    whole = stream(order, step * batch, (step + 1) * batch)
    local = batch // ranks
    parts: list[tuple[int, int]] = []
    for rank in range(ranks):
        start = step * batch + rank * local
        # A worker may have served any other step before: the answer must not depend on it.
        stream(order, (step + workers) * batch, (step + workers) * batch + 3)
        parts += stream(order, start, start + local)
    assert parts == whole


@given(mixtures, st.integers(0, 200))
def test_one_position_alone_equals_the_stream(order: Order, position: int) -> None:
    assert stream(order, position, position + 1) == stream(order, 0, position + 1)[-1:]


def test_shards_of_a_window_are_read_together() -> None:
    order = Order({"a": Source((10,) * 12)}, window=3)
    _, sample = order.samples(range(120))
    windows = [set((sample[i : i + 30] // 10).tolist()) for i in range(0, 120, 30)]
    assert [len(window) for window in windows] == [3, 3, 3, 3]
    assert set.union(*windows) == set(range(12))
    assert (np.diff(sample) != 1).mean() > 0.9  # shuffled within the window


def test_epochs_and_seeds_differ() -> None:
    order = Order({"a": Source((50, 50))})
    other = Order({"a": Source((50, 50))}, seed=1)
    first, second = stream(order, 0, 100), stream(order, 100, 200)
    assert first != second
    assert first != stream(other, 0, 100)
    assert first == stream(Order({"a": Source((50, 50))}), 0, 100)


def test_known_order_never_changes() -> None:
    """Old runs must resume under new code: these numbers are part of the format."""
    order = Order({"a": Source((3, 1, 4)), "b": Source((2,), weight=2.0)}, seed=7, window=2)
    source, sample = order.samples(range(12))
    assert source.tolist() == [1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0]
    assert sample.tolist() == [0, 2, 0, 1, 1, 3, 0, 4, 5, 1, 6, 7]


@settings(max_examples=20)
@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_large_counts_stay_exact(first: int, second: int) -> None:
    """The interleaving is integer arithmetic: no drift at a billion samples."""
    order = Order({"a": Source((first,)), "b": Source((second,))})
    edges = np.array([0, order.epoch_size // 2, order.epoch_size - 1])
    _, rank = order._interleave(edges + order.epoch_size)
    assert rank.min() >= min(first, second)
    last_source, last_rank = order._interleave(np.arange(order.epoch_size - 2, order.epoch_size))
    ends = {0: first - 1, 1: second - 1}
    assert max(last_rank[last_source == last_source[-1]]) == ends[int(last_source[-1])]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, "at least one source"),
        ({"a": Source(())}, "'a' has no samples"),
        ({"a": Source((3,), weight=0.0)}, "weight must be positive"),
    ],
)
def test_impossible_mixtures(sources: dict[str, Source], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Order(sources)


def test_generator_depends_on_its_key_alone() -> None:
    draws = {generator(*key).random() for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]}
    assert len(draws) == 4
    assert generator(0, 2, 3).random() == generator(0, 2, 3).random()
