"""A slow, plain reading of JATS figures, to judge data_prep.jats by.

It shares no code with it: another parser (expat), and another way to get the text. The tree is
rewritten from the leaves up, until nothing but strings are left; the reader under test goes through
it once, from the root down.
"""

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

INVISIBLE = "\u2061\u2062\u2063\u2064"
NOTHING = ["permissions", "object-id", "alt-text", "long-desc", "annotation", "annotation-xml"]
FLOATS = ["fig", "fig-group", "table-wrap", "graphic", "media", "ref-list"]
SPACED = ["p", "title", "subtitle", "list", "list-item", "def-item", "def", "term", "sec", "label"]
SPACED += ["break", "caption", "table", "tr", "td", "th", "supplementary-material", "fn", "attrib"]
SPACED += ["compound-kwd-part"]
FORMULAS = ["inline-formula", "disp-formula", "chem-struct"]
PICTURES = ["inline-graphic", "inline-media", "private-char"]


@dataclass
class OracleFigure:
    """What there is to compare."""

    id: str
    label: str
    caption: str
    graphics: list[str]
    mentions: int


def name(element: ET.Element) -> str:
    return element.tag.split("}")[-1]


def below(element: ET.Element, *names: str) -> list[ET.Element]:
    return [found for found in element.iter() if name(found) in names]


def one_line(text: str) -> str:
    text = re.sub(r"(\w)(\[formula\]|\[image\])", r"\1 \2", re.sub(r"\s+", " ", text).strip())
    return re.sub(r"(\[formula\]|\[image\])(?=\w)", r"\1 ", text)


def as_text(element: ET.Element) -> str:
    """The element without its tail as a string that may have too much white space."""
    kind = name(element)
    if kind == "math":
        return one_line_math(element) or "[formula]"
    if kind == "tex-math":
        return "[formula]"
    if kind in PICTURES:
        return "[image]"
    if kind in FLOATS:
        return " "
    if kind in NOTHING:
        return ""
    if kind in FORMULAS or (kind == "alternatives" and below(element, "math", "tex-math")):
        readable = bool(below(element, "math", "textual-form"))
        text = formula_text(element, readable)
        text = re.sub(r"(\[formula\]\s*)+", "[formula] ", text).strip() or "[formula]"
        return text if kind == "inline-formula" else f" {text} "
    if kind == "alternatives" and below(element, *PICTURES):
        return "[image]"
    text = element.text or ""
    for child in element:
        inside = as_text(child)
        if name(child) in ("sup", "sub"):
            inside = inside.strip()
            if re.search(r"\d$", text) and re.match(r"[-+−–±]?\d", inside):
                inside = ("^" if name(child) == "sup" else "_") + inside
        text += inside + (child.tail or "")
    return f" {text} " if kind in SPACED else text


def formula_text(element: ET.Element, readable: bool) -> str:
    text = element.text or ""
    for child in element:
        if name(child) in ("tex-math", "graphic", "media", *PICTURES):
            text += "" if readable else "[formula]"
        elif name(child) in ("sup", "sub"):
            mark = "^" if name(child) == "sup" else "_"
            inside = as_text(child).strip()
            needed = re.search(r"\d$", text) and re.match(r"[-+−–±]?\d", inside)
            text += mark + inside if needed else inside
        elif name(child) in ("math", "label", *NOTHING, *FLOATS):
            text += as_text(child)
        else:
            text += formula_text(child, readable)
        text += child.tail or ""
    return text


def one_line_math(element: ET.Element) -> str:  # noqa: C901
    kind, parts = name(element), []
    if kind in ("mi", "mn", "mo", "mtext", "ms"):
        text = "".join(c for c in "".join(element.itertext()) if c not in INVISIBLE)
        return text if kind == "mtext" else text.strip()
    for child in element:
        if name(child) not in ("annotation", "annotation-xml", "mphantom", "none", "mprescripts"):
            parts.append(one_line_math(child))

    def brackets(text: str) -> str:
        return text if re.fullmatch(r"[\w.]*|\([^()]*\)", text) else f"({text})"

    def script(before: str, mark: str, text: str) -> str:
        return mark + text if text and re.search(r"\d$", before) else text

    if kind == "mspace":
        return " "
    if kind == "mfenced":
        joined = ""
        separators = element.get("separators", ",").replace(" ", "")
        for number, part in enumerate(parts):
            joined += separators[:number][-1:] if number <= len(separators) else separators[-1:]
            joined += part
        return element.get("open", "(") + joined + element.get("close", ")")
    if kind == "mtable":
        return "; ".join(parts)
    if kind in ("mtr", "mlabeledtr"):
        return " ".join(parts)
    if kind == "semantics":
        return parts[0] if parts else ""
    if kind == "msqrt":
        return "√" + brackets("".join(parts))
    if kind == "mfrac" and len(parts) == 2:
        return brackets(parts[0]) + "/" + brackets(parts[1])
    if kind == "mroot" and len(parts) == 2:
        return parts[1] + "√" + brackets(parts[0])
    if kind in ("msup", "msub") and len(parts) == 2:
        return parts[0] + script(parts[0], "^" if kind == "msup" else "_", parts[1])
    if kind == "msubsup" and len(parts) == 3:
        low = parts[0] + script(parts[0], "_", parts[1])
        return low + script(parts[0] + parts[1], "^", parts[2])
    if kind in ("munder", "munderover") and parts:
        return " ".join(parts) + " "
    return "".join(parts)


