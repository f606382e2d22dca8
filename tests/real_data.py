"""Real images, captions and articles that some tests use; they are not in the repository."""

import os
from pathlib import Path

import pytest

FOLDER = Path(
    os.environ.get("BIOVLP_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


def real_data(name: str) -> Path:
    """The path of a file or folder of the real data; skips the test where it is missing."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"real data '{name}' is not at hand: set BIOVLP_REAL_DATA to its folder")
    return path
