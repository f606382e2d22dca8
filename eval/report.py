"""report.html: one self-contained page with scores, plots and examples to look at."""

import base64
import functools
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from eval import figures
from eval.console import interval, percent, remarks, shown
from eval.results import Record
from eval.suite import Run, TaskRun
from vlp.config import write_text
from vlp.curves import Panel, draw, read_metrics, series_of
from vlp.data.image import open_rgb

THUMBNAIL = 224  # pixels of the longer side
LABELS = {
    "accuracy": "accuracy",
    "mean_per_class_recall": "mean per-class recall",
    "image_to_text": "image → caption",
    "text_to_image": "caption → image",
}
PANELS = (
    Panel("loss", ("train/loss", "val/loss")),
    Panel(
        "recall@1 on the validation split",
        ("val/image_to_text_recall@1", "val/text_to_image_recall@1"),
    ),
    Panel("scale (inverse temperature)", ("train/scale",)),
    Panel("learning rate", ("train/learning_rate",)),
)


def write_report(run: Run) -> Path:
    """Write report.html beside the tasks' files; returns its path."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # captions and file names come from strangers
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "label": label, "plot": figures.interval}
    environment.globals |= {"shown": shown, "interval": interval}
    size = run.model.preprocess["size"]
    page = environment.get_template("report.html.j2").render(
        run=run,
        record=next(iter(run.tasks.values())).record,
        size=size if isinstance(size, int) else " × ".join(map(str, size)),
        panels=training_curves(run.model.folder),
        tasks=[_section(name, done) for name, done in run.tasks.items()],
    )
    path = run.out / "report.html"
    write_text(path, page)
    return path


def label(key: str) -> str:
    """A score's name for people: 'image_to_text_recall@5' -> 'image → caption, recall@5'."""
    direction, found, k = key.rpartition("/")[2].partition("_recall@")
    name = LABELS.get(direction, direction.replace("_", " "))
    return f"{name}, recall@{k}" if found else name


def training_curves(folder: Path | None) -> list[dict[str, Any]]:
    """Panels from metrics.jsonl of the run that the model's folder lies in; [] without one."""
    path = folder.resolve().parent / "metrics.jsonl" if folder is not None else None
    if path is None or not path.is_file():
        return []
    rows = read_metrics(path)
    panels = []
    for panel in PANELS:
        if series := series_of(rows, panel):
            names = [label(key) for key in series]
            panels.append({"title": panel.title, "names": names, "svg": draw(series)})
    return panels


def _section(name: str, done: TaskRun) -> dict[str, Any]:
    """What the template shows of a task."""
    record = done.record
    groups: dict[str, list[Record]] = {}
    for example in record["examples"]:
        groups.setdefault(example["group"], []).append(example)
    show = functools.cache(lambda index: _thumbnail(done, index))
    return {
        "name": name,
        "task": done.task,
        "result": record,
        "details": record["details"],
        "remarks": remarks(record),
        "groups": groups,
        "thumbnail": show,
        "shares": _row_shares(record["details"].get("confusion", [])),
        "types": {
            kind: (row, {"value": row["accuracy"], **row})
            for kind, row in record["details"].get("by_question_type", {}).items()
        },
    }


def _thumbnail(done: TaskRun, index: int | None) -> str:
    """A data: URI of a small JPEG; '' for a query without image or a task that shows none."""
    if index is None or not done.task.show_images:
        return ""
    image = open_rgb(done.dataset.images.read(index))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _row_shares(confusion: list[list[int]]) -> list[list[float]]:
    """Each cell's share of its row, by which cells are shaded."""
    return [[cell / max(sum(row), 1) for cell in row] for row in confusion]
