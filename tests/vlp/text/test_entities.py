"""Entity scoring against hand-made cases, scikit-learn, and a scorer of CoNLL where it is there."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from vlp.text.entities import (
    Entity,
    count_classes,
    count_entities,
    entities,
    f1,
    is_tag,
    macro_f1,
    micro_f1,
    score,
)

TAGS = ("O", "B-A", "I-A", "B-B", "I-B")


@pytest.mark.parametrize(
    ("tags", "want"),
    [
        ("", []),
        ("O O", []),
        ("B-A", [("A", 0, 0)]),
        ("O B-A I-A I-A O", [("A", 1, 3)]),
        ("B-A B-A", [("A", 0, 0), ("A", 1, 1)]),
        ("B-A I-A B-A", [("A", 0, 1), ("A", 2, 2)]),
        ("B-A I-B", [("A", 0, 0), ("B", 1, 1)]),  # continues nothing of its kind: begins
        ("O I-A I-A O I-A", [("A", 1, 2), ("A", 4, 4)]),
        ("I-A B-A I-A", [("A", 0, 0), ("A", 1, 2)]),
        ("B-x-1 I-x-1", [("x-1", 0, 1)]),
    ],
)
def test_entities(tags: str, want: list[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == {Entity(*one) for one in want}


def test_repeated_words_count_each_at_its_place() -> None:
    """`the cancer of the cancer`: keyed by word, the second would hide that the first is missed."""
    true = ["O", "B-D", "O", "O", "B-D"]
    counts = count_entities(
        [true, true], [["O", "O", "O", "O", "B-D"], ["O", "B-D", "O", "O", "B-D"]], ["D"]
    )
    assert counts.tolist() == [[[1, 1, 2]], [[2, 2, 2]]]
    assert micro_f1(counts.sum(0)) == pytest.approx(2 * 3 / (3 + 4))


@pytest.mark.parametrize(
    ("predicted", "counts"),
    [
        ("O B-A I-A O", (1, 1, 1)),
        ("O B-A O O", (0, 1, 1)),  # too short
        ("O B-A I-A I-A", (0, 1, 1)),  # too long
        ("O I-A I-A O", (1, 1, 1)),
        ("O B-A B-A O", (0, 2, 1)),
        ("O O O O", (0, 0, 1)),
    ],
)
def test_only_exact_spans_are_right(predicted: str, counts: tuple[int, int, int]) -> None:
    got = count_entities([["O", "B-A", "I-A", "O"]], [predicted.split()], ["A"])
    assert tuple(got[0, 0]) == counts


def test_another_kind_is_wrong_for_both() -> None:
    counts = count_entities([["B-A", "O"]], [["B-B", "O"]], ["A", "B"])
    assert counts[0].tolist() == [[0, 0, 1], [0, 1, 0]]
    assert micro_f1(counts.sum(0)) == macro_f1(counts.sum(0)) == 0


def test_another_number_of_tags_is_refused() -> None:
    with pytest.raises(ValueError, match="1 predicted tags for 2 words"):
        count_entities([["O", "O"]], [["O"]], ["A"])


def random_tags(sentences: int, seed: int) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    return [rng.choice(TAGS, rng.integers(1, 12)).tolist() for _ in range(sentences)]


def test_f1_equals_seqeval() -> None:
    """To rounding: both are ratios of the same integers."""
    metrics = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    true = random_tags(300, 0)
    rng = np.random.default_rng(1)
    guessed = [
        [tag if rng.random() < 0.7 else str(rng.choice(TAGS)) for tag in tags] for tags in true
    ]
    counts = count_entities(true, guessed, ["A", "B"]).sum(0)
    assert micro_f1(counts) == pytest.approx(metrics.f1_score(true, guessed), abs=1e-12)
    assert macro_f1(counts) == pytest.approx(
        metrics.f1_score(true, guessed, average="macro"), abs=1e-12
    )


def test_classes_equal_scikit_learn() -> None:
    """To rounding. Class d is never true, e neither true nor predicted."""
    rng = np.random.default_rng(0)
    true, guessed = rng.choice(list("abc"), 200).tolist(), rng.choice(list("abcd"), 200).tolist()
    counts = count_classes(true, guessed, list("abcde")).sum(0)
    assert micro_f1(counts) == pytest.approx(accuracy_score(true, guessed), abs=1e-12)
    assert macro_f1(counts) == pytest.approx(f1_score(true, guessed, average="macro"), abs=1e-12)


def test_interval_is_that_of_resampled_sentences() -> None:
    """Exactly the score of sentences written out as often as they are drawn."""
    rng = np.random.default_rng(2)
    true = random_tags(40, 3)
    runs = [
        [[tag if rng.random() < 0.8 else "O" for tag in tags] for tags in true] for _ in range(2)
    ]
    counts = np.stack([count_entities(true, run, ["A", "B"]) for run in runs])
    found = score(counts, micro_f1, resamples=50, seed=7)

    times = np.random.default_rng(7).multinomial(40, np.full(40, 1 / 40), size=50)
    slow = []
    for drawn in times:
        again = np.repeat(np.arange(40), drawn)
        wanted = [true[n] for n in again]
        slow.append(
            np.mean(
                [
                    micro_f1(count_entities(wanted, [run[n] for n in again], ["A", "B"]).sum(0))
                    for run in runs
                ]
            )
        )
    low, high = np.quantile(slow, [0.025, 0.975])
    assert found.seeds == tuple(micro_f1(counts.sum(1)).tolist())
    assert found.value == pytest.approx(np.mean(found.seeds))
    assert found.low == pytest.approx(2 * found.value - high, abs=1e-12)
    assert found.high == pytest.approx(2 * found.value - low, abs=1e-12)
    assert found.low < found.value < found.high


def test_interval_of_a_share_has_the_known_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy 0.8 of 400: a binomial's 1.96 standard errors, within a tenth; in several chunks."""
    monkeypatch.setattr("vlp.text.entities._CHUNK", 400 * 100)
    true = ["a"] * 400
    guessed = ["a"] * 320 + ["b"] * 80
    counts = count_classes(true, guessed, ["a", "b"])[None]
    found = score(counts, micro_f1, resamples=4000)
    error = 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert found.high - found.value == pytest.approx(error, rel=0.1)
    assert found.value - found.low == pytest.approx(error, rel=0.1)
    assert score(counts, micro_f1, resamples=4000) == found


def test_nothing_to_find_scores_nothing() -> None:
    assert f1(np.zeros((2, 3), dtype=np.int64)).tolist() == [0, 0]
    assert macro_f1(np.zeros((2, 3), dtype=np.int64)) == 0


@pytest.mark.parametrize(
    ("tag", "valid"), [("O", True), ("B-X", True), ("I-X", True), ("B-", False), ("X", False)]
)
def test_is_tag(tag: str, valid: bool) -> None:
    assert is_tag(tag) == valid
