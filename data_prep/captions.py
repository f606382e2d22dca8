"""Caption cleaning: mended encodings and single spaces, nothing that changes the meaning."""

import ftfy

MAX_CHARACTERS = 50_000
"""No caption of an article comes near it; whole articles in a caption column do."""


class CaptionRejected(Exception):
    """The caption cannot be used; the message is the reason that rejects.parquet records."""


def clean_caption(text: str | None, min_characters: int) -> str:
    """The caption on one line, mojibake mended by ftfy.

    Raises:
        CaptionRejected: there is no caption, or too little or too much of it.
    """
    # NUL and other control characters go with ftfy; the tokenizer would keep them as words.
    cleaned = " ".join(ftfy.fix_text(text or "").split())
    if not cleaned:
        raise CaptionRejected("no caption")
    if len(cleaned) < min_characters:
        raise CaptionRejected(f"caption shorter than {min_characters} characters")
    if len(cleaned) > MAX_CHARACTERS:
        raise CaptionRejected(f"caption longer than {MAX_CHARACTERS:,} characters")
    return cleaned
