"""`python -m data_prep STAGE [YAML ...] [key=value ...]`: makes, indexes and checks shards."""

import difflib
import importlib
from pathlib import Path
from typing import NamedTuple

from data_prep.runners import UnitsFailed, start_server
from vlp.config import UserError, load_config, run_program


class Stage(NamedTuple):
    """Where a stage lives: a module with the configuration class and `run(config)`."""

    module: str
    config: str
    summary: str


# Imported only when called: each stage needs other libraries.
STAGES = {
    "phantom": Stage("data_prep.phantom", "PhantomConfig", "draw an embedded corpus of articles"),
    "pmc": Stage("data_prep.pmc", "PmcConfig", "PubMed Central's bucket layout -> shards"),
    "jats": Stage("data_prep.packages", "JatsConfig", "JATS articles with figure files -> shards"),
    "table": Stage("data_prep.tables", "TableConfig", "image paths and captions -> shards"),
    "index": Stage("data_prep.indexing", "IndexConfig", "tars made by others -> index, manifest"),
    "curate": Stage("data_prep.curate", "CurateConfig", "filters, duplicates, leakage, selection"),
    "card": Stage("data_prep.card", "CardConfig", "card.html and card.json of a shard folder"),
    "check": Stage("data_prep.checking", "CheckConfig", "compare shards with their manifest"),
}
_TAKES_FOLDER = ("index", "check")  # DIR may stand for source=DIR


def main(argv: list[str]) -> None:
    """Run one stage."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m data_prep STAGE [YAML ...] [key=value ...]\n\nstages:")
        for name, stage in STAGES.items():
            print(f"  {name:9}{stage.summary}")
        print("\npython -m data_prep STAGE --help lists the keys of a stage")
        return
    name, *arguments = argv
    if name not in STAGES:
        near = difflib.get_close_matches(name, STAGES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the stages are {', '.join(STAGES)}"
        raise UserError(f"unknown stage '{name}'; {hint}")
    if name in _TAKES_FOLDER:
        arguments = [f"source={a}" if _is_folder(a) else a for a in arguments]
    stage = STAGES[name]
    module = importlib.import_module(stage.module)
    config_class = getattr(module, stage.config)
    config = load_config(config_class, arguments, f"python -m data_prep {name}")
    if getattr(config, "workers", 1) != 1 and getattr(config, "runner", "local") == "local":
        start_server()
    try:
        module.run(config)
    except UnitsFailed as error:
        raise SystemExit(f"error: {error}") from None  # printed to standard error, status 1


def _is_folder(argument: str) -> bool:
    plain = "=" not in argument and Path(argument).suffix not in (".yaml", ".yml")
    return Path(argument).is_dir() or (plain and not argument.startswith("-"))


if __name__ == "__main__":
    run_program(main)
