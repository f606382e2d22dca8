"""`python -m eval vqa-train SUITE.yaml model=...`: train an answer head, and score it.

The classes are the training answers; a test answer that never occurs in training can't be given and
counts as wrong. Beside the accuracies stand the most frequent training answer of each question
type, the same head trained without images, and the trained head with the images shuffled. Images
that training and test share are found by the hash of their pixels, whatever they are called.

The head is saved before it is scored, and scored from what was saved: `vqa_train.head=FOLDER` later
gives the same numbers without training.
"""

import hashlib
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch

from eval.config import EvalConfig, TaskConfig, chosen_tasks
from eval.console import print_table
from eval.embed import Embedder, ImageFeatures
from eval.metrics import Floats
from eval.readers import Dataset
from eval.report import write_report
from eval.results import Record, finished, labels_sha256, run_header, task_header, write_task
from eval.suite import Run, TaskRun, default_out, progress_bars
from eval.suite_files import load_suite
from eval.tasks import BROKEN, Inputs, Result, Score, cluster_indices
from eval.vqa_config import VqaTrainConfig
from eval.vqa_head import (
    ABOUT,
    Head,
    check_fits,
    frequent_answers,
    identity,
    load_head,
    read_weights,
    save_head,
    save_weights,
    start_head,
    weights_path,
)
from eval.vqa_items import Question, fold
from eval.vqa_learner import Learner, Pictures
from eval.vqa_scores import (
    breakdowns,
    by_answer_type,
    examples,
    item_rows,
    other_images,
    score,
)
from eval.vqa_split import Splits, open_sides, split_questions
from vlp.config import UserError, save_config, to_dict


def main(argv: list[str]) -> None:
    """Train and score answer heads; writes TASK.json, TASK.items.parquet and report.html."""
    config = load_suite(argv, "python -m eval vqa-train")
    files = [arg for arg in argv if Path(arg).is_file()]
    command = shlex.join(["python", "-m", "eval", "vqa-train", *argv])
    run = train_suite(config, " + ".join(files) or "command line", command)
    records = [done.record for done in run.tasks.values()]
    print_table(f"{config.name}, answer heads: {run.model.name}", records, write_report(run))


