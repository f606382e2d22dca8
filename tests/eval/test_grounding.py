"""Maps against boxes: by hand, against SciPy, and with a model that knows where things are."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from rich.progress import Progress

from eval import grounding
from eval.boxes import phrases_of, view_of
from eval.config import GroundingConfig, TaskConfig
from eval.corruptions import Corruption
from eval.embed import ImageFeatures
from eval.grounding import contrast, judge, miou, points, similarity_map
from eval.readers import Dataset, Sample
from eval.readers.base import FileImages
from eval.robustness import corrupted
from eval.tasks import Inputs, Item
from tests.eval.tiny import fails
from tests.real_data import real_data

RED, GREEN = (200, 0, 0), (0, 200, 0)


def test_smoothing_is_scipy_s() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    torch.manual_seed(0)
    for shape in ((14, 14), (5, 9), (1, 3)):
        cosines = torch.rand(shape) * 2 - 1
        ours = similarity_map(cosines[..., None], torch.ones(1), sigma=1.5)
        # float32 sums in another order
        assert np.allclose(ours.numpy(), ndimage.gaussian_filter(cosines.numpy(), 1.5), atol=1e-6)
    assert torch.equal(similarity_map(cosines[..., None], torch.ones(1), sigma=0), cosines)


def test_scores_by_hand() -> None:
    values = np.array([0.45, 0.35, 0.15, 0.05])
    inside = np.array([True, True, False, False])
    # means 0.4 and 0.1, both variances 0.05 squared
    assert contrast(values, inside) == pytest.approx(0.3 / np.sqrt(2 * 0.0025))
    # above 0.1: three of which two are right; 0.2, 0.3: just the two; 0.4: one of two; 0.5: none
    expected = np.mean([2 / 3, 1, 1, 1 / 2, 0])
    assert miou(values, inside, [0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(expected)
    assert points(values, inside) == 1.0
    assert points(-values, inside) == 0.0
    # The same everywhere: one pixel is as good as another, and there is no contrast.
    assert points(np.ones(4), np.array([True, False, False, False])) == 0.25
    assert contrast(np.ones(4), inside) == 0.0


def test_pixels_that_show_no_image_do_not_count() -> None:
    similarity = np.array([[0.9, 0.4], [0.9, 0.1]])
    inside = np.array([[False, True], [False, False]])
    valid = np.array([[False, True], [False, True]])
    assert judge(similarity, inside, valid, GroundingConfig()).pointing == 1.0


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(100, 60, 32), (61, 97, 32), (32, 32, 32), (500, 333, 32), (20, 30, 32), (90, 61, (24, 48))],
)
def test_boxes_go_where_open_clip_s_transform_puts_them(
    mode: str, width: int, height: int, size: int | tuple[int, int]
) -> None:
    box = (width * 0.3, height * 0.25, width * 0.7, height * 0.8)
    picture = Image.new("RGB", (width, height))
    picture.paste((255, 255, 255), tuple(round(edge) for edge in box))
    config = open_clip.transform.PreprocessCfg(
        size=size, resize_mode=mode, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear"
    )
    pixels = open_clip.transform.image_transform_v2(config, is_train=False)(picture)
    view = view_of({"size": size, "resize_mode": mode}, width, height)
    ours = view.mask([tuple(round(edge) for edge in box)])
    theirs = pixels[0].numpy() > 0.5
    assert ours.shape == theirs.shape
    # Half a pixel of rounding along the box's rim.
    rim = 2 * (ours.any(axis=0).sum() + ours.any(axis=1).sum())
    assert (ours != theirs).sum() <= 0.5 * rim
    assert (view.image() | ~theirs).all()


def item(row: dict, sample: int = 0) -> Item:
    return Item(sample, row)


def test_ms_cxr_one_box_a_row() -> None:
    common = {"dicom_id": "d", "category_name": "Edema", "image_width": 90, "image_height": 90}
    rows = [
        {"label_text": "edema", "x": "1", "y": "2", "w": "10", "h": "20", **common},
        {"label_text": "edema", "x": "50", "y": "2", "w": "10", "h": "20", **common},
        {"label_text": "mild edema", "x": "1", "y": "2", "w": "10", "h": "20", **common},
        {"label_text": "wrong", "x": "1", "y": "", "w": "10", "h": "20", **common},
        {"label_text": "", "x": "1", "y": "2", "w": "10", "h": "20", **common},
    ]
    config = GroundingConfig(box_columns=["x", "y", "w", "h"])
    phrases, left_out = phrases_of(config, [item(row) for row in rows])
    assert [(p.texts, p.category, p.boxes) for p in phrases] == [
        (["edema"], "Edema", [(1, 2, 11, 22), (50, 2, 60, 22)]),
        (["mild edema"], "Edema", [(1, 2, 11, 22)]),
    ]
    assert left_out == {"a box is not four numbers": 1, "no phrase": 1}


def test_lists_of_boxes_and_boxes_with_labels() -> None:
    row = {"label_text": "two nodules", "boxes": [[0, 0, 4, 4], [8, 8, 2, 2]]}
    phrases, _ = phrases_of(GroundingConfig(), [item(row)])
    assert phrases[0].boxes == [(0, 0, 4, 4), (8, 8, 10, 10)]
    labelled = [{"label": "WBC", "box": [1, 2, 3, 4]}, {"label": "RBC", "box": [5, 6, 7, 8]}]
    config = GroundingConfig(
        box_format="corners", phrases={"WBC": ["white blood cell", "leucocyte"]}
    )
    phrases, left_out = phrases_of(config, [item({"boxes": json.dumps(labelled)})])
    assert [(p.texts, p.category, p.boxes) for p in phrases] == [
        (["white blood cell", "leucocyte"], "WBC", [(1, 2, 3, 4)])
    ]
    assert not left_out
    points = [*labelled, {"label": "WBC", "box": [3, 3, 3, 3]}]
    phrases, left_out = phrases_of(config, [item({"boxes": points})])
    assert [len(phrase.boxes) for phrase in phrases] == [1]
    assert left_out == {"box without area": 1}


@pytest.mark.parametrize(
    "boxes", [[[1, 2, 3]], [["a", 1, 2, 3]], ["x"], "{not json", [[1, 2, 1e400, 4]]]
)
def test_boxes_that_are_none_are_left_out(boxes: object) -> None:
    phrases, left_out = phrases_of(GroundingConfig(), [item({"label_text": "a", "boxes": boxes})])
    assert not phrases
    assert left_out == {"a box is not four numbers": 1}


class ColourModel:
    """Patches and phrases by colour: it knows what is red and what is green."""

    preprocess = {"size": 64, "resize_mode": "shortest"}  # noqa: RUF012

    def transform(self, image: Image.Image) -> torch.Tensor:
        config = open_clip.transform.PreprocessCfg(size=64, mean=(0, 0, 0), std=(1, 1, 1))
        return open_clip.transform.image_transform_v2(config, is_train=False)(image)

    def embed_patches(self, pixels: torch.Tensor) -> torch.Tensor:
        cells = torch.nn.functional.avg_pool2d(pixels, 4).permute(0, 2, 3, 1)
        return torch.nn.functional.normalize(cells + 1e-6, dim=-1)


def colour_inputs(folder: Path, rows: list[dict], **keys: object) -> Inputs:
    """Samples with a red or green square at the row's box, on blue."""
    files = []
    for i, row in enumerate(rows):
        picture = Image.new("RGB", (96, 64), (0, 0, 200))
        for x, y, w, h in row["boxes"]:
            picture.paste(RED if "red" in row["label_text"] else GREEN, (x, y, x + w, y + h))
        files.append(folder / f"{i}.png")
        picture.save(files[-1])
    samples = [Sample(file.name, [], [row]) for file, row in zip(files, rows, strict=True)]
    dataset = Dataset(samples, "f", rows, images=FileImages(files))
    colours = {"red": (1.0, 0, 0), "green": (0, 1.0, 0)}

    def texts(said: list[str], name: str, unit: bool) -> torch.Tensor:
        return torch.tensor([colours[one.split()[0]] for one in said])

    embedder = SimpleNamespace(
        model=ColourModel(), texts=texts, batch_size=2, progress=Progress(disable=True)
    )
    task = TaskConfig(kind="grounding", source="test", grounding=GroundingConfig(**keys))
    nothing = ImageFeatures(torch.zeros(len(rows), 1), {})
    return Inputs(task, dataset, nothing, embedder, "it", seed=0, replicates=100)


