"""A corpus of reports, one of articles, and a graph of concepts, all of them small and made up."""

import json
from itertools import product
from pathlib import Path

import numpy as np

from vlp.config import load_config
from vlp.data.text import CaptionTokenizer
from vlp.models.text_tower import PackedBert, TextConfig
from vlp.text.cache import TokenStore, tokenize
from vlp.text.cleaning import CleaningConfig
from vlp.text.corpora import CorpusConfig
from vlp.text.documents import SplitConfig
from vlp.text.settings import TextRunConfig
from vlp.text.store import TextStore, prepare
from vlp.text.vocabulary import VocabularyConfig, train_vocabulary

SITES = [
    "skull",
    "jaw",
    "neck",
    "clavicle",
    "rib",
    "spine",
    "pelvis",
    "femur",
    "knee",
    "tibia",
    "ankle",
    "toe",
    "wrist",
    "thumb",
]
SIGNS = ["fracture", "tumour", "cyst", "abscess"]
NORMAL = "no acute finding."
LENGTH = 24


def reports(count: int = 90) -> list[dict[str, str]]:
    """Findings and impression; every fifth impression is the same."""
    found = []
    for number, (site, sign) in zip(range(count), list(product(SITES, SIGNS)) * 9, strict=False):
        findings = f"case {number}: the {site} shows a {sign}. bones are shown."
        impression = NORMAL if number % 5 == 0 else f"{sign} of the {site}, {number}."
        found.append({"id": f"r{number}", "findings": findings, "impression": impression})
    return found


def articles(count: int = 30) -> list[dict[str, str]]:
    """1 to 12 sentences, each with numbers that stand nowhere else."""
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        sentences = [
            f"patient {number} has {rng.choice(SIGNS)} {place} in the {rng.choice(SITES)}."
            for place in range(1 + number % 12)
        ]
        found.append({"id": f"a{number}", "text": " ".join(sentences)})
    return found


TRIPLES = [
    (f"{sign} of the {site}", relation, other)
    for site, sign in product(SITES[:6], SIGNS)
    for relation, other in (("found in", site), ("is a", sign))
]


class Home:
    """Corpora, tokenizer, tokens and a graph in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stores = folder, dict[str, TextStore]()
        plain = CleaningConfig(ill_formed=False, duplicates="none", languages=())
        records = {"reports": reports(), "articles": articles()}
        self.corpora = {
            "reports": CorpusConfig(
                path=str(folder / "r.jsonl"), fields=("findings", "impression")
            ),
            "articles": CorpusConfig(path=str(folder / "a.jsonl")),
        }
        for name, corpus in self.corpora.items():
            lines = [json.dumps(record) for record in records[name]]
            Path(corpus.path).write_text("\n".join(lines))
            split = SplitConfig(val_fraction=0.3)
            self.stores[name] = prepare(corpus, plain, split, folder / "cache")
        texts = [text for rows in records.values() for row in rows for text in row.values()]
        train_vocabulary(texts, VocabularyConfig(size=300), folder / "vocabulary")
        self.tokenizer = CaptionTokenizer(folder / "vocabulary", LENGTH)
        (folder / "graph.tsv").write_text("".join("\t".join(t) + "\n" for t in TRIPLES))
        self.file = folder / "run.yaml"  # all objectives are on; written once, ranks read it
        self.file.write_text(
            "name: run\n"
            "corpora:\n"
            f"  reports: {{path: {folder}/r.jsonl, fields: [findings, impression],\n"
            "            cleaning: {ill_formed: false, duplicates: none}}\n"
            f"  articles: {{path: {folder}/a.jsonl,\n"
            "             cleaning: {ill_formed: false, duplicates: none}}\n"
            "model: {length: 24, max_positions: 32, width: 32, layers: 2, heads: 2,\n"
            "        mlp_width: 48}\n"
            "objectives:\n"
            "  next_sentence: 0.5\n"
            "  next_sentence_pairs: 8\n"
            "  sections: {weight: 0.7, corpus: reports, first: findings, second: impression,\n"
            "             pairs: 12, width: 16}\n"
            f"  graph: {{weight: 0.3, triples: {folder}/graph.tsv, batch: 8, negatives: 10}}\n"
        )

    def tokens(self, split: str = "train") -> dict[str, TokenStore]:
        cache, vocabulary = self.folder / "cache", self.folder / "vocabulary"
        return {
            name: tokenize(store, split, vocabulary, cache) for name, store in self.stores.items()
        }

    @property
    def sizes(self) -> dict[str, int]:
        return {name: store.bytes() for name, store in self.stores.items()}

    def config(self, *overrides: str) -> TextRunConfig:
        return load_config(TextRunConfig, [str(self.file), *overrides])

    def bert(self) -> PackedBert:
        return PackedBert(self.encoder())

    def encoder(self) -> TextConfig:
        return self.config().model.bert(self.tokenizer.vocab_size)
