"""Folders of data_prep: tars with index.parquet and manifest.json."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq

from eval.data_config import DataConfig
from eval.readers.base import Dataset, Sample, read_span
from eval.tables import Row, columns, read_table, text
from vlp.config import UserError
from vlp.data.index import open_shards


def open_shard_folder(data: DataConfig, root: Path) -> Dataset:
    """A folder of data_prep, with an optional table of labels joined on the sample's `image`."""
    path = root / data.path
    shards = open_shards(path, data.split)
    table = pq.read_table(
        path / "index.parquet", columns=["shard", "image_offset", "json_offset", "json_size"]
    )
    spans = {(row["shard"], row["image_offset"]): row for row in table.to_pylist()}
    labels = _rows_by_image(root / data.labels) if data.labels else None
    samples = []
    for i in range(len(shards)):
        shard, offset = shards.shards[shards.shard_of[i]], int(shards.spans[i, 0])
        record = _json_member(path / shard, spans[shard, offset])
        image = text(record.get("image")) or shards.key(i)
        nested = record.get("row")  # what the table stage passes through
        own = {**record, **(nested if isinstance(nested, dict) else {}), "image": image}
        rows = [own] if labels is None else [{**own, **row} for row in labels.get(image, [])]
        samples.append(Sample(image, [shards.caption(i)], rows))
    if labels is not None and not any(sample.rows for sample in samples):
        raise UserError(
            f"{root / data.labels}: no row belongs to an image of {path}; its images are called "
            f"like '{next(iter(labels))}', those of the shards like '{samples[0].image}'"
        )
    manifest = hashlib.sha256((path / "manifest.json").read_bytes() + data.split.encode())
    every = [row for rows in labels.values() for row in rows] if labels is not None else []
    return Dataset(
        samples=samples,
        fingerprint=manifest.hexdigest(),
        every_row=every or [row for sample in samples for row in sample.rows],
        images=_ShardImages(path, data.split),
    )


class _ShardImages:
    """Opens the folder anew in each worker: file descriptors don't travel."""

    def __init__(self, path: Path, split: str) -> None:
        self.path, self.split = path, split
        self.shards = open_shards(path, split)

    def read(self, index: int) -> bytes:
        return self.shards.read(index).image

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self.path, self.split)


def _json_member(path: Path, span: Row) -> Row:
    """The sample's JSON; {} for shards of other makers, which may have none."""
    if span["json_offset"] is None:
        return {}
    raw = read_span(path, span["json_offset"], span["json_size"])
    try:
        record = json.loads(raw)
    except ValueError as error:
        raise UserError(
            f"{path}: byte {span['json_offset']}: not JSON: {error}; index again"
        ) from None
    return record if isinstance(record, dict) else {}


def _rows_by_image(path: Path) -> dict[str, list[Row]]:
    rows = read_table(path)
    if "image" not in columns(rows):
        raise UserError(f"{path}: no column 'image' to join on; it has {', '.join(columns(rows))}")
    by_image: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_image[text(row.get("image"))].append(row)
    return dict(by_image)
