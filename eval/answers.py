"""Any generative model behind one method: images and prompts to answers.

Two ways, both given as `model=`:

    python:MODULE:FUNCTION   FUNCTION(images, prompts) -> answers; lists of equal length. An image
                             is RGB, or None where the model is to answer without one.
    answers:FILE.jsonl       answers written beforehand, one object a line: `id` (the item's), and
                             `answer`; if need be `task`, and `images` ("own", "shuffled", "none")
                             for the baselines. `python -m eval questions` writes what to ask.
"""

import hashlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from PIL import Image
from torch import Tensor

from eval.tables import read_table, text
from vlp.config import UserError

PREFIXES = ("python:", "answers:")
BATCH = 16  # prompts that a function gets at once

Shown = Literal["own", "shuffled", "none"]
"""Which image a question was asked with: its own, another item's, or none."""


@dataclass(frozen=True)
class Asked:
    """One question as it is put to a model."""

    id: str
    prompt: str
    image: Callable[[], Image.Image] | None
    """Decodes the image when it is needed; None to ask without one."""


def nothing(image: Image.Image) -> Tensor:
    """Any image -> float32 [0]."""
    return torch.empty(0)


class AnswerModel:
    """A generative model, with what the embedding pass and the results ask of eval.model.Model.

    The pass still reads every image, and so finds the broken ones, but nothing is embedded.
    """

    name = ""
    folder: Path | None = None
    transform = staticmethod(nothing)

    def __init__(self, name: str, sha256: str, notes: Sequence[str] = ()) -> None:
        self.name, self.sha256, self.notes = name, sha256, list(notes)
        self.preprocess: dict[str, Any] = {"size": ["the model's own"]}

    def answer(self, task: str, shown: Shown, asked: Sequence[Asked]) -> list[str | None] | None:
        """An answer to each question, None for one that has none; None if it can't be asked so."""
        raise NotImplementedError

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Rows without columns [B, 0]."""
        return pixels

    def tokenize(self, texts: Sequence[str]) -> list[str]:
        """No tokens: what a text becomes is the model's own business."""
        return []

    def __getattr__(self, name: str) -> NoReturn:
        """Whatever else a task wants of a model, such as embeddings.

        Raises:
            UserError: always.
        """
        if name.startswith("__"):
            raise AttributeError(name)
        raise UserError(
            f"model={self.name}: answers questions and has no embeddings; choose tasks of kind vqa "
            "with only=[...]"
        )


class FunctionModel(AnswerModel):
    """A Python function that answers."""

    def __init__(self, name: str) -> None:
        module, _, attribute = name.removeprefix("python:").partition(":")
        try:
            self.function = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"model={name}: {error}; write python:MODULE:FUNCTION") from None
        source = inspect.getsourcefile(inspect.unwrap(self.function))
        code = Path(source).read_bytes() if source else b""
        digest = hashlib.sha256(name.encode() + b"\0" + code).hexdigest()
        super().__init__(name, digest, ["its hash covers the function's file, not its weights"])

    def answer(self, task: str, shown: Shown, asked: Sequence[Asked]) -> list[str | None] | None:
        answers: list[str | None] = []
        for start in range(0, len(asked), BATCH):
            part = asked[start : start + BATCH]
            images = [one.image() if one.image else None for one in part]
            given = self.function(images, [one.prompt for one in part])
            if not isinstance(given, list) or len(given) != len(part):
                raise UserError(f"model={self.name}: gave no list of {len(part)} answers")
            answers += [None if answer is None else str(answer) for answer in given]
        return answers


class FileModel(AnswerModel):
    """Answers from a file."""

    def __init__(self, name: str) -> None:
        path = Path(name.removeprefix("answers:"))
        if path.suffix != ".jsonl":
            raise UserError(f"model={name}: answers are a .jsonl file")
        self.answers: dict[tuple[str, str, str], str] = {}
        for number, row in enumerate(read_table(path), 1):
            key = (text(row.get("task")), text(row.get("images")) or "own", text(row.get("id")))
            if not key[2] or "answer" not in row:
                raise UserError(f"{path}: row {number} has no 'id' or no 'answer'")
            if key in self.answers:
                raise UserError(f"{path}: row {number} answers item '{key[2]}' a second time")
            self.answers[key] = text(row["answer"])
        super().__init__(name, hashlib.sha256(path.read_bytes()).hexdigest())

    def answer(self, task: str, shown: Shown, asked: Sequence[Asked]) -> list[str | None] | None:
        found = [
            self.answers.get((task, shown, one.id), self.answers.get(("", shown, one.id)))
            for one in asked
        ]
        return None if shown != "own" and not any(found) else found


def load_answers(name: str) -> AnswerModel:
    """`python:MODULE:FUNCTION` or `answers:FILE.jsonl`.

    Raises:
        UserError: no such function or file, or a row without id or answer.
    """
    return FunctionModel(name) if name.startswith("python:") else FileModel(name)
