"""What curation found besides the samples: tables of copies and of leaks, a mixture to train on."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from data_prep.decisions import Decisions, group_of
from data_prep.inspection import Source
from data_prep.shards import atomic, write_table
from vlp.config import UserError

DUPLICATES, LEAKS, MIXTURE = "duplicates.parquet", "leaks.parquet", "mixture.yaml"


def write_findings(
    out: Path, sources: list[Source], source: Source, facts: pa.Table, made: Decisions
) -> None:
    """duplicates.parquet and leaks.parquet: what was found for the samples of one source."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: cannot be made a folder: {error.strerror}") from None
    inside = range(source.samples.start, source.samples.stop)
    pairs = [pair for pair in made.duplicates if pair[0] in inside]
    dropped = facts.take(pa.array([pair[0] for pair in pairs], pa.int64()))
    kept = facts.take(pa.array([pair[1] for pair in pairs], pa.int64()))
    starts = [other.start for other in sources]
    owners = np.searchsorted(starts, [pair[1] for pair in pairs], side="right") - 1
    bits = np.bitwise_count(dropped["phash"].to_numpy() ^ kept["phash"].to_numpy())
    table = pa.table(
        {
            "key": dropped["key"],
            "article": dropped["article"],
            "kept_key": kept["key"],
            "kept_article": kept["article"],
            "kept_source": pa.array([sources[n].name for n in owners.tolist()], pa.string()),
            "bits": pa.array(bits, pa.uint8()),
        }
    )
    write_table(out / DUPLICATES, table.schema, [table])
    leaks = [leak for leak in made.leaks if leak[0] in inside]
    found = facts.take(pa.array([leak[0] for leak in leaks], pa.int64()))
    splits = [str(made.split[leak[0]]) for leak in leaks]
    table = pa.table(
        {
            "key": found["key"],
            "article": found["article"],
            "split": pa.array(splits, pa.string()),
            "set": pa.array([leak[1] for leak in leaks], pa.string()),
            "item": pa.array([leak[2] for leak in leaks], pa.string()),
            "bits": pa.array([leak[3] for leak in leaks], pa.uint8()),
        }
    )
    write_table(out / LEAKS, table.schema, [table])


def write_mixture(out: Path, weights: dict[str, float]) -> None:
    """The sources as configuration for train.py."""
    named = {
        name: {"path": (out / name).as_posix(), "weight": weight}
        for name, weight in weights.items()
        if weight > 0
    }
    with atomic(out / MIXTURE) as temporary:
        text = yaml.safe_dump({"data": {"sources": named}}, sort_keys=True)
        temporary.write_text(text, encoding="utf-8")


def print_findings(made: Decisions, frozen: frozenset[str] | None, facts: pa.Table) -> None:
    """What the table of samples and rejects doesn't say."""
    leaks = Counter((name, str(made.split[sample])) for sample, name, _, _ in made.leaks)
    for (name, split), count in sorted(leaks.items()):
        what = "dropped" if split == "train" else "kept, so look at them"
        print(f"{count:,} {split} images are near images of {name}: {what}")
    for tag, values in made.entropies.items():
        print(f"selection: entropy of {tag} {values['entropy']:.3f} of {values['bound']:.3f} nats")
    if frozen is not None:
        present = {group_of(name) for name in pc.unique(facts["article"]).to_pylist()}
        if missing := len(frozen - present):
            print(f"{missing:,} of {len(frozen):,} frozen test articles are not in the source")
