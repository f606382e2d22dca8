"""The stage `index`: tars made by others."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import webdataset as wds

from data_prep.indexing import split_from_name, split_key
from tests.data_prep.factories import (
    encoded,
    manifest_of,
    member,
    picture,
    prepare,
    rejects_of,
    rows_of,
)
from tests.shard_factory import make_shards
from vlp.config import UserError

OFFSETS = ("image_offset", "text_offset", "json_offset")
JPEG = encoded(picture())


def write_tar(
    path: Path, members: Iterable[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def content(folder: Path, row: dict[str, object]) -> dict[str, object]:
    """An index row with the members' bytes in place of their offsets."""
    plain = {name: value for name, value in row.items() if name not in OFFSETS}
    for kind in ("image", "text", "json"):
        plain[kind] = member(folder, row, kind)
    return plain


def test_index_of_our_own_shards_is_equal(tmp_path: Path) -> None:
    ours = make_shards(tmp_path / "ours", [5, 3], val=[2], test=[4])
    expected = rows_of(ours)
    shards = manifest_of(ours)["shards"]
    for name in ("index.parquet", "manifest.json", "rejects.parquet"):
        (ours / name).unlink()
    prepare("index", str(ours))
    assert rows_of(ours) == expected
    assert manifest_of(ours)["shards"] == shards


def test_index_of_webdatasets_own_tars(tmp_path: Path) -> None:
    """The same samples, written by webdataset's writer (pax headers, members sorted by name)."""
    ours, theirs = make_shards(tmp_path / "ours", [5, 3]), tmp_path / "theirs"
    theirs.mkdir()
    for shard in sorted(ours.glob("*.tar")):
        with wds.TarWriter(str(theirs / shard.name)) as writer:
            for row in rows_of(ours):
                if row["shard"] == shard.name:
                    parts = {
                        "txt": member(ours, row, "text"),
                        "json": member(ours, row, "json"),
                        "jpg": member(ours, row, "image"),
                    }
                    writer.write({"__key__": row["key"], **parts})
    prepare("index", f"source={theirs}")
    assert [content(theirs, row) for row in rows_of(theirs)] == [
        content(ours, row) for row in rows_of(ours)
    ]
    prepare("check", str(theirs))


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_folders_and_odd_order(tmp_path: Path, kind: int) -> None:
    long = "deep/" * 30 + "x" * 120  # far beyond a USTAR name
    members = [
        ("a/1.JSON", b'{"license": "CC0", "article": "A7"}'),
        ("a/1.txt", "café".encode()),
        ("a/2.txt", b"second"),
        (f"{long}.png", encoded(picture(20, 30), "PNG")),
        ("a/1.jpg", JPEG),
        ("a/2.jpeg", JPEG),
        (f"{long}.txt", b"third"),
        ("a/3.v2.txt", b"extension 'v2.txt' is no caption"),
        (".hidden", b""),
        ("__meta__.json", b"{}"),
        ("README", b"no extension"),
    ]
    path = write_tar(tmp_path / "test" / "0.tar", members, kind)
    with tarfile.open(path, "a", format=kind) as tar:
        for special in (tarfile.DIRTYPE, tarfile.SYMTYPE):
            info = tarfile.TarInfo("a/9.jpg")
            info.type, info.linkname = special, "/etc/passwd"
            tar.addfile(info)
    prepare("index", str(tmp_path))
    rows = {row["key"]: row for row in rows_of(tmp_path)}
    assert set(rows) == {"a/1", "a/2", long}
    assert {row["split"] for row in rows.values()} == {"test"}
    assert {row["shard"] for row in rows.values()} == {"test/0.tar"}
    assert member(tmp_path, rows["a/1"], "text").decode() == "café"
    assert rows["a/1"]["caption_length"] == 4
    assert (rows["a/1"]["article"], rows["a/1"]["licence"]) == ("A7", "CC0")
    assert rows["a/2"]["json_offset"] is None
    assert (rows[long]["width"], rows[long]["height"]) == (20, 30)
    assert member(tmp_path, rows[long], "image") == encoded(picture(20, 30), "PNG")
    assert rejects_of(tmp_path) == [
        ("", "a/3", "test/0.tar", "index", "no image in the sample"),
    ]


