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
from eval.team import Team
from vlp.config import UserError
from vlp.data.image import ImageError, open_rgb

if TYPE_CHECKING:  # imports open_clip, which takes seconds
    from eval.model import Model

CHUNK = 4096  # texts that are tokenised at a time
LAYOUT = "2"  # of the kept files; part of their names
PROBE = "Figure 1: H&E-stained section; T2-weighted MRI, 3.5 µm (n = 12)"
"""A text by whose tokens tokenizers are told apart."""


@dataclass(frozen=True)
class Embedder:
    """Embeds with one model and keeps the results in one folder."""

    model: "Model"
    cache: Path
    batch_size: int = 64
    workers: int = 0
    progress: Progress = field(default_factory=lambda: Progress(disable=True))
    team: Team = field(default_factory=Team)
    """The processes among which batches are split; rank 0 asks, the others `help`."""

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
        if found is None:
            self.team.tell(("images", dataset.fingerprint, name))
            found = self._embed_images(dataset, name)
            _store(kept, found)
        return found

    def texts(self, texts: Sequence[str], name: str = "texts", unit: bool = True) -> Tensor:
        """Rows float32 [len(texts), D]; of length 1 unless `unit` is false."""
        chunks = [texts[i : i + CHUNK] for i in range(0, len(texts), CHUNK)]
        tokens = _hash_tokens(self.model.tokenize(chunk) for chunk in chunks)
        kind = "texts" if unit else "raw-texts"
        kept = self._path(kind, self.model.sha256, tokens)
        found = _load(kept)
        if found is None:
            self.team.tell((kind, list(texts), name))
            found = ImageFeatures(self._embed_texts(texts, name, unit), {})
            _store(kept, found)
        return found.features

    def tokenizer_sha256(self) -> str:
        """SHA-256 of the token ids of one text."""
        return _hash_tokens([self.model.tokenize([PROBE])])

    def help(self, datasets: Iterable[Dataset]) -> None:
        """Embed this rank's share of what rank 0 asks for, until it is done.

        Raises:
            UserError: this rank's files are not those of rank 0.
        """
        known = {dataset.fingerprint: dataset for dataset in datasets}
        for kind, content, name in self.team.requests():
            if kind in ("texts", "raw-texts"):
                self._embed_texts(content, name, unit=kind == "texts")
            elif content in known:
                self._embed_images(known[content], name)
            else:
                raise UserError(f"{name}: other files on rank {self.team.rank} than on rank 0")

    def _embed_images(self, dataset: Dataset, name: str) -> "ImageFeatures":
        """Embeds this rank's batches; returns the rows of all ranks."""
        batches = self._share(len(dataset.samples))
        loader: DataLoader = DataLoader(
            _Pixels(dataset.images, self.model, len(dataset.samples)),
            batch_sampler=[list(batch) for batch in batches],
            num_workers=self.workers,
            collate_fn=_collate,
        )
        task = self.progress.add_task(name, total=sum(map(len, batches)))
        broken: dict[int, str] = {}
        digests: dict[int, bytes] = {}
        parts: list[tuple[Tensor, Tensor]] = []
        for indices, pixels, reasons, hashes in loader:
            broken |= reasons
            digests |= hashes
            if len(indices):
                parts.append((indices, self.model.embed_pixels(pixels)))
            self.progress.advance(task, len(indices) + len(reasons))

        width = parts[0][1].shape[1] if parts else 0
        shares = self.team.gather((width, broken, digests))
        broken = {i: reason for _, found, _ in shares for i, reason in found.items()}
        digests = {i: digest for _, _, found in shares for i, digest in found.items()}
        if len(broken) == len(dataset.samples):
            first = dataset.samples[0].image
            raise UserError(
                f"{name}: none of {len(broken)} images can be read; the first, '{first}': "
                f"{broken[0]}"
            )
        features = torch.zeros(len(dataset.samples), max(width for width, _, _ in shares))
        for indices, rows in parts:
            features[indices] = rows
        sha256 = hashlib.sha256(b"".join(digests[i] for i in sorted(digests))).hexdigest()
        return ImageFeatures(self.team.add(features), dict(sorted(broken.items())), sha256)

    def _embed_texts(self, texts: Sequence[str], name: str, unit: bool) -> Tensor:
        """Embeds this rank's batches; returns the rows of all ranks."""
        batches = self._share(len(texts))
        task = self.progress.add_task(name, total=sum(map(len, batches)))
        parts = []
        for batch in batches:
            parts.append((batch, self.model.embed_texts(texts[batch.start : batch.stop], unit)))
            self.progress.advance(task, len(batch))
        width = max(self.team.gather(parts[0][1].shape[1] if parts else 0))
        features = torch.zeros(len(texts), width)
        for batch, rows in parts:
            features[batch.start : batch.stop] = rows
        return self.team.add(features)

    def _share(self, count: int) -> list[range]:
        """This rank's batches. Which rows make a batch doesn't depend on the number of ranks, so
        the numbers don't either."""
        size = self.batch_size
        batches = [range(i, min(i + size, count)) for i in range(0, count, size)]
        return batches[self.team.rank :: self.team.size]

    def _path(self, kind: str, *parts: str) -> Path:
        digest = hashlib.sha256("\0".join([LAYOUT, *parts]).encode()).hexdigest()
        return self.cache / f"{kind}-{digest[:32]}.safetensors"


