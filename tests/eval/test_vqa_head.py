"""Answer heads on disk: they score as on the day that they were trained, or say why not."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.config import EvalConfig
from eval.vqa_head import load_head
from eval.vqa_train import train_suite
from tests.eval.test_vqa_train import TASK, config, write_set
from tests.eval.tiny import fails, suite_config, write_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A set and a model, with two trainings on it, and their record."""
    root = tmp_path_factory.mktemp("head")
    write_set(root)
    return root, record_of(config(root, epochs=2, seeds=2))


def record_of(whole: EvalConfig, task: str = "it") -> dict:
    return train_suite(whole, "suite.yaml", "c").tasks[task].record


def given(root: Path, out: Path, folder: Path, model: str = "model", **keys: object) -> EvalConfig:
    """As on the command line: the head, and none of the settings that it was trained with."""
    train = {"head": str(folder), **keys}
    return suite_config(
        root, root / model, {"it": TASK}, vqa_train=train, seed=1, out=str(out / "out")
    )


def numbers(record: dict) -> dict:
    return {key: record[key] for key in ("n", "scores", "details", "notes", "excluded", "items")}


def test_a_saved_head_gives_the_same_numbers(
    trained: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, record = trained
    folder = root / "out" / "heads" / "it"
    assert sorted(file.name for file in folder.iterdir()) == [
        "1.no_image.safetensors",
        "1.safetensors",
        "2.no_image.safetensors",
        "2.safetensors",
        "head.json",
        "settings.yaml",
    ]
    monkeypatch.setattr("eval.vqa_learner.Learner.fit", None)  # nothing is trained
    again = record_of(given(root, tmp_path, folder))
    assert numbers(again) == numbers(record)
    assert again["data"]["labels_sha256"] == record["data"]["labels_sha256"], "can be compared"
    assert again["options"]["vqa_train"]["epochs"] == 2
    assert record["options"]["vqa_train"]["head"] == ""
    assert len(again["options"]["vqa_train"]["head"]) == 64


def test_the_training_data_is_not_needed(trained: tuple[Path, dict], tmp_path: Path) -> None:
    """Its images are known by their hashes, its answers by their frequencies."""
    root, record = trained
    for name in ("model", "index.jsonl", *(f"{i}.png" for i in range(30))):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        copy(root / name, tmp_path / name)
    rows = [json.loads(line) for line in (tmp_path / "index.jsonl").open()]
    kept = [row for row in rows if row["split"] == "test"]
    # One more question, on an image of the training split under a new name.
    kept.append({**kept[0], "image": "new.png"})
    shutil.copy(root / "0.png", tmp_path / "new.png")
    for row in rows:
        if row["split"] != "test":
            (tmp_path / row["image"]).unlink(missing_ok=True)
    (tmp_path / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    again = record_of(given(tmp_path, tmp_path, root / "out" / "heads" / "it"))
    assert again["n"] == record["n"] + 1
    assert again["details"]["shared_images"] == 1
    assert again["scores"]["accuracy_on_unseen_images"]["value"] == pytest.approx(
        record["scores"]["accuracy"]["value"]
    )


def test_tuned_towers_are_saved_where_they_changed(tmp_path: Path) -> None:
    write_set(tmp_path, images=12)
    record = record_of(config(tmp_path, towers="tuned", epochs=1))
    folder = tmp_path / "out" / "heads" / "it"
    seeing, blind = (load_file(folder / f"1{part}.safetensors") for part in ("", ".no_image"))
    assert "towers.visual.conv1.weight" in seeing
    assert "towers.visual.conv1.weight" not in blind, "never looked at an image"
    assert "towers.token_embedding.weight" in blind
    assert numbers(record_of(given(tmp_path, tmp_path / "again", folder))) == numbers(record)
    seeing["towers.nothing"] = torch.zeros(1)
    assert_refused(tmp_path, tmp_path / "b", folder, seeing, "other settings (1 unexpected: noth")


def test_other_splits_come_with_the_head(tmp_path: Path) -> None:
    write_set(tmp_path, images=60)
    official = record_of(config(tmp_path, epochs=1))
    record = record_of(config(tmp_path, split="image_disjoint", epochs=1))
    assert record["data"]["labels_sha256"] != official["data"]["labels_sha256"], "other questions"
    folder = tmp_path / "out" / "heads" / "it"
    again = record_of(given(tmp_path, tmp_path / "again", folder))
    assert numbers(again) == numbers(record)
    assert again["details"]["split"] == "image_disjoint"
    assert again["details"]["shared_images"] == 0


def test_another_task_is_named(trained: tuple[Path, dict], tmp_path: Path) -> None:
    root, _ = trained
    whole = given(root, tmp_path, root / "out" / "heads" / "it")
    whole.tasks["other"] = whole.tasks.pop("it")
    assert "the head was trained on it" in record_of(whole, "other")["notes"]


def test_another_model_or_other_settings_are_refused(
    trained: tuple[Path, dict], tmp_path: Path
) -> None:
    root, _ = trained
    folder = root / "out" / "heads" / "it"
    write_model(root / "other", seed=1)
    with fails(f"vqa_train.head={folder}: trained on other weights; give the model it sits on"):
        record_of(given(root, tmp_path, folder, model="other"))
    with fails(f"vqa_train.layers=2: the head in {folder} was trained with 1; leave the key out"):
        record_of(given(root, tmp_path, folder, layers=2))
    assert not (tmp_path / "out").exists()


def change_about(key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        about = json.loads((folder / "head.json").read_text())
        about[key] = value
        (folder / "head.json").write_text(json.dumps(about))

    return change


def without_head(folder: Path) -> None:
    (folder / "head.json").unlink()


def of_another_training(folder: Path) -> None:
    shutil.copy(folder / "2.safetensors", folder / "1.safetensors")


def without_weights(folder: Path) -> None:
    (folder / "2.no_image.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_head, "head.json: no such file; give a folder of `python -m eval vqa-train`"),
        (of_another_training, "its files are of different trainings; train again"),
        (without_weights, "2.no_image.safetensors: No such file or directory; train again"),
        (change_about("format", "x"), "head.json: not a head of `python -m eval vqa-train`"),
        (change_about("version", 2), "head.json: of another version, this program reads 1"),
        (change_about("answers", ["yes"]), "head.json: fewer than two answers"),
        (change_about("answers", ["yes", 1]), "head.json: 'answers' holds something else than str"),
        (change_about("seeds", ["../x"]), "head.json: 'seeds' holds something else than int"),
        (change_about("frequent", [{}]), "head.json: 'frequent' holds something else"),
        (change_about("model", []), "head.json: 'model' is not a dict"),
        (change_about("more", 1), "head.json: 'more' is no key of a head"),
    ],
)
def test_damaged_heads_are_told(
    trained: tuple[Path, dict], tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "head"
    shutil.copytree(trained[0] / "out" / "heads" / "it", folder)
    damage(folder)
    with fails(message):
        load_head(folder)


def test_weights_of_other_settings_are_told(trained: tuple[Path, dict], tmp_path: Path) -> None:
    """Their hashes may be right: whoever changes the files can change those, too."""
    root, _ = trained
    folder = tmp_path / "head"
    shutil.copytree(root / "out" / "heads" / "it", folder)
    tensors = load_file(folder / "1.safetensors")
    tensors["head.answers.4.bias"] = torch.zeros(7)
    message = "1.safetensors: weights of other settings (1 of another shape: answers.4.bias (7,)"
    assert_refused(root, tmp_path / "a", folder, tensors, message)
    message = "1.safetensors: not the weights of such a head; train again"
    assert_refused(root, tmp_path / "b", folder, {"x": torch.zeros(1)}, message)
    tensors = load_file(root / "out" / "heads" / "it" / "1.safetensors")
    # Frozen towers are the model's own: no head may change them.
    tensors["towers.visual.conv1.weight"] = torch.zeros(64, 3, 8, 8)
    assert_refused(root, tmp_path / "c", folder, tensors, message)


def assert_refused(root: Path, out: Path, folder: Path, tensors: dict, message: str) -> None:
    save_file(tensors, folder / "1.safetensors")
    about = json.loads((folder / "head.json").read_text())
    about["files"]["1.safetensors"] = hashlib.sha256(
        (folder / "1.safetensors").read_bytes()
    ).hexdigest()
    (folder / "head.json").write_text(json.dumps(about))
    with fails(message):
        record_of(given(root, out, folder))


def test_an_unfinished_head_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before the end: the old head is gone, the new one isn't there yet."""
    write_set(tmp_path, images=12)
    record_of(config(tmp_path, epochs=1))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eval.vqa_train.save_head", stop)
    with pytest.raises(KeyboardInterrupt):
        record_of(config(tmp_path, epochs=2))
    with fails("head.json: no such file"):
        load_head(tmp_path / "out" / "heads" / "it")
