"""Retrieval scores in fixed memory, and a suite's wall time, beside clip-benchmark's.

    python -m benchmarks.eval                    # two CPU cores: minutes, nearly all the peer's
    python -m benchmarks.eval peer=false         # ours alone: minutes
    python -m benchmarks.eval device=cuda full=725739 suite_sets=0 out=FILE.json

Claim: recall@1, 5 and 10 both ways of N pairs with clip-benchmark's values, in memory that doesn't
grow with N squared; 725,739 pairs, PMC-15M's test split, are possible on one machine.

Every measurement has a process of its own, so that its peak memory is its own: what the process
holds at most beyond the features, on CUDA what its tensors do. clip-benchmark gets the same
features through a model that looks them up, and is left out where its matrix of scores, and what
it makes of it, don't fit into the machine's memory. A suite is several sets, start-up included.
"""

import multiprocessing
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.measure import Result, Row, interleaved, machine, median_row, paired_ratio, report
from eval.retrieval import recall
from vlp.config import UserError, load_config, run_program

MIB = 2**20
KS = (1, 5, 10)
PEER_BATCH = 64  # clip-benchmark's default
CLASSES = ("heart", "lung", "liver", "kidney", "colon", "brain", "breast", "skin", "bone", "eye")


class Measured(NamedTuple):
    """What one run of one side gave."""

    seconds: float
    mib: float
    """At the peak, beyond the features."""
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class EvalBenchmarkConfig:
    """Measure retrieval over sizes, then a small suite of images."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a device; clip-benchmark's matrix is on the CPU anyway."""
    sizes: tuple[int, ...] = (5_000, 20_000, 50_000)
    """Numbers of pairs."""
    peer: bool = True
    """Whether clip-benchmark runs, too; at N = 50,000 it takes most of the time."""
    full: int = 0
    """A last size, ours only; 0: its time is projected from the largest of `sizes`."""
    width: int = 512
    """Size of the features."""
    repetitions: int = 1
    """Of each measurement."""
    suite_sets: int = 4
    """Labelled sets of the suite; 0 leaves it out."""
    suite_images: int = 128
    """Images of each."""
    model: str = "ViT-B-32"
    """Architecture that scores the suite, with random weights."""
    seed: int = 0
    """Of features, weights and images."""
    out: str = ""
    """JSON file for the result; empty writes none."""

    def __post_init__(self) -> None:
        if not self.sizes or min(*self.sizes, self.width, self.repetitions, self.suite_images) < 1:
            raise ValueError("sizes, width, repetitions and suite_images must be 1 or more")
        if min(self.full, self.suite_sets) < 0:
            raise ValueError("full and suite_sets must not be negative")


# --- retrieval ------------------------------------------------------------------------------


