"""Units on a Slurm cluster: an array of jobs that make them, and a job that finishes.

`write_job` leaves in `<out>/slurm/<plan>/` two batch scripts, the units of each array task and a
folder for logs; `submit` hands the scripts to sbatch. The jobs run this module as a program:

    python -m data_prep.slurm task FOLDER NUMBER    make the units of one array task
    python -m data_prep.slurm finish FOLDER         write index and manifest, or report failures
"""

import pickle
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.progress import Meter
from data_prep.runners import Processes, UnitsFailed, attempt_all, shown
from data_prep.units import (
    Plan,
    Produce,
    Unit,
    UnitMaker,
    check_plan,
    failure_report,
    finish,
    folder_lock,
    follow,
    unfinished,
)
from vlp.config import UserError, run_program

_REPOSITORY = Path(__file__).resolve().parents[1]
_JOB, _ARRAY, _FINISH = "job.pickle", "array.sh", "finish.sh"


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """What runner=slurm asks Slurm for."""

    tasks: int = 1000
    """Array tasks, at most; the units are dealt out among them. Slurm's MaxArraySize bounds it."""
    at_once: int = 0
    """Array tasks that may run at the same time; 0 leaves it to Slurm."""
    cpus: int = 4
    """Cores, and worker processes, of an array task."""
    memory: str = "8G"
    """Memory of an array task, in Slurm's notation."""
    hours: float = 12.0
    """Time limit of an array task, and of the job that finishes."""
    partition: str = ""
    """Partition; empty takes the cluster's default."""
    account: str = ""
    """Account; empty takes the user's default."""
    options: list[str] = field(default_factory=list)
    """More options of sbatch, such as --qos=low."""
    setup: list[str] = field(default_factory=list)
    """Shell commands that the jobs run first, such as `module load python`."""
    submit: bool = True
    """False writes and prints the scripts without submitting them."""

    def __post_init__(self) -> None:
        if min(self.tasks, self.cpus) < 1 or self.at_once < 0 or self.hours <= 0:
            raise ValueError("slurm: set tasks and cpus to 1 or more, hours above 0, at_once >= 0")


@dataclass(frozen=True)
class Job:
    """All that the jobs need to know, besides the units."""

    out: Path
    mark: str
    """Name of the plan: its fingerprint."""
    plan: Plan
    settings: dict[str, Any]
    config: Any
    produce: Produce


def write_job(job: Job, pending: list[Unit]) -> Path:
    """Write scripts and tasks for the units that are not done; return their folder."""
    options: SlurmOptions = job.config.slurm
    folder = job.out / "slurm" / job.mark[:12]
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    count = min(options.tasks, len(pending))
    for number in range(count):
        _dump(_task_file(folder, number), pending[number::count])
    # Only the tasks need the items, and a plan can hold millions of them.
    bare = tuple(replace(unit, items=()) for unit in job.plan.units)
    _dump(folder / _JOB, replace(job, plan=replace(job.plan, units=bare)))
    limit = f"%{options.at_once}" if options.at_once else ""
    array = [f"--array=0-{count - 1}{limit}", f"--cpus-per-task={options.cpus}", "--requeue"]
    logs = shlex.quote(str(folder / "logs"))
    name = f"{job.plan.stage}-{folder.name}"
    task = _script(folder, options, name, [*array, f"--output={logs}/%A_%a.log"])
    (folder / _ARRAY).write_text(task + f'{_command("task", folder)} "$SLURM_ARRAY_TASK_ID"\n')
    end = _script(folder, options, f"{name}-end", [f"--output={logs}/finish_%j.log"])
    (folder / _FINISH).write_text(end + _command("finish", folder) + "\n")
    return folder


