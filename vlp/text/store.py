"""A corpus read, cleaned and split once: documents as lines of JSON, to be read in any order.

Vocabularies and token caches are made from here. A folder is named after everything that decided
its content and appears when it is finished, so an interrupted run goes on with the corpora that are
still to do.
"""

import hashlib
import json
import os
import shutil
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp.config import UserError, write_text
from vlp.text.cleaning import CleaningConfig, clean_document, with_enough_words
from vlp.text.corpora import CorpusConfig, corpus_files, read_documents
from vlp.text.documents import (
    SPLITS,
    UNUSED,
    Document,
    Section,
    SplitConfig,
    Tally,
    split_of,
    with_share,
)
from vlp.text.duplicates import Duplicates

VERSION = 1
"""Another number makes every corpus anew: for changes of what cleaning does."""

Report = Callable[[str], None]

_CODES = (*SPLITS, UNUSED)
"""Splits by the number that index.npz has for them."""


@dataclass(frozen=True)
class TextStore:
    """The documents of one corpus."""

    folder: Path
    meta: dict[str, Any]
    """`documents`, `bytes`, `characters`, `words` by split; `dropped`, `bad` by reason."""
    _offsets: NDArray[np.int64]
    _splits: NDArray[np.uint8]

    @classmethod
    def open(cls, folder: Path) -> "TextStore":
        """A finished folder."""
        meta = json.loads((folder / "meta.json").read_text())
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            return cls(folder, meta, index["offsets"], index["splits"])

    @property
    def key(self) -> str:
        """Changes with anything that changes a document."""
        return str(self.meta["key"])

    def bytes(self, split: str = "train") -> int:
        """UTF-8 bytes of text."""
        return int(self.meta["bytes"].get(split, 0))

    def numbers(self, split: str) -> NDArray[np.int64]:
        """The numbers of the split's documents, ascending."""
        return np.flatnonzero(self._splits == _CODES.index(split))

    def documents(self, numbers: Sequence[int] | NDArray[np.int64]) -> Iterator[Document]:
        """The documents of these numbers, in this order."""
        with (self.folder / "text.jsonl").open("rb") as stream:
            for number in np.asarray(numbers, dtype=np.int64).tolist():
                stream.seek(self._offsets[number])
                yield _from_json(stream.readline())


def prepare(
    corpus: CorpusConfig,
    cleaning: CleaningConfig,
    split: SplitConfig,
    cache: Path,
    report: Report = lambda line: None,
    share: float = 1.0,
) -> TextStore:
    """The cleaned corpus from the cache, or made now.

    Args:
        corpus: where it lies.
        cleaning: the passes.
        split: what is held out.
        cache: folder for all corpora.
        report: gets a line on what was read and dropped.
        share: of the training documents that are used; the others are in no split. Cleaning sees
            all of them, so what is held out does not depend on it.

    Raises:
        UserError: the corpus can't be read, or nothing of it is left.
    """
    cache.mkdir(parents=True, exist_ok=True)
    contents = _contents(corpus, cache)
    settings = {"corpus": asdict(corpus), "cleaning": asdict(cleaning), "split": asdict(split)}
    del settings["corpus"]["path"]  # the files' names and bytes count, not where they lie
    del settings["corpus"]["max_bad"]
    key = digest_of(VERSION, settings, contents, share)
    folder = cache / f"text-{key[:16]}"
    if not (folder / "meta.json").is_file():
        start = time.monotonic()
        with finished_folder(folder) as unfinished:
            meta = _build(corpus, cleaning, split, share, unfinished)
            write_text(
                unfinished / "meta.json",
                json.dumps({"key": key, **settings, "path": corpus.path, **meta}, indent=2),
            )
        took = time.monotonic() - start
        report(f"{corpus.path}: {describe(meta)} ({took:.0f} s)")
    return TextStore.open(folder)


def describe(meta: dict[str, Any]) -> str:
    """What a corpus holds and what was dropped, on one line."""
    kept = ", ".join(f"{count} {split}" for split, count in meta["documents"].items())
    lost = {**meta["bad"], **meta["dropped"]}
    reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(lost.items()))
    size = sum(meta["bytes"].values()) / 1e6
    return f"documents: {kept}; {size:.1f} MB; dropped: {reasons or 'nothing'}"


def _build(
    corpus: CorpusConfig,
    cleaning: CleaningConfig,
    split: SplitConfig,
    share: float,
    folder: Path,
) -> dict[str, Any]:
    tally, dropped = Tally(corpus.max_bad), Counter[str]()
    spool = folder / "spool.jsonl"
    finder = None
    if cleaning.duplicates != "none":
        finder = Duplicates(folder, near=cleaning.duplicates == "near")
    paragraphs = array("q")  # of each document
    offsets = array("q", [0])
    with spool.open("wb") as stream:
        for document in read_documents(corpus, tally):
            cleaned = clean_document(document, cleaning, dropped)
            if cleaned is None:
                continue
            part = with_share(split_of(cleaned, split), cleaned, share, split.seed)
            document = cleaned._replace(split=part)
            offsets.append(offsets[-1] + stream.write(_to_json(document)))
            lines = list(_paragraphs(document))
            paragraphs.append(len(lines))
            if finder:
                for line in lines:
                    finder.add(line)
    starts = np.concatenate([[0], np.cumsum(paragraphs)]).astype(np.int64)
    keep = np.ones(starts[-1], dtype=bool)
    if finder:
        keep = _without_copies(finder, cleaning, spool, (np.array(offsets), starts), dropped)
        finder.close()
    meta = _write(spool, keep, cleaning, dropped, folder)
    spool.unlink()
    if not sum(meta["documents"].values()):
        raise UserError(
            f"{corpus.path}: no text is left after cleaning "
            f"({', '.join(f'{n} x {reason}' for reason, n in dropped.items()) or 'it is empty'}); "
            "switch off the pass that dropped it"
        )
    return {**meta, "bad": dict(tally.counts), "dropped": dict(dropped)}


