"""The benchmarks run, reduced to seconds and without the peer, and what they call exact is."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import (
    loader,
    loss_memory,
    measure,
    on_cuda,
    text_pretrain,
    text_tower,
    text_trainers,
    train_step,
)
from benchmarks.corpus import captions
from benchmarks.measure import Result, Row, interleaved, load, median_row, paired_ratio, report
from benchmarks.text_tower import CORPORA, draw_lengths
from vlp.config import UserError

ROOT = Path(__file__).resolve().parents[1]


MODULES = {
    "loader": loader,
    "loss_memory": loss_memory,
    "measure": measure,
    "text_pretrain": text_pretrain,
    "text_tower": text_tower,
    "train_step": train_step,
}


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The benchmarks pin their process to a core and set threads; the other tests must not see it.

    They run in this process because importing torch in another one takes longer than they do.
    """
    monkeypatch.setattr(os, "environ", dict(os.environ))
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


def rows(
    module: str, folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str
) -> dict[str, Row]:
    """The saved rows by name; the printed table must hold them as well."""
    out = folder / f"{module}.json"
    MODULES[module].main([*arguments, f"out={out}"])
    printed = capsys.readouterr().out
    found = {row.what: row for row in load(out).rows}
    assert found
    for what in found:
        assert what in printed
    return found


def test_text_tower_is_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = "layers=2 width=64 batch=12 context_length=64 vocab_size=300 repetitions=2"
    found = rows("text_tower", tmp_path, capsys, *settings.split(), "threads=1", "device=cpu")
    for name in CORPORA:
        what = f"{name}, B=12"
        assert found[f"{what}: greatest difference of embeddings"].value < 1e-6
        assert found[f"{what}: difference of gradients"].value < 1e-5
        assert 0 < found[f"{what}: tokens that are no padding"].value < 1
        assert found[f"{what}: padded to 64 (open_clip)"].ratio == 1
        assert found[f"{what}: packed (ours)"].value > 0


