"""Answer heads: what they learn, and that images on both sides are seen."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.config import EvalConfig, TaskConfig
from eval.console import print_table
from eval.embed import Embedder
from eval.model import load_model
from eval.tasks import Item
from eval.vqa_config import VqaTrainConfig
from eval.vqa_fusion import FusionHead, Padded
from eval.vqa_head import Head, frequent_answers
from eval.vqa_items import Question
from eval.vqa_learner import Learner, _rate
from eval.vqa_split import open_sides, split_questions
from eval.vqa_train import train_suite, vocabulary
from tests.eval.tiny import fails, suite_config, write_model

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 220)}
TASK = {
    "kind": "vqa",
    "source": "test",
    "data": {"reader": "table", "path": "index.jsonl"},
    "cluster": "image",
    "fixed_options": ["yes", "no"],
}


def write_set(folder: Path, images: int = 30) -> None:
    """Plain images with a little noise; half are train, the rest val and test.

    Each has an open question, which only the image answers, and a closed one whose answer the
    question tells.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    rows = []
    for i in range(images):
        name = list(COLOURS)[i % 3]
        noise = generator.integers(-20, 21, (32, 32, 3))
        pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        split = ("train", "train", "val", "test")[(i // 3) % 4]
        common = {"image": f"{i}.png", "split": split}
        rows.append({**common, "question": "what colour?", "answer": name, "answer_type": "OPEN"})
        odd = i % 2 == 1
        question = "is lesion true?" if odd else "is stain true?"
        answer = "yes" if odd else "no"
        rows.append({**common, "question": question, "answer": answer, "answer_type": "CLOSED"})
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(folder: Path, **keys: object) -> EvalConfig:
    model = folder / "model"
    if not model.exists():
        write_model(model)
    small = {"layers": 1, "width": 32, "heads": 2, "epochs": 8, "batch_size": 8, "seeds": 1}
    train = {**small, "learning_rate": 1e-3, "dropout": 0.0, **keys}
    return suite_config(folder, model, {"it": TASK}, vqa_train=train, seed=1)


def test_a_head_learns_what_the_image_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path)
    record = train_suite(config(tmp_path), "suite.yaml", "c").tasks["it"].record
    scores = {name: score["value"] for name, score in record["scores"].items()}
    assert scores["closed_accuracy"] == 1.0
    assert scores["open_accuracy"] > 0.8
    details, baselines = record["details"], record["details"]["baselines"]
    # Without images the colour can only be guessed, the closed half can be known.
    assert 0.5 <= baselines["question_only"] < 0.8
    assert baselines["shuffled_images"] < scores["accuracy"]
    assert details["questions"] == {"train": 36, "val": 12, "test": 12}
    assert (details["answers"], details["answers_not_in_training"]) == (5, 0)
    assert details["shared_images"] == 0
    assert record["n"] == 12
    assert {name: score["n"] for name, score in record["scores"].items()} == {
        "accuracy": 12,
        "closed_accuracy": 6,
        "open_accuracy": 6,
    }
    print_table("it", [record], Path("report.html"))
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "accuracy" in line]
    assert [row[-2].strip() for row in rows] == ["12", "6", "6"]
    shown = record["examples"][0]
    assert shown["right"]
    assert 0 <= shown["image"] < 6
    # The second time the file is read: nothing has changed.
    again = train_suite(config(tmp_path), "suite.yaml", "c").tasks["it"].record
    assert again == record
    other = train_suite(config(tmp_path, epochs=1), "suite.yaml", "c").tasks["it"].record
    assert other["options"]["vqa_train"]["epochs"] == 1


def test_tuned_towers_are_a_copy(tmp_path: Path) -> None:
    write_set(tmp_path, images=12)
    task, datasets = opened(tmp_path)
    splits = split_questions("it", task, datasets, "official")
    model = load_model(str(tmp_path / "model"), "cpu")
    before = copy.deepcopy(model.network.state_dict())
    settings = config(tmp_path, towers="tuned", epochs=1)
    answers = vocabulary(splits.train, 1)
    learner = Learner(settings, Embedder(model, tmp_path), splits.pictures, answers, "it")
    trained = learner.fit(splits.train, splits.val, seed=0)
    after = trained.network.state_dict()
    for key in ("visual.conv1.weight", "transformer.resblocks.0.ln_1.weight"):
        assert not torch.equal(after[key], before[key])
    assert all(torch.equal(value, before[key]) for key, value in model.network.state_dict().items())
    # Without images the text tower learns, and nothing else does.
    blind = learner.fit(splits.train, splits.val, seed=0, blind=True).network.state_dict()
    assert torch.equal(blind["visual.conv1.weight"], before["visual.conv1.weight"])
    assert not torch.equal(blind["token_embedding.weight"], before["token_embedding.weight"])


def opened(folder: Path) -> tuple[TaskConfig, dict]:
    whole = config(folder)
    return whole.tasks["it"], open_sides("it", whole, whole.tasks["it"])


def test_shared_images_are_seen_under_any_name_and_format(tmp_path: Path) -> None:
    write_set(tmp_path)
    # Image 9 is the first of the test split, image 0 of train.
    Image.open(tmp_path / "0.png").save(tmp_path / "9.png", "BMP")
    task, datasets = opened(tmp_path)
    splits = split_questions("it", task, datasets, "official")
    assert [splits.pictures.places[n][1] for n in splits.shared(splits.seen())] == [0]
    assert not splits.notes
    record = train_suite(config(tmp_path, epochs=1), "suite.yaml", "c").tasks["it"].record
    assert record["notes"] == [
        "1 of 6 test images are training images, too; "
        "vqa_train.split=image_disjoint splits by image",
        "one training, of one seed",
    ]
    assert record["details"]["shared_images"] == 1
    assert "accuracy_on_unseen_images" in record["scores"]


