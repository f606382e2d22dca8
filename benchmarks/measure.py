"""What all benchmarks share: interleaved timing, facts about the machine, one table, one file.

    python -m benchmarks.measure FILE.json ...

prints results that were saved with `out=FILE.json`, all in one table.
"""

import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from PIL import Image, features
from rich.console import Console
from rich.table import Table

from vlp.config import UserError, run_program

LIBRARIES = ("torchvision", "open_clip_torch", "transformers", "tokenizers", "simplejpeg")


@dataclass(frozen=True)
class Row:
    """One line of a result.

    Attributes:
        what: what was measured, on what.
        unit: of the three values; bare numbers and errors have an empty one.
        value: the median, or the only value.
        low: least of the repetitions.
        high: greatest of the repetitions.
        ratio: against the row that says 1, above 1 is better; or a share; None if neither fits.
    """

    what: str
    unit: str
    value: float
    low: float | None = None
    high: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Result:
    """What one benchmark found.

    Attributes:
        name: the benchmark.
        facts: machine, versions, sizes: what a reader needs to judge or repeat the numbers.
        rows: the table.
    """

    name: str
    facts: dict[str, str]
    rows: tuple[Row, ...]


def interleaved(
    contenders: Mapping[str, Callable[[], float]], repetitions: int
) -> dict[str, list[float]]:
    """Call each contender in turn, `repetitions` times, each time starting with another one.

    So a machine that slows down, or a neighbour that comes and goes, hits all of them alike.

    Returns:
        The contenders' own measurements, by name, in the order of the repetitions.
    """
    names = list(contenders)
    found: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(contenders[name]())
    return found


def median_row(what: str, unit: str, values: Sequence[float], ratio: float | None = None) -> Row:
    """Median, least and greatest of the repetitions."""
    return Row(what, unit, statistics.median(values), min(values), max(values), ratio)


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median over the repetitions of numerator / denominator of the same repetition."""
    pairs = zip(numerators, denominators, strict=True)
    return statistics.median(above / below for above, below in pairs)


def machine() -> dict[str, str]:
    """Processor, accelerator, versions and threads of this process."""
    facts = {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "load": f"{os.getloadavg()[0]:.1f} before the start",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "Pillow": pillow_build(),
    }
    for library in LIBRARIES:
        try:
            facts[library] = version(library)
        except PackageNotFoundError:
            facts[library] = "not installed"
    return facts


def pillow_build() -> str:
    """Version and JPEG library: pillow-simd, for one, makes Pillow's users 1.7 times faster."""
    turbo = features.version("libjpeg_turbo")
    library = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"
    return f"{Image.__version__} with {library}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def report(results: Sequence[Result], out: str = "") -> None:
    """Print results as one table, the facts beneath it; save the first as JSON if `out` is set."""
    if out:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(results[0]), indent=1) + "\n", encoding="utf-8")
    table = Table()
    table.add_column("what")
    for column in ("ratio", "median", "least - greatest", "unit"):
        table.add_column(column, justify="left" if column == "unit" else "right")
    for result in results:
        table.add_section()
        for row in result.rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            span = (
                f"{_number(row.low)} - {_number(row.high)}"
                if row.low is not None and row.high is not None
                else ""
            )
            table.add_row(row.what, ratio, _number(row.value), span, row.unit)
    # Outside a terminal rich would cut the table at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    for result in results:
        console.print(f"{result.name}:", style="bold")
        for name, fact in result.facts.items():
            console.print(f"  {name}: {fact}", highlight=False)


def load(path: str | Path) -> Result:
    """A result that `report` saved.

    Raises:
        UserError: no such file, or not a result.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = tuple(Row(**row) for row in content["rows"])
        return Result(content["name"], content["facts"], rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a saved benchmark result: {error}") from None


def _number(value: float) -> str:
    """Three significant digits; four for thousands; powers of ten where zeros would pile up."""
    if not math.isfinite(value) or (value and abs(value) < 1e-3):
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f}"


def main(argv: list[str]) -> None:
    """`python -m benchmarks.measure FILE.json ...`."""
    if not argv:
        raise UserError("name the JSON files that benchmarks wrote with out=FILE.json")
    report([load(path) for path in argv])


if __name__ == "__main__":
    run_program(main)
