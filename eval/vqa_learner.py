"""Training of an answer head: states of patches and words in, the best epoch's head out."""

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from eval.config import EvalConfig
from eval.embed import Embedder
from eval.readers import Dataset
from eval.tokens import patch_states, word_states
from eval.vqa_fusion import FusionHead, Padded, parameter_groups
from eval.vqa_items import Question, fold
from vlp.config import UserError
from vlp.data.image import ImageError, open_rgb
from vlp.models.weights import differences

WARM_UP = 0.1  # of all steps
MAX_NORM = 1.0  # of a step's gradient, in each group of parameters
HEAD, TOWERS = "head.", "towers."  # what names of saved weights begin with


class Pictures:
    """The images of several data sets, numbered through."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.places = [(dataset, i) for dataset in datasets for i in range(len(dataset.samples))]
        self.starts: dict[int, int] = {}
        for dataset in datasets:
            self.starts[id(dataset)] = sum(len(one.samples) for one in datasets[: len(self.starts)])
        self._hashes: dict[int, bytes] = {}

    def first(self, dataset: Dataset) -> int:
        """The number of a data set's first image."""
        return self.starts[id(dataset)]

    def hash(self, number: int) -> bytes:
        """SHA-256 of an image's pixels, whatever file holds them; nothing for a broken image."""
        if number not in self._hashes:
            try:
                image = self.open(number)
                content = repr(image.size).encode() + image.tobytes()
                self._hashes[number] = hashlib.sha256(content).digest()
            except (ImageError, OSError):
                self._hashes[number] = b""
        return self._hashes[number]

    def open(self, number: int) -> Any:
        """An image, decoded as RGB."""
        dataset, i = self.places[number]
        return open_rgb(dataset.images.read(i))


@dataclass(frozen=True)
class Trained:
    """A head with the towers that it was trained on."""

    learner: "Learner"
    network: nn.Module
    head: FusionHead
    blind: bool

    @torch.no_grad()
    def answers(self, questions: Sequence[Question], samples: Sequence[int]) -> list[str]:
        """An answer to each question.

        Args:
            samples: the number of the image that each is asked about.
        """
        self.head.eval()
        said: list[str] = []
        for part in _parts(len(questions), self.learner.config.batch_size):
            texts = [questions[i].question for i in part]
            numbers = [samples[i] for i in part]
            logits = self.learner.logits(self, texts, numbers)
            said += [self.learner.vocabulary[k] for k in logits.argmax(dim=1).tolist()]
        return said

    def weights(self) -> dict[str, Tensor]:
        """What training made, on the CPU: the head, and what differs from the model's towers."""
        made = {f"{HEAD}{name}": value for name, value in self.head.state_dict().items()}
        own = self.learner.model.network.state_dict()
        for name, value in self.network.state_dict().items():
            if not torch.equal(value, own[name]):
                made[f"{TOWERS}{name}"] = value
        return {name: value.detach().cpu().clone() for name, value in made.items()}


