"""A small open_clip model with random weights, and images that it tells apart."""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

MODEL_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def write_model(folder: Path, seed: int = 0) -> Path:
    """A folder that open_clip loads by `local-dir:`.

    Fresh weights map all images, and all texts, to nearly the same point. Larger ones in the
    first layers spread them, so that a comparison of scores says something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = open_clip.CLIP(**json.loads(json.dumps(MODEL_CONFIG)))
    with torch.no_grad():
        model.visual.conv1.weight.mul_(20)
        model.token_embedding.weight.mul_(100)
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
