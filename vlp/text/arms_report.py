"""What arms have come to, as report.json and as tables; several seeds of them as one table.

    python -m vlp.text.arms_report RUNS/NAME-0 RUNS/NAME-1 RUNS/NAME-2

prints means, with the least and the greatest in brackets. Bits per character stand beside the floor
of piece frequencies, since the vocabulary alone moves both; nats per piece are in report.json only.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlp.config import UserError, run_program, write_text
from vlp.curves import read_metrics
from vlp.data.text import CaptionTokenizer
from vlp.text.clip_retrieval import RECALLS
from vlp.text.export import FACTS
from vlp.text.settings import TextRunConfig
from vlp.text.store import prepare
from vlp.text.vocabulary_report import count_words, pieces_per_word

JSON, MARKDOWN = "report.json", "report.md"
BITS, FLOOR, NATS = "val/bits_per_character/", "val/unigram_floor/", "val/nats_per_piece/"

Record = dict[str, Any]
"""One arm, as JSON."""


def arm_record(config: TextRunConfig, compared: bool, changes: Sequence[str]) -> Record:
    """What is known of an arm that has run to its end, but for retrieval.

    Args:
        config: its settings.
        compared: whether it is one of those that have spent the same.
        changes: what makes it differ from the others.
    """
    facts = json.loads((config.folder / "model" / FACTS).read_text("utf-8"))
    last: dict[str, float] = {}
    for row in read_metrics(config.folder / "metrics.jsonl"):
        last |= {key: value for key, value in row.items() if key.startswith("val/")}
    corpora = [key.removeprefix(BITS) for key in last if key.startswith(BITS)]
    weights = config.mixture.stages[-1].weights or config.corpora
    pieces = _pieces_per_word(config, corpora)
    return {
        "name": config.name.rpartition("/")[2],
        "compared": compared,
        "changes": list(changes),
        "seed": config.seed,
        **{key: facts[key] for key in ("steps", "tokens", "flops")},
        "corpora": {
            name: {
                "trained_on_last": name in weights,
                "bits_per_character": last[BITS + name],
                "unigram_floor": last[FLOOR + name],
                "nats_per_piece": last[NATS + name],
                "pieces_per_word": pieces[name],
            }
            for name in corpora
        },
        "other": {key: v for key, v in last.items() if not key.startswith((BITS, FLOOR, NATS))},
        "retrieval": {},
    }


def _pieces_per_word(config: TextRunConfig, corpora: Sequence[str]) -> dict[str, float]:
    """Of each corpus' held-out text by the arm's vocabulary."""
    folder = config.folder / "model"
    tokenizer = CaptionTokenizer(folder, config.model.length).tokenizer
    tokenizer.no_truncation()
    found = {}
    for name in corpora:
        source, cache = config.corpora[name], Path(config.cache)
        store = prepare(source, source.cleaning, config.split, cache, share=source.share)
        documents = store.documents(store.numbers("val"))
        words = count_words(section.text for each in documents for section in each.sections)
        found[name] = pieces_per_word(tokenizer, words)
    return found


def write_report(folder: Path, records: Sequence[Record]) -> str:
    """Write report.json and report.md; returns the latter."""
    write_text(folder / JSON, json.dumps({"arms": list(records)}, indent=2) + "\n")
    text = describe([records])
    write_text(folder / MARKDOWN, text + "\n")
    return text


def describe(runs: Sequence[Sequence[Record]]) -> str:
    """Tables in Markdown of one or several runs of the same arms.

    Args:
        runs: the arms of each, in the same order.
    """
    arms = list(zip(*runs, strict=True))
    return "\n\n".join(filter(None, [_spending(arms), _corpora(arms), _retrieval(arms)]))


Arms = Sequence[Sequence[Record]]
"""[arms][runs]"""


def _spending(arms: Arms) -> str:
    rows = []
    for arm in arms:
        first = arm[0]
        flops = [_mean([r["flops"][key] for r in arm], ".3g") for key in ("run", "base", "all")]
        steps, tokens = (_mean([r[key] for r in arm], ",.0f") for key in ("steps", "tokens"))
        what = ", ".join(f"`{change}`" for change in first["changes"])
        rows.append([_name(first), what, steps, tokens, *flops])
    head = ["arm", "what", "steps", "tokens", "operations", "+ its base's", "= all"]
    if all(arm[0]["compared"] for arm in arms):
        return _table(head, rows)
    return _table(head, rows) + "\n\nIn brackets: bases of others, and controls."


def _corpora(arms: Arms) -> str:
    """A row for each arm and corpus, in bold where the arm's last stage trains on it."""
    rows = []
    for name in dict.fromkeys(corpus for arm in arms for corpus in arm[0]["corpora"]):
        for arm in arms:
            of_corpus = [record["corpora"][name] for record in arm if name in record["corpora"]]
            if not of_corpus:
                continue
            bits, floor, pieces = (
                _mean([each[key] for each in of_corpus], ".3f")
                for key in ("bits_per_character", "unigram_floor", "pieces_per_word")
            )
            bold = f"**{name}**" if of_corpus[0]["trained_on_last"] else name
            rows.append([bold, _name(arm[0]), bits, floor, pieces])
    head = ["held-out text", "arm", "bits/character", "unigram floor", "pieces/word"]
    return _table(head, rows) + "\n\nIn bold: the arm was trained on this corpus at the end."