@dataclass(frozen=True)
class ImageFeatures:
    """Embeddings of a dataset's images."""

    features: Tensor
    """float32 [N, D], unit rows; zeros for a broken image."""
    broken: dict[int, str]
    """Index of each image that can't be read -> why."""
    sha256: str = ""
    """Over the SHA-256 of each image's bytes: equal on any machine that has the same files."""


class _Pixels(TorchDataset):
    """Decodes whole with Pillow and applies the model's own transform, as open_clip does."""

    def __init__(self, images: ImageSource, model: "Model", count: int) -> None:
        self.images, self.transform, self.count = images, model.transform, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str, bytes]:
        """(index, pixels, why there are none, SHA-256 of the bytes or nothing)."""
        digest = b""
        try:
            data = self.images.read(index)
            digest = hashlib.sha256(data).digest()
            return index, self.transform(open_rgb(data)), "", digest
        except ImageError as error:
            return index, None, str(error), digest
        except OSError as error:
            return index, None, f"can't be read: {error.strerror}", digest


def _collate(
    items: list[tuple[int, Tensor | None, str, bytes]],
) -> tuple[Tensor, Tensor, dict[int, str], dict[int, bytes]]:
    """(indices int64 [B], pixels [B, 3, H, W], index -> reason of the broken ones, -> SHA-256)."""
    good = [(index, pixels) for index, pixels, _, _ in items if pixels is not None]
    broken = {index: reason for index, pixels, reason, _ in items if pixels is None}
    digests = {index: digest for index, _, _, digest in items}
    indices = torch.tensor([index for index, _ in good], dtype=torch.int64)
    stacked = torch.stack([pixels for _, pixels in good]) if good else torch.empty(0)
    return indices, stacked, broken, digests


def _load(path: Path) -> ImageFeatures | None:
    """What a kept file holds; None where there is none."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            broken = {int(i): reason for i, reason in json.loads(about["broken"]).items()}
            # The file's bytes lie at any address, and products of unaligned rows may differ in the
            # last bit: a copy gives the numbers of the first run.
            return ImageFeatures(file.get_tensor("features").clone(), broken, about["sha256"])
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it") from None


def _store(path: Path, found: ImageFeatures) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    about = {"broken": json.dumps(found.broken), "sha256": found.sha256}
    temporary.write_bytes(save({"features": found.features.contiguous()}, metadata=about))
    os.replace(temporary, path)


def _hash_tokens(batches: Iterable[Any]) -> str:
    """SHA-256 of token ids, so that a changed tokenizer is seen even where texts are equal."""
    digest = hashlib.sha256()
    for tokens in batches:
        for part in tokens if isinstance(tokens, tuple) else (tokens,):
            digest.update(part.numpy().data if isinstance(part, Tensor) else str(part).encode())
    return digest.hexdigest()