def test_a_model_that_knows_finds_the_boxes(tmp_path: Path) -> None:
    rows = [
        {"label_text": "red square", "category_name": "a", "boxes": [[20, 4, 20, 20]]},
        {"label_text": "green square", "category_name": "b", "boxes": [[60, 40, 16, 16]]},
        {"label_text": "red things", "category_name": "a", "boxes": [[20, 4, 8, 8], [60, 4, 8, 8]]},
        # The crop takes away 16 pixels on either side of the 96.
        {"label_text": "red rim", "category_name": "a", "boxes": [[0, 0, 15, 64]]},
        {"label_text": "green all", "category_name": "b", "boxes": [[0, 0, 96, 64]]},
    ]
    inputs = colour_inputs(tmp_path, rows, sigma=0.0)
    grounding.check("it", inputs.task, inputs.dataset)
    result = grounding.evaluate(inputs)
    assert result.n == 3
    assert result.excluded == {grounding.OUTSIDE: 1, grounding.EVERYTHING: 1}
    assert result.scores["pointing"].value == 1.0
    assert result.scores["miou"].value > 0.8
    assert result.scores["cnr"].value > 3
    baselines = result.details["baselines"]
    # No red where only green is asked for: everything is the same, and pointing is by chance.
    assert baselines["pointing_other_phrase"] < 0.5
    assert baselines["pointing_centre"] < 0.5
    # Area of the boxes over the 64 x 64 pixels that are seen, within the finding, then over both.
    shares = [400 / 4096, (8 * 8 * 2) / 4096, 256 / 4096]
    expected = ((shares[0] + shares[1]) / 2 + shares[2]) / 2
    assert result.scores["pointing"].chance == pytest.approx(expected)
    assert result.items[0]["id"] == "0.png: red square"
    best, *_ = result.examples
    assert best.group == "most contrast in the boxes"
    assert (best.title, best.right) == ("0.png", True)
    assert best.place is not None
    # Each 4 x 4 cell of the 64 that are seen, of which the crop of 96 x 64 leaves the middle.
    assert (len(best.place.map), len(best.place.map[0])) == (16, 16)
    assert best.place.seen == (16, 0, 80, 64)
    assert best.place.size == (96, 64)
    assert best.place.boxes == [(20, 4, 40, 24)]
    assert best.place.map[3][3] > 0.9 > 0.1 > best.place.map[12][12]
    assert set(result.details["by_finding"]) == {"a", "b"}


