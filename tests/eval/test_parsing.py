"""A golden set of tricky answers: what names no option is None, never some option."""

import pytest

from eval.parsing import exact, normalise, parse_choice, token_scores

YES_NO = ["yes", "no"]
ORGANS = ["liver", "left lung", "right lung", "none of the above"]


@pytest.mark.parametrize(
    ("answer", "option"),
    [
        ("yes", "yes"),
        ("No.", "no"),
        ("NO", "no"),
        ("**Yes**", "yes"),
        ("Yes, there is an effusion.", "yes"),
        ("No, it is not normal.", "no"),
        ("no there is not", "no"),
        ("The answer is: no", "no"),
        ("Answer: Yes.", "yes"),
        ("No\n\nThe heart is of normal size.", "no"),
        ("The lungs are clear. No.", "no"),
        # What follows names no option, whatever letters it contains.
        ("cannot tell", None),
        ("normal", None),
        ("abnormal", None),
        ("none", None),
        ("not seen", None),
        ("nothing", None),
        ("unknown", None),
        ("I don't know", None),
        ("no abnormality", None),  # to "is it normal?" that is a yes
        ("no evidence of pneumonia", None),
        ("yes and no", None),
        ("Yes. No.", None),
        ("yes or no", None),
        ("yesterday", None),
        ("eyes", None),
        ("A", None),  # no letters were offered
        ("B) no-one", None),
        ("", None),
        ("   ", None),
        ("The answer is not yes", None),
    ],
)
def test_yes_or_no(answer: str, option: str | None) -> None:
    place = parse_choice(answer, YES_NO, lettered=False)
    assert (None if place is None else YES_NO[place]) == option


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("B", 1),
        ("B.", 1),
        ("(B)", 1),
        ("B)", 1),
        ("B) left lung", 1),
        ("B: left lung", 1),
        ("**B)** left lung", 1),
        ("Answer: C", 2),
        ("The correct answer is (C).", 2),
        ("The best option is D. None of the above", 3),
        ("Option A", 0),
        ("Left lung", 1),
        ("left  lung.", 1),
        ("It lies in the chest: right lung", 2),
        ("E", None),  # only four were offered
        ("b", None),  # a lower-case letter may be anything
        ("A mass in the liver", None),  # an article
        ("B) liver", None),  # letter and text differ
        ("lung", None),
        ("left lung, right lung", None),
        ("the left lung is affected, the liver isn't", None),
        ("A, B", None),
        ("I think so", None),
    ],
)
def test_letters_and_texts(answer: str, place: int | None) -> None:
    assert parse_choice(answer, ORGANS) == place


def test_an_option_that_is_a_letter_comes_first() -> None:
    assert parse_choice("B", ["C", "B", "A"]) == 1
    assert parse_choice("A", ["C", "B", "A"]) == 2


def test_long_answers_are_cut() -> None:
    assert parse_choice("x" * 10_000_000 + ". yes", YES_NO) is None


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("X-ray (PA).", "x ray pa"),
        ("1.5 cm", "1.5 cm"),
        ("  Left\tlung ", "left lung"),
        ("T2-weighted MRI", "t2 weighted mri"),
        ("5%", "5%"),
    ],
)
def test_normalised(answer: str, normal: str) -> None:
    assert normalise(answer) == normal


def test_open_answers_by_hand() -> None:
    assert exact("Left lung.", "left  LUNG") == 1.0
    assert exact("the left lung", "left lung") == 0.0  # articles count
    f1, recall = token_scores("the left lower lung", "left lung")
    assert (f1, recall) == (pytest.approx(2 * 2 / 6), 1.0)
    # A repeated token is found as often as it was said.
    f1, recall = token_scores("lung", "lung lung")
    assert (f1, recall) == (pytest.approx(2 / 3), 0.5)
    f1, recall = token_scores("lung lung lung", "lung")
    assert (f1, recall) == (pytest.approx(0.5), 1.0)
    assert token_scores("", "lung") == (0.0, 0.0)