def test_image_disjoint_split_shares_none(tmp_path: Path) -> None:
    write_set(tmp_path, images=60)
    for i in range(0, 60, 7):
        Image.open(tmp_path / "0.png").save(tmp_path / f"{i}.png")
    task, datasets = opened(tmp_path)
    splits = split_questions("it", task, datasets, "image_disjoint")
    hashes = [
        {splits.pictures.hash(q.item.sample) for q in side}
        for side in (splits.train, splits.val, splits.test)
    ]
    assert all(hashes)
    assert not hashes[0] & hashes[1] | hashes[0] & hashes[2] | hashes[1] & hashes[2]
    assert len(splits.train) + len(splits.val) + len(splits.test) == 120
    assert not splits.shared(splits.seen())
    assert (
        splits.notes[0] == "split anew by image: not comparable with scores on the official split"
    )


def test_closed_questions_need_no_options(tmp_path: Path) -> None:
    """A head chooses among the training answers, so "MRI or CT?" is a closed question as others."""
    write_set(tmp_path)
    path = tmp_path / "index.jsonl"
    rows = [json.loads(line) for line in path.open()]
    rows[1] |= {"question": "MRI or CT?", "answer": "MRI"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task, datasets = opened(tmp_path)
    splits = split_questions("it", task, datasets, "official")
    found = next(q for q in splits.train if q.gold == "MRI")
    assert found.closed
    assert not found.options
    assert len(splits.train) == 36


def test_what_is_tested_does_not_validate(tmp_path: Path) -> None:
    write_set(tmp_path)
    whole = config(tmp_path)
    task = replace(whole.tasks["it"], data=replace(whole.tasks["it"].data, val_split="test"))
    with fails("it.data.val_split: 'test' is tested; write another split, or ''"):
        open_sides("it", whole, task)
    none = replace(task, data=replace(task.data, val_split=""))
    assert list(open_sides("it", whole, none)) == ["train", "test"]


def test_a_set_without_val_holds_images_out(tmp_path: Path) -> None:
    write_set(tmp_path, images=60)
    task, datasets = opened(tmp_path)
    train = datasets["train"]
    del datasets["val"]
    splits = split_questions("it", task, datasets, "official")
    assert splits.train
    assert splits.val
    assert len(splits.train) + len(splits.val) == 2 * len(train.samples)
    assert not {q.item.sample for q in splits.train} & {q.item.sample for q in splits.val}


def question(gold: str, kind: str = "", closed: bool = False) -> Question:
    return Question(Item(0, {}), "i", "?", kind, gold, [], [], -1, closed)


def test_answers_are_those_of_training_the_most_frequent_first() -> None:
    train = [question(gold) for gold in ("Liver", "LUNG", "liver", "heart")]
    # Of two spellings that are equally frequent the first stays.
    assert vocabulary(train, 1) == ["Liver", "LUNG", "heart"]
    with fails("vqa_train.least=2: leaves 1 answers; lower it"):
        vocabulary(train, 2)


def test_majority_comes_from_training_by_type() -> None:
    train = [question("a", "x"), question("a", "x"), question("b", "x"), question("c", "y")]
    train += [question("no", "x", True)] * 2
    test = [question("b", "x"), question("b", "y"), question("b", "new"), question("b", "x", True)]
    found = {(one.question_type, one.closed): one.answer for one in frequent_answers(train)[0]}
    assert found == {("x", False): "a", ("y", False): "c", ("x", True): "no"}
    head = Head(
        settings=VqaTrainConfig(),
        task="it",
        model={},
        answers=["a", "b"],
        seeds=[0],
        questions={},
        images=[],
        frequent=frequent_answers(train)[0],
        most_frequent=frequent_answers(train)[1],
        notes=[],
    )
    assert head.most_frequent_answers(test) == ["a", "c", "a", "no"]


def test_padding_is_never_attended_to() -> None:
    torch.manual_seed(0)
    head = FusionHead(VqaTrainConfig(layers=2, width=32, heads=4), 12, 16, 5).eval()
    patches = Padded(torch.randn(2, 9, 12), torch.ones(2, 9, dtype=torch.bool))
    words = Padded(torch.randn(2, 4, 16), torch.ones(2, 4, dtype=torch.bool))
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 4:] = False
    longer = Padded(torch.cat([words.states, torch.randn(2, 3, 16)], dim=1), mask)
    # The same sums over rows of another length
    assert torch.allclose(head(patches, words), head(patches, longer), atol=1e-5)
    changed = patches.states.clone()
    changed[:, 3] = torch.randn(2, 12)
    assert not torch.allclose(head(Padded(changed, patches.mask), words), head(patches, words))


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, images=3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with fails("vqa-train runs in one process: start it without torchrun"):
        train_suite(config(tmp_path), "suite.yaml", "c")


def test_learning_rate_goes_up_and_down() -> None:
    assert _rate(0.05) == pytest.approx(0.5)
    assert _rate(0.1) == pytest.approx(1.0)
    assert _rate(0.55) == pytest.approx(0.5)
    assert _rate(1.0) == 0.0


def test_suites_without_questions_are_an_error(tmp_path: Path) -> None:
    write_set(tmp_path)
    one = config(tmp_path)
    with fails("no task of kind vqa"):
        train_suite(
            suite_config(
                tmp_path,
                tmp_path / "model",
                {"pairs": {"kind": "retrieval", "source": "t", "data": TASK["data"]}},
            ),
            "suite.yaml",
            "c",
        )
    assert one.vqa_train.layers == 1
