"""Every training configuration of the repository loads, alone or after the recipe it changes."""

import dataclasses
from pathlib import Path

import pytest
import timm
import torch

from vlp.config import load_config
from vlp.models.dual_encoder import DualEncoder, ModelConfig
from vlp.models.vision_tower import ImageConfig
from vlp.optim import OptimizerConfig
from vlp.trainer import Config

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPE = CONFIGS / "biomedclip.yaml"
OVERLAYS = sorted([*CONFIGS.glob("ablations/*.yaml"), *CONFIGS.glob("hardware/*.yaml")])


def overlay(path: Path) -> Config:
    return load_config(Config, [str(RECIPE), str(path)])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_loads_alone(path: Path) -> None:
    config = load_config(Config, [str(path)])
    assert config.name == path.stem
    assert config.data.sources
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_changes_the_recipe(path: Path) -> None:
    assert overlay(path) != load_config(Config, [str(RECIPE)])
    assert path.read_text().startswith("# ")  # which says what it is for, and the paper's result


@pytest.mark.parametrize("path", [RECIPE, *OVERLAYS], ids=lambda path: path.stem)
def test_its_towers_can_be_built(path: Path) -> None:
    with torch.device("meta"):
        model = DualEncoder(dataclasses.replace(overlay(path).model, init=""))
    image = overlay(path).model.image
    if image.pretrained == "timm":
        assert timm.list_pretrained(image.name + "*"), f"timm has no weights of {image.name}"
    assert model.visual.trunk.default_cfg["input_size"][-1] == image.size


def test_the_recipe_is_the_papers() -> None:
    """Table 9 and the released checkpoint; a change of a default can't change the recipe unseen."""
    config = load_config(Config, [str(RECIPE)])
    assert config.optimizer == OptimizerConfig(
        learning_rate=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, warmup_steps=2000
    )
    text = dataclasses.replace(config.model.text, init="")
    image = dataclasses.replace(config.model.image, pretrained="")
    assert dataclasses.replace(config.model, text=text, image=image) == ModelConfig()
    assert image == ImageConfig(name="vit_base_patch16_224", size=224)
    assert (text.width, text.layers, text.heads, text.mlp_width) == (768, 12, 12, 3072)
    assert (text.context_length, text.proj) == (256, "mlp")
    train = config.train
    assert (train.batch_size, train.epochs, train.precision) == (4096, 32, "bf16")
    assert train.activation_checkpointing
    assert config.loss.name == "infonce"


def test_sizes_of_the_papers_towers() -> None:
    """In millions: ViT-S 22, ViT-M 39, ViT-B 86."""
    for name, millions in (("image_vit_s", 22), ("image_vit_m", 39), ("epochs_8", 86)):
        with torch.device("meta"):
            model = DualEncoder(overlay(CONFIGS / "ablations" / f"{name}.yaml").model)
        count = sum(parameter.numel() for parameter in model.visual.trunk.parameters())
        assert count / 1e6 == pytest.approx(millions, abs=1)
