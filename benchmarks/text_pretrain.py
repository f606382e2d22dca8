"""Pretraining on text: our packed step beside a plain loop of transformers, in turn in one process.

    python -m benchmarks.text_pretrain texts='text/*.jsonl'
    python -m benchmarks.text_pretrain texts=... device=cuda out=FILE.json

Claim: on real documents our step makes the gradients of BertForMaskedLM, several times faster and
in a fraction of the memory: it computes no padding, and the logits of masked tokens alone.

Same weights, sequences, AdamW. Tokens a second count real tokens, [CLS] and [SEP] included, never
padding. On the CPU a small BERT in fp32, on CUDA BERT-base under bf16 autocast. Their contenders:

- padded: a document is a sequence (cut at `length`), a batch is padded to its longest.
- blocks: all documents one after the other, cut every `length` tokens: no padding, but attention
  crosses documents, and sequences begin anywhere. Not the same task; run_mlm.py's default.
- length groups: padded, batches made of sequences of similar lengths (`groups=true`): Trainer's
  group_by_length. Not the same batches: each then has sequences of one length only.

Batches are made beforehand, as loader processes do; what making them takes has its own rows. Also:
training the vocabulary, beside their train_new_from_iterator; with `trainer_steps` whole trainers.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.corpus import captions
from benchmarks.measure import (
    Result,
    Row,
    interleaved,
    machine,
    median_row,
    paired_ratio,
    report,
)
from benchmarks.sides import relative_difference
from benchmarks.text_sides import (
    OurBatches,
    Ours,
    Padded,
    TheirBatches,
    Theirs,
    blocks,
    padded,
)
from benchmarks.text_trainers import Job, trainer_rows
from benchmarks.train_step import memory
from vlp.config import UserError, load_config, run_program
from vlp.data.text import CaptionTokenizer
from vlp.models.text_tower import TextConfig
from vlp.text.batches import TextBatch
from vlp.text.cache import PackedCorpora, tokenize
from vlp.text.cleaning import CleaningConfig
from vlp.text.corpora import CorpusConfig
from vlp.text.documents import SplitConfig
from vlp.text.masking import MaskingConfig
from vlp.text.mixture import MixedTexts, MixtureConfig
from vlp.text.store import TextStore, prepare
from vlp.text.vocabulary import VocabularyConfig, train_vocabulary

PADDED, BLOCKS = "transformers, padded", "transformers, blocks"
GROUPS, OURS = "transformers, length groups", "ours, packed"
POOL = 8
"""Batches whose sequences are sorted by length together, for the groups."""


@dataclass(frozen=True, kw_only=True)
class TextPretrainConfig:
    """Time pretraining on text against a loop of transformers."""

    texts: str = ""
    """File, folder or pattern of JSON lines with `text`; empty: generated captions."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a device."""
    generated: int = 2000
    """Captions that are generated without `texts`."""
    length: int = 256
    """Tokens of a row, and of a sequence at most."""
    rows: int = 0
    """Rows in a batch; 0: 8 on the CPU, 128 on CUDA."""
    layers: int = 0
    """Transformer layers; 0: 4 on the CPU, 12 on CUDA."""
    width: int = 0
    """Size of a token's vector, a multiple of 64; 0: 256 on the CPU, 768 on CUDA."""
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    """What is trained on the texts."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """What is hidden; the collator masks whole words all, never swaps them."""
    groups: bool = False
    """Whether to time length groups, too."""
    trainer_steps: int = 0
    """Steps over which transformers' whole Trainer and ours are timed, after as many that are not;
    0: they are left out. Needs the package accelerate."""
    threads: int = 1
    """Threads on the CPU."""
    repetitions: int = 0
    """Batches, each of them a step of every contender; 0: 7 on the CPU, 30 on CUDA."""
    seed: int = 0
    """Seed of the weights."""
    out: str = ""
    """JSON file for the result; empty writes none."""

    def __post_init__(self) -> None:
        if self.width % 64 or min(self.rows, self.layers, self.width, self.repetitions) < 0:
            raise ValueError("width is a multiple of 64; rows, layers, repetitions 0 or more")
        if self.length < 8 or self.threads < 1 or self.trainer_steps < 0:
            raise ValueError("length must be 8 or more, threads 1, trainer_steps 0")


@dataclass(frozen=True)
class Setting:
    """What follows from configuration and machine."""

    device: torch.device
    rows: int
    repetitions: int
    model: TextConfig

    @classmethod
    def of(cls, config: TextPretrainConfig, vocab_size: int) -> "Setting":
        cuda = torch.cuda.is_available() and config.device != "cpu"
        width = config.width or (768 if cuda else 256)
        model = TextConfig(
            vocab_size=vocab_size,
            context_length=config.length,
            max_positions=max(512, config.length),
            width=width,
            layers=config.layers or (12 if cuda else 4),
            heads=width // 64,
            mlp_width=4 * width,
        )
        rows, repetitions = (128, 30) if cuda else (8, 7)
        return cls(
            torch.device("cuda" if cuda else "cpu"),
            config.rows or rows,
            config.repetitions or repetitions,
            model,
        )


def read_texts(config: TextPretrainConfig, folder: Path) -> TextStore:
    """The corpus, cleaned; generated where none is given."""
    path = config.texts
    if not path:
        path = str(folder / "captions.jsonl")
        lines = [
            json.dumps({"id": str(n), "text": t})
            for n, t in enumerate(captions(config.generated, 0))
        ]
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    corpus = CorpusConfig(path=path, id_field="")
    split = SplitConfig(val_fraction=0.0)
    return prepare(corpus, CleaningConfig(), split, folder / "cache", print)


def open_corpora(
    config: TextPretrainConfig, store: TextStore, vocabulary: Path
) -> tuple[PackedCorpora, CaptionTokenizer]:
    """The texts as rows of `length` tokens, and what cut them into pieces."""
    tokenizer = CaptionTokenizer(vocabulary, config.length)
    tokens = tokenize(store, "train", vocabulary, store.folder.parent, print)
    sizes = {"all": store.bytes()}
    return PackedCorpora({"all": tokens}, sizes, MixtureConfig(), tokenizer, batch=1), tokenizer


def vocabulary_rows(config: TextPretrainConfig, store: TextStore, folder: Path) -> list[Row]:
    """Train the vocabulary, and one of theirs from it on the same lines."""
    texts = MixedTexts({"all": store}, MixtureConfig())
    start = time.perf_counter()
    train_vocabulary(texts, config.vocabulary, folder)
    ours = time.perf_counter() - start
    peer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    start = time.perf_counter()
    peer.train_new_from_iterator(iter(texts), config.vocabulary.size)
    theirs = time.perf_counter() - start
    gigabytes = store.bytes() / 1e9
    return [
        Row("vocabulary: transformers' train_new_from_iterator", "s per GB", theirs / gigabytes),
        Row("vocabulary: ours", "s per GB", ours / gigabytes, ratio=theirs / ours),
    ]


Steps = list[tuple[Callable[[Any], None], Any]]


class Contender:
    """Takes step after step, each on its own batch."""

    def __init__(self, make: Callable[[int], Steps], device: torch.device) -> None:
        """`make`: number of the step -> what to call with what, ready on the host."""
        self.make, self.device, self.taken = make, device, 0

    def __call__(self) -> float:
        """Seconds per real token of the next step."""
        self.taken += 1
        steps = self.make(self.taken)
        took = seconds(lambda: [call(batch) for call, batch in steps], self.device)
        return took / sum(real_tokens(batch) for _, batch in steps)

    def memory(self) -> float:
        """MiB of a step at its peak, beyond weights and moments; of groups that of the longest."""
        *_, (call, batch) = self.make(1)
        return memory(lambda: call(batch), self.device)


def real_tokens(batch: TextBatch | Padded) -> int:
    """Tokens that are no padding."""
    if isinstance(batch, TextBatch):
        return len(batch.text.input_ids)
    return int(batch["attention_mask"].sum())


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time of a call; on the CPU the process's own, which other processes disturb less."""
    if device.type == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


class Sides:
    """Both sides with the same weights, and batches ready for every repetition."""

    def __init__(
        self, config: TextPretrainConfig, corpora: PackedCorpora, tokenizer: CaptionTokenizer
    ) -> None:
        self.setting = setting = Setting.of(config, tokenizer.vocab_size)
        self.corpora, self.tokenizer = corpora, tokenizer
        self.batches = OurBatches(corpora, tokenizer, config.masking, setting.rows)
        self.collate = TheirBatches(tokenizer, config.masking)
        self.ours = Ours(setting.model, setting.device, config.seed)
        self.theirs = Theirs(setting.model, self.ours.model, setting.device)

    def exactness(self) -> list[Row]:
        """Loss and gradients of both sides on one batch with the same masks."""
        batch = self.batches(0)
        mine, other = self.ours.backward(batch), self.theirs.backward(padded(batch))
        apart = relative_difference(self.ours.model, self.theirs.model)
        for side in (self.ours, self.theirs):  # makes the moments, which are no step's memory
            side.optimizer.step()
        return [
            Row("loss, transformers", "nats", float(other)),
            Row("difference of the losses", "nats", abs(float(mine - other))),
            Row("difference of the gradients", "relative norm", apart),
        ]

    def padded(self, step: int) -> Padded:
        """Our batch's sequences through their collator."""
        return self.collate(self.batches.examples(step))

    def grouped(self, step: int) -> list[Padded]:
        """The sequences of POOL batches, sorted by length, as many batches of them."""
        pool = self.batches.examples(step, POOL)
        pool.sort(key=lambda one: len(one["input_ids"]))
        size = -(-len(pool) // POOL)
        return [self.collate(pool[start : start + size]) for start in range(0, len(pool), size)]

    def contenders(self, groups: bool) -> dict[str, Contender]:
        """Everyone; a call takes the next step and returns its seconds per token."""
        device, batches = self.setting.device, self.batches
        ours, theirs = self.ours.step, self.theirs.step
        found = {
            PADDED: Contender(lambda step: [(theirs, self.padded(step))], device),
            BLOCKS: Contender(lambda step: [(theirs, blocks(batches(step)))], device),
            OURS: Contender(lambda step: [(ours, batches(step))], device),
        }
        if groups:
            found[GROUPS] = Contender(
                lambda step: [(theirs, one) for one in self.grouped(step)], device
            )
        return found


def speed_rows(sides: Sides, groups: bool) -> list[Row]:
    """Tokens a second and memory of every contender."""
    contenders = sides.contenders(groups)
    needs = {way: one.memory() for way, one in contenders.items()}  # the warm-up, too
    times = interleaved(contenders, sides.setting.repetitions)
    return [
        *(
            median_row(way, "tokens/s", [1 / t for t in found], paired_ratio(times[PADDED], found))
            for way, found in times.items()
        ),
        *(
            Row(f"{way}, memory", "MiB a step", need, ratio=needs[PADDED] / need)
            for way, need in needs.items()
        ),
    ]


def making_rows(sides: Sides, masking: MaskingConfig) -> list[Row]:
    """Tokens a second of what loader processes do, on one core, by unit of masking."""
    found: list[Row] = []
    cpu = torch.device("cpu")
    for unit in ("subword", "whole_word"):
        masked = dataclasses.replace(masking, unit=unit)
        ours = OurBatches(sides.corpora, sides.tokenizer, masked, sides.setting.rows)
        theirs = TheirBatches(sides.tokenizer, masked)
        examples = ours.examples(0)
        tokens = sum(len(one["input_ids"]) for one in examples)
        makers: dict[str, Callable[[], object]] = {
            "transformers": partial(theirs, examples),
            "ours": partial(ours, 0),
        }
        times = interleaved(
            {way: partial(seconds, make, cpu) for way, make in makers.items()},
            sides.setting.repetitions,
        )
        found += [
            median_row(
                f"making a batch, {unit}: {way}",
                "tokens/s",
                [tokens / t for t in taken],
                paired_ratio(times["transformers"], taken),
            )
            for way, taken in times.items()
        ]
    return found


def measure(config: TextPretrainConfig) -> Result:
    """Corpus, vocabulary, both sides."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: there is no CUDA device; use device=cpu")
    torch.set_num_threads(config.threads)
    facts = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = read_texts(config, folder)
        rows = vocabulary_rows(config, store, folder / "vocabulary")
        corpora, tokenizer = open_corpora(config, store, folder / "vocabulary")
        sides = Sides(config, corpora, tokenizer)
        setting = sides.setting
        rows += sides.exactness()
        padded = sides.padded(1)["attention_mask"]
        rows.append(
            Row("transformers, padded: real tokens", "of all", float(padded.float().mean()))
        )
        rows += speed_rows(sides, config.groups)
        rows += making_rows(sides, config.masking)
        if config.trainer_steps:
            job = Job(
                texts=str(store.meta["path"]),
                vocabulary=folder / "vocabulary",
                batches=sides.batches,
                collate=sides.collate,
                model=setting.model,
                masking=config.masking,
                steps=config.trainer_steps,
                folder=folder,
                device=setting.device,
            )
            rows += trainer_rows(job)
    facts["model"] = (
        f"BERT of {setting.model.layers} layers, width {setting.model.width}, "
        f"{setting.model.vocab_size:,} pieces; "
        + ("bf16 autocast" if setting.device.type == "cuda" else "fp32")
        + f"; peer's attention: {sides.theirs.model.config._attn_implementation}"
    )
    facts["texts"] = (
        f"{config.texts or 'generated captions'}: {store.meta['documents']['train']:,} documents, "
        f"{store.bytes() / 1e6:.1f} MB; sequences of "
        f"{np.diff(corpora.last[0].spans).mean() + 2:.0f} tokens in the mean"
    )
    facts["batch"] = f"{setting.rows} rows of {config.length} tokens; theirs the same sequences"
    facts["repetitions"] = f"{setting.repetitions}, interleaved, another batch each"
    return Result("pretraining on text", facts, tuple(rows))


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    config = load_config(TextPretrainConfig, argv, "python -m benchmarks.text_pretrain")
    report([measure(config)], config.out)


if __name__ == "__main__":
    run_program(main)