class Learner:
    """Trains heads of one kind for the same answers, again and again."""

    def __init__(
        self,
        config: EvalConfig,
        embedder: Embedder,
        pictures: Pictures,
        vocabulary: Sequence[str],
        name: str,
    ) -> None:
        """
        Args:
            vocabulary: the answers to choose from.
            name: what the progress bars show.
        """
        self.config, self.model = config.vqa_train, embedder.model
        self.pictures, self.vocabulary, self.name = pictures, list(vocabulary), name
        self.progress = embedder.progress
        self.index = {fold(answer): i for i, answer in enumerate(vocabulary)}
        self._patches: dict[int, Tensor] = {}
        self._words: dict[str, Tensor] = {}
        self._kept = 0  # bytes

    def fit(
        self, train: Sequence[Question], val: Sequence[Question], seed: int, blind: bool = False
    ) -> Trained:
        """Train a head; of its epochs the one that is best on `val` is kept, the first of several.

        Args:
            seed: of the start, the order and dropout.
            blind: without images: all patches are zero.
        """
        train = [q for q in train if fold(q.gold) in self.index]
        torch.manual_seed(seed)
        trained = self._start(train[0], blind)
        tuned = self.config.towers == "tuned"
        towers = trained.network if tuned else None  # blind ones learn to read, too
        groups = parameter_groups(trained.head, towers, self.config)
        optimizer = torch.optim.AdamW(groups)
        steps = self.config.epochs * math.ceil(len(train) / self.config.batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: _rate((k + 1) / steps))
        bar = self.progress.add_task(
            f"{self.name}: seed {seed}{', no image' if blind else ''}", total=self.config.epochs
        )
        best, state = -1.0, {}
        for _ in range(self.config.epochs):
            self._epoch(trained, train, optimizer, schedule)
            said = trained.answers(val, [q.item.sample for q in val])
            right = sum(fold(a) == fold(q.gold) for a, q in zip(said, val, strict=True)) / len(val)
            if right > best:
                best, state = right, copy.deepcopy(_state(trained, tuned))
            self.progress.advance(bar)
        _load(trained, state)
        return trained

    def logits(self, trained: Trained, texts: Sequence[str], samples: Sequence[int]) -> Tensor:
        """float32 [B, answers]."""
        words = self._word_states(trained.network, texts)
        if trained.blind:
            nothing = torch.zeros(len(texts), 1, self.sizes[0], device=words.mask.device)
            there = torch.ones(len(texts), 1, dtype=torch.bool, device=words.mask.device)
            return trained.head(Padded(nothing, there), words)
        return trained.head(self._patch_states(trained.network, samples), words)

    def restore(
        self, tensors: Mapping[str, Tensor], example: Question, blind: bool, where: Path
    ) -> Trained:
        """A trained head from the weights that `Trained.weights` gave.

        Args:
            example: any question; the sizes of its states are those that the head takes.
            where: the weights' file, for errors.

        Raises:
            UserError: weights of other settings, answers or towers.
        """
        parts = {
            prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            for prefix in (HEAD, TOWERS)
        }
        whole = sum(map(len, parts.values())) == len(tensors)
        unasked = self.config.towers == "frozen" and parts[TOWERS]  # would change the model itself
        if not whole or unasked or self.config.layers > len(parts[HEAD]):
            raise UserError(f"{where}: not the weights of such a head; train again")
        self._measure(example)
        with torch.device("meta"):  # nothing is allocated for settings that the weights don't fit
            head = FusionHead(self.config, *self.sizes, len(self.vocabulary))
        network = self._towers()
        changed = {name: network.state_dict().get(name) for name in parts[TOWERS]}
        for own, found in ((head.state_dict(), parts[HEAD]), (changed, parts[TOWERS])):
            if problem := differences(_shapes(own), _shapes(found)):
                raise UserError(f"{where}: weights of other settings ({problem}); train again")
        head.load_state_dict(parts[HEAD], assign=True)
        network.load_state_dict(parts[TOWERS], strict=False)
        return Trained(self, network, head.float().to(self.model.device), blind)

    def _start(self, question: Question, blind: bool) -> Trained:
        """A fresh head."""
        self._measure(question)
        network = self._towers()
        head = FusionHead(self.config, *self.sizes, len(self.vocabulary)).to(self.model.device)
        return Trained(self, network, head, blind)

    def _measure(self, question: Question) -> None:
        """The sizes of a patch's and a word's state, from any question."""
        network = self.model.network
        patches = self._patch_states(network, [question.item.sample], keep=False).states
        words = self._word_states(network, [question.question], keep=False).states
        self.sizes = patches.shape[-1], words.shape[-1]

    def _towers(self) -> nn.Module:
        """The model's towers; a copy where they learn."""
        network = self.model.network
        tuned = self.config.towers == "tuned"
        return copy.deepcopy(network).requires_grad_(True) if tuned else network

    def _epoch(
        self,
        trained: Trained,
        train: Sequence[Question],
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        trained.head.train()
        order = torch.randperm(len(train)).tolist()
        for part in _parts(len(order), self.config.batch_size):
            batch = [train[order[i]] for i in part]
            logits = self.logits(
                trained, [q.question for q in batch], [q.item.sample for q in batch]
            )
            right = torch.tensor([self.index[fold(q.gold)] for q in batch], device=logits.device)
            loss = F.cross_entropy(logits, right)
            if not torch.isfinite(loss):
                raise UserError(
                    f"tasks.{self.name}: the loss is {float(loss)}; lower vqa_train.learning_rate"
                )
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], MAX_NORM)
            optimizer.step()
            schedule.step()

    def _patch_states(
        self, network: nn.Module, samples: Sequence[int], keep: bool = True
    ) -> Padded:
        """All patches of each image."""
        frozen = self.config.towers == "frozen"
        missing = [n for n in dict.fromkeys(samples) if not frozen or n not in self._patches]
        found = dict(self._patches) if frozen else {}
        if missing:
            pixels = torch.stack([self.model.transform(self.pictures.open(n)) for n in missing])
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                visual: Any = network.visual
                states = patch_states(visual, pixels.to(self.model.device)).flatten(1, 2)
            # Frozen states are rounded whether they are kept or not: the first epoch is no other.
            new = dict(zip(missing, states.half() if frozen else states, strict=True))
            found |= new
            if frozen and keep and self._room(states):
                self._patches |= new
        stacked = torch.stack([found[n].float() for n in samples])
        return Padded(stacked, torch.ones(stacked.shape[:2], dtype=torch.bool).to(stacked.device))

    def _word_states(self, network: nn.Module, texts: Sequence[str], keep: bool = True) -> Padded:
        """All tokens of each question."""
        frozen = self.config.towers == "frozen"
        missing = [t for t in dict.fromkeys(texts) if not frozen or t not in self._words]
        found = dict(self._words) if frozen else {}
        if missing:
            tokens = self.model.tokenize(missing).to(self.model.device)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                states, mask = word_states(network, tokens)
            states = states.half() if frozen else states
            new = {t: s[m] for t, s, m in zip(missing, states, mask, strict=True)}
            found |= new
            if frozen and keep and self._room(states):
                self._words |= new
        rows = [found[t].float() for t in texts]
        there = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in rows]
        return Padded(pad_sequence(rows, batch_first=True), pad_sequence(there, batch_first=True))

    def _room(self, states: Tensor) -> bool:
        """Whether these states can be kept, in half precision."""
        self._kept += 2 * states.numel()
        return self._kept <= self.config.memory * 1e9


def _rate(done: float) -> float:
    """Share of the peak learning rate: up over the first tenth of the steps, then down to 0."""
    return min(done / WARM_UP, (1 - done) / (1 - WARM_UP))


def _parts(count: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def _state(trained: Trained, tuned: bool) -> dict[str, Any]:
    towers = {"network": trained.network.state_dict()} if tuned else {}
    return {"head": trained.head.state_dict(), **towers}


def _shapes(state: Mapping[str, Tensor | None]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items() if tensor is not None}


def _load(trained: Trained, state: dict[str, Any]) -> None:
    trained.head.load_state_dict(state["head"])
    if "network" in state:
        trained.network.load_state_dict(state["network"])
