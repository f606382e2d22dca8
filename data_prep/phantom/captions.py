"""Captions: what a figure shows, in varied biomedical language."""

import re
from collections.abc import Sequence

import numpy as np

from data_prep.phantom import phrases
from data_prep.phantom.drawing import Facts
from data_prep.phantom.subjects import Figure

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
RADIOLOGY = ("radiograph", "CT", "MRI")
SHORTEST = 8
"""Words; shorter captions get a remark."""
EXTRA = (0.34, 0.22, 0.16, 0.11, 0.07, 0.05, 0.03, 0.02)
"""Probabilities of 0, 1, 2 ... remarks."""
TISSUES = {"colon": "colonic mucosa", "cervix": "squamous epithelium", "liver": "liver parenchyma"}


def family(facts: Facts) -> str:
    """Which set of sentence patterns a figure takes: radiology, microscopy or plot."""
    if facts.modality in RADIOLOGY:
        return "radiology"
    return "plot" if facts.modality == "plot" else "microscopy"


def pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def slots(facts: Facts) -> dict[str, str]:
    """What the braces in `phrases` stand for."""
    number = (
        ""
        if facts.count is None
        else NUMBERS[facts.count]
        if facts.count <= 10
        else str(facts.count)
    )
    values = {
        "side": facts.side,
        "organ": facts.organ,
        "count": "" if facts.count is None else str(facts.count),
        "number": number,
        "lesions": "lesion" if facts.count == 1 else "lesions",
        "tissue": TISSUES.get(facts.organ, facts.organ),
        "tem": "SEM" if facts.detail.get("technique") == "scanning" else "TEM",
        **facts.detail,
    }
    for name in ("measure", "other"):
        if name in values:
            # "Serum IL-6 (pg/ml)" labels the axis; the sentence has no place for the unit.
            values[name] = _lower(values[name].partition(" (")[0])
    if facts.kind == "Kaplan-Meier curve":
        values["measure"] = "overall survival"
    if "treatment" in values:
        values["treatment"] = _lower(values["treatment"])
    return values


def finding_phrase(facts: Facts, rng: "np.random.Generator | None" = None) -> str:
    """The finding in words; without a generator the plainest phrase."""
    table = phrases.CLAUSES.get(facts.finding) or phrases.FINDINGS[facts.kind, facts.finding]
    pattern = table[0] if rng is None else pick(rng, table)
    return pattern.format(**slots(facts))


def kind_phrase(facts: Facts, rng: "np.random.Generator | None" = None) -> str:
    """The kind of picture in words; without a generator the plainest phrase."""
    table = phrases.KIND_NAMES[facts.kind]
    pattern = table[0] if rng is None else pick(rng, table)
    return pattern.format(**slots(facts))


def statement(facts: Facts) -> str:
    """One plain caption-like sentence, for closed questions."""
    if facts.modality == "plot":
        return f"{_upper(kind_phrase(facts))}: {finding_phrase(facts)}."
    what, finding = kind_phrase(facts), finding_phrase(facts)
    if facts.kind == "fluorescence micrograph":
        return f"{_upper(what)} showing {finding}, {phrases.STAINS[facts.detail['stain']][0]}."
    return f"{_upper(what)} showing {finding}."


def lead(facts: Facts, rng: np.random.Generator, patterns: Sequence[str] = ()) -> str:
    """The sentence that states modality, organ, finding, side and count."""
    group = family(facts)
    what, finding = kind_phrase(facts, rng), finding_phrase(facts, rng)
    pattern = pick(rng, patterns or phrases.LEADS[group])
    if group == "plot" and pattern.startswith("{What} showing that"):
        finding = phrases.CLAUSES[facts.finding][1].format(**slots(facts))
    fill = {
        "what": what,
        "What": _upper(what),
        "finding": finding,
        "Finding": _upper(finding),
        "age": str(rng.integers(19, 88)),
        "person": pick(rng, phrases.PERSONS),
        "when": pick(rng, phrases.TIMES),
        "complaint": pick(rng, phrases.COMPLAINTS.get(facts.kind, ("symptoms",))),
        "measure": slots(facts).get("measure", ""),
    }
    sentence = re.sub(r"\b([Aa]) (?=8\d-)", r"\1n ", pattern.format(**fill))  # an 85-year-old
    if facts.kind == "fluorescence micrograph":
        stain = pick(rng, phrases.STAINS[facts.detail["stain"]])
        sentence += f" {_upper(stain)}."
    return sentence


