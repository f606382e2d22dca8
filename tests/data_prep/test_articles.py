"""The stages `pmc` and `jats`: every figure becomes a sample or a counted reject."""

import json
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from data_prep import fetch
from data_prep.jats import parse_article
from data_prep.sources import find_file
from tests.data_prep.factories import (
    article_xml,
    decoded,
    encoded,
    figure,
    manifest_of,
    member,
    picture,
    prepare,
    rejects_of,
    rows_of,
    tree,
    write_pmc,
    write_pmc_article,
)
from tests.real_data import real_data
from vlp.config import UserError

NC = "<license><license-p>CC BY-NC 4.0</license-p></license>"
SPLITS = ("val_fraction=0.2", "test_fraction=0.2")


def records(out: Path) -> dict[str, dict[str, object]]:
    """The JSON of every sample by key."""
    return {row["key"]: json.loads(member(out, row, "json")) for row in rows_of(out)}


def reasons(out: Path) -> dict[str, str]:
    """Reason by (article or image) and figure."""
    return {f"{row[0]} {row[1]} {row[2]}".strip(): row[4] for row in rejects_of(out)}


def test_pmc_bucket(tmp_path: Path) -> None:
    source, out = write_pmc(tmp_path / "in", 30, 3), tmp_path / "out"
    prepare("pmc", f"source={source}", f"out={out}", *SPLITS, "articles_per_shard=5")
    found = records(out)
    assert len(found) == manifest_of(out)["samples"] == 90
    sides: dict[str, set[object]] = {}
    for key, record in found.items():
        article = str(record["article"])
        sides.setdefault(article, set()).add(record["split"])
        assert key.startswith(article.replace(".", "-") + "_F")
        assert str(record["image"]).startswith(f"{article}/g")
        assert (source / str(record["image"])).is_file()
        assert record["licence"] == "CC BY 4.0"  # the XML knows the version of the JSON's CC BY
        assert record["pmcid"] == article.partition(".")[0]
    assert all(len(side) == 1 for side in sides.values())
    assert {split for side in sides.values() for split in side} == {"train", "val", "test"}
    train = [s for s in manifest_of(out)["shards"] if s["split"] == "train"]
    assert len(train) >= 3
    prepare("check", str(out))


def test_adding_articles_moves_none(tmp_path: Path) -> None:
    source = write_pmc(tmp_path / "in", 20, 1)
    prepare("pmc", f"source={source}", f"out={tmp_path / 'a'}", *SPLITS)
    for number in range(100, 120):
        write_pmc_article(source, number, 1)
    prepare("pmc", f"source={source}", f"out={tmp_path / 'b'}", *SPLITS)
    before = {row["key"]: row["split"] for row in rows_of(tmp_path / "a")}
    after = {row["key"]: row["split"] for row in rows_of(tmp_path / "b")}
    assert len(after) == 40
    assert before.items() <= after.items()


@pytest.mark.parametrize("stage", ["pmc", "jats"])
def test_an_article_that_changed_is_read_again(tmp_path: Path, stage: str) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    folder = write_pmc_article(source, 1, figures=1)
    (folder / "g1.jpg").rename(tmp_path / "g1.jpg")
    arguments = (stage, f"source={source}", f"out={out}", "val_fraction=0", "test_fraction=0")
    with pytest.raises(UserError, match="no sample was written"):
        prepare(*arguments)
    (tmp_path / "g1.jpg").rename(folder / "g1.jpg")
    prepare(*arguments)
    assert len(rows_of(out)) == 1


