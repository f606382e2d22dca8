"""Labelled sentences from JSON lines: a tag for each word, or a class for each sentence."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vlp.config import UserError
from vlp.text.documents import SPLITS, Document, SplitConfig, split_of
from vlp.text.entities import OUTSIDE, is_tag

Task = Literal["entities", "sentences"]

MAX_LINE = 2**20
"""Bytes of a line; no sentence is longer."""
MAX_LABELS = 500
"""Different labels; more are no classes, but a wrong field."""


class Labelled(NamedTuple):
    """A sentence.

    Attributes:
        text: for entities words with blanks between them.
        labels: for entities one of each word, otherwise the only one.
    """

    text: str
    labels: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        return self.text.split(" ")


def read_labelled(
    path: str | Path, task: Task, fields: tuple[str, str], only: Mapping[str, str]
) -> dict[str, list[Labelled]]:
    """Sentences by split, in the file's order.

    Args:
        path: JSON lines with the two fields and `split`: train, val or test.
        task: whether labels are IOB tags of words, or classes of sentences.
        fields: names of the text and of the labels; tags are a list or stand between blanks.
        only: values that other fields must have; sentences with others are left out.

    Raises:
        UserError: the file, or the line and what is wrong with it.
    """
    found: dict[str, list[Labelled]] = {split: [] for split in SPLITS}
    known: Counter[str] = Counter()
    try:
        with open(path, "rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                where = f"{path}:{number}"
                if len(line) > MAX_LINE:
                    raise UserError(f"{where}: longer than {MAX_LINE:,} bytes, no sentence")
                record = _record(line, where)
                if any(str(record.get(key)) != value for key, value in only.items()):
                    continue
                sentence = _sentence(record, task, fields, where)
                if not isinstance(split := record.get("split"), str) or not split:
                    raise UserError(f"{where}: no field 'split'; write train, val or test there")
                found[split_of(Document(where, (), split), SplitConfig())].append(sentence)
                known.update(sentence.labels)
                if len(known) > MAX_LABELS:
                    raise UserError(f"{where}: over {MAX_LABELS} labels; is '{fields[1]}' one?")
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    for split in ("train", "test"):
        if not found[split]:
            chosen = ", ".join(f"only.{key}={value}" for key, value in only.items())
            raise UserError(f"{path}: no sentences of split '{split}' {chosen}".rstrip())
    return found


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: not JSON; a line holds one object") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: not a JSON object")
    return record


def _sentence(
    record: Mapping[str, Any], task: Task, fields: tuple[str, str], where: str
) -> Labelled:
    """The sentence of a record; halves of surrogate pairs, which no tokenizer takes, become ?."""
    text, labels = record.get(fields[0]), record.get(fields[1])
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: no text in field '{fields[0]}'")
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    if task == "sentences":
        if not isinstance(labels, str) or not labels:
            raise UserError(f"{where}: field '{fields[1]}' is no class (a string)")
        return Labelled(text, (labels,))
    tags = labels.split() if isinstance(labels, str) else labels
    if not isinstance(tags, list) or not all(isinstance(t, str) and is_tag(t) for t in tags):
        raise UserError(f"{where}: field '{fields[1]}' holds no IOB tags (O, B-KIND, I-KIND)")
    if len(tags) != len(text.split(" ")):
        raise UserError(f"{where}: {len(tags)} tags for {len(text.split(' '))} words")
    return Labelled(text, tuple(tags))


def labels_of(sentences: Iterable[Labelled]) -> list[str]:
    """All labels, sorted."""
    return sorted({label for one in sentences for label in one.labels})


def majority(
    train: Sequence[Labelled], sentences: Sequence[Labelled], task: Task
) -> list[tuple[str, ...]]:
    """What knows no context predicts: for entities the most frequent tag of each word in training,
    O for new words; for sentences the most frequent class. Ties go to the label met first."""
    if task == "sentences":
        (label, _), *_ = Counter(one.labels[0] for one in train).most_common(1)
        return [(label,)] * len(sentences)
    tags: dict[str, Counter[str]] = {}
    for one in train:
        for word, tag in zip(one.words, one.labels, strict=True):
            tags.setdefault(word, Counter())[tag] += 1
    usual = {word: found.most_common(1)[0][0] for word, found in tags.items()}
    return [tuple(usual.get(word, OUTSIDE) for word in one.words) for one in sentences]
