"""Fixtures that several tests of data_prep share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data_prep.bucket_server import Bucket, serve, with_media, write_inventory
from tests.data_prep.factories import write_pmc


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    """A bucket of 12 articles with two figures each, and its inventory."""
    root = with_media(write_pmc(tmp_path / "bucket", 12, 2))
    write_inventory(root)
    with serve(root, page=7) as server:
        yield server
