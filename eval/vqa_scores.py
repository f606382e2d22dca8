"""What every way of answering visual questions reports: scores, baselines, breakdowns, items."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.metrics import Floats, Ints
from eval.tables import text
from eval.tasks import Answer, Example, Inputs, Score
from eval.vqa_items import Question, fold

EXAMPLES = 6  # shown, of right and of wrong answers each
MAX_SHOWN = 500  # characters of an answer

Table = dict[str, dict[str, Any]]


def chance(questions: Sequence[Question]) -> float:
    """Expected accuracy of choosing at random; without options nothing is met by chance."""
    return sum(1 / len(q.options) if q.options else 0.0 for q in questions) / len(questions)


def majority(questions: Sequence[Question]) -> float:
    """Accuracy of always giving the answer that is most frequent among these questions."""
    return Counter(fold(q.gold) for q in questions).most_common(1)[0][1] / len(questions)


def majority_by_type(questions: Sequence[Question]) -> float:
    """Accuracy of giving each question type's most frequent answer."""
    kinds = defaultdict(list)
    for question in questions:
        kinds[question.kind].append(question)
    return sum(majority(part) * len(part) for part in kinds.values()) / len(questions)


def score(inputs: Inputs, questions: Sequence[Question], values: Floats, clusters: Ints) -> Score:
    """The mean of items' credits with its interval and chance."""
    interval = inputs.interval(values, _from_zero(clusters))
    return Score(float(values.mean()), *interval, chance(questions), len(questions))


def by_answer_type(
    inputs: Inputs, questions: Sequence[Question], values: Floats, clusters: Ints
) -> dict[str, Score]:
    """`accuracy`, and where there are both kinds `closed_accuracy` and `open_accuracy`."""
    scores = {"accuracy": score(inputs, questions, values, clusters)}
    closed = np.array([q.closed for q in questions])
    if closed.any() and not closed.all():
        for name, mask in (("closed_accuracy", closed), ("open_accuracy", ~closed)):
            chosen = np.flatnonzero(mask)
            part = [questions[i] for i in chosen.tolist()]
            scores[name] = score(inputs, part, values[chosen], clusters[chosen])
    return scores


def breakdowns(
    inputs: Inputs, questions: Sequence[Question], values: Floats, clusters: Ints
) -> dict[str, Any]:
    """`by_question_type`, and `by_group` for each column of `vqa.groups`."""
    tables: dict[str, Any] = {
        "by_question_type": _table(inputs, questions, values, clusters, [q.kind for q in questions])
    }
    if inputs.task.vqa.groups:
        tables["by_group"] = {
            column: _table(
                inputs,
                questions,
                values,
                clusters,
                [text(q.item.row.get(column)) for q in questions],
            )
            for column in inputs.task.vqa.groups
        }
    return tables


def item_rows(
    inputs: Inputs, questions: Sequence[Question], values: Floats, said: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """One JSON-able row per item; `said` is what the way of answering adds to each."""
    return [
        {
            "id": q.id,
            "cluster": text(q.item.row.get(inputs.task.cluster)) or q.id,
            "value": float(value),
            "question_type": q.kind,
            "closed": q.closed,
            "question": q.question,
            "label": q.gold,
            **more,
        }
        for q, value, more in zip(questions, values, said, strict=True)
    ]


def examples(
    inputs: Inputs,
    questions: Sequence[Question],
    said: Sequence[str],
    values: Floats,
    images: Sequence[int | None],
) -> list[Example]:
    """Right and wrong answers for the report, drawn by the seed.

    Args:
        said: the model's answers.
        images: the sample of each question in the task's data set, None where it lies in another.
    """
    shuffled = np.random.default_rng(inputs.seed).permutation(len(questions)).tolist()
    right = [i for i in shuffled if values[i] == 1][:EXAMPLES]
    wrong = [i for i in shuffled if values[i] == 0][:EXAMPLES]
    found = []
    for i in right + wrong:
        question, is_right = questions[i], bool(values[i])
        given = said[i][:MAX_SHOWN] or "(no answer)"
        answers = [Answer(given, None, float(values[i]), is_right, 1)]
        if not is_right:
            answers.append(Answer(question.gold, None, 1.0, True, 2))
        group = "right answers" if is_right else "wrong answers"
        found.append(Example(group, question.id, question.question, images[i], answers, is_right))
    return found


def other_images(samples: Tensor, seed: int) -> Tensor:
    """For each item the sample of another one's image: images move around one random ring."""
    ring = samples.unique()
    ring = ring[torch.randperm(len(ring), generator=torch.Generator().manual_seed(seed))]
    follower = torch.empty(int(samples.max()) + 1, dtype=torch.int64)
    follower[ring] = ring.roll(1)
    return follower[samples]


def _table(
    inputs: Inputs,
    questions: Sequence[Question],
    values: Floats,
    clusters: Ints,
    names: Sequence[str],
) -> Table:
    """Scores of the questions of each name, with the most frequent answer among them."""
    table = {}
    for name in sorted(set(names)):
        chosen = np.flatnonzero(np.array(names) == name)
        part = [questions[i] for i in chosen.tolist()]
        found = score(inputs, part, values[chosen], clusters[chosen])
        table[name or "all"] = {
            "n": len(part),
            "accuracy": found.value,
            "low": found.low,
            "high": found.high,
            "chance": found.chance,
            "majority": majority(part),
        }
    return table


def _from_zero(clusters: Ints) -> Ints:
    """Clusters numbered anew, without gaps."""
    _, local = np.unique(clusters, return_inverse=True)
    return local.astype(np.int64)
