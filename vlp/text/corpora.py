"""Corpora of many formats as one stream of documents, file after file in the order of their names.

A file that is missing or of another format is an error that names it. One bad document among many,
such as a broken line, is counted by its reason (documents.Tally).
"""

import glob
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from vlp.config import UserError
from vlp.text.documents import Document, Section, Tally

# pyarrow and lxml are imported by the functions that need them.

Kind = Literal["text", "jsonl", "parquet", "pubmed", "jats", "shards"]

SUFFIXES: dict[str, tuple[str, ...]] = {
    "text": (".txt", ".txt.gz"),
    "jsonl": (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"),
    "parquet": (".parquet",),
    "pubmed": (".xml", ".xml.gz"),
    "jats": (".xml", ".nxml", ".xml.gz", ".nxml.gz"),
}
"""Files of a folder that belong to a corpus of each kind."""

MAX_DOCUMENT = 64 * 2**20
"""Bytes of a line, of a text and of a JATS file; longer ones are no documents."""

_SURROGATE = re.compile("[\ud800-\udfff]")

ROWS = 512
"""Rows of a Parquet file, or samples of shards, that are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Where a corpus lies and what of it is text."""

    path: str
    """File, folder (all files of this kind in and below it), pattern with `*`, or shard folder."""
    kind: Kind = "jsonl"
    """`text`, `jsonl`, `parquet`, `pubmed` (baseline XML), `jats` (full text), `shards` (captions
    and the paragraphs that mention the figure)."""
    split_at: Literal["file", "blank_line"] = "file"
    """Kind `text`: a document is a whole file, or each block between blank lines."""
    fields: tuple[str, ...] = ("text",)
    """Kinds `jsonl` and `parquet`: fields that hold text (or a list of paragraphs), in this order;
    each becomes a section of its name."""
    id_field: str = "id"
    """Kinds `jsonl` and `parquet`: field that identifies a document; empty: file name and line."""
    group_until: str = ""
    """Documents whose ids agree up to this mark, such as `#`, stay in the same split."""
    split_field: str = ""
    """Kinds `jsonl` and `parquet`: field that says train, val or test; empty: split by hash."""
    max_bad: float = 0.01
    """Share of documents that can't be read above which reading stops."""

    def __post_init__(self) -> None:
        if not self.fields or len(set(self.fields)) < len(self.fields):
            raise ValueError("fields: name at least one field that holds text, each once")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"max_bad is a share from 0 to 1, got {self.max_bad}")


def read_documents(config: CorpusConfig, tally: Tally | None = None) -> Iterator[Document]:
    """Every document of a corpus that has text, in a fixed order.

    Args:
        config: the corpus.
        tally: counts what could not be read.

    Raises:
        UserError: no such file, not of this kind, or too many bad documents.
    """
    tally = tally or Tally(config.max_bad)
    if config.kind == "shards":
        documents = _read_shards(config, tally)
    else:
        read = _READERS[config.kind]
        documents = (d for file in corpus_files(config) for d in read(file, config, tally))
    for document in documents:
        sections = tuple(section for section in document.sections if section.text.strip())
        if not sections:
            tally.bad(document.id, "no text")
            continue
        tally.good += 1
        group = document.group
        if config.group_until:
            group = (group or document.id).split(config.group_until)[0]
        yield document._replace(sections=sections, group=group)
    tally.finish()


def corpus_files(config: CorpusConfig) -> list[Path]:
    """The files of a corpus that is not shards, sorted by path.

    Raises:
        UserError: there are none.
    """
    path = Path(config.path)
    if path.is_file():
        return [path]
    suffixes = SUFFIXES[config.kind]
    if path.is_dir():
        below = (Path(root, name) for root, _, names in os.walk(path) for name in names)
        found = sorted(file for file in below if file.name.lower().endswith(suffixes))
    else:
        found = sorted(Path(name) for name in glob.glob(config.path, recursive=True))
        found = [file for file in found if file.is_file()]
    if not found:
        raise UserError(
            f"{config.path}: no file of kind '{config.kind}' there ({', '.join(suffixes)}); "
            "set path to a file, a folder or a pattern, or set another kind"
        )
    return found


