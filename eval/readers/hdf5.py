"""PatchCamelyon's HDF5 files: one with the pixels, one with the labels."""

from pathlib import Path
from typing import Any

from eval.data_config import DataConfig
from eval.readers.base import Dataset, Sample, fingerprint_files, png
from vlp.config import UserError, need


def open_hdf5(data: DataConfig, root: Path) -> Dataset:
    """`path` holds uint8 [N, H, W, 3] or [N, H, W], `labels` N numbers; {split} in both."""
    path, labels = (root / name.replace("{split}", data.split) for name in (data.path, data.labels))
    if not data.labels:
        raise UserError(f"{path}: set data.labels to the file of labels")
    pixels, numbers = _only_array(path), _only_array(labels)
    if pixels.dtype != "uint8" or pixels.ndim not in (3, 4):
        raise UserError(f"{path}: not 8-bit images [N, H, W, 3], but {pixels.dtype} {pixels.shape}")
    if numbers.size != len(pixels):
        raise UserError(f"{labels}: {numbers.size} labels for {len(pixels)} images of {path.name}")
    samples = []
    for i, number in enumerate(numbers[...].reshape(-1).tolist()):
        name = f"{data.split}/{i:06d}"
        samples.append(Sample(name, [], [{"image": name, "label": str(number)}]))
    return Dataset(
        samples=samples,
        fingerprint=fingerprint_files([path, labels]),
        every_row=[row for sample in samples for row in sample.rows],
        images=_Hdf5Images(path),
    )


class _Hdf5Images:
    """Opens the file anew in each process: HDF5 handles don't survive a fork."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array: Any = None

    def read(self, index: int) -> bytes:
        """The image as PNG."""
        if self._array is None:
            self._array = _only_array(self.path)
        return png(self._array[index])

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return type(self), (self.path,)


def _only_array(path: Path) -> Any:
    need("h5py", f"{path}: reading HDF5")
    import h5py

    if not path.is_file():
        raise UserError(f"{path}: no such file; set data_root or the suite's path")
    try:
        arrays = [item for item in h5py.File(path, "r").values() if isinstance(item, h5py.Dataset)]
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: not readable as HDF5: {error}") from None
    if len(arrays) != 1:
        raise UserError(f"{path}: {len(arrays)} arrays, expected one, as in PatchCamelyon's files")
    return arrays[0]
