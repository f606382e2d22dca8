"""The stage `table`."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data_prep.factories import (
    encoded,
    manifest_of,
    member,
    picture,
    prepare,
    rejects_of,
    rows_of,
    write_table,
)
from tests.real_data import real_data
from vlp.config import UserError


def test_samples_hold_captions_images_and_rows(tmp_path: Path) -> None:
    table, out = write_table(tmp_path / "in"), tmp_path / "out"
    prepare("table", f"source={table}", f"out={out}", "group=patient", "licence_text=CC BY 4.0")
    rows = rows_of(out)
    assert len(rows) == manifest_of(out)["samples"] == 12
    for row in rows:
        record = json.loads(member(out, row, "json"))
        number = record["row"]["n"]
        assert record["image"] == f"img/scan.{number}.jpg"
        assert row["key"] == f"img-scan-{number}"
        assert member(out, row, "text").decode() == f"Radiograph number {number}."
        assert member(out, row, "image") == (tmp_path / "in" / record["image"]).read_bytes()
        assert record["article"] == row["article"] == f"p{number % 4}"
        assert record["licence"] == row["licence"] == "CC BY 4.0"
        assert record["split"] == row["split"]


def test_no_group_on_two_sides(tmp_path: Path) -> None:
    table, out = write_table(tmp_path / "in", rows=60, groups=20), tmp_path / "out"
    fractions = ("val_fraction=0.3", "test_fraction=0.3")
    prepare("table", f"source={table}", f"out={out}", "group=patient", *fractions)
    sides: dict[str, set[str]] = {}
    for row in rows_of(out):
        sides.setdefault(row["article"], set()).add(row["split"])
    assert {split for group in sides.values() for split in group} == {"train", "val", "test"}
    assert all(len(group) == 1 for group in sides.values())


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl"])
def test_kinds_of_tables_give_equal_samples(tmp_path: Path, kind: str) -> None:
    (tmp_path / "1.png").write_bytes(encoded(picture(), "PNG"))
    caption = 'Quoted "caption", two\nlines; 5 µm'
    path = tmp_path / f"table.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"file": ["1.png"], "report": [caption]}), path)
    elif kind == "jsonl":
        path.write_text(json.dumps({"file": "1.png", "report": caption}) + "\n\n")
    else:
        comma = {"csv": ",", "tsv": "\t"}[kind]
        quoted = caption.replace('"', '""')
        path.write_text(f'\ufefffile{comma}report\n1.png{comma}"{quoted}"\n')
    out = tmp_path / "out"
    prepare("table", f"source={path}", f"out={out}", "image=file", "caption=report")
    (row,) = rows_of(out)
    assert member(out, row, "text").decode() == 'Quoted "caption", two lines; 5 µm'


def test_the_users_split_column_wins_and_leaks_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = write_table(tmp_path / "in"), tmp_path / "out"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    names = ["training", "Validation", "test"]
    lines = [json.dumps(row | {"set": names[n % 3]}) for n, row in enumerate(rows)]
    table.write_text("\n".join(lines))
    prepare("table", f"source={table}", f"out={out}", "group=patient", "split=set")
    for row in rows_of(out):
        number = int(row["key"].rpartition("-")[2])
        assert row["split"] == ["train", "val", "test"][number % 3]
    assert "4 groups, such as 'p0', stand in more than one split" in capsys.readouterr().out


def test_every_row_is_a_sample_or_a_reject(tmp_path: Path) -> None:
    good = encoded(picture())
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.jpg").write_bytes(good)
    for name, data in (("a.jpg", good), ("broken.jpg", good[:300]), ("page.jpg", b"<html>")):
        (tmp_path / "in" / name).write_bytes(data)
    rows = [
        ("a.jpg", "A good caption."),
        ("a.jpg", "Another caption of the same image."),
        ("a.jpg", ""),
        ("a.jpg", "ab"),
        ("", "No image."),
        ("none.jpg", "A missing image."),
        ("broken.jpg", "A broken image."),
        ("page.jpg", "A web page."),
        ("../secret.jpg", "Outside of the folder."),
        (str(tmp_path / "secret.jpg"), "Outside of the folder."),
    ]
    table, out = tmp_path / "in" / "t.jsonl", tmp_path / "out"
    table.write_text("\n".join(json.dumps({"image": i, "caption": c}) for i, c in rows))
    prepare("table", f"source={table}", f"out={out}")
    assert len(rows_of(out)) == len({row["key"] for row in rows_of(out)}) == 2
    assert manifest_of(out)["rejected"] == {
        "image path outside root": 2,
        "caption shorter than 5 characters": 1,
        "image broken": 1,
        "image file missing": 1,
        "no caption": 1,
        "no image path": 1,
        "not an image file": 1,
    }
    assert ("none.jpg", "", "none.jpg", "image", "image file missing") in rejects_of(out)


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("t.csv", b"", [], "t.csv: has no rows"),
        ("t.txt", b"x", [], "not a table; name a file that ends in .csv, .tsv"),
        (
            "t.csv",
            b"image,text\n1,2\n",
            [],
            "has no column 'caption' .caption=caption.; its columns",
        ),
        ("t.csv", b"image,text\n1,2\n", ["caption=text", "group=pat"], "columns are image, text"),
        ("t.csv", b"image,caption\n1,caf\xe9\n", [], "not UTF-8 at byte 19; save it as UTF-8"),
        ("t.csv", b"image,caption\n1,2,3\n", [], "line 2: not as many fields as the header has"),
        ("t.jsonl", b'{"image": 1}\n{]\n', [], "line 2: not JSON"),
        ("t.jsonl", b"[]\n", [], "line 1: not a JSON object"),
        ("t.parquet", b"no parquet", [], "not readable as Parquet"),
        (
            "t.csv",
            b"image,caption,s\n1,2,later\n",
            ["split=s"],
            "'later' in column 's' names no split; it may say train",
        ),
    ],
)
def test_bad_tables(
    tmp_path: Path, name: str, content: bytes, settings: list[str], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare("table", f"source={tmp_path / name}", f"out={tmp_path / 'out'}", *settings)


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: no such file"):
        prepare("table", f"source={tmp_path / 'none.csv'}", f"out={tmp_path / 'out'}")


def test_real_radiographs(tmp_path: Path) -> None:
    source = real_data("cxr_nih_pneumonia/index.jsonl")
    settings = "configs/data/cxr_nih_pneumonia.yaml"
    prepare("table", settings, f"source={source}", f"out={tmp_path}")
    truth = {}
    for line in source.read_text().splitlines():
        row = json.loads(line)
        truth[row["image"]] = row
    rows = rows_of(tmp_path)
    assert len(rows) == len(truth) == 300
    for row in rows:
        record = json.loads(member(tmp_path, row, "json"))
        expected = truth[record["image"]]
        assert row["split"] == expected["split"]
        assert row["article"] == expected["patient"]
        assert record["row"]["label"] == expected["label"]
        assert (row["width"], row["height"]) == (512, 512)
