"""Arms: one configuration, several runs, the same compute.

An arm is the configuration with some of its keys changed. Arms run one after the other; `base=@ARM`
takes the model of an earlier one. What an arm spends includes what the arm whose weights it starts
from has spent, so that training further is compared with training from nothing fairly. Arms that
others are based on need not spend as much, and are not scored; `controls` need not, but are.

    python -m vlp.text_pretrain configs/text/small/factorial.yaml

A run that was interrupted goes on with the arm that it was in.
"""

import dataclasses
import gc
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlp import distributed
from vlp.config import UserError, load_config, to_dict, write_text
from vlp.text.arms_report import arm_record, write_report
from vlp.text.settings import TextRunConfig
from vlp.text.store import Report

Approve = Callable[[float], None]
"""Gets the operations that a run's model will have behind it, those of its base included; raises
UserError if the run must not begin."""
Train = Callable[[TextRunConfig, Approve], None]
"""One run to its end; SystemExit if it was stopped and saved."""
Retrieval = Callable[[TextRunConfig], dict[str, Any]]
"""Scores of a CLIP that was trained with an arm's encoder; SystemExit if that was stopped."""

TOLERANCE = 0.01
"""How far the operations of compared arms may lie apart, as a share of the largest."""
RECORD = "arm.json"

_FIXED = ("name", "runs", "arms", "controls", "clip")
"""Keys that belong to all arms together."""
_INDIFFERENT = re.compile(
    r"report\..*|runs|cache|corpora\.\w+\.(path|max_bad)|train\.(micro_batch|activation_checkpointing"
    r"|compile|parallel|device|workers|timeout|resume|\w+_every|checkpoint_minutes"
    r"|keep_checkpoints)"
)
"""Keys that a finished arm's result does not depend on, but for rounding."""


@dataclass(frozen=True)
class Arm:
    """One run of several.

    Attributes:
        name: as in the configuration.
        changes: the `key=value` that make it.
        config: all of its settings; its folder is that of the configuration, with its name.
        start: the arm whose weights it starts from, or "".
        compared: no other arm is based on it, and it is no control.
    """

    name: str
    changes: tuple[str, ...]
    config: TextRunConfig
    start: str
    compared: bool


def run_arms(
    config: TextRunConfig,
    argv: Sequence[str],
    train: Train,
    retrieval: Retrieval,
    report: Report,
) -> None:
    """Run what has not been run yet of a configuration's arms, and write RUNS/NAME/report.md.

    All ranks call it. The retrieval scores come last, on rank 0 alone.

    Args:
        config: with arms.
        argv: the command line that it was read from.
        train: makes a run.
        retrieval: scores an arm's encoder, if `clip` asks for it.
        report: gets the tables; called on rank 0.

    Raises:
        UserError: arms that don't fit together, or that would not spend the same.
        SystemExit: it was stopped; the same command goes on.
    """
    arms = arms_of(config, argv)
    check_budgets(arms)
    spent: dict[str, float] = {}
    for arm in arms:

        def approve(flops: float, name: str = arm.name) -> None:
            spent[name] = flops
            check_compute({a.name: spent[a.name] for a in arms if a.compared and a.name in spent})

        before = finished(arm)
        if before is not None:
            approve(before)
            continue
        train(arm.config, approve)
        _note(arm, spent[arm.name])
        gc.collect()  # the trainer, whose parts refer to each other, before there is another
    distributed.stop()  # what follows takes one process
    if _is_main():
        records = [arm_record(arm.config, arm.compared, arm.changes) for arm in arms]
        for arm, record in zip(arms, records, strict=True):
            if config.clip and (arm.compared or arm.name in config.controls):
                record["retrieval"] = retrieval(arm.config)
        report(write_report(config.folder, records))


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def arms_of(config: TextRunConfig, argv: Sequence[str]) -> list[Arm]:
    """The arms in their order, with the folders of those that they are based on.

    Raises:
        UserError: settings that can't be, or an arm based on one that doesn't come before it.
    """
    read: dict[str, TextRunConfig] = {}
    for name, changes in config.arms.items():
        for change in changes:
            key = change.partition("=")[0]
            if "=" not in change or key.partition(".")[0] in _FIXED:
                raise UserError(f"arms.{name}: '{change}': set another key, as key=value")
        try:
            read[name] = load_config(TextRunConfig, [*argv, *changes])
        except UserError as error:
            raise UserError(f"arms.{name}: {error}") from None
    based_on = {arm.base.removeprefix("@") for arm in read.values() if _needs_base(arm)}
    arms: list[Arm] = []
    for name, settings in read.items():
        base, needs = settings.base, _needs_base(settings)
        if needs and not base:
            raise UserError(f"arms.{name}: base: name a model's folder, or @ARM")
        if needs and base.startswith("@"):
            if base[1:] not in [arm.name for arm in arms]:
                before = ", ".join(arm.name for arm in arms) or "none"
                raise UserError(f"arms.{name}: base={base}: arms before it are: {before}")
            base = str(config.folder / base[1:] / "model")
        own = dataclasses.replace(
            settings,
            name=f"{config.name}/{name}",
            base=base if needs else "",
            arms={},
            controls=[],
            clip="",
        )
        start = settings.base[1:] if own.init == "continual" and own.base != settings.base else ""
        compared = name not in based_on and name not in config.controls
        arms.append(Arm(name, tuple(config.arms[name]), own, start, compared))
    return arms


