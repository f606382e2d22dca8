"""runner=slurm: what is submitted, and that its jobs, run by hand, make the same shards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data_prep.factories import manifest_of, tree, write_pmc
from tests.data_prep.synthetic import REPOSITORY, run_synthetic

SBATCH = """#!/bin/bash
printf '%s\\n' "$@" >> "$SBATCH_LOG"
echo >> "$SBATCH_LOG"
number=$(grep -c '^$' "$SBATCH_LOG")
echo "$((4000 + number));cluster"
"""


@pytest.fixture
def sbatch_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts an sbatch into PATH that only writes down its arguments; returns that log."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(SBATCH)
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SBATCH_LOG", str(tmp_path / "sbatch.log"))
    return tmp_path / "sbatch.log"


def submitted(log: Path) -> list[list[str]]:
    """Arguments of each call of sbatch."""
    return [call.split("\n") for call in log.read_text().strip("\n").split("\n\n")]


def run_job(script: Path, task: int | None = None, status: int = 0) -> str:
    """Run a batch script as Slurm would; return what it wrote."""
    environment = os.environ | ({} if task is None else {"SLURM_ARRAY_TASK_ID": str(task)})
    result = subprocess.run(
        ["bash", str(script)], env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


def shards_of(out: Path) -> dict[str, bytes]:
    """The tree without what the jobs were told and said."""
    return {name: data for name, data in tree(out).items() if not name.startswith("slurm/")}


def test_the_array_makes_the_shards_of_a_local_run(tmp_path: Path, sbatch_log: Path) -> None:
    source = write_pmc(tmp_path / "a source", articles=30, figures=2)
    out = tmp_path / "the shards"
    stage = [sys.executable, "-m", "data_prep", "pmc", f"source={source}", "articles_per_shard=4"]
    options = ["slurm.tasks=3", "slurm.cpus=2", "slurm.at_once=2", "slurm.partition=big"]
    options += ["slurm.hours=1.5", "slurm.options=[--qos=low]", "slurm.setup=[export MARK=1]"]
    result = subprocess.run(
        [*stage, f"out={out}", "runner=slurm", *options],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    assert not (out / "manifest.json").exists()
    assert not list(out.glob("*.tar"))
    (array,) = out.glob("slurm/*/array.sh")
    finish = array.with_name("finish.sh")
    assert submitted(sbatch_log) == [
        ["--parsable", str(array)],
        ["--parsable", "--dependency=afterany:4001", str(finish)],
    ]
    asked = [line for line in array.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --array=0-2%2", "#SBATCH --cpus-per-task=2", "#SBATCH --mem=8G"} < set(asked)
    assert {"#SBATCH --partition=big", "#SBATCH --time=90", "#SBATCH --qos=low"} < set(asked)
    assert "\nexport MARK=1\n" in array.read_text()
    assert array.read_text() in result.stdout
    assert finish.read_text() in result.stdout
    assert "submitted array 4001 and job 4002" in result.stdout

    for task in (2, 0, 1):
        assert not (out / "manifest.json").exists()
        run_job(array, task)
    run_job(array, 1)  # as if it had been requeued: nothing is left to do
    run_job(finish)
    subprocess.run([*stage, f"out={tmp_path / 'local'}"], cwd=REPOSITORY, check=True)
    assert shards_of(out) == tree(tmp_path / "local")
    assert not list(out.glob("slurm/*/*.pickle"))

    again = subprocess.run(
        [*stage, f"out={out}", "runner=slurm"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    assert len(submitted(sbatch_log)) == 2, "nothing was left to submit"
    assert "units were done before" in again.stdout


def test_failures_are_reported_by_the_last_job(tmp_path: Path, sbatch_log: Path) -> None:
    out, faults = tmp_path / "out", tmp_path / "faults"
    faults.mkdir()
    (faults / "train-00001").write_text("raise 99")
    settings = (f"faults={faults}", "runner=slurm", "slurm.tasks=2", "slurm.cpus=1", "retries=1")
    run_synthetic(out, *settings)
    (array,) = out.glob("slurm/*/array.sh")
    finish = array.with_name("finish.sh")
    # The units are train-00000 to -00009, val-00000, test-00000: task 1 has those of odd places.
    assert "train-00001: ValueError: two; lines (2 attempts)" in run_job(array, 1, status=1)
    lines = run_job(finish, status=1).splitlines()
    assert lines[0].startswith("error: 7 of 12 units failed, so no manifest was written")
    assert "  train-00001: ValueError: two; lines (2 attempts)" in lines
    assert "  train-00000: its job ended before it was made; see the job's log" in lines
    assert not (out / "manifest.json").exists()

    faults.joinpath("train-00001").unlink()
    run_synthetic(out, *settings)
    assert list(out.glob("slurm/*/array.sh")) == [array]
    run_job(array, 0)
    run_job(array, 1)
    run_job(finish)
    run_synthetic(tmp_path / "local")
    assert shards_of(out) == tree(tmp_path / "local")
    assert len(submitted(sbatch_log)) == 4


def test_jobs_of_an_older_plan_write_nothing(tmp_path: Path, sbatch_log: Path) -> None:
    out = tmp_path / "out"
    run_synthetic(out, "runner=slurm")
    (array,) = out.glob("slurm/*/array.sh")
    run_synthetic(out, "size=50")
    expected = shards_of(out)
    for script, task in ((array, 0), (array.with_name("finish.sh"), None)):
        assert "a later run has planned this folder anew" in run_job(script, task, status=2)
    assert shards_of(out) == expected
    assert manifest_of(out)["config"]["size"] == 50
    assert len(submitted(sbatch_log)) == 2


def test_without_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    out = tmp_path / "out"
    result = run_synthetic(out, "runner=slurm", status=2)
    (array,) = out.glob("slurm/*/array.sh")
    by_hand = f"job=$(sbatch --parsable {array}) && sbatch --dependency=afterany:${{job%%;*}} "
    assert f"no sbatch here; on a machine that has it run: {by_hand}" in result.stderr
    result = run_synthetic(out, "runner=slurm", "slurm.submit=false")
    assert f"to submit: {by_hand}" in result.stdout


def test_sbatch_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: no such part' >&2; exit 1")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    result = run_synthetic(tmp_path / "out", "runner=slurm", status=2)
    assert result.stderr.endswith("status 1: sbatch: error: no such part\n")
