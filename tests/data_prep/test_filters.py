"""Captions and images that are not worth training on."""

import json

import pytest

from data_prep.filters import (
    CaptionRules,
    PictureRules,
    caption_digest,
    caption_problem,
    foreign_language,
    picture_problem,
)
from tests.real_data import real_data
from vlp.hashing import FLAT

RULES = CaptionRules(min_characters=5, max_characters=1000, min_words=3, languages=("en",))
PICTURE = PictureRules(min_side=32, max_aspect=4, blank=False)

BOILERPLATE = [
    "Supplementary Figure S1. Graphical abstract.",
    "Supplementary Figure S1. Continued from above",
    "Graphical abstract for table of contents image",
    "Figure 2. See text for details and explanation.",
    "Figure legend on next page. (Continued.)",
    "Click here for additional data file.",
    "Additional file 3. Supplementary material.",
    "[Color figure can be viewed at wileyonlinelibrary.com]",
    "Fig. 3: For interpretation of the references to colour in this figure legend, the reader is "
    "referred to the web version of this article.",
    "Source data are available for this figure.",
]
GOOD = [
    "CT of the chest.",
    "Figure 1. Axial CT shows a nodule.",
    "Kaplan-Meier curves of both groups",
    "Table of adverse events, by arm",
    "A, B: Liver sections; C: spleen section",
    "Image quality of the phantom at three doses",
    "Figure 5 Continued decline of renal function after transplantation (see text for details).",
    "Available energy at baseline",
]


@pytest.mark.parametrize("caption", BOILERPLATE)
def test_boilerplate_goes(caption: str) -> None:
    assert caption_problem(caption, RULES) == "caption is boilerplate"


@pytest.mark.parametrize("caption", GOOD)
def test_captions_that_say_something_stay(caption: str) -> None:
    assert caption_problem(caption, RULES) == ""


@pytest.mark.parametrize(
    ("caption", "problem"),
    [
        ("CT", "caption shorter than 5 characters"),
        ("x " * 501, "caption longer than 1,000 characters"),
        ("Chest radiograph 12 3", "caption of fewer than 3 words"),
    ],
)
def test_lengths(caption: str, problem: str) -> None:
    assert caption_problem(caption, RULES) == problem


FRENCH = "Radiographie du thorax de face montrant une opacité du lobe inférieur droit chez un homme"
SPECIES = (
    "Bruchus affinis, Bruchus atomarius, Kytorhinus thermopsis, Spermophagus sericeus, "
    "Megabruchidius dorsalis"
)


def test_languages() -> None:
    assert caption_problem(FRENCH, RULES) == "caption in language fr"
    assert foreign_language(FRENCH, ("en", "fr")) == ""
    assert foreign_language(SPECIES, ("en",)) == ""
    assert foreign_language("Insuffisance rénale aiguë", ("en",)) == ""  # too short to tell


def real_texts(name: str, count: int) -> list[str]:
    """The first texts of a file of JSON lines."""
    lines = real_data(name).read_text("utf-8").split("\n")[:count]
    return [json.loads(line)["text"] for line in lines]


def test_languages_on_real_text() -> None:
    """At most 1 in 500 English passages is lost; 19 of 20 foreign ones are found."""
    english = [text[300:450] for text in real_texts("text_en/pubmedqa_abstracts.jsonl", 500)]
    assert sum(foreign_language(text, ("en",)) != "" for text in english) <= 1
    for name in ("es_spaccc_cases", "fr_pamj_cases", "it_ital_j_med"):
        texts = real_texts(f"text_multilingual/{name}.jsonl", 100)
        found = [foreign_language(text[100:300], ("en",)) for text in texts]
        assert sum(language != "" for language in found) >= 95


@pytest.mark.parametrize(
    ("width", "height", "phash", "problem"),
    [
        (31, 300, 1, "image side shorter than 32 pixels"),
        (401, 100, 1, "image more than 4 times as long as wide"),
        (100, 401, 1, "image more than 4 times as long as wide"),
        (400, 100, 1, ""),
        (64, 64, FLAT, "image blank"),
    ],
)
def test_pictures(width: int, height: int, phash: int, problem: str) -> None:
    assert picture_problem(width, height, phash, PICTURE) == problem


def test_digests_ignore_case_spacing_and_punctuation() -> None:
    assert caption_digest("CT, of the  Chest.") == caption_digest("ct of the chest")
    assert caption_digest("CT of the chest") != caption_digest("CT of the chests")
