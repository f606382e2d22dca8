"""Closed visual questions by image-text similarity: the option whose sentence is nearest wins.

The protocol is that of Micro-Bench: each option becomes a sentence, the item's own or "{question}
{option}". Beside the accuracy stand what a model reaches that never looks at the image, and what
constant answers reach. An item whose answer is not among its options is left out and counted; no
answer is ever taken for another one. Options that tie for the first place share the credit.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from eval.config import TaskConfig
from eval.metrics import Floats
from eval.readers import Dataset
from eval.tables import columns, text, texts
from eval.tasks import (
    BROKEN,
    Answer,
    Example,
    Inputs,
    Item,
    Result,
    Score,
    cluster_indices,
    select,
)
from vlp.config import UserError

NOT_AN_OPTION = "answer is not among the options"
EXAMPLES = 6  # shown, of right and of wrong answers each
CHUNK = 1 << 16  # image-text pairs multiplied at a time


@dataclass(frozen=True)
class Question:
    """One closed question."""

    item: Item
    question: str
    options: list[str]
    statements: list[str]
    answer: int
    """Index of the right option."""
    kind: str
    """Its question type, '' where it has none."""


def check(where: str, task: TaskConfig, dataset: Dataset) -> None:
    """Whether questions, answers and options are there, before any model runs.

    Raises:
        UserError: a missing column, or no item with its answer among the options.
    """
    items = select(where, task, dataset, {task.question: "question", task.answer: "answer"})
    exist = columns(item.row for item in items)
    if not task.fixed_options and task.options not in exist:
        raise UserError(
            f"{where}.options: no column '{task.options}', and fixed_options is empty; "
            f"there are {', '.join(exist)}"
        )
    questions, reasons, _ = parse(task, items)
    if not questions:
        raise UserError(f"{where}: no item can be scored: {dict(reasons)}")


def parse(task: TaskConfig, items: list[Item]) -> tuple[list[Question], Counter[str], Counter[str]]:
    """(questions, reason -> number left out, answers that are not among the options)."""
    questions = []
    reasons: Counter[str] = Counter()
    strange: Counter[str] = Counter()
    for item in items:
        question, answer = text(item.row.get(task.question)), text(item.row.get(task.answer))
        options = texts(item.row.get(task.options)) or list(task.fixed_options)
        statements = texts(item.row.get(task.statements)) or [
            task.statement.format(question=question, option=option) for option in options
        ]
        folded = [_fold(option) for option in options]
        if not question:
            reasons["no question"] += 1
        elif len(set(folded)) != len(options) or len(options) < 2:
            reasons["not two or more different options"] += 1
        elif len(statements) != len(options):
            reasons["not one statement per option"] += 1
        elif _fold(answer) not in folded:
            reasons[NOT_AN_OPTION] += 1
            strange[answer] += 1
        else:
            kind = text(item.row.get(task.question_type))
            right = folded.index(_fold(answer))
            questions.append(Question(item, question, options, statements, right, kind))
    return questions, reasons, strange


def evaluate(inputs: Inputs) -> Result:
    """Accuracy, overall and by question type, with the baselines that don't look."""
    items = select(inputs.name, inputs.task, inputs.dataset, {})
    questions, excluded, strange = parse(inputs.task, items)
    if broken := sum(q.item.sample in inputs.images.broken for q in questions):
        excluded[BROKEN] = broken
        questions = [q for q in questions if q.item.sample not in inputs.images.broken]
    if not questions:
        raise UserError(f"tasks.{inputs.name}: nothing to score: {dict(excluded)}")

    # Yes/no statements repeat a lot, so each text is embedded once.
    unique = dict.fromkeys(statement for q in questions for statement in q.statements)
    vocabulary = {statement: i for i, statement in enumerate(unique)}
    choices = [[vocabulary[s] for s in q.statements] for q in questions]
    embedded = inputs.embedder.texts(list(vocabulary), inputs.name)  # [V, D]
    samples = torch.tensor([q.item.sample for q in questions])
    answers = np.array([q.answer for q in questions])
    scores = option_scores(inputs.images.features[samples], embedded, choices)
    credits_, tied = credit(scores, answers)

    features = inputs.images.features
    mean = normalize(features[samples.unique()].mean(dim=0, keepdim=True), dim=1)  # [1, D]
    no_image = option_scores(mean.expand(len(questions), -1), embedded, choices)
    others = option_scores(features[_other_images(samples, inputs.seed)], embedded, choices)
    clusters, count = cluster_indices([q.item for q in questions], inputs.task.cluster)
    by_kind = _by_kind(inputs, questions, credits_, clusters)
    interval = inputs.interval(credits_, clusters)
    return Result(
        n=len(questions),
        scores={"accuracy": Score(float(credits_.mean()), *interval, _chance(questions))},
        headline=["accuracy"],
        excluded=dict(excluded),
        clusters=count,
        details={
            "baselines": {
                "majority": sum(k["majority"] * k["n"] for k in by_kind.values()) / len(questions),
                "no_image": float(credit(no_image, answers)[0].mean()),
                "shuffled_images": float(credit(others, answers)[0].mean()),
            },
            "by_question_type": by_kind,
            "tied": tied,
            "answers_not_among_options": dict(strange.most_common(20)),
        },
        examples=_examples(inputs, questions, scores, credits_),
    )


