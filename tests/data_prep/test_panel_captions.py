"""Captions cut by panel labels: what is cut, what stays whole."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.panel_captions import expand_labels, split_caption


def parts(caption: str) -> tuple[str, dict[str, str]] | None:
    found = split_caption(caption)
    return None if found is None else (found.lead, {p.label: p.own for p in found.panels})


SPLIT = {
    "brackets": (
        "(A) Liver of a mouse. (B) Kidney of a mouse.",
        ("", {"A": "Liver of a mouse.", "B": "Kidney of a mouse."}),
    ),
    "shared lead": (
        "Organs of mice. (a) Liver. (b) Kidney. (c) Spleen.",
        ("Organs of mice.", {"a": "Liver.", "b": "Kidney.", "c": "Spleen."}),
    ),
    "title without a full stop": (
        "Effect of X on Y (A) Western blot. (B) Quantification.",
        ("Effect of X on Y", {"A": "Western blot.", "B": "Quantification."}),
    ),
    "square brackets": (
        "Organs. [A] Liver. [B] Kidney.",
        ("Organs.", {"A": "Liver.", "B": "Kidney."}),
    ),
    "half brackets": (
        "Livers: A) control; B) treated mice.",
        ("Livers:", {"A": "control", "B": "treated mice."}),
    ),
    "full stops": ("A. Liver. B. Kidney.", ("", {"A": "Liver.", "B": "Kidney."})),
    "colons": ("A: liver. B: kidney.", ("", {"A": "liver.", "B": "kidney."})),
    "commas": (
        "Title here. a, Liver. b, Kidney.",
        ("Title here.", {"a": "Liver.", "b": "Kidney."}),
    ),
    "nothing but a space": (
        "Title here. a Liver. b Kidney of a mouse.",
        ("Title here.", {"a": "Liver.", "b": "Kidney of a mouse."}),
    ),
    "the word panel": (
        "Organs. Panel A: liver. Panels B and C: kidneys.",
        ("Organs.", {"A": "liver.", "B": "kidneys.", "C": "kidneys."}),
    ),
    "list within a sentence": (
        "(a) Axial CT, (b) coronal CT, and (c) MRI of the head.",
        ("", {"a": "Axial CT", "b": "coronal CT", "c": "MRI of the head."}),
    ),
    "ranges and lists": (
        "(A–C) Livers. (D, F) Kidneys. (E) Spleen.",
        None,  # D is followed by F: not certain what E is
    ),
    "ranges in order": (
        "(A–C) Livers. (D, E) Kidneys. (F and G) Spleens.",
        (
            "",
            dict.fromkeys("ABC", "Livers.")
            | dict.fromkeys("DE", "Kidneys.")
            | dict.fromkeys("FG", "Spleens."),
        ),
    ),
    "letters inside their own part": (
        "(A, B) Images (A) and counts (B, n = 3) of cells. (C) Blot.",
        (
            "",
            {
                "A": "Images (A) and counts (B, n = 3) of cells.",
                "B": "Images (A) and counts (B, n = 3) of cells.",
                "C": "Blot.",
            },
        ),
    ),
    "a new label inside a sentence shares it": (
        "(A) Cells at day 4 and (B) for day 7. (C) Blot.",
        (
            "",
            {
                "A": "Cells at day 4 and (B) for day 7.",
                "B": "Cells at day 4 and (B) for day 7.",
                "C": "Blot.",
            },
        ),
    ),
    "named again": (
        "(A) Liver. (B) Kidney. (A) Bar is 5 µm. (B) Bar is 9 µm.",
        ("", {"A": "Liver. Bar is 5 µm.", "B": "Kidney. Bar is 9 µm."}),
    ),
    "references are no labels": (
        "(A) Protocol. (B) Cells treated as in (A). (C) Same as (A) and (B) in mice.",
        (
            "",
            {
                "A": "Protocol.",
                "B": "Cells treated as in (A).",
                "C": "Same as (A) and (B) in mice.",
            },
        ),
    ),
    "remarks on all panels at the end": (
        "(A) Liver. (B) Kidney. Scale bars, 5 µm. Source data are online.",
        ("", {"A": "Liver.", "B": "Kidney."}),
    ),
    "remarks on others at the end": (
        "(A) Liver. (B) Kidney. Means of three mice in (A) and two in (B).",
        ("", {"A": "Liver.", "B": "Kidney."}),
    ),
    "full stop forgotten": (
        "(A) Liver, n = 5 mice (B) Kidney.",
        ("", {"A": "Liver, n = 5 mice", "B": "Kidney."}),
    ),
}
WHOLE = {
    "no labels": "Liver of a mouse. Arrows: vessels.",
    "trailing labels": "Barium enema (A) and endoscopy (B).",
    "trailing labels after sentences": "Liver. (A). Kidney. (B).",
    "labels within a sentence": "Images of (A) control and (B) treated mice.",
    "one label": "(A) Liver of a mouse.",
    "one part for all": "(A, B) Liver (A) and kidney (B).",
    "a gap": "(A) Liver. (C) Kidney.",
    "out of order": "(A) Liver. (B) Kidney. (D) Spleen. (C) Lung.",
    "not from the beginning": "(B) Liver. (C) Kidney.",
    "a label without words": "(A) (B) Kidney of a mouse.",
    "sub-panels": "(Ai–ii) Liver. (B) Kidney. (C) Lung.",
    "a range that runs backwards": "(C–A) Livers. (D) Kidney.",
    "an article": "A liver. B cells are shown.",
    "a lead that knows more panels": "Overview of (A–D). (A) Liver. (B) Kidney.",
    "initials": "Drawn after A. Smith and B. Jones.",
    "roman numbers": "(i) Liver. (ii) Kidney.",
    "empty": "",
}


@pytest.mark.parametrize("name", SPLIT)
def test_captions_that_are_split(name: str) -> None:
    caption, expected = SPLIT[name]
    assert parts(caption) == expected


@pytest.mark.parametrize("name", WHOLE)
def test_captions_that_stay_whole(name: str) -> None:
    assert split_caption(WHOLE[name]) is None


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("A", "A"),
        ("a, b", "AB"),
        ("A–C", "ABC"),
        ("A to C", "ABC"),
        ("A-C, E and G", "ABCEG"),
        ("Panels B & C", "BC"),
        ("A/B", "AB"),
        ("C-A", ""),
        ("A, A", ""),
    ],
)
def test_expand_labels(text: str, letters: str) -> None:
    assert expand_labels(text) == letters


SENTENCES = st.lists(
    st.sampled_from(
        [
            "Liver of a mouse",
            "CT of the chest",
            "Cells after 3 days",
            "Western blot",
            "Survival, n = 9",
        ]
    ),
    min_size=1,
    max_size=3,
).map(lambda found: ". ".join(found) + ".")


@settings(max_examples=200)
@given(
    lead=st.sampled_from(["", "Organs of mice.", "Effects in two groups:"]),
    owns=st.lists(SENTENCES, min_size=2, max_size=12),
    style=st.sampled_from(["({})", "[{}]", "{})", "{}.", "{},", "{}:"]),
    lower=st.booleans(),
)
def test_what_was_joined_is_split_again(
    lead: str, owns: list[str], style: str, lower: bool
) -> None:
    letters = string.ascii_lowercase if lower else string.ascii_uppercase
    labelled = [f"{style.format(c)} {own}" for c, own in zip(letters, owns, strict=False)]
    caption = " ".join(filter(None, [lead, *labelled]))
    assert parts(caption) == (lead, dict(zip(letters, owns, strict=False)))


@settings(max_examples=500)
@given(st.text("ABCDabcd()[].,:;-– and1é", max_size=80))
def test_no_text_breaks_it(caption: str) -> None:
    found = split_caption(caption)
    if found is not None:
        labels = "".join(panel.label for panel in found.panels)
        assert len(labels) >= 2
        assert labels in string.ascii_uppercase or labels in string.ascii_lowercase
        assert labels[0] in "Aa"
        assert all(panel.own and panel.own == panel.own.strip() for panel in found.panels)
        assert found.lead in caption
