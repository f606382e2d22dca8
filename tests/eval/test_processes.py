"""Several ranks give the numbers of one, to the last digit; a killed run goes on where it was."""

import contextlib
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.results import read_folder
from tests.eval.test_results import scored
from tests.eval.tiny import suite_config, write_model, write_table
from tests.vlp.ranks import meeting_port
from vlp.config import run_program

ROOT = Path(__file__).parents[2]
TABLE = {"reader": "table", "path": "set/index.jsonl", "split": ""}
TASKS = {
    "pairs": {"kind": "retrieval", "source": "made up", "data": TABLE, "ks": [1, 3]},
    "parity": {
        "kind": "classification",
        "source": "made up",
        "data": TABLE,
        "label": "parity",
        "classes": {"even": ["even"], "odd": ["odd"]},
        "templates": ["{c}", "a {c} number"],
        "ensemble": "biovil",
    },
    "tempered": {
        "kind": "classification",
        "source": "made up",
        "data": {**TABLE, "split": "test"},
        "label": "parity",
        "classes": {"even": ["even"], "odd": ["odd"]},
        "templates": ["{c}"],
        "calibration": {"split": "val", "labelled": 4},
    },
    "closed": {
        "kind": "vqa",
        "source": "made up",
        "data": TABLE,
        "fixed_options": ["yes", "no"],
    },
}


def _rank(place: dict[str, str], log: Path, argv: list[str]) -> None:
    os.environ.update(place)
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        run_program(main, argv)


def start(size: int, folder: Path, argv: list[list[str]]) -> list[Any]:
    """`python -m eval` on `size` ranks, each with its own arguments, as torchrun starts them."""
    os.environ["PYTHONPATH"] = str(ROOT)
    context = multiprocessing.get_context("forkserver")
    # Forked from a process that has imported everything: a rank starts in a second, not in ten.
    context.set_forkserver_preload(["tests.eval.test_processes", "eval.model", "eval.suite"])
    port = str(meeting_port())
    processes = []
    for rank in range(size):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = context.Process(
            target=_rank, args=(place, folder / f"rank-{rank}.log", argv[rank])
        )
        process.start()
        processes.append(process)
    return processes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 images, two of them broken, and a suite."""
    root = tmp_path_factory.mktemp("team")
    rows = [
        {
            "caption": f"number {i}",
            "parity": ["even", "odd"][i % 2],
            "split": ["test", "val"][i % 3 == 0],
            "question": f"Is it {i}?",
            "answer": ["yes", "no"][i % 2],
        }
        for i in range(13)
    ]
    write_table(root / "set", rows)
    for i in (0, 7):
        (root / "set" / f"{i:03}.png").write_bytes(b"not an image")
    suite_config(root, write_model(root / "model"), TASKS, batch_size=2)
    return root


def numbers(folder: Path) -> dict:
    """All that the results say of the scores; items by the hash of their file."""
    return {
        name: {k: v for k, v in record.items() if k not in ("command", "time")}
        for name, record in read_folder(folder).items()
    }


def test_ranks_give_the_numbers_of_one_process(root: Path) -> None:
    """Three ranks share seven batches, so one has more to do; another finds half a batch."""
    suite = str(root / "suite.yaml")
    main([suite, f"out={root / 'one'}", "workers=1"])
    team = [[suite, f"out={root / 'three'}"]] * 3
    for process in start(3, root, team):
        process.join(120)
        assert process.exitcode == 0, [log.read_text() for log in root.glob("rank-*.log")]
    one, three = numbers(root / "one"), numbers(root / "three")
    assert list(one) == sorted(TASKS)
    assert one["pairs"]["broken_images"]["count"] == 2
    assert one == three
    assert "report: " in (root / "rank-0.log").read_text()
    assert (root / "rank-1.log").read_text() == (root / "rank-2.log").read_text() == ""
    assert not list(root.glob("three/**/*.tmp"))


def test_a_rank_with_other_files_is_told(root: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "set", [{"caption": "x", "parity": "even"}, {"parity": "odd"}])
    suite = str(root / "suite.yaml")
    only = [f"out={tmp_path / 'out'}", "only=[parity]"]
    argv = [[suite, *only], [suite, *only, f"data_root={tmp_path}"]]
    main_rank, helper = start(2, tmp_path, argv)
    helper.join(120)
    assert helper.exitcode == 2
    said = (tmp_path / "rank-1.log").read_text()
    assert said == "error: set/index.jsonl: other files on rank 1 than on rank 0\n"
    main_rank.kill()  # as torchrun does
    main_rank.join()


def test_a_killed_run_goes_on_after_the_last_finished_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is killed for good as soon as the first task's file is there."""
    write_table(tmp_path / "set", [{"parity": ["even", "odd"][i % 2]} for i in range(12)])
    tasks = {f"task{i}": {**TASKS["parity"], "templates": [f"{i} {{c}}"]} for i in range(6)}
    suite_config(tmp_path, write_model(tmp_path / "model"), tasks, replicates=400)
    (process,) = start(1, tmp_path, [[str(tmp_path / "suite.yaml")]])
    out, deadline = tmp_path / "out", time.monotonic() + 120
    while not (out / "task0.json").exists() and time.monotonic() < deadline:
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    done = read_folder(out)
    assert 0 < len(done) < 6, "killed in between"
    names = scored(monkeypatch)
    main([str(tmp_path / "suite.yaml")])
    assert set(names) == set(tasks) - set(done)
    whole = read_folder(out)
    assert len(whole) == 6
    assert {name: whole[name] for name in done} == done
