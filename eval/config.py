"""What a suite says: tasks by name, each with its data, classes, prompts and the protocol's source.

Everything that can be checked without data or model is checked here, so that a misspelled
placeholder costs a second and not an hour of embedding.
"""

import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from omegaconf import MISSING

from eval.data_config import DataConfig as DataConfig
from eval.data_config import OriginConfig
from eval.label_config import CalibrationConfig, MultilabelConfig
from eval.options import LeakageConfig, ProbeConfig, RobustnessConfig, WandbConfig
from eval.vqa_config import GroundingConfig, VqaConfig, VqaTrainConfig
from vlp.config import UserError


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One score: the data, the question asked of the model, and the protocol's source."""

    kind: Literal["classification", "multilabel", "retrieval", "vqa", "grounding"] = MISSING
    """What to do with the data."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images and labels."""
    origin: OriginConfig = field(default_factory=OriginConfig)
    """Where the data can be had; what `list` and `fetch` read."""
    expect: dict[str, int] = field(default_factory=dict)
    """What `check` compares the data with, after `where`: images, rows, and rows with a value in a
    column: {images: 624, label=1: 390}."""
    source: str = MISSING
    """Where the protocol (split, classes, prompts, metric) comes from."""
    notes: list[str] = field(default_factory=list)
    """Known traps; they stand beside the score in the results and in the report."""
    where: dict[str, list[str]] = field(default_factory=dict)
    """Keep only rows whose column has one of the values: {answer_type: [CLOSED]}."""
    cluster: str = ""
    """Column whose equal values are resampled together in the bootstrap (patient, article,
    image). Empty: every item by itself."""
    show_images: bool = True
    """Whether the report may contain images; false for data that mustn't leave its folder."""
    label: str = "label"
    """classification: the column of class labels, or several, as in "{organ}, {finding}";
    multilabel: the column of a list or vector of findings."""
    classes: dict[str, list[str]] = field(default_factory=dict)
    """classification, multilabel: label in the data -> names of the class in prompts. May be empty
    for a CLIP_benchmark folder, which has its own classnames.txt."""
    templates: list[str] = field(default_factory=list)
    """classification, multilabel: prompts with `{c}` for the name of the class. May be empty for a
    CLIP_benchmark folder, which has its own file of templates."""
    ensemble: Literal["clip", "biovil"] = "clip"
    """classification, multilabel: how prompts become one embedding. `clip`: each is normalised,
    then their mean; `biovil`: the mean of the embeddings as they are is normalised."""
    pool: Literal["mean", "max"] = "mean"
    """classification: `mean` embeds a class as the mean of all its prompts, as CLIP and
    CLIP_benchmark do. `max` keeps an embedding per name, and the nearest name counts: for classes
    whose names are different things (a radiograph of a chest, of a hand)."""
    metric: Literal[
        "accuracy", "mean_per_class_recall", "macro_f1", "f1", "auroc", "average_precision"
    ] = "accuracy"
    """classification: the score that stands for the task in tables and plots. Mean per-class recall
    (balanced accuracy) where the classes are uneven. With more than two classes, AUROC and average
    precision are means over the classes, each against the rest."""
    positive: str = ""
    """classification: of two classes the one that is looked for. `f1` and `average_precision` are
    then its own."""
    multilabel: MultilabelConfig = field(default_factory=MultilabelConfig)
    """multilabel: labels and prompts of findings that may occur together."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    """classification, multilabel: bins, and the labels that a temperature is fitted on."""
    ks: list[int] = field(default_factory=lambda: [1, 5, 10])
    """retrieval: the cut-offs of recall@k."""
    shared_caption: str = ""
    """retrieval: the column whose equal values mark images that share their captions, such as the
    panels of a figure. They are right answers to each other's captions, and a caption that several
    of them repeat counts once. Empty: each image has captions of its own."""
    question: str = "question"
    """vqa: the column of questions."""
    answer: str = "answer"
    """vqa: the column of answers."""
    options: str = "options"
    """vqa: the column with each item's list of options."""
    statements: str = "statements"
    """vqa: the column with one sentence per option; where an item has none, `statement` is used."""
    question_type: str = "question_type"
    """vqa: the column by which scores are broken down; items without it are one type."""
    fixed_options: list[str] = field(default_factory=list)
    """vqa: options of every item, for tables without a column of options, such as ["yes", "no"]."""
    statement: str = "{question} {option}"
    """vqa: how an option becomes a text, where the item has no statements of its own."""
    vqa: VqaConfig = field(default_factory=VqaConfig)
    """vqa: columns of sets with a layout of their own; docs/vqa_items.md."""
    grounding: GroundingConfig = field(default_factory=GroundingConfig)
    """grounding: phrases and boxes."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Score a CLIP model on a suite of tasks: python -m eval SUITE.yaml model=... data_root=...

    A suite's file names its tasks with `include: [NAME, ...]`, each a file tasks/NAME.yaml beside
    it, or writes them out under `tasks`.
    """

    model: str = MISSING
    """A folder with open_clip_config.json, or any open_clip model: hf-hub:ORG/NAME,
    local-dir:FOLDER, NAME@PRETRAINED, or NAME alone for random weights."""
    name: str = MISSING
    """The suite's name; part of the default of `out`."""
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """The tasks by name; those that a suite includes stand here too, so that
    tasks.NAME.data.path=... changes one of them."""
    only: list[str] = field(default_factory=list)
    """Names of the tasks to run, such as only=[modality,vqa]; empty runs all."""
    data_root: str = "."
    """The folder to which the paths of the suite are relative."""
    missing: Literal["error", "skip"] = "error"
    """What to do about tasks whose data isn't there: stop before anything is scored, or name them
    and score the others."""
    out: str = ""
    """Where TASK.json, TASK.items.parquet and report.html go. Empty: eval/SUITE beside a model's
    folder, or eval-results/MODEL/SUITE for a model that has no folder."""
    cache: str = ""
    """Where embeddings are kept. Empty: the folder `cache` in `out`."""
    overwrite: bool = False
    """Score also what was scored in just this way before: same weights, data, task and options."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes cuda where there is one."""
    batch_size: int = 64
    """Images or texts per forward pass."""
    workers: int = 2
    """Processes that decode images; 0 decodes in the main process."""
    seed: int = 0
    """Seed of the bootstrap and of shuffled baselines."""
    replicates: int = 1000
    """Bootstrap resamples behind each interval."""
    robustness: RobustnessConfig = field(default_factory=RobustnessConfig)
    """Scores on corrupted images: robustness.corruptions=[all]"""
    leakage: LeakageConfig = field(default_factory=LeakageConfig)
    """Test images in the training data: leakage.train=[FOLDER]"""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """Settings of `python -m eval probe`."""
    vqa_train: VqaTrainConfig = field(default_factory=VqaTrainConfig)
    """Settings of `python -m eval vqa-train`."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """The same on Weights & Biases: wandb.mode=online"""

    def __post_init__(self) -> None:
        for key, least in (("batch_size", 1), ("workers", 0), ("replicates", 100)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)}: set it to {least} or more")


def chosen_tasks(config: EvalConfig, suite: str) -> dict[str, TaskConfig]:
    """The tasks that `only` leaves, checked as far as is possible without data.

    Args:
        suite: the suite's file, for errors.

    Raises:
        UserError: no task, an unknown name in `only`, or the first problem of a task.
    """
    if not config.tasks:
        raise UserError(f"{suite}: tasks is empty; a suite needs at least one task")
    for name in config.only:
        if name not in config.tasks:
            raise UserError(f"{suite}: only: no task '{name}'; there are {_names(config.tasks)}")
    tasks = {name: config.tasks[name] for name in (config.only or config.tasks)}
    for name, task in tasks.items():
        for key, problem in problems(task):
            raise UserError(f"{suite}: tasks.{name}.{key}: {problem}")
    return tasks


def placeholders(template: str) -> set[str]:
    """Names in braces: 'a {c}' -> {'c'}.

    Raises:
        ValueError: braces that don't match, or formatting beyond a plain name.
    """
    found = set()
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if spec or conversion:
            raise ValueError(f"write '{{{name}}}' alone, without ':' or '!'")
        found.add(name)
    return found


def label_columns(label: str) -> list[str]:
    """The columns that a `label` names: 'finding' -> [finding], '{a}, {b}' -> [a, b]."""
    return sorted(placeholders(label)) or [label]


def problems(task: TaskConfig) -> Iterator[tuple[str, str]]:
    """(key, what is wrong and what to do), the most basic first."""
    if task.calibration.split:
        yield from _calibration_problems(task)
    if task.kind in ("classification", "multilabel"):
        yield from _class_problems(task)
        special = _multilabel_problems if task.kind == "multilabel" else _positive_problems
        yield from special(task)
    elif task.kind == "retrieval":
        if not task.ks or min(task.ks) < 1:
            yield "ks", f"{list(task.ks)} needs cut-offs of 1 or more"
    elif task.kind == "vqa":
        if problem := template_problem(task.statement, {"question", "option"}, {"option"}):
            yield "statement", problem
        if len(set(task.fixed_options)) != len(task.fixed_options) or len(task.fixed_options) == 1:
            yield "fixed_options", f"{list(task.fixed_options)} needs two different options or more"


def _class_problems(task: TaskConfig) -> Iterator[tuple[str, str]]:
    try:
        label_columns(task.label)
    except ValueError as error:
        yield "label", f"'{task.label}': {error}"
    own_files = task.data.reader == "clip_benchmark"
    if not task.classes and not own_files:
        yield "classes", "is empty; write `label: [name in prompts]` for each class"
    if len(task.classes) == 1 and task.kind == "classification":
        yield "classes", f"one class, {_names(task.classes)}, is no choice; write at least two"
    for label, names in task.classes.items():
        if not names or not all(name.strip() for name in names):
            yield f"classes.{label}", "needs at least one name, and no empty one"
    if not task.templates and not own_files and set(task.classes) - set(task.multilabel.prompts):
        yield "templates", "is empty; write at least one prompt with {c}"
    for template in task.templates:
        if problem := template_problem(template, {"c"}, {"c"}):
            yield "templates", problem


def _positive_problems(task: TaskConfig) -> Iterator[tuple[str, str]]:
    if task.positive and (task.positive not in task.classes or len(task.classes) != 2):
        yield "positive", f"'{task.positive}' has to be one of two classes in `classes`"
    if task.metric == "f1" and not task.positive:
        yield "metric", "f1 needs `positive`; macro_f1 is the mean over the classes"


def _multilabel_problems(task: TaskConfig) -> Iterator[tuple[str, str]]:
    for template in task.multilabel.negative:
        if problem := template_problem(template, {"c"}, {"c"}):
            yield "multilabel.negative", problem
    for label, pair in task.multilabel.prompts.items():
        if label not in task.classes:
            yield f"multilabel.prompts.{label}", f"no such class; there are {_names(task.classes)}"
        if not pair.positive or not pair.negative:
            yield f"multilabel.prompts.{label}", "needs positive and negative sentences"
    if not task.multilabel.negative and task.multilabel.prompts:
        yield "multilabel.negative", "is empty, but `prompts` has pairs; their scores don't compare"
    if not task.multilabel.negative and task.multilabel.metric == "macro_f1":
        yield "multilabel.metric", "macro_f1 needs a decision; write prompts in `negative`"


def _calibration_problems(task: TaskConfig) -> Iterator[tuple[str, str]]:
    split, key = task.calibration.split, "calibration.split"
    if task.kind not in ("classification", "multilabel"):
        yield key, f"a temperature needs labels, this is {task.kind}; leave it empty"
    if task.kind == "multilabel" and not task.multilabel.negative:
        yield key, "needs prompts in multilabel.negative: a cosine alone decides nothing"
    if not task.data.split or split in task.data.split.split("|"):
        yield key, f"'{split}' is scored; name a split that isn't"


def template_problem(template: str, known: set[str], needed: set[str]) -> str:
    """What is wrong with a template, or ''."""
    exist = " and ".join(f"{{{name}}}" for name in sorted(known))
    try:
        found = placeholders(template)
    except ValueError as error:
        return f"'{template}': {error}"
    if unknown := sorted(found - known):
        return f"'{template}': unknown placeholder {{{unknown[0]}}}; there is {exist}"
    if missing := sorted(needed - found):
        return f"'{template}': no placeholder {{{missing[0]}}}; there is {exist}"
    return ""


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
