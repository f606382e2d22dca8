"""Embeddings of prompts as a real model gives them, of length 1 and as they are."""

from pathlib import Path

import torch
from torch.nn.functional import normalize

from eval.embed import Embedder
from eval.model import load_model
from eval.prompts import mean_embeddings
from tests.eval.tiny import write_model

TEXTS = ["a heart", "stained section of the colon showing nuclei and cells", "left lung"]


def test_rows_as_they_are_have_lengths_and_a_cache_of_their_own(tmp_path: Path) -> None:
    model = load_model(f"local-dir:{write_model(tmp_path / 'model')}", "cpu")
    assert 1 < model.scale <= 100
    embedder = Embedder(model, tmp_path / "cache", batch_size=2)
    unit, raw = embedder.texts(TEXTS), embedder.texts(TEXTS, unit=False)
    lengths = raw.norm(dim=1)
    assert lengths.max() > 1.05 * lengths.min(), "equal lengths compare nothing"
    assert torch.allclose(normalize(raw, dim=1), unit, atol=1e-6)
    with torch.inference_mode():
        direct = model.network.encode_text(model.tokenize(TEXTS))
    assert torch.allclose(raw, direct, atol=1e-5)
    assert torch.equal(embedder.texts(TEXTS, unit=False), raw)  # from the cache
    assert torch.equal(embedder.texts(TEXTS), unit)

    clip, biovil = mean_embeddings(unit, [3])[0], mean_embeddings(raw, [3])[0]
    assert torch.allclose(biovil, normalize(direct.mean(dim=0), dim=0), atol=1e-5)
    assert clip @ biovil < 0.9999
