"""The command line of data_prep, and the configuration files of its stages."""

import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.__main__ import STAGES, main
from vlp.config import UserError, load_config

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = sorted((REPOSITORY / "configs" / "data").glob("*.yaml"))


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_stages_are_listed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments)
    printed = capsys.readouterr().out
    for name, stage in STAGES.items():
        assert re.search(rf"^  {name} +{re.escape(stage.summary)}$", printed, re.MULTILINE)


def test_unknown_stage() -> None:
    with pytest.raises(UserError, match="unknown stage 'tabel'; did you mean 'table'"):
        main(["tabel"])
    with pytest.raises(UserError, match="phantom, pmc, jats, table, index, curate, card, check"):
        main(["xyz"])


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: python -m data_prep {name} " in printed
    config_class = getattr(importlib.import_module(STAGES[name].module), STAGES[name].config)
    for key in dataclasses.fields(config_class):
        assert f"\n  {key.name}" in printed


def test_errors_are_one_line_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep", "check", str(tmp_path / "none")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path / 'none'}: no such folder\n"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_load(path: Path) -> None:
    """Each file names its stage in the command of its header."""
    header = path.read_text()
    match = re.search(rf"python -m data_prep (\w+) configs/data/{path.name}", header)
    assert match is not None
    stage = STAGES[match[1]]
    config_class = getattr(importlib.import_module(stage.module), stage.config)
    config = load_config(config_class, [str(path), "source=x", "out=y"])
    assert config.source == "x"


def test_data_prep_needs_no_torch() -> None:
    """Machines that prepare data have no torch."""
    modules = [stage.module for name, stage in STAGES.items() if name != "phantom"]
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"import {', '.join(modules)}, data_prep.__main__\n"
        "print(sorted(name for name in sys.modules if name.startswith('vlp.')))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    light = ["config", "duplicates", "hashing", "language", "splits"]
    assert result.stdout.strip() == str([f"vlp.{name}" for name in light])