def submit(folder: Path, options: SlurmOptions, console: Console) -> None:
    """Print the scripts and hand them to sbatch.

    Raises:
        UserError: there is no sbatch here, or it refused.
    """
    by_hand = (
        f"job=$(sbatch --parsable {shlex.quote(str(folder / _ARRAY))}) && "
        f"sbatch --dependency=afterany:${{job%%;*}} {shlex.quote(str(folder / _FINISH))}"
    )
    for name in (_ARRAY, _FINISH):
        console.print(f"--- {folder / name}", soft_wrap=True, highlight=False, markup=False)
        script = (folder / name).read_text(encoding="utf-8")
        console.print(script, soft_wrap=True, highlight=False, markup=False)
    if not options.submit:
        console.print(f"to submit: {by_hand}", soft_wrap=True, highlight=False, markup=False)
        return
    if shutil.which("sbatch") is None:
        raise UserError(f"runner=slurm: no sbatch here; on a machine that has it run: {by_hand}")
    array = _sbatch(str(folder / _ARRAY))
    # afterany: it also has to report what failed.
    end = _sbatch(f"--dependency=afterany:{array}", str(folder / _FINISH))
    console.print(
        f"submitted array {array} and job {end}, which writes the manifest after it; "
        f"logs go to {folder / 'logs'}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def run_task(folder: Path, number: int) -> None:
    """Make the units of one array task that are not done yet.

    Raises:
        UnitsFailed: some could not be made.
        UserError: a later run has replaced the plan, or is working in the folder.
    """
    job: Job = _load(folder / _JOB)
    units: list[Unit] = _load(_task_file(folder, number))
    config, console = job.config, Console()
    with folder_lock(job.out, shared=True) as lock:
        check_plan(job.out, job.mark)
        pending = unfinished(job.out, units)
        maker = UnitMaker(job.out, config, job.produce, lock)
        outcomes = attempt_all(Processes(maker, config.slurm.cpus), pending, config.retries)
        meter = Meter(len(pending), job.plan.noun)
        follow(job.out, shown(outcomes, meter, console, config.report_every), len(units))


def run_finish(folder: Path) -> None:
    """Write index, rejects and manifest when all units are done.

    Raises:
        UnitsFailed: some are not.
        UserError: a later run has replaced the plan, or there is no sample.
    """
    job: Job = _load(folder / _JOB)
    with folder_lock(job.out):
        check_plan(job.out, job.mark)
        missing = unfinished(job.out, job.plan.units)
        if missing:
            raise failure_report(job.out, missing, len(job.plan.units))
        finish(job.out, job.plan, job.settings, Console())
    for path in folder.glob("*.pickle"):
        path.unlink()


def main(argv: list[str]) -> None:
    """What the batch scripts call."""
    try:
        if argv[:1] == ["task"] and len(argv) == 3:
            run_task(Path(argv[1]), int(argv[2]))
        elif argv[:1] == ["finish"] and len(argv) == 2:
            run_finish(Path(argv[1]))
        else:
            raise UserError("usage: python -m data_prep.slurm task FOLDER NUMBER | finish FOLDER")
    except UnitsFailed as error:
        raise SystemExit(f"error: {error}") from None


def _sbatch(*arguments: str) -> str:
    """Submit; return the job's number."""
    command = ["sbatch", "--parsable", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        message = " ".join(result.stderr.split())
        raise UserError(f"{shlex.join(command)}: status {result.returncode}: {message}")
    return result.stdout.strip().partition(";")[0]


def _script(folder: Path, options: SlurmOptions, name: str, more: list[str]) -> str:
    """The beginning of a batch script: what to ask for, and the environment of this process."""
    wanted = [f"--job-name={name}", f"--time={max(1, round(options.hours * 60))}"]
    wanted += [f"--mem={options.memory}"]
    wanted += [f"--partition={options.partition}"] if options.partition else []
    wanted += [f"--account={options.account}"] if options.account else []
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in [*wanted, *more, *options.options])]
    lines += ["set -euo pipefail", f"cd {shlex.quote(str(Path.cwd()))}"]
    path = shlex.quote(str(_REPOSITORY))
    lines += [f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}} OMP_NUM_THREADS=1"]
    return "\n".join([*lines, *options.setup]) + "\n"


def _command(action: str, folder: Path) -> str:
    return shlex.join([sys.executable, "-m", "data_prep.slurm", action, str(folder)])


def _task_file(folder: Path, number: int) -> Path:
    return folder / f"task-{number:05d}.pickle"


def _dump(path: Path, content: Any) -> None:
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=pickle.HIGHEST_PROTOCOL)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: missing; the run is finished, or was planned anew")
    with path.open("rb") as file:
        return pickle.load(file)  # noqa: S301 -- written by write_job into the user's own folder


if __name__ == "__main__":
    run_program(main)