def test_captions_in_json(tmp_path: Path) -> None:
    """img2dataset's JSON has `caption`; the text columns then point at the JSON."""
    record = json.dumps({"caption": "from the JSON", "text": "not this"}).encode()
    write_tar(tmp_path / "0.tar", [("0001.jpg", JPEG), ("0001.json", record)])
    prepare("index", str(tmp_path))
    (row,) = rows_of(tmp_path)
    assert (row["text_offset"], row["text_size"]) == (row["json_offset"], row["json_size"])
    assert row["caption_length"] == len("from the JSON")


def test_every_incomplete_sample_is_a_reject(tmp_path: Path) -> None:
    members = [
        ("good.jpg", JPEG),
        ("good.txt", b"A caption."),
        ("latin.jpg", JPEG),
        ("latin.txt", "caf\u00e9".encode("latin-1")),
        ("empty.jpg", JPEG),
        ("empty.txt", b" \n"),
        ("alone.jpg", JPEG),
        ("text.txt", b"No image."),
        ("page.jpg", b"<html>"),
        ("page.txt", b"A web page."),
        ("cut.jpg", JPEG[:20]),
        ("cut.txt", b"A cut image."),
        ("json.jpg", JPEG),
        ("json.json", b"{]"),
        ("twice.jpg", JPEG),
        ("twice.txt", b"One."),
        ("twice.txt", b"Two."),
    ]
    write_tar(tmp_path / "0.tar", members)
    prepare("index", str(tmp_path))
    assert [row["key"] for row in rows_of(tmp_path)] == ["good"]
    assert {row[1]: row[4] for row in rejects_of(tmp_path)} == {
        "latin": "caption not UTF-8",
        "empty": "no caption in the sample",
        "alone": "no caption in the sample",
        "text": "no image in the sample",
        "page": "not an image file",
        "cut": "image broken",
        "json": "JSON member malformed",
        "twice": "member twice in the tar",
    }
    assert sum(manifest_of(tmp_path)["rejected"].values()) == 8


def damage_header(data: bytes) -> bytes:
    """Destroys the checksum of the fourth member's header."""
    position = data.index(b"1.jpg\0")
    return data[: position + 148] + b"garbage!" + data[position + 156 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(JPEG) // 2 + 512], r"cut off at byte \d+, inside '0\.jpg'"),
        (lambda data: data[: data.index(b"1.jpg\0")], r"cut off at byte \d+"),
        (lambda data: data[: data.index(b"1.jpg\0") + 200], r"tar.* at byte \d+"),
        (damage_header, r"corrupt tar header at byte \d+; get the file again"),
        (lambda data: b"\x1f\x8b" + data[2:], "corrupt tar at or after byte 0"),
        (lambda data: b"", "cut off|corrupt|empty"),
    ],
)
def test_corrupt_tars_stop_the_run(tmp_path: Path, damage: object, message: str) -> None:
    assert callable(damage)
    members = [("0.jpg", JPEG), ("0.txt", b"Zero."), ("1.jpg", JPEG), ("1.txt", b"One.")]
    path = write_tar(tmp_path / "bad.tar", members, tarfile.USTAR_FORMAT)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"bad\.tar: .*({message})"):
        prepare("index", str(tmp_path))
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000.tar", "train"),
        ("val-00000.tar", "val"),
        ("pmc_validation_3.tar", "val"),
        ("test/0.tar", "test"),
        ("00000.tar", "train"),
        ("latest-00.tar", "train"),
    ],
)
def test_split_from_name(name: str, split: str) -> None:
    assert split_from_name(name) == split


@pytest.mark.parametrize(
    ("member_name", "key"),
    [
        ("a.jpg", ("a", "jpg")),
        ("./a.b.JPG", ("./a", "b.jpg")),
        ("d.e/a.jpg", ("d.e/a", "jpg")),
        (".a.jpg", (None, "")),
        ("d/__meta__.json", (None, "")),
        ("noextension", (None, "")),
    ],
)
def test_keys_are_cut_as_webdataset_cuts_them(
    member_name: str, key: tuple[str | None, str]
) -> None:
    assert split_key(member_name) == key
    theirs = wds.tariterators.base_plus_ext(member_name)
    if key[0] is not None:
        assert theirs == (key[0], member_name.rpartition("/")[2].partition(".")[2])


def test_folder_without_tars(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.tar files"):
        prepare("index", str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        prepare("index", str(tmp_path / "none"))


def test_folder_that_has_an_index(tmp_path: Path) -> None:
    make_shards(tmp_path, [2])
    with pytest.raises(UserError, match="stage 'factory' wrote its index; nothing to do"):
        prepare("index", str(tmp_path))
