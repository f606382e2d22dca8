"""Settings of what is scored against labels: findings that may occur together, and calibration."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """Whole sentences for one finding, instead of templates."""

    positive: list[str] = field(default_factory=list)
    """What is said of an image with the finding."""
    negative: list[str] = field(default_factory=list)
    """What is said of an image without it."""


@dataclass(frozen=True, kw_only=True)
class MultilabelConfig:
    """Findings that may occur together, each asked as a question of its own.

    The score of a finding compares its positive prompts, `templates` filled with the names of
    `classes`, and its negative ones.
    """

    labels: Literal["columns", "list", "vector"] = "columns"
    """How labels stand in a row. `columns`: each finding is a column, called like its class, with
    1, 0, -1 (uncertain) or nothing, as in CheXpert and MIMIC-CXR. `list`: the column `label` holds
    the findings that are present, as a list or joined by `separator`. `vector`: the column `label`
    holds a 0 or 1 per class, in the order of `classes`."""
    separator: str = "|"
    """list: what joins the names within a text, as in ChestX-ray14."""
    ignore: list[str] = field(default_factory=list)
    """list: values that aren't findings, such as "No Finding"."""
    uncertain: Literal["exclude", "positive", "negative"] = "exclude"
    """columns: what -1 counts as; an excluded label leaves the image to the other findings."""
    blank: Literal["exclude", "negative"] = "exclude"
    """columns: what an empty cell counts as. CheXpert's labeler writes nothing where a report says
    nothing."""
    negative: list[str] = field(default_factory=lambda: ["no {c}"])
    """Prompts with `{c}` for an image without the finding, as in CheXzero. Empty: the score is the
    cosine to the positive prompts alone, as in CLIP_benchmark; then nothing is decided, and there
    is no F1."""
    prompts: dict[str, PromptPair] = field(default_factory=dict)
    """Class -> sentences of its own, which replace the templates for it, as BioViL's."""
    score: Literal["softmax", "difference"] = "softmax"
    """`softmax`: probability of the positive among the two, at the model's temperature (CheXzero).
    `difference`: positive cosine less negative cosine (BioViL). Both rank and decide alike."""
    metric: Literal["auroc", "average_precision", "macro_f1"] = "auroc"
    """The score that stands for the task in tables and plots."""


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How far the model's probabilities can be believed; see eval/calibration.py."""

    bins: int = 15
    """Bins of equal width for the expected calibration error and the reliability diagram."""
    split: str = ""
    """The split on whose labels a temperature is fitted, such as val: never the one that is scored.
    Empty: none is fitted."""
    labelled: int = 100
    """How many images of it, drawn by the seed; none of a patient (`cluster`) that is scored."""

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"calibration.bins={self.bins}: set it to 2 or more")
        if self.labelled < 1:
            raise ValueError(f"calibration.labelled={self.labelled}: set it to 1 or more")
