"""Settings of visual questions, of answer heads, and of phrase grounding."""

from dataclasses import dataclass, field
from typing import Literal

from omegaconf import MISSING


@dataclass(frozen=True, kw_only=True)
class CountConfig:
    """A counting question about every image, with ranges of numbers to choose from."""

    column: str = MISSING
    """The column of the number, or of a mapping of things to numbers."""
    key: str = ""
    """In a mapping: the thing; where an image's mapping doesn't name it, there are 0."""
    question: str = MISSING
    """What is asked: "How many platelets are in this blood smear?\""""
    ranges: list[int] = field(default_factory=list)
    """The least number of each range, ascending: [0, 1, 3] lets choose among "0", "1 to 2" and
    "3 or more". An image with fewer than the first is left out, and counted."""
    statements: list[str] = field(default_factory=list)
    """One sentence per range, as a caption would say it; without them `statement` is filled."""

    def __post_init__(self) -> None:
        ranges, sentences = list(self.ranges), len(self.statements)
        if len(ranges) < 2 or ranges != sorted(set(ranges)) or ranges[0] < 0:
            raise ValueError(f"vqa.counts: ranges={ranges}: write two numbers or more, ascending")
        if sentences not in (0, len(ranges)):
            raise ValueError(
                f"vqa.counts: {sentences} statements for {len(ranges)} ranges; write one for each"
            )


@dataclass(frozen=True, kw_only=True)
class VqaConfig:
    """Where the parts of a visual question stand that `question`, `answer` and so on don't say."""

    id: str = "question_id"
    """The column of names of items; without it items are called IMAGE#1, IMAGE#2, ..."""
    answer_type: str = "answer_type"
    """The column that says closed or open; an item without it is closed if it has options and its
    answer is one of them, otherwise open."""
    answer_is: Literal["text", "letter", "index"] = "text"
    """How `answer` names the right option: its text, its letter (A, B, ...) or its number from 0.
    """
    option_columns: list[str] = field(default_factory=list)
    """A column for each option, for tables without a column of lists: [option_A, option_B]. A
    leading letter, as in "A: liver", is taken off."""
    nested: str = ""
    """The column that maps question types to {question, options, answer} or null, as u-Bench's
    `captions` and `questions` do: each entry becomes an item."""
    counts: dict[str, CountConfig] = field(default_factory=dict)
    """Questions made of a table's numbers: question type -> how many of what."""
    groups: list[str] = field(default_factory=list)
    """Further columns by which scores are broken down, such as [dataset]."""
    prompt: str = (
        "Answer with a single letter, no extra details.\nQuestion: {question}\n{lettered_options}"
    )
    """What a generative model is asked where there are options."""
    yes_no_prompt: str = "Question: {question}\nAnswer yes or no."
    """What it is asked where the options are yes and no."""
    open_prompt: str = "Question: {question}\nAnswer in a few words."
    """What it is asked where there are no options."""

    def __post_init__(self) -> None:
        if self.counts and self.nested:
            raise ValueError("vqa.counts makes the questions, and so does vqa.nested: write one")


@dataclass(frozen=True, kw_only=True)
class GroundingConfig:
    """Phrases, their boxes, and how a map of similarities is judged (BioViL, arXiv 2204.09817)."""

    phrase: str = "label_text"
    """The column of phrases, as MS-CXR calls it; not used for boxes that have labels."""
    boxes: str = "boxes"
    """The column of boxes: a list of four numbers each, or a list of {label, box}, of which each
    label makes an item."""
    box_columns: list[str] = field(default_factory=list)
    """The four columns of a table with one box a row: [x, y, w, h]; rows of one image with the same
    phrase make one item."""
    box_format: Literal["xywh", "corners"] = "xywh"
    """Left, top, width, height, or left, top, right, bottom; in pixels."""
    size_columns: list[str] = field(default_factory=list)
    """The columns with width and height of the image in whose pixels the boxes are, such as
    [image_width, image_height]; for sets whose images were made smaller. Empty: the stored one."""
    phrases: dict[str, list[str]] = field(default_factory=dict)
    """For boxes with labels: label -> phrases, whose embeddings are averaged. Labels that aren't
    here are left out. Empty: the label itself."""
    category: str = "category_name"
    """The column of findings over which scores are averaged; for boxes with labels the label."""
    sigma: float = 1.5
    """Deviation of the Gaussian that smooths the map, in patches."""
    interpolation: Literal["nearest", "bilinear"] = "nearest"
    """How the map is enlarged from patches to pixels; `nearest` is hi-ml's."""
    thresholds: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5])
    """Cosines above which a pixel belongs to the phrase; IoU is averaged over them."""

    def __post_init__(self) -> None:
        if self.sigma < 0:
            raise ValueError(f"grounding.sigma must not be negative, got {self.sigma}")
        if len(self.box_columns) not in (0, 4):
            raise ValueError(f"grounding.box_columns needs four, got {list(self.box_columns)}")
        if len(self.size_columns) not in (0, 2):
            raise ValueError(f"grounding.size_columns needs two, got {list(self.size_columns)}")
        if not self.thresholds:
            raise ValueError("grounding.thresholds is empty: write at least one")


@dataclass(frozen=True, kw_only=True)
class VqaTrainConfig:
    """`python -m eval vqa-train`: an answer head over a model's towers; see docs/vqa_train.md."""

    split: Literal["official", "image_disjoint"] = "official"
    """`official`: the splits that data.train_split, data.val_split and data.split name.
    `image_disjoint`: all of them together, split anew by image, so that no image is on two sides:
    70% to train, 10% to val, 20% to test."""
    towers: Literal["frozen", "tuned"] = "frozen"
    """Whether the model's own weights learn, too."""
    layers: int = 3
    """Fusion layers; METER has 6."""
    width: int = 256
    """Size of a token in the fusion; METER has 768."""
    heads: int = 8
    """Attention heads of the fusion; they divide width."""
    dropout: float = 0.1
    """In the fusion and the head."""
    epochs: int = 20
    """Passes over the training questions; the one that is best on the validation questions counts.
    """
    batch_size: int = 64
    """Questions per step."""
    learning_rate: float = 1e-4
    """Peak, of the fusion; warmed up over the first tenth, then linear to 0."""
    head_factor: float = 10.0
    """The answer head's learning rate over that of the fusion; METER's is 10."""
    tower_factor: float = 0.2
    """That of tuned towers; METER's is 1/5."""
    weight_decay: float = 0.01
    """Of AdamW; not on biases and norms."""
    least: int = 1
    """Answers that occur less often in training are no class."""
    seeds: int = 3
    """Trainings, each from its own start; scores are their mean."""
    memory: float = 8.0
    """GB up to which the patches of frozen towers are kept; beyond, they are computed every time.
    """
    head: str = ""
    """A folder of a trained head, heads/TASK below `out`: score with it, train nothing. The other
    keys of vqa_train are then those that it was trained with."""

    def __post_init__(self) -> None:
        for key in ("layers", "width", "heads", "epochs", "batch_size", "least", "seeds"):
            if getattr(self, key) < 1:
                raise ValueError(f"vqa_train.{key}={getattr(self, key)}: set it to 1 or more")
        if self.width % self.heads:
            raise ValueError(f"vqa_train.width={self.width} is not divisible by {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"vqa_train.dropout={self.dropout}: set it in [0, 1)")
        if self.learning_rate <= 0:
            raise ValueError(f"vqa_train.learning_rate={self.learning_rate}: set it above 0")
