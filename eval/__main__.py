"""python -m eval SUITE.yaml model=... [data_root=...] [out=...] [only=[TASK,...]] [key=value]

python -m eval COMMAND [argument ...] runs one of the commands below.
"""

import importlib
import shlex
from pathlib import Path

from eval.suite_files import load_suite
from vlp.config import UserError, need, run_program

COMMANDS: dict[str, str] = {
    "check": "eval.checking",
    "compare": "eval.compare",
    "fetch": "eval.fetch",
    "list": "eval.catalogue",
    "probe": "eval.probe",
    "questions": "eval.questions",
    "table": "eval.table",
    "demo": "eval.demo.program",
    "vqa-train": "eval.vqa_train",
}
"""Name -> module with `main(argv)`; imported when it is called, since most need no torch."""


def main(argv: list[str]) -> None:
    """Run a command, or score a model on a suite."""
    first = argv[0] if argv else ""
    if first in COMMANDS:
        importlib.import_module(COMMANDS[first]).main(argv[1:])
    elif first and "=" not in first and first[0] != "-" and not Path(first).suffix:
        known = ", ".join(COMMANDS) or "none"
        raise UserError(f"{first}: neither a suite's file nor a command; commands are {known}")
    elif not argv:
        known = ", ".join(COMMANDS)
        raise UserError(f"name a suite's file, or a command: {known}; see python -m eval --help")
    else:
        if first in ("-h", "--help"):
            print(f"usage: python -m eval COMMAND ..., one of {', '.join(COMMANDS)}; or")
        score(argv)


def score(argv: list[str]) -> None:
    """Score a model on a suite; writes TASK.json, TASK.items.parquet and report.html."""
    config = load_suite(argv, "python -m eval")
    if config.wandb.mode != "disabled":
        need("wandb", f"wandb.mode={config.wandb.mode}")

    # These import torch, which takes seconds: a mistake in the suite is told before.
    from eval.console import print_table
    from eval.report import write_report
    from eval.suite import run_suite
    from eval.wandb_log import log_run

    files = [arg for arg in argv if Path(arg).is_file()]
    command = shlex.join(["python", "-m", "eval", *argv])
    run = run_suite(config, " + ".join(files) or "command line", command)
    if run is None:  # a helper of rank 0
        return
    report = write_report(run)
    print_table(
        f"{config.name}: {run.model.name}", [done.record for done in run.tasks.values()], report
    )
    log_run(run, report)


if __name__ == "__main__":
    run_program(main)
