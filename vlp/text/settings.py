"""All settings of language-model pretraining; each part's own settings stand beside its code."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlp.models.text_tower import TextConfig
from vlp.optim import OptimizerConfig
from vlp.reporting import ReportConfig
from vlp.settings import LoopConfig
from vlp.text.cleaning import CleaningConfig
from vlp.text.corpora import CorpusConfig
from vlp.text.documents import SplitConfig
from vlp.text.masking import MaskingConfig
from vlp.text.mixture import MixtureConfig
from vlp.text.vocabulary import VocabularyConfig


@dataclass(frozen=True, kw_only=True)
class TextSource(CorpusConfig):
    """A corpus and how it is cleaned."""

    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    """The passes it goes through."""
    share: float = 1.0
    """Share of its training documents that are used, by hash: for curves over the size of a corpus.
    What is held out stays the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share: set it above 0 and at most to 1, got {self.share}")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The encoder: a BERT. What `init=continual` starts from decides these keys itself."""

    length: int = 512
    """Tokens of a sequence at most, [CLS] and [SEP] included."""
    max_positions: int = 512
    """Rows of the position table; at least `length`."""
    width: int = 768
    """Size of a token's vector."""
    layers: int = 12
    """Transformer layers."""
    heads: int = 12
    """Attention heads; they divide width."""
    mlp_width: int = 3072
    """Hidden size of the feed-forward blocks."""

    def __post_init__(self) -> None:
        try:
            self.bert(vocab_size=30522)  # checks them
        except ValueError as error:
            named = str(error).replace("model.text.context_length", "model.length")
            raise ValueError(named.replace("model.text.", "model.")) from None

    def bert(self, vocab_size: int) -> TextConfig:
        """The same as the text tower's settings."""
        shape: dict[str, Any] = {
            key: getattr(self, key)
            for key in ("max_positions", "width", "layers", "heads", "mlp_width")
        }
        return TextConfig(vocab_size=vocab_size, context_length=self.length, **shape)


@dataclass(frozen=True, kw_only=True)
class SectionsConfig:
    """Matching two sections of one document (RSM of CXR-BERT, Boecking et al. 2022, section 3.1):
    a symmetric InfoNCE of their projected [CLS], among the documents of a batch."""

    weight: float = 0.0
    """Factor on this loss beside that of masked tokens; 0: not used."""
    corpus: str = ""
    """Corpus whose documents have both sections."""
    first: str = "caption"
    """Name of one section, such as `findings`."""
    second: str = "mention"
    """Name of the other, such as `impression`."""
    pairs: int = 64
    """Documents per step over all processes."""
    width: int = 128
    """Size of the projection."""
    temperature: float = 0.1
    """Divides the cosine similarities."""
    documents: int = 1000
    """Held-out documents, at most, among which `val/sections_recall@1` looks for the mate."""

    def __post_init__(self) -> None:
        if self.weight < 0 or self.temperature <= 0:
            raise ValueError("objectives.sections: weight must be >= 0, temperature > 0")
        if self.weight and (not self.corpus or self.pairs < 2 or self.width < 1):
            raise ValueError("objectives.sections needs a corpus, two or more pairs, and a width")
        if self.documents < 0:
            raise ValueError("objectives.sections.documents must be >= 0")


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """Link prediction on the user's graph (DRAGON, Yasunaga et al. 2022, section 2.3): DistMult on
    the encoded names of concepts, with corrupted heads and tails."""

    weight: float = 0.0
    """Factor on this loss beside that of masked tokens; 0: not used."""
    triples: str = ""
    """Tab-separated lines: head, relation, tail; names of concepts as text."""
    batch: int = 64
    """Triples per step over all processes."""
    negatives: int = 64
    """Corrupted triples for each, half of them with another head, half with another tail: as many
    concepts are encoded per step besides those of the triples."""
    shuffled: bool = False
    """A control: tails are permuted once, so that the graph says nothing."""

    def __post_init__(self) -> None:
        if self.weight < 0 or self.batch < 1 or self.negatives < 2:
            raise ValueError("objectives.graph: weight must be >= 0, batch >= 1, negatives >= 2")
        if self.weight and not self.triples:
            raise ValueError("objectives.graph.triples: name a file of triples")


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """What is learnt besides masked tokens."""

    next_sentence: float = 0.0
    """Factor on BERT's next-sentence loss (Devlin et al. 2019); 0: not used. Two passages of the
    mixture follow each other in half of the pairs; the other half are of two documents."""
    next_sentence_pairs: int = 64
    """Such pairs per step over all processes, each as long as `model.length` allows. They stand
    beside the batch's rows; `train.batch_size` of them are what the original has."""
    sections: SectionsConfig = field(default_factory=SectionsConfig)
    """Matching sections of a document."""
    graph: GraphConfig = field(default_factory=GraphConfig)
    """Predicting links of a graph."""

    def __post_init__(self) -> None:
        if self.next_sentence < 0 or self.next_sentence_pairs < 1:
            raise ValueError(
                "objectives.next_sentence must be >= 0, objectives.next_sentence_pairs >= 1"
            )


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank changes of attention instead of all weights (Hu et al. 2021)."""

    rank: int = 0
    """Rank of each change; 0: all weights are trained."""
    alpha: float = 32.0
    """A change counts alpha / rank."""
    dropout: float = 0.0
    """Share of a change's inputs that are zeroed in training."""
    targets: tuple[str, ...] = ("query", "value")
    """Linear layers that are changed: of query, key, value, and `dense` for all the others."""

    def __post_init__(self) -> None:
        known = {"query", "key", "value", "dense"}
        if self.rank < 0 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError("lora: rank must be >= 0, alpha > 0, dropout in [0, 1)")
        if not self.targets or set(self.targets) - known:
            raise ValueError(f"lora.targets: choose from {', '.join(sorted(known))}")


