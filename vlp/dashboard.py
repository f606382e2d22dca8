"""What to watch of a run, in order: as a page of curves, or as a workspace on Weights & Biases.

    python -m vlp.dashboard run=runs/demo
    python -m vlp.dashboard project=biovlp entity=TEAM

The first writes runs/demo/dashboard.html from the run's metrics.jsonl, without a network. The
second needs `pip install wandb-workspaces` and `wandb login`; it saves a view with the same panels
for all runs of the project, and prints its address.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vlp.config import UserError, load_config, need, run_program, write_text
from vlp.curves import Panel, draw, read_metrics, series_of

SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Learning": (
        Panel("loss", ("train/loss",)),
        Panel("scale (inverse temperature)", ("train/scale",)),
        Panel("gradient norm", ("train/gradient_norm*",)),
        Panel("learning rate", ("train/learning_rate",)),
    ),
    "Validation": (
        Panel("recall, caption → image", ("val/text_to_image_recall*",)),
        Panel("recall, image → caption", ("val/image_to_text_recall*",)),
        Panel("scores without training", ("zero_shot/*",)),
    ),
    "Speed": (
        Panel("samples a second", ("perf/samples_per_second",)),
        Panel("tokens a second", ("perf/tokens_per_second",)),
        Panel("share of time waiting for data", ("perf/data_wait",)),
        Panel("model FLOPs utilisation", ("perf/mfu",)),
        Panel("padding saved, as a share", ("perf/padding_saved",)),
        Panel("memory, GB", ("perf/memory_gb",)),
        Panel("checkpoints, s", ("perf/checkpoint_*",)),
    ),
    "Data": (
        Panel("epoch", ("epoch",)),
        Panel("broken samples", ("data/broken",)),
    ),
}
HISTOGRAMS = ("data/caption_tokens",)
TABLES = ("val/retrieved",)


@dataclass(frozen=True, kw_only=True)
class DashboardConfig:
    """Curves of a run, or a workspace for a project."""

    run: str = ""
    """Folder of a run: its curves are written to dashboard.html in it."""
    project: str = ""
    """Project on Weights & Biases that gets a workspace."""
    entity: str = ""
    """User or team that the project belongs to."""
    name: str = "BioVLP training"
    """Name of the workspace."""

    def __post_init__(self) -> None:
        if bool(self.run) == bool(self.project):
            raise ValueError("set run=FOLDER for a page, or project=NAME for a workspace")
        if self.project and not self.entity:
            raise ValueError("entity: set the user or team that the project belongs to")


def write_page(run: Path) -> Path:
    """dashboard.html from a run's metrics.jsonl; returns its path.

    Raises:
        UserError: no such run, or nothing in it yet.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the folder of a run, runs/NAME")
    rows = read_metrics(path)
    if not rows:
        raise UserError(f"{path}: holds no metrics yet")
    sections = []
    for title, panels in SECTIONS.items():
        drawn = [(panel.title, series_of(rows, panel)) for panel in panels]
        shown = [
            {"title": name, "names": list(series), "last": _last(series), "svg": draw(series)}
            for name, series in drawn
            if series
        ]
        if shown:
            sections.append({"title": title, "panels": shown})
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("dashboard.html.j2").render(
        name=run.resolve().name, step=rows[-1]["step"], sections=sections
    )
    write_text(run / "dashboard.html", page)
    return run / "dashboard.html"


def _last(series: dict[str, Any]) -> list[str]:
    """The last value of each line."""
    return [f"{points[-1][1]:.4g}" for points in series.values()]


def workspace(config: DashboardConfig) -> Any:
    """The workspace with the panels of SECTIONS, histograms and tables; not saved yet.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    need("wandb_workspaces", "project: a workspace")
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    panels: dict[str, list[Any]] = {
        title: [_line_plot(reports, panel) for panel in panels]
        for title, panels in SECTIONS.items()
    }
    # Histograms over the step come out as a map of shades.
    panels["Data"] += [reports.LinePlot(title=key, x="step", y=[key]) for key in HISTOGRAMS]
    panels["Validation"] += [reports.WeavePanelSummaryTable(table_name=key) for key in TABLES]
    sections = [
        workspaces.Section(name=title, is_open=True, panels=drawn)
        for title, drawn in panels.items()
    ]
    return workspaces.Workspace(
        name=config.name, entity=config.entity, project=config.project, sections=sections
    )


def _line_plot(reports: Any, panel: Panel) -> Any:
    """A panel over the step; a name that ends with * becomes a regular expression."""
    patterns = [key for key in panel.keys if key.endswith("*")]
    if patterns:
        expression = "|".join(f"^{key[:-1]}.*" for key in patterns)
        return reports.LinePlot(title=panel.title, x="step", metric_regex=expression)
    return reports.LinePlot(title=panel.title, x="step", y=list(panel.keys))


def main(argv: list[str]) -> None:
    """Write the page, or save the workspace."""
    config = load_config(DashboardConfig, argv, "python -m vlp.dashboard")
    if config.run:
        print(f"written: {write_page(Path(config.run))}")
    else:
        print(f"workspace: {workspace(config).save().url}")


if __name__ == "__main__":
    run_program(main)
