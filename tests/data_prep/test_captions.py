"""Caption cleaning."""

import pytest

from data_prep.captions import MAX_CHARACTERS, CaptionRejected, clean_caption


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  Two\n lines,\tone  caption. ", "Two lines, one caption."),
        ("CafÃ© of the MÃ¼ller cells", "Café of the Müller cells"),
        ("5 µm bar, p < 0.05 & n = 3", "5 µm bar, p < 0.05 & n = 3"),
        ("nul\x00 byte", "nul byte"),
    ],
)
def test_cleaning(raw: str, cleaned: str) -> None:
    assert clean_caption(raw, 5) == cleaned


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, "no caption"),
        (" \n ", "no caption"),
        ("Fig", "caption shorter than 5 characters"),
        ("x" * (MAX_CHARACTERS + 1), "caption longer than 50,000 characters"),
    ],
)
def test_rejected(raw: str | None, reason: str) -> None:
    with pytest.raises(CaptionRejected, match=f"^{reason}$"):
        clean_caption(raw, 5)
