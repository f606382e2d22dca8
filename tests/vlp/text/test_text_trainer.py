"""Pretraining a masked language model: the same as a plain loop of transformers, in every way."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
)

from tests.vlp.text.tiny import arguments, make_home, settings
from vlp.config import UserError, run_program
from vlp.curves import read_metrics
from vlp.optim import learning_rate
from vlp.text.batches import TextBatch
from vlp.text.trainer import TextTrainer
from vlp.text_pretrain import main
from vlp.watchdog import Watchdog


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("text-trainer"))


def make(home: Path, *overrides: str) -> TextTrainer:
    """A trainer whose `gradients` can be called from outside its loop."""
    trainer = TextTrainer(settings(home, *overrides))
    trainer.watchdog = Watchdog(trainer.world, 600, home)
    return trainer


def twin(trainer: TextTrainer) -> BertForMaskedLM:
    """transformers' model with the weights of ours."""
    config = BertConfig(**trainer.encoder.hugging_face(trainer.tokenizer.pad_id))
    theirs = BertForMaskedLM(config)
    _, unexpected = theirs.load_state_dict(trainer.model.lm.state_dict(), strict=False)
    assert not unexpected
    return theirs


def plain_loss(theirs: BertForMaskedLM, batch: TextBatch) -> Tensor:
    """The mean over masked tokens of padded rows with -100 elsewhere, as a data collator has it."""
    lengths = batch.text.cu_seqlens.diff().long()
    ids = batch.text.padded()
    inside = torch.arange(ids.shape[1]) < lengths[:, None]
    flat = torch.full(batch.text.input_ids.shape, -100)
    flat[batch.places] = batch.targets
    labels = torch.full(ids.shape, -100)
    labels[inside] = flat
    loss = theirs(input_ids=ids, attention_mask=inside.long(), labels=labels).loss
    assert loss is not None
    return loss


def gradients(trainer: TextTrainer, batch: TextBatch) -> tuple[Tensor, dict[str, Tensor]]:
    trainer.optimizer.zero_grad()
    loss = trainer.gradients(batch)
    found = {}
    for name, parameter in trainer.model.lm.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return loss, found


@pytest.mark.parametrize("unit", ["whole_word", "subword"])
def test_loss_and_gradients_equal_transformers(home: Path, unit: str) -> None:
    """With the same masks. To 1e-5 of a gradient's norm: fp32, added in another order."""
    trainer = make(home, f"name={unit}", f"masking.unit={unit}")
    theirs = twin(trainer)
    batch = trainer.samples.__getitems__(list(range(8)))
    want = plain_loss(theirs, batch)
    want.backward()
    loss, found = gradients(trainer, batch)
    torch.testing.assert_close(loss, want.detach(), rtol=1e-6, atol=0)
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        difference = (found[name] - parameter.grad).norm()
        assert difference <= 1e-5 * max(parameter.grad.norm(), 1e-3), name


