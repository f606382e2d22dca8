"""What people look at during training: retrieved figures, shares of cost, W&B without a server."""

import json
import resource
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from eval.retrieval import recall
from tests.shard_factory import make_samples, make_shards, write_shards
from tests.vlp.tiny import make_tokenizer
from vlp.config import UserError, load_config
from vlp.curves import read_metrics
from vlp.data.index import open_shards
from vlp.data.loader import Batch, EvaluationSamples
from vlp.data.text import PackedText
from vlp.reporting import Costs, NullReporter, ReportConfig, Reporter, Rows, Window
from vlp.settings import Config
from vlp.trainer import Trainer
from vlp.watch import Embedded, answers, show_retrieved, spread, whole_places


class Tables(NullReporter):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.tables: dict[str, tuple[Sequence[str], Rows]] = {}

    @property
    def takes_tables(self) -> bool:
        return True

    def table(self, step: int, name: str, columns: Sequence[str], rows: Rows) -> None:
        self.tables[name] = (columns, rows)


@pytest.fixture
def samples(tmp_path: Path) -> EvaluationSamples:
    for name in "ab":
        made = make_samples(4, seed=ord(name), width=48, height=40)
        write_shards(tmp_path / name, [("val", made)])
    folders = [open_shards(tmp_path / name, "val") for name in "ab"]
    return EvaluationSamples(folders, make_tokenizer(tmp_path / "t"), 32)


def test_answers_are_the_nearest_figures() -> None:
    image = torch.eye(4)
    text = normalize(torch.tensor([[1.0, 0.9, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0.5, 1]]))
    first, second = answers(image, text, [0, 2], count=2)
    assert (first.query, first.rank, first.found) == (0, 1, [0, 1])
    assert (second.query, second.rank, second.found[0]) == (2, 4, 3)  # ties count before


def test_spread() -> None:
    assert spread(5, 16) == [0, 1, 2, 3, 4]
    assert spread(101, 3) == [0, 50, 100]


def test_table_of_retrieved_figures(samples: EvaluationSamples) -> None:
    reporter = Tables()
    places = [0, 2, 4, 7]  # others were broken
    show_retrieved(reporter, 3, samples, Embedded(torch.eye(4), torch.eye(4), places))
    columns, rows = reporter.tables["val/retrieved"]
    assert columns == ["caption", "its figure", "rank", "found 1", "found 2", "found 3"]
    captions = [folder.caption(n) for folder in samples.folders for n in range(len(folder))]
    assert [row[0] for row in rows] == [captions[place] for place in places]
    for row in rows:
        assert row[2] == 1
        assert isinstance(row[1], Image.Image)
        assert isinstance(row[3], Image.Image)
        assert row[1].tobytes() == row[3].tobytes()


def test_no_table_where_nobody_looks(samples: EvaluationSamples) -> None:
    show_retrieved(NullReporter(), 3, samples, Embedded(torch.eye(1), torch.eye(1), [99]))


def test_places_of_a_batch_without_its_broken_samples(samples: EvaluationSamples) -> None:
    batch = samples.__getitems__([1, 5, 6])
    assert whole_places(samples, [1, 5, 6], batch) == [1, 5, 6]
    cut = batch._replace(keys=[batch.keys[0], batch.keys[2]], broken=[object()])  # type: ignore[list-item]
    assert whole_places(samples, [1, 5, 6], cut) == [1, 6]


def _batch(lengths: list[int]) -> Batch:
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    text = PackedText(torch.zeros(sum(lengths), dtype=torch.int64), starts, max(lengths))
    keys = [f"k{n}" for n in range(len(lengths))]
    return Batch(torch.zeros(len(lengths), 3, 8, 8, dtype=torch.uint8), text, keys, [])


def test_shares_of_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.0])
    monkeypatch.setattr("vlp.reporting.time.perf_counter", lambda: next(clock))

    def flops(images: int, lengths: Tensor) -> float:
        return 1000.0 * images + float(lengths.sum())

    costs = Costs(context_length=10, flops=flops, peak=2000.0, device=torch.device("cpu"))
    window = Window(0, costs)
    window.add(1, _batch([5, 3]), torch.tensor(1.0))
    window.add(2, _batch([2, 10]), torch.tensor(1.0))
    rates = window.rates(ranks=3)
    assert rates["perf/samples_per_second"] == 4 * 3 / 2
    assert rates["perf/tokens_per_second"] == 20 * 3 / 2
    assert rates["perf/padding_saved"] == pytest.approx(0.5)
    assert rates["perf/mfu"] == pytest.approx(4020 / 2 / 2000)  # of one rank, on one device
    assert 0.05 < rates["perf/memory_gb"] < 50