def _retrieval(arms: Arms) -> str:
    rows = []
    for source in dict.fromkeys(source for arm in arms for source in arm[0]["retrieval"]):
        for arm in arms:
            found = [r["retrieval"][source] for r in arm if source in r["retrieval"]]
            if found:
                where = f"{source} ({found[0]['split']}, n = {found[0]['n']})"
                recalls = [_recall([each[name] for each in found]) for name in RECALLS]
                chance = f"{found[0][RECALLS[0]]['chance']:.1%}"
                rows.append([where, _name(arm[0]), *recalls, chance])
    if not rows:
        return ""
    names = [name.replace("_recall", " R").replace("_", " ") for name in RECALLS]
    return _table(["after CLIP training", "arm", *names, "chance of R@1"], rows)


def _recall(scores: Sequence[Mapping[str, float]]) -> str:
    """One score with its interval, or the mean of several with the least and greatest."""
    if len(scores) > 1:
        return _mean([score["value"] for score in scores], ".1%")
    (score,) = scores
    return f"{score['value']:.1%} ({score['low']:.1%} - {score['high']:.1%})"


def _name(record: Record) -> str:
    return record["name"] if record["compared"] else f"({record['name']})"


def _mean(values: Sequence[float], form: str) -> str:
    mean, least, most = statistics.fmean(values), min(values), max(values)
    text = format(mean, form)
    return text if least == most else f"{text} [{least:{form}}, {most:{form}}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read_report(folder: str | Path) -> list[Record]:
    """The arms of a run that is complete.

    Raises:
        UserError: there is no report, or it is not readable.
    """
    file = Path(folder) / JSON
    try:
        arms = json.loads(file.read_text("utf-8"))["arms"]
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; run the arms to their end") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: no report of arms ({error!r})") from None
    if not isinstance(arms, list) or not all(
        isinstance(arm, dict) and "name" in arm for arm in arms
    ):
        raise UserError(f"{file}: no report of arms")
    return arms


def main(argv: list[str]) -> None:
    """Print one table of several runs of the same arms."""
    if not argv:
        raise UserError(
            "give the folders of runs with arms: python -m vlp.text.arms_report FOLDER ..."
        )
    runs = [read_report(folder) for folder in argv]
    names = [[arm["name"] for arm in run] for run in runs]
    for folder, of_run in zip(argv, names, strict=True):
        if of_run != names[0]:
            raise UserError(
                f"{folder}: its arms are {', '.join(of_run)}, those of {argv[0]} "
                f"{', '.join(names[0])}; give runs of the same arms"
            )
    print(describe(runs))  # noqa: T201  the program's output


if __name__ == "__main__":
    run_program(main)