def test_run_equals_a_plain_loop(home: Path) -> None:
    """All losses of a run and its last weights, beside AdamW on transformers' model.

    Each of 12 steps moves a weight by 3e-3 at most, and Adam amplifies rounding where gradients
    are near zero: losses agree to 1e-4, weights to a tenth of a step.
    """
    trainer = TextTrainer(settings(home, "name=plain"))
    theirs, config = twin(trainer), trainer.config.optimizer
    groups = [
        {
            "params": [p for p in theirs.parameters() if (p.ndim > 1) == decays],
            "weight_decay": decay,
        }
        for decays, decay in ((True, config.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=config.betas, eps=config.eps)
    losses = []
    for step in range(12):
        batch = trainer.samples.__getitems__(list(range(8 * step, 8 * step + 8)))
        loss = plain_loss(theirs, batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 12, config)
        optimizer.step()
    assert trainer.fit()
    rows = read_metrics(trainer.config.folder / "metrics.jsonl")
    ours = [row["train/loss"] for row in rows if "train/loss" in row]
    assert ours == pytest.approx(losses, abs=1e-4)
    assert losses[-1] < losses[0] - 0.3  # something is learnt
    weights = dict(theirs.named_parameters())
    for name, parameter in trainer.model.lm.named_parameters():
        assert (parameter - weights[name]).abs().max() < 3e-4, name


@pytest.mark.parametrize("micro", [1, 3, 7])
def test_micro_batches_change_nothing(home: Path, micro: int) -> None:
    """To 1e-5 of the norm; the chunks have different numbers of masked tokens."""
    whole, parts = make(home, "name=w"), make(home, "name=m", f"train.micro_batch={micro}")
    batch = whole.samples.__getitems__(list(range(8)))
    loss, want = gradients(whole, batch)
    other, found = gradients(parts, batch)
    torch.testing.assert_close(other, loss, rtol=1e-6, atol=0)
    for name, gradient in want.items():
        assert (found[name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-3), name


def test_activation_checkpointing_changes_nothing(home: Path) -> None:
    plain, saving = make(home, "name=w"), make(home, "train.activation_checkpointing=true")
    batch = plain.samples.__getitems__(list(range(8)))
    loss, want = gradients(plain, batch)
    other, found = gradients(saving, batch)
    assert torch.equal(loss, other)
    assert all(torch.equal(found[name], gradient) for name, gradient in want.items())


def test_compiled_layers_change_nothing(home: Path) -> None:
    """Nor are they compiled again for batches of other sizes. To 1e-5 of the norm: fp32."""
    torch._dynamo.reset()
    plain, compiled = make(home, "name=w"), make(home, "name=c")
    counter = CompileCounter()
    compiled.model.compile_layers(backend=counter)
    for rows in (8, 3, 5):
        batch = plain.samples.__getitems__(list(range(rows)))
        loss, want = gradients(plain, batch)
        other, found = gradients(compiled, batch)
        torch.testing.assert_close(other, loss, rtol=1e-5, atol=0)
        for name, gradient in want.items():
            assert (found[name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-3), name
        if rows == 8:
            graphs = counter.frame_count
    assert counter.frame_count == graphs > 0


def test_half_precision_is_near(home: Path) -> None:
    """bf16 has 8 bits of mantissa: losses agree to a hundredth; weights and gradients are fp32."""
    full, half = make(home, "name=w"), make(home, "name=h", "train.precision=bf16")
    batch = full.samples.__getitems__(list(range(8)))
    loss, _ = gradients(full, batch)
    other, found = gradients(half, batch)
    assert loss != other
    assert other.item() == pytest.approx(loss.item(), rel=0.01)
    assert {loss.dtype, other.dtype, *(value.dtype for value in found.values())} == {torch.float32}


def test_a_batch_without_masked_tokens(home: Path) -> None:
    """Nothing to guess: a loss of zero, no gradient, no division by zero."""
    trainer = make(home, "name=none")
    batch = trainer.samples.__getitems__([0, 1])
    none = torch.empty(0, dtype=torch.int64)
    loss, found = gradients(trainer, batch._replace(places=none, targets=none))
    assert loss == 0
    assert not any(gradient.any() for gradient in found.values())


def test_exported_folder(home: Path) -> None:
    """transformers reads it: the same logits, the same tokens, nothing missing."""
    trainer = TextTrainer(settings(home, "name=out", "train.steps=3"))
    trainer.fit()
    folder = home / "runs/out/model"
    theirs, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["CT of the abdomen with 3 lesions", "niño con fiebre"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    packed = trainer.tokenizer(texts)
    inside = inputs["attention_mask"].bool()
    assert torch.equal(inputs["input_ids"][inside], packed.input_ids)
    with torch.no_grad():
        logits = theirs.eval()(**inputs).logits[inside]
        ours = trainer.model.lm.logits(trainer.model.lm.bert.states(packed))
    torch.testing.assert_close(logits, ours, rtol=1e-5, atol=1e-5)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    assert not list(folder.glob("*.tmp"))


def test_pretraining_json_counts_what_was_read(home: Path) -> None:
    trainer = TextTrainer(settings(home, "name=facts", "train.steps=5", "train.checkpoint_every=3"))
    trainer.fit()
    facts = json.loads((home / "runs/facts/model/pretraining.json").read_text())
    batches = [trainer.samples.__getitems__(list(range(8 * s, 8 * s + 8))) for s in range(5)]
    assert facts["steps"] == 5
    assert facts["tokens"] == sum(len(batch.text.input_ids) for batch in batches)
    assert facts["flops"]["all"] == facts["flops"]["run"] > 0
    assert facts["corpora"]["a"]["trained_on"]
    assert facts["corpora"]["a"]["documents"] == trainer.data.stores["a"].meta["documents"]
    assert facts["settings"]["model"]["width"] == 32
    assert {"python", "torch", "commit"} <= set(facts["versions"])


def test_clip_trainer_starts_from_it(home: Path, tmp_path: Path) -> None:
    """The text tower of train.py has these weights before its first step."""
    from tests.shard_factory import make_shards
    from tests.vlp.tiny import RUN
    from vlp.config import load_config
    from vlp.settings import Config
    from vlp.trainer import Trainer

    TextTrainer(settings(home, "name=tower", "train.steps=2")).fit()
    folder = home / "runs/tower/model"
    make_shards(tmp_path / "shards", (9, 8), width=64, height=64)
    (tmp_path / "c.yaml").write_text(RUN)
    shape = {"max_positions": 32, "width": 32, "layers": 2, "heads": 4, "mlp_width": 48}
    overrides = [f"model.text.{key}={value}" for key, value in shape.items()]
    config = load_config(
        Config,
        [
            *(str(tmp_path / "c.yaml"), f"runs={tmp_path}", "train.steps=1", "data.workers=0"),
            *(f"data.sources.a.path={tmp_path / 'shards'}", f"model.text.init={folder}"),
            *("model.text.context_length=24", *overrides),
        ],
    )
    tower = Trainer(config).model.text.state_dict()
    for name, value in load_file(folder / "model.safetensors").items():
        if name.startswith("bert."):
            assert torch.equal(tower[f"transformer.{name.removeprefix('bert.')}"], value), name


def test_the_average_of_weights_is_scored_and_exported(home: Path) -> None:
    trainer = TextTrainer(settings(home, "name=ema", "train.steps=4", "train.ema_decay=0.5"))
    trainer.fit()
    exported = load_file(home / "runs/ema/model/model.safetensors")
    own = trainer.model.lm.state_dict()
    assert any(not torch.equal(own[name], value) for name, value in exported.items())
    with trainer.averaged():
        assert all(torch.equal(value, exported[name]) for name, value in own.items())


def test_corpora_that_no_stage_names_are_only_scored(home: Path) -> None:
    stages = "mixture.stages=[{weights: {a: 2}, steps: 3}, {weights: {a: 1}}]"
    trainer = TextTrainer(settings(home, "name=only", stages, "train.steps=6"))
    trainer.fit()
    assert trainer.data.trained == ["a"]
    rows = read_metrics(trainer.config.folder / "metrics.jsonl")
    scored = [row for row in rows if "val/bits_per_character/b" in row]
    assert [row["step"] for row in scored] == [6]
    for row in scored:
        for name in ("a", "b"):
            assert 0 < row[f"val/bits_per_character/{name}"] < 20
            assert row[f"val/unigram_floor/{name}"] > 0
            assert row[f"val/nats_per_piece/{name}"] > 0
            assert row[f"val/unknown_pieces/{name}"] == 0
    stages_seen = [row["stage"] for row in rows if "stage" in row]
    assert stages_seen == [1, 1, 1, 2, 2, 2]


def test_steps_follow_from_epochs_or_operations(home: Path) -> None:
    rows = TextTrainer(settings(home)).corpora.sampler.orders[0].epoch_size
    trainer = TextTrainer(settings(home, "train.steps=0", "train.epochs=2.5"))
    assert trainer.schedule.steps == round(2.5 * rows / 8)
    stages = "mixture.stages=[{steps: 4}, {weights: {a: 1}}]"
    staged = TextTrainer(settings(home, "train.steps=0", "train.epochs=1", stages))
    assert staged.schedule.steps == 4 + round(staged.corpora.sampler.orders[1].epoch_size / 8)
    budget = trainer.spending.spent(7).flops
    paid = TextTrainer(settings(home, "train.steps=0", f"train.flops={budget}"))
    assert paid.schedule.steps == 7


def test_vocabulary_is_shared_through_the_cache(home: Path) -> None:
    lines: list[str] = []
    overrides = ("own_vocabulary.size=310", "own_vocabulary.kind=bpe")
    first = TextTrainer(settings(home, *overrides), lines.append)
    assert any("training a vocabulary of 310" in line for line in lines)
    lines.clear()
    second = TextTrainer(settings(home, "name=second", *overrides), lines.append)
    assert not lines
    assert second.tokenizer.folder == first.tokenizer.folder


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corpora.a.path=/nowhere.jsonl"], "/nowhere.jsonl"),
        (["mixture.stages=[{weights: {c: 1}}]"], "weights.c: no such corpus; there are a, b"),
        (["mixture.stages=[{length: 2}]"], "length: with [CLS] and [SEP] set 3 or more, got 2"),
        (["mixture.stages=[{length: 99}]"], "length=99 is more than model.length="),
        (["init=continual", "base=/nowhere"], "base=/nowhere: no such folder"),
        (["vocabulary=inherited", "base=/nowhere"], "base=/nowhere: no such folder"),
        (["model.length=2"], "model.length=2 must be above 2 and at most model.max_positions="),
        (["model.heads=0"], "model.heads=0 must be at least 1"),
        (["train.batch_size=0"], "batch_size"),
        (["train.flops=1e9"], "set steps or flops, not both"),
        (["corpora.a.fields=[body]"], "body"),
        (["split.val_fraction=0.999", "split.seed=3"], "no training text"),
    ],
)
def test_impossible_settings_are_one_line(
    home: Path, overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        TextTrainer(settings(home, f"cache={tmp_path}", *overrides))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_data_on_resume_is_refused(home: Path) -> None:
    TextTrainer(settings(home, "name=resumed", "train.steps=4")).fit()
    for change in (
        ["masking.share=0.3"],
        ["seed=3"],
        ["mixture.stages=[{weights: {a: 1}}]"],
        ["mixture.stages=[{length: 12}]"],
        ["model.length=20"],
        ["train.batch_size=4"],
        ["own_vocabulary.size=280"],
        ["corpora.b.share=0.5"],
    ):
        with pytest.raises(UserError, match="set it back or choose another name"):
            TextTrainer(settings(home, "name=resumed", *change))


def test_the_head_of_next_sentences_goes_on(home: Path) -> None:
    """From a BertForPreTraining's; a model folder of ours has none, which the first line says."""
    TextTrainer(settings(home, "name=headless", "train.steps=1")).fit()
    headless, whole = home / "runs/headless/model", home / "whole"
    theirs = BertForPreTraining(BertConfig.from_pretrained(headless))
    theirs.save_pretrained(whole)
    shutil.copy(headless / "tokenizer.json", whole)
    pairs = ["init=continual", "objectives.next_sentence=1", "objectives.next_sentence_pairs=4"]
    trainer = TextTrainer(settings(home, "name=went_on", f"base={whole}", *pairs))
    head = trainer.objectives["next_sentence"].head.state_dict()
    assert torch.equal(head["pooler.dense.weight"], theirs.bert.pooler.dense.weight)
    assert torch.equal(head["seq_relationship.weight"], theirs.cls.seq_relationship.weight)
    note = "the base has no head for next sentences: a new one is learnt"
    assert note not in trainer.facts()
    assert note in TextTrainer(settings(home, "name=new", f"base={headless}", *pairs)).facts()


def test_damaged_base_and_cache_are_named(home: Path) -> None:
    TextTrainer(settings(home, "name=base", "train.steps=2")).fit()
    folder = home / "runs/base/model"
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors: not readable"):
        TextTrainer(settings(home, "init=continual", f"base={folder}"))
    trainer = TextTrainer(settings(home, f"cache={home / 'cut'}"))
    (tokens,) = (
        path
        for path in (home / "cut").glob("tokens-*/tokens.bin")
        if path.stat().st_size == 2 * len(trainer.data.train["a"].ids)
    )
    tokens.write_bytes(tokens.read_bytes()[:10])
    with pytest.raises(UserError, match=r"tokens\.bin: not as long as starts\.npz says; remove"):
        TextTrainer(settings(home, f"cache={home / 'cut'}"))


def test_program_says_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_program(main, arguments(home, "mdoel.width=3"))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error == "error: mdoel.width=3: unknown key 'mdoel'; did you mean 'model'?\n"


def test_a_loss_that_is_not_finite_names_its_rows(home: Path) -> None:
    trainer = TextTrainer(settings(home, "name=nan", "optimizer.clip_norm=0"))
    with torch.no_grad():
        trainer.model.lm.cls["predictions"].bias[:] = math.nan
    with pytest.raises(UserError, match=r"loss of step 1 is not finite \(rank 0, samples [ab]/\d+"):
        trainer.fit()
