"""Settings of a probe, and what they name: encoder, tokenizer, labelled sentences."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from vlp.config import UserError
from vlp.models.text_tower import PackedBert
from vlp.text.base import Base, load_base
from vlp.text.entities import OUTSIDE, Counts, count_classes, count_entities
from vlp.text.labelled import Labelled, Task, labels_of, read_labelled
from vlp.text.lora import add_lora
from vlp.text.probe_rows import Encoded, Encoder, encode
from vlp.text.settings import LoraConfig

Way = Literal["random", "frozen", "lora", "full"]


@dataclass(frozen=True, kw_only=True)
class RatesConfig:
    """Peak learning rates; of several the best on `val` counts."""

    frozen: tuple[float, ...] = (1e-3, 1e-2)
    """For `frozen` and `random`."""
    lora: tuple[float, ...] = (3e-4, 2e-3)
    """For `lora`."""
    full: tuple[float, ...] = (5e-5, 3e-4)
    """For `full`."""


@dataclass(frozen=True, kw_only=True)
class EpochsConfig:
    """Passes over the training sentences."""

    frozen: int = 30
    """For `frozen` and `random`, which need many and compute the encoder once."""
    lora: int = 10
    """For `lora`."""
    full: int = 10
    """For `full`."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Score an encoder by a linear layer on it, on labelled sentences."""

    model: str = ""
    """Folder or hub id of a BERT in Hugging Face's format, such as RUNS/NAME/model."""
    data: str = ""
    """JSON lines: text, labels, and `split` (train, val or test)."""
    task: Task = "entities"
    """`entities`: an IOB tag for each word between blanks. `sentences`: a class for each text."""
    text: str = "text"
    """Field of the text."""
    labels: str = ""
    """Field of the labels; empty: `tags` for entities, `label` for sentences."""
    only: dict[str, str] = field(default_factory=dict)
    """Values of other fields: only.dataset=BC5CDR-IOB leaves out what has another one."""
    ways: tuple[Way, ...] = ("random", "frozen", "lora", "full")
    """What is trained besides the linear layer."""
    pool: Literal["mean", "cls"] = "mean"
    """What stands for a sentence: the mean of its pieces, or [CLS], of which masked tokens alone
    teach nothing."""
    length: int = 256
    """Pieces that a sentence is cut to, [CLS] and [SEP] included."""
    seeds: int = 3
    """Times that each way is trained."""
    epochs: EpochsConfig = field(default_factory=EpochsConfig)
    """How long each is trained."""
    batch: int = 32
    """Sentences in a step."""
    rates: RatesConfig = field(default_factory=RatesConfig)
    """Learning rates to choose from."""
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(rank=16))
    """The low-rank changes of `lora`."""
    train_sentences: int = 0
    """Training sentences, drawn once at random; 0: all."""
    resamples: int = 1000
    """Bootstrap resamples of the test sentences."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a device; there it computes in bf16."""
    out: str = ""
    """JSON file for the result; empty writes none."""

    def __post_init__(self) -> None:
        if not self.model or not self.data:
            raise ValueError("set model=FOLDER and data=FILE.jsonl")
        if not self.ways or len(set(self.ways)) < len(self.ways):
            raise ValueError("ways: name some of random, frozen, lora, full, each once")
        if min(self.seeds, self.batch, self.resamples) < 1:
            raise ValueError("seeds, batch and resamples must be 1 or more")
        if self.length < 3 or self.train_sentences < 0:
            raise ValueError("length must be 3 or more, train_sentences 0 or more")
        for way in self.ways:
            rates, epochs = self.training(way)
            if not rates or min(rates) <= 0 or epochs < 1:
                raise ValueError(f"rates, epochs: {way} needs positive numbers, one or more")
        if "lora" in self.ways and not self.lora.rank:
            raise ValueError("lora.rank must be 1 or more for ways=[lora]")

    def training(self, way: Way) -> tuple[tuple[float, ...], int]:
        """Learning rates to choose from, and epochs."""
        name = "frozen" if way == "random" else way
        return getattr(self.rates, name), getattr(self.epochs, name)

    @property
    def label_field(self) -> str:
        return self.labels or ("tags" if self.task == "entities" else "label")


