"""`python -m eval vqa-train SUITE.yaml model=...`: train an answer head, and score it.

The classes are the training answers; a test answer that never occurs in training can't be given and
counts as wrong. Beside the accuracies stand the most frequent training answer of each question
type, the same head trained without images, and the trained head with the images shuffled. Images
that training and test share are found by the hash of their files, whatever they are called.
"""

import hashlib
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from eval.config import EvalConfig, TaskConfig, chosen_tasks
from eval.console import print_table
from eval.embed import Embedder, ImageFeatures
from eval.metrics import Floats
from eval.readers import Dataset, open_dataset
from eval.report import write_report
from eval.results import Record, finished, labels_sha256, run_header, task_header, write_task
from eval.suite import Run, TaskRun, default_out, progress_bars
from eval.suite_files import load_suite
from eval.tasks import BROKEN, Inputs, Result, Score, cluster_indices
from eval.vqa_items import Question, fold, parse, select_items
from eval.vqa_learner import Learner, Pictures
from eval.vqa_scores import (
    breakdowns,
    by_answer_type,
    examples,
    item_rows,
    other_images,
    score,
)
from vlp.config import UserError, save_config, to_dict

HELD_OUT = 10  # percent of the training images that validate, where there is no such split
SHARES = {"test": 20, "val": 10}  # percent of the images, with split=image_disjoint


@dataclass(frozen=True)
class Splits:
    """Questions of three sides; their samples count through all data sets."""

    train: list[Question]
    val: list[Question]
    test: list[Question]
    pictures: Pictures
    shared: set[int]
    """Samples of the test questions whose image is among the training images, too."""
    excluded: Counter[str]
    """Of the test side: reason -> number."""
    notes: list[str]


def main(argv: list[str]) -> None:
    """Train and score answer heads; writes TASK.json, TASK.items.parquet and report.html."""
    config = load_suite(argv, "python -m eval vqa-train")
    files = [arg for arg in argv if Path(arg).is_file()]
    command = shlex.join(["python", "-m", "eval", "vqa-train", *argv])
    run = train_suite(config, " + ".join(files) or "command line", command)
    records = [done.record for done in run.tasks.values()]
    print_table(f"{config.name}, answer heads: {run.model.name}", records, write_report(run))


def train_suite(config: EvalConfig, suite: str, command: str) -> Run:
    """Train and score a head on each visual question task of a suite.

    Args:
        suite: the suite's file, for errors.
        command: how to repeat this, for the results.

    Raises:
        UserError: a suite, data or model that doesn't fit, or no such task.
    """
    tasks = {name: t for name, t in chosen_tasks(config, suite).items() if t.kind == "vqa"}
    if not tasks:
        raise UserError(f"{suite}: no task of kind vqa; see python -m eval list")
    opened = {name: _open(f"{suite}: tasks.{name}", config, task) for name, task in tasks.items()}

    # open_clip takes seconds to import: a mistake in the suite is told before.
    from eval.model import Model, load_model

    model = load_model(config.model, config.device, config.seed)
    if not isinstance(model, Model):
        raise UserError(f"model={config.model}: has no towers to put an answer head on")
    out = Path(config.out) if config.out else default_out(model, config.name) / "vqa_train"
    out.mkdir(parents=True, exist_ok=True)
    save_config(config, out / "config.yaml")
    runs = {}
    with progress_bars(disable=False) as progress:
        embedder = Embedder(model, out / "cache", config.batch_size, config.workers, progress)
        header = run_header(config, suite, command, embedder)
        header["options"]["vqa_train"] = to_dict(config.vqa_train)
        for name, task in tasks.items():
            record = _record(config, out, header, (name, task, opened[name]), embedder)
            runs[name] = TaskRun(task, opened[name]["test"], record)
    return Run(config, model, out, runs)


