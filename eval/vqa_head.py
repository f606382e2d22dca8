"""A trained answer head in a folder: all that it takes to score with it again, and no pickle.

    settings.yaml              how it was trained: the keys vqa_train.*
    head.json                  answers, the model that it sits on, the hashes of its training images
    SEED.safetensors           one training's weights; with tuned towers also those of the towers
    SEED.no_image.safetensors  those of its twin that was trained without images

The training data isn't needed: its most frequent answers, and which images are in it, are kept.
head.json is written last, so a folder without it isn't finished.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save
from torch import Tensor

from eval.vqa_config import VqaTrainConfig
from eval.vqa_items import Question, fold
from vlp.config import UserError, load_config, save_config, write_text
from vlp.models.weights import read_tensors

if TYPE_CHECKING:  # imports open_clip, which takes seconds
    from eval.model import Model

FORMAT, VERSION = "biovlp-answer-head", 1
SETTINGS, ABOUT = "settings.yaml", "head.json"
MAX_BYTES = 1 << 28
"""Of head.json: it may come from anywhere."""


@dataclass(frozen=True)
class Frequent:
    """The most frequent training answer of one kind of question."""

    question_type: str
    closed: bool
    answer: str


@dataclass(frozen=True)
class Head:
    """What is known of a trained head besides its weights."""

    settings: VqaTrainConfig
    task: str
    """On which it was trained."""
    model: dict[str, Any]
    """`identity` of the model that it sits on."""
    answers: list[str]
    """What it chooses among, in the order of its outputs."""
    seeds: list[int]
    questions: dict[str, int]
    """How many it was trained and validated on."""
    images: list[str]
    """SHA-256 of the pixels of each training image, in hexadecimal."""
    frequent: list[Frequent]
    most_frequent: str
    """Of all training answers."""
    notes: list[str]
    """Of the training split."""

    def most_frequent_answers(self, questions: Sequence[Question]) -> list[str]:
        """For each question the most frequent training answer of its type, closed or open."""
        known = {(one.question_type, one.closed): one.answer for one in self.frequent}
        return [known.get((q.kind, q.closed), self.most_frequent) for q in questions]


def identity(model: "Model", tokenizer_sha256: str) -> dict[str, Any]:
    """What decides a model's states: a head fits no other ones."""
    return {
        "sha256": model.sha256,
        "preprocess": json.loads(json.dumps(model.preprocess)),
        "tokenizer_sha256": tokenizer_sha256,
    }


def frequent_answers(train: Sequence[Question]) -> tuple[list[Frequent], str]:
    """(the most frequent answer of each question type, closed and open; of all); the first of
    several."""
    counts: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
    everything: Counter[str] = Counter()
    for question in train:
        counts[question.kind, question.closed][fold(question.gold)] += 1
        everything[fold(question.gold)] += 1
    table = [Frequent(*key, found.most_common(1)[0][0]) for key, found in counts.items()]
    return table, everything.most_common(1)[0][0]


def weights_path(folder: Path, seed: int, blind: bool) -> Path:
    """The file of one training's weights."""
    return folder / f"{seed}{'.no_image' if blind else ''}.safetensors"


def save_weights(folder: Path, seed: int, blind: bool, tensors: Mapping[str, Tensor]) -> None:
    """Write the weights of one training, at once or not at all."""
    path = weights_path(folder, seed, blind)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    os.replace(temporary, path)


def read_weights(folder: Path, seed: int, blind: bool) -> dict[str, Tensor]:
    """The weights that `save_weights` wrote, on the CPU.

    Raises:
        UserError: missing or damaged.
    """
    return read_tensors(weights_path(folder, seed, blind))


def start_head(folder: Path) -> None:
    """An empty place for a head; what was there before isn't one any more."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).unlink(missing_ok=True)
    for file in folder.glob("*.safetensors"):
        file.unlink()


def save_head(folder: Path, head: Head) -> None:
    """Finish a folder whose weights are there."""
    save_config(head.settings, folder / SETTINGS)
    about = {key: value for key, value in asdict(head).items() if key != "settings"}
    about = {"format": FORMAT, "version": VERSION, **about, "files": dict(_hashes(folder, head))}
    write_text(folder / ABOUT, json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def load_head(folder: Path) -> Head:
    """What `save_head` wrote; the weights are looked at, and read by `read_weights`.

    Raises:
        UserError: no head, one of another version, or a damaged one.
    """
    path = folder / ABOUT
    about = _read(path)
    if about.pop("format", None) != FORMAT:
        raise UserError(f"{path}: not a head of `python -m eval vqa-train`")
    if about.pop("version", None) != VERSION:
        raise UserError(f"{path}: of another version, this program reads {VERSION}; train again")
    files = about.pop("files", None)
    settings = load_config(VqaTrainConfig, [str(folder / SETTINGS)])
    if problem := _problem(about):
        raise UserError(f"{path}: {problem}; train again")
    about["frequent"] = [Frequent(**one) for one in about["frequent"]]
    head = Head(settings=settings, **about)
    if dict(_hashes(folder, head)) != files:
        raise UserError(f"{folder}: its files are of different trainings; train again")
    return head


def check_fits(folder: Path, head: Head, model: dict[str, Any]) -> None:
    """Whether a head was trained on this model.

    Args:
        model: `identity` of the one that is there.

    Raises:
        UserError: it was trained on another one, or the images or texts are prepared otherwise.
    """
    reasons = {
        "sha256": "on other weights",
        "preprocess": "with another preprocessing of images",
        "tokenizer_sha256": "with another tokenizer",
    }
    for key, reason in reasons.items():
        if head.model.get(key) != model[key]:
            raise UserError(f"vqa_train.head={folder}: trained {reason}; give the model it sits on")


def _problem(about: dict[str, Any]) -> str:
    """What is wrong with the content of head.json; '' for nothing."""
    kinds = {
        **{"task": str, "model": dict, "answers": list, "seeds": list, "questions": dict},
        **{"images": list, "frequent": list, "most_frequent": str, "notes": list},
    }
    if set(about) != set(kinds):
        odd = sorted(set(about) ^ set(kinds))
        return f"'{odd[0]}' {'is missing' if odd[0] in kinds else 'is no key of a head'}"
    for key, kind in kinds.items():
        if not isinstance(about[key], kind):
            return f"'{key}' is not a {kind.__name__}"
    for key, part in (("answers", str), ("seeds", int), ("images", str), ("notes", str)):
        if not all(type(one) is part for one in about[key]):
            return f"'{key}' holds something else than {part.__name__}"
    fields = {"question_type": str, "closed": bool, "answer": str}
    for one in about["frequent"]:
        if not isinstance(one, dict) or {k: type(v) for k, v in one.items()} != fields:
            return "'frequent' holds something else than answers of question types"
    if len(about["answers"]) < 2 or not about["seeds"]:
        return "fewer than two answers, or no training"
    return ""


def _hashes(folder: Path, head: Head) -> Iterator[tuple[str, str]]:
    """Name and SHA-256 of each file besides head.json."""
    paths = [weights_path(folder, seed, blind) for seed in head.seeds for blind in (False, True)]
    for path in [folder / SETTINGS, *paths]:
        try:
            with path.open("rb") as file:
                yield path.name, hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; train again") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MiB; not a head")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; give a folder of `python -m eval vqa-train`, heads/TASK"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as a head: {error}") from None
    return content if isinstance(content, dict) else {}
