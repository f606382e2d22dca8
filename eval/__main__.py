"""python -m eval SUITE.yaml model=... [data_root=...] [out=...] [only=[TASK,...]] [key=value]"""

import shlex
from pathlib import Path

from eval.config import EvalConfig
from eval.report import write_report
from eval.results import print_table, write_results
from eval.suite import run_suite
from vlp.config import load_config, run_program


def main(argv: list[str]) -> None:
    """Score a model on a suite; writes results.json and report.html."""
    config = load_config(EvalConfig, argv, "python -m eval")
    files = [arg for arg in argv if Path(arg).is_file()]
    command = shlex.join(["python", "-m", "eval", *argv])
    run = run_suite(config, " + ".join(files) or "command line", command)
    write_results(run)
    report = write_report(run)
    print_table(run, report)


if __name__ == "__main__":
    run_program(main)
