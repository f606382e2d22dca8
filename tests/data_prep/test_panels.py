"""Panels: gutters, letters, and when a figure is split at all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from data_prep.panel_boxes import Box, Gutter, boxes_by_gutters, boxes_by_letters, gutters
from data_prep.panel_letters import Letter, choose_letters, find_letters
from data_prep.panels import PanelRules, panel_caption, split_figure
from data_prep.phantom import plots
from data_prep.phantom.drawing import Facts

RULES = PanelRules(min_side=40)


def texture(seed: int, width: int, height: int) -> Image.Image:
    """A picture without a uniform line."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 200, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def page(
    boxes: list[Box], letters: str = "", size: tuple[int, int] = (640, 480), ground: str = "white"
) -> Image.Image:
    """Pictures on a page; letters above their left corners."""
    image = Image.new("RGB", size, ground)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(22)
    for seed, box in enumerate(boxes):
        image.paste(texture(seed, box.width, box.height), (box.left, box.top))
    for box, letter in zip(boxes, letters, strict=False):
        pen.text((box.left, box.top - 28), letter, "black", font, stroke_width=1)
    return image


def caption(labels: str) -> str:
    return "Organs. " + " ".join(f"({label}) Organ number {n}." for n, label in enumerate(labels))


def grid(columns: int, rows: int, gap: int = 40, side: int = 120) -> list[Box]:
    corners = [
        (gap + x * (side + gap), gap + y * (side + gap))
        for y in range(rows)
        for x in range(columns)
    ]
    return [Box(x, y, x + side, y + side) for x, y in corners]


def boxes_of(image: Image.Image, text: str) -> dict[str, tuple[int, int, int, int]]:
    return {panel.label: panel.box for panel in split_figure(image, text, RULES)}


def test_gutters_are_bands_inside_a_box() -> None:
    grey = np.full((60, 100), 100, np.uint8)
    grey[:, 40:46] = 255
    grey[20:23] = 0
    grey[:5] = 255
    whole = Box(0, 0, 100, 60)
    assert gutters(grey, Box(0, 25, 100, 60), 1) == [Gutter(1, 40, 46)]
    assert gutters(grey, whole, 0) == [Gutter(0, 20, 23)]
    assert gutters(grey, whole, 0, "white") == []
    assert gutters(grey, whole, 1) == []  # the black band crosses the white one


@pytest.mark.parametrize("labels", ["ABCDEF", "abcdef"])
def test_grid_without_letters_is_read_by_rows(labels: str) -> None:
    boxes = grid(3, 2)
    assert boxes_of(page(boxes), caption(labels)) == dict(zip(labels, boxes, strict=True))


def test_letters_decide_the_order() -> None:
    boxes = grid(2, 2)
    by_column = [boxes[0], boxes[2], boxes[1], boxes[3]]
    found = boxes_of(page(by_column, "ABCD", (360, 360)), caption("ABCD"))
    assert list(found) == list("ABCD")
    for label, box in zip("ABCD", by_column, strict=True):
        left, top, right, bottom = found[label]
        assert (right, bottom) == box[2:]
        assert box.left - 4 <= left <= box.left
        assert box.top - 30 <= top < box.top  # the letter belongs to it


@pytest.mark.parametrize("ground", ["white", "black"])
def test_letters_inside_the_pictures(ground: str) -> None:
    boxes = grid(2, 1, gap=12, side=200)
    image = page(boxes, "", (440, 224), ground)
    pen = ImageDraw.Draw(image)
    for letter, box in zip("BA", boxes, strict=True):
        pen.rectangle((box.left + 4, box.top + 4, box.left + 30, box.top + 32), "white")
        font = ImageFont.load_default(22)
        pen.text((box.left + 8, box.top + 6), letter, "black", font, stroke_width=1)
    found = boxes_of(image, caption("AB"))
    for label, box in (("A", boxes[1]), ("B", boxes[0])):
        assert np.abs(np.subtract(found[label], box)).max() <= (16 if ground == "black" else 0)


def test_uneven_rows() -> None:
    boxes = [Box(20, 40, 300, 200), Box(340, 40, 460, 200), Box(20, 260, 460, 440)]
    assert list(boxes_of(page(boxes, "ABC"), caption("ABC"))) == ["A", "B", "C"]


def test_columns_cut_at_different_heights_have_no_clear_order() -> None:
    boxes = [
        Box(20, 20, 220, 200),
        Box(20, 240, 220, 400),
        Box(260, 20, 460, 140),
        Box(260, 180, 460, 400),
    ]
    assert boxes_by_gutters(np.asarray(page(boxes).convert("L"))) is None
    assert split_figure(page(boxes), caption("ABCD"), RULES) == []


@pytest.mark.parametrize(("columns", "labels"), [(2, "ABC"), (3, "AB"), (1, "AB")])
def test_other_number_of_boxes_than_labels(columns: int, labels: str) -> None:
    assert split_figure(page(grid(columns, 1)), caption(labels), RULES) == []


def test_letters_that_contradict() -> None:
    boxes = grid(3, 1)
    assert list(boxes_of(page(boxes, "ABX"), caption("ABC"))) == ["A", "B", "C"]
    assert boxes_of(page(boxes, "BAX"), caption("ABC")) == {}


def test_more_letters_than_the_caption_knows() -> None:
    assert split_figure(page(grid(3, 1), "ABC"), caption("AB"), RULES) == []


