"""A small open_clip model with random weights, and images that it tells apart."""

import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

from eval.config import EvalConfig
from eval.model import Model
from vlp.config import UserError, load_config

MODEL_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


TASKS = {
    "kinds": {
        "kind": "classification",
        "source": "made up",
        "data": {"reader": "table", "path": "set/index.jsonl"},
        "classes": {"mass": ["mass"], "none": ["nothing"]},
        "templates": ["an image of {c}"],
    },
    "pairs": {
        "kind": "retrieval",
        "source": "made up",
        "data": {"reader": "table", "path": "set/index.jsonl"},
        "ks": [1, 2],
    },
}
"""Two tasks on one table of images with labels and captions."""

WORDS = ("arrow", "nuclei", "lesion", "left", "liver", "stain", "cell", "lung", "colon", "heart")


def model_input(image: Image.Image) -> torch.Tensor:
    """float32 [3, 32, 32] as the model's evaluation transform gives it, up to rounding."""
    config = open_clip.transform.PreprocessCfg(size=32)
    return open_clip.transform.image_transform_v2(config, is_train=False)(image)


def embed_images(model: Model, images: Sequence[Image.Image]) -> torch.Tensor:
    """RGB images -> unit rows [B, D], the obvious way."""
    return model.embed_pixels(torch.stack([model.transform(image) for image in images]))


def write_model(folder: Path, seed: int = 0) -> Path:
    """A folder that open_clip loads by `local-dir:`.

    Fresh weights map all images, and all texts, to nearly the same point, so that a comparison of
    scores would say nothing: larger weights in the first layers, and centred last layers, spread
    them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = open_clip.CLIP(**json.loads(json.dumps(MODEL_CONFIG))).eval()
    pixels = torch.stack([model_input(draw(i)) for i in range(32)])
    tokens = open_clip.get_tokenizer("ViT-B-32")([f"{a} {b}" for a in WORDS for b in WORDS], 32)
    with torch.no_grad():
        model.visual.conv1.weight.mul_(20)
        model.token_embedding.weight.mul_(100)
        for norm, projection, encode in (
            (model.visual.ln_post, model.visual.proj, lambda: model.encode_image(pixels)),
            (model.ln_final, model.text_projection, lambda: model.encode_text(tokens)),
        ):
            mean = encode().mean(dim=0)
            # feature = norm @ projection, so this bias moves the mean of the features to 0.
            norm.bias.sub_(torch.linalg.lstsq(projection.T, mean[:, None]).solution[:, 0])
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": {"size": 32}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def draw(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """An RGB image of smooth random colour, different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def write_table(folder: Path, rows: list[dict], name: str = "index.jsonl") -> Path:
    """A JSONL table and an image for every row; image i is `draw(i)`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        for i, row in enumerate(rows):
            image = row.get("image", f"{i:03}.png")
            if not (folder / image).exists():
                draw(i).save(folder / image)
            file.write(json.dumps({"image": image, **row}) + "\n")
    return folder / name


def suite_config(root: Path, model: Path, tasks: dict, **keys: object) -> EvalConfig:
    """An EvalConfig as from YAML, with few resamples."""
    whole = {
        "name": "suite",
        "model": f"local-dir:{model}",
        "data_root": str(root),
        "out": str(root / "out"),
        "device": "cpu",
        "workers": 0,
        "replicates": 100,
        "tasks": tasks,
        **keys,
    }
    path = root / "suite.yaml"
    OmegaConf.save(OmegaConf.create(whole), path)
    return load_config(EvalConfig, [str(path)])


def fails(message: str) -> AbstractContextManager:
    """Expect a UserError that contains exactly this text."""
    return pytest.raises(UserError, match=re.escape(message))
