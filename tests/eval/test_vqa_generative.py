"""Answers of a generative model, a function's or a file's, beside language-only baselines."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval import vqa
from eval.__main__ import main as eval_main
from eval.answers import load_answers
from eval.suite import run_suite
from tests.eval.tiny import draw, fails, suite_config
from vlp.config import run_program

ASKED: list[tuple[bool, str]] = []
"""What the functions below were asked: whether there was an image, and the prompt."""

QUESTIONS = [
    ("Is it red?", "yes", "closed", "a"),
    ("Is it red?", "no", "closed", "b"),
    ("Is it normal?", "yes", "closed", "a"),
    ("Is it normal?", "no", "closed", "b"),
    ("Where is it?", "left lung", "open", "a"),
    ("What is it?", "a mass", "open", "b"),
]


def looks(images: list[Image.Image | None], prompts: list[str]) -> list[str]:
    """Knows colours, and nothing else."""
    answers = []
    for image, prompt in zip(images, prompts, strict=True):
        ASKED.append((image is not None, prompt))
        red = image is not None and image.getpixel((0, 0))[0] > 100
        if "Where" in prompt:
            answers.append("the left lung")
        elif "What" in prompt:
            answers.append("A mass.")
        else:
            answers.append("Yes, it is." if red else "No." if image else "I can't see an image")
    return answers


def degenerate(images: list[Image.Image | None], prompts: list[str]) -> list[str]:
    """Says what a substring match would take for a no."""
    return ["normal"] * len(prompts)


def too_few(images: list[Image.Image | None], prompts: list[str]) -> list[str]:
    """Loses an answer."""
    return ["yes"] * (len(prompts) - 1)


@pytest.fixture
def suite(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A function that scores a model given as `model=`."""
    for name, colour in (("a", (200, 0, 0)), ("b", (0, 0, 200))):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{name}.png")
    rows = [
        {"image": f"{image}.png", "question": q, "answer": a, "answer_type": kind, "question_id": i}
        for i, (q, a, kind, image) in enumerate(QUESTIONS)
    ]
    (tmp_path / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "kind": "vqa",
        "source": "test",
        "data": {"reader": "table", "path": "index.jsonl", "split": ""},
        "fixed_options": ["yes", "no"],
    }

    def run(model: str, **keys: object) -> dict:
        config = suite_config(tmp_path, tmp_path, {"it": {**task, **keys}})
        config = replace(config, model=model, overwrite=True)
        return run_suite(config, "suite.yaml", "command").tasks["it"].record

    return run


def test_a_function_answers(suite: Callable) -> None:
    ASKED.clear()
    record = suite("python:tests.eval.test_vqa_generative:looks")
    scores = {name: score["value"] for name, score in record["scores"].items()}
    # Closed: all four right by colour. Open: "a mass" as it is; "the left lung" has one word more.
    assert scores["closed_accuracy"] == 1.0
    assert scores["open_accuracy"] == 0.5
    assert scores["accuracy"] == pytest.approx(5 / 6)
    assert scores["open_token_f1"] == pytest.approx((2 * 2 / 5 + 1) / 2)
    assert scores["open_token_recall"] == 1.0
    details = record["details"]
    # With the images swapped every closed answer is wrong; without one none can be parsed.
    assert details["baselines"]["shuffled_images"] == pytest.approx(1 / 6)
    assert details["baselines"]["no_image"] == pytest.approx(1 / 6)
    # Two answers, equally frequent among the closed ones, and two open ones.
    assert details["baselines"]["majority"] == pytest.approx(2 / 6)
    assert (details["unparsed"], details["unanswered"]) == (0, 0)
    assert [seen for seen, _ in ASKED].count(False) == 6
    assert ASKED[0][1] == "Question: Is it red?\nAnswer yes or no."
    assert ASKED[2][1] == "Question: Where is it?\nAnswer in a few words."
    assert "chance of an open question is taken as 0" in record["notes"]
    assert record["scores"]["accuracy"]["chance"] == pytest.approx(4 * 0.5 / 6)


def test_a_model_that_says_normal_scores_nothing(suite: Callable) -> None:
    """Matched by substring it would have every "no" right."""
    record = suite("python:tests.eval.test_vqa_generative:degenerate")
    assert record["scores"]["accuracy"]["value"] == 0.0
    assert record["details"]["unparsed"] == 4
    wrong = next(example for example in record["examples"] if not example["right"])
    assert [answer["text"] for answer in wrong["answers"]][:1] == ["normal"]
    assert "4 closed answers name no option, or several; they count as wrong" in record["notes"]


