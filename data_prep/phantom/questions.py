"""Closed questions about a figure, with the options in random order.

Which question is asked, and which wrong options it offers, depends on the answer only through
draws that treat all answers alike; so neither the words nor the order give the answer away.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from data_prep.phantom import bones, chest, electron, fluorescence, histology, plots, tomography
from data_prep.phantom.articles import TOPICS
from data_prep.phantom.captions import NUMBERS, finding_phrase, statement
from data_prep.phantom.drawing import Facts
from data_prep.phantom.subjects import kind_shares

MODALITIES: dict[str, tuple[str, str]] = {
    "radiograph": ("radiograph", "Plain radiograph (X-ray)."),
    "CT": ("CT", "Axial computed tomography (CT) scan."),
    "MRI": ("MRI", "Magnetic resonance image (MRI)."),
    "histology": ("histology", "Photomicrograph of a stained tissue section, histology."),
    "fluorescence microscopy": ("fluorescence microscopy", "Fluorescence microscopy of cells."),
    "electron microscopy": ("electron microscopy", "Electron microscopy image."),
    "plot": ("plot", "Plot of data."),
}
CONTENTS: dict[str, tuple[str, ...]] = {
    "radiograph": bones.ORGANS,
    "CT": ("brain", "abdomen"),
    "histology": ("colon", "cervix", "liver"),
    "electron microscopy": (
        "mitochondria",
        "synapse",
        "endoplasmic reticulum",
        "virus",
        "bacteria",
    ),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "chest radiograph": chest.FINDINGS,
    "head CT": tomography.HEAD_FINDINGS,
    "abdominal CT": tomography.ABDOMEN_FINDINGS,
    "immunohistochemistry": histology.BREAST_FINDINGS,
    "fluorescence micrograph": fluorescence.FINDINGS,
    "electron micrograph": tuple(electron.FINDINGS),
    **plots.FINDINGS,
}
"""Findings that a question about a kind may offer; histology depends on the organ."""
ASKED_FOR_ORGAN = (
    "bone radiograph",
    "head CT",
    "abdominal CT",
    "H&E histology",
    "electron micrograph",
)
MODALITY_OF = {
    "chest radiograph": "radiograph",
    "bone radiograph": "radiograph",
    "head CT": "CT",
    "abdominal CT": "CT",
    "brain MRI": "MRI",
    "H&E histology": "histology",
    "immunohistochemistry": "histology",
    "fluorescence micrograph": "fluorescence microscopy",
    "electron micrograph": "electron microscopy",
}
PLAIN_NAMES = {
    "bone radiograph": "radiograph of the {organ}",
    "H&E histology": "H&E-stained section of the {organ}",
    "immunohistochemistry": "immunohistochemistry of breast tissue",
}
"""Names of kinds in statements, where they differ from the kind itself."""
PRESENCE_RATE = 0.2
"""Low: a model that compares pictures with sentences hardly understands "without"."""
COMPOUND_SIZES = (2, 3, 4)


@dataclass(frozen=True)
class Question:
    """A closed question; `statements` are caption-like sentences, one for each option."""

    question_type: str
    question: str
    options: tuple[str, ...]
    answer: str
    statements: tuple[str, ...]


Rate = Callable[[Facts], float]
Maker = Callable[[Facts, np.random.Generator], Question]


def ask(facts: Facts, rng: np.random.Generator) -> list[Question]:
    """One or two questions about a figure: its finding always, and often something else.

    Whether the finding, the modality or a presence is asked for does not depend on the finding:
    if it did, the commonest answer among those asked would pay without a look at the picture.
    """
    if facts.modality == "compound":
        return [_panels(facts, rng)]
    asked = [_finding(facts, rng)]
    other = [maker for rate, maker in OTHERS if rng.random() < rate(facts)]
    if rng.random() < modality_rate(facts):
        asked.append(_modality(facts, rng))
    elif facts.modality != "plot" and rng.random() < PRESENCE_RATE:
        asked.append(_presence(facts, rng))
    elif other:
        asked.append(other[int(rng.integers(len(other)))](facts, rng))
    return asked


def _shuffled(
    kind: str, question: str, pairs: list[tuple[str, str]], answer: str, rng: np.random.Generator
) -> Question:
    order = rng.permutation(len(pairs))
    options = tuple(pairs[i][0] for i in order)
    return Question(kind, question, options, answer, tuple(pairs[i][1] for i in order))


def _some(
    answer: str, choices: tuple[str, ...], rng: np.random.Generator, limit: int = 4
) -> list[str]:
    """The answer and up to limit - 1 other choices."""
    others = [c for c in choices if c != answer]
    return [answer, *(others[i] for i in rng.permutation(len(others))[: limit - 1])]


def _modality(facts: Facts, rng: np.random.Generator) -> Question:
    options = _some(facts.modality, tuple(MODALITIES), rng)
    pairs = [MODALITIES[o] for o in options]
    return _shuffled("modality", "Which imaging modality is shown?", pairs, facts.modality, rng)


def _organ(facts: Facts, rng: np.random.Generator) -> Question:
    options = _some(facts.organ, CONTENTS[facts.modality], rng)
    prefix = MODALITIES[facts.modality][1].rstrip(".")
    pairs = [(o, f"{prefix}: {o}.") for o in options]
    return _shuffled("organ", "Which organ or specimen is shown?", pairs, facts.organ, rng)


def _findings(facts: Facts) -> tuple[str, ...]:
    """The findings among which this figure's finding is one."""
    if facts.kind == "H&E histology":
        return histology.FINDINGS[facts.organ]
    if facts.kind == "bone radiograph":
        return bones.FINDINGS
    if facts.kind == "brain MRI":
        # White matter lesions are never drawn in T1, so the sequence would rule them out.
        return (
            tomography.BRAIN_FINDINGS
            if facts.detail["sequence"] != "T1"
            else tomography.BRAIN_FINDINGS[:2]
        )
    return CHOICES[facts.kind]