def train_suite(config: EvalConfig, suite: str, command: str) -> Run:
    """Train and score a head on each visual question task of a suite; with vqa_train.head only
    score that head on each.

    Args:
        suite: the suite's file, for errors.
        command: how to repeat this, for the results.

    Raises:
        UserError: a suite, data, model or head that doesn't fit, no such task, or torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("vqa-train runs in one process: start it without torchrun")
    tasks = {name: t for name, t in chosen_tasks(config, suite).items() if t.kind == "vqa"}
    if not tasks:
        raise UserError(f"{suite}: no task of kind vqa; see python -m eval list")
    head = load_head(Path(config.vqa_train.head)) if config.vqa_train.head else None
    if head is not None:
        config = replace(config, vqa_train=_as_trained(config.vqa_train, head.settings))
    only_test = head is not None and head.settings.split == "official"
    opened = {
        name: open_sides(f"{suite}: tasks.{name}", config, task, only_test)
        for name, task in tasks.items()
    }

    # open_clip takes seconds to import: a mistake in the suite is told before.
    from eval.model import Model, load_model

    model = load_model(config.model, config.device, config.seed)
    if not isinstance(model, Model):
        raise UserError(f"model={config.model}: has no towers to put an answer head on")
    beside = "vqa_train" if head is None else "vqa_head"
    out = Path(config.out) if config.out else default_out(model, config.name) / beside
    runs = {}
    with progress_bars(disable=False) as progress:
        embedder = Embedder(model, out / "cache", config.batch_size, config.workers, progress)
        if head is not None:
            folder = Path(config.vqa_train.head)
            check_fits(folder, head, identity(model, embedder.tokenizer_sha256()))
        out.mkdir(parents=True, exist_ok=True)
        save_config(config, out / "config.yaml")
        header = run_header(config, suite, command, embedder)
        header["options"]["vqa_train"] = _options(config.vqa_train)
        for name, task in tasks.items():
            record = _record(config, out, header, (name, task, opened[name]), embedder)
            runs[name] = TaskRun(task, opened[name]["test"], record)
    return Run(config, model, out, runs)


def _as_trained(given: VqaTrainConfig, trained: VqaTrainConfig) -> VqaTrainConfig:
    """The settings of a trained head.

    Raises:
        UserError: others were given beside it.
    """
    for key in (field.name for field in fields(given) if field.name != "head"):
        value, was = getattr(given, key), getattr(trained, key)
        if value not in (was, getattr(VqaTrainConfig(), key)):
            raise UserError(
                f"vqa_train.{key}={value}: the head in {given.head} was trained with {was}; "
                "leave the key out"
            )
    return replace(trained, head=given.head)


def _options(settings: VqaTrainConfig) -> Record:
    """What results say of the settings: a head by its hash, wherever it lies."""
    about = (Path(settings.head) / ABOUT).read_bytes() if settings.head else b""
    return {**to_dict(settings), "head": hashlib.sha256(about).hexdigest() if about else ""}


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
    labels = {side: labels_sha256(dataset) for side, dataset in datasets.items()}
    tested = labels["test"]
    if config.vqa_train.split == "image_disjoint":  # a part of all sides
        tested = hashlib.sha256(" ".join(["image_disjoint", *labels.values()]).encode()).hexdigest()
    whole = task_header(header, name, task, test, tested)
    # Whatever changes on any side is another experiment.
    whole["options"]["vqa_train"]["data"] = {
        side: [dataset.fingerprint, labels[side]] for side, dataset in datasets.items()
    }
    if not config.overwrite and (record := finished(out, whole)):
        return record
    splits = split_questions(name, task, datasets, config.vqa_train.split)
    images = _images(test, splits.pictures)
    inputs = Inputs(task, test, images, embedder, name, config.seed, config.replicates)
    folder = Path(config.vqa_train.head or out / "heads" / name)
    if not config.vqa_train.head:
        train_head(inputs, config, splits, folder)
    result = score_head(inputs, config, splits, folder)
    # The reader's notes are about the official split; `split_questions` has seen the images.
    return write_task(out, whole, result, replace(test, notes=[]), images)


def _images(dataset: Dataset, pictures: Pictures) -> ImageFeatures:
    """What results say of the images: their hash, and which can't be read; nothing is embedded."""
    first, count = pictures.first(dataset), len(dataset.samples)
    hashes = [pictures.hash(number) for number in range(first, first + count)]
    broken = {i: BROKEN for i, digest in enumerate(hashes) if not digest}
    sha256 = hashlib.sha256(b"".join(hashes)).hexdigest()
    return ImageFeatures(torch.empty(count, 0), broken, sha256)


def train_head(inputs: Inputs, config: EvalConfig, splits: Splits, folder: Path) -> None:
    """Train a head for each seed, with images and without, and save them all."""
    settings, embedder = config.vqa_train, inputs.embedder
    answers = vocabulary(splits.train, settings.least)
    learner = Learner(config, embedder, splits.pictures, answers, inputs.name)
    seeds = list(range(config.seed, config.seed + settings.seeds))
    start_head(folder)
    for seed in seeds:
        for blind in (False, True):
            trained = learner.fit(splits.train, splits.val, seed, blind)
            save_weights(folder, seed, blind, trained.weights())
    frequent, most_frequent = frequent_answers(splits.train)
    head = Head(
        settings=settings,
        task=inputs.name,
        model=identity(embedder.model, embedder.tokenizer_sha256()),
        answers=answers,
        seeds=seeds,
        questions={"train": len(splits.train), "val": len(splits.val)},
        images=splits.seen(),
        frequent=frequent,
        most_frequent=most_frequent,
        notes=splits.notes,
    )
    save_head(folder, head)


