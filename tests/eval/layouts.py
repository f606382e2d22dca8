"""Small copies of the files of every data set that has a task, as their makers lay them out.

Names of files, columns and nesting are the real ones; pixels and labels are drawn. Each builder
takes the data_root.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.eval.tiny import draw

FINDINGS = [
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion"),
    *("Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion"),
    *("Pleural Other", "Fracture", "Support Devices"),
]


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(seed).save(path)


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    draw(seed).save(buffer, "PNG")
    return buffer.getvalue()


def table(path: Path, header: list[str], rows: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def document(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def parquet(path: Path, rows: list[dict], classes: dict[str, list[str]] | None = None) -> None:
    """As `datasets` writes it: the names of classes stand in the schema's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {
        name: {"names": names, "_type": "ClassLabel"} for name, names in (classes or {}).items()
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    written = pa.Table.from_pylist(rows).replace_schema_metadata(metadata)
    pq.write_table(written, path, row_group_size=2)


def arrow(path: Path, rows: list[dict]) -> None:
    """The stream that `datasets` keeps in its cache and on the Hub."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, written.schema) as stream:
        stream.write_table(written, max_chunksize=2)


def medmnist(name: str, classes: int, channels: int = 3) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        shape = (classes, 8, 8) if channels == 1 else (classes, 8, 8, 3)
        arrays = {}
        for i, split in enumerate(("train", "val", "test")):
            arrays[f"{split}_images"] = np.random.default_rng(i).integers(0, 256, shape, np.uint8)
            arrays[f"{split}_labels"] = np.arange(classes, dtype=np.uint8)[:, None]
            if name == "chest":
                arrays[f"{split}_labels"] = np.eye(classes, dtype=np.uint8)
                arrays[f"{split}_labels"][0] = 0  # no finding
        (root / "medmnist").mkdir()
        np.savez_compressed(root / "medmnist" / f"{name}mnist_224.npz", **arrays)

    return build


def pcam(root: Path) -> None:
    rows = [{"image": {"bytes": encoded(i), "path": None}, "label": i == 1} for i in range(3)]
    parquet(root / "PatchCamelyon/data/test-00000-of-00002-bb04e6313f58efa0.parquet", rows[:2])
    parquet(root / "PatchCamelyon/data/test-00001-of-00002-3bfa172e8818685a.parquet", rows[2:])
    parquet(root / "PatchCamelyon/data/train-00000-of-00013-4717c3cf92578c96.parquet", rows)


def pcam_hdf5(root: Path) -> None:
    import h5py

    (root / "pcam").mkdir()
    name = str(root / "pcam" / "camelyonpatch_level_2_split_test_{}.h5")
    with h5py.File(name.format("x"), "w") as file:
        pixels = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), np.uint8)
        file.create_dataset("x", data=pixels, chunks=(1, 96, 96, 3), compression="gzip")
    with h5py.File(name.format("y"), "w") as file:
        file.create_dataset("y", data=np.array([0, 1, 0], np.uint8).reshape(3, 1, 1, 1))


def lc25000(root: Path) -> None:
    for organ, kinds in (("lung", ("aca", "n", "scc")), ("colon", ("aca", "n"))):
        for kind in kinds:
            folder = root / f"lung_colon_image_set/{organ}_image_sets/{organ}_{kind}"
            for i in (1, 2):
                picture(folder / f"{organ}{kind}{i}.jpeg", i)
    (root / "lung_colon_image_set/lung_image_sets/lung_n/.DS_Store").write_bytes(b"x")
    (root / "lung_colon_image_set/lung_image_sets/lung_n/Thumbs.db").write_bytes(b"x")


def tcga_til(root: Path) -> None:
    for label in ("til-negative", "til-positive"):
        picture(root / "tcga_til/test" / label / "TCGA-05-4244-01Z-00-DX1_0.png")


def rsna(root: Path) -> None:
    """Patients have a row for each box; images were made PNG."""
    header = ["patientId", "x", "y", "width", "height", "Target"]
    rows = [["a", "", "", "", "", 0], ["b", 1, 2, 3, 4, 1], ["b", 5, 6, 7, 8, 1]]
    rows += [["c", "", "", "", "", 0], ["d", 1, 2, 3, 4, 1]]
    table(root / "rsna/stage_2_train_labels.csv", header, rows)
    splits = [["a", "test"], ["b", "test"], ["c", "val"], ["d", "train"]]
    table(root / "rsna/split.csv", ["patientId", "split"], splits)
    for i, name in enumerate("abcd"):
        picture(root / f"rsna/stage_2_train_images_png/{name}.png", i)


def bach(root: Path) -> None:
    names = ["Benign", "InSitu", "Invasive", "Normal", "Unknown"]
    rows = [{"image": {"bytes": encoded(i), "path": f"b{i}.tif"}, "label": i} for i in range(4)]
    parquet(
        root / "BACH/data/train-00000-of-00015-45961313a94a1995.parquet", rows, {"label": names}
    )


def nct_crc(root: Path) -> None:
    for label in ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"):
        picture(root / f"CRC-VAL-HE-7K/{label}/{label}-TCGA-AAICEQFN.tif")


def sicapv2(root: Path) -> None:
    header = ["image_name", "NC", "G3", "G4", "G5", "G4C"]
    rows = [[f"16B000185{i}.jpg", *np.eye(4, dtype=int)[i].tolist(), 0] for i in range(4)]
    table(root / "SICAPv2/partition/Test/Test.csv", header, rows)
    for row in rows:
        picture(root / "SICAPv2/images" / str(row[0]))


def ham10000(root: Path) -> None:
    """Images lie in two folders."""
    header = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    rows = []
    for i, dx in enumerate(("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")):
        rows.append([f"HAM_{i // 2}", f"ISIC_{i}", dx, "histo", "80.0", "male", "scalp"])
        picture(root / f"HAM10000/HAM10000_images_part_{1 + i % 2}/ISIC_{i}.jpg", i)
    table(root / "HAM10000/HAM10000_metadata.csv", header, rows)


def pad_ufes20(root: Path) -> None:
    rows = []
    for i, label in enumerate(("ACK", "BCC", "MEL", "NEV", "SCC", "SEK")):
        rows.append([f"PAT_{i}", "", f"PAT_{i}_1.png", label])
        picture(root / f"PAD-UFES-20/images/imgs_part_{1 + i % 3}/PAT_{i}_1.png", i)
    table(root / "PAD-UFES-20/metadata.csv", ["patient_id", "smoke", "img_id", "diagnostic"], rows)


def chexpert(root: Path) -> None:
    rows = []
    for i in range(3):
        name = f"test/patient6474{i}/study1/view1_frontal.jpg"
        rows.append([name, *[float((i + j) % 2) for j in range(len(FINDINGS))]])
        picture(root / "CheXpert" / name, i)
    table(root / "CheXpert/test_labels.csv", ["Path", *FINDINGS], rows)


def chestxray14(root: Path) -> None:
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age"]
    names = ["Atelectasis|Effusion", "No Finding", "Pleural_Thickening"]
    rows = [[f"0000000{i}_000.png", label, i, i, "058Y"] for i, label in enumerate(names)]
    table(root / "ChestXray14/Data_Entry_2017.csv", header, rows)
    splits = [[row[0], "train" if i == 2 else "test"] for i, row in enumerate(rows)]
    table(root / "ChestXray14/split.csv", ["Image Index", "split"], splits)
    for i, row in enumerate(rows):
        picture(root / f"ChestXray14/images_00{i + 1}/images" / str(row[0]), i)


def mimic_cxr(root: Path) -> None:
    """Two images of a study share its labels, which are 1, 0, -1 or nothing."""
    base = root / "mimic-cxr-jpg"
    images = [("d1", 50414267, 10000032), ("d2", 50414267, 10000032), ("d3", 53189527, 11000764)]
    splits = [[*image, "test"] for image in images] + [["d4", 1, 12000000, "train"]]
    columns = ["dicom_id", "study_id", "subject_id", "split"]
    table(base / "mimic-cxr-2.0.0-split.csv.gz", columns, splits)
    labels = ["Atelectasis", *[name for name in sorted(FINDINGS) if name != "Atelectasis"]]
    rows = [[10000032, 50414267, *[("1.0", "0.0", "-1.0", "")[i % 4] for i in range(14)]]]
    rows += [[11000764, 53189527, *["1.0" if i % 2 else "0.0" for i in range(14)]]]
    table(base / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id", "study_id", *labels], rows)
    captions = []
    for i, (dicom, study, subject) in enumerate(images):
        name = f"files/p{str(subject)[:2]}/p{subject}/s{study}/{dicom}.jpg"
        picture(base / name, i)
        captions.append([name, f'Report {study}: no focal consolidation, "clear".'])
    table(base / "mimic_cxr_double_image_test.csv", ["image_path", "caption"], captions)


def ms_cxr(root: Path) -> None:
    mimic_cxr(root)
    path = "files/p10/p10000032/s50414267/d1.jpg"
    header = ["dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h"]
    rows = [["d1", "Pneumonia", "opacity in the left base", path, 4, 5, 20, 15, 48, 40, "val"]]
    rows += [["d1", "Pneumonia", "opacity in the left base", path, 30, 5, 10, 15, 48, 40, "val"]]
    rows += [["d1", "Edema", "mild oedema", path, 1, 1, 9, 9, 48, 40, "test"]]
    header += ["image_width", "image_height", "split"]
    table(root / "ms-cxr/MS_CXR_Local_Alignment_v1.1.0.csv", header, rows)


def roco(root: Path) -> None:
    """Captions hold lone quotation marks and start with a blank."""
    folder = root / "roco-dataset/data/test/radiology"
    for i in range(2):
        picture(folder / f"images/ROCO_0000{i}.jpg", i)
    lines = 'ROCO_00000\t Axial "CT of the chest.\nROCO_00001\t MRI, T2-weighted.\n'
    (folder / "captions.txt").write_text(lines)


def rocov2(root: Path) -> None:
    rows = [
        {
            "image": {"bytes": encoded(i), "path": None},
            "image_id": f"ROCOv2_{i}",
            "caption": f"c{i}",
        }
        for i in range(3)
    ]
    rows = [{**row, "cui": ["C0040405"]} for row in rows]
    parquet(root / "ROCOv2/data/test-00000-of-00006.parquet", rows)


def quilt1m(root: Path) -> None:
    rows = [[0, "lymphoid tissue", "a.jpg", "val"], [1, "a follicle", "a.jpg", "val"]]
    rows += [[2, "squamous pearls", "b.jpg", "val"]]
    table(root / "quilt1m/quilt_1m_val.csv", ["", "caption", "image_path", "split"], rows)
    for i, name in enumerate("ab"):
        picture(root / f"quilt1m/quilt_1m/{name}.jpg", i)


def deepeyenet(root: Path) -> None:
    """A list of objects with one key each, the path."""
    content = []
    for i in range(2):
        name = f"eyenet0420/test_set/group1-{i}.jpg"
        picture(root / "DeepEyeNet" / name, i)
        content.append({name: {"keywords": "macular hole", "clinical-description": f"{i} years"}})
    document(root / "DeepEyeNet/DeepEyeNet_test.json", content)


def vqa_rad(root: Path) -> None:
    """Types of answers have blanks behind them, some answers are numbers."""
    rows = []
    asked = [
        ("test_freeform", "Yes", "CLOSED "),
        ("test_para", "no", "CLOSED"),
        ("para", "No", "CLOSED"),
        ("freeform", "left lung", "OPEN"),
        ("test_freeform", 2, "OPEN"),
    ]
    for i, (phrase, answer, kind) in enumerate(asked):
        rows.append(
            {
                "qid": i, "phrase_type": phrase, "image_name": f"synpic{i % 2}.jpg",
                "image_organ": "CHEST", "answer": answer, "answer_type": kind,
                "question_type": "PRES", "question": f"Is it so {i}?", "qid_linked_id": "03f4",
            }
        )  # fmt: skip
    for i in range(2):
        picture(root / f"VQA-RAD/VQA_RAD Image Folder/synpic{i}.jpg", i)
    document(root / "VQA-RAD/VQA_RAD Dataset Public.json", rows)


def slake(root: Path) -> None:
    rows = []
    for i, (language, answer) in enumerate(
        [("en", "Yes"), ("en", "No"), ("zh", "是的"), ("en", "MRI")]
    ):
        rows.append(
            {
                "img_id": 102, "img_name": f"xmlab{i % 2}/source.jpg", "question": f"Is it {i}?",
                "answer": answer, "q_lang": language, "location": "Lung", "modality": "X-Ray",
                "answer_type": "CLOSED", "base_type": "vqa", "content_type": "Organ",
                "triple": ["vhead", "_", "_"], "qid": i,
            }
        )  # fmt: skip
    for i in range(2):
        picture(root / f"SLAKE/imgs/xmlab{i}/source.jpg", i)
    document(root / "SLAKE/test.json", rows)


def pathvqa(root: Path) -> None:
    """Every question brings its image along."""
    answers = ["yes", "no", "in the lumen", "yes"]
    rows = [
        {"image": {"bytes": encoded(i // 2), "path": None}, "question": f"q{i}?", "answer": answer}
        for i, answer in enumerate(answers)
    ]
    parquet(root / "PathVQA/data/test-00000-of-00003-e9adadb4799f44d3.parquet", rows)


def pmc_vqa(root: Path) -> None:
    header = ["Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D"]
    rows = [
        ["PMC1_F1.jpg", "What is shown?", "CT", " A: CT ", " B: MRI", " C: X-ray", " D: PET"],
        ["PMC2_F3.jpg", "Which stain?", "PAS", " A: H&E", " B:PAS ", " C: Giemsa", " D: Gram"],
    ]
    table(root / "PMC-VQA/test.csv", header, rows)
    for row in rows:
        picture(root / "PMC-VQA/images" / row[0])


def omnimedvqa(root: Path) -> None:
    """A file per source; the fourth option may be missing, one column is called otherwise."""
    base = root / "OmniMedVQA"
    item = {
        "dataset": "ACRIMA", "question_id": "ACRIMA_0000", "question_type": "Disease Diagnosis",
        "question": "What is it?", "gt_answer": "Glaucoma", "image_path": "Images/ACRIMA/a.png",
        "option_A": "Glaucoma", "option_B": "Cataract", "option_C": "Normal", "option_D": "Myopia",
        "modality_type": "Fundus Photography",
    }  # fmt: skip
    other = {**item, "dataset": "Chest CT", "question_id": "CT_1", "image_path": "Images/CT/b.png"}
    other["modality"] = other.pop("modality_type")
    del other["option_D"]
    document(base / "QA_information/Open-access/ACRIMA.json", [item])
    document(base / "QA_information/Open-access/Chest CT Scan.json", [other])
    picture(base / "Images/ACRIMA/a.png", 0)
    picture(base / "Images/CT/b.png", 1)


def quilt_vqa(root: Path) -> None:
    rows = [
        {
            "image": {"bytes": encoded(i // 2), "path": None}, "question": f"q{i}?",
            "answer": ("Yes", "no", "keratin")[i], "answer_type": ("CLOSED", "CLOSED", "OPEN")[i],
            "context": "so he says",
        }
        for i in range(3)
    ]  # fmt: skip
    parquet(root / "Quilt_VQA/data/train-00000-of-00001.parquet", rows)


def ubench(root: Path) -> None:
    """Questions that don't apply are null, as are the sources of some rows."""

    def asked(kind: str, options: list[str], i: int) -> dict:
        text = {"question": f"{kind}?", "options": options, "answer": options[i % len(options)]}
        return {**text, "answer_idx": i % len(options), "id": f"{i}{kind}", "name": kind}

    rows = []
    for i in range(3):
        captions = {
            "modality": asked("modality", ["a light micrograph", "an electron micrograph"], i),
            "modality_1": asked("modality_1", ["light microscopy", "electron microscopy"], i),
            "stain": asked("stain", ["stained with H&E", "unstained"], i) if i else None,
            "classification_0": asked("classification_0", ["a cell", "a pollen", "a fibre"], i),
            "classification_1": asked("classification_1", ["cell", "pollen", "fibre"], i),
        }
        rows.append(
            {
                "image_id": f"im{i}", "image": {"bytes": encoded(i), "path": None}, "label": i,
                "dataset": None if i == 2 else "kather_et_al_2016", "captions": captions,
                "questions": captions, "polygon": None,
            }
        )  # fmt: skip
    arrow(root / "uBench/perception/0.1.0/ubench-test-00000-of-00002.arrow", rows[:2])
    arrow(root / "uBench/perception/0.1.0/ubench-test-00001-of-00002.arrow", rows[2:])


