"""Suites as files: a suite names tasks, and each task is a file of its own."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from eval.config import EvalConfig, TaskConfig, problems
from vlp.config import UserError, load_config


def load_suite(argv: Sequence[str], program: str = "") -> EvalConfig:
    """Read suites and `key=value` pairs; the tasks that they include are entries of `tasks`.

    Raises:
        UserError: names the file and the key.
    """
    return load_config(EvalConfig, argv, program, with_included)


def with_included(suite: Path, content: dict[str, Any]) -> dict[str, Any]:
    """A suite's keys, its `include` replaced by what the task files say.

    `include` is a list of names, or a mapping of the name in this suite to the file's. Keys that
    the suite has under `tasks` are laid over those of the file.

    Raises:
        UserError: no such task file, or one that is wrong.
    """
    included = content.pop("include", None) or {}
    if isinstance(included, list):
        included = {name: name for name in included}
    if not isinstance(included, dict):
        raise UserError(f"{suite}: include: write a list of names of files in tasks/")
    if not included:
        return content
    own = content.get("tasks") or {}
    tasks = {
        str(name): _laid_over(_content(_task_file(suite, file)), own.get(name) or {})
        for name, file in included.items()
    }
    return {**content, "tasks": {**tasks, **{k: v for k, v in own.items() if k not in tasks}}}


def read_task(path: Path) -> TaskConfig:
    """A task's file, checked.

    Raises:
        UserError: names the file and the key.
    """
    try:
        task = load_config(TaskConfig, [str(path)])
        for key, problem in problems(task):
            raise UserError(f"{key}: {problem}")
    except UserError as error:
        known = str(error).startswith(f"{path}: ")
        raise UserError(str(error) if known else f"{path}: {error}") from None
    return task


def _content(path: Path) -> dict[str, Any]:
    """The keys of a task's file, which is right by itself: so an error names this file."""
    read_task(path)
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return cast(dict[str, Any], content)


def _task_file(suite: Path, name: Any) -> Path:
    folder = suite.parent / "tasks"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", str(name)):
        raise UserError(f"{suite}: include: '{name}' is not the name of a file in {folder}")
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"{suite}: include: there is no {path}; see python -m eval list")
    return path


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`below` with the keys of `above` in place of its own, nested mappings key by key."""
    both = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(below.get(key), dict)
        both[key] = _laid_over(below[key], value) if nested else value
    return both
