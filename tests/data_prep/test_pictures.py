"""Figures on their way into shards: whole or as panels, with their kind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.articles import figure_keys
from data_prep.images import ImageRejected, ImageRules, decode_image, encode_image
from data_prep.kind_examples import example
from data_prep.pictures import PictureRules, pictures
from tests.data_prep.factories import (
    CC_BY,
    RULES,
    article_xml,
    decoded,
    encoded,
    figure,
    member,
    picture,
    prepare,
    rejects_of,
    rows_of,
)
from vlp.config import UserError

CAPTION = "Organs of a mouse. (A) Liver at noon. (B) Kidney at night."


def compound() -> Image.Image:
    """Two pictures side by side."""
    page = Image.new("RGB", (660, 340), "white")
    for number, left in enumerate((20, 340)):
        pixels = np.random.default_rng(number).integers(50, 200, (30, 30, 3), dtype=np.uint8)
        page.paste(Image.fromarray(pixels).resize((300, 300)), (left, 20))
    return page


def rules(**changes: Any) -> PictureRules:
    settings: dict[str, Any] = {
        "image": RULES, "panels": "split", "tag_kinds": False, "kinds": (), "min_caption": 5
    }  # fmt: skip
    return PictureRules(**settings | changes)


def source(folder: Path, caption: str = CAPTION) -> Path:
    """A bucket of one article with a compound figure and a single one."""
    article = folder / "PMC1.1"
    article.mkdir(parents=True)
    (article / "a.png").write_bytes(encoded(compound(), "PNG"))
    (article / "b.jpg").write_bytes(encoded(picture(200, 160)))
    body = figure("F1", f"<p>{caption}</p>", '<graphic xlink:href="a.png"/>')
    body += figure("F2", "<p>Spleen of a mouse.</p>", '<graphic xlink:href="b.jpg"/>')
    (article / "PMC1.1.xml").write_bytes(article_xml(body, {"pmc": "1"}, CC_BY))
    (article / "PMC1.1.json").write_text(json.dumps({"pmcid": "PMC1", "license_code": "CC BY"}))
    return folder


def samples(out: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Caption and JSON by key."""
    return {
        row["key"]: (member(out, row, "text").decode(), json.loads(member(out, row, "json")))
        for row in rows_of(out)
    }


@pytest.mark.parametrize(
    ("panels", "keys"),
    [
        ("whole", ["F1", "F2"]),
        ("split", ["F1_pA", "F1_pB", "F2"]),
        ("both", ["F1", "F1_pA", "F1_pB", "F2"]),
    ],
)
def test_whole_figures_panels_or_both(tmp_path: Path, panels: str, keys: list[str]) -> None:
    out = tmp_path / "out"
    prepare("pmc", f"source={source(tmp_path / 'in')}", f"out={out}", f"panels={panels}")
    found = samples(out)
    assert sorted(found) == [f"PMC1-1_{key}" for key in keys]
    if panels == "whole":
        return
    caption, record = found["PMC1-1_F1_pB"]
    assert caption == "Organs of a mouse. Kidney at night."
    assert record["panel"] == "B"
    assert record["box"] == [340, 20, 640, 320]
    assert record["figure_key"] == "PMC1-1_F1"
    assert record["image"] == "PMC1.1/a.png"
    assert (record["width"], record["height"]) == (300, 300)
    [row] = [row for row in rows_of(out) if row["key"] == "PMC1-1_F1_pB"]
    stored = np.asarray(decoded(member(out, row, "image")), np.float64)
    original = np.asarray(compound().crop((340, 20, 640, 320)), np.float64)
    assert np.abs(stored - original).mean() < 4
    assert "panel" not in found["PMC1-1_F2"][1]


def test_figures_that_disagree_with_their_caption_stay_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = source(tmp_path / "in", "(A) Liver. (B) Kidney. (C) Spleen.")
    prepare("pmc", f"source={folder}", f"out={out}", "panels=split")
    assert sorted(samples(out)) == ["PMC1-1_F1", "PMC1-1_F2"]


def test_short_panel_captions_keep_the_figure_whole() -> None:
    data = encoded(compound(), "PNG")
    assert len(pictures(data, "(A) Liver. (B) Heart.", rules())) == 2
    [whole] = pictures(data, "(A) Liver. (B) Heart.", rules(min_caption=7))
    assert whole.panel == ""


def test_large_panels_are_scaled() -> None:
    large = compound().resize((2640, 1360))
    found = pictures(encoded(large, "PNG"), CAPTION, rules())
    assert [(part.panel, part.image.width, part.image.height) for part in found] == [
        ("A", 512, 512),
        ("B", 512, 512),
    ]


def test_kinds_are_noted_and_filtered(tmp_path: Path) -> None:
    folder, out = source(tmp_path / "in"), tmp_path / "out"
    (folder / "PMC1.1" / "b.jpg").write_bytes(encoded(example("table", 11, 1)))
    prepare("pmc", f"source={folder}", f"out={out}", "tag_kinds=true")
    tags = {key: record["kind"] for key, (_, record) in samples(out).items()}
    assert tags["PMC1-1_F2"] == "table"
    prepare(
        "pmc", f"source={folder}", f"out={tmp_path / 'some'}", "kinds=[image,plot,other,diagram]"
    )
    assert set(samples(tmp_path / "some")) == {k for k, kind in tags.items() if kind != "table"}
    assert ("PMC1.1", "F2", "b.jpg", "kind", "kind table") in rejects_of(tmp_path / "some")
    with pytest.raises(UserError, match="no kind 'photo'"):
        prepare("pmc", f"source={folder}", f"out={tmp_path / 'x'}", "kinds=[photo]")


def test_a_figure_that_is_called_like_a_panel() -> None:
    keys = figure_keys("PMC1-1", ["F1", "F1_pA", "F2_pA"])
    assert keys[0] == "PMC1-1_F1"
    assert keys[1].startswith("PMC1-1_F1_pA_")
    assert keys[2] == "PMC1-1_F2_pA"  # no figure F2 is there


def test_decoded_at_its_own_size_and_upright() -> None:
    small = ImageRules(short_side=20, min_side=1, max_pixels=10_000)
    image = picture(80, 60)
    turned = encoded(image, exif=_orientation(6))
    assert decode_image(encoded(image, "PNG"), small).tobytes() == image.tobytes()
    assert decode_image(turned, small).size == (60, 80)
    with pytest.raises(ImageRejected, match="larger than"):
        decode_image(encoded(picture(200, 60)), small)
    stored = encode_image(image, small)
    assert (stored.width, stored.height, stored.extension) == (27, 20, "jpg")
    assert decoded(stored.data).size == (27, 20)


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif
