"""Drawn figures with captions and truth: a corpus for demonstrations and tests, made anywhere."""

from data_prep.phantom.corpus import PhantomConfig, run

__all__ = ["PhantomConfig", "run"]
