"""Captions of compound figures, cut by their panel labels.

Only labels that lead their text are believed: "(A) Liver. (B, C) Kidney", "a, Liver. b, Kidney",
"Livers: A) control; B) treated". Labels that trail, "Liver (A) and kidney (B)", are right in one
caption of four, so such captions stay whole. So does every caption in which anything is unclear:
labels out of order or missing, one without words of its own, words that may belong to two.
"""

import re
from dataclasses import dataclass

MAX_PANELS = 26

_LETTER = r"(?-i:[A-Z])'?"
_JOIN = r"\s?(?:[-–—‒/&,]|,?\s?and\s|to\s|through\s)\s?"
_LABELS = rf"(?:(?i:panels?)\s+)?{_LETTER}(?:{_JOIN}{_LETTER})*"
_STYLES = (
    # (A) and [A]; then A); then A. A, A: and A -; then a without any sign.
    rf"[(\[]\s*(?P<labels>{_LABELS})\s*[)\]][.:,]?(?=\s|\w|$)",
    rf"(?<![\w(\[])(?P<labels>{_LABELS})\)[.:,]?(?=\s|$)",
    rf"(?<![\w(\[])(?P<labels>{_LABELS})(?:[.:,|]|\s[-–—])(?=\s|$)",
    r"(?<!\S)(?P<labels>(?-i:[a-z]))(?=\s[A-Z0-9])",
)
_MENTION = r"[(\[]\s*(?P<labels>{labels})(?=\s*[,;:)\]])"
_ENDS = (".", ":", ";", "!", "?")
_SENTENCE = re.compile(r"(?<=[.!?;])[)\]\"”']?\s+(?=[\w(\[*#†‡>±<])")
# Text before a label that runs on into the label's own: the label then stands inside a sentence.
_RUNS_ON = re.compile(
    r"\b(?:a|an|the|of|in|on|for|from|with|by|to|at|as|or|and|see|than|both|between|representative"
    r"|panels?|figs?|figures?|shown|same|like|per|via|is|are|was|were|using|after|before)$",
    re.IGNORECASE,
)
# An own part that begins so is the rest of its neighbour's sentence.
_DEPENDS = re.compile(
    r"(?:of|in|on|for|from|with|by|to|at|as|or|and|after|before|is|are|was|were|shows?|the same)\b"
)
# What follows the last panel's text and is about all panels.
_SHARED_TAIL = re.compile(
    r"(?:Data information|Source data|Data (?:are|is|were|represent)|Statistic|Scale bars\b"
    r"|Error bars|All (?:data|values|P values|images|scale|error)|Abbreviations|Values (?:are|were)"
    r"|In all |For all |See also|\*+\s?[Pp]|[Pp]\s?[<>=≤]|\*|ns\b|n\.s\.|DOI:)"
)


@dataclass(frozen=True)
class PanelText:
    """The words that belong to one panel."""

    label: str
    """One letter, in the caption's own case."""
    own: str
    """Its own part of the caption, without the label."""


@dataclass(frozen=True)
class PanelTexts:
    """A caption in parts."""

    lead: str
    """What stands before the first label and holds for all panels; may be empty."""
    panels: tuple[PanelText, ...]
    """Two or more, labelled A, B, C ... without a gap."""


@dataclass(frozen=True)
class _Marker:
    labels: str
    """One or more letters in upper case."""
    start: int
    end: int


def split_caption(caption: str) -> PanelTexts | None:
    """Cut a caption by its leading panel labels.

    A part is what stands between two labels; labels inside a sentence ("(A) Livers and (B) of
    ...") share the part that they stand in; a panel that is named again gets both parts.

    Returns:
        None where the caption has no such labels or where it is not certain what they cover.
    """
    for style in _STYLES:
        for lower in (False, True):
            found = _markers(style, caption, lower)
            if found and found[0].labels[0] == "A" and _leads(caption, found[0], None, ""):
                return _parts(caption, found, lower)
    return None


def expand_labels(text: str) -> str:
    """ "A, C–E" as "ACDE"; empty where a range runs backwards or a letter comes twice."""
    letters = ""
    text = re.sub(r"(?i)panels?\s+", "", text).upper().replace("'", "")
    for token in re.split(r"[/&,]|\bAND\b", text):
        ends = re.findall(r"\b[A-Z]\b", token)
        if not ends:
            continue
        if len(ends) > 2 or ord(ends[-1]) < ord(ends[0]):
            return ""
        letters += "".join(map(chr, range(ord(ends[0]), ord(ends[-1]) + 1)))
    return letters if len(set(letters)) == len(letters) else ""


def _markers(style: str, caption: str, lower: bool) -> list[_Marker]:
    """All places that look like labels of a style, in one case."""
    pattern = style.replace("[A-Z])'?", "[a-z])'?") if lower else style
    if not lower and pattern == _STYLES[3]:
        return []  # "A liver" begins sentences
    found = re.finditer(pattern, caption)
    markers = (_Marker(expand_labels(m["labels"]), m.start(), m.end()) for m in found)
    return [marker for marker in markers if marker.labels]


def _leads(caption: str, marker: _Marker, previous: _Marker | None, seen: str) -> bool:
    """Whether the words after the marker are its own, and those before are not.

    Inside a sentence only labels that were not `seen` before can be leading.
    """
    before, after = caption[: marker.start].rstrip(), caption[marker.end :].lstrip()
    if not after or after[0] in ".,;:)]" or re.match(r"(?:and|or)\b", after):
        return False
    if not before or before.endswith(_ENDS):
        return True
    if marker.labels[0] in seen:
        return False
    if previous is not None and re.search(r"(?:,|\band|,\s?and)$", before):
        # "(A) CT, (B) MRI and (C) PET", but not "(A) livers and (B) of kidneys".
        words = re.match(r"[\w-]+\s+[\w-]+", after)
        alone = re.match(r"[A-Za-z][\w-]+[.,;]?(?:$|\s?(?:and\s)?[(\[])", after)
        return bool(words or alone) and _DEPENDS.match(after) is None
    inner = before[previous.end :] if previous else before
    closed = caption[marker.end - 1] in ".,:"  # "... in replicates (A, B). Then"
    return not closed and after[0].isupper() and _RUNS_ON.search(inner) is None


def _parts(caption: str, markers: list[_Marker], lower: bool) -> PanelTexts | None:
    """Group the caption's text by label; None where labels or texts are not as they should be."""
    segments: list[tuple[str, _Marker]] = []
    seen = ""
    for marker in markers:
        if _leads(caption, marker, segments[-1][1] if segments else None, seen):
            segments.append((marker.labels, marker))
            seen += marker.labels
    texts: dict[str, list[str]] = {}
    grouped = 0
    for index, (labels, marker) in enumerate(segments):
        last = index + 1 == len(segments)
        text = caption[marker.end : None if last else segments[index + 1][1].start]
        mentioned = [letter for group in _mentions(text, lower) for letter in group]
        if last:
            text = _without_tail(text, labels, lower)
        # A label that appears inside this text before it has one of its own shares it.
        new = [letter for letter in labels if letter not in texts]
        new += [c for c in dict.fromkeys(mentioned) if ord(c) == 65 + len(texts) + len(new)]
        if [ord(letter) for letter in new] != list(
            range(65 + len(texts), 65 + len(texts) + len(new))
        ):
            return None
        grouped += bool(new)
        own = _trimmed(text)
        if not re.search(r"\w", own):
            return None
        for letter in dict.fromkeys([*new, *labels]):
            texts.setdefault(letter, []).append(own)
    if grouped < 2 or len(texts) > MAX_PANELS:
        return None
    lead = caption[: segments[0][1].start].strip(" ,–—-")
    if any(set(group) - set(texts) for group in _mentions(lead, lower)):
        return None
    panels = (
        PanelText(letter.lower() if lower else letter, " ".join(own))
        for letter, own in texts.items()
    )
    return PanelTexts(lead, tuple(panels))


def _mentions(text: str, lower: bool) -> list[str]:
    """Groups of labels in brackets: (B), (C–E), (F, left), (G, n = 3)."""
    labels = _LABELS.replace("[A-Z]", "[a-z]") if lower else _LABELS
    groups = (expand_labels(m["labels"]) for m in re.finditer(_MENTION.format(labels=labels), text))
    return [group for group in groups if group]


def _without_tail(text: str, labels: str, lower: bool) -> str:
    """The last part up to the sentence with which remarks on other or all panels begin."""
    sentences = _SENTENCE.split(text)
    for number, sentence in enumerate(sentences[1:], 1):
        others = set("".join(_mentions(sentence, lower))) - set(labels)
        if others or _SHARED_TAIL.match(sentence):
            return " ".join(sentences[:number])
    return text


def _trimmed(text: str) -> str:
    """Without the signs and the "and" that lead over to the next label."""
    return re.sub(r"[\s,;]*(?:[,;]\s*and|\sand)?[\s,;]*$", "", text.strip(" ,;:–—-")).strip()
