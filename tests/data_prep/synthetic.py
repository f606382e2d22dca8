"""A stage without input, whose units fail on demand: `python -m tests.data_prep.synthetic out=...`.

A file FAULTS/<unit> that says `raise 2` lets the next two attempts at that unit raise an error,
`kill 2` has their process killed, `user 2` lets them raise a UserError. Faults are counted down.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data_prep.build import BuildConfig, Plan, Unit, build, make_units
from data_prep.runners import UnitsFailed
from data_prep.shards import Reject, Sample
from vlp.config import UserError, load_config, run_program

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig(BuildConfig):
    """Units of random bytes."""

    NOT_PROVENANCE: ClassVar[frozenset[str]] = BuildConfig.NOT_PROVENANCE | {"faults", "delay"}

    items: int = 60
    """Items in all; every fourth is rejected."""
    per_unit: int = 5
    """Items in a unit."""
    size: int = 20_000
    """Bytes of an image."""
    faults: str = ""
    """Folder of faults; empty for none."""
    delay: float = 0.0
    """Seconds that each item takes, at least."""


@dataclass(frozen=True)
class Item:
    """One sample or reject to be."""

    number: int


def plan_of(config: SyntheticConfig) -> Plan:
    """Units of all splits."""
    items = [Item(number) for number in range(config.items)]
    splits = {"train": list(items[10:]), "val": list(items[:5]), "test": list(items[5:10])}
    units = make_units(config, "synthetic", splits, config.per_unit)
    dropped = (Reject("none", "", "", "plan", "dropped by the plan"),)
    inputs = {"items": config.items}
    return Plan(stage="synthetic", units=units, inputs=inputs, rejects=dropped, noun="items")


def produce(config: SyntheticConfig, unit: Unit) -> Iterator[Sample | Reject]:
    """Three samples and a reject of four items; a fault strikes in the middle."""
    for position, item in enumerate(unit.items):
        if position == len(unit.items) // 2 and config.faults:
            _strike(Path(config.faults) / unit.name)
        time.sleep(config.delay)
        if item.number % 4 == 3:
            yield Reject(f"A{item.number}", "", "", "image", f"reason {item.number % 3}")
            continue
        yield Sample(
            key=f"s{item.number}",
            image=random.Random(item.number).randbytes(config.size),
            extension="jpg",
            width=8,
            height=8,
            caption=f"Sample {item.number}",
            article=f"A{item.number}",
            licence="CC0",
            record={},
            phash=item.number % 64 << 58,
        )


def _strike(fault: Path) -> None:
    if not fault.is_file():
        return
    kind, count = fault.read_text().split()
    if count == "0":
        return
    fault.write_text(f"{kind} {int(count) - 1}")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise UserError("the user's fault") if kind == "user" else ValueError("two\nlines")


def command(out: Path, *settings: str) -> list[str]:
    """This stage's command line."""
    return [sys.executable, "-m", "tests.data_prep.synthetic", f"out={out}", *settings]


def run_synthetic(out: Path, *settings: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run the stage in a process of its own, and check its exit status."""
    result = subprocess.run(
        command(out, *settings), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result


def main(argv: list[str]) -> None:
    """As data_prep.__main__ runs a stage."""
    config = load_config(SyntheticConfig, argv)
    # The module by its name, not as __main__: workers and jobs import it.
    from tests.data_prep import synthetic

    try:
        build(config, synthetic.plan_of(config), synthetic.produce)
    except UnitsFailed as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    from tests.data_prep import synthetic

    run_program(synthetic.main)
