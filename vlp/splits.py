"""Splits by hash: what a group falls into never changes when others are added."""

import hashlib


def hash_fraction(seed: int, name: str) -> float:
    """A number in [0, 1) that depends on nothing but `seed` and `name`."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
