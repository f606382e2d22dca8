"""Visual questions put to a generative model, closed and open ones.

Closed answers are parsed, anchored (eval/parsing.py); one that names no option counts as wrong and
as unparsed, never as some option. Open answers are right if they are the same after normalisation;
token F1 and token recall stand beside that. LLaVA-Med's "open" numbers are token recall, others'
are accuracies: these don't compare.

The model is asked again with another item's image and with none: what it reaches then, it reaches
by language alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from eval.answers import AnswerModel, Asked, Shown
from eval.config import TaskConfig
from eval.metrics import Floats
from eval.parsing import exact, parse_choice, token_scores
from eval.tasks import BROKEN, Inputs, Result, Score, cluster_indices
from eval.vqa_items import Question, fold, parse, select_items
from eval.vqa_scores import (
    breakdowns,
    by_answer_type,
    examples,
    item_rows,
    majority_by_type,
    other_images,
    score,
)
from vlp.config import UserError
from vlp.data.image import open_rgb

BASELINES: dict[str, Shown] = {"shuffled_images": "shuffled", "no_image": "none"}
SHOWN: tuple[Shown, ...] = ("own", *BASELINES.values())


def prompt_of(task: TaskConfig, question: Question) -> str:
    """What a generative model is asked."""
    if not question.closed:
        return task.vqa.open_prompt.format(question=question.question)
    template = task.vqa.prompt if _lettered(task, question) else task.vqa.yes_no_prompt
    lines = [f"{chr(ord('A') + i)}) {option}" for i, option in enumerate(question.options)]
    return template.format(question=question.question, lettered_options="\n".join(lines))


def ask(
    inputs: Inputs, model: AnswerModel, questions: Sequence[Question], shown: Shown
) -> list[str | None] | None:
    """The model's answers to questions with their own images, others', or none."""
    images = inputs.dataset.images
    samples = torch.tensor([q.item.sample for q in questions])
    if shown == "shuffled":
        samples = other_images(samples, inputs.seed)

    def image_of(sample: int) -> Callable[[], Image.Image]:
        return lambda: open_rgb(images.read(sample))

    asked = [
        Asked(q.id, prompt_of(inputs.task, q), None if shown == "none" else image_of(sample))
        for q, sample in zip(questions, samples.tolist(), strict=True)
    ]
    return model.answer(inputs.name, shown, asked)


def judge(task: TaskConfig, question: Question, answer: str | None) -> dict[str, Any]:
    """What an answer is worth: `value` in [0, 1] and, by kind, what was parsed or token scores."""
    answer = answer or ""
    if question.closed:
        place = parse_choice(answer, question.options, _lettered(task, question))
        return {
            "value": float(place == question.answer),
            "answer": answer,
            "predicted": None if place is None else question.options[place],
        }
    f1, recall = token_scores(answer, question.gold)
    value = exact(answer, question.gold)
    return {"value": value, "answer": answer, "token_f1": f1, "token_recall": recall}


def evaluate(inputs: Inputs, model: AnswerModel) -> Result:
    """Accuracy, closed and open, with unparsed answers counted and the baselines beside it."""
    questions, excluded, strange = parse(
        inputs.task, select_items(inputs.name, inputs.task, inputs.dataset)
    )
    if broken := sum(q.item.sample in inputs.images.broken for q in questions):
        excluded[BROKEN] = broken
        questions = [q for q in questions if q.item.sample not in inputs.images.broken]
    if not questions:
        raise UserError(f"tasks.{inputs.name}: nothing to score: {dict(excluded)}")
    answers = ask(inputs, model, questions, "own")
    if answers is None or not any(answers):
        raise UserError(f"model={model.name}: has no answer to any item of task {inputs.name}")
    judged = _judge_all(inputs.task, questions, answers)
    values = np.array([one.pop("value") for one in judged])
    clusters, count = cluster_indices([q.item for q in questions], inputs.task.cluster)
    unparsed = [
        q.closed and one["predicted"] is None for q, one in zip(questions, judged, strict=True)
    ]
    return Result(
        n=len(questions),
        scores={
            **by_answer_type(inputs, questions, values, clusters),
            **_token_scores(inputs, questions, judged, clusters),
        },
        headline=["accuracy"],
        excluded=dict(excluded),
        clusters=count,
        details={
            "baselines": {
                "majority": majority_by_type(questions),
                **_language_only(inputs, model, questions),
            },
            **breakdowns(inputs, questions, values, clusters),
            "test_questions": {
                "closed": sum(q.closed for q in questions),
                "open": sum(not q.closed for q in questions),
            },
            "unparsed": sum(unparsed),
            "unanswered": sum(not answer for answer in answers),
            "answers_not_among_options": dict(strange.most_common(20)),
            "prompts": {"example": prompt_of(inputs.task, questions[0])},
        },
        examples=examples(
            inputs, questions, [one["answer"] for one in judged], values, _images(questions)
        ),
        notes=_notes(sum(unparsed), sum(not answer for answer in answers)),
        items=item_rows(inputs, questions, values, judged),
    )


def _judge_all(
    task: TaskConfig, questions: Sequence[Question], answers: Sequence[str | None]
) -> list[dict[str, Any]]:
    return [judge(task, q, answer) for q, answer in zip(questions, answers, strict=True)]


def _language_only(
    inputs: Inputs, model: AnswerModel, questions: Sequence[Question]
) -> dict[str, float]:
    """Accuracy without the right image; left out where the model can't be asked so."""
    found = {}
    for name, shown in BASELINES.items():
        answers = ask(inputs, model, questions, shown)
        if answers is not None:
            judged = _judge_all(inputs.task, questions, answers)
            found[name] = float(np.mean([one["value"] for one in judged]))
    return found


def _token_scores(
    inputs: Inputs,
    questions: Sequence[Question],
    judged: Sequence[dict[str, Any]],
    clusters: np.ndarray,
) -> dict[str, Score]:
    """Token F1 and recall of the open questions, where there are any."""
    chosen = np.array([i for i, q in enumerate(questions) if not q.closed])
    if not len(chosen):
        return {}
    part = [questions[i] for i in chosen]

    def mean(key: str) -> Score:
        values: Floats = np.array([judged[i][key] for i in chosen])
        return score(inputs, part, values, clusters[chosen])

    return {"open_token_f1": mean("token_f1"), "open_token_recall": mean("token_recall")}


def _lettered(task: TaskConfig, question: Question) -> bool:
    """Whether options are offered by letters: all but yes and no are."""
    asks = {fold(option) for option in question.options} != {"yes", "no"}
    return asks or "{lettered_options}" in task.vqa.yes_no_prompt


def _images(questions: Sequence[Question]) -> list[int | None]:
    return [q.item.sample for q in questions]


def _notes(unparsed: int, unanswered: int) -> list[str]:
    notes = ["chance of an open question is taken as 0"]
    if unparsed:
        notes.append(f"{unparsed} closed answers name no option, or several; they count as wrong")
    if unanswered:
        notes.append(f"{unanswered} items have no answer; they count as wrong")
    return notes
