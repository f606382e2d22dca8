"""The same scores as the clip-benchmark package, on the same files, with the same model."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from eval.suite import run_suite
from tests.eval.tiny import draw, suite_config, write_model

pytest.importorskip("clip_benchmark")

CLASSES = ["heart", "left lung", "right lung", "liver", "kidney", "colon"]
TEMPLATES = ["a photo of {c}", "{c} presented in image", "{c}"]


def encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG"}.get(kind, kind.upper()), lossless=True)
    return buffer.getvalue()


def write_split(folder: Path, samples: list[dict], per_shard: int) -> None:
    """A split in CLIP_benchmark's layout, written by webdataset as its own exporter does."""
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(str(folder / "%d.tar"), maxcount=per_shard, verbose=0) as sink:
        for i, sample in enumerate(samples):
            sink.write({"__key__": f"s{i:07d}", **sample})
    (folder / "nshards.txt").write_text(f"{-(-len(samples) // per_shard)}\n")


def theirs(root: Path, model: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What `clip_benchmark eval` writes, in fp32."""
    from clip_benchmark import cli
    from clip_benchmark.metrics import zeroshot_classification

    # Its float(array of one number) is an error since NumPy 2.4; this is what it was before.
    monkeypatch.setattr(
        zeroshot_classification, "float", lambda x: np.asarray(x, float).item(), raising=False
    )
    out = root / f"{task}.json"
    command = f"""clip_benchmark eval --dataset wds/set --dataset_root {root} --split test
        --task {task} --model local-dir:{model} --pretrained none --no_amp --batch_size 8
        --num_workers 0 --recall_k 1 3 10 --output {out}"""
    monkeypatch.setattr(sys, "argv", command.split())
    cli.main()
    return json.loads(out.read_text())["metrics"]


def ours(root: Path, model: Path, **task: object) -> dict:
    data = {"reader": "clip_benchmark", "path": "."}
    config = suite_config(root, model, {"it": {"source": "test", "data": data, **task}})
    return run_suite(config, "suite.yaml", "test").tasks["it"].record


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def test_classification(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    kinds = ["png", "jpg", "webp"]
    samples = [
        {
            kinds[i % 3]: encode(draw(i, 40 + i % 13, 50 - i % 7), kinds[i % 3]),
            "cls": int(rng.choice(6, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1])),
        }
        for i in range(61)
    ]
    write_split(tmp_path / "test", samples, per_shard=25)
    (tmp_path / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")

    expected = theirs(tmp_path, model, "zeroshot_classification", monkeypatch)
    found = ours(tmp_path, model, kind="classification")
    answers = np.array(found["details"]["confusion"]).sum(axis=0)
    assert (answers > 0).sum() >= 4, "a model that gives one answer compares nothing"
    for key, name in (("accuracy", "acc1"), ("mean_per_class_recall", "mean_per_class_recall")):
        assert found["scores"][key]["value"] == pytest.approx(expected[name], abs=1e-6)


def test_multilabel(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    vectors = (rng.random((53, 6)) < [0.5, 0.3, 0.2, 0.1, 0.6, 0.3]).astype(np.int64)
    samples = [{"png": encode(draw(i), "png"), "npy": vectors[i]} for i in range(53)]
    write_split(tmp_path / "test", samples, per_shard=20)
    (tmp_path / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    (tmp_path / "dataset_type.txt").write_text("multilabel")

    expected = theirs(tmp_path, model, "zeroshot_classification", monkeypatch)
    found = ours(tmp_path, model, kind="multilabel", multilabel={"labels": "list", "negative": []})
    precision = found["scores"]["average_precision"]["value"]
    assert precision == pytest.approx(expected["mean_average_precision"], abs=1e-6)
    assert set(found["scores"]) == {"auroc", "average_precision"}
    positives = [row["positives"] for row in found["details"]["per_class"].values()]
    assert positives == vectors.sum(axis=0).tolist()


def test_retrieval(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "arrow",
        "nuclei",
        "lesion",
        "left",
        "right",
        "liver",
        "section",
        "stain",
        "cell",
        "lung",
        "axial",
        "scan",
    ]
    rng = np.random.default_rng(1)
    samples = [
        {
            "png": encode(draw(i), "png"),
            "txt": "\n".join(
                " ".join(rng.choice(words, size=rng.integers(2, 9)))
                for _ in range(int(rng.integers(1, 5)))
            ),
        }
        for i in range(47)
    ]
    write_split(tmp_path / "test", samples, per_shard=20)
    (tmp_path / "dataset_type.txt").write_text("retrieval")

    expected = theirs(tmp_path, model, "zeroshot_retrieval", monkeypatch)
    scores = ours(tmp_path, model, kind="retrieval", ks=[1, 3, 10])["scores"]
    for k in (1, 3, 10):
        # They name a direction by what is retrieved, we by query and answer.
        image, text = (
            expected[f"image_retrieval_recall@{k}"],
            expected[f"text_retrieval_recall@{k}"],
        )
        assert scores[f"text_to_image_recall@{k}"]["value"] == pytest.approx(image, abs=1e-6)
        assert scores[f"image_to_text_recall@{k}"]["value"] == pytest.approx(text, abs=1e-6)
    assert 0 < expected["text_retrieval_recall@10"] < 1
