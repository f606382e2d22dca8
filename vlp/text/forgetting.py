"""What continual pretraining gained on its target and lost on its base, side by side.

Every run with `init=continual` prints it at its end and writes it as RUN/forgetting.json.

    python -m vlp.text.forgetting RUN [RUN ...]

prints one line for each run, or for each arm in the folder of several.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vlp.config import UserError, run_program, write_text
from vlp.curves import read_metrics
from vlp.text.mixture import MixtureConfig

Role = Literal["target", "base", "other"]

SCORE = "val/bits_per_character/"
"""Metrics of the model in training, by corpus."""
BASE_SCORE = "base/bits_per_character/"
"""Metrics of the base itself, where it has another vocabulary than the run."""


def roles(
    corpora: Iterable[str], mixture: MixtureConfig, base: Sequence[str] = ()
) -> dict[str, Role]:
    """What each corpus stands for.

    Args:
        corpora: all that are evaluated on.
        mixture: what is trained on.
        base: corpora of the base's text; empty: those that no stage of the mixture names.

    Returns:
        `base`; `target` for the others of the last stage; `other` for what remains, such as a
        corpus that only an earlier stage trains on.
    """
    names = list(corpora)
    stages = [set(stage.weights or names) for stage in mixture.stages]
    of_base = set(base or (name for name in names if not any(name in s for s in stages)))
    found: dict[str, Role] = {}
    for name in names:
        last: Role = "target" if name in stages[-1] else "other"
        found[name] = "base" if name in of_base else last
    return found


@dataclass(frozen=True)
class Row:
    """One corpus; bits per character of masked words, of which fewer are better."""

    corpus: str
    role: Role
    before: float
    after: float

    @property
    def change(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class Forgetting:
    """Scores before the first step and after the last one.

    Attributes:
        rows: the corpora that have both scores; the target's first, then the base's.
        steps: taken between them.
    """

    rows: tuple[Row, ...]
    steps: int

    @property
    def gain(self) -> float | None:
        """Bits per character that the target got better by: the mean over its corpora."""
        change = self._mean("target")
        return None if change is None else -change

    @property
    def loss(self) -> float | None:
        """Bits per character that the base got worse by: the mean over its corpora."""
        return self._mean("base")

    def _mean(self, role: Role) -> float | None:
        changes = [row.change for row in self.rows if row.role == role]
        return math.fsum(changes) / len(changes) if changes else None

    @property
    def notes(self) -> list[str]:
        """What was not measured, and what to set."""
        notes = []
        if self.gain is None:
            notes.append(
                "the gain was not measured: no corpus of the last stage has held-out text that is "
                "not the base's; check corpora, split and base_corpora"
            )
        if self.loss is None:
            notes.append(
                "forgetting was not measured: add text like the base's to corpora without naming "
                "it in the mixture, or list replayed corpora in base_corpora"
            )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "unit": "bits per character of hidden words, held-out text",
            "steps": self.steps,
            "gain_on_target": self.gain,
            "loss_on_base": self.loss,
            "corpora": [{**asdict(row), "change": row.change} for row in self.rows],
            "notes": self.notes,
        }

    def __str__(self) -> str:
        """A table, and both numbers in one line."""
        width = max([len("corpus"), *(len(row.corpus) for row in self.rows)])
        lines = [
            f"bits per character before and after {self.steps:,} steps (fewer are better)",
            f"  {'corpus':<{width}}  role    before   after   change",
        ]
        lines += [
            f"  {row.corpus:<{width}}  {row.role:<6}  {row.before:6.3f}  {row.after:6.3f}  "
            f"{row.change:+7.3f}"
            for row in self.rows
        ]
        gain, loss = (
            "not measured" if value is None else f"{value:+.3f}" for value in (self.gain, self.loss)
        )
        return "\n".join(
            [*lines, f"gain on the target {gain}, loss on the base {loss}", *self.notes]
        )


def measured(metrics: Iterable[Mapping[str, Any]], roles: Mapping[str, Role]) -> Forgetting:
    """Compare the last scores with those before the first step.

    Args:
        metrics: rows of metrics.jsonl in their order.
        roles: of the corpora.
    """
    start, of_base, after = dict[str, float](), dict[str, float](), dict[str, float]()
    steps = 0
    for row in metrics:
        scores = {name: row[SCORE + name] for name in roles if SCORE + name in row}
        of_base |= {name: row[BASE_SCORE + name] for name in roles if BASE_SCORE + name in row}
        if row["step"] == 0:
            start |= scores
        elif scores:
            after, steps = scores, row["step"]
    before = start | of_base
    order: list[Role] = ["target", "base", "other"]
    return Forgetting(
        tuple(
            Row(name, role, before[name], after[name])
            for wanted in order
            for name, role in roles.items()
            if role == wanted and name in before and name in after
        ),
        steps,
    )


FILE = "forgetting.json"


def report(folder: Path, roles: Mapping[str, Role]) -> str:
    """Write FOLDER/forgetting.json from FOLDER/metrics.jsonl; returns what to print.

    Args:
        folder: a run's, after its last evaluation.
        roles: of its corpora.
    """
    found = measured(read_metrics(folder / "metrics.jsonl"), roles)
    write_text(folder / FILE, json.dumps(found.to_dict(), indent=2) + "\n")
    return str(found)


def compared(folders: Sequence[Path]) -> str:
    """A table of runs that have ended: what each gained, what each lost.

    Args:
        folders: of runs, or with arms in them.

    Raises:
        UserError: there is no report, or it is broken.
    """
    rows = []
    for folder in folders:
        files = [folder / FILE] if (folder / FILE).is_file() else sorted(folder.glob(f"*/{FILE}"))
        if not files:
            raise UserError(f"{folder / FILE}: missing; a run with init=continual ends with it")
        for file in files:
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
                numbers = [found[key] for key in ("gain_on_target", "loss_on_base")]
                cells = ["-" if number is None else f"{number:+.3f}" for number in numbers]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{file}: not a report of gain and loss: {error!r}") from None
            rows.append((str(file.parent), *cells))
    width = max(len(name) for name, *_ in rows)
    head = f"{'run':<{width}}  gain on target  loss on base   (bits per character)"
    return "\n".join([head, *(f"{name:<{width}}  {g:>14}  {loss:>12}" for name, g, loss in rows)])


def main(argv: list[str]) -> None:
    """`python -m vlp.text.forgetting RUN [RUN ...]`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)  # noqa: T201
        raise SystemExit(0 if argv else 2)
    print(compared([Path(folder) for folder in argv]))  # noqa: T201


if __name__ == "__main__":
    run_program(main)
