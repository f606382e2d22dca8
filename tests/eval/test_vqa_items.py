"""Items of each published set, from rows with the columns of its files."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from eval.config import TaskConfig, VqaConfig
from eval.model import load_model
from eval.readers import Dataset, Sample
from eval.suite import run_suite
from eval.vqa_items import ID, NOT_AN_OPTION, Parsed, parse, select_items
from tests.eval.tiny import WORDS, embed_images, fails, suite_config, write_model, write_table


def dataset(rows: list[dict], image: str = "image") -> Dataset:
    """One sample per image, in the order of their first rows."""
    by_image: dict[str, list[dict]] = {}
    for row in rows:
        by_image.setdefault(str(row.get(image)), []).append(row)
    samples = [Sample(name, [], own) for name, own in by_image.items()]
    return Dataset(samples, "f", rows, images=SimpleNamespace(read=None))


def items(
    rows: list[dict], image: str = "image", vqa: dict | None = None, **keys: object
) -> Parsed:
    task = TaskConfig(kind="vqa", source="test", vqa=VqaConfig(**(vqa or {})), **keys)
    return parse(task, select_items("it", task, dataset(rows, image)))


def test_vqa_rad() -> None:
    common = {"image_organ": "CHEST", "phrase_type": "test_freeform", "question_type": "PRES"}
    rows = [
        {
            "qid": 1,
            "image_name": "a.jpg",
            "question": "Effusion?",
            "answer": "No",
            "answer_type": "CLOSED ",
            **common,
        },
        {
            "qid": 2,
            "image_name": "a.jpg",
            "question": "Where?",
            "answer": "left lobe",
            "answer_type": "OPEN",
            **common,
        },
        {
            "qid": 3,
            "image_name": "b.jpg",
            "question": "MRI or CT?",
            "answer": "MRI",
            "answer_type": "CLOSED",
            **common,
        },
        {
            "qid": "4",
            "image_name": "b.jpg",
            "question": "How many?",
            "answer": 5,
            "answer_type": "OPEN",
            **common,
        },
    ]
    questions, left_out, strange = items(
        rows, "image_name", {"id": "qid"}, fixed_options=["yes", "no"]
    )
    assert [(q.id, q.closed, q.gold, q.answer) for q in questions] == [
        ("1", True, "no", 1),
        ("2", False, "left lobe", -1),
        ("4", False, "5", -1),
    ]
    assert (left_out, strange) == (Counter({NOT_AN_OPTION: 1}), Counter({"MRI": 1}))


def test_slake_by_language() -> None:
    rows = [
        {
            "img_name": "xmlab1/source.jpg",
            "question": "Is the lung healthy?",
            "answer": "No",
            "q_lang": "en",
            "answer_type": "CLOSED",
            "content_type": "Abnormality",
            "qid": 0,
        },
        {
            "img_name": "xmlab1/source.jpg",
            "question": "肺部健康吗?",
            "answer": "不",
            "q_lang": "zh",
            "answer_type": "CLOSED",
            "content_type": "Abnormality",
            "qid": 1,
        },
        {
            "img_name": "xmlab1/source.jpg",
            "question": "Which organ?",
            "answer": "Lung",
            "q_lang": "en",
            "answer_type": "OPEN",
            "content_type": "Organ",
            "qid": 2,
        },
    ]
    questions, _, _ = items(
        rows,
        "img_name",
        {"id": "qid"},
        where={"q_lang": ["en"]},
        question_type="content_type",
        fixed_options=["yes", "no"],
    )
    assert [(q.id, q.kind, q.closed) for q in questions] == [
        ("0", "Abnormality", True),
        ("2", "Organ", False),
    ]


def test_path_vqa_has_no_answer_type() -> None:
    rows = [
        {"image": "0", "question": "is it?", "answer": "yes"},
        {"image": "0", "question": "what is it?", "answer": "normal"},
    ]
    questions, _, _ = items(rows, fixed_options=["yes", "no"])
    assert [(q.id, q.closed) for q in questions] == [("0#1", True), ("0#2", False)]


@pytest.mark.parametrize(("answer", "kind"), [("B", "letter"), (" Liver ", "text"), (1, "index")])
def test_pmc_vqa(answer: object, kind: str) -> None:
    row = {
        "Figure_path": "PMC1_F1.jpg",
        "Question": "Which organ?",
        "Choice A": " A:Lung ",
        "Choice B": " B:Liver ",
        "Choice C": " C:Vitamin C: none",
        "Choice D": "D:Brain",
        "Answer": answer,
    }
    columns = [f"Choice {letter}" for letter in "ABCD"]
    questions, _, _ = items(
        [row],
        "Figure_path",
        {"option_columns": columns, "answer_is": kind},
        question="Question",
        answer="Answer",
    )
    assert questions[0].options == ["Lung", "Liver", "Vitamin C: none", "Brain"]
    assert (questions[0].answer, questions[0].gold) == (1, "Liver")


def test_omni_med_vqa_may_have_fewer_options() -> None:
    common = {"image_path": "Images/a.png", "question": "What is it?", "question_type": "Disease"}
    rows = [
        {
            "question_id": "x_1",
            "option_A": "a",
            "option_B": "b",
            "option_C": "c",
            "option_D": "d",
            "gt_answer": "d",
            "modality_type": "CT",
            **common,
        },
        {
            "question_id": "x_2",
            "option_A": "No",
            "option_B": "Yes",
            "gt_answer": "No",
            "modality": "CT",
            **common,
        },
        # An empty cell before the right one must not move the letters.
        {
            "question_id": "x_3",
            "option_A": "",
            "option_B": "Yes",
            "option_C": "No",
            "gt_answer": "No",
            **common,
        },
    ]
    columns = [f"option_{letter}" for letter in "ABCD"]
    questions, _, _ = items(rows, "image_path", {"option_columns": columns}, answer="gt_answer")
    assert [(q.id, q.options, q.answer) for q in questions] == [
        ("x_1", ["a", "b", "c", "d"], 3),
        ("x_2", ["No", "Yes"], 0),
        ("x_3", ["Yes", "No"], 1),
    ]
    rows[2]["gt_answer"] = "C"
    letter = {"option_columns": columns, "answer_is": "letter"}
    questions, left_out, _ = items(rows, "image_path", letter, answer="gt_answer")
    assert [(q.id, q.gold) for q in questions] == [("x_1", "d"), ("x_3", "No")]
    assert left_out == Counter({NOT_AN_OPTION: 1})


def micro_bench() -> dict:
    def entry(kind: str, options: list[str], answer: int) -> dict:
        asked = {"question": f"Which {kind}?", "options": options, "answer": options[answer]}
        return {**asked, "answer_idx": answer, "id": "u", "name": kind}

    modality = ["An electron micrograph", "A light micrograph"]
    return {
        "image_id": "7",
        "image": "7",
        "dataset": "wu_et_al_2023",
        "questions": {
            "modality": entry("modality", ["electron", "light", "none of the above"], 1),
            "stain": None,
            "classification": entry("class", ["virus", "cell", "none of the above"], 0),
        },
        "captions": {
            "modality": entry("modality", modality, 1),
            "modality_1": entry("modality", [f"{m}." for m in modality], 1),
            "stain": None,
        },
    }


def test_micro_bench_captions_in_all_phrasings() -> None:
    nested = {"nested": "captions", "id": "image_id", "groups": ["dataset"]}
    questions, _, _ = items([micro_bench()], vqa=nested, statement="{option}")
    assert [(q.id, q.kind, q.answer) for q in questions] == [
        ("7:modality", "modality", 1),
        ("7:modality_1", "modality_1", 1),
    ]
    assert questions[1].statements == ["An electron micrograph.", "A light micrograph."]
    assert questions[0].item.row["dataset"] == "wu_et_al_2023"


def test_micro_bench_questions_by_type() -> None:
    nested = {"nested": "questions", "id": "image_id", "answer_is": "index"}
    questions, _, _ = items(
        [micro_bench()],
        vqa=nested,
        answer="answer_idx",
        where={"question_type": ["classification"]},
    )
    assert [(q.id, q.gold) for q in questions] == [("7:classification", "virus")]
    assert questions[0].statements[1] == "Which class? cell"


def test_micro_bench_scores_are_those_of_its_own_loop(tmp_path: Path) -> None:
    """clip_inference.py: per image and caption the option of greatest softmax, all pooled."""
    model = load_model(str(write_model(tmp_path / "model")), "cpu")
    captions = [f"{a} {b}" for a in WORDS[:4] for b in WORDS[4:]]
    generator = np.random.default_rng(0)
    rows = []
    for i in range(12):
        entries = {}
        for kind in ("modality", "modality_1", "stain"):
            options = generator.choice(captions, 3 + i % 2, replace=False).tolist()
            answer = options[int(generator.integers(len(options)))]
            entries[kind] = {"question": "which?", "options": options, "answer": answer}
        entries["domain"] = None
        rows.append({"image_id": str(i), "dataset": "ab"[i % 2], "captions": entries})
    write_table(tmp_path, rows)
    task = {
        "kind": "vqa",
        "source": "test",
        "data": {"reader": "table", "path": "index.jsonl", "split": ""},
        "statement": "{option}",
        "vqa": {"nested": "captions", "id": "image_id", "groups": ["dataset"]},
    }
    config = suite_config(tmp_path, tmp_path / "model", {"it": task})
    details = run_suite(config, "suite.yaml", "c").tasks["it"].record

    right: dict[str, list[bool]] = {"a": [], "b": []}
    for i, row in enumerate(rows):
        image = embed_images(model, [Image.open(tmp_path / f"{i:03}.png")])
        for entry in filter(None, row["captions"].values()):
            logits = 100 * image @ model.embed_texts(entry["options"]).T
            chosen = int(logits.softmax(dim=-1).argmax())
            right[row["dataset"]].append(chosen == entry["options"].index(entry["answer"]))
    pooled = [*right["a"], *right["b"]]
    assert 0 < sum(pooled) < len(pooled)
    assert details["scores"]["accuracy"]["value"] == pytest.approx(np.mean(pooled))
    by_group = details["details"]["by_group"]["dataset"]
    assert {name: row["accuracy"] for name, row in by_group.items()} == pytest.approx(
        {name: np.mean(values) for name, values in right.items()}
    )


def test_bad_rows_are_errors_that_name_the_key() -> None:
    row = {"image": "0", "question": "?", "answer": "yes"}
    with fails("it.vqa.nested: column 'captions' of '0' is not a mapping"):
        items([row], vqa={"nested": "captions"})
    with fails("it.vqa.id: 2 items are called 'q'; name another column, or none: vqa.id=''"):
        items([{**row, "question_id": "q"}] * 2, fixed_options=["yes", "no"])
    with fails("it.vqa.groups: no column 'dataset'; there are answer, image, question"):
        items([row], vqa={"groups": ["dataset"]})
    with fails("it.where: leaves no row of split 'test'"):
        items([row], where={"answer": ["no"]})


def test_an_odd_answer_type_is_left_out() -> None:
    row = {"image": "0", "question": "?", "answer": "yes", "answer_type": "maybe"}
    questions, left_out, _ = items([row], fixed_options=["yes", "no"])
    assert not questions
    assert left_out == Counter({"answer type 'maybe' is neither closed nor open": 1})


def test_names_of_items_do_not_depend_on_where() -> None:
    rows = [{"image": "0", "question": q, "answer": "yes", "kind": q} for q in ("a", "b")]
    task = TaskConfig(kind="vqa", source="test", where={"kind": ["b"]})
    found = select_items("it", task, dataset(rows))
    assert [item.row[ID] for item in found] == ["0#2"]