def caption(figure: Figure, rng: np.random.Generator) -> tuple[str, str]:
    """Title (may be empty) and text of a figure's caption.

    Lengths run from about 8 to 120 words, as in articles: some captions are one sentence, others
    bury it among methods, marks and remarks.
    """
    if figure.panels:
        return _compound(figure, rng)
    facts = figure.facts
    first = lead(facts, rng)
    before: list[str] = []
    after: list[str] = []
    for mark in sorted(figure.drawing.marks):
        if rng.random() < 0.55:
            sentence = pick(rng, phrases.MARKED[mark])
            after.append(sentence.replace("{bar}", pick(rng, _scales(facts))))
    pool = _remarks(facts, rng)
    extra = int(rng.choice(len(EXTRA), p=EXTRA))
    extra = max(extra, int(len(first.split()) < SHORTEST))
    for index in rng.permutation(len(pool))[:extra]:
        (before if rng.random() < 0.15 else after).append(pool[index])
    title = ""
    if rng.random() < 0.35:
        subject = kind_phrase(facts, rng) if rng.random() < 0.6 else finding_phrase(facts, rng)
        title = _upper(re.sub(r"^an? ", "", subject)) + "."
    return title, " ".join([*before, first, *after]).replace(". (arrow)", " (arrow).")


def _remarks(facts: Facts, rng: np.random.Generator) -> list[str]:
    """Sentences that say nothing about the finding, and now and then what is absent."""
    pool = list(phrases.REMARKS.get(facts.modality, ())) + list(phrases.SYNTHETIC[:1])
    if facts.modality in RADIOLOGY:
        pool += phrases.REMARKS["radiology"]
    pool = [_fill(sentence, rng) for sentence in pool]
    absent = [
        finding
        for kind, finding in phrases.FINDINGS
        if kind == facts.kind and finding not in ("normal", facts.finding)
    ]
    if facts.modality in RADIOLOGY and absent and rng.random() < 0.4:
        pool.append(f"There was no {pick(rng, absent)}.")
    return pool


def _compound(figure: Figure, rng: np.random.Generator) -> tuple[str, str]:
    """One clause per panel, in one of the ways in which journals letter them."""
    style = pick(rng, ("({}) {}", "({}) {}", "{}, {}", "{}: {}", "[{}] {}"))
    patterns = {group: tables[:2] for group, tables in phrases.LEADS.items()}
    parts = [
        style.format(letter, lead(facts, rng, patterns[family(facts)]))
        for letter, facts, _ in figure.panels
    ]
    kinds = {facts.modality for _, facts, _ in figure.panels}
    title = ""
    if rng.random() < 0.6:
        opening = pick(rng, ("Overview of", "Summary of", "Representative"))
        title = f"{opening} {_listed(sorted(kinds))}."
        title = title.replace("radiograph", "radiography").replace("plot", "plots")
    text = " ".join(parts)
    if rng.random() < 0.4:
        text += " " + _fill(pick(rng, phrases.REMARKS["compound"]), rng)
    return title, text


def _scales(facts: Facts) -> tuple[str, ...]:
    """Plausible lengths of the scale bar."""
    if facts.modality != "electron microscopy":
        return ("20 µm", "50 µm", "50 μm", "100 µm")
    return (
        ("1 µm", "2 µm")
        if facts.detail["technique"] == "scanning"
        else ("100 nm", "200 nm", "500 nm")
    )


def _fill(sentence: str, rng: np.random.Generator) -> str:
    """Numbers for the slots of remarks."""
    return sentence.format(
        days=rng.integers(2, 15),
        slice=rng.integers(3, 6),
        kv=pick(rng, ("80", "100", "120")),
        tesla=pick(rng, ("1.5", "3")),
        power=pick(rng, ("100", "200", "400")),
        replicates=pick(rng, ("three", "four", "five")),
        animals=rng.integers(5, 13),
    )


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    """Lower-case first letter, but not of an abbreviation."""
    return text if text[:2].isupper() else text[:1].lower() + text[1:]