def test_one_letter_without_a_gutter() -> None:
    boxes = [Box(20, 40, 220, 240), Box(220, 40, 420, 240)]
    assert split_figure(page(boxes, "AB"), caption("AB"), RULES) == []


def test_small_panels_keep_the_figure_whole() -> None:
    boxes = grid(3, 1, side=60)
    assert len(split_figure(page(boxes), caption("ABC"), PanelRules(min_side=60))) == 3
    assert split_figure(page(boxes), caption("ABC"), PanelRules(min_side=61)) == []


@pytest.mark.parametrize("kind", plots.KINDS)
@pytest.mark.parametrize("labels", ["AB", "ABC", "ABCD", "abcdef"])
def test_single_plots_are_never_split(kind: str, labels: str) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        facts: Facts = plots.sample(rng, kind)
        image = plots.draw(facts, rng, (480, 400)).image
        assert split_figure(image, caption(labels), RULES) == []


def test_large_figures_keep_their_own_pixels() -> None:
    boxes = [Box(4 * b.left, 4 * b.top, 4 * b.right, 4 * b.bottom) for b in grid(3, 2)]
    image = Image.new("RGB", (2560, 1920), "white")
    for seed, box in enumerate(boxes):
        small = texture(seed, box.width // 8, box.height // 8)
        image.paste(small.resize((box.width, box.height)), (box.left, box.top))
    found = boxes_of(image, caption("ABCDEF"))
    for label, box in zip("ABCDEF", boxes, strict=True):
        assert np.abs(np.subtract(found[label], box)).max() <= 4


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "1"])
def test_modes(mode: str) -> None:
    boxes = grid(2, 1)
    assert len(boxes_of(page(boxes).convert(mode), caption("AB"))) == 2


def test_captions_of_panels() -> None:
    panels = split_figure(page(grid(2, 1)), caption("AB"), RULES)
    assert [panel.caption for panel in panels] == [
        "Organs. Organ number 0.",
        "Organs. Organ number 1.",
    ]
    assert (panels[0].lead, panels[0].own) == ("Organs.", "Organ number 0.")
    assert panel_caption("Title", "Liver.") == "Title. Liver."
    assert panel_caption("Livers:", "control") == "Livers: control"
    assert panel_caption("", "Liver.") == "Liver."


@pytest.mark.parametrize("size", [16, 20, 30])
@pytest.mark.parametrize("labels", ["ABCDEFGH", "abcdefgh"])
def test_letters_are_found(size: int, labels: str) -> None:
    image = Image.new("L", (900, 300), 255)
    pen = ImageDraw.Draw(image)
    for index, label in enumerate(labels):
        pen.text((30 + 100 * index, 40), label, 0, ImageFont.load_default(size), stroke_width=1)
    pen.text((30, 200), "a panel of A and B cells by Adam Bede", 0, ImageFont.load_default(size))
    chosen = choose_letters(find_letters(np.asarray(image), labels), labels)
    assert chosen is not None
    assert [letter.label for letter in chosen] == list(labels)
    assert all(letter.top < 150 for letter in chosen)


def letter(label: str, size: float = 20, score: float = 0.9, left: int = 0) -> Letter:
    return Letter(label, left, 0, left + 10, 20, size, score)


def test_choice_of_letters() -> None:
    a, b = letter("A"), letter("B")
    assert choose_letters([a, b], "AB") == [a, b]
    assert choose_letters([a, letter("B", size=30)], "AB") is None
    assert choose_letters([a, b, letter("B", score=0.89, left=50)], "AB") is None
    assert choose_letters([a, b, letter("B", score=0.81, left=50)], "AB") == [a, b]
    assert choose_letters([a, b, letter("C")], "AB") is None
    larger = [letter("A", 40), letter("B", 41)]
    assert choose_letters([a, b, *larger], "AB") == larger


@settings(max_examples=40)
@given(
    columns=st.lists(st.integers(40, 120), min_size=1, max_size=4),
    rows=st.lists(st.integers(40, 120), min_size=1, max_size=4),
    gap=st.integers(3, 30),
)
def test_any_grid_of_pictures(columns: list[int], rows: list[int], gap: int) -> None:
    lefts, tops = np.cumsum([gap, *columns[:-1]]), np.cumsum([gap, *rows[:-1]])
    boxes = [
        Box(int(x) + i * gap, int(y) + j * gap, int(x) + i * gap + w, int(y) + j * gap + h)
        for j, (y, h) in enumerate(zip(tops, rows, strict=True))
        for i, (x, w) in enumerate(zip(lefts, columns, strict=True))
    ]
    size = (boxes[-1].right + gap, boxes[-1].bottom + gap)
    found = boxes_by_gutters(np.asarray(page(boxes, size=size).convert("L")))
    areas = [box.width * box.height for box in boxes]
    if len(boxes) > 1 and max(areas) <= 4 * min(areas):
        assert found == boxes
    else:
        assert found is None


def test_boxes_by_letters_needs_one_corner() -> None:
    boxes = grid(2, 1)
    grey = np.asarray(page(boxes).convert("L"))
    middle = [Letter("A", b.left + 50, b.top + 50, b.left + 60, b.top + 62, 12, 0.9) for b in boxes]
    corner = [Letter("A", b.left + 4, b.top + 4, b.left + 14, b.top + 16, 12, 0.9) for b in boxes]
    assert boxes_by_letters(grey, middle) is None
    assert boxes_by_letters(grey, corner) == boxes