def test_text_pretrain_is_exact_and_needs_less(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = "generated=150 length=64 rows=4 layers=2 width=64 repetitions=2 groups=true"
    found = rows(
        "text_pretrain", tmp_path, capsys, *settings.split(), "vocabulary.size=600", "device=cpu"
    )
    assert found["difference of the losses"].value < 1e-5
    assert found["difference of the gradients"].value < 1e-5
    padded, ours = text_pretrain.PADDED, text_pretrain.OURS
    assert 0.5 < found[f"{padded}: real tokens"].value < 1
    assert found[f"{ours}, memory"].value < found[f"{padded}, memory"].value
    for way in (padded, text_pretrain.BLOCKS, text_pretrain.GROUPS, ours):
        assert 0 < found[way].low <= found[way].value <= found[way].high
    for unit in ("subword", "whole_word"):
        assert found[f"making a batch, {unit}: ours"].value > 0
    assert found["vocabulary: ours"].value > 0


def test_whole_trainers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both count the real tokens of the steps that they time: the median row is a rate."""
    settings = "generated=60 length=32 rows=2 layers=1 width=64 repetitions=1 vocabulary.size=300"
    found = rows(
        "text_pretrain", tmp_path, capsys, *settings.split(), "trainer_steps=2", "device=cpu"
    )
    for way in (text_trainers.THEIRS, text_trainers.OURS):
        assert 0 < found[way].low <= found[way].value < 1e6


def test_clock_counts_what_it_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four steps with 1, 2, 4, 8 real tokens the last two: 12 tokens in 3 seconds."""
    times = iter([10.0, 13.0])
    monkeypatch.setattr(text_trainers, "_now", lambda: next(times))
    clock = text_trainers.Clock(2)
    for step, tokens in enumerate([1, 2, 4, 8]):
        clock.on_step_begin(None, SimpleNamespace(global_step=step), None)
        mask = torch.zeros(2, 8, dtype=torch.long)
        mask.flatten()[:tokens] = 1
        clock.count(None, (), {"attention_mask": mask})
    clock.on_train_end(None, None, None)
    assert clock.seconds_per_token() == 3 / 12


def test_peers_of_pretraining_see_our_sequences(tmp_path: Path) -> None:
    """Collated without masks, padded with them, and cut into blocks: the same pieces in order."""
    config = text_pretrain.TextPretrainConfig(generated=40, length=32, rows=3, width=64)
    store = text_pretrain.read_texts(config, tmp_path)
    folder = tmp_path / "vocabulary"
    text_pretrain.vocabulary_rows(config, store, folder)
    sides = text_pretrain.Sides(config, *text_pretrain.open_corpora(config, store, folder))
    batch = sides.batches(1)
    plain = sides.corpora.batch(range(3, 6))
    assert torch.equal(batch.text.cu_seqlens, plain.cu_seqlens)
    hidden = torch.zeros(len(plain.input_ids), dtype=torch.bool)
    hidden[batch.places] = True
    for theirs in (text_pretrain.padded(batch), text_pretrain.blocks(batch)):
        real = theirs["attention_mask"].bool()
        assert torch.equal(theirs["input_ids"][real], batch.text.input_ids)
        assert torch.equal(theirs["labels"][real] != -100, hidden)
        assert torch.equal(theirs["labels"][real][hidden], batch.targets)
        assert not (theirs["labels"][~real] != -100).any()
    collated = sides.padded(1)
    real = collated["attention_mask"].bool()
    chosen = collated["labels"] != -100
    ids = torch.where(chosen, collated["labels"], collated["input_ids"])
    assert torch.equal(ids[real], plain.input_ids)
    # Whole words: what is chosen is chosen from a word's first piece to its last.
    words = torch.from_numpy(sides.batches.words.number(plain.input_ids.numpy()))
    for word in words[chosen[real]].unique():
        assert chosen[real][words == word].all()
    grouped = sides.grouped(0)
    assert sum(map(text_pretrain.real_tokens, grouped)) == len(
        sides.corpora.batch(range(24)).input_ids
    )


def test_train_step_is_exact_and_needs_fewer_operations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = "image=test_vit width=64 batch=4 repetitions=1 buckets=true corpora=[ROCO]"
    found = rows("train_step", tmp_path, capsys, *settings.split(), "device=cpu")
    what, padded = "ROCO, B=4", train_step.RELEASED
    assert found[f"{what}: difference of the losses"].value < 1e-5
    assert found[f"{what}: difference of the gradients"].value < 1e-4
    assert found[f"{what}: operations of {padded}"].value > 1.5
    need = {way: found[f"{what}: {way}, memory"].value for way in (padded, train_step.OURS)}
    assert need[train_step.OURS] < 0.7 * need[padded]
    for way in (padded, train_step.LONGEST, train_step.OURS, train_step.BUCKETS):
        assert found[f"{what}: {way}"].value > 0
    reached = found[f"{what}: ours against {padded}"]
    assert reached.value == pytest.approx(found[f"{what}: {train_step.OURS}"].ratio)


def test_ceiling_of_the_papers_towers() -> None:
    """ViT-B/16 and BERT-base: 1.60 and 2.19 at mean lengths of 127 and 27 tokens, cut at 256."""
    model = train_step.ModelConfig()
    padded = train_step.peer_flops(model, 1, 256)
    for name, want in (("PMC", 1.60), ("ROCO", 2.19)):
        lengths = draw_lengths(name, 1000, 256, np.random.default_rng(0))
        ours = train_step.step_flops(model, 1000, torch.tensor(lengths)) / 1000
        assert padded / ours == pytest.approx(want, rel=0.05)


@pytest.mark.parametrize("limit", [1, 5, 383, 384, 1000, 5000])
def test_largest_batch_is_found(limit: int) -> None:
    tried: list[int] = []

    def step(batch: int) -> None:
        tried.append(batch)
        if batch > limit:
            raise torch.cuda.OutOfMemoryError

    found = on_cuda.largest_batch(step, 384)
    assert limit - max(1, limit // 16) <= found <= limit
    assert found in tried
    assert len(tried) < 20


def test_kernels_of_a_trace_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused attention by the names that flash, cutlass and cuDNN kernels have."""
    names = {
        "void pytorch_flash::flash_fwd_kernel<...>": 4.0,
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop": 2.0,
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80": 1.0,
        "void (anonymous namespace)::softmax_warp_forward<...>": 3.0,
        "nvjet_hsh_128x256_64x4_gemm": 90.0,
    }
    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [
        SimpleNamespace(key=name, count=2, self_device_time_total=1e3 * ms, device_type=cuda)
        for name, ms in names.items()
    ]
    events.append(
        SimpleNamespace(key="aten::flash", count=9, self_device_time_total=7.0, device_type=cpu)
    )
    steps: list[int] = []
    monkeypatch.setattr(on_cuda.torch.cuda, "synchronize", lambda: None)
    trace = SimpleNamespace(key_averages=lambda: events)
    monkeypatch.setattr(on_cuda, "profile", lambda **_: nullcontext(trace))
    found = {row.what + row.unit: row for row in on_cuda.kernels("ours", lambda: steps.append(1))}
    assert len(steps) == 2  # a first one that is not profiled
    assert found["trace, ours: all kernelsms"].value == 100
    assert found["trace, ours: fused attentionlaunches"].value == 6
    assert found["trace, ours: fused attentionms"].ratio == pytest.approx(0.07)
    assert found["trace, ours: softmax over scoresms"].value == 3
    assert found["trace, ours: 2 x nvjet_hsh_128x256_64x4_gemmms"].ratio == pytest.approx(0.9)


def test_loss_memory_is_linear_and_counted_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = "batches=[256,1024] checked=256 width=32 tile=64 device=cpu"
    found = rows("loss_memory", tmp_path, capsys, *settings.split())
    ours = "ours, fp32 in tiles of 64"
    for way in (ours, "open_clip, fp32", "open_clip, amp_bf16"):
        counted, computed = found[f"N=256: {way}"], found[f"N=256: {way}, computed"]
        assert counted.value == pytest.approx(computed.value, rel=0.01)
    assert 3 < found[f"N=1024: {ours}"].value / found[f"N=256: {ours}"].value < 5
    theirs = "open_clip, fp32"
    assert 12 < found[f"N=1024: {theirs}"].value / found[f"N=256: {theirs}"].value < 20
    assert found["N=256: gradients, ours against fp32"].value < 1e-5


def test_loader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = f"samples=24 batch=12 repetitions=2 quality_samples=24 peer= work={tmp_path}"
    found = rows("loader", tmp_path, capsys, *settings.split())
    speed = found["original size: ours"]
    assert 0 < speed.low <= speed.value <= speed.high
    stages = [row for what, row in found.items() if what.startswith("our time: ")]
    assert len(stages) == 5
    assert min(row.value for row in stages) >= 0
    assert sum(row.ratio for row in stages) == pytest.approx(1, abs=0.05)
    pixels = "pixels of 24 generated figures against Pillow's"
    assert found[f"{pixels}, mean"].value > 45
    assert found[f"{pixels}, least"].value > 38


def test_captions_have_real_lengths_and_symbols() -> None:
    texts = captions(2000, 0)
    assert texts == captions(2000, 0)
    words = [len(text.split()) for text in texts]
    assert 40 < sum(words) / len(words) < 60
    assert 0.5 < sum(not text.isascii() for text in texts) / len(texts) < 0.65


@pytest.mark.parametrize(("name", "mean"), [("ROCO", 27), ("PMC", 131)])
def test_lengths_follow_the_fit(name: str, mean: float) -> None:
    """131 is the mean of the lognormal with PMC's median and 95th percentile; its own is 126."""
    lengths = np.array(draw_lengths(name, 4000, 100_000, np.random.default_rng(0)))
    assert np.median(lengths) == pytest.approx(CORPORA[name].median, rel=0.02)
    assert np.percentile(lengths, 95) == pytest.approx(CORPORA[name].p95, rel=0.02)
    assert lengths.mean() == pytest.approx(mean, rel=0.03)


def test_repetitions_are_interleaved() -> None:
    calls: list[str] = []

    def contender(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    found = interleaved({name: lambda name=name: contender(name) for name in "abc"}, 2)
    assert calls == ["a", "b", "c", "b", "c", "a"]
    assert found == {"a": [1, 6], "b": [2, 4], "c": [3, 5]}
    # A machine twice as slow in one repetition changes no ratio.
    assert paired_ratio([4, 8, 4], [2, 4, 2]) == 2
    assert median_row("x", "ms", [3, 1, 2]) == Row("x", "ms", 2, 1, 3)


def test_results_are_saved_and_shown_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Result("a name", {"fact": "one"}, (Row("what", "ms", 1234.5, 1000.0, 2e-5, 5.5),))
    report([result], str(tmp_path / "deep" / "x.json"))
    assert load(tmp_path / "deep" / "x.json") == result
    printed = capsys.readouterr().out
    for text in ("what", "5.50", "1,23", "2.0e-05", "fact: one"):
        assert text in printed
    (tmp_path / "bad.json").write_text('{"rows": 1}')
    with pytest.raises(UserError, match=r"bad.json: not a saved benchmark result"):
        load(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("loader", ["batch=3", "samples=10"], "batch=3 does not divide samples=10"),
        ("text_tower", ["shards=x"], "shards and tokenizer belong together"),
        ("text_pretrain", ["width=100"], "width is a multiple of 64"),
        ("text_pretrain", ["texts=/nowhere/*.jsonl"], "no file of kind 'jsonl' there"),
        ("measure", [], "name the JSON files"),
        ("train_step", ["corpora=[WIT]"], "corpora: known are ROCO, PMC"),
        ("train_step", ["image=vit_nothing"], "timm has no such model"),
        ("loss_memory", ["tile=0"], "batches, width and tile must be 1 or more"),
    ],
)
def test_impossible_settings(module: str, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MODULES[module].main(arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_gpu_script_says_that_there_is_none() -> None:
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "run"],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "there is no CUDA device on this machine" in done.stderr
