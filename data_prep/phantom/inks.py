"""Colours and words shared by the drawn pages, charts and photographs."""

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image

Size = tuple[int, int]
Colour = tuple[int, int, int]
Painter = Callable[[np.random.Generator, Size], Image.Image]

WHITE, BLACK = (255, 255, 255), (20, 20, 20)
# Words, separated by blanks.
_STOCK = (
    "cell control Treated patients IL-6 gene receptor mRNA day 7 Baseline T cells group n = 24 "
    "screening p53 assessed analysis excluded Randomised kinase ligand nucleus membrane ATP uptake "
    "mean score follow-up Age (years) Sex Hypertension 95% CI P value odds ratio liver kidney lung "
    "knockout wild type dose response signal MAPK AKT caspase apoptosis growth imaging data model "
    "training test input output features expression protein antibody serum vaccine infection host"
)
_WORDS = _STOCK.split()


def words(rng: np.random.Generator, low: int, high: int) -> str:
    """Some words as they stand in figures."""
    return " ".join(rng.choice(_WORDS, int(rng.integers(low, high + 1))))


def colour(rng: np.random.Generator, saturation: tuple[float, float], value: float) -> Colour:
    """A random hue."""
    parts = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), value)
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue
