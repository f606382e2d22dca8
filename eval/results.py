"""One file per model and task: TASK.json holds the scores and all that is needed to judge and to
repeat them, TASK.items.parquet what the model made of each item.

The JSON is written last, so a task without it isn't finished. A finished task is not scored again
as long as nothing has changed that decides its numbers: so a suite goes on after a kill.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.config import EvalConfig, TaskConfig
from eval.metrics import BASIC
from vlp.config import UserError, to_dict, write_text

if TYPE_CHECKING:  # these import torch, which takes seconds; tables of results need none
    from eval.embed import Embedder, ImageFeatures
    from eval.readers import Dataset
    from eval.tasks import Result

FORMAT, VERSION = "biovlp-eval-task", 1
"""The version grows when keys or the meaning of a score change; what was scored under another one
is scored again."""
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "transformers", "pillow", "numpy")
LISTED_IMAGES = 1000
"""Broken images that are listed by name; all of them are counted."""
MAX_BYTES = 1 << 28
"""Of a results file that is read: it may come from anywhere."""
NEEDED = ("task", "kind", "model", "data", "config", "options", "n", "scores", "headline")
INDIFFERENT = (
    *("model", "name", "tasks", "only", "data_root", "out", "cache", "overwrite", "missing"),
    *("device", "batch_size", "workers", "probe", "vqa_train", "wandb"),
)
"""Keys of EvalConfig that decide no number, or that stand elsewhere in the record."""
NOT_ASKED = ("source", "notes", "origin", "expect", "show_images", "calibration")
"""Keys of TaskConfig that decide no score."""

Record = dict[str, Any]


def run_header(config: EvalConfig, suite: str, command: str, embedder: "Embedder") -> Record:
    """What the records of one run have in common."""
    model = embedder.model
    return {
        "format": FORMAT,
        "version": VERSION,
        "suite": config.name,
        "suite_file": suite,
        "command": command,
        "model": {
            "name": model.name,
            "sha256": model.sha256,
            "preprocess": model.preprocess,
            "tokenizer_sha256": embedder.tokenizer_sha256(),
            "notes": model.notes,
        },
        "options": {key: v for key, v in to_dict(config).items() if key not in INDIFFERENT},
        "versions": versions(),
    }


def task_header(
    run: Record, name: str, task: TaskConfig, dataset: "Dataset", labels: str
) -> Record:
    """What is known of a task before it is scored; all that decides its numbers is in here.

    Args:
        run: of `run_header`.
        labels: `labels_sha256` of the dataset.
    """
    header = {
        **run,
        "task": name,
        "kind": task.kind,
        "source": task.source,
        "config": to_dict(task),
        "data": {
            "path": task.data.path,
            "split": task.data.split,
            "images": len(dataset.samples),
            "sha256": dataset.fingerprint,
            "labels_sha256": labels,
        },
    }
    return dict(_plain(header))


def versions() -> dict[str, str]:
    """Python, the packages that decide numbers, and the processor."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found, "machine": platform.machine()}


def labels_sha256(dataset: "Dataset") -> str:
    """SHA-256 over names, captions and rows of the split: what decides the right answers."""
    digest = hashlib.sha256()
    for sample in dataset.samples:
        line = json.dumps([sample.image, sample.captions, sample.rows], default=str, sort_keys=True)
        digest.update(line.encode())
    return digest.hexdigest()


def decisive(record: Record) -> Record:
    """What decides the numbers of a record: where it is equal, they are."""
    model, data = record["model"], record["data"]
    return {
        **{key: record[key] for key in ("format", "version", "task", "config", "options")},
        "model": {key: model[key] for key in ("sha256", "preprocess", "tokenizer_sha256")},
        "data": {key: data[key] for key in ("sha256", "labels_sha256")},
    }


def protocol(record: Record) -> Record:
    """The keys of a task that decide what is asked of a model; where files lie doesn't."""
    config = {key: value for key, value in record["config"].items() if key not in NOT_ASKED}
    paths = ("path", "labels", "image_root")
    data = {key: value for key, value in config["data"].items() if key not in paths}
    return {**config, "data": data}


def finished(out: Path, header: Record) -> Record | None:
    """The record of a task that was scored in just this way before; None if it has to be scored.

    A file that isn't ours, or is damaged, is no reason to stop: it is written anew.
    """
    try:
        record = read_record(out / f"{header['task']}.json")
        if decisive(record) != decisive(header):
            return None
        read_items(out, record)
    except (UserError, KeyError):
        return None
    return record


def write_task(
    out: Path, header: Record, result: "Result", dataset: "Dataset", images: "ImageFeatures"
) -> Record:
    """Write a task's two files, each at once or not at all, the JSON last.

    Args:
        header: of `task_header`.
        images: the embeddings behind the result.

    Returns:
        What the JSON says.
    """
    name = header["task"]
    body = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "n": result.n,
        "scores": result.score_rows(),
        "headline": result.headline,
        "interval": {
            "level": 0.95,
            "method": f"percentile bootstrap; basic for {', '.join(BASIC)}",
            "cluster": header["config"]["cluster"],
            "clusters": result.clusters,
        },
        "excluded": result.excluded,
        "broken_images": {
            "count": len(images.broken),
            "first": [
                {"image": dataset.samples[i].image, "reason": reason}
                for i, reason in sorted(images.broken.items())[:LISTED_IMAGES]
            ],
        },
        "notes": [*header["config"]["notes"], *dataset.notes, *result.notes],
        "details": result.details,
        "examples": [asdict(example) for example in result.examples],
        "items": _write_items(out / f"{name}.items.parquet", result.items),
    }
    data = {**header["data"], "images_sha256": images.sha256}
    record: Record = _plain({**header, "data": data, **body})
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(out / f"{name}.json", text + "\n")
    return record


def read_folder(folder: Path) -> dict[str, Record]:
    """The records of a results folder by task, in the order of their names.

    Raises:
        UserError: no such folder, no results in it, or one that is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one that `python -m eval` wrote")
    paths = [path for path in sorted(folder.glob("*.json")) if _is_ours(path)]
    records = {path.stem: read_record(path) for path in paths}
    if not records:
        raise UserError(f"{folder}: no TASK.json in it; give a folder that `python -m eval` wrote")
    return records


def read_record(path: Path) -> Record:
    """The results of one task.

    Raises:
        UserError: missing, too large, not ours, or of another version.
    """
    record = _read_json(path)
    if record.get("format") != FORMAT:
        raise UserError(f"{path}: not a result of `python -m eval`")
    if record.get("version") != VERSION:
        raise UserError(
            f"{path}: of version {record.get('version')}, this program reads {VERSION}; score again"
        )
    if missing := [key for key in NEEDED if key not in record]:
        raise UserError(f"{path}: no '{missing[0]}' in it; score again")
    if record["task"] != path.stem:
        raise UserError(f"{path}: holds the task '{record['task']}'; give the file its old name")
    return record


def read_items(folder: Path, record: Record) -> pa.Table | None:
    """One row per item of a task; None for a task whose items aren't kept.

    Raises:
        UserError: missing, or not the file that the record was written with.
    """
    if record["items"] is None:
        return None
    path = folder / f"{record['task']}.items.parquet"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; score again") from None
    if hashlib.sha256(content).hexdigest() != record["items"]["sha256"]:
        raise UserError(f"{path}: not of the same run as {record['task']}.json; score again")
    try:
        return pq.read_table(pa.BufferReader(content))
    except pa.ArrowException as error:
        raise UserError(f"{path}: not readable: {error}; score again") from None


def _is_ours(path: Path) -> bool:
    """Whether a JSON file says that it holds results: other programs' files may lie beside them."""
    return _read_json(path).get("format") == FORMAT


def _read_json(path: Path) -> Record:
    """A JSON file's object; {} for other content."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MiB; not a result")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as a result: {error}") from None
    return content if isinstance(content, dict) else {}


def _write_items(path: Path, items: Sequence[Mapping[str, Any]]) -> Record | None:
    """Write a task's items; returns what its JSON says of them."""
    if not items:
        path.unlink(missing_ok=True)
        return None
    names = dict.fromkeys(name for item in items for name in item)
    table = pa.table({name: [_plain(item.get(name)) for item in items] for name in names})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    digest = hashlib.sha256(content).hexdigest()
    return {"rows": len(items), "columns": table.column_names, "sha256": digest}


def _plain(value: Any) -> Any:
    """A value as JSON has it: numbers of NumPy become Python's, and what isn't finite null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