def pictures(figure: ET.Element) -> list[str]:
    """Hrefs of a figure's graphics that are no thumbnails, in order."""
    passed_over: set[ET.Element] = set()
    for part in below(figure, "caption", "permissions", "disp-formula", "attrib", "label"):
        passed_over.update(part.iter())
    hrefs = []
    for graphic in below(figure, "graphic"):
        about = " ".join(graphic.get(key, "") for key in ("content-type", "specific-use"))
        href = graphic.get("{http://www.w3.org/1999/xlink}href", "").strip()
        small = "thumb" in about.lower() or re.search(r"[0-9]{2,3}x[0-9]{2,3}", about)
        if graphic not in passed_over and href and not small:
            hrefs.append(href)
    return hrefs


def read_figures(data: bytes) -> list[OracleFigure]:
    """Every figure of a file, in order."""
    root = ET.fromstring(data)
    parent = {child: above for above in root.iter() for child in above}

    def around(element: ET.Element, *names: str) -> ET.Element | None:
        while element in parent:
            element = parent[element]
            if name(element) in names:
                return element
        return None

    found = below(root, "fig")
    citing: list[set[ET.Element]] = [set() for _ in found]
    labels = [one_line(" ".join(as_text(x) for x in f if name(x) == "label")) for f in found]
    for xref in below(root, "xref"):
        paragraph = around(xref, "p")
        if paragraph is None or around(xref, "caption", "table-wrap") is not None:
            continue
        for index in cited_by(xref, parent, found, labels, around):
            citing[index].add(paragraph)
    return [
        OracleFigure(
            id=figure.get("id", ""),
            label=labels[index],
            caption=one_line(" ".join(as_text(x) for x in figure if name(x) == "caption")),
            graphics=pictures(figure),
            mentions=min(20, len(citing[index])),
        )
        for index, figure in enumerate(found)
    ]


def cited_by(xref, parent, found, labels, around) -> set[int]:  # type: ignore[no-untyped-def]  # noqa: C901
    """Indices of the figures that a reference cites, ranges resolved by brute force."""

    def named(reference: ET.Element) -> list[int]:
        indices = []
        for rid in reference.get("rid", "").split():
            for index, figure in enumerate(found):
                group = around(figure, "fig-group")
                if rid in (figure.get("id"), None if group is None else group.get("id")):
                    indices.append(index)
        return indices

    def series(index: int) -> tuple[object, ...]:
        match = re.fullmatch(r"(.*?)(\d{1,4})\W*", labels[index], re.S)
        owner = around(found[index], "sub-article", "response")
        if match is None:
            return (labels[index], owner, None)
        return (re.sub(r"\W+", " ", match[1]).strip().casefold(), owner, int(match[2]))

    def span(low: int, high: int, like: tuple[object, ...]) -> set[int]:
        fits = [series(index)[:2] == like[:2] for index in range(len(found))]
        return {i for i in range(len(found)) if fits[i] and series(i)[2] in range(low, high + 1)}

    indices = set(cited := named(xref))
    if not cited:
        return indices
    siblings = list(parent[xref])
    after = siblings[siblings.index(xref) + 1 :][:1]
    dash = r"\s*(?:[-‐-―−]|to|through)\s*"
    if after and re.fullmatch(dash, xref.tail or "") and named(after[0]):
        start, end = cited[-1], named(after[0])[0]
        one, other = series(start), series(end)
        counted = one[:2] == other[:2] and None not in (one[2], other[2])
        if counted and one[2] < other[2]:  # type: ignore[operator]
            indices |= span(one[2] + 1, other[2] - 1, one)  # type: ignore[operator]
        else:
            indices |= set(range(start + 1, end))
    text = "".join(xref.itertext())
    for low, high in re.findall(rf"(\d{{1,4}})[A-Za-z]?{dash}(\d{{1,4}})", text):
        for index in cited:
            if series(index)[2] == int(low):
                indices |= span(int(low) + 1, int(high), series(index))
    return indices
