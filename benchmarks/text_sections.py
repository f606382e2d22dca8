"""What matching sections buys: retrieval of the mate section on documents that were not trained on.

    python -m benchmarks.section_pairs articles=FOLDER out=data/pairs.jsonl
    python -m benchmarks.text_sections pairs=data/pairs.jsonl base=FOLDER
    python -m benchmarks.text_sections pairs=FILE.jsonl first=findings second=impression

The question (CXR-BERT, arXiv:2204.09817): does matching sections shape [CLS], which masked tokens
alone leave to itself? Two encoders get the same operations on the same text, one of them the
objective; both are scored by [CLS] and by the mean of their tokens. Beside them chance, the
encoder that they started from, and TF-IDF, which needs no training and is strong where sections
share words.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from benchmarks.measure import Result, Row, machine, report
from vlp.config import UserError, load_config, run_program
from vlp.data.text import PackedText
from vlp.models.text_tower import PackedBert
from vlp.text.sections import Recall, SectionMates, recall_of_mates, retrieve_mates
from vlp.text.settings import TextRunConfig
from vlp.text.store import TextStore
from vlp.text.trainer import TextTrainer

SETTINGS = """
name: run
own_vocabulary: {size: 2000}
model: {length: 128, max_positions: 128, width: 64, layers: 2, heads: 4, mlp_width: 256}
optimizer: {learning_rate: 1e-3, warmup_steps: 20}
train: {batch_size: 8, log_every: 50, eval_every: 0, checkpoint_every: 100000, workers: 0}
objectives: {sections: {corpus: pairs, pairs: 32, documents: 10000}}
"""


@dataclass(frozen=True, kw_only=True)
class SectionsBenchmark:
    """Train with and without matching sections, and retrieve."""

    pairs: str = ""
    """JSON lines with `id` and both sections."""
    base: str = ""
    """Folder of an encoder that both start from; empty: from nothing."""
    first: str = "caption"
    """Field of one section."""
    second: str = "mention"
    """Field of the other."""
    group_until: str = "#"
    """Mark in the ids up to which they name what must stay in one split."""
    text: str = ""
    """JSON lines with `text` and `id`: more text for masked tokens, in all arms."""
    flops: float = 1e12
    """Operations of each arm."""
    weight: float = 1.0
    """Factor on the loss of sections."""
    held_out: float = 0.2
    """Share of the documents that are held out."""
    seed: int = 0
    """Of the split, the weights and the order."""
    run: list[str] = field(default_factory=list)
    """Further settings of both runs, `key=value` of vlp.text_pretrain."""
    out: str = ""
    """JSON file for the result; empty writes none."""

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError("set pairs=FILE")


def settings(config: SectionsBenchmark, folder: Path, *overrides: str) -> TextRunConfig:
    """Of a run on the pairs, and on more text if there is some."""
    kept = {"duplicates": "none"}
    corpora: dict[str, object] = {
        "pairs": {
            "path": config.pairs,
            "fields": [config.first, config.second],
            "group_until": config.group_until,
            "cleaning": kept,
        }
    }
    if config.text:
        corpora["text"] = {"path": config.text}
    split = {"val_fraction": config.held_out, "seed": config.seed}
    where = {"runs": str(folder / "runs"), "cache": str(folder / "cache")}
    data = {**where, "seed": config.seed, "split": split, "corpora": corpora}
    (folder / "settings.yaml").write_text(SETTINGS)
    (folder / "data.yaml").write_text(json.dumps(data))  # JSON is YAML, too
    sections = [f"objectives.sections.{key}={getattr(config, key)}" for key in ("first", "second")]
    files = [str(folder / "settings.yaml"), str(folder / "data.yaml")]
    start = ["init=continual", "vocabulary=inherited", f"base={config.base}"] if config.base else []
    given = [*start, f"train.flops={config.flops}", *sections, *config.run, *overrides]
    return load_config(TextRunConfig, [*files, *given])


def pooled(bert: PackedBert, text: PackedText) -> Tensor:
    """The mean of each sequence's tokens, normalised: [B, width]."""
    lengths = text.cu_seqlens.diff().long()
    owners = torch.arange(len(lengths)).repeat_interleave(lengths)
    states = bert.states(text)
    sums = states.new_zeros(len(lengths), states.shape[1]).index_add_(0, owners, states)
    return F.normalize(sums, dim=-1)  # as of the means


