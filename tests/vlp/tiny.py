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

TOWERS = """
model:
  embed_dim: 32
  image: {name: test_vit, size: 160}
  text:
    {vocab_size: 200, context_length: 32, max_positions: 32, width: 32, layers: 2, heads: 2,
     mlp_width: 64, proj: linear}
"""
RUN = (
    TOWERS
    + """
name: run
data: {workers: 1}
optimizer: {warmup_steps: 2, learning_rate: 1e-3}
train: {batch_size: 8, steps: 12, log_every: 1, eval_every: 6, checkpoint_every: 4}
"""
)
"""Settings of a run of a few seconds."""

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
