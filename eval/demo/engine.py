"""What the page asks for, without HTTP: scores of texts, nearest figures, maps of patches."""

import hashlib
import io
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from eval.boxes import View, view_of
from eval.config import template_problem
from eval.grounding import similarity_map
from eval.readers import Dataset
from eval.retrieval import nearest
from eval.tables import text
from vlp.config import UserError
from vlp.data.image import ImageError, open_rgb

if TYPE_CHECKING:
    from eval.model import Model

SHOWN_SIDE = 1024  # pixels of the longer side of an image on the page
FIGURE_SIDE = 384
KEPT = 16
"""Images that are remembered; older ones have to be sent again."""
MAX_TEXTS, MAX_LENGTH = 200, 2000
"""Labels or options in one question, and characters of each."""
PMC = re.compile(r"(PMC\d{1,10})(\.\d+)?")


class Refused(Exception):
    """A request that can't be answered; the message is for the person at the page."""


@dataclass(frozen=True)
class Figures:
    """Figures in which the nearest are looked up."""

    dataset: Dataset
    features: Tensor
    """Unit rows float32 [N, D]; zeros for a figure that can't be read."""


@dataclass
class Shown:
    """An image on the page."""

    jpeg: bytes
    pixels: Tensor
    """The model's input, float32 [3, H, W]."""
    features: Tensor
    """Unit row [1, D]."""
    view: View
    patches: Tensor | None = None
    """Unit rows [h, w, D], made when a map is first asked for."""