def cls(bert: PackedBert, text: PackedText) -> Tensor:
    """Each sequence's [CLS], normalised: [B, width]."""
    return F.normalize(bert(text), dim=-1)


def tf_idf(store: TextStore, config: SectionsBenchmark, mates: SectionMates) -> Recall:
    """Recall of cosines of TF-IDF vectors, whose weights are those of the training documents."""

    def sections(split: str) -> list[tuple[str, str]]:
        found = []
        for document in store.documents(store.numbers(split)):
            texts = dict(document.sections)
            if config.first in texts and config.second in texts:
                found.append((texts[config.first], texts[config.second]))
        return found

    held_out = sections("val")
    digests = mates.read(torch.arange(len(mates.spans[0])).numpy()).digests
    if len(held_out) != len(digests):
        raise UserError("sections of a document that hold no tokens: clean the pairs")
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    vectorizer.fit([text for both in sections("train") for text in both])
    first, second = (
        torch.from_numpy(vectorizer.transform([both[i] for both in held_out]).toarray()).float()
        for i in (0, 1)
    )
    return recall_of_mates(first, second, digests)


def measure(config: SectionsBenchmark) -> Result:
    """Train both arms, and score everything on the same held-out documents."""
    found: dict[str, Recall] = {}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        weight = f"objectives.sections.weight={config.weight}"
        plain = TextTrainer(settings(config, folder, "name=plain"), print)
        matched = TextTrainer(settings(config, folder, "name=matched", weight), print)
        mates = matched.mates
        if mates is None:
            raise UserError("no document with both sections is held out; raise held_out")

        def score(embed: Callable[[PackedText], Tensor]) -> Recall:
            with torch.no_grad():
                return retrieve_mates(mates, embed, documents=10**9, part=64)

        berts = {"masked tokens": plain.model.lm.bert, "and sections": matched.model.lm.bert}
        found["TF-IDF"] = tf_idf(plain.data.stores["pairs"], config, mates)
        found["at the start, [CLS]"] = score(partial(cls, berts["masked tokens"]))
        found["at the start, mean of tokens"] = score(partial(pooled, berts["masked tokens"]))
        for trainer in (plain, matched):
            trainer.fit()
        for name, bert in berts.items():
            found[f"{name}, [CLS]"] = score(partial(cls, bert))
            found[f"{name}, mean of tokens"] = score(partial(pooled, bert))
        found["and sections, projected"] = score(partial(matched.model.embed, "sections"))
        steps = {name: t.schedule.steps for name, t in (("plain", plain), ("matched", matched))}
        trained = len(matched.objectives["sections"].drawer.spans[0])  # type: ignore[attr-defined]
    documents = found["TF-IDF"].documents
    rows = [Row("chance", "R@1", 1 / documents)]
    for name, recall in found.items():
        rows.append(Row(f"{name}: {config.second} of {config.first}", "R@1", recall[0]))
        rows.append(Row(f"{name}: {config.first} of {config.second}", "R@1", recall[1]))
    facts = {
        **machine(),
        "pairs": f"{trained} for training, {documents} held out",
        "base": config.base or "none",
        "operations": f"{config.flops:g} each; steps: {steps}",
        "seed": str(config.seed),
    }
    return Result("text_sections", facts, tuple(rows))


def main(argv: list[str]) -> None:
    """Measure and print."""
    config = load_config(SectionsBenchmark, argv, "python -m benchmarks.text_sections")
    report([measure(config)], config.out)


if __name__ == "__main__":
    run_program(main)
