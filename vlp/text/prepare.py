"""Everything that a run reads, made once: cleaned corpora, vocabulary, token ids.

All of it lies in the cache, under names that say what it was made from. Rank 0 makes what is
missing, which may take hours; then the others find it there.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vlp.config import UserError, write_text
from vlp.data.text import CaptionTokenizer
from vlp.distributed import World
from vlp.models.hub import fetch_bert
from vlp.models.vocabulary import needs_writing, vocabulary_of, write_tokenizer
from vlp.text.cache import TokenStore, tokenize
from vlp.text.masking import Words
from vlp.text.mixture import MixedTexts
from vlp.text.settings import TextRunConfig
from vlp.text.store import (
    Report,
    TextStore,
    digest_of,
    file_digests,
    finished_folder,
    prepare,
)
from vlp.text.vocabulary import train_vocabulary

T = TypeVar("T")

VERSION = 1
"""Another number trains every vocabulary anew."""


class RunData(NamedTuple):
    """What a run reads, by names of corpora.

    Attributes:
        stores: cleaned text of all corpora.
        tokenizer: cuts to `model.length`.
        train: training splits as ids, of all corpora.
        held_out: validation splits as ids, of the corpora that have one.
        trained: the corpora that a stage of the mixture names.
    """

    stores: dict[str, TextStore]
    tokenizer: CaptionTokenizer
    train: dict[str, TokenStore]
    held_out: dict[str, TokenStore]
    trained: list[str]


def open_run(config: TextRunConfig, world: World, report: Report) -> RunData:
    """What the run reads, from the cache or made now; all ranks call it.

    Raises:
        UserError: a corpus or the base's vocabulary can't be read.
    """
    return main_first(world, f"text of {config.name}", lambda: _open(config, report))


def main_first(world: World, name: str, make: Callable[[], T]) -> T:
    """Call `make` on rank 0, then on the others, which wait for it however long it takes.

    `name` is of this call alone: what another run of the same processes has made says nothing.

    Raises:
        UserError: as `make`; or, on the others, rank 0 could not make it.
    """
    if world.is_main:
        outcome = _FAILED
        try:
            made = make()
            outcome = "made"
        finally:
            world.store.set(name, outcome)
        return made
    world.store.wait([name], timedelta(days=30))
    if world.store.get(name).decode() == _FAILED:
        raise UserError(f"rank 0 could not make the {name}: its own output says why")
    return make()


_FAILED = "failed"


def _open(config: TextRunConfig, report: Report) -> RunData:
    cache, trained = Path(config.cache), trained_corpora(config)
    cache.mkdir(parents=True, exist_ok=True)
    stores = {
        name: prepare(source, source.cleaning, config.split, cache, report, source.share)
        for name, source in config.corpora.items()
    }
    if config.vocabulary == "inherited":
        folder = inherited_vocabulary(config.base, cache)
    else:
        folder = own_vocabulary(config, {name: stores[name] for name in trained}, cache, report)
    tokenizer = CaptionTokenizer(folder, config.model.length)
    Words(tokenizer.tokenizer)  # refuses tokenizers that are not BERT's kind
    return RunData(
        stores,
        tokenizer,
        {name: tokenize(store, "train", folder, cache, report) for name, store in stores.items()},
        {
            name: tokenize(store, "val", folder, cache, report)
            for name, store in stores.items()
            if len(store.numbers("val"))
        },
        trained,
    )


def trained_corpora(config: TextRunConfig) -> list[str]:
    """The corpora that a stage of the mixture names; a stage that names none takes all.

    Raises:
        UserError: a stage names what is no corpus.
    """
    stages = config.mixture.stages
    named = {name for stage in stages for name in stage.weights or config.corpora}
    if unknown := sorted(named - set(config.corpora)):
        raise UserError(
            f"mixture: weights.{unknown[0]}: no such corpus; there are {', '.join(config.corpora)}"
        )
    return [name for name in config.corpora if name in named]


def own_vocabulary(
    config: TextRunConfig, stores: Mapping[str, TextStore], cache: Path, report: Report
) -> Path:
    """Folder of a vocabulary of the mixture of `stores`, trained now if no run had the same."""
    meta = {
        "corpora": {name: store.key for name, store in stores.items()},
        "weights": [config.mixture.stages[n].weights for n in config.mixture.distinct()],
        "seed": config.mixture.seed,
        "vocabulary": asdict(config.own_vocabulary),
    }

    def write(folder: Path) -> None:
        report(f"training a vocabulary of {config.own_vocabulary.size:,} pieces")
        train_vocabulary(MixedTexts(stores, config.mixture), config.own_vocabulary, folder)

    return _vocabulary(cache, meta, write)


def inherited_vocabulary(base: str, cache: Path) -> Path:
    """Folder with the tokenizer.json of a BERT; one that has a vocab.txt alone gets one in `cache`.

    Raises:
        UserError: no such model, or no vocabulary in it.
    """
    source = vocabulary_of(fetch_bert(base, "base"))
    if not source:
        raise UserError(f"base={base}: has neither tokenizer.json nor vocab.txt")
    if not needs_writing(source):
        return Path(source)
    files = (Path(source), Path(source).with_name("tokenizer_config.json"))
    meta = {"files": file_digests([file for file in files if file.is_file()], cache)}
    return _vocabulary(cache, meta, lambda folder: write_tokenizer(source, folder))


def _vocabulary(cache: Path, meta: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """The folder of what `meta` describes, written now if it isn't there."""
    folder = cache / f"vocabulary-{digest_of(VERSION, meta)[:16]}"
    if not (folder / "meta.json").is_file():
        with finished_folder(folder) as unfinished:
            write(unfinished)
            write_text(unfinished / "meta.json", json.dumps(meta, indent=2))
    return folder
