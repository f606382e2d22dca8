"""Where the images and labels of a task are, in which layout, and how one gets them."""

from dataclasses import dataclass, field
from typing import Literal

from omegaconf import MISSING

READER_NAMES = Literal[
    "shards", "clip_benchmark", "table", "folders", "npz", "hdf5", "huggingface", "coco"
]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where a task's images come from, and the table that says what is on them."""

    reader: READER_NAMES = MISSING
    """`shards`: a folder of data_prep; `clip_benchmark`: a WebDataset folder in the layout of
    CLIP_benchmark; `table`: a CSV, TSV, JSON, JSONL or Parquet file with a column of image paths;
    `folders`: a folder for each class; `npz`: MedMNIST's arrays; `hdf5`: PatchCamelyon's;
    `huggingface`: Parquet or Arrow files that hold the images; `coco`: images and boxes."""
    path: str = MISSING
    """The folder or file; relative to data_root. {split} stands for the split, and in a table's or
    Hugging Face path * for anything."""
    split: str = "test"
    """Which split to score, or several as in a|b; '' takes everything."""
    train_split: str = "train"
    """The split or splits to which `python -m eval probe` fits."""
    val_split: str = "val"
    """The split on which a probe's regularisation is chosen; where the data has none, a fifth of
    the training split is held out."""
    labels: str = ""
    """For shards: a table (CSV, JSONL, Parquet) joined on the sample's `image`; relative to
    data_root. Without it the sample's own JSON is the one row. For hdf5: the file of labels."""
    image_root: str = ""
    """For tables and coco: the folder to which image paths are relative (and which they can't
    leave); relative to data_root. With a *, as in part_*, an image may be in any of the folders.
    Empty: the table's folder."""
    image_column: str = "image"
    """For tables and Hugging Face: the column of images. For tables it may be put together from
    several: "files/{subject}/{image_id}.jpg"; {subject:.2} is the first two letters."""
    caption_column: str = "caption"
    """For tables and Hugging Face: the column of captions (a string or a list of them); used by
    retrieval."""
    split_column: str = "split"
    """For tables: the column of split names; not used where {split} is in the path."""
    header: list[str] = field(default_factory=list, hash=False)
    """For tables without a header: the names of their columns."""
    join: dict[str, str] = field(default_factory=dict, hash=False)
    """For tables: further tables, each with the column on which its rows are added:
    {split.csv: study_id}; relative to data_root."""
    one_hot: list[str] = field(default_factory=list, hash=False)
    """For tables with a column of 0 and 1 per class: these columns; the first of the highest names
    the row's `label`."""
    columns: list[str] = field(default_factory=list, hash=False)
    """For Hugging Face: the columns that are read besides the image. Empty: all."""
    same_images: bool = False
    """For Hugging Face: rows whose image is the same to the byte are one image with several rows,
    as where every question repeats it. Reads the files once more."""


@dataclass(frozen=True, kw_only=True)
class OriginConfig:
    """Where a data set can be had, and on which terms."""

    licence: str = ""
    """As its makers state it; empty where they state none."""
    access: Literal["open", "registration", "agreement", "ours"] = "open"
    """`open`: anyone may download it; `registration`: after signing in; `agreement`: after signing
    terms or a course; `ours`: made by this project."""
    page: str = ""
    """The makers' page."""
    get: str = ""
    """What to do by hand, exactly; docs/datasets.md has the longer ones."""
    files: dict[str, str] = field(default_factory=dict)
    """What `fetch` downloads: file below data_root -> URL."""
    md5: dict[str, str] = field(default_factory=dict)
    """File below data_root -> MD5 that its makers published."""
    unpack: dict[str, str] = field(default_factory=dict)
    """Archive (zip, tar) of `files` -> folder below data_root into which it is unpacked."""
    hub: str = ""
    """A Hugging Face data set, for `fetch`: ORG/NAME, with an optional @REVISION."""
    hub_files: list[str] = field(default_factory=list)
    """Patterns of its files, such as data/test-*; all of them if empty."""
    hub_folder: str = ""
    """The folder below data_root for them."""
