"""`python -m eval questions SUITE.yaml ...`: what to ask a model that runs elsewhere.

Writes one JSON object a line: `task`, `id`, `images` ("own", "shuffled", "none"), `image` (the name
of the image to show, null for none), `prompt` and `options`. The answers go back as lines with
`task`, `id`, `images` and `answer`: model=answers:FILE.jsonl.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from eval.config import EvalConfig, TaskConfig
from eval.readers import Dataset
from eval.suite import prepare
from eval.suite_files import load_suite
from eval.vqa_generative import SHOWN, prompt_of
from eval.vqa_items import parse, select_items
from eval.vqa_scores import other_images
from vlp.config import UserError, write_text


def main(argv: list[str]) -> None:
    """Write the questions of a suite's tasks of kind vqa to out, a .jsonl file."""
    config = load_suite([*argv, "model=answers:none"], "python -m eval questions")
    files = [arg for arg in argv if Path(arg).is_file()]
    if not config.out.endswith(".jsonl"):
        raise UserError(f"out={config.out}: give the file to write, out=FILE.jsonl")
    chosen = [name for name, task in config.tasks.items() if task.kind == "vqa"]
    config = replace(config, only=[n for n in config.only or chosen if n in chosen])
    if not config.only:
        raise UserError("only: no task of kind vqa among them; see python -m eval list")
    tasks, datasets = prepare(config, " + ".join(files) or "command line")
    lines = [
        json.dumps(row, ensure_ascii=False)
        for name, task in tasks.items()
        for row in rows_of(config, name, task, datasets[task.data])
    ]
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    write_text(config.out, "\n".join(lines) + "\n")
    print(f"{len(lines)} prompts for {len(tasks)} tasks: {config.out}")


def rows_of(
    config: EvalConfig, name: str, task: TaskConfig, dataset: Dataset
) -> Iterator[dict[str, object]]:
    """One row per question and way to show an image, as `model=answers:` will look it up."""
    questions = parse(task, select_items(name, task, dataset)).questions
    own = torch.tensor([q.item.sample for q in questions])
    other = other_images(own, config.seed).tolist()
    for shown in SHOWN:
        for question, stranger in zip(questions, other, strict=True):
            sample = stranger if shown == "shuffled" else question.item.sample
            yield {
                "task": name,
                "id": question.id,
                "images": shown,
                "image": None if shown == "none" else dataset.samples[sample].image,
                "prompt": prompt_of(task, question),
                "options": question.options,
            }
