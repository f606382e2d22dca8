"""One configuration grammar for every program: `PROGRAM [YAML ...] [key=value ...]`, later wins.

A configuration is a frozen dataclass that stands beside the code which it configures, each field
documented by a string beneath it. This module reads YAML files and `key=value` arguments into such
a class, prints `--help` from it, and saves it so that it loads back to an equal object. It imports
no torch, since `data_prep` runs on machines that have none.
"""

import ast
import copy
import dataclasses
import functools
import importlib.util
import inspect
import itertools
import json
import os
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

T = TypeVar("T")
EXTRAS = {
    "h5py": "hdf5",
    "mlcroissant": "card",
    "ray": "ray",
    "rjieba": "cjk",
    "sklearn": "probe",
    "sudachipy": "cjk",
    "wandb_workspaces": "workspace",
}
"""Optional module -> the extra of pyproject.toml that brings it."""


class UserError(Exception):
    """Something that the user can put right: bad configuration, bad input, a missing file.

    The message is one line that names the file, key or field, says what is wrong and what to do.
    """


def load_config(
    cls: type[T],
    argv: Sequence[str],
    program: str = "",
    prepare: Callable[[Path, dict[str, Any]], dict[str, Any]] | None = None,
) -> T:
    """Build a `cls` from its defaults, the YAML files and the `key=value` pairs in `argv`.

    Args:
        cls: a frozen dataclass.
        argv: command line without the program's name.
        program: how the program is called, for `--help`.
        prepare: what to make of a YAML file's keys before they are merged, as for files that
            name other files; gets the file's path and its content.

    Raises:
        UserError: unknown key, wrong type, missing file or field, impossible setting.
        SystemExit: status 0, after printing the help that `--help` or `-h` asks for.
    """
    if any(arg in ("-h", "--help") for arg in argv):
        print(describe(cls, program))
        raise SystemExit(0)
    merged = copy.deepcopy(_defaults(typing.cast(typing.Hashable, cls)))
    for where, layer in _layers(argv, prepare):
        try:
            # Each layer is used once, so nothing has to be copied: with a suite of many tasks the
            # copies of `merge` would cost more than all else.
            merged = OmegaConf.unsafe_merge(merged, layer)
        except (OmegaConfBaseException, ValueError) as error:
            raise UserError(f"{where}: {_explain(error)}") from None
    try:
        return typing.cast(T, OmegaConf.to_object(merged))
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or "?"
        raise UserError(f"{key} is missing: set {key}=... or write it in a YAML file") from None
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(_explain(error)) from None


@functools.cache
def _defaults(cls: typing.Hashable) -> Any:
    """A class's keys with their types and defaults; must not be changed."""
    return OmegaConf.structured(cls)


def save_config(config: Any, path: str | Path) -> None:
    """Write a configuration object as YAML, atomically; `load_config` reads it back equal."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


def write_text(path: str | Path, text: str) -> None:
    """Write a file at once or not at all: under a temporary name, then renamed."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration object as plain nested dictionaries and lists."""
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    return typing.cast(dict[str, Any], plain)


