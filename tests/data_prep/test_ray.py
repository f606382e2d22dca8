"""runner=ray: the same shards, the same care for failures."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data_prep.factories import tree, write_pmc
from tests.data_prep.synthetic import REPOSITORY, run_synthetic

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray"
)


@needs_ray
def test_ray_makes_the_shards_of_a_local_run(tmp_path: Path) -> None:
    source = write_pmc(tmp_path / "in", articles=20, figures=2)
    stage = [sys.executable, "-m", "data_prep", "pmc", f"source={source}", "articles_per_shard=4"]
    for runner in ("local", "ray"):
        command = [*stage, f"out={tmp_path / runner}", f"runner={runner}"]
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


@needs_ray
def test_failures_under_ray(tmp_path: Path) -> None:
    out, faults = tmp_path / "out", tmp_path / "faults"
    faults.mkdir()
    (faults / "train-00001").write_text("raise 99")
    (faults / "train-00002").write_text("kill 1")
    result = run_synthetic(out, f"faults={faults}", "runner=ray", "retries=1", status=1)
    assert result.stderr.splitlines()[1:] == [
        "  train-00001: ValueError: two; lines (2 attempts)",
    ]
    assert len(list(out.glob("*.tar"))) == 11
    (faults / "train-00001").unlink()
    run_synthetic(out, f"faults={faults}")
    run_synthetic(tmp_path / "local")
    assert tree(out) == tree(tmp_path / "local")


def test_ray_that_is_not_installed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from vlp.config import run_program\n"
        "from tests.data_prep.synthetic import main\n"
        f"run_program(main, ['out={tmp_path / 'out'}', 'runner=ray'])"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == (
        "error: runner=ray: Ray is not installed; `pip install ray`, or choose runner=local\n"
    )