def _record(
    config: EvalConfig,
    out: Path,
    header: Record,
    named: tuple[str, TaskConfig, dict[str, Dataset]],
    embedder: Embedder,
) -> Record:
    """The record of one task, trained and scored unless it was before."""
    name, task, datasets = named
    test = datasets["test"]
    # Whatever changes on any side is another experiment.
    sides = "".join(labels_sha256(one) + one.fingerprint for one in datasets.values())
    whole = task_header(header, name, task, test, hashlib.sha256(sides.encode()).hexdigest())
    if not config.overwrite and (record := finished(out, whole)):
        return record
    splits = split_questions(name, task, datasets, config.vqa_train.split)
    images = _images(test, splits.pictures)
    inputs = Inputs(task, test, images, embedder, name, config.seed, config.replicates)
    result = train_and_score(inputs, config, splits)
    # The reader's notes are about the official split; `split_questions` has seen the images.
    return write_task(out, whole, result, replace(test, notes=[]), images)


def _images(dataset: Dataset, pictures: Pictures) -> ImageFeatures:
    """What results say of the images: their hash, and which can't be read; nothing is embedded."""
    first, count = pictures.first(dataset), len(dataset.samples)
    hashes = [pictures.hash(number) for number in range(first, first + count)]
    broken = {i: BROKEN for i, digest in enumerate(hashes) if not digest}
    sha256 = hashlib.sha256(b"".join(hashes)).hexdigest()
    return ImageFeatures(torch.empty(count, 0), broken, sha256)


def _open(where: str, config: EvalConfig, task: TaskConfig) -> dict[str, Dataset]:
    """The data sets by side; val is left out where the data has no such split."""
    sides = {"train": task.data.train_split, "val": task.data.val_split, "test": task.data.split}
    found = {}
    for side, split in sides.items():
        try:
            data = replace(task.data, split=split)
            found[side] = open_dataset(data, Path(config.data_root))
        except UserError as error:
            if side != "val":
                raise UserError(f"{where}.data, split '{split}': {error}") from None
    return found


