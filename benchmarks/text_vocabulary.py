"""What a domain's text should weigh when a vocabulary is trained: pieces per word, four mixtures.

    python -m benchmarks.text_vocabulary large=general.jsonl small=domain.jsonl

Both are JSON lines with `text` and `id`. Claim (ouBioBERT, arXiv:2005.07202): a small corpus that
is amplified to the size of the large one buys most of what a vocabulary of the small one alone
gives in the domain, at a small price in general text. Words are counted in held-out documents;
another seed holds out others. The value is the mean over seeds, with the least and the greatest.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.measure import Result, Row, machine, report
from vlp.config import UserError, load_config, run_program
from vlp.text.cleaning import CleaningConfig
from vlp.text.corpora import CorpusConfig
from vlp.text.documents import SplitConfig
from vlp.text.mixture import AUTO, MixedTexts, MixtureConfig, StageConfig, passes
from vlp.text.store import TextStore, prepare
from vlp.text.vocabulary import VocabularyConfig, train_vocabulary
from vlp.text.vocabulary_report import count_words, domain_terms, vocabulary_report

ARMS = {
    "large only": {"large": "1"},
    "concatenated": {"large": "1", "small": "1"},
    "amplified": {"large": AUTO, "small": AUTO},
    "small only": {"small": "1"},
}


@dataclass(frozen=True, kw_only=True)
class VocabularyBenchmark:
    """Measure vocabularies of a large general and a small domain corpus."""

    large: str = ""
    """File, folder or pattern of JSON lines with general text."""
    small: str = ""
    """The same with the domain's text."""
    group_until: str = ""
    """Mark in the ids up to which they name what must stay in one split."""
    vocabulary: VocabularyConfig = field(default_factory=lambda: VocabularyConfig(size=8000))
    """Kind and size of all of them."""
    seeds: int = 3
    """Splits by document to repeat it with."""
    held_out: float = 0.1
    """Share of the documents on which words are counted."""
    out: str = ""
    """JSON file for the result; empty writes none."""

    def __post_init__(self) -> None:
        if not self.large or not self.small:
            raise ValueError("set large=FILE and small=FILE")
        if self.seeds < 1:
            raise ValueError("seeds: set 1 or more")


def one_seed(config: VocabularyBenchmark, seed: int, folder: Path) -> dict[tuple[str, str], float]:
    """(arm, figure) -> value, for one split."""
    stores: dict[str, TextStore] = {}
    split = SplitConfig(seed=seed, val_fraction=config.held_out)
    for name, path in (("large", config.large), ("small", config.small)):
        corpus = CorpusConfig(path=path, group_until=config.group_until)
        stores[name] = prepare(corpus, CleaningConfig(), split, folder / "cache", print)
    counts = {
        name: count_words(
            section.text
            for document in store.documents(store.numbers("val"))
            for section in document.sections
        )
        for name, store in stores.items()
    }
    if not all(counts.values()):
        raise UserError("no words are held out in one of the corpora; set held_out higher")
    terms = domain_terms(counts["small"], counts["large"])
    found: dict[tuple[str, str], float] = {}
    for arm, weights in ARMS.items():
        mixture = MixtureConfig(stages=[StageConfig(weights=weights)], seed=seed)
        start = time.perf_counter()
        target = folder / f"{arm}-{seed}"
        train_vocabulary(MixedTexts(stores, mixture), config.vocabulary, target)
        took = time.perf_counter() - start
        read = sum(
            times * stores[name].bytes()
            for name, times in passes(weights, {n: s.bytes() for n, s in stores.items()}).items()
        )
        tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
        figures = vocabulary_report(tokenizer, counts["small"], counts["large"], terms)
        found[arm, "pieces per word, domain"] = figures.in_domain
        found[arm, "pieces per word, general"] = figures.general
        found[arm, "terms that are one piece"] = figures.single_piece
        found[arm, "training, s per GB"] = took / read * 1e9
    amplified = passes(ARMS["amplified"], {name: s.bytes() for name, s in stores.items()})
    found["amplified", "passes over the small corpus"] = amplified["small"]
    return found


def measure(config: VocabularyBenchmark) -> Result:
    """All arms with all seeds."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [one_seed(config, seed, Path(folder)) for seed in range(config.seeds)]
    rows = []
    for arm, figure in runs[0]:
        values = [run[arm, figure] for run in runs]
        unit = "s" if figure.startswith("training") else "pieces" if "pieces" in figure else ""
        mean = statistics.fmean(values)
        rows.append(Row(f"{arm}: {figure}", unit, mean, min(values), max(values)))
    facts = {
        **machine(),
        "large": config.large,
        "small": config.small,
        "vocabulary": f"{config.vocabulary.kind}, {config.vocabulary.size}",
    }
    return Result("text_vocabulary", facts, tuple(rows))


def main(argv: list[str]) -> None:
    """Measure and print."""
    config = load_config(VocabularyBenchmark, argv, "python -m benchmarks.text_vocabulary")
    report([measure(config)], config.out)


if __name__ == "__main__":
    run_program(main)