def score_head(inputs: Inputs, config: EvalConfig, splits: Splits, folder: Path) -> Result:
    """Score a saved head, and what doesn't look beside it; the means over its trainings."""
    head, test = load_head(folder), splits.test
    right, said = _answers(inputs, config, splits, (folder, head))
    values = np.mean(right["own"], axis=0)  # [n]: share of the trainings that are right
    clusters, count = cluster_indices([q.item for q in test], inputs.task.cluster)
    known = {fold(answer) for answer in head.answers}
    shared = splits.shared(set(head.images))
    rows = [
        {"predicted": list(answers), "seen_in_training": q.item.sample in shared}
        for q, answers in zip(test, zip(*said, strict=True), strict=True)
    ]
    return Result(
        n=len(test),
        scores={
            **by_answer_type(inputs, test, values, clusters),
            **_unseen(inputs, test, shared, values, clusters),
        },
        headline=["accuracy"],
        excluded=dict(splits.excluded),
        clusters=count,
        details={
            "baselines": {
                "majority": float(_right(test, head.most_frequent_answers(test)).mean()),
                **{key: float(np.mean(right[key])) for key in ("question_only", "shuffled_images")},
            },
            **breakdowns(inputs, test, values, clusters),
            "accuracy_by_seed": [float(one.mean()) for one in right["own"]],
            "answers": len(head.answers),
            "answers_not_in_training": sum(fold(q.gold) not in known for q in test),
            "test_questions": {
                "closed": sum(q.closed for q in test),
                "open": sum(not q.closed for q in test),
            },
            "questions": {**head.questions, "test": len(test)},
            "split": head.settings.split,
            "shared_images": len(shared),
        },
        examples=examples(inputs, test, said[0], _right(test, said[0]), _local(inputs, splits)),
        notes=_notes(inputs.name, head, splits, shared),
        items=item_rows(inputs, test, values, rows),
    )


def _answers(
    inputs: Inputs, config: EvalConfig, splits: Splits, saved: tuple[Path, Head]
) -> tuple[dict[str, list[Floats]], list[list[str]]]:
    """For each training which test items are right, by arm, and what was answered with the images.

    Nothing is left in memory of a training before: batches, and so the numbers to the last digit,
    are those of a head that was trained another day.
    """
    folder, head = saved
    learner = Learner(config, inputs.embedder, splits.pictures, head.answers, inputs.name)
    samples = torch.tensor([q.item.sample for q in splits.test])
    own, shuffled = samples.tolist(), other_images(samples, inputs.seed).tolist()
    right: dict[str, list[Floats]] = {"own": [], "question_only": [], "shuffled_images": []}
    said = []
    for seed in head.seeds:
        seeing, blind = (
            learner.restore(
                read_weights(folder, seed, no_image),
                splits.test[0],
                no_image,
                weights_path(folder, seed, no_image),
            )
            for no_image in (False, True)
        )
        said.append(seeing.answers(splits.test, own))
        given = {
            "own": said[-1],
            "question_only": blind.answers(splits.test, own),
            "shuffled_images": seeing.answers(splits.test, shuffled),
        }
        for arm, answers in given.items():
            right[arm].append(_right(splits.test, answers))
    return right, said


def _notes(name: str, head: Head, splits: Splits, shared: Collection[int]) -> list[str]:
    """What has to be known beside the scores."""
    notes = [*head.notes, *(note for note in splits.notes if note not in head.notes)]
    if shared:
        tested = len({q.item.sample for q in splits.test})
        notes.append(
            f"{len(shared)} of {tested} test images are training images, too; "
            "vqa_train.split=image_disjoint splits by image"
        )
    if head.task != name:
        notes.append(f"the head was trained on {head.task}")
    count = len(head.seeds)
    return [*notes, f"mean of {count} trainings" if count > 1 else "one training, of one seed"]


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
    inputs: Inputs,
    test: Sequence[Question],
    shared: Collection[int],
    values: Floats,
    clusters: np.ndarray,
) -> dict[str, Score]:
    """The accuracy on test images that aren't in training, where both kinds are there."""
    chosen = np.array([q.item.sample not in shared for q in test])
    if chosen.all() or not chosen.any():
        return {}
    part = [q for q, kept in zip(test, chosen, strict=True) if kept]
    return {"accuracy_on_unseen_images": score(inputs, part, values[chosen], clusters[chosen])}
