"""report.html: one self-contained page with scores, plots and examples to look at."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval import figures
from eval.console import interval, percent, remarks, shown
from eval.pictures import placed, thumbnail
from eval.results import Record
from eval.suite import Run, TaskRun
from vlp.config import write_text
from vlp.curves import Panel, draw, read_metrics, series_of

LABELS = {
    "accuracy": "accuracy",
    "mean_per_class_recall": "mean per-class recall",
    "auroc": "AUROC",
    "f1": "F1",
    "macro_f1": "macro F1",
    "cnr": "contrast-to-noise ratio",
    "miou": "mean IoU",
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
    environment.globals |= {"shown": shown, "interval": interval, "placed": placed}
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
    show = functools.cache(lambda index: thumbnail(done, index))
    return {
        "name": name,
        "task": done.task,
        "result": record,
        "details": record["details"],
        "remarks": remarks(record),
        "groups": groups,
        "thumbnail": show,
        "shares": _row_shares(record["details"].get("confusion", [])),
        "tables": list(_breakdowns(record["details"])),
        "parts": _parts(record["details"]),
        "prompts": _prompts(record["details"]),
        "drawings": list(_drawings(record)),
    }


def _breakdowns(details: Record) -> Iterator[tuple[str, list[tuple[str, Record, Record]]]]:
    """Tables of parts of the items: (by what, (part, its row, its score))."""
    tables = {"question type": details.get("by_question_type", {}), **details.get("by_group", {})}
    for what, table in tables.items():
        if len(table) > 1:
            yield (
                what,
                [(part, row, {"value": row["accuracy"], **row}) for part, row in table.items()],
            )


def _parts(details: Record) -> Record | None:
    """Scores by class or by finding: their names, and a row for each; None for another task."""
    kind = next((key for key in ("per_class", "by_finding") if details.get(key)), None)
    if kind is None:
        return None
    first = next(iter(details[kind].values()))
    counts = [key for key in ("n", "positives") if key in first]
    scores = [key for key in first if key not in counts and not key.endswith("_interval")]
    by = "class" if kind == "per_class" else "finding"
    return {"by": by, "counts": counts, "scores": scores, "rows": details[kind]}


def _prompts(details: Record) -> dict[str, list[str]]:
    """Heading -> texts, for every prompt that a task used."""
    found = {}
    for key in ("prompts", "negative_prompts"):
        for name, texts in details.get(key, {}).items():
            heading = f"{name}, negative" if key == "negative_prompts" else name
            found[heading] = [texts] if isinstance(texts, str) else texts
    return found


def _drawings(record: Record) -> Iterator[Record]:
    """Charts of a task: a heading, what to read in them, and (caption, SVG) of each."""
    details = record["details"]
    if calibration := details.get("calibration"):
        yield {
            "title": "Calibration",
            "text": _calibration_text(calibration),
            "charts": [
                ("reliability", figures.reliability(calibration)),
                ("risk and coverage", figures.risk_coverage(calibration["risk_coverage"])),
            ],
        }
    if few_shot := details.get("few_shot"):
        metric = record["headline"][0]
        metric = metric.partition(f"_{few_shot[-1]['shots']}_shot")[0]
        yield {
            "title": "Few-shot probes",
            "text": ["Dashed: zero-shot. Intervals over draws of training images and items."],
            "charts": [(label(metric), figures.shots(record, metric))],
        }
    if found := details.get("robustness"):
        names = list(dict.fromkeys(entry["corruption"] for entry in found["conditions"]))
        yield {
            "title": "Corrupted images",
            "text": [f"Severity 0 is the clean image at {found['side']} px; dashed: chance."],
            "charts": [(name.replace("_", " "), figures.robustness(found, name)) for name in names],
        }


def _calibration_text(found: Record) -> list[str]:
    """The numbers that belong to the two charts."""
    ece, curve, fitted = found["ece"], found["risk_coverage"], found["temperature"]
    lines = [
        f"Expected calibration error {percent(ece['value'])} "
        f"({percent(ece['low'])} – {percent(ece['high'])}); a perfectly calibrated model with "
        f"these confidences has {percent(ece['perfect'])}.",
        f"Area under the risk-coverage curve {curve['area']:.3f} "
        f"({curve['low']:.3f} – {curve['high']:.3f}); confidences at random {curve['chance']:.3f}, "
        f"the best possible {curve['best']:.3f}.",
    ]
    if fitted is not None:
        lines.insert(
            1,
            f"A temperature fitted on {fitted['labelled']} labels of split {fitted['split']} "
            f"changes it to {percent(fitted['ece_after'])} "
            f"({percent(fitted['ece_after_low'])} – {percent(fitted['ece_after_high'])}; orange), "
            "and no answer.",
        )
    return lines


def _row_shares(confusion: list[list[int]]) -> list[list[float]]:
    """Each cell's share of its row, by which cells are shaded."""
    return [[cell / max(sum(row), 1) for cell in row] for row in confusion]