def test_examples_are_the_best_and_the_worst_by_sign(tmp_path: Path) -> None:
    """Ten images; in one of them the box is where the phrase is not."""
    rows = [{"label_text": "red square", "boxes": [[20 + i, 4, 20, 20]]} for i in range(10)]
    inputs = colour_inputs(tmp_path, rows, sigma=0.0)
    inputs.dataset.samples[4].rows[0]["boxes"] = [[60, 40, 16, 16]]
    examples = grounding.evaluate(inputs).examples
    assert [e.group.split()[0] for e in examples] == ["most"] * 3 + ["least"] * 3
    worst = examples[3]
    assert (worst.title, worst.right) == ("4.png", False)
    contrasts = [e.place.contrast for e in examples if e.place]
    assert contrasts[:3] == sorted(contrasts[:3], reverse=True)
    assert contrasts[3] < 0 < contrasts[4] <= contrasts[5] <= contrasts[2]
    assert len({e.title for e in examples}) == 6, "an image is shown once"


def test_examples_are_of_different_findings(tmp_path: Path) -> None:
    """Green squares have less contrast here, since their boxes are too large."""
    rows = [
        {"label_text": f"{c} square", "category_name": c, "boxes": [[20 + 2 * i, 4, 20, 20]]}
        for i, c in enumerate(["red"] * 4 + ["green"] * 3)
    ]
    inputs = colour_inputs(tmp_path, rows, sigma=0.0)
    for sample in inputs.dataset.samples[4:]:
        sample.rows[0]["boxes"] = [[20, 4, 40, 40]]
    examples = grounding.evaluate(inputs).examples
    assert [e.text.split()[0] for e in examples] == ["red", "green", "red", "green", "red", "green"]


