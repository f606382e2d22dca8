"""Published numbers beside ours: configs/eval/published.yaml, each with its source.

A number from a paper was rarely made in just the way in which ours was; where the protocol is known
to differ, the file says how, and tables show it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omegaconf import MISSING

from vlp.config import UserError, load_config

FILE = Path(__file__).parents[1] / "configs" / "eval" / "published.yaml"
EVIDENCE = {"primary": "", "secondary": "taken from a third party", "figure": "read off a figure"}


@dataclass(frozen=True, kw_only=True)
class Column:
    """Where a column of a published table stands among ours."""

    task: str = MISSING
    """The name of our task."""
    score: str = MISSING
    """Its score, such as accuracy."""
    differs: str = ""
    """How the protocol differs from ours; empty: it is the same as far as it is published."""


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A table of a paper."""

    source: str = MISSING
    """The paper and the place in it."""
    evidence: Literal["primary", "secondary", "figure"] = MISSING
    """Whether the number was read in the paper or by its authors' own hand, in somebody else's
    transcript, or off a figure."""
    percent: bool = True
    """Whether values are per cent, as printed."""
    columns: dict[str, Column] = field(default_factory=dict)
    """Name in `rows` -> our task and score."""
    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    """Model -> column -> value as printed."""

    def __post_init__(self) -> None:
        for model, values in self.rows.items():
            for column, value in values.items():
                if column not in self.columns:
                    raise ValueError(f"rows.{model}.{column}: no such column in `columns`")
                if self.percent and not 0 <= value <= 100:
                    raise ValueError(f"rows.{model}.{column}: {value} is not per cent")


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """Tables of papers by name."""

    tables: dict[str, PublishedTable] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """One published number."""

    model: str
    task: str
    score: str
    value: float
    """As a share where the score is one."""
    source: str
    differs: str
    evidence: str


def published_scores(path: Path = FILE) -> list[Published]:
    """All numbers of the file, in its order.

    Raises:
        UserError: names the file and the key.
    """
    try:
        config = load_config(PublishedConfig, [str(path)])
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    return [
        Published(
            model=model,
            task=table.columns[column].task,
            score=table.columns[column].score,
            value=value / 100 if table.percent else value,
            source=table.source,
            differs=table.columns[column].differs,
            evidence=EVIDENCE[table.evidence],
        )
        for table in config.tables.values()
        for model, values in table.rows.items()
        for column, value in values.items()
    ]
