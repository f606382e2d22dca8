"""Every shipped task reads a small copy of its data set's real files."""

from pathlib import Path

import pytest

from eval.config import TaskConfig
from eval.readers import open_dataset
from eval.suite import KINDS
from eval.tables import text
from tests.eval.layouts import LAYOUTS
from vlp.config import load_config
from vlp.data.image import open_rgb

TASKS = Path(__file__).parents[2] / "configs" / "eval" / "tasks"
SHARDS = {"pmc_retrieval"}
"""Tasks whose reader is tested on shards of our own."""
EXPECT = {
    # images of the split, rows, captions of the first image
    "rsna_pneumonia": (2, 3, 0),
    "rsna_pneumonia_biovil": (3, 4, 0),
    "nct_crc": (9, 9, 0),
    "mimic_cxr_findings": (3, 3, 0),
    "mimic_cxr_retrieval": (3, 3, 1),
    "ms_cxr": (1, 3, 0),
    "quilt1m_retrieval": (2, 3, 2),
    "chestxray14": (2, 2, 0),
    "vqa_rad": (2, 3, 0),
    "slake": (2, 4, 0),
    "pathvqa": (2, 4, 0),
    "quilt_vqa": (2, 3, 0),
    "omnimedvqa": (2, 2, 0),
    "ubench_fine": (3, 3, 0),
    "roco": (2, 2, 1),
    "pcam": (3, 3, 0),
    "medmnist_chest": (14, 14, 0),
}


def shipped() -> list[str]:
    names = {path.stem for path in TASKS.glob("*.yaml")}
    return sorted(n for n in names - SHARDS if not n.startswith(("phantom_", "small_")))


@pytest.mark.parametrize("name", shipped())
def test_the_real_layout_is_read(tmp_path: Path, name: str) -> None:
    if name == "pcam_hdf5":
        pytest.importorskip("h5py")
    task = load_config(TaskConfig, [str(TASKS / f"{name}.yaml")])
    LAYOUTS[name](tmp_path)
    found = open_dataset(task.data, tmp_path)
    KINDS[task.kind].check(name, task, found)
    for i in range(len(found.samples)):
        assert min(open_rgb(found.images.read(i)).size) >= 8
    assert len({sample.image for sample in found.samples}) == len(found.samples)
    if name in EXPECT:
        rows = sum(len(sample.rows) for sample in found.samples)
        captions = len(found.samples[0].captions)
        assert (len(found.samples), rows, captions) == EXPECT[name]


def test_odd_cases_of_the_layouts(tmp_path: Path) -> None:
    def rows(name: str) -> list[dict]:
        root = tmp_path / name
        if not root.exists():
            root.mkdir()
            LAYOUTS[name](root)
        task = load_config(TaskConfig, [str(TASKS / f"{name}.yaml")])
        return [row for s in open_dataset(task.data, root).samples for row in s.rows]

    assert [row["label"] for row in rows("sicapv2")] == ["NC", "G3", "G4", "G5"]
    assert rows("mimic_cxr_findings")[1]["Cardiomegaly"] == "0.0", "both images of the study"
    assert rows("rsna_pneumonia")[1]["width"] == "3"
    assert [row["caption"] for row in rows("roco")] == [
        ' Axial "CT of the chest.',
        " MRI, T2-weighted.",
    ]
    assert {text(row["answer"]) for row in rows("vqa_rad")} == {"Yes", "no", "2"}
    assert [row["label_name"] for row in rows("bach")] == ["Benign", "InSitu", "Invasive", "Normal"]
    assert [row["label"] for row in rows("pcam")] == [False, True, False]
    assert rows("medmnist_chest")[0]["label"] == []
    assert rows("medmnist_chest")[3]["label"] == ["3"]
    assert "polygon" not in rows("ubench_coarse")[0]
    assert rows("ubench_fine")[0]["captions"]["stain"] is None
    assert {row.get("modality_type") for row in rows("omnimedvqa")} == {"Fundus Photography", None}