def pairs(count: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Unit features of both sides, similar within pairs as after some training."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, width, generator=generator)
    texts = torch.randn(count, width, generator=generator).mul_(4).add_(images)
    for side in (images, texts):  # in place: copies would count as the peak of what follows
        F.normalize(side, dim=1, out=side)
    return images, texts


def ours(count: int, width: int, seed: int, device: str) -> Measured:
    """Seconds, MiB and scores of eval.retrieval."""
    images, texts = (side.to(device) for side in pairs(count, width, seed))
    return _measured(lambda: recall(images, texts, KS), device)


def theirs(count: int, width: int, seed: int, device: str) -> Measured:
    """Seconds, MiB and scores of clip-benchmark, under our names."""
    from clip_benchmark.metrics import zeroshot_retrieval

    images, texts = pairs(count, width, seed)

    class LookUp:
        def encode_image(self, index: Tensor) -> Tensor:
            return images[index.cpu()].to(index.device)

        def encode_text(self, index: Tensor) -> Tensor:
            return texts[index.cpu()].to(index.device)

    def batches() -> Iterator[tuple[Tensor, list[list[int]]]]:
        for part in torch.arange(count).split(PEER_BATCH):
            yield part, [[int(i)] for i in part]

    found, mib, scores = _measured(
        lambda: zeroshot_retrieval.evaluate(
            LookUp(), batches(), torch.tensor, device, amp=False, recall_k_list=list(KS)
        ),
        "cpu",  # where its matrix is
    )
    names = {"image_to_text": "text_retrieval", "text_to_image": "image_retrieval"}
    ours_called = {
        f"{way}_recall@{k}": scores[f"{name}_recall@{k}"] for way, name in names.items() for k in KS
    }
    return Measured(found, mib, ours_called)


def _measured(function: Callable[[], dict[str, float]], device: str) -> Measured:
    """Run once and look at clock and memory."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = _resident()
    start = time.perf_counter()
    scores = function()  # comes to the CPU, so the device has finished
    seconds = time.perf_counter() - start
    if device == "cuda":
        return Measured(seconds, (torch.cuda.max_memory_allocated() - before) / MIB, scores)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # given in KiB
    return Measured(seconds, max(peak - before, 0) / MIB, scores)


def _resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def alone(function: Callable[..., Measured], *arguments: object) -> Measured:
    """Call in a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def memory_of_machine() -> int:
    """Bytes that are free now."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise UserError("/proc/meminfo: no MemAvailable; this benchmark needs Linux")


def peer_needs(count: int) -> int:
    """Bytes that clip-benchmark holds at its peak: its float32 matrix, the mask of right pairs, and
    what it makes of them. Measured at N = 20,000: 11.6 for each of N x N scores."""
    return 12 * count * count


def retrieval(config: EvalBenchmarkConfig, device: str) -> list[Row]:
    """All sizes; both sides where both fit."""
    rows = []
    for count in config.sizes:
        sides = {"ours": ours, "clip-benchmark": theirs}
        fits = peer_needs(count) < 0.9 * memory_of_machine()
        if not (fits and config.peer):
            del sides["clip-benchmark"]
        rows += _contest(config, device, count, sides)
        if not fits:
            need = peer_needs(count) / MIB
            rows.append(
                Row(f"retrieval, N={count:,}: clip-benchmark can't run, needs", "MiB", need)
            )
    if config.full:
        return rows + _contest(config, device, config.full, {"ours": ours})
    largest = max(config.sizes)
    last = next(row for row in rows if row.what == f"retrieval, N={largest:,}: ours, time")
    projected = last.value * (725_739 / largest) ** 2
    return [*rows, Row(f"projected from N={largest:,} to 725,739: ours, time", "s", projected)]


def _contest(
    config: EvalBenchmarkConfig, device: str, count: int, sides: dict[str, Callable[..., Measured]]
) -> list[Row]:
    """Time and memory of each side in turn, and whether they agree."""
    runs: dict[str, list[Measured]] = {name: [] for name in sides}

    def once(name: str) -> float:
        runs[name].append(alone(sides[name], count, config.width, config.seed, device))
        return runs[name][-1].seconds

    interleaved({name: partial(once, name) for name in sides}, config.repetitions)
    what, rows = f"retrieval, N={count:,}", []
    times = {side: [run.seconds for run in found] for side, found in runs.items()}
    memory = {side: [run.mib for run in found] for side, found in runs.items()}
    for name, unit, values in (("time", "s", times), ("memory", "MiB", memory)):
        for side, own in values.items():
            ratio = paired_ratio(own, values["ours"])
            rows.append(median_row(f"{what}: {side}, {name}", unit, own, ratio))
    scores = [found[0].scores for found in runs.values()]
    if len(scores) == 2:
        apart = max(abs(scores[0][key] - scores[1][key]) for key in scores[0])
        rows.append(Row(f"{what}: greatest difference of a recall", "", apart))
    return rows


# --- a suite --------------------------------------------------------------------------------

PEER = """
import sys
import numpy as np
from clip_benchmark import cli
from clip_benchmark.metrics import zeroshot_classification
# Its float(array of one number) is an error since NumPy 2.4; this is what it was before.
zeroshot_classification.float = lambda x: np.asarray(x, float).item()
cli.main()
"""


def write_set(folder: Path, count: int, seed: int) -> None:
    """A labelled set in clip-benchmark's layout: smooth random JPEGs of 500 x 400 pixels.

    In several shards, since a worker of clip-benchmark's loader without one is an error.
    """
    import webdataset

    per_shard = max(1, count // 16)
    generator = np.random.default_rng(seed)
    (folder / "test").mkdir(parents=True)
    with webdataset.ShardWriter(
        str(folder / "test" / "%d.tar"), maxcount=per_shard, verbose=0
    ) as sink:
        for i in range(count):
            noise = generator.integers(0, 256, (20, 25, 3), dtype=np.uint8)
            image = Image.fromarray(noise).resize((500, 400), Image.Resampling.BICUBIC)
            sink.write({"__key__": f"s{i:07d}", "jpg": image, "cls": i % len(CLASSES)})
    (folder / "test" / "nshards.txt").write_text(f"{-(-count // per_shard)}\n", encoding="ascii")
    (folder / "classnames.txt").write_text("\n".join(CLASSES) + "\n", encoding="ascii")
    templates = "a photo of {c}\n{c} presented in image\n"
    (folder / "zeroshot_classification_templates.txt").write_text(templates, encoding="ascii")


def write_model(folder: Path, name: str, seed: int) -> None:
    """Random weights as a folder that both sides load."""
    import json

    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    model = open_clip.create_model(name)
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {
        "model_cfg": open_clip.get_model_config(name),
        "preprocess_cfg": {"size": model.visual.image_size},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")


def suite(config: EvalBenchmarkConfig, device: str) -> list[Row]:
    """Wall time of classifications, with start-up, on the same files with the same model."""
    count, names = config.suite_images, [f"set{i}" for i in range(config.suite_sets)]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        tasks = "name: bench\ntasks:\n"
        for i, one in enumerate(names):
            write_set(root / one, count, config.seed + i)
            tasks += (
                f"  {one}:\n    kind: classification\n    source: drawn\n"
                f"    data: {{reader: clip_benchmark, path: {one}}}\n"
            )
        write_model(root / "model", config.model, config.seed)
        (root / "suite.yaml").write_text(tasks, encoding="ascii")
        workers = max(os.cpu_count() or 1, 1)
        our_command = shlex.split(
            f"{sys.executable} -m eval {root}/suite.yaml model=local-dir:{root}/model "
            f"data_root={root} out={root}/out device={device} workers={workers}"
        )
        peer_command = shlex.split(
            f"--dataset {' '.join('wds/' + one for one in names)} --dataset_root "
            f"{root}/{{dataset}} --split test --task zeroshot_classification --model "
            f"local-dir:{root}/model --pretrained none --no_amp --batch_size {PEER_BATCH} "
            f"--num_workers {workers} --output {root}/{{dataset}}.json"
        )

        def fresh() -> float:
            shutil.rmtree(root / "out", ignore_errors=True)
            return _wall(our_command)

        sides = {"ours": fresh, "ours, again": lambda: _wall([*our_command, "overwrite=true"])}
        if config.peer:
            peer = [sys.executable, "-c", PEER, "eval", *peer_command]
            sides["clip-benchmark"] = lambda: _wall(peer)
        found = interleaved(sides, config.repetitions)
    what = f"suite, {len(names)} x {count} images, {config.model}"
    return [
        median_row(f"{what}: {side}, time", "s", seconds, paired_ratio(seconds, found["ours"]))
        for side, seconds in found.items()
    ]


def _wall(command: list[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{shlex.join(command[:4])} ...: {' '.join(done.stderr.split())[-500:]}")
    return time.perf_counter() - start


def measure(config: EvalBenchmarkConfig) -> Result:
    """Retrieval, then the suite."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: there is no CUDA device; use device=cpu")
    on_cuda = torch.cuda.is_available() and config.device != "cpu"
    device = "cuda" if on_cuda else "cpu"
    facts = machine()
    facts["features"] = f"two sides of N x {config.width}, fp32"
    facts["memory"] = f"{memory_of_machine() / MIB:,.0f} MiB free before the start"
    rows = retrieval(config, device)
    if config.suite_sets:
        rows += suite(config, device)
    return Result("eval", facts, tuple(rows))


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    config = load_config(EvalBenchmarkConfig, argv, "python -m benchmarks.eval")
    report([measure(config)], config.out)


if __name__ == "__main__":
    run_program(main)