def split_questions(
    name: str, task: TaskConfig, datasets: dict[str, Dataset], split: str
) -> Splits:
    """The questions of each side, officially or so that no image is on two sides.

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
    elif "val" not in datasets:
        sides |= _held_out(sides["train"], pictures)
        notes.append(f"no val split: {HELD_OUT}% of the training images validate")
    broken = {q.item.sample for q in sides["test"] if not pictures.hash(q.item.sample)}
    excluded[BROKEN] += sum(q.item.sample in broken for q in sides["test"])
    for side, questions in sides.items():
        sides[side] = [q for q in questions if pictures.hash(q.item.sample)]
        if not sides[side]:
            raise UserError(f"tasks.{name}: no question on the side {side}")
    seen = {pictures.hash(q.item.sample) for q in sides["train"]}
    tested = {q.item.sample for q in sides["test"]}
    shared = {sample for sample in tested if pictures.hash(sample) in seen}
    if shared:
        notes.append(
            f"{len(shared)} of {len(tested)} test images are training images, too; "
            "vqa_train.split=image_disjoint splits by image"
        )
    return Splits(**sides, pictures=pictures, shared=shared, excluded=+excluded, notes=notes)


def _repeat(
    inputs: Inputs, config: EvalConfig, splits: Splits, learner: Learner
) -> tuple[dict[str, list[Floats]], list[list[str]]]:
    """For each seed which test items are right, by arm, and what was answered with the images."""
    samples = torch.tensor([q.item.sample for q in splits.test])
    shuffled = other_images(samples, inputs.seed).tolist()
    right: dict[str, list[Floats]] = {"own": [], "question_only": [], "shuffled_images": []}
    said = []
    for seed in range(config.seed, config.seed + config.vqa_train.seeds):
        seeing = learner.fit(splits.train, splits.val, seed)
        blind = learner.fit(splits.train, splits.val, seed, blind=True)
        said.append(seeing.answers(splits.test, samples.tolist()))
        given = {
            "own": said[-1],
            "question_only": blind.answers(splits.test, samples.tolist()),
            "shuffled_images": seeing.answers(splits.test, shuffled),
        }
        for arm, answers in given.items():
            right[arm].append(_right(splits.test, answers))
    return right, said


def train_and_score(inputs: Inputs, config: EvalConfig, splits: Splits) -> Result:
    """A head for each seed, on images and, for comparison, without; the means over seeds."""
    answers, test = vocabulary(splits.train, config.vqa_train.least), splits.test
    learner = Learner(config, inputs.embedder, splits.pictures, answers, inputs.name)
    right, said = _repeat(inputs, config, splits, learner)
    values = np.mean(right["own"], axis=0)  # [n]: share of the seeds that are right
    clusters, count = cluster_indices([q.item for q in test], inputs.task.cluster)
    known = {fold(answer) for answer in answers}
    return Result(
        n=len(test),
        scores={
            **by_answer_type(inputs, test, values, clusters),
            **_unseen(inputs, splits, values, clusters),
        },
        headline=["accuracy"],
        excluded=dict(splits.excluded),
        clusters=count,
        details={
            "baselines": {
                "majority": float(_right(test, most_frequent(splits.train, test)).mean()),
                **{key: float(np.mean(right[key])) for key in ("question_only", "shuffled_images")},
            },
            **breakdowns(inputs, test, values, clusters),
            "accuracy_by_seed": [float(one.mean()) for one in right["own"]],
            "answers": len(answers),
            "answers_not_in_training": sum(fold(q.gold) not in known for q in test),
            "test_questions": {
                "closed": sum(q.closed for q in test),
                "open": sum(not q.closed for q in test),
            },
            "questions": {side: len(getattr(splits, side)) for side in ("train", "val", "test")},
            "split": config.vqa_train.split,
            "shared_images": len(splits.shared),
        },
        examples=examples(inputs, test, said[0], _right(test, said[0]), _local(inputs, splits)),
        notes=[*splits.notes, f"mean of {config.vqa_train.seeds} trainings"],
        items=item_rows(
            inputs, test, values, [{"predicted": list(row)} for row in zip(*said, strict=True)]
        ),
    )


def vocabulary(questions: Sequence[Question], least: int) -> list[str]:
    """The answers of the training questions, the most frequent first; written as most often."""
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        spellings[fold(question.gold)][question.gold] += 1
    kept = [one for one in spellings.values() if one.total() >= least]
    kept.sort(key=lambda one: (-one.total(), one.most_common(1)[0][0]))
    if len(kept) < 2:
        raise UserError(f"vqa_train.least={least}: leaves {len(kept)} answers; lower it")
    return [one.most_common(1)[0][0] for one in kept]


def most_frequent(train: Sequence[Question], test: Sequence[Question]) -> list[str]:
    """For each test question the most frequent training answer of its type, closed or open."""
    counts: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
    everything: Counter[str] = Counter()
    for question in train:
        counts[question.kind, question.closed][fold(question.gold)] += 1
        everything[fold(question.gold)] += 1
    return [(counts[q.kind, q.closed] or everything).most_common(1)[0][0] for q in test]


def _right(questions: Sequence[Question], answers: Sequence[str]) -> Floats:
    return np.array(
        [float(fold(a) == fold(q.gold)) for q, a in zip(questions, answers, strict=True)]
    )


def _local(inputs: Inputs, splits: Splits) -> list[int | None]:
    """Each test question's sample in the test data set; None where it comes from another one."""
    first, count = splits.pictures.first(inputs.dataset), len(inputs.dataset.samples)
    places = [q.item.sample - first for q in splits.test]
    return [place if 0 <= place < count else None for place in places]


def _unseen(
    inputs: Inputs, splits: Splits, values: Floats, clusters: np.ndarray
) -> dict[str, Score]:
    """The accuracy on test images that aren't in training, where both kinds are there."""
    chosen = np.array([q.item.sample not in splits.shared for q in splits.test])
    if chosen.all() or not chosen.any():
        return {}
    part = [q for q, kept in zip(splits.test, chosen, strict=True) if kept]
    return {"accuracy_on_unseen_images": score(inputs, part, values[chosen], clusters[chosen])}


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