def test_a_full_disk_costs_rows_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Reporter(tmp_path, ReportConfig(), {}, 0, 9) as reporter:
        reporter.log(1, {"train/loss": 1.0})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))  # room for a part of the next row
        try:
            reporter.log(2, {"train/loss": 2.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, ignored)
        reporter.log(3, {"train/loss": 3.0})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]
    assert "a row could not be written" in capsys.readouterr().out


def test_without_a_known_peak_there_is_no_mfu() -> None:
    costs = Costs(10, lambda images, lengths: 1.0, None, torch.device("cpu"))
    window = Window(0, costs)
    window.add(1, _batch([5]), torch.tensor(1.0))
    assert "perf/mfu" not in window.rates(ranks=1)


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Nobody listens at this address."""
    wandb.teardown()  # it remembers keys
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    folder = tmp_path / "run"
    folder.mkdir()
    yield folder
    wandb.teardown()


def test_a_server_that_is_down_makes_the_run_go_on_offline(
    no_server: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("vlp.reporting.INIT_TIMEOUT", 3)
    with Reporter(no_server, ReportConfig(wandb="online"), {"a": 1}, 0, 2) as reporter:
        reporter.log(1, {"train/loss": 1.0})
        reporter.histogram(1, "data/caption_tokens", [1, 2, 2])
        reporter.table(1, "t", ["x", "y"], [["a", Image.new("RGB", (4, 4))]])
    said = capsys.readouterr().out
    assert "can't be reached" in said
    assert "wandb sync" in said
    assert len(list(no_server.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (no_server / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows == [{"step": 1, "train/loss": 1.0}]


def test_no_key_is_one_clear_line(no_server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="wandb=online: No API key configured"):
        Reporter(no_server, ReportConfig(wandb="online"), {}, 0, 2)


def test_a_run_reports_tables_histograms_and_a_suite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_shards(tmp_path / "shards", (9, 8), val=(7,), width=64, height=64)
    config = load_config(
        Config,
        [
            *(
                "name=run",
                f"runs={tmp_path / 'runs'}",
                f"data.sources.a.path={tmp_path / 'shards'}",
            ),
            *("model.embed_dim=32", "model.image.name=test_vit", "model.image.size=160"),
            *("model.text.vocab_size=200", "model.text.context_length=32", "model.text.width=32"),
            *("model.text.layers=2", "model.text.heads=2", "model.text.mlp_width=64"),
            *("train.batch_size=4", "train.steps=4", "train.log_every=2"),
            *("train.eval_every=2", "train.suite=some.yaml", "report.wandb=offline"),
        ],
    )
    folders: list[list[str]] = []

    def score(folder: Path) -> dict[str, float]:
        folders.append(sorted(path.name for path in folder.iterdir()))
        return {"zero_shot/x/accuracy": 0.5 + len(folders) / 10}

    Trainer(config, evaluate=recall, score=score).fit()
    rows = read_metrics(config.folder / "metrics.jsonl")
    assert [row["zero_shot/x/accuracy"] for row in rows if "zero_shot/x/accuracy" in row] == [
        *(0.6, 0.7),
    ]
    assert "open_clip_model.safetensors" in folders[0]
    assert not list(config.folder.glob("scored-*"))  # nothing is left of them
    logged = [row for row in rows if "train/loss" in row]
    for row in logged:
        towers = row["train/gradient_norm_image"], row["train/gradient_norm_text"]
        assert 0 < max(towers) <= row["train/gradient_norm"]
        assert 0 < row["perf/padding_saved"] < 1
    (run,) = (config.folder / "wandb").glob("offline-run-*")
    tables = list(run.glob("files/media/table/val/retrieved*.json"))
    assert len(tables) == 2
    table = json.loads(tables[0].read_text())
    assert table["columns"][:3] == ["caption", "its figure", "rank"]
    assert len(table["data"]) == 7
    # The run's own copy names images only; they travel in the table's artifact.
    assert [table["data"][0][column] for column in (1, 3, 4, 5)] == ["Image"] * 4
