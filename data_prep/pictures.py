"""From one picture file of a figure to what is stored: the whole, its panels, or both; its kind."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from data_prep.images import ImageRules, StoredImage, decode_image, encode_image, prepare_image
from data_prep.kinds import classify
from data_prep.panel_captions import split_caption
from data_prep.panels import Panel, PanelRules, split_figure

Panels = Literal["whole", "split", "both"]


@dataclass(frozen=True, kw_only=True)
class PictureRules:
    """What is made of a picture."""

    image: ImageRules
    panels: Panels
    """Keep figures whole, split compound ones where that is certain, or store both."""
    tag_kinds: bool
    """Whether to say what kind of image it is."""
    kinds: Sequence[str]
    """Kinds to keep; empty keeps all."""
    min_caption: int
    """Figures with a panel caption of fewer characters stay whole."""


@dataclass(frozen=True)
class Picture:
    """An image with its caption; a whole figure or a panel."""

    image: StoredImage
    caption: str
    panel: str
    """The panel's label; empty for a whole figure."""
    record: dict[str, Any]
    """For the sample's JSON: panel, box, kind."""
    reason: str
    """Why it is dropped; empty if it is kept."""


def pictures(data: bytes, caption: str, rules: PictureRules) -> list[Picture]:
    """What to store of one image file, in the order of the labels, the whole figure first.

    Raises:
        ImageRejected: see `prepare_image`.
    """
    whole = prepare_image(data, rules.image)
    parts: list[tuple[StoredImage, str, Panel | None]] = [(whole, caption, None)]
    if rules.panels != "whole" and split_caption(caption) is not None:
        full = decode_image(data, rules.image)
        panels = split_figure(full, caption, PanelRules(min_side=rules.image.min_side))
        if panels and min(len(panel.caption) for panel in panels) >= rules.min_caption:
            cut = [(encode_image(full.crop(p.box), rules.image), p.caption, p) for p in panels]
            parts = [*(parts if rules.panels == "both" else []), *cut]
    return [_picture(*part, rules) for part in parts]


def _picture(image: StoredImage, caption: str, panel: Panel | None, rules: PictureRules) -> Picture:
    record: dict[str, Any] = {}
    if panel is not None:
        record |= {"panel": panel.label, "box": list(panel.box)}
    reason = ""
    if rules.tag_kinds or rules.kinds:
        with Image.open(io.BytesIO(image.data)) as stored:
            kind = classify(stored)
        record |= {"kind": kind.name, "kind_probability": round(kind.probability, 3)}
        if rules.kinds and kind.name not in rules.kinds:
            reason = f"kind {kind.name}"
    return Picture(image, caption, panel.label if panel else "", record, reason)