@contextmanager
def open_stream(file: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if its name ends in .gz.

    Raises:
        UserError: it can't be read, at once or later on.
    """
    try:
        with open(file, "rb") as stream:
            if file.suffix == ".gz":
                with gzip.open(stream) as unpacked:
                    yield cast(IO[bytes], unpacked)
            else:
                yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: can't be read: {error}; copy it again") from None


def _lines(file: Path) -> Iterator[tuple[int, bytes | None]]:
    """(line number from 1, line) of a file; None for a line that is too long to be kept."""
    with open_stream(file) as stream:
        number = 0
        while line := stream.readline(MAX_DOCUMENT):
            number += 1
            whole = line.endswith(b"\n") or len(line) < MAX_DOCUMENT
            while not line.endswith(b"\n") and (line_end := stream.readline(MAX_DOCUMENT)):
                whole, line = False, line_end
            yield number, line.removeprefix(b"\xef\xbb\xbf") if whole else None


def _read_text(file: Path, config: CorpusConfig, tally: Tally) -> Iterator[Document]:
    if config.split_at == "file":
        with open_stream(file) as stream:
            data = stream.read(MAX_DOCUMENT + 1)
        if len(data) > MAX_DOCUMENT:
            raise UserError(
                f"{file}: over {MAX_DOCUMENT >> 20} MiB, too long for one document; "
                "set split_at=blank_line"
            )
        yield from _text(str(file), file.name, [data], tally)
        return
    yield from _blocks(file, tally)


def _blocks(file: Path, tally: Tally) -> Iterator[Document]:
    """A document for each block of lines between blank ones."""
    block: list[bytes] = []
    first = size = 0
    for number, line in _lines(file):
        if line is not None and line.strip():
            first = first if block else number
            size += len(line)
            if size <= MAX_DOCUMENT:
                block.append(line)
            continue
        if line is None or size > MAX_DOCUMENT:
            tally.bad(f"{file}:{number}", "line or block too long")
        elif block:
            yield from _text(f"{file}:{first}", f"{file.name}:{first}", block, tally)
        block, size = [], 0
    if block:
        yield from _text(f"{file}:{first}", f"{file.name}:{first}", block, tally)


def _text(where: str, name: str, lines: list[bytes], tally: Tally) -> Iterator[Document]:
    try:
        text = b"".join(lines).decode("utf-8-sig")
    except UnicodeDecodeError:
        tally.bad(where, "not UTF-8")
        return
    yield Document(name, (Section("text", text),))


def _read_jsonl(file: Path, config: CorpusConfig, tally: Tally) -> Iterator[Document]:
    for number, line in _lines(file):
        where = f"{file}:{number}"
        if line is None:
            tally.bad(where, "line too long")
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            tally.bad(where, "not JSON")
            continue
        if not isinstance(record, dict):
            tally.bad(where, "not a JSON object")
            continue
        document = _record(record, f"{file.name}:{number}", config)
        if isinstance(document, str):
            tally.bad(where, document)
        else:
            yield document


def _record(record: dict[str, Any], name: str, config: CorpusConfig) -> Document | str:
    """The document that a record holds, or why it holds none."""
    sections = []
    for field in config.fields:
        value = record.get(field)
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            value = "\n".join(value)
        if value is None:
            continue
        if not isinstance(value, str):
            return f"field '{field}' is neither a string nor a list of strings"
        sections.append(Section(field, _whole(value)))
    if not sections:
        return f"no field {' or '.join(config.fields)}"
    if config.id_field and record.get(config.id_field) is None:
        return f"no field {config.id_field}"
    identity = _whole(str(record[config.id_field])) if config.id_field else name
    own = record.get(config.split_field) if config.split_field else ""
    if own is None:
        return f"no field {config.split_field}"
    return Document(identity, tuple(sections), split=str(own))


def _whole(text: str) -> str:
    """Text without the halves of surrogate pairs, which JSON may hold and UTF-8 may not."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_parquet(file: Path, config: CorpusConfig, tally: Tally) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = [*config.fields, *filter(None, (config.id_field, config.split_field))]
    try:
        with pq.ParquetFile(file) as table:
            has = table.schema_arrow.names
            if missing := [name for name in wanted if name not in has]:
                raise UserError(
                    f"{file}: no column {', '.join(missing)}; it has {', '.join(has)}: "
                    "set fields, id_field and split_field"
                )
            number = 0
            for batch in table.iter_batches(ROWS, columns=list(dict.fromkeys(wanted))):
                for record in batch.to_pylist():
                    number += 1
                    document = _record(record, f"{file.name}:{number}", config)
                    if isinstance(document, str):
                        tally.bad(f"{file}: row {number}", document)
                    else:
                        yield document
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file}: not readable as Parquet: {error}") from None


def _read_pubmed(file: Path, config: CorpusConfig, tally: Tally) -> Iterator[Document]:
    from vlp.text.articles import read_pubmed

    with open_stream(file) as stream:
        yield from read_pubmed(stream, str(file), tally)


def _read_jats(file: Path, config: CorpusConfig, tally: Tally) -> Iterator[Document]:
    from vlp.text.articles import read_jats

    with open_stream(file) as stream:
        data = stream.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        tally.bad(str(file), f"over {MAX_DOCUMENT >> 20} MiB")
        return
    yield from read_jats(data, file, tally)


_READERS: dict[str, Callable[[Path, CorpusConfig, Tally], Iterator[Document]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "pubmed": _read_pubmed,
    "jats": _read_jats,
}


def _read_shards(config: CorpusConfig, tally: Tally) -> Iterator[Document]:
    """Caption and mentions of each sample; a caption stands without mentions where it has none."""
    from vlp.data.index import open_storage, splits
    from vlp.data.storage import Span

    splits(config.path)  # says what is wrong with the manifest
    storage = open_storage(config.path)
    columns = ("key", "shard", "split", "article")
    spans = ("text_offset", "text_size", "json_offset", "json_size")
    table = storage.table("index.parquet", (*columns, *spans))
    for batch in table.to_batches(ROWS):
        rows = batch.to_pylist()
        wanted = []
        for row in rows:
            for kind in ("text", "json"):
                offset, size = row[f"{kind}_offset"], row[f"{kind}_size"]
                wanted.append(Span(row["shard"], offset or 0, 0 if offset is None else size))
        data = storage.read(wanted)
        for row in rows:
            yield from _sample(row, next(data), next(data), tally)


def _sample(row: dict[str, Any], text: bytes, record: bytes, tally: Tally) -> Iterator[Document]:
    try:
        provenance = json.loads(record) if record else {}
        caption = text.decode()
        if record and row["text_offset"] == row["json_offset"]:  # tars of others
            caption = str(provenance["caption" if "caption" in provenance else "text"])
        mentions: Sequence[str] = provenance.get("mentions", ())
        sections = Section("caption", caption), Section("mention", "\n".join(mentions))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        tally.bad(f"{row['shard']}: {row['key']}", "caption or provenance not readable")
        return
    yield Document(row["key"], sections, split=row["split"], group=row["article"] or "")