def test_smoothing_blurs_the_contrast(tmp_path: Path) -> None:
    rows = [{"label_text": "red square", "boxes": [[40, 24, 16, 16]]}]
    sharp = grounding.evaluate(colour_inputs(tmp_path, rows, sigma=0.0))
    blurred = grounding.evaluate(colour_inputs(tmp_path, rows, sigma=1.5))
    assert blurred.scores["cnr"].value < sharp.scores["cnr"].value
    assert blurred.scores["pointing"].value == 1.0


def test_boxes_fit_corrupted_images_which_are_smaller(tmp_path: Path) -> None:
    rows = [{"label_text": "red square", "boxes": [[20, 4, 20, 20]]}]
    inputs = colour_inputs(tmp_path, rows, sigma=0.0)
    smaller = corrupted(inputs.dataset, Corruption("clean", 0, side=32))
    result = grounding.evaluate(replace(inputs, dataset=smaller))
    assert result.scores["pointing"].value == 1.0
    assert result.scores["miou"].value > 0.8


def test_boxes_on_an_image_that_was_made_smaller(tmp_path: Path) -> None:
    """The table's boxes are those of an image of twice the width and thrice the height."""
    rows = [{"label_text": "red square", "boxes": [[20, 4, 20, 20]], "w": "192", "h": 192.0}]
    plain = grounding.evaluate(colour_inputs(tmp_path, rows, sigma=0.0))
    inputs = colour_inputs(tmp_path, rows, sigma=0.0, size_columns=["w", "h"])
    inputs.dataset.samples[0].rows[0]["boxes"] = [[40, 12, 40, 60]]
    found = grounding.evaluate(inputs)
    assert found.scores == plain.scores
    assert found.examples == plain.examples
    for size in (None, "", "x", 0, -5, float("nan")):
        inputs.dataset.samples[0].rows[0]["h"] = size
        with fails("{'no size of the image on which boxes were drawn': 1}"):
            grounding.check("it", inputs.task, inputs.dataset)
    with pytest.raises(ValueError, match="size_columns needs two"):
        GroundingConfig(size_columns=["w"])


def test_mistakes_are_told_before_any_model(tmp_path: Path) -> None:
    inputs = colour_inputs(tmp_path, [{"label_text": "red", "boxes": []}])
    with fails("it: no phrase with boxes: all boxes are empty"):
        grounding.check("it", inputs.task, inputs.dataset)
    columns = colour_inputs(tmp_path, [{"label_text": "red", "boxes": []}], box_columns=[*"xywh"])
    with fails("it.grounding.box_columns: no column 'x'"):
        grounding.check("it", columns.task, columns.dataset)
    sized = colour_inputs(tmp_path, [{"label_text": "red", "boxes": []}], size_columns=["u", "v"])
    with fails("it.grounding.size_columns: no column 'u'"):
        grounding.check("it", sized.task, sized.dataset)


def test_boxes_of_real_blood_smears() -> None:
    rows = [json.loads(line) for line in (real_data("blood_bccd") / "index.jsonl").open()]
    cells = {"RBC": ["red blood cell"], "WBC": ["white blood cell"], "Platelets": ["platelet"]}
    config = GroundingConfig(box_format="corners", phrases=cells)
    phrases, left_out = phrases_of(config, [item(row, i) for i, row in enumerate(rows)])
    assert left_out == {"box without area": 2}
    assert sum(len(phrase.boxes) for phrase in phrases) == 3943 - 2