def describe(cls: type, program: str = "") -> str:
    """The text of `--help`: the class's docstring, then each key's type, default and meaning."""
    lines = [f"usage: {program or 'PROGRAM'} [YAML ...] [key=value ...]", ""]
    if cls.__doc__:
        lines += [inspect.cleandoc(cls.__doc__), ""]
    lines.append("keys:")
    for key, kind, default, text in _fields(cls):
        lines.append(f"  {key}: {kind} = {default}")
        lines += textwrap.wrap(text, 96, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def need(module: str, what: str) -> None:
    """Check that an optional package is installed, without importing it.

    Args:
        what: what needs it, for the error.

    Raises:
        UserError: it isn't; names the extra of pyproject.toml that brings it.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{what} needs {module}, which isn't installed: {_how_to_install(module)}")


def _how_to_install(module: str) -> str:
    extra = EXTRAS.get(module)
    wanted = f"'.[{extra}]'" if extra else "."
    return f"pip install {wanted} in the checkout"


def run_program(main: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> None:
    """Call `main`; a UserError becomes one line on standard error and exit status 2."""
    try:
        main(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", "data_prep", "eval", "vlp"):  # a mistake of ours
            raise
        how = _how_to_install(module)
        print(f"error: the package {module} isn't installed: {how}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _layers(
    argv: Sequence[str], prepare: Callable[[Path, dict[str, Any]], dict[str, Any]] | None
) -> Iterator[tuple[str, DictConfig]]:
    """Each argument as (what to call it in errors, its content)."""
    for arg in argv:
        # A file that exists is a file, even with "=" in its name: run folders often have one.
        if "=" in arg and not Path(arg).is_file():
            yield arg, _override(arg)
        else:
            layer = _yaml_file(Path(arg))
            if prepare is not None:
                content = OmegaConf.to_container(layer, resolve=False)
                layer = OmegaConf.create(prepare(Path(arg), typing.cast(dict[str, Any], content)))
            yield arg, layer


def _override(arg: str) -> DictConfig:
    if arg.startswith("-"):
        raise UserError(f"{arg}: options are written key=value, without dashes")
    try:
        key, _, value = arg.partition("=")
        # "key=" is the empty string, which OmegaConf alone would read as null; no value of YAML may
        # begin with @ or `.
        text = not value or value[0] in "@`"
        return OmegaConf.from_dotlist([f"{key}={json.dumps(value)}" if text else arg])
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(f"{arg}: not a key=value pair: {_first_line(error)}") from None


def _yaml_file(path: Path) -> DictConfig:
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path}: neither a YAML file nor a key=value pair; see --help")
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not readable as YAML: {reason}") from None
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path}: a configuration is a mapping of keys, found a list")
    return loaded


def _explain(error: Exception) -> str:
    """One line for an OmegaConf error: the full key first, then what is wrong."""
    text = _first_line(error)
    key = getattr(error, "full_key", None)
    if not key:
        return text
    # "Key 'lrr' not in 'T'. Did you mean: 'lr'?" names a class, which no user has heard of.
    if text.startswith("Key '"):
        close = re.search(r"Did you mean[^:]*: '(\w+)'", text)  # of several the nearest is first
        hint = close[1] if close else ""
        parent = str(key).rpartition(".")[0]
        nearest = f"{parent}.{hint}" if parent and hint else hint
        return f"unknown key '{key}'" + (f"; did you mean '{nearest}'?" if hint else "; see --help")
    return f"{key}: {text}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _fields(cls: Any, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, documentation) of every leaf; nested classes contribute `a.b` keys."""
    hints = typing.get_type_hints(cls)
    docs = _field_docs(cls)
    for field in dataclasses.fields(cls):
        hint, name, doc = hints[field.name], prefix + field.name, docs.get(field.name, "")
        arguments = typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            yield from _fields(hint, name + ".")
        elif typing.get_origin(hint) is dict and dataclasses.is_dataclass(arguments[1]):
            yield name, "mapping of NAME to the keys below", _default(field), doc
            yield from _fields(arguments[1], f"{name}.NAME.")
        else:
            yield name, _type_name(hint), _default(field), doc


def _type_name(hint: Any) -> str:
    return (
        hint.__name__
        if isinstance(hint, type) and not typing.get_args(hint)
        else (str(hint).replace("typing.", ""))
    )


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "(required)"


def _field_docs(cls: type) -> dict[str, str]:
    """The string literals that stand beneath a dataclass's fields, base classes included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # no source at hand: a class made at run time
            continue
        body = typing.cast(ast.ClassDef, tree.body[0]).body
        for field, below in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                docs[field.target.id] = " ".join(below.value.value.split())
    return docs
