"""One embedding pass per model and dataset, kept by content: the second run reads a file.

The key of a kept file is a hash of the model's weights, its preprocessing and the dataset's
fingerprint (or the token ids of the texts), so a changed model, image or tokenizer is never missed.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from eval.readers import Dataset, ImageSource
from vlp.config import UserError
from vlp.data.image import ImageError, open_rgb

if TYPE_CHECKING:  # imports open_clip, which takes seconds
    from eval.model import Model

CHUNK = 4096  # texts that are tokenised at a time


@dataclass(frozen=True)
class Embedder:
    """Embeds with one model and keeps the results in one folder."""

    model: "Model"
    cache: Path
    batch_size: int = 64
    workers: int = 0
    progress: Progress = field(default_factory=lambda: Progress(disable=True))

    def images(self, dataset: Dataset, name: str = "images") -> "ImageFeatures":
        """Embeddings of all images of a dataset.

        Args:
            name: what the progress bar shows.

        Raises:
            UserError: none of the images can be read.
        """
        preprocess = json.dumps(self.model.preprocess, sort_keys=True)
        kept = self._path("images", self.model.sha256, preprocess, dataset.fingerprint)
        found = _load(kept)
        if found is not None:
            return ImageFeatures(found[0], {int(i): reason for i, reason in found[1].items()})
        features, broken = self._embed_images(dataset, name)
        _store(kept, features, {str(i): reason for i, reason in broken.items()})
        return ImageFeatures(features, broken)

    def texts(self, texts: Sequence[str], name: str = "texts") -> Tensor:
        """Unit rows float32 [len(texts), D]."""
        chunks = [texts[i : i + CHUNK] for i in range(0, len(texts), CHUNK)]
        tokens = _hash_tokens(self.model.tokenize(chunk) for chunk in chunks)
        kept = self._path("texts", self.model.sha256, tokens)
        found = _load(kept)
        if found is not None:
            return found[0]
        rows = []
        task = self.progress.add_task(name, total=len(texts))
        for start in range(0, len(texts), self.batch_size):
            rows.append(self.model.embed_texts(texts[start : start + self.batch_size]))
            self.progress.advance(task, len(rows[-1]))
        features = torch.cat(rows)
        _store(kept, features, {})
        return features

    def _embed_images(self, dataset: Dataset, name: str) -> tuple[Tensor, dict[int, str]]:
        loader: DataLoader = DataLoader(
            _Pixels(dataset.images, self.model, len(dataset.samples)),
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=_collate,
        )
        task = self.progress.add_task(name, total=len(dataset.samples))
        broken: dict[int, str] = {}
        features = None
        for indices, pixels, reasons in loader:
            broken |= reasons
            if len(indices):
                rows = self.model.embed_pixels(pixels)
                if features is None:
                    features = torch.zeros(len(dataset.samples), rows.shape[1])
                features[indices] = rows
            self.progress.advance(task, len(indices) + len(reasons))
        if features is None:
            first = dataset.samples[0].image
            raise UserError(
                f"{name}: none of {len(broken)} images can be read; the first, '{first}': "
                f"{broken[0]}"
            )
        return features, broken

    def _path(self, kind: str, *parts: str) -> Path:
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self.cache / f"{kind}-{digest[:32]}.safetensors"


@dataclass(frozen=True)
class ImageFeatures:
    """Embeddings of a dataset's images."""

    features: Tensor
    """float32 [N, D], unit rows; zeros for a broken image."""
    broken: dict[int, str]
    """Index of each image that can't be read -> why."""


class _Pixels(TorchDataset):
    """Decodes whole with Pillow and applies the model's own transform, as open_clip does."""

    def __init__(self, images: ImageSource, model: "Model", count: int) -> None:
        self.images, self.transform, self.count = images, model.transform, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        try:
            return index, self.transform(open_rgb(self.images.read(index))), ""
        except ImageError as error:
            return index, None, str(error)
        except OSError as error:
            return index, None, f"can't be read: {error.strerror}"


def _collate(
    items: list[tuple[int, Tensor | None, str]],
) -> tuple[Tensor, Tensor, dict[int, str]]:
    """(indices int64 [B], pixels [B, 3, H, W], index -> reason of the broken ones)."""
    good = [(index, pixels) for index, pixels, _ in items if pixels is not None]
    broken = {index: reason for index, pixels, reason in items if pixels is None}
    indices = torch.tensor([index for index, _ in good], dtype=torch.int64)
    return indices, torch.stack([p for _, p in good]) if good else torch.empty(0), broken


def _load(path: Path) -> tuple[Tensor, dict[str, str]] | None:
    """(features, reasons) of a kept file; None where there is none."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("features"), json.loads(file.metadata()["broken"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it") from None


def _store(path: Path, features: Tensor, broken: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    data = save({"features": features.contiguous()}, metadata={"broken": json.dumps(broken)})
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _hash_tokens(batches: Iterable[Any]) -> str:
    """SHA-256 of token ids, so that a changed tokenizer is seen even where texts are equal."""
    digest = hashlib.sha256()
    for tokens in batches:
        for part in tokens if isinstance(tokens, tuple) else (tokens,):
            digest.update(part.numpy().data if isinstance(part, Tensor) else str(part).encode())
    return digest.hexdigest()