@dataclass(frozen=True, kw_only=True)
class TextTrainConfig(LoopConfig):
    """How long, how large, how often."""

    batch_size: int = 256
    """Rows of `model.length` tokens per step over all processes."""
    micro_batch: int = 0
    """Rows that a process computes at a time: same gradients, less memory. 0: all at once."""
    epochs: float = 1.0
    """Passes over the mixture; used if `steps` and `flops` are 0."""
    flops: float = 0.0
    """Floating-point operations to spend, from which the steps follow; 0: `steps` or `epochs`."""
    mixout: float = 0.0
    """Share of each linear layer's inputs whose weights a step takes from the base (Lee et al.
    2020), with `init=continual`; drawn anew for each step."""
    workers: int = 1
    """Loader processes per rank; 0 loads in the training process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1 or self.micro_batch < 0 or self.workers < 0:
            raise ValueError("train: batch_size >= 1, micro_batch >= 0, workers >= 0")
        if self.flops < 0 or not 0 <= self.mixout < 1:
            raise ValueError("train: flops must be >= 0, mixout in [0, 1)")
        if self.steps and self.flops:
            raise ValueError("train: set steps or flops, not both")
        if not self.steps and not self.flops and self.epochs <= 0:
            raise ValueError("train: set steps, flops or epochs to a positive number")


@dataclass(frozen=True, kw_only=True)
class TextRunConfig:
    """A run of language-model pretraining: corpora in, RUNS/NAME/model out."""

    name: str
    """Name of the run; its folder is RUNS/NAME."""
    runs: str = "runs"
    """Folder of all runs; with several machines, one that all of them see."""
    cache: str = "cache/text"
    """Folder for cleaned and tokenised corpora, shared by all runs."""
    seed: int = 0
    """Seeds weights, data order and masks."""
    corpora: dict[str, TextSource] = field(default_factory=dict)
    """Corpora by name. Those that no stage of the mixture names are only evaluated on."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """What is held out of each corpus."""
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    """How much of each corpus is trained on, and when."""
    init: Literal["scratch", "continual"] = "scratch"
    """Random weights, or those of `base`."""
    base: str = ""
    """Folder or hub id of a BERT in Hugging Face's format: weights for `init=continual`, tokenizer
    for `vocabulary=inherited`. In an arm, `@ARM` is the model of an earlier arm."""
    vocabulary: Literal["own", "inherited"] = "own"
    """A vocabulary of the mixture, or that of `base`."""
    own_vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    """What kind `vocabulary=own` is."""
    model: EncoderConfig = field(default_factory=EncoderConfig)
    """The encoder."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """Which pieces are to be predicted."""
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    """What is learnt besides."""
    base_corpora: list[str] = field(default_factory=list)
    """Corpora that stand for the base's text in the report of gain and loss (forgetting.json), such
    as replayed ones. Empty: those that no stage of the mixture names."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank changes instead of all weights."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            betas=(0.9, 0.98), weight_decay=0.01, schedule="linear"
        )
    )
    """The optimiser."""
    train: TextTrainConfig = field(default_factory=TextTrainConfig)
    """The loop."""
    report: ReportConfig = field(default_factory=ReportConfig)
    """Weights & Biases."""
    arms: dict[str, list[str]] = field(default_factory=dict)
    """A factorial: name of each arm -> `key=value` that it changes. They run one after the other in
    RUNS/NAME/ARM and must spend the same compute, that of an arm they start from included."""
    controls: list[str] = field(default_factory=list)
    """Those of `arms` that need not: an encoder that has learnt nothing, say. They are scored like
    the others."""
    clip: str = ""
    """Configuration of train.py with which every arm's encoder is compared by retrieval; with
    `arms` only. Empty: not done."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", self.name):
            raise ValueError(f"name must be a plain folder name, got '{self.name}'")
        if not self.corpora:
            raise ValueError("corpora: name at least one")
        needs = self.init == "continual" or self.vocabulary == "inherited"
        if needs and not self.base and not self.arms:
            raise ValueError("base: init=continual and vocabulary=inherited need a model's folder")
        for stage in self.mixture.stages:
            if stage.length > self.model.length:
                raise ValueError(
                    f"mixture.stages: length={stage.length} is more than model.length="
                    f"{self.model.length}"
                )
        self._check_continual()
        if self.clip and not self.arms:
            raise ValueError("clip: it compares arms; name some, or leave it empty")
        for arm in self.controls:
            if arm not in self.arms:
                raise ValueError(f"controls: no such arm {arm}; see arms")
        for arm in self.arms:
            if not re.fullmatch(r"[\w-]+", arm):
                raise ValueError(f"arms.{arm}: use letters, digits, _ and -")

    def _check_continual(self) -> None:
        """Refuse what can't be together."""
        lora, train = self.lora, self.train
        if self.init == "scratch" and (lora.rank or train.mixout):
            raise ValueError("lora and train.mixout need init=continual")
        if lora.rank and train.mixout:
            raise ValueError("lora.rank, train.mixout: with LoRA the base's weights never move")
        if lora.rank and self.vocabulary == "own":
            raise ValueError("lora.rank: new pieces are not learnt; set vocabulary=inherited")
        if lora.dropout and train.activation_checkpointing:
            raise ValueError(
                "lora.dropout: what is computed again would draw anew; set it to 0 or "
                "train.activation_checkpointing=false"
            )
        if self.optimizer.image_layer_decay != 1:
            raise ValueError("optimizer.image_layer_decay: here are no images")
        for name in self.base_corpora:
            if name not in self.corpora:
                raise ValueError(f"base_corpora: no such corpus {name}; see corpora")

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name
