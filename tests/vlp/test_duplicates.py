"""The join of near hashes against comparing everything with everything."""

import itertools

import numpy as np
import pytest

from vlp.duplicates import (
    MAX_BITS,
    Hashes,
    Indices,
    leaders,
    near_pairs,
    nearest_in,
)


def clustered(count: int, seed: int, flips: int = 6) -> Hashes:
    """Random hashes, most of them copies of others with a few bits flipped, some exact."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**64, max(1, count // 4), dtype=np.uint64)
    hashes = base[rng.integers(0, len(base), count)]
    for _ in range(flips):
        flip = rng.random(count) < 0.3
        hashes[flip] ^= np.uint64(1) << rng.integers(0, 64, int(flip.sum())).astype(np.uint64)
    return hashes


def slow_pairs(hashes: Hashes, bits: int) -> list[tuple[int, int]]:
    """Every pair, one by one."""
    values = hashes.tolist()
    return [
        (i, j)
        for i, j in itertools.combinations(range(len(values)), 2)
        if (values[i] ^ values[j]).bit_count() <= bits
    ]


def slow_leaders(hashes: Hashes, bits: int) -> list[int]:
    """The definition: join the first leader that is near, else lead."""
    values, leading, result = hashes.tolist(), [], []
    for item, value in enumerate(values):
        near = [leader for leader in leading if (values[leader] ^ value).bit_count() <= bits]
        result.append(near[0] if near else item)
        if not near:
            leading.append(item)
    return result


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 4, 6, 8, 12, MAX_BITS])
@pytest.mark.parametrize("count", [2, 30, 400])
def test_pairs_equal_brute_force(count: int, bits: int) -> None:
    hashes = clustered(count, seed=bits)
    pairs = near_pairs(hashes, bits)
    assert list(map(tuple, pairs.tolist())) == slow_pairs(hashes, bits)


def test_the_brute_force_test_is_not_empty() -> None:
    assert len(near_pairs(clustered(400, seed=3), 0)) >= 10
    assert len(near_pairs(clustered(400, seed=3), 3)) > len(near_pairs(clustered(400, seed=3), 1))


@pytest.mark.parametrize("kept", range(1, 7))
def test_every_choice_of_bands_finds_the_same(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlp.duplicates._bands_kept", lambda count, bits: kept)
    hashes = clustered(300, seed=kept)
    assert list(map(tuple, near_pairs(hashes, 3).tolist())) == slow_pairs(hashes, 3)


def test_differences_at_every_position_are_found() -> None:
    """All 1-, 2- and 3-bit neighbours of one hash, in whichever bands they fall."""
    rng = np.random.default_rng(0)
    centre = int(rng.integers(0, 2**64, dtype=np.uint64))
    flips = [
        sum(1 << bit for bit in bits)
        for n in (1, 2, 3)
        for bits in itertools.combinations(range(0, 64, 3), n)
    ]
    hashes = np.array([centre, *(centre ^ flip for flip in flips)], dtype=np.uint64)
    pairs = near_pairs(hashes, 3)
    assert (pairs[:, 0] == 0).sum() == len(flips)


@pytest.mark.parametrize("bits", [0, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_leaders_equal_the_definition(seed: int, bits: int) -> None:
    hashes = clustered(300, seed)
    assert leaders(hashes, bits).tolist() == slow_leaders(hashes, bits)


def test_chains_do_not_join() -> None:
    """Blank plots: each within 2 bits of the next, the ends 40 bits apart."""
    steps = [(1 << n) - 1 for n in range(0, 42, 2)]
    hashes = np.array(steps, dtype=np.uint64)
    result = leaders(hashes, 4)
    assert result.tolist() == [item - item % 3 for item in range(21)]
    far = np.bitwise_count(hashes ^ hashes[result])
    assert far.max() <= 4


def test_a_closer_look_can_refuse() -> None:
    """Equal hashes of unequal images: each distinct image leads its own group."""
    hashes = np.full(3000, 7, dtype=np.uint64)
    content = np.arange(3000) % 3
    looks = 0

    def same(item: int, candidates: Indices) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        nonlocal looks
        looks += len(candidates)
        return content[candidates] == content[item]

    assert leaders(hashes, 3, same).tolist() == [item % 3 for item in range(3000)]
    assert looks <= 3 * 3000  # compared with leaders only, never all with all


def test_leaders_take_many_equal_hashes() -> None:
    """A publisher's logo in 200,000 articles: no pair of each with each."""
    result = leaders(np.full(200_000, 5, dtype=np.uint64), 3)
    assert not result.any()


@pytest.mark.parametrize("bits", [0, 3, 8])
def test_nearest_in_equals_brute_force(bits: int) -> None:
    hashes = clustered(500, seed=bits)
    reference, items = hashes[:60], hashes[60:]
    found, match = nearest_in(reference, items, bits)
    expected = {}
    for index, value in enumerate(items.tolist()):
        far = [(value ^ other).bit_count() for other in reference.tolist()]
        if min(far) <= bits:
            expected[index] = far.index(min(far))
    assert dict(zip(found.tolist(), match.tolist(), strict=True)) == expected
    assert expected


def test_nothing_in_nothing_out() -> None:
    empty = np.array([], dtype=np.uint64)
    assert near_pairs(empty, 3).shape == (0, 2)
    assert leaders(empty, 3).tolist() == []
    assert nearest_in(empty, clustered(5, 0), 3)[0].tolist() == []


@pytest.mark.parametrize("bits", [-1, MAX_BITS + 1])
def test_impossible_distances_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits={bits}: set 0 to"):
        near_pairs(clustered(5, 0), bits)
