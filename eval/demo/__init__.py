"""A local page to try a model on one image: `python -m eval demo model=... shards=...`."""