def _plain(facts: Facts, finding: str, verb: str = "showing") -> str:
    """Statement of a finding without its side and number, so that only the finding differs."""
    if facts.modality == "plot":
        return statement(replace(facts, finding=finding))
    what = PLAIN_NAMES.get(facts.kind, facts.kind).format(organ=facts.organ)
    unsided = finding_phrase(replace(facts, finding=finding, side="", count=None))
    phrase = re.sub(r"\ba (?=[aeiou])", "an ", " ".join(unsided.split()))
    return f"{what[:1].upper()}{what[1:]} {verb} {phrase}."


def _finding(facts: Facts, rng: np.random.Generator) -> Question:
    options = _some(facts.finding, _findings(facts), rng)
    pairs = [(o, _plain(facts, o)) for o in options]
    question = "What does the plot show?" if facts.modality == "plot" else "Which finding is shown?"
    return _shuffled("finding", question, pairs, facts.finding, rng)


def _presence(facts: Facts, rng: np.random.Generator) -> Question:
    """Yes or no, each for half of the figures whatever they show."""
    present = bool(rng.random() < 0.5)
    others = [f for f in _findings(facts) if f != facts.finding]
    target = facts.finding if present else others[int(rng.integers(len(others)))]
    pairs = [("yes", _plain(facts, target)), ("no", _plain(facts, target, "without"))]
    question = "Is the image normal?" if target == "normal" else f"Does the image show {target}?"
    return _shuffled("presence", question, pairs, "yes" if present else "no", rng)


def _side(facts: Facts, rng: np.random.Generator) -> Question:
    thing = f"the {facts.organ}" if facts.kind == "bone radiograph" else f"the {facts.finding}"
    pairs = [(side, statement(replace(facts, side=side))) for side in ("left", "right")]
    question = f"On which side of the patient is {thing}?"
    if facts.kind == "bone radiograph":
        question = f"Is this the left or the right {facts.organ}?"
    return _shuffled("side", question, pairs, facts.side, rng)


