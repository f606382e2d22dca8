"""Closed visual questions by image-text similarity: the option whose sentence is nearest wins.

The protocol is that of Micro-Bench: each option becomes a sentence, the item's own or "{question}
{option}". Beside the accuracy stand what a model reaches that never looks at the image, and what
constant answers reach. An item whose answer is not among its options is left out and counted; no
answer is ever taken for another one. Options that tie for the first place share the credit.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from eval import vqa_generative
from eval.answers import AnswerModel
from eval.config import TaskConfig, template_problem
from eval.metrics import Floats
from eval.readers import Dataset
from eval.tables import columns
from eval.tasks import BROKEN, Answer, Example, Inputs, Result, cluster_indices
from eval.vqa_items import ID, Question, parse, select_items
from eval.vqa_scores import breakdowns, item_rows, majority_by_type, other_images, score
from vlp.config import UserError

OPEN = "open question: needs a generative model, or vqa-train"
EXAMPLES = 6  # shown, of right and of wrong answers each
CHUNK = 1 << 16  # image-text pairs multiplied at a time


def check(where: str, task: TaskConfig, dataset: Dataset) -> None:
    """Whether questions, answers and options are there, before any model runs.

    Raises:
        UserError: a missing column, or no item that can be scored.
    """
    items = select_items(where, task, dataset)
    exist = [column for column in columns(item.row for item in items) if column != ID]
    for column in task.vqa.option_columns:
        if column not in exist:
            raise UserError(
                f"{where}.vqa.option_columns: no column '{column}'; there are {', '.join(exist)}"
            )
    parsed = parse(task, items)
    if not parsed.questions:
        raise UserError(f"{where}: no item can be scored: {dict(parsed.left_out)}")
    for key in ("prompt", "yes_no_prompt", "open_prompt"):
        known = {"question"} if key == "open_prompt" else {"question", "lettered_options"}
        if problem := template_problem(getattr(task.vqa, key), known, {"question"}):
            raise UserError(f"{where}.vqa.{key}: {problem}")


def evaluate(inputs: Inputs) -> Result:
    """Accuracy of the model's way of answering, with the baselines that don't look."""
    if isinstance(inputs.embedder.model, AnswerModel):
        return vqa_generative.evaluate(inputs, inputs.embedder.model)
    items = select_items(inputs.name, inputs.task, inputs.dataset)
    questions, excluded, strange = parse(inputs.task, items)
    if found := sum(not q.closed for q in questions):
        excluded[OPEN] = found
        questions = [q for q in questions if q.closed]
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
    features = inputs.images.features
    scores = option_scores(features[samples], embedded, choices)
    credits_, tied = credit(scores, answers)

    mean = normalize(features[samples.unique()].mean(dim=0, keepdim=True), dim=1)  # [1, D]
    no_image = option_scores(mean.expand(len(questions), -1), embedded, choices)
    others = option_scores(features[other_images(samples, inputs.seed)], embedded, choices)
    clusters, count = cluster_indices([q.item for q in questions], inputs.task.cluster)
    return Result(
        n=len(questions),
        scores={"accuracy": score(inputs, questions, credits_, clusters)},
        headline=["accuracy"],
        excluded=dict(excluded),
        clusters=count,
        details={
            "baselines": {
                "majority": majority_by_type(questions),
                "no_image": float(credit(no_image, answers)[0].mean()),
                "shuffled_images": float(credit(others, answers)[0].mean()),
            },
            **breakdowns(inputs, questions, credits_, clusters),
            "tied": tied,
            "answers_not_among_options": dict(strange.most_common(20)),
        },
        examples=_examples(inputs, questions, scores, credits_),
        items=item_rows(inputs, questions, credits_, _said(questions, scores)),
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


def _said(questions: Sequence[Question], scores: Tensor) -> list[dict[str, Any]]:
    """Per item the option that came first, and all cosines."""
    return [
        {"predicted": q.options[int(row.argmax())], "scores": row[: len(q.options)].tolist()}
        for q, row in zip(questions, scores, strict=True)
    ]


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
