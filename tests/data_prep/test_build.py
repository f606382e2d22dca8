"""Building shards: killed runs continue, bytes depend on nothing but config and inputs."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.build import BuildConfig, split_of
from data_prep.shards import SPLITS
from tests.data_prep.factories import (
    encoded,
    manifest_of,
    picture,
    prepare,
    rows_of,
    tree,
    write_table,
)
from vlp.config import UserError
from vlp.splits import hash_fraction

REPOSITORY = Path(__file__).resolve().parents[2]


def command(table: Path, out: Path, workers: int) -> list[str]:
    settings = ["group=patient", "samples_per_shard=2", "test_fraction=0.3", "val_fraction=0.2"]
    program = [sys.executable, "-m", "data_prep", "table", f"source={table}", f"out={out}"]
    return [*program, *settings, f"workers={workers}"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large images, so that a run takes long enough to be killed in the middle."""
    return write_table(tmp_path_factory.mktemp("table"), rows=60, width=800, groups=30)


@pytest.fixture(scope="module")
def undisturbed(table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "shards"
    subprocess.run(command(table, out, 1), cwd=REPOSITORY, check=True, capture_output=True)
    return tree(out)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_run_continues(
    table: Path, undisturbed: dict[str, bytes], tmp_path: Path, workers: int
) -> None:
    """Killed, and with two workers: the bytes are those of one worker that was left in peace."""
    out = tmp_path / "shards"
    units = sum(name.endswith(".tar") for name in undisturbed)
    process = subprocess.Popen(
        command(table, out, workers), cwd=REPOSITORY, stdout=subprocess.DEVNULL
    )
    while len(list(out.glob("units/*.json"))) < 5:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # its workers end with it
    done = {path.stem: path.stat().st_mtime_ns for path in out.glob("units/*.json")}
    assert 5 <= len(done) < units
    assert not (out / "manifest.json").exists()
    for path in out.glob("*.tar"):  # no half shard under a shard's name
        with tarfile.open(path) as tar:
            assert len(tar.getmembers()) % 3 == 0
        assert path.read_bytes() == undisturbed[path.name]
    (out / "train-00000.tar.1.tmp").write_bytes(b"left over")

    subprocess.run(command(table, out, workers), cwd=REPOSITORY, check=True, capture_output=True)
    assert tree(out) == undisturbed
    after = {path.stem: path.stat().st_mtime_ns for path in out.glob("units/*.json")}
    assert {name: after[name] for name in done} == done, "finished units were made again"


def test_only_what_changed_is_made_again(tmp_path: Path) -> None:
    table, out = write_table(tmp_path / "in", rows=20), tmp_path / "out"
    arguments = ("table", f"source={table}", f"out={out}", "samples_per_shard=3")
    prepare(*arguments)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    prepare(*arguments)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")} == before

    changed = rows_of(out)[-1]
    number = changed["key"].rpartition("-")[2]
    (table.parent / f"img/scan.{number}.jpg").write_bytes(encoded(picture(50, 50, seed=99)))
    prepare(*arguments)
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert {name for name in before if after[name] != before[name]} == {changed["shard"]}
    fresh = tmp_path / "fresh"
    prepare("table", f"source={table}", f"out={fresh}", "samples_per_shard=3")
    assert tree(out) == tree(fresh)


def test_other_settings_leave_no_old_shards(tmp_path: Path) -> None:
    table, out = write_table(tmp_path / "in", rows=20), tmp_path / "out"
    prepare("table", f"source={table}", f"out={out}", "samples_per_shard=2")
    prepare("table", f"source={table}", f"out={out}", "samples_per_shard=10")
    listed = {shard["name"] for shard in manifest_of(out)["shards"]}
    assert {path.name for path in out.glob("*.tar")} == listed
    fresh = tmp_path / "fresh"
    prepare("table", f"source={table}", f"out={fresh}", "samples_per_shard=10")
    assert tree(out) == tree(fresh)


def test_shards_of_others_are_not_overwritten(tmp_path: Path) -> None:
    table, out = write_table(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    (out / "train-00000.tar").write_bytes(b"theirs")
    with pytest.raises(UserError, match=r"holds train-00000\.tar of another origin; choose"):
        prepare("table", f"source={table}", f"out={out}")
    assert (out / "train-00000.tar").read_bytes() == b"theirs"


def test_out_that_is_a_file(tmp_path: Path) -> None:
    table = write_table(tmp_path / "in")
    with pytest.raises(UserError, match=r"out=.*index\.jsonl: cannot be made a folder: "):
        prepare("table", f"source={table}", f"out={table}")


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    table = write_table(tmp_path / "in")
    shutil.rmtree(table.parent / "img")
    with pytest.raises(UserError, match="no sample was written; the table above says why"):
        prepare("table", f"source={table}", f"out={tmp_path / 'out'}")
    assert manifest_of(tmp_path / "out")["rejected"] == {"image file missing": 12}


@given(st.text(), st.integers(0, 2**31))
def test_split_is_a_function_of_seed_and_group(group: str, seed: int) -> None:
    config = BuildConfig(out="x", seed=seed, val_fraction=0.25, test_fraction=0.25)
    split = split_of(config, group)
    assert split in SPLITS
    assert split == split_of(config, group)
    assert 0 <= hash_fraction(seed, group) < 1


def test_split_fractions_and_a_fixed_point() -> None:
    config = BuildConfig(out="x", val_fraction=0.1, test_fraction=0.2)
    counts = dict.fromkeys(SPLITS, 0)
    for number in range(5000):
        counts[split_of(config, f"PMC{number}")] += 1
    assert abs(counts["test"] - 1000) < 100
    assert abs(counts["val"] - 500) < 75
    # `printf 0:PMC1 | sha256sum` begins so: splits of published corpora must never move.
    assert hash_fraction(0, "PMC1") == 0x5A726C20C4CE9836 / 2**64


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("val_fraction=1", "set them below 1, train needs the rest"),
        ("val_fraction=-0.1", "set both to 0 or more"),
        ("short_side=16", "min_side: set it between 1 and short_side"),
        ("samples_per_shard=0", "samples_per_shard=0: set 1 or more"),
        ("shortside=3", "did you mean 'short_side'"),
    ],
)
def test_impossible_settings(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare("table", "source=x.csv", f"out={tmp_path}", setting)
