"""The configuration grammar and every message that it gives."""

import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from omegaconf import OmegaConf

from vlp.config import (
    EXTRAS,
    UserError,
    describe,
    load_config,
    need,
    run_program,
    save_config,
    to_dict,
)


@dataclass(frozen=True, kw_only=True)
class Part:
    path: str
    """Where it is."""
    weight: float = 1.0
    """How much of it, in passes."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a program does."""

    rate: float = 5e-4
    """Learning rate,
    per step."""
    steps: int = 10
    loss: Literal["clip", "siglip"] = "clip"
    betas: tuple[float, float] = (0.9, 0.98)
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"train.rate must be positive, got {self.rate}")


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A run."""

    name: str
    """Its name."""
    train: Settings = field(default_factory=Settings)
    sources: dict[str, Part] = field(default_factory=dict)
    note: str | None = None


def test_later_wins_and_numbers_are_numbers(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("name: one\ntrain: {rate: 1e-4, steps: 5}\nsources: {pmc: {path: x}}\n")
    second.write_text("train: {steps: 6}\n")
    config = load_config(
        Whole, [str(first), str(second), "train.rate=2e-3", "sources.pmc.weight=3"]
    )
    assert config == Whole(
        name="one",
        train=Settings(rate=2e-3, steps=6),
        sources={"pmc": Part(path="x", weight=3.0)},
    )


def test_layers_equal_plain_merges(tmp_path: Path) -> None:
    """The defaults are built once and layers are merged without copies: against the slow way."""
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("name: one\ntrain: {names: [a, b]}\nsources: {pmc: {path: x}}\n")
    second.write_text("train: {names: [c]}\nsources: {pmc: {weight: 2}, roco: {path: y}}\n")
    dotted = ["sources.roco.weight=3", "train.names=[d,e]", "train.betas=[0.1,0.2]"]
    for files in ([first, second], [second, first], [first, second, first]):
        for n in range(len(dotted) + 1):
            arguments = [*map(str, files), *dotted[:n]]
            layers = [
                *map(OmegaConf.load, files),
                *(OmegaConf.from_dotlist([d]) for d in dotted[:n]),
            ]
            slow = OmegaConf.merge(OmegaConf.structured(Whole), *layers)
            assert load_config(Whole, arguments) == OmegaConf.to_object(slow)


def test_a_load_leaves_nothing_behind() -> None:
    load_config(Whole, ["name=a", "train.names=[x]", "sources.pmc.path=y", "train.steps=3"])
    with pytest.raises(UserError):
        load_config(Whole, ["name=a", "train.steps=4", "train.loss=x"])
    plain = load_config(Whole, ["name=a"])
    assert plain == Whole(name="a")
    plain.train.names.append("z")
    plain.sources["s"] = Part(path="p")
    assert load_config(Whole, ["name=a"]) == Whole(name="a")


def test_saved_configuration_loads_back_equal(tmp_path: Path) -> None:
    config = Whole(
        name="n: with colon",
        train=Settings(betas=(0.5, 0.6), names=["a b", "µ"]),
        sources={"s": Part(path="p=q")},
    )
    save_config(config, tmp_path / "c.yaml")
    assert load_config(Whole, [str(tmp_path / "c.yaml")]) == config
    assert to_dict(config)["sources"]["s"]["path"] == "p=q"
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.rat=1"], "train.rat=1: unknown key 'train.rat'; did you mean 'train.rate'?"),
        (["trian.rate=1"], "trian.rate=1: unknown key 'trian'; did you mean 'train'?"),
        (["zzz=1"], "zzz=1: unknown key 'zzz'; see --help"),
        (["sources.a.wight=1"], "unknown key 'sources.a.wight'; did you mean 'sources.a.weight'?"),
        (
            ["train.rate=abc"],
            "train.rate: Value 'abc' of type 'str' could not be converted to Float",
        ),
        (["train.steps=1.5"], "train.steps: Value '1.5' of type 'float'"),
        (["train.loss=x"], "train.loss: Invalid value 'x', expected one of ['clip', 'siglip']"),
        (["train.betas=[1]"], "TupleConfig length 1 does not match type hint length 2"),
        (["train.rate=-1"], "train.rate must be positive, got -1.0"),
        (["sources.a.weight=2"], "sources.a.path is missing: set sources.a.path=..."),
        (["--train.rate=1"], "--train.rate=1: options are written key=value, without dashes"),
        (["absent.yaml"], "absent.yaml: no such configuration file"),
        (["rate"], "rate: neither a YAML file nor a key=value pair; see --help"),
    ],
)
def test_errors_name_the_key(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(Whole, ["name=n", *arguments])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {rat: 1}\n", "c.yaml: unknown key 'train.rat'; did you mean 'train.rate'?"),
        ("name: a\nname: b\n", "c.yaml: not readable as YAML"),
        ("train: [unclosed\n", "c.yaml: not readable as YAML"),
        ("- a\n- b\n", "c.yaml: a configuration is a mapping of keys"),
        ("train: {steps: many}\n", "c.yaml: train.steps: Value 'many'"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(Whole, [str(tmp_path / "c.yaml"), "name=n"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_after_the_equals_sign_is_the_empty_string() -> None:
    assert load_config(Whole, ["name=", "note="]) == Whole(name="", note="")


def test_a_value_may_begin_with_what_yaml_reserves() -> None:
    assert load_config(Whole, ["name=@arm", "note=`x` y"]) == Whole(name="@arm", note="`x` y")


def test_missing_required_key() -> None:
    with pytest.raises(UserError, match=r"name is missing: set name=\.\.\."):
        load_config(Whole, [])


def test_help_lists_keys_types_defaults_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config(Whole, ["--help"], "python x.py")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.strip() == describe(Whole, "python x.py")
    for line in (
        "usage: python x.py [YAML ...] [key=value ...]",
        "name: str = (required)",
        "train.rate: float = 0.0005",
        "      Learning rate, per step.",
        "train.loss: Literal['clip', 'siglip'] = 'clip'",
        "sources.NAME.path: str = (required)",
        "note: str | None = None",
    ):
        assert line in text


def test_packages_that_are_missing_are_named_with_their_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need("yaml", "all of this")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError) as caught:
        need("sklearn", "a probe")
    said = "a probe needs sklearn, which isn't installed: pip install '.[probe]' in the checkout"
    assert str(caught.value) == said

    def imports(module: str) -> None:
        def main(argv: list[str]) -> None:
            __import__(module)

        run_program(main, [])

    for module, how in (("sklearn.linear_model", "'.[probe]'"), ("no_such_package", ".")):
        with pytest.raises(SystemExit) as ended:
            imports(module)
        assert ended.value.code == 2
        name = module.partition(".")[0]
        assert capsys.readouterr().err == (
            f"error: the package {name} isn't installed: pip install {how} in the checkout\n"
        )
    with pytest.raises(ModuleNotFoundError):  # a mistake of ours shall be seen whole
        imports("vlp.no_such_module")


def test_extras_are_those_of_the_project() -> None:
    path = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(path.read_text())["project"]["optional-dependencies"]
    packages = {"sklearn": "scikit-learn", "wandb_workspaces": "wandb-workspaces"}
    for module, extra in EXTRAS.items():
        wanted = [line.partition(">")[0] for line in extras[extra]]
        assert packages.get(module, module) in wanted


def test_a_program_ends_with_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        raise UserError(f"{argv[0]}: wrong")

    with pytest.raises(SystemExit) as caught:
        run_program(main, ["file"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: file: wrong\n"
