"""Small models and vocabularies for tests; nothing is downloaded."""

from pathlib import Path

from vlp.data.text import CaptionTokenizer, train_wordpiece
from vlp.models.dual_encoder import ModelConfig
from vlp.models.text_tower import TextConfig
from vlp.models.vision_tower import ImageConfig

MODEL = ModelConfig(
    embed_dim=24,
    image=ImageConfig(name="test_vit", size=160),
    text=TextConfig(
        vocab_size=120,
        context_length=24,
        max_positions=32,
        width=32,
        layers=3,
        heads=4,
        mlp_width=48,
        proj="mlp",
    ),
)

CAPTIONS = [
    "Chest radiograph shows a left pleural effusion (arrow).",
    "Axial CT of the abdomen; 3 hypodense lesions in the liver.",
    "H&E staining: dysplastic glands, scale bar 50 µm.",
    "Fluorescence micrograph of 12 nuclei stained with DAPI.",
    "T2-weighted MRI of the brain without abnormality, in a 63-year-old patient.",
    "Transmission electron microscopy of mitochondria",
    "CT",
]


def make_tokenizer(folder: Path, context_length: int = 24) -> CaptionTokenizer:
    """A WordPiece vocabulary of 120 tokens, trained on CAPTIONS."""
    train_wordpiece(CAPTIONS * 3, 120, folder)
    return CaptionTokenizer(folder, context_length)