@dataclass(frozen=True)
class Setting:
    """What all trainings share.

    Attributes:
        splits: the sentences of train, val and test as they were read.
        encoded: the same as pieces.
        labels: those of training, in the order of the linear layer's rows.
        kinds: what is counted: kinds of entities or classes, of all splits.
    """

    config: ProbeConfig
    base: Base
    splits: dict[str, list[Labelled]]
    encoded: dict[str, list[Encoded]]
    labels: list[str]
    kinds: list[str]
    device: torch.device

    @classmethod
    def of(cls, config: ProbeConfig) -> "Setting":
        """Read what the settings name.

        Raises:
            UserError: bad data or a bad model, settings that don't fit them.
        """
        if config.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: there is no CUDA device; use device=cpu")
        cuda = torch.cuda.is_available() and config.device != "cpu"
        fields = (config.text, config.label_field)
        splits = read_labelled(config.data, config.task, fields, config.only)
        if not splits["val"] and any(len(config.training(way)[0]) > 1 for way in config.ways):
            raise UserError(
                f"{config.data}: no split 'val' to choose a learning rate by; set one of each in "
                "rates"
            )
        if 0 < config.train_sentences < len(splits["train"]):
            rng = np.random.default_rng(0)
            drawn = rng.choice(len(splits["train"]), config.train_sentences, replace=False)
            splits["train"] = [splits["train"][number] for number in sorted(drawn.tolist())]
        base = load_base(config.model)
        if config.length > base.config.max_positions:
            raise UserError(
                f"length={config.length}: {config.model} has {base.config.max_positions} "
                "positions; set at most so many"
            )
        tokenizer = base.tokenizer()
        tokenizer.enable_truncation(config.length)
        labels = labels_of(splits["train"])
        every = labels_of(one for split in splits.values() for one in split)
        kinds = every
        if config.task == "entities":
            kinds = sorted({label[2:] for label in every if label != OUTSIDE})
        if not kinds or len(labels) < 2:
            raise UserError(f"{config.data}: '{fields[1]}' has one label only: nothing to learn")
        encoded = {
            split: encode(tokenizer, sentences, config.task, labels)
            for split, sentences in splits.items()
        }
        device = torch.device("cuda" if cuda else "cpu")
        return cls(config, base, splits, encoded, labels, kinds, device)

    def encoder(self, way: Way, seed: int) -> Encoder:
        """A new one, with what is to be trained of it unfrozen."""
        torch.manual_seed(seed)  # for `random` and for the low-rank changes
        bert = PackedBert(self.base.config)  # no row of [PAD] is ever read
        if way != "random":
            own = "bert."
            weights = self.base.weights.items()
            bert.load_state_dict(
                {key.removeprefix(own): value for key, value in weights if key.startswith(own)}
            )
        bert.requires_grad_(way == "full")
        if way == "lora":
            add_lora(bert, self.config.lora)
        mean = self.config.task == "sentences" and self.config.pool == "mean"
        return Encoder(bert, mean, self.config.length).to(self.device)

    def count(self, split: str, predicted: Sequence[tuple[str, ...]]) -> Counts:
        """[sentences, kinds, 3] of labels predicted for a split."""
        true = [one.labels for one in self.splits[split]]
        if self.config.task == "entities":
            return count_entities(true, predicted, self.kinds)
        return count_classes([t for (t,) in true], [p for (p,) in predicted], self.kinds)

    def facts(self) -> dict[str, Any]:
        """What was read."""
        cut = {
            split: sum(len(one.labels) for one in sentences)
            - sum(len(one.units) for one in self.encoded[split])
            for split, sentences in self.splits.items()
        }
        entities = self.config.task == "entities"
        return {
            "sentences": {split: len(sentences) for split, sentences in self.splits.items()},
            "kinds": self.kinds,
            "words cut off": cut,
            "baseline": "each word's most frequent tag" if entities else "most frequent class",
        }

    def describe(self) -> str:
        """The same on one line."""
        facts = self.facts()
        sizes = ", ".join(f"{number:,} {split}" for split, number in facts["sentences"].items())
        kinds = ", ".join(self.kinds[:8]) + (", ..." if len(self.kinds) > 8 else "")
        cut = f"; {facts['words cut off']['test']} test words cut off"
        return f"{self.config.data}: sentences {sizes}; {len(self.kinds)} kinds: {kinds}{cut}"