def test_a_file_answers(suite: Callable, tmp_path: Path) -> None:
    rows = [{"id": i, "answer": answer} for i, (_, answer, _, _) in enumerate(QUESTIONS[:-1])]
    rows += [{"id": i, "answer": "yes", "images": "shuffled"} for i in range(6)]
    # The task's own answer comes before one for any task.
    rows += [{"id": 0, "answer": "cannot tell", "task": "it"}]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = suite(f"answers:{path}")
    assert record["scores"]["accuracy"]["value"] == pytest.approx(4 / 6)
    assert (record["details"]["unparsed"], record["details"]["unanswered"]) == (1, 1)
    assert record["details"]["baselines"]["shuffled_images"] == pytest.approx(2 / 6)
    assert "no_image" not in record["details"]["baselines"]
    with path.open("a") as file:
        file.write('{"id": 0, "answer": "no", "task": "it"}\n')
    with fails(f"{path}: row 13 answers item '0' a second time"):
        load_answers(f"answers:{path}")
    path.write_text('{"id": 0}\n')
    with fails(f"{path}: row 1 has no 'id' or no 'answer'"):
        load_answers(f"answers:{path}")
    path.write_text('{"id": "other", "answer": "yes"}\n')
    with fails("has no answer to any item of task it"):
        suite(f"answers:{path}")


def test_options_are_offered_by_letter(suite: Callable, tmp_path: Path) -> None:
    ASKED.clear()
    record = suite(
        "python:tests.eval.test_vqa_generative:looks", fixed_options=["yes", "no", "mass"]
    )
    assert ASKED[0][1].endswith("Question: Is it red?\nA) yes\nB) no\nC) mass")
    assert record["scores"]["closed_accuracy"]["value"] == 1.0


def test_questions_are_written_for_models_that_run_elsewhere(
    suite: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    expected = suite("python:tests.eval.test_vqa_generative:looks")
    path, answers = tmp_path / "ask" / "questions.jsonl", tmp_path / "answers.jsonl"
    keys = [f"out={path}", "only=[it]"]
    run_program(eval_main, ["questions", str(tmp_path / "suite.yaml"), *keys])
    assert "18 prompts for 1 tasks: " in capsys.readouterr().out
    rows = [json.loads(line) for line in path.open()]
    assert [row["images"] for row in rows] == ["own"] * 6 + ["shuffled"] * 6 + ["none"] * 6
    assert rows[0]["options"] == ["yes", "no"]
    shown = [
        None if row["image"] is None else Image.open(tmp_path / row["image"]).convert("RGB")
        for row in rows
    ]
    said = looks(shown, [row["prompt"] for row in rows])
    back = [
        {key: row[key] for key in ("task", "id", "images")} | {"answer": answer}
        for row, answer in zip(rows, said, strict=True)
    ]
    answers.write_text("".join(json.dumps(row) + "\n" for row in back))
    record = suite(f"answers:{answers}")
    assert record["scores"] == expected["scores"]
    assert record["details"] == expected["details"]


def test_bad_models(suite: Callable, tmp_path: Path) -> None:
    with fails("gave no list of 6 answers"):
        suite("python:tests.eval.test_vqa_generative:too_few")
    with fails("write python:MODULE:FUNCTION"):
        suite("python:tests.eval.nowhere:function")
    with fails("write python:MODULE:FUNCTION"):
        suite("python:tests.eval.test_vqa_generative:missing")
    with fails("answers are a .jsonl file"):
        load_answers("answers:file.csv")
    with fails(f"{tmp_path / 'none.jsonl'}: no such table"):
        load_answers(f"answers:{tmp_path / 'none.jsonl'}")


def test_other_kinds_of_tasks_need_embeddings(tmp_path: Path) -> None:
    draw(0).save(tmp_path / "0.png")
    row = {"image": "0.png", "caption": "a", "split": "test"}
    (tmp_path / "index.jsonl").write_text(json.dumps(row) + "\n")
    task = {
        "kind": "retrieval",
        "source": "test",
        "data": {"reader": "table", "path": "index.jsonl"},
    }
    model = "python:tests.eval.test_vqa_generative:looks"
    config = replace(suite_config(tmp_path, tmp_path, {"pairs": task}), model=model)
    with fails("answers questions and has no embeddings; choose tasks of kind vqa"):
        run_suite(config, "suite.yaml", "command")


def test_broken_images_are_counted_and_not_asked(suite: Callable, tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"no image")
    record = suite("python:tests.eval.test_vqa_generative:looks")
    assert record["excluded"] == {vqa.BROKEN: 3}
    assert record["n"] == 3
    assert record["broken_images"]["count"] == 1