def test_articles_that_are_left_out(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_pmc_article(source, 1)
    write_pmc_article(source, 2, version=1)
    write_pmc_article(source, 2, version=2)
    write_pmc_article(source, 3, is_retracted="yes")
    write_pmc_article(source, 4, license_code="TDM")
    write_pmc_article(source, 5, license_code=None)
    write_pmc_article(source, 6, license_code="CC BY-NC-ND")
    (write_pmc_article(source, 7) / "PMC7.1.xml").unlink()
    (write_pmc_article(source, 8) / "PMC8.1.json").write_bytes(b"{")
    (write_pmc_article(source, 9) / "PMC9.1.xml").write_bytes(b"<html/>")
    (write_pmc_article(source, 10) / "PMC10.1.json").unlink()
    (source / "inventory").mkdir()
    arguments = ("pmc", f"source={source}", f"out={out}", "val_fraction=0", "test_fraction=0")
    prepare(*arguments, "license=commercial")
    assert {row["article"] for row in rows_of(out)} == {"PMC1.1", "PMC2.2", "PMC10.1"}
    assert manifest_of(out)["rejected"] == {
        "licence unknown": 2,
        "licence CC BY-NC-ND": 1,
        "XML of another kind: <html>": 1,
        "article XML missing": 1,
        "article retracted": 1,
        "article superseded by a later version": 1,
        "metadata JSON not readable": 1,
    }
    prepare(*arguments)
    assert "PMC6.1" in {row["article"] for row in rows_of(out)}
    prepare(*arguments, "license=any")
    assert {"PMC4.1", "PMC5.1"} < {row["article"] for row in rows_of(out)}


def write_article(folder: Path, body: str, doi: str, **images: bytes) -> Path:
    """An article as a publisher's folder; `a_jpg=...` is the file a.jpg."""
    folder.mkdir(parents=True)
    (folder / "main.xml").write_bytes(article_xml(body, {"doi": doi}))
    for name, data in images.items():
        (folder / name.replace("_", ".")).write_bytes(data)
    return folder


def test_every_figure_is_accounted_for(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    good = encoded(picture())
    two = '<graphic xlink:href="a"/><graphic xlink:href="b.tif"/>'
    alternatives = (
        '<alternatives><graphic xlink:href="none.tif"/><graphic xlink:href="b.tif"/>'
        '<graphic content-type="thumb" xlink:href="t.gif"/><graphic xlink:href="b.jpg"/>'
        "</alternatives>"
    )
    notice = "<permissions><copyright-statement>© Elsevier</copyright-statement></permissions>"
    body = (
        figure("F1", "<p>A figure of two pictures.</p>", two)
        + figure("F2", "", '<graphic xlink:href="a"/>')
        + figure("F3", "<p>Video of cells.</p>", '<media xlink:href="v.mp4"/>')
        + figure("F4", "<p>File is not here.</p>", '<graphic xlink:href="gone.jpg"/>')
        + figure("F5", "<p>Broken picture.</p>", '<graphic xlink:href="broken.jpg"/>')
        + figure("F6", "<p>Alternatives.</p>", alternatives)
        + figure("F7", "<p>Of another publisher.</p>", '<graphic xlink:href="a"/>' + notice)
        + "<fig><caption><p>No id at all.</p></caption><graphic xlink:href='A.JPG'/></fig>"
        + f"<fig-group><caption><p>Of the group.</p></caption>{figure('F1', '')}</fig-group>"
    )
    images = {"a_jpg": good, "b_jpg": good, "broken_jpg": good[:200], "t_gif": good}
    images["b_tif"] = encoded(picture(), "TIFF")
    write_article(source / "x", body, "10.1/X.1", **images)
    prepare("jats", f"source={source}", f"out={out}", "val_fraction=0", "test_fraction=0")
    found = records(out)
    captions = {str(r.get("figure", "")) + str(r["graphic"]) for r in found.values()}
    assert captions == {"F11", "F12", "F61", "1"}
    assert len(found) == 5  # F1 occurs twice, with keys of their own
    assert found["10-1-X-1_F6"]["image"] == "x/b.jpg"
    assert found["10-1-X-1_figure-without-id-8"]["image"] == "x/a.jpg"
    group = next(record for record in found.values() if "group_caption" in record)
    assert group["group_caption"] == "Of the group."
    assert reasons(out) == {
        "10.1/X.1 F2 a": "no caption",
        "10.1/X.1 F3": "no graphic",
        "10.1/X.1 F4 gone.jpg": "image file missing",
        "10.1/X.1 F5 broken.jpg": "image broken",
        "10.1/X.1 F7 a": "licence unknown",
    }


@pytest.mark.parametrize(
    ("href", "name"),
    [
        ("fig1", "fig1.jpg"),
        ("fig1.jpg", "fig1.jpg"),
        ("fig1.tif", "fig1.tif"),
        ("fig1.png", "fig1.jpg"),
        ("FIG1.JPG", "fig1.jpg"),
        ("images/fig1.jpg", "fig1.jpg"),
        ("https://example.org/x/fig1.jpg", "fig1.jpg"),
        ("fig%202", "fig 2.png"),
        ("030213v1_fig1", "030213v1_fig1"),
        ("2020.04.07v1_fig2", "2020.04.07v1_fig2"),
        ("sub/deep", "sub/deep.webp"),
        ("deep", "sub/deep.webp"),
        ("old", "old.jpg"),
        ("fig", None),
        ("fig10", None),
        ("../secret", None),
        ("", None),
    ],
)
def test_finding_the_file_of_a_graphic(href: str, name: str | None) -> None:
    names = ["030213v1_fig1", "2020.04.07v1_fig2", "fig 2.png", "fig1.gif", "fig1.jpg", "fig1.tif"]
    assert find_file(href, [*names, "old.gif", "old.jpg", "sub/deep.webp"]) == name


def test_folders_zips_tars_and_meca_packages_are_equal(tmp_path: Path) -> None:
    """The same three articles as a folder, one archive, and a folder of packages."""
    plain = tmp_path / "plain"
    for number in range(3):
        body = figure("F1", f"<p>Figure of article {number}.</p>")
        image = encoded(picture(seed=number))
        write_article(plain / f"{number}" / "content", body, f"10.1/{number}", a_jpg=image)
    (plain / "0" / "manifest.xml").write_text("<manifest/>")

    shutil.make_archive(str(tmp_path / "all"), "gztar", plain)
    shutil.make_archive(str(tmp_path / "all"), "zip", plain)
    packages = tmp_path / "packages"
    (packages / "deep").mkdir(parents=True)
    with tarfile.open(packages / "deep" / "1.tar.gz", "w:gz") as tar:
        tar.add(plain / "1", arcname="PMC1")
    shutil.copytree(plain / "2", packages / "2")
    shutil.make_archive(str(packages / "0"), "zip", plain / "0")
    (packages / "0.zip").rename(packages / "0.meca")
    shutil.make_archive(str(tmp_path / "nested"), "zip", packages)

    shards = []
    sources = ("plain", "all.tar.gz", "all.zip", "packages", "nested.zip")
    for number, source in enumerate(sources):
        out = tmp_path / f"out{number}"
        prepare("jats", f"source={tmp_path / source}", f"out={out}", *SPLITS)
        assert not (out / "unpacked").exists()
        rows = rows_of(out)
        shards.append({row["key"]: (row["split"], member(out, row, "image")) for row in rows})
        assert len(rows) == 3
        images = {str(record["image"]) for record in records(out).values()}
        assert len(images) == 3
    assert all(other == shards[0] for other in shards)
    assert "0.meca/content/a.jpg" in images


def test_an_archive_is_unpacked_once_when_a_run_is_repeated(tmp_path: Path) -> None:
    plain, out = tmp_path / "plain", tmp_path / "out"
    write_article(plain / "1", figure(), "10.1/1", a_jpg=encoded(picture()))
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", plain)
    arguments = ("jats", f"source={archive}", f"out={out}", "val_fraction=0", "test_fraction=0")
    prepare(*arguments)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    content = tree(out)
    prepare(*arguments)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.tar")} == before
    assert tree(out) == content


def test_the_same_article_is_taken_once(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name, doi in (("a", "10.1/x"), ("b", "10.1/X"), ("c", "10.1/y")):
        write_article(source / name, figure(), doi, a_jpg=encoded(picture()))
    prepare("jats", f"source={source}", f"out={out}", "val_fraction=0", "test_fraction=0")
    assert {str(record["image"]) for record in records(out).values()} == {"a/a.jpg", "c/a.jpg"}
    assert reasons(out) == {"10.1/X  b/main.xml": "article found twice"}


@pytest.mark.parametrize("name", ["../../evil.xml", "/tmp/evil.xml"])
def test_unsafe_archives(tmp_path: Path, name: str) -> None:
    source = tmp_path / "in"
    write_article(source / "good", figure(), "10.1/x", a_jpg=encoded(picture()))
    with zipfile.ZipFile(source / "bad.zip", "w") as archive:
        archive.writestr(name, article_xml(figure(), {"doi": "10.1/evil"}))
    out = tmp_path / "out"
    prepare("jats", f"source={source}", f"out={out}", "val_fraction=0", "test_fraction=0")
    assert reasons(out) == {"bad.zip": f"'{name}' leaves the archive"}
    with pytest.raises(UserError, match=r"bad\.zip: '.*' leaves the archive"):
        prepare("jats", f"source={source / 'bad.zip'}", f"out={tmp_path / 'out2'}")
    assert not list(tmp_path.rglob("evil.xml"))


def test_an_archive_larger_than_allowed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.xml", bytes(1000))
    source = tmp_path / "bomb.zip"
    with pytest.raises(UserError, match=r"bomb\.zip: unpacks to more than 0 bytes"):
        prepare("jats", f"source={source}", f"out={tmp_path / 'o'}", "max_unpacked_gib=0")


@pytest.mark.parametrize(
    ("stage", "source", "message"),
    [
        ("jats", "none", "none: no such file or folder"),
        ("jats", "empty", "empty: holds no JATS article$"),
        ("jats", "broken", r"broken: holds no JATS article; a\.xml: XML not readable"),
        ("jats", "a.txt", r"a\.txt: neither a folder nor a \.zip"),
        ("pmc", "none", "none: no such folder"),
        ("pmc", "empty", r"empty: holds no PMC<n>\.<v> folders; .* `python -m data_prep jats`"),
    ],
)
def test_bad_sources(tmp_path: Path, stage: str, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.xml").write_bytes(b"\x00")
    (tmp_path / "a.txt").touch()
    path = source if "://" in source else str(tmp_path / source)
    with pytest.raises(UserError, match=message):
        prepare(stage, f"source={path}", f"out={tmp_path / 'out'}")


def test_out_inside_of_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out=.*: lies inside of source"):
        prepare("jats", f"source={tmp_path}", f"out={tmp_path / 'shards'}")


def test_unexpected_errors_name_the_article(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(data: bytes) -> None:
        raise ZeroDivisionError

    source = write_pmc(tmp_path / "in", 1, 1)
    monkeypatch.setattr(fetch, "parse_article", broken)
    named = r"ZeroDivisionError; while working on article PMC1\.1 \(PMC1\.1/PMC1\.1\.xml\)"
    with pytest.raises(SystemExit, match=named):
        prepare("pmc", f"source={source}", f"out={tmp_path / 'out'}")
    assert list((tmp_path / "out").glob("*.t*")) == []


def test_real_articles(tmp_path: Path) -> None:
    """All 109 figures of 18 articles; the packages hold three of the articles again."""
    source = real_data("jats_with_images")
    prepare("jats", "configs/data/jats.yaml", f"source={source}", f"out={tmp_path}")
    expected = {}
    for line in (source / "index.jsonl").read_text().splitlines():
        row = json.loads(line)
        expected[row["image"]] = row
    found = records(tmp_path)
    assert {str(record["image"]) for record in found.values()} == set(expected)
    sides: dict[str, set[object]] = {}
    for row in rows_of(tmp_path):
        record = found[row["key"]]
        truth = expected[str(record["image"])]
        sides.setdefault(row["article"], set()).add(row["split"])
        image = decoded(member(tmp_path, row, "image"))
        assert image.size == (row["width"], row["height"])
        scale = min(1, 512 / min(truth["width"], truth["height"]))
        assert abs(row["width"] - scale * truth["width"]) <= 1
        assert record["label" if truth["label"] else "figure"] in (truth["label"], truth["fig_id"])
    assert all(len(side) == 1 for side in sides.values())
    assert Counter(row[4] for row in rejects_of(tmp_path)) == {"article found twice": 3}


def test_real_packages(tmp_path: Path) -> None:
    """Three packages as they came: PMC's .tar.gz and two MECA zips."""
    source = real_data("jats_with_images/packages")
    prepare("jats", f"source={source}", f"out={tmp_path}", "val_fraction=0", "test_fraction=0")
    images = {str(record["image"]) for record in records(tmp_path).values()}
    assert images == {
        "PMC12419688.tar.gz/PMC12419688/koaf197f1.jpg",
        "biorxiv-658655-meca.meca/content/658655v1_fig1.tif",
        "medrxiv-24301711-meca.meca/content/24301711v1_fig1.tif",
    }
    path = real_data("jats_with_images/articles/PMC12419688/koaf197.nxml")
    assert parse_article(path.read_bytes()).metadata.pmcid == "PMC12419688"
