"""Where images, captions and labels come from: one module per layout, all alike from outside.

A dataset is opened without decoding any image: names, captions, rows of labels and a fingerprint.
The bytes of an image are read when the embedding pass asks for them.
"""

from collections.abc import Callable
from pathlib import Path

from eval.data_config import DataConfig
from eval.readers.base import Dataset as Dataset
from eval.readers.base import ImageSource as ImageSource
from eval.readers.base import Sample as Sample
from eval.readers.clip_benchmark import open_clip_benchmark
from eval.readers.coco import open_coco
from eval.readers.folders import open_folders
from eval.readers.hdf5 import open_hdf5
from eval.readers.huggingface import open_huggingface
from eval.readers.npz import open_npz
from eval.readers.shards import open_shard_folder
from eval.readers.table import open_table

READERS: dict[str, Callable[[DataConfig, Path], Dataset]] = {
    "shards": open_shard_folder,
    "table": open_table,
    "clip_benchmark": open_clip_benchmark,
    "folders": open_folders,
    "npz": open_npz,
    "hdf5": open_hdf5,
    "huggingface": open_huggingface,
    "coco": open_coco,
}


def open_dataset(data: DataConfig, root: Path) -> Dataset:
    """Open the dataset that a suite describes.

    Raises:
        UserError: missing files or columns, an empty split, a damaged file.
    """
    return READERS[data.reader](data, root)