def _count(facts: Facts, rng: np.random.Generator) -> Question:
    """Up to four lesions are told apart exactly; above that, few from many."""
    if facts.kind == "abdominal CT":
        pairs = [(str(n), statement(replace(facts, count=n))) for n in range(1, 5)]
        return _shuffled("count", "How many liver lesions are there?", pairs, str(facts.count), rng)
    amounts = tuple(fluorescence.CELLS)
    pairs = [(f"{a} cells", f"Fluorescence micrograph showing {a} cells.") for a in amounts]
    return _shuffled(
        "count", "How many cells are there?", pairs, f"{facts.detail['amount']} cells", rng
    )


def _stain(facts: Facts, rng: np.random.Generator) -> Question:
    pairs = [
        (s, statement(replace(facts, detail={**facts.detail, "stain": s})))
        for s in fluorescence.STAINS
    ]
    return _shuffled(
        "stain", "What is stained besides or as the nuclei?", pairs, facts.detail["stain"], rng
    )


def _sequence(facts: Facts, rng: np.random.Generator) -> Question:
    pairs = [(s, f"Axial {s}-weighted brain MRI.") for s in tomography.SEQUENCES]
    return _shuffled(
        "sequence", "Which MRI sequence is shown?", pairs, facts.detail["sequence"], rng
    )


def _plot_kind(facts: Facts, rng: np.random.Generator) -> Question:
    pairs = [
        (k, f"{k[:1].upper()}{k[1:]} of the data.") for k in _some(facts.kind, plots.KINDS, rng)
    ]
    return _shuffled("plot kind", "What kind of plot is this?", pairs, facts.kind, rng)


def _panels(facts: Facts, rng: np.random.Generator) -> Question:
    letters = {2: "(A) and (B)", 3: "(A), (B) and (C)", 4: "(A), (B), (C) and (D)"}
    pairs = [
        (str(n), f"Compound figure with {NUMBERS[n]} panels, {letters[n]}.") for n in COMPOUND_SIZES
    ]
    return _shuffled(
        "panels", "How many panels does the figure have?", pairs, str(facts.count), rng
    )


@cache
def _modality_shares() -> dict[str, float]:
    """Share of each modality among single-panel figures, averaged over the articles' topics."""
    shares: dict[str, float] = {}
    for favourites, _, _ in TOPICS.values():
        for kind, share in kind_shares(favourites).items():
            name = MODALITY_OF.get(kind, "plot")
            shares[name] = shares.get(name, 0.0) + share / len(TOPICS)
    return shares


def modality_rate(facts: Facts) -> float:
    """Frequent modalities are asked for less often, so that the answers come equally often."""
    shares = _modality_shares()
    return 0.5 * min(shares.values()) / shares[facts.modality]


def _organ_rate(facts: Facts) -> float:
    if facts.kind not in ASKED_FOR_ORGAN:
        return 0.0
    # Two of the seven findings lie in each of these specimens, one in each of the others.
    return 0.5 if facts.organ in ("mitochondria", "bacteria") else 1.0


def _count_rate(facts: Facts) -> float:
    """Dividing and dying cells are never among many, so they would give the number away."""
    return float(facts.finding in ("liver lesion", "interphase"))


# Questions about other things than the finding, and how often each is eligible.
OTHERS: tuple[tuple[Rate, Maker], ...] = (
    (_organ_rate, _organ),
    (_count_rate, _count),
    (lambda facts: float(bool(facts.side)), _side),
    (lambda facts: float(facts.kind == "fluorescence micrograph"), _stain),
    (lambda facts: float(facts.kind == "brain MRI"), _sequence),
    (lambda facts: float(facts.modality == "plot"), _plot_kind),
)
