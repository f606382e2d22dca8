"""The trainer of masked language models, in running order: data, model, step, scores, folder."""

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from vlp import distributed
from vlp.config import to_dict
from vlp.data.device import on_device
from vlp.data.loader import DataConfig, RankPositions, batches
from vlp.data.schedule import BatchSchedule
from vlp.data.text import PackedText
from vlp.engine import Engine
from vlp.grad_cache import reduction
from vlp.reporting import Window
from vlp.text import build, compute
from vlp.text.base import load_base
from vlp.text.batches import TextBatch, TextSamples, split_rows
from vlp.text.cache import PackedCorpora, unigram_bits_per_character
from vlp.text.continual import base_scores, mixout
from vlp.text.evaluation import bits_per_character
from vlp.text.export import save_encoder, versions
from vlp.text.forgetting import BASE_SCORE
from vlp.text.lora import merged
from vlp.text.masking import Words
from vlp.text.model import Losses, TextModel
from vlp.text.objectives import identity, objectives
from vlp.text.prepare import open_run
from vlp.text.sections import retrieve_mates
from vlp.text.settings import TextRunConfig
from vlp.text.store import Report


class TextTrainer(Engine[TextRunConfig, TextBatch]):
    """Trains a masked language model on a mixture of corpora."""

    PARTS: ClassVar = {"embeddings": "lm.bert.embeddings.", "layers": "lm.bert.encoder."}
    model: TextModel

    def __init__(self, config: TextRunConfig, report: Report = lambda line: None) -> None:
        """Prepare corpora and build everything; nothing is trained yet.

        Args:
            config: the settings.
            report: gets lines on what is prepared; called on rank 0.

        Raises:
            UserError: corpora, base or checkpoint don't fit the configuration.
        """
        world = distributed.start(config.train.device, 2 * config.train.timeout)
        base = load_base(config.base) if config.init == "continual" else None
        config = build.with_architecture(config, base)
        self.data = open_run(config, world, report if world.is_main else lambda line: None)
        self.tokenizer, self.base = self.data.tokenizer, base
        train, batch = config.train, config.train.batch_size
        sizes = {name: self.data.stores[name].bytes() for name in self.data.trained}
        tokens = {name: self.data.train[name] for name in sizes}
        self.corpora = PackedCorpora(tokens, sizes, config.mixture, self.tokenizer, batch)
        self.encoder = build.encoder_config(config, base, self.tokenizer)
        lm, self.notes = build.masked_lm(config, self.encoder, base, self.tokenizer)
        self.objectives = objectives(config, self.data.train, sizes, self.tokenizer)
        self.notes += build.start_heads(self.objectives, base)
        model = TextModel(lm, {name: each.head for name, each in self.objectives.items()})
        if train.compile:
            model.compile_layers()
        model.to(world.device)
        costs = compute.costs_of(self.encoder, config.lora)
        self.spending = compute.RunCosts(
            *(self.corpora, costs, config.masking.share, batch),
            compute.objective_flops(self.objectives, self.encoder, config.lora),
        )
        schedule = BatchSchedule(batch, {}, batch, 1, build.run_steps(config, self.spending))
        self.positions = partial(RankPositions, batch=schedule, rank=world.rank, ranks=world.size)
        self.positions(0, 0)  # batches that the ranks can't share are refused now
        self.samples = TextSamples(
            *(self.corpora, config.masking, Words(self.tokenizer.tokenizer), config.seed, batch),
            {name: each.drawer for name, each in self.objectives.items()},
        )
        self.mates = build.held_out_mates(config, self.data.held_out, self.tokenizer)
        self.floors = {
            name: unigram_bits_per_character(self.data.train[name], held_out)
            for name, held_out in self.data.held_out.items()
            if world.is_main  # which reports; it reads whole corpora
        }
        self.parts: dict[str, Tensor] = {}
        self.mixout = mixout(lm, base, config)
        window = Window(0, build.window_costs(config, costs, world))
        super().__init__(config, world, model, schedule, window)
        if isinstance(self.parallel, FSDPModule):
            register_fsdp_forward_method(self.parallel, "embed")

    # -- data -----------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """See Engine."""
        config = self.config
        stages = [dataclasses.asdict(stage) for stage in config.mixture.stages]
        return {
            "train.batch_size": config.train.batch_size,
            "seed": config.seed,
            "model.length": config.model.length,
            "mixture": [config.mixture.seed, stages],
            "masking": dataclasses.asdict(config.masking),
            "objectives": identity(config.objectives, self.objectives),
            "corpora": {name: self.data.stores[name].key for name in self.data.trained},
            "tokens": {name: self.data.train[name].meta["tokens"] for name in self.data.trained},
            **({"base's weights": self.mixout.digest} if self.mixout else {}),
        }

    def batches(self) -> Iterator[tuple[TextBatch, TextBatch]]:
        """See Engine."""
        positions = self.positions(self.step, self.schedule.steps)
        workers = DataConfig(workers=self.config.train.workers)
        pin = self.world.device.type == "cuda"
        loaded, moving = itertools.tee(batches(self.samples, positions, workers, pin_memory=pin))
        # Chunks are cut on the CPU, and travel one by one.
        moved = moving if self.config.train.micro_batch else on_device(moving, self.world.device)
        yield from zip(loaded, moved, strict=True)

    # -- step -----------------------------------------------------------------------------------

    def gradients(self, batch: TextBatch) -> Tensor:
        """See Engine. The mean over the masked tokens of the global batch, however many of them
        each rank and each chunk has."""
        micro = self.config.train.micro_batch
        chunks = split_rows(batch, micro) if 0 < micro < len(batch.keys) else [batch]
        # DDP and FSDP take the mean over the ranks of what each adds here.
        share = self.world.size / self._masked_of_all(len(batch.places))
        masked = torch.zeros((), device=self.world.device)
        with self._mixed():
            for chunk in chunks:
                last = chunk is chunks[-1]
                with reduction(self.parallel, last):
                    losses = self._forward(chunk.to(self.world.device))
                    loss = losses.masked * share
                    masked += loss.detach()
                    for name, other in losses.others.items():
                        loss = loss + self.objectives[name].weight * other
                    if last:  # here ranks begin to wait for each other
                        self.watchdog.at(self.step, "backward")
                    loss.backward()
        self.parts = {name: value.detach() for name, value in losses.others.items()}
        total = masked + sum(
            self.objectives[name].weight * value for name, value in self.parts.items()
        )
        self.parts["masked"] = masked
        return total

    def _forward(self, batch: TextBatch) -> Losses:
        with self.autocast:
            losses: Losses = self.parallel(batch.text, batch.places, batch.targets, batch.extra)
            return losses

    def _masked_of_all(self, count: int) -> Tensor:
        """Masked tokens of the global batch, at least 1, on the device."""
        # `full`, unlike `tensor`, doesn't wait for the device.
        total = torch.full((), count, dtype=torch.int64, device=self.world.device)
        if self.world.size > 1:
            dist.all_reduce(total)
        return total.clamp_(min=1)

    def _mixed(self) -> AbstractContextManager[None]:
        """Within it the model computes with a part of its first weights, if that is wanted."""
        return self.mixout.applied(self.step) if self.mixout else nullcontext()

    def blank(self) -> TextBatch:
        """See Engine: the next step's own, so that objectives have what they need."""
        (positions,) = self.positions(self.step, self.step + 1)
        return self.samples.__getitems__(positions).to(self.world.device)

    # -- report ---------------------------------------------------------------------------------

    def facts(self) -> list[str]:
        """See Engine."""
        length, corpora = self.config.model.length, self.corpora
        rows = sum(len(cut.rows) - 1 for cut in corpora.last)
        facts = [
            f"{rows:,} rows of {length} tokens",
            *(
                f"in stage {number} sequences of {short}"
                for number, short in enumerate(corpora.lengths, start=1)
                if short < length
            ),
            f"vocabulary of {self.tokenizer.vocab_size:,}",
            *self.notes,
        ]
        return facts if self.data.held_out else [*facts, "no text is held out for evaluation"]

    def metrics(self) -> dict[str, float]:
        """See Engine."""
        position, sampler = self.schedule.position(self.step), self.corpora.sampler
        # The last row that was seen decides the stage.
        stage = int(sampler.stage([position - 1])[0])
        rows = position - sampler.starts[stage]
        found = {"stage": stage + 1, "epoch": rows / sampler.orders[stage].epoch_size}
        if self.objectives:
            for name, value in self.parts.items():
                found[f"train/loss/{name}"] = distributed.mean(value).item()
        return found

    # -- evaluate -------------------------------------------------------------------------------

    def begin(self) -> None:
        """See Engine: what the base can do before it is trained further."""
        if self.base is None:
            return
        self.evaluate()
        if self.config.vocabulary == "own" and self.base.has_head and self.data.held_out:
            stores = {name: self.data.stores[name] for name in self.data.held_out}
            scores = base_scores(self.base, self.config, stores, self.world)
            self.reporter.log(0, {BASE_SCORE + name: score for name, score in scores.items()})

    def evaluate(self) -> None:
        """See Engine: bits per character of each corpus' held-out text."""
        self.model.eval()
        with self.averaged():
            scores = {
                name: bits_per_character(self._summed, store, self.tokenizer, self.world.device)
                for name, store in self.data.held_out.items()
            }
            recall = self._recall_of_mates()
        self.model.train()
        found = dict(recall)
        for name, floor in self.floors.items():
            score = scores[name]
            found[f"val/bits_per_character/{name}"] = score.bits_per_character
            found[f"val/unigram_floor/{name}"] = floor
            found[f"val/nats_per_piece/{name}"] = score.nats_per_piece
            found[f"val/unknown_pieces/{name}"] = score.unknown
        if found:
            self.reporter.log(self.step, found)

    def _summed(self, text: PackedText, places: Tensor, targets: Tensor) -> Tensor:
        self.watchdog.at(self.step, "evaluate")
        with self.autocast:
            # Sharded models compute by way of their outermost module alone.
            losses: Losses = self.model(text, places, targets, {})
            return losses.masked

    def _recall_of_mates(self) -> dict[str, float]:
        """Share of held-out sections whose mate is found, among so many documents."""
        if self.mates is None:
            return {}
        wanted = self.config.objectives.sections
        with torch.no_grad(), self.autocast:
            recall = retrieve_mates(self.mates, self._embed, wanted.documents, wanted.pairs)
        return {
            "val/sections_recall@1": (recall.second_of_first + recall.first_of_second) / 2,
            f"val/sections_recall/{wanted.second}_of_{wanted.first}": recall.second_of_first,
            f"val/sections_recall/{wanted.first}_of_{wanted.second}": recall.first_of_second,
            "val/sections_documents": recall.documents,
        }

    def _embed(self, text: PackedText) -> Tensor:
        self.watchdog.at(self.step, "evaluate")
        return self.model.embed("sections", text.to(self.world.device))

    # -- save -----------------------------------------------------------------------------------

    def export(self, weights: dict[str, Tensor], step: int) -> None:
        """See Engine."""
        plain = {
            name.removeprefix("lm."): value
            for name, value in weights.items()
            if name.startswith("lm.")
        }
        if self.config.lora.rank:
            plain = merged(plain, self.config.lora)
        folder = self.config.folder / "model"
        save_encoder(folder, plain, self.encoder, self.tokenizer, self.history(step))

    def history(self, step: int) -> dict[str, Any]:
        """What the weights after `step` steps have behind them: pretraining.json."""
        spent, before = self.spending.spent(step), build.base_flops(self.base)
        return {
            "steps": step,
            "tokens": spent.tokens,
            "masked_tokens": spent.masked,
            "flops": {"run": spent.flops, "base": before, "all": spent.flops + before},
            "corpora": {
                name: {
                    "trained_on": name in self.data.trained,
                    **{key: store.meta[key] for key in ("documents", "characters", "words")},
                    "train_tokens": self.data.train[name].meta["tokens"],
                }
                for name, store in self.data.stores.items()
            },
            "notes": self.notes,
            "settings": to_dict(self.config),
            "versions": versions(),
        }
