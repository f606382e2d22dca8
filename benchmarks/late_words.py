"""Captions whose telling words come late: what a context of 77 tokens cuts off.

    python -m benchmarks.late_words shards=data/phantom/shards \
        text=data/text_en/pubmedqa_abstracts.jsonl out=data/late
    python -m data_prep table source=data/late/table.jsonl group=article split=split \
        licence_text=ours out=data/late/shards

Each caption of a shard folder gets 0 to 120 words of running text before it, which say nothing of
its figure. The same seed gives the same captions; images, articles and splits stay as they are.
configs/text/small/context.yaml compares encoders on them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from vlp.config import UserError, load_config, run_program, write_text
from vlp.data.index import open_shards, splits
from vlp.data.order import generator
from vlp.text.corpora import CorpusConfig, read_documents


@dataclass(frozen=True, kw_only=True)
class LateWordsConfig:
    """Put running text before the captions of a shard folder."""

    shards: str = ""
    """Folder of figures and captions."""
    text: str = ""
    """File of JSON lines with `text` that has nothing to do with them."""
    out: str = ""
    """Folder for images/ and table.jsonl, which `python -m data_prep table` makes shards of."""
    words: int = 120
    """Words before a caption at most; how many is drawn for each."""
    seed: int = 0
    """Another seed puts other text before them."""

    def __post_init__(self) -> None:
        if not (self.shards and self.text and self.out) or self.words < 1:
            raise ValueError("set shards, text, out, and words to 1 or more")


def late_words(config: LateWordsConfig) -> int:
    """Write the table and its images; returns the number of pairs.

    Raises:
        UserError: the text is shorter than what may stand before a caption.
    """
    documents = read_documents(CorpusConfig(path=config.text))
    words = [w for each in documents for section in each.sections for w in section.text.split()]
    if len(words) <= config.words:
        raise UserError(f"{config.text}: only {len(words)} words; give a longer text")
    out = Path(config.out)
    (out / "images").mkdir(parents=True, exist_ok=True)
    index = pq.read_table(Path(config.shards) / "index.parquet", columns=["key", "article"])
    articles = {row["key"]: row["article"] for row in index.to_pylist()}
    rows: list[str] = []
    for split in splits(config.shards):
        shards = open_shards(config.shards, split)
        for number in range(len(shards)):
            sample = shards.read(number)
            rng = generator(config.seed, len(rows))
            count = int(rng.integers(config.words + 1))
            start = int(rng.integers(len(words) - config.words))
            before = words[start : start + count]
            name = f"images/{sample.key}"
            (out / name).write_bytes(sample.image)
            row = {
                "image": name,
                "caption": " ".join([*before, shards.caption(number)]),
                "article": articles[sample.key] or sample.key,
                "split": split,
            }
            rows.append(json.dumps(row, ensure_ascii=False))
    write_text(out / "table.jsonl", "\n".join(rows) + "\n")
    return len(rows)


def main(argv: list[str]) -> None:
    """Make the table."""
    config = load_config(LateWordsConfig, argv, "python -m benchmarks.late_words")
    print(f"{late_words(config)} pairs: {Path(config.out) / 'table.jsonl'}")


if __name__ == "__main__":
    run_program(main)