def _without_copies(
    finder: Duplicates,
    cleaning: CleaningConfig,
    spool: Path,
    places: tuple[NDArray[np.int64], NDArray[np.int64]],
    dropped: Counter[str],
) -> NDArray[np.bool_]:
    """bool [P]: the paragraphs to keep. `places`: where documents begin: bytes, paragraphs."""
    offsets, starts = places
    with spool.open("rb") as stream:

        def text_of(paragraph: int) -> str:
            number = int(np.searchsorted(starts, paragraph, side="right")) - 1
            stream.seek(offsets[number])
            document = _from_json(stream.readline())
            return list(_paragraphs(document))[paragraph - int(starts[number])]

        exact, near = finder.copies(cleaning.similarity, text_of)
    dropped.update({"duplicate paragraph": int(exact.sum())} if exact.any() else {})
    dropped.update({"near-duplicate paragraph": int(near.sum())} if near.any() else {})
    return ~(exact | near)


def _write(
    spool: Path,
    keep: NDArray[np.bool_],
    cleaning: CleaningConfig,
    dropped: Counter[str],
    folder: Path,
) -> dict[str, Any]:
    """Write text.jsonl and index.npz of the paragraphs to keep; returns the counts by split."""
    counts = {name: Counter[str]() for name in ("documents", "bytes", "characters", "words")}
    offsets, splits, groups, paragraph = array("q", [0]), array("B"), array("Q"), 0
    with spool.open("rb") as source, (folder / "text.jsonl").open("wb") as target:
        for line in source:
            document = _from_json(line)
            sections = []
            for name, text in document.sections:
                lines = text.split("\n")
                marks = keep[paragraph : paragraph + len(lines)]
                paragraph += len(lines)
                if kept := [text for text, mark in zip(lines, marks, strict=True) if mark]:
                    sections.append(Section(name, "\n".join(kept)))
            rest = with_enough_words(document._replace(sections=tuple(sections)), cleaning, dropped)
            if rest is None:
                continue
            offsets.append(offsets[-1] + target.write(_to_json(rest)))
            splits.append(_CODES.index(rest.split))
            group = hashlib.sha256((rest.group or rest.id).encode()).digest()
            groups.append(int.from_bytes(group[:8], "big"))
            counts["documents"][rest.split] += 1
            for _, text in rest.sections:
                counts["bytes"][rest.split] += len(text.encode())
                counts["characters"][rest.split] += len(text)
                counts["words"][rest.split] += len(text.split())
    made = TextStore(
        folder, {}, np.array(offsets, dtype=np.int64), np.array(splits, dtype=np.uint8)
    )
    _check_groups(np.array(groups, dtype=np.uint64), made)
    np.savez(folder / "index.npz", offsets=made._offsets, splits=made._splits)
    return {name: dict(by_split) for name, by_split in counts.items()}


def _check_groups(groups: NDArray[np.uint64], store: TextStore) -> None:
    """Raises UserError if a document, or documents of one group, are in two splits.

    `groups`: digest of each document's group.
    """
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = np.intersect1d(groups[store.numbers(one)], groups[store.numbers(other)])
        if len(both):
            (first,) = store.documents([int(np.argmax(groups == both[0]))])
            raise UserError(
                f"document {first.id}: it, or others of its group, are in '{one}' and '{other}' "
                f"({len(both)} such groups); mend the split field or leave split_field empty"
            )


def _paragraphs(document: Document) -> Iterator[str]:
    for section in document.sections:
        yield from section.text.split("\n")


def _to_json(document: Document) -> bytes:
    record = {"id": document.id, "split": document.split, "group": document.group}
    sections = [[section.name, section.text] for section in document.sections]
    return json.dumps({**record, "sections": sections}, ensure_ascii=False).encode() + b"\n"


def _from_json(line: bytes) -> Document:
    record = json.loads(line)
    sections = tuple(Section(name, text) for name, text in record["sections"])
    return Document(record["id"], sections, record["split"], record["group"])


@contextmanager
def finished_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that gets its name when the block ends without an exception.

    If two processes make the same folder, the first one's stays: they are equal.
    """
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        try:
            unfinished.rename(folder)
        except OSError:
            if not (folder / "meta.json").is_file():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def digest_of(*parts: Any) -> str:
    """SHA-256 over the JSON form of `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _contents(corpus: CorpusConfig, cache: Path) -> list[tuple[str, str]]:
    """(name, SHA-256) of the corpus' files; shards, which may be remote, go by their manifest."""
    if corpus.kind != "shards":
        return file_digests(corpus_files(corpus), cache)
    from vlp.data.index import open_storage, splits

    splits(corpus.path)  # says what is wrong with the manifest
    manifest = open_storage(corpus.path).whole("manifest.json")
    return [("manifest.json", hashlib.sha256(manifest).hexdigest())]


def file_digests(files: Sequence[Path], cache: Path) -> list[tuple[str, str]]:
    """(name, SHA-256) of each file; those read before are known by size and time of change.

    Raises:
        UserError: a file can't be read.
    """
    memory = cache / "digests.json"
    known: dict[str, str] = json.loads(memory.read_text()) if memory.is_file() else {}
    found = []
    for file in files:
        try:
            stat = file.stat()
            where = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
            if where not in known:
                with file.open("rb") as stream:
                    known[where] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{file}: can't be read: {error.strerror}") from None
        found.append((file.name, known[where]))
    write_text(memory, json.dumps(known))
    return found