def option_scores(images: Tensor, texts: Tensor, choices: list[list[int]]) -> Tensor:
    """Cosines float32 [n, most options]; -inf where an item has fewer.

    Args:
        images: unit rows [n, D], one per item.
        texts: unit rows [V, D].
        choices: per item, the texts of its options.
    """
    counts = torch.tensor([len(row) for row in choices])
    item = torch.repeat_interleave(torch.arange(len(choices)), counts)  # [F]
    option = torch.cat([torch.arange(int(n)) for n in counts])
    choice = torch.tensor([index for row in choices for index in row])
    scores = torch.full((len(choices), int(counts.max())), -torch.inf)
    for start in range(0, len(item), CHUNK):
        part = slice(start, start + CHUNK)
        cosine = (images[item[part]] * texts[choice[part]]).sum(dim=1)
        scores[item[part], option[part]] = cosine
    return scores


def credit(scores: Tensor, answers: np.ndarray) -> tuple[Floats, int]:
    """(credit of each item [n], number of ties): 1 if the right option is first, 1/t if t tie."""
    best = scores == scores.max(dim=1, keepdim=True).values
    ties = best.sum(dim=1)
    right = best[torch.arange(len(scores)), torch.from_numpy(answers)]
    return (right / ties).double().numpy(), int((ties > 1).sum())


def majority(questions: list[Question]) -> float:
    """Accuracy of always giving the answer that is most frequent among these questions."""
    answers = Counter(_fold(q.options[q.answer]) for q in questions)
    return answers.most_common(1)[0][1] / len(questions)


def _by_kind(
    inputs: Inputs, questions: list[Question], credits_: Floats, clusters: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Scores by question type; the majority's answer is chosen within each type."""
    table = {}
    for kind in sorted({q.kind for q in questions}):
        chosen = np.array([i for i, q in enumerate(questions) if q.kind == kind])
        part = [questions[i] for i in chosen]
        _, local = np.unique(clusters[chosen], return_inverse=True)
        low, high = inputs.interval(credits_[chosen], local.astype(np.int64))
        table[kind or "all"] = {
            "n": len(part),
            "accuracy": float(credits_[chosen].mean()),
            "low": low,
            "high": high,
            "chance": _chance(part),
            "majority": majority(part),
        }
    return table


def _chance(questions: list[Question]) -> float:
    return sum(1 / len(q.options) for q in questions) / len(questions)


def _other_images(samples: Tensor, seed: int) -> Tensor:
    """For each item the sample of another one's image: images move around one random ring."""
    ring = samples.unique()
    ring = ring[torch.randperm(len(ring), generator=torch.Generator().manual_seed(seed))]
    follower = torch.empty(int(samples.max()) + 1, dtype=torch.int64)
    follower[ring] = ring.roll(1)
    return follower[samples]


def _examples(
    inputs: Inputs, questions: list[Question], scores: Tensor, credits_: Floats
) -> list[Example]:
    """Right and wrong answers, drawn by the seed."""
    shuffled = np.random.default_rng(inputs.seed).permutation(len(questions)).tolist()
    right = [i for i in shuffled if credits_[i] == 1][:EXAMPLES]
    wrong = [i for i in shuffled if credits_[i] == 0][:EXAMPLES]
    examples = []
    for i in right + wrong:
        question = questions[i]
        order = scores[i].argsort(descending=True, stable=True).tolist()
        answers = [
            Answer(question.options[j], None, float(scores[i, j]), j == question.answer, rank)
            for rank, j in enumerate(order[: len(question.options)], 1)
        ]
        name = inputs.dataset.samples[question.item.sample].image
        group = "right answers" if credits_[i] == 1 else "wrong answers"
        examples.append(
            Example(group, name, question.question, question.item.sample, answers, credits_[i] == 1)
        )
    return examples


def _fold(answer: str) -> str:
    """How answers are compared: case and surrounding white space don't matter, nothing else."""
    return " ".join(answer.casefold().split())
