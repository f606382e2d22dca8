"""report.html of all kinds of tasks, read as text and looked at in a browser."""

import asyncio
import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from eval import pictures
from eval.__main__ import main
from tests.browser import page
from tests.eval.test_probe import TASK as LIGHT
from tests.eval.test_probe import write_set
from tests.eval.test_suite import Page
from tests.eval.tiny import suite_config, write_model, write_table

DATA = {"reader": "table", "path": "set/index.jsonl", "split": "test"}
COMMON = {"source": "made up", "data": DATA}
TASKS = {
    "findings": {
        **COMMON,
        "kind": "multilabel",
        "label": "found",
        "classes": {"x": ["x"], "y": ["y"]},
        "templates": ["{c}"],
        "multilabel": {"labels": "list"},
        "calibration": {"split": "val"},
    },
    "boxes": {**COMMON, "kind": "grounding"},
    "hidden": {**COMMON, "kind": "grounding", "show_images": False},
    "questions": {**COMMON, "kind": "vqa", "fixed_options": ["yes", "no"]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The results of a suite whose texts are meant to break out of the page."""
    root = tmp_path_factory.mktemp("suite")
    rows = [
        {
            "split": ["test", "val"][i % 3 == 2],
            "found": ["x", "y", "x|y", ""][i % 4] or [],
            "label_text": f"a <b>spot</b> {i % 2}",
            "category_name": ["<i>spot</i>", "stripe"][i % 2],
            "boxes": [[i, 4, 12, 16], [-900, -900, 905, 910]],
            "question": f"Is it {i}?",
            "answer": ["yes", "no"][i % 2],
        }
        for i in range(24)
    ]
    write_table(root / "set", rows)
    suite_config(root, model, TASKS)
    main([str(root / "suite.yaml")])
    return root / "out"


def section(out: Path, name: str) -> str:
    """The part of a task."""
    (part,) = re.findall(
        rf"<h2>{name}</h2>.*?(?=<h2>|</body>)", (out / "report.html").read_text(), re.S
    )
    return part


def test_places_of_phrases(out: Path) -> None:
    part = section(out, "boxes")
    text = Page(part.replace("</body>", "")).text
    for expected in (
        "boxes: most contrast in the boxes",
        "boxes: least contrast in the boxes",
        "Scores by finding",
        "a <b>spot</b> 0",
        "<i>spot</i>",
        "contrast-to-noise ratio",
    ):
        assert expected in text
    examples = json.loads((out / "boxes.json").read_text())["examples"]
    assert len(examples) == 6
    assert part.count('<svg class="place"') == 2 * 6, "without and with the map"
    # Both boxes of each, with a halo, in both drawings.
    assert part.count('class="box"') == part.count('class="halo"') == 2 * 2 * 6
    assert part.count("data:image/jpeg;base64,") == 2 * 6
    assert part.count("data:image/png;base64,") == part.count('class="patches"') == 6
    # The second box begins far outside of the image of 48 x 40, and is cut at its edge.
    assert '<rect class="box" x="0.0" y="0.0" width="5.0" height="10.0"/>' in part
    # 48 x 40 becomes 38 x 32, of which the centre crop leaves 32 columns after the third.
    assert '<rect class="seen" x="3.8" y="0.0" width="40.4" height="40.0"/>' in part


def test_maps_without_images(out: Path) -> None:
    part = section(out, "hidden")
    assert "data:image/jpeg" not in part
    assert part.count("data:image/png") == 6


def test_calibration_of_findings(out: Path) -> None:
    text = Page(section(out, "findings")).text
    assert "Expected calibration error" in text
    assert re.search(r"A temperature fitted on 16 labels of split val changes it to [\d.]+%", text)


def test_colours_of_a_map() -> None:
    """Low is dark and lets the image through, high is bright; a flat map has one colour."""

    def pixels(rows: list[list[float]]) -> Image.Image:
        data = pictures.heat(rows).removeprefix("data:image/png;base64,")
        return Image.open(io.BytesIO(base64.b64decode(data)))

    image = pixels([[-0.2, 0.0], [0.1, 0.2]])
    assert image.size == (2, 2)
    assert image.getpixel((0, 0)) == (0, 0, 4, 60)
    assert image.getpixel((1, 0)) == (188, 55, 84, 125)
    assert image.getpixel((1, 1)) == (252, 255, 164, 190)
    assert set(pixels([[0.3, 0.3]]).get_flattened_data()) == {(0, 0, 4, 60)}


@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_screen(out: Path, width: int) -> None:
    assert (out / "report.html").stat().st_size < 3_000_000

    async def look() -> None:
        async with page((out / "report.html").as_uri(), width, 900) as tab:
            assert await tab.value("document.documentElement.scrollWidth") <= width
            assert len([url for url in tab.requested if not url.startswith("data:")]) == 1
            assert tab.problems == []
            # Drawings are as wide as their place, and none is empty.
            sizes = "[...document.querySelectorAll('svg.place')].map(s => s.clientWidth)"
            assert all(80 < w < width for w in await tab.value(sizes))

    asyncio.run(look())


def answers(images: list, prompts: list[str]) -> list[str]:
    return ["yes, certainly"] * len(prompts)


def test_a_generative_model_has_a_report(out: Path, tmp_path: Path) -> None:
    suite = str(out.parent / "suite.yaml")
    main([suite, f"model=python:{__name__}:answers", "only=[questions]", f"out={tmp_path}"])
    text = Page((tmp_path / "report.html").read_text()).text
    assert "images of the model's own size" in text
    assert "questions: right answers" in text
    assert "yes, certainly" in text


def test_probes_have_their_curves(model: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "set", {"train": 30, "val": 12, "test": 12})
    suite_config(tmp_path, model, {"light": LIGHT})
    main(["probe", str(tmp_path / "suite.yaml"), "probe.shots=[1,4]", "probe.seeds=2"])
    source = (tmp_path / "out" / "probe" / "report.html").read_text()
    text = Page(source).text
    for expected in ("Few-shot probes", "Confusion matrix", "Scores by class", "Prompts"):
        assert expected in text
    chart = re.search(r'<svg class="chart"[^>]*over the number of training images.*?</svg>', source)
    assert chart
    assert chart[0].count('class="dot') == 2
    assert chart[0].count('class="whisker') == 2
    assert chart[0].count('class="line chance"') == 1
