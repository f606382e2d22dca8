"""What a generative model's free text says: an option, or nothing that can be counted on.

Parsing is anchored: an option has to be the whole answer, a whole clause of it, or its letter.
"Normal" and "cannot tell" contain the letters n and o and are not "no"; "no abnormality" is not
"no" either, since as an answer to "is it normal?" it means yes. What names no option, or two, is
None: callers count it and never put another answer in its place.

Open answers are compared as SQuAD does (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1), with
articles kept: whole after normalisation, and by the tokens that they share, repeated ones counted.
"""

import re
from collections import Counter
from collections.abc import Sequence

_LEAD = re.compile(
    r"(?:the )?(?:final |correct |best |right )?(?:answer|option|choice)\b\s*(?:is\b|:|=)?\s*:?\s*",
    re.I,
)
"""What models write before their answer."""
_LETTER = re.compile(r"\(?([A-Z])(?:\)|[.:](?=\s|$)|$)\s*")
"""A letter with a bracket, point or colon behind it, or alone: "A mass" has none."""
_CLAUSES = re.compile(r"[.,;:!?\n]+(?:\s+|$)|\s+-\s+")
_YES_NO_PRONOUNS = re.compile(r"(yes|no) (?:there|it|this|that|they|these|those|i)\b")
MAX_ANSWER = 100_000
"""Characters of an answer that are looked at: it comes from outside."""


def parse_choice(answer: str, options: Sequence[str], lettered: bool = True) -> int | None:
    """The index of the option that an answer names; None if it names none of them, or several.

    Args:
        answer: what the model wrote.
        options: as they were offered.
        lettered: whether they were offered as A, B, ..., so that a letter is an answer.
    """
    written = answer[:MAX_ANSWER].replace("*", "").replace("`", "").strip().strip("\"'")
    folded = {normalise(option): i for i, option in enumerate(options)}
    whole = folded.get(normalise(written))
    if whole is not None:
        return whole
    rest = written[found.end() :] if (found := _LEAD.match(written)) else written
    if lettered and (letter := _LETTER.match(rest)):
        return _by_letter(letter, rest, folded)
    named = {folded[part] for part in _parts(rest) if part in folded}
    return named.pop() if len(named) == 1 else None


def _by_letter(letter: re.Match[str], rest: str, folded: dict[str, int]) -> int | None:
    """The option of a letter, unless the text behind it is another option."""
    place = ord(letter[1]) - ord("A")
    if place >= len(folded):
        return None
    behind = {folded[part] for part in _parts(rest[letter.end() :]) if part in folded}
    return place if behind <= {place} else None


def _parts(written: str) -> list[str]:
    """The normalised clauses of an answer; "yes it is" begins with one, too."""
    parts = [normalise(clause) for clause in _CLAUSES.split(written)]
    parts += [normalise(written)]
    return parts + [found[1] for part in parts if (found := _YES_NO_PRONOUNS.match(part))]


def normalise(answer: str) -> str:
    """Case, punctuation and white space away: "X-ray (PA)." -> "x ray pa"."""
    words = re.sub(r"[^\w%+<>=/.-]+|(?<!\d)[.]|[.](?!\d)|-", " ", answer.casefold())
    return " ".join(words.split())


def exact(answer: str, gold: str) -> float:
    """1 if two answers are the same after normalisation, otherwise 0."""
    return float(normalise(answer) == normalise(gold))


def token_scores(answer: str, gold: str) -> tuple[float, float]:
    """(F1, recall) of an answer's tokens against the right answer's, repeated ones counted."""
    given, wanted = normalise(answer).split(), normalise(gold).split()
    if not given or not wanted:
        return (1.0, 1.0) if given == wanted else (0.0, 0.0)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted)), shared / len(wanted)
