"""The questions of an answer head's three sides: official splits, or anew so that no image is on
two sides. Images are told by a hash of their pixels, whatever their files are called."""

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.config import EvalConfig, TaskConfig
from eval.readers import Dataset, open_dataset
from eval.readers.base import split_names
from eval.tasks import BROKEN
from eval.vqa_items import Question, parse, select_items
from eval.vqa_learner import Pictures
from vlp.config import UserError

HELD_OUT = 10  # percent of the training images that validate, where there is no such split
SHARES = {"test": 20, "val": 10}  # percent of the images, with split=image_disjoint


@dataclass(frozen=True)
class Splits:
    """Questions of three sides; their samples count through all data sets."""

    train: list[Question]
    """Empty, as is `val`, where a head is only scored."""
    val: list[Question]
    test: list[Question]
    pictures: Pictures
    excluded: Counter[str]
    """Of the test side: reason -> number."""
    notes: list[str]

    def seen(self) -> list[str]:
        """The hashes of the training images, sorted."""
        return sorted({self.pictures.hash(q.item.sample).hex() for q in self.train})

    def shared(self, seen: Collection[str]) -> set[int]:
        """The samples of the test questions whose image is among these hashes."""
        tested = {q.item.sample for q in self.test}
        return {sample for sample in tested if self.pictures.hash(sample).hex() in seen}


def open_sides(
    where: str, config: EvalConfig, task: TaskConfig, only_test: bool = False
) -> dict[str, Dataset]:
    """The data sets by side; val is left out where the data has no such split.

    Args:
        where: suite and task, for errors.

    Raises:
        UserError: no training or test data, or a validation split that is the tested one.
    """
    data = task.data
    sides = {"train": data.train_split, "val": data.val_split, "test": data.split}
    if shared := sorted(set(split_names(data.val_split)) & set(split_names(data.split))):
        raise UserError(
            f"{where}.data.val_split: '{shared[0]}' is tested; write another split, or '' to hold "
            "out training images"
        )
    found = {}
    for side, split in sides.items():
        if (only_test and side != "test") or (side == "val" and not split):
            continue
        try:
            found[side] = open_dataset(replace(data, split=split), Path(config.data_root))
        except UserError as error:
            if side != "val":
                raise UserError(f"{where}.data, split '{split}': {error}") from None
    return found


def split_questions(
    name: str, task: TaskConfig, datasets: dict[str, Dataset], split: str
) -> Splits:
    """The questions of each side of `open_sides`, officially or so that no image is on two sides.

    Raises:
        UserError: a side without questions.
    """
    pictures = Pictures(list(datasets.values()))
    sides: dict[str, list[Question]] = {"train": [], "val": [], "test": []}
    excluded: Counter[str] = Counter()
    for side, dataset in datasets.items():
        parsed = parse(task, select_items(name, task, dataset), choose=False)
        first = pictures.first(dataset)
        for question in parsed.questions:
            item = replace(question.item, sample=question.item.sample + first)
            sides[side].append(replace(question, item=item))
        excluded.update(parsed.left_out if side == "test" else {})
    notes = []
    if split == "image_disjoint":
        everything = [question for questions in sides.values() for question in questions]
        sides = _by_image(everything, pictures)
        notes.append("split anew by image: not comparable with scores on the official split")
    elif "train" in datasets and "val" not in datasets:
        sides |= _held_out(sides["train"], pictures)
        notes.append(f"no val split: {HELD_OUT}% of the training images validate")
    broken = {q.item.sample for q in sides["test"] if not pictures.hash(q.item.sample)}
    excluded[BROKEN] += sum(q.item.sample in broken for q in sides["test"])
    needed = ("train", "val", "test") if "train" in datasets else ("test",)
    for side in needed:
        sides[side] = [q for q in sides[side] if pictures.hash(q.item.sample)]
        if not sides[side]:
            raise UserError(f"tasks.{name}: no question on the side {side}")
    return Splits(**sides, pictures=pictures, excluded=+excluded, notes=notes)


def _by_image(questions: Sequence[Question], pictures: Pictures) -> dict[str, list[Question]]:
    """Sides by the hash of the image, so that a side depends on nothing but the image."""
    sides: dict[str, list[Question]] = {"train": [], "val": [], "test": []}
    for question in questions:
        place = _percent(pictures.hash(question.item.sample))
        is_test, is_val = place < SHARES["test"], place < SHARES["test"] + SHARES["val"]
        sides["test" if is_test else "val" if is_val else "train"].append(question)
    return sides


def _held_out(train: Sequence[Question], pictures: Pictures) -> dict[str, list[Question]]:
    sides: dict[str, list[Question]] = {"train": [], "val": []}
    for question in train:
        held = _percent(pictures.hash(question.item.sample)) < HELD_OUT
        sides["val" if held else "train"].append(question)
    return sides


def _percent(digest: bytes) -> int:
    """0 to 99, by the hash of an image."""
    return int.from_bytes(hashlib.sha256(b"split" + digest).digest()[:8], "big") % 100
