"""The stage curate on small sets whose every fault was put there."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from data_prep.curate import read_frozen
from data_prep.decisions import group_of
from data_prep.findings import DUPLICATES, LEAKS, MIXTURE
from data_prep.inspection import thumbnail
from data_prep.shards import (
    INDEX,
    INDEX_SCHEMA,
    Reject,
    Sample,
    ShardEntry,
    ShardWriter,
    index_table,
    reject_tables,
    write_manifest,
    write_table,
)
from tests.data_prep.factories import (
    encoded,
    manifest_of,
    member,
    prepare,
    rejects_of,
    rows_of,
    tree,
)
from tests.vlp.test_hashing import photograph
from vlp.config import UserError, load_config
from vlp.hashing import perceptual_hash


def sample(number: int, article: str = "", image: bytes = b"", **changes: Any) -> Sample:
    """A pair that no filter objects to."""
    image = image or encoded(photograph(number), quality=90)
    width, height = Image.open(io.BytesIO(image)).size
    journal, year = f"Journal {number % 3}", 2020 + number % 2
    given: dict[str, Any] = {
        "key": f"k{number}",
        "image": image,
        "extension": "jpg",
        "width": width,
        "height": height,
        "caption": f"Liver section of animal {number}, stained with eosin.",
        "article": article or f"PMC{number}.1",
        "licence": "CC BY 4.0",
        "record": {"journal": journal, "date": f"{year}-01", "figure": f"F{number}"},
        "phash": perceptual_hash(Image.open(io.BytesIO(image))),
    }
    return Sample(**(given | changes))


def write_set(folder: Path, *splits: tuple[str, list[Sample]]) -> Path:
    """A shard folder with one shard for each (split, samples)."""
    folder.mkdir()
    entries: list[ShardEntry] = []
    rows = []
    for number, (split, samples) in enumerate(splits):
        with ShardWriter(folder / f"{split}-{number:05d}.tar", split) as writer:
            for one in samples:
                writer.write(one)
        entries.append(writer.entry())
        rows += writer.rows
    write_table(folder / INDEX, INDEX_SCHEMA, [index_table(rows)])
    rejects = reject_tables([Reject("PMC99.1", "F1", "a.jpg", "figure", "image file missing")])
    write_manifest(folder, entries, rejects, stage="pmc", config={}, inputs={})
    return folder


def reasons(folder: Path) -> dict[str, str]:
    """Figure -> reason of what this stage dropped."""
    return {row[1]: row[4] for row in rejects_of(folder) if row[3] == "curate"}


def keys(folder: Path, split: str = "train") -> list[str]:
    """Keys of one split."""
    return sorted(row["key"] for row in rows_of(folder) if row["split"] == split)


def test_each_fault_is_dropped_with_its_reason(tmp_path: Path) -> None:
    copy = encoded(photograph(1).resize((300, 225)), quality=80)
    flat = encoded(Image.new("L", (90, 90), 255))
    samples = [
        sample(1),
        sample(2, image=copy),
        sample(3, image=sample(1).image),
        sample(4, image=flat),
        sample(5, caption="Figure 5. See text for details."),
        sample(6, image=encoded(photograph(6).resize((400, 40)))),
        sample(7),
    ]
    source = write_set(tmp_path / "s", ("train", samples))
    prepare("curate", f"source={source}", f"out={tmp_path / 'o'}")
    assert reasons(tmp_path / "o") == {
        "F2": "near-duplicate image",
        "F3": "duplicate image",
        "F4": "image blank",
        "F5": "caption is boilerplate",
        "F6": "image more than 8 times as long as wide",
    }
    assert keys(tmp_path / "o") == ["k1", "k7"]
    assert rejects_of(tmp_path / "o")[0][4] == "image file missing"
    copies = {row["key"]: row["kept_key"] for row in rows_of(tmp_path / "o", DUPLICATES)}
    assert copies == {"k2": "k1", "k3": "k1"}
    prepare("check", f"source={tmp_path / 'o'}")


def test_members_keep_their_bytes(tmp_path: Path) -> None:
    source = write_set(tmp_path / "s", ("train", [sample(n) for n in range(4)]))
    prepare("curate", f"source={source}", f"out={tmp_path / 'o'}")
    before = {row["key"]: row for row in rows_of(source)}
    for row in rows_of(tmp_path / "o"):
        old = before[row["key"]]
        for kind in ("image", "text", "json"):
            assert member(tmp_path / "o", row, kind) == member(source, old, kind)
        assert row["phash"] == old["phash"]


def test_hash_is_computed_where_it_is_missing(tmp_path: Path) -> None:
    samples = [sample(1, phash=None), sample(2, image=sample(1).image, phash=None)]
    source = write_set(tmp_path / "s", ("train", samples))
    prepare("curate", f"source={source}", f"out={tmp_path / 'o'}")
    assert [row["phash"] for row in rows_of(tmp_path / "o")] == [sample(1).phash]


def test_near_hash_alone_does_not_drop(tmp_path: Path) -> None:
    """Two images that are given one hash: the pixels tell them apart."""
    samples = [sample(1, phash=77), sample(2, phash=77), sample(3, phash=76)]
    source = write_set(tmp_path / "s", ("train", samples))
    prepare("curate", f"source={source}", f"out={tmp_path / 'o'}")
    assert keys(tmp_path / "o") == ["k1", "k2", "k3"]


def test_copies_in_test_stay_and_those_in_training_go(tmp_path: Path) -> None:
    image = sample(1).image
    large = encoded(photograph(1).resize((800, 600)), quality=95)
    source = write_set(
        tmp_path / "s",
        ("train", [sample(1, image=large), sample(4)]),
        ("val", [sample(2, image=image)]),
        ("test", [sample(3, image=image)]),
    )
    prepare("curate", f"source={source}", f"out={tmp_path / 'o'}")
    assert keys(tmp_path / "o", "test") == ["k3"]
    assert keys(tmp_path / "o", "val") == []
    assert keys(tmp_path / "o") == ["k4"]


def test_decisions_do_not_depend_on_the_order(tmp_path: Path) -> None:
    samples = [sample(n, image=sample(n // 3).image) for n in range(9)]
    one = write_set(tmp_path / "one", ("train", samples))
    two = write_set(tmp_path / "two", ("train", samples[5:][::-1]), ("train", samples[:5]))
    for source in (one, two):
        prepare("curate", f"source={source}", f"out={tmp_path / source.name}-out")
    assert keys(tmp_path / "one-out") == keys(tmp_path / "two-out") == ["k0", "k3", "k6"]


@pytest.mark.parametrize("form", ["shards", "images", "hashes"])
def test_leaks_go_from_training_only(tmp_path: Path, form: str) -> None:
    half = encoded(photograph(1).resize((200, 150)), quality=70)
    if form == "shards":
        known = write_set(tmp_path / "known", ("test", [sample(50, image=half)]))
    elif form == "images":
        known = tmp_path / "known"
        (known / "deep").mkdir(parents=True)
        (known / "deep" / "a.jpg").write_bytes(half)
        (known / "broken.jpg").write_bytes(half[:300])
        (known / "labels.csv").write_text("a,b")
    else:
        known = tmp_path / "known.txt"
        hexadecimal = f"{perceptual_hash(photograph(1)):016x}"
        known.write_text(f"hash,name\n# one\n{hexadecimal}, scan 7\n")
    source = write_set(
        tmp_path / "s", ("train", [sample(1), sample(2)]), ("test", [sample(3, image=half)])
    )
    prepare(
        "curate", f"source={source}", f"out={tmp_path / 'o'}", f"leakage={known}", "leakage_bits=4"
    )
    assert reasons(tmp_path / "o") == {"F1": f"in the evaluation set {known.name}"}
    assert keys(tmp_path / "o", "test") == ["k3"]
    found = {(row["key"], row["split"]) for row in rows_of(tmp_path / "o", LEAKS)}
    assert found == {("k1", "train"), ("k3", "test")}


def test_captions_are_kept_a_few_times(tmp_path: Path) -> None:
    samples = [sample(n, caption="Photographs of the SERIES!"[: 26 - n % 2]) for n in range(5)]
    source = write_set(tmp_path / "s", ("train", samples))
    prepare("curate", f"source={source}", f"out={tmp_path / 'o'}", "same_caption=2")
    assert keys(tmp_path / "o") == ["k0", "k2"]
    assert set(reasons(tmp_path / "o").values()) == {"caption repeated"}


def test_budget_spreads_over_tags_and_leaves_test_alone(tmp_path: Path) -> None:
    train = [sample(n, record={"journal": "rare" if n in (5, 9) else "common"}) for n in range(12)]
    source = write_set(tmp_path / "s", ("train", train), ("test", [sample(20), sample(21)]))
    arguments = [f"source={source}", f"out={tmp_path / 'o'}", "budget=4", "budget_tags=[journal]"]
    prepare("curate", *arguments)
    assert keys(tmp_path / "o") == ["k0", "k1", "k5", "k9"]
    assert keys(tmp_path / "o", "test") == ["k20", "k21"]
    selection = manifest_of(tmp_path / "o")["selection"]["journal"]
    assert selection["entropy"] == selection["bound"] == pytest.approx(np.log(2), abs=1e-6)


def test_frozen_test_split_stays_when_the_set_grows(tmp_path: Path) -> None:
    frozen = tmp_path / "frozen.txt"
    frozen.write_text("# ours\nPMC2\n10.5/ABC\n")
    first = [sample(1), sample(2, "PMC2.1"), sample(3, "10.5/abc")]
    source = write_set(tmp_path / "s", ("train", first), ("test", [sample(4)]))
    grown = write_set(
        tmp_path / "g", ("train", [*first, sample(5), sample(6)]), ("test", [sample(4), sample(7)])
    )
    for folder in (source, grown):
        out = tmp_path / f"{folder.name}-out"
        prepare("curate", f"source={folder}", f"out={out}", f"frozen_test={frozen}")
        assert keys(out, "test") == ["k2", "k3"]
        rows = {row["key"]: row for row in rows_of(out)}
        assert json.loads(member(out, rows["k2"], "json"))["split"] == "test"
    assert keys(tmp_path / "g-out") == ["k1", "k4", "k5", "k6", "k7"]
    assert read_frozen(str(tmp_path / "s-out")) == {"PMC2", "10.5/abc"}


def test_several_sources_and_their_weights(tmp_path: Path) -> None:
    big = write_set(tmp_path / "big", ("train", [sample(n) for n in range(9)]))
    small = write_set(tmp_path / "small", ("train", [sample(0), sample(2, key="k70"), sample(30)]))
    out = tmp_path / "o"
    prepare("curate", f"source={big},{small}", f"out={out}", "amplified=true")
    sizes = {
        name: sum(
            row["image_size"] + row["text_size"] + row["json_size"] for row in rows_of(out / name)
        )
        for name in ("big", "small")
    }
    expected = float(round(sizes["big"] / sizes["small"]))
    assert expected > 1
    for name in ("big", "small"):
        assert manifest_of(out / name)["weights"] == {"big": 1.0, "small": expected}
    assert sum(len(rows_of(out / name)) for name in ("big", "small")) == 10
    mixture = yaml.safe_load((out / MIXTURE).read_text())["data"]["sources"]
    assert mixture["small"] == {"path": (out / "small").as_posix(), "weight": expected}


def test_a_killed_run_continues(tmp_path: Path) -> None:
    shards = [("train", [sample(10 * s + n) for n in range(3)]) for s in range(3)]
    source = write_set(tmp_path / "s", *shards)
    arguments = [f"source={source}", "samples_per_shard=3"]
    prepare("curate", *arguments, f"out={tmp_path / 'a'}")
    prepare("curate", *arguments, f"out={tmp_path / 'b'}")
    (tmp_path / "b" / "manifest.json").unlink()
    (tmp_path / "b" / "train-00001.tar").unlink()
    prepare("curate", *arguments, f"out={tmp_path / 'b'}")
    assert tree(tmp_path / "a", ("PLAN", "LOCK")) == tree(tmp_path / "b", ("PLAN", "LOCK"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("budget_tags=[colour]", "choose from kind, journal, year, licence, keyword"),
        ("duplicate_bits=17", "duplicate_bits=17: set -1 to 16"),
        ("budget=-1", "budget=-1: set 0 or more"),
    ],
)
def test_impossible_settings(argument: str, message: str) -> None:
    from data_prep.curate import CurateConfig

    with pytest.raises(UserError, match=message):
        load_config(CurateConfig, ["source=a", "out=b", argument])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("leakage=nowhere", "neither a folder nor a file of hashes"),
        ("frozen_test=nowhere", "no such file or folder"),
        ("out=.", "holds the source"),
    ],
)
def test_missing_inputs(tmp_path: Path, argument: str, message: str) -> None:
    source = write_set(tmp_path / "s", ("train", [sample(1)]))
    argument = argument.replace("out=.", f"out={tmp_path}")
    with pytest.raises(UserError, match=message):
        prepare("curate", f"source={source}", f"out={tmp_path / 'o'}", argument)


@pytest.mark.parametrize(
    ("article", "group"),
    [
        ("PMC12.3", "PMC12"),
        ("PMC12", "PMC12"),
        ("10.1/A.b", "10.1/a.b"),
        ("Patient.7", "patient.7"),
    ],
)
def test_groups(article: str, group: str) -> None:
    assert group_of(article) == group


def test_thumbnails_are_correlations() -> None:
    one, two = thumbnail(photograph(1)), thumbnail(photograph(2))
    assert float(one @ one) == pytest.approx(1, abs=1e-5)
    assert float(one @ two) < 0.7
    copy = photograph(1).resize((200, 150)).point(lambda v: v * 0.8 + 5)
    assert float(one @ thumbnail(copy)) > 0.99
    assert not thumbnail(Image.new("L", (50, 50), 3)).any()