def _needs_base(config: TextRunConfig) -> bool:
    return config.init == "continual" or config.vocabulary == "inherited"


def check_budgets(arms: Sequence[Arm]) -> None:
    """Compare what is known before anything is run: budgets, `train.flops`.

    Raises:
        UserError: they differ.
    """
    known: dict[str, float] = {}
    for arm in arms:
        before = known.get(arm.start) if arm.start else 0.0
        if arm.config.train.flops and before is not None:
            known[arm.name] = arm.config.train.flops + before
    check_compute({arm.name: known[arm.name] for arm in arms if arm.compared and arm.name in known})


def check_compute(spent: Mapping[str, float]) -> None:
    """Arms that are compared must have spent the same.

    Args:
        spent: operations of each, those of what it started from included.

    Raises:
        UserError: names the arms and what they spend.
    """
    if not spent:
        return
    least, most = min(spent, key=spent.__getitem__), max(spent, key=spent.__getitem__)
    if spent[most] - spent[least] > TOLERANCE * spent[most]:
        raise UserError(
            f"arms: {least} spends {spent[least]:.4g} operations and {most} {spent[most]:.4g}, "
            f"what they start from included, more than {TOLERANCE:.0%} apart: set train.flops of "
            "each so that these sums are equal, and large enough for 100 steps or more"
        )


def _note(arm: Arm, flops: float) -> None:
    """Write down that an arm has run to its end."""
    if _is_main():
        record = {"settings": to_dict(arm.config), "flops": flops}
        write_text(arm.config.folder / RECORD, json.dumps(record, indent=2) + "\n")


def finished(arm: Arm) -> float | None:
    """Operations of an arm that has run to its end with these settings; None if it has not.

    Raises:
        UserError: it has run with others.
    """
    file = arm.config.folder / RECORD
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text("utf-8"))
        before, flops = _flat(record["settings"]), float(record["flops"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: not readable ({error!r}); delete it to run the arm again"
        ) from None
    now = _flat(json.loads(json.dumps(to_dict(arm.config))))  # with lists for tuples
    changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    changed = [key for key in changed if not _INDIFFERENT.fullmatch(key)]
    if changed:
        raise UserError(
            f"{file.parent}: this arm has run with another {', '.join(changed)}; choose another "
            "name, or delete the folder"
        )
    return flops


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