class Engine:
    """One model, and the images that were shown to it. Threads take turns."""

    def __init__(self, model: "Model", figures: Figures | None, neighbours: int = 8) -> None:
        self.model, self.figures, self.neighbours = model, figures, neighbours
        self.images: OrderedDict[str, Shown] = OrderedDict()
        self.lock = threading.Lock()

    def about(self) -> dict[str, Any]:
        """What the page says of the model and the figures."""
        count = len(self.figures.dataset.samples) if self.figures else 0
        return {"model": self.model.name, "notes": self.model.notes, "figures": count}

    def add(self, data: bytes) -> dict[str, Any]:
        """Take an image in.

        Args:
            data: an encoded image of any kind that Pillow reads.

        Returns:
            Its id, its size in pixels and the nearest figures.

        Raises:
            Refused: not an image, damaged, or too large.
        """
        try:
            image = open_rgb(data)
        except ImageError as error:
            raise Refused(str(error)) from None
        name = hashlib.sha256(data).hexdigest()[:32]
        with self.lock:
            pixels = self.model.transform(image)
            features = self.model.embed_pixels(pixels[None])
            view = view_of(self.model.preprocess, *image.size)
            self.images[name] = Shown(_jpeg(image, SHOWN_SIDE), pixels, features, view)
            self.images.move_to_end(name)
            while len(self.images) > KEPT:
                self.images.popitem(last=False)
        width, height = image.size
        found = {"id": name, "width": width, "height": height}
        return {**found, "neighbours": self._neighbours(features)}

    def scores(
        self, name: str, names: Sequence[str], template: str, question: str = ""
    ) -> list[dict[str, Any]]:
        """Labels or answers by how near their texts are to the image, the nearest first.

        Args:
            name: of the image.
            names: labels, or the options of a question.
            template: how each becomes a text: `{c}` for labels, `{question}` and `{option}`.
            question: empty for labels.

        Returns:
            For each its name, text, cosine, and probability: the softmax over all of them with the
            model's own temperature.

        Raises:
            Refused: an image that isn't remembered, or texts that don't fit.
        """
        image = self._image(name)
        wanted = list(dict.fromkeys(text(entry) for entry in names if text(entry)))
        if len(wanted) < 2:
            raise Refused("write two different lines or more")
        if len(wanted) > MAX_TEXTS:
            raise Refused(f"{len(wanted)} lines; {MAX_TEXTS} at most")
        placeholder = "option" if question else "c"
        known = {"question", "option"} if question else {"c"}
        if problem := template_problem(template, known, {placeholder}):
            raise Refused(f"template {problem}")
        texts = [template.format(**{placeholder: one}, question=question) for one in wanted]
        cosines = (self._texts(texts) @ image.features[0]).double()
        shares = (self.model.scale * cosines).softmax(dim=0)
        return [
            {
                "name": wanted[i],
                "text": texts[i],
                "cosine": float(cosines[i]),
                "probability": float(shares[i]),
            }
            for i in cosines.argsort(descending=True, stable=True).tolist()
        ]

    def heat(self, name: str, phrase: str) -> dict[str, Any]:
        """Cosine of each patch to a text, and the part of the image that the model sees.

        Returns:
            rows: the map, smoothed as in phrase grounding; region: left, top, width and height of
            what it covers, as shares of the image's width and height.

        Raises:
            Refused: an image that isn't remembered, no text, or a model without known patches.
        """
        image = self._image(name)
        if not phrase.strip():
            raise Refused("write a text")
        row = self._texts([phrase])[0]
        with self.lock:
            if image.patches is None:
                try:
                    image.patches = self.model.embed_patches(image.pixels[None])[0]
                except UserError as error:
                    raise Refused(str(error)) from None
        view = image.view
        (height, width), (across, down) = view.size, view.stored
        return {
            "text": phrase,
            "rows": similarity_map(image.patches, row).tolist(),
            "region": {
                "left": -view.offset[0] / view.scale[0] / across,
                "top": -view.offset[1] / view.scale[1] / down,
                "width": width / view.scale[0] / across,
                "height": height / view.scale[1] / down,
            },
        }

    def jpeg(self, name: str) -> bytes:
        """An image of the page."""
        return self._image(name).jpeg

    def figure(self, index: int) -> bytes:
        """A figure of the shards as a small JPEG.

        Raises:
            Refused: no such figure, or one that can't be read.
        """
        if self.figures is None or not 0 <= index < len(self.figures.dataset.samples):
            raise Refused("no such figure")
        try:
            return _jpeg(open_rgb(self.figures.dataset.images.read(index)), FIGURE_SIDE)
        except (ImageError, OSError) as error:
            raise Refused(f"the figure can't be read: {error}") from None

    def _image(self, name: str) -> Shown:
        with self.lock:
            if name not in self.images:
                raise Refused("the image is not remembered any more; drop it again")
            return self.images[name]

    def _texts(self, texts: Sequence[str]) -> Tensor:
        """Unit rows [len(texts), D]."""
        if any(len(entry) > MAX_LENGTH for entry in texts):
            raise Refused(f"a text is longer than {MAX_LENGTH} characters")
        with self.lock:
            return self.model.embed_texts(texts)

    def _neighbours(self, features: Tensor) -> list[dict[str, Any]]:
        if self.figures is None:
            return []
        scores, order = nearest(features, self.figures.features, self.neighbours)
        return [
            {"index": index, "cosine": score, **self._source(index)}
            for score, index in zip(scores[0].tolist(), order[0].tolist(), strict=True)
        ]

    def _source(self, index: int) -> dict[str, str]:
        """Caption and origin of a figure; a link only to PubMed Central."""
        assert self.figures is not None
        sample = self.figures.dataset.samples[index]
        row = sample.rows[0] if sample.rows else {}
        article = text(row.get("article"))
        number = PMC.fullmatch(article)
        return {
            "caption": " ".join(sample.captions),
            "image": sample.image,
            "article": article,
            "licence": text(row.get("licence")),
            "citation": text(row.get("citation")) or text(row.get("title")),
            "link": f"https://pmc.ncbi.nlm.nih.gov/articles/{number[1]}/" if number else "",
        }


def _jpeg(image: Image.Image, side: int) -> bytes:
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