ORGANS = {f"medmnist_organ{plane}": medmnist(f"organ{plane}", 11, 1) for plane in "acs"}
LAYOUTS: dict[str, Callable[[Path], None]] = {
    "pcam": pcam,
    "pcam_hdf5": pcam_hdf5,
    "lc25000_lung": lc25000,
    "lc25000_colon": lc25000,
    "tcga_til": tcga_til,
    "rsna_pneumonia": rsna,
    "rsna_pneumonia_biovil": rsna,
    "bach": bach,
    "nct_crc": nct_crc,
    "sicapv2": sicapv2,
    "ham10000": ham10000,
    "pad_ufes20": pad_ufes20,
    "chexpert_five": chexpert,
    "chestxray14": chestxray14,
    "mimic_cxr_findings": mimic_cxr,
    "mimic_cxr_retrieval": mimic_cxr,
    "ms_cxr": ms_cxr,
    "roco": roco,
    "rocov2": rocov2,
    "quilt1m_retrieval": quilt1m,
    "deepeyenet_retrieval": deepeyenet,
    "vqa_rad": vqa_rad,
    "slake": slake,
    "pathvqa": pathvqa,
    "pmc_vqa": pmc_vqa,
    "omnimedvqa": omnimedvqa,
    "quilt_vqa": quilt_vqa,
    "ubench_coarse": ubench,
    "ubench_fine": ubench,
    "medmnist_path": medmnist("path", 9),
    "medmnist_chest": medmnist("chest", 14, 1),
    "medmnist_derma": medmnist("derma", 7),
    "medmnist_oct": medmnist("oct", 4, 1),
    "medmnist_pneumonia": medmnist("pneumonia", 2, 1),
    "medmnist_retina": medmnist("retina", 5),
    "medmnist_breast": medmnist("breast", 2, 1),
    "medmnist_blood": medmnist("blood", 8),
    "medmnist_tissue": medmnist("tissue", 8, 1),
    **ORGANS,
}
"""Task -> what writes its files. The task pmc_retrieval reads shards, whose tests are elsewhere."""
