"""Articles in the layout of PubMed Central's bucket, generated: what data_prep is fed.

An article has 90 KB of XML in the mean, as the sizes in PMC's listings are: a third of it
references, a seventh tables, the rest text with inline markup, and 4 figures (24 million in 6
million articles). Of the captions a seventh have nested inline markup, most graphics have their
href behind other attributes, a sixth of the figures stand in groups: the shares counted in 139 real
articles. The images are those of corpus.py.
"""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.corpus import make_corpus
from data_prep.shards import INDEX

VERSION = 1
"""Raise it when articles change, so that old folders are not reused."""
FIGURES = 4
IMAGES = 400
"""Different images; articles take them in turn."""

_VOCABULARY = (
    "the of and in with a cells were patients tissue expression treated control protein increased "
    "levels group observed compared days after section mean analysis gene response signal showed"
)
_WORDS = _VOCABULARY.split()
_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) '
    'Journal Archiving and Interchange DTD v1.3 20210610//EN" "JATS-archivearticle1-3.dtd">\n'
    '<article xmlns:xlink="http://www.w3.org/1999/xlink" '
    'xmlns:mml="http://www.w3.org/1998/Math/MathML" article-type="research-article" xml:lang="en">'
    "<?properties open_access?>"
)


def make_mirror(work: str | Path, articles: int, seed: int) -> Path:
    """A folder of PMC<n>.1 folders, made once."""
    folder = Path(work) / f"mirror-{VERSION}-{articles}-{seed}"
    if folder.is_dir():
        return folder
    images = _images(make_corpus(work, IMAGES, seed).original)
    temporary = folder.with_name(f"{folder.name}.tmp")
    for number in range(articles):
        rng = np.random.default_rng((seed, 7, number))
        name = f"PMC{9_000_000 + number}"
        place = temporary / f"{name}.1"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.1.xml").write_text(_article(rng, name, number), encoding="utf-8")
        record = {"pmcid": name, "version": 1, "license_code": "CC BY", "is_retracted": False}
        (place / f"{name}.1.json").write_text(json.dumps(record), encoding="utf-8")
        for figure in range(1, FIGURES + 1):
            image = images[(number * FIGURES + figure) % len(images)]
            (place / f"g{figure:03}.jpg").write_bytes(image)
    os.replace(temporary, folder)
    return folder


def _images(folder: Path) -> list[bytes]:
    """The JPEG files in a shard folder."""
    files = []
    for row in pq.read_table(folder / INDEX).to_pylist():
        with (folder / row["shard"]).open("rb") as shard:
            shard.seek(row["image_offset"])
            files.append(shard.read(row["image_size"]))
    return files


def _article(rng: np.random.Generator, name: str, number: int) -> str:
    size = int(90_000 * rng.lognormal(-0.08, 0.4))
    references = _until(rng, size * 0.34, _reference)
    tables = _until(rng, size * 0.14, _table)
    figures = [_figure(rng, n) for n in range(1, FIGURES + 1)]
    figures[0] = f"<fig-group>{figures[0]}</fig-group>" if number % 6 == 0 else figures[0]
    rest = size - sum(len(part) for part in (*references, *tables, *figures)) - 2500
    text = _until(rng, rest, _paragraph)
    sections = []
    for start in range(0, len(text), 8):
        part = text[start : start + 8]
        if figures:
            part.insert(2, figures.pop(0))
        if tables:
            part.insert(4, tables.pop(0))
        sections.append(f"<sec><title>{_words(rng, 4)}</title>{''.join(part)}</sec>")
    return (
        f"{_HEAD}{_front(rng, name)}<body>{''.join(sections)}{''.join(tables)}{''.join(figures)}"
        f"</body><back><ref-list><title>References</title>{''.join(references)}</ref-list></back>"
        "</article>"
    )


def _front(rng: np.random.Generator, name: str) -> str:
    authors = "".join(
        f'<contrib contrib-type="author"><name><surname>{_words(rng, 1).title()}</surname>'
        f"<given-names>{_words(rng, 1).title()}</given-names></name></contrib>"
        for _ in range(int(rng.integers(2, 12)))
    )
    return (
        "<front><journal-meta><journal-title-group><journal-title>Journal of Measurements"
        "</journal-title></journal-title-group></journal-meta><article-meta>"
        f'<article-id pub-id-type="pmc">{name}</article-id>'
        f'<article-id pub-id-type="doi">10.1/{name}</article-id>'
        f"<title-group><article-title>{_words(rng, 12)}</article-title></title-group>"
        f"<contrib-group>{authors}</contrib-group><pub-date pub-type='epub'><day>3</day>"
        "<month>7</month><year>2021</year></pub-date><permissions><license "
        'xlink:href="https://creativecommons.org/licenses/by/4.0/"><license-p>Open access.'
        f"</license-p></license></permissions><abstract><p>{_words(rng, 150)}</p></abstract>"
        "<kwd-group><kwd>one</kwd><kwd>two</kwd></kwd-group></article-meta></front>"
    )


def _words(rng: np.random.Generator, count: int) -> str:
    return " ".join(_WORDS[index] for index in rng.integers(0, len(_WORDS), count))


def _until(rng: np.random.Generator, size: float, make: object) -> list[str]:
    """Parts of `size` characters together, about."""
    assert callable(make)
    parts: list[str] = []
    while size > 0:
        parts.append(make(rng))
        size -= len(parts[-1])
    return parts


def _inline(rng: np.random.Generator) -> str:
    """A stretch of text with one piece of markup."""
    figure = int(rng.integers(1, FIGURES + 1))
    reference = int(rng.integers(1, 60))
    markup = (
        f"<italic>{_words(rng, 2)}</italic>",
        f'[<xref ref-type="bibr" rid="b{reference}">{reference}</xref>]',
        f'[<xref ref-type="bibr" rid="b{reference}">{reference}</xref>, '
        f'<xref ref-type="bibr" rid="b{reference + 1}">{reference + 1}</xref>]',
        f'(<xref ref-type="fig" rid="f{figure}">Fig. {figure}</xref>)',
        "10<sup>−3</sup> µm",
        "CO<sub>2</sub>",
    )
    chosen = rng.choice(len(markup), p=(0.25, 0.3, 0.2, 0.07, 0.08, 0.1))
    return f"{_words(rng, int(rng.integers(8, 24)))} {markup[chosen]}"


def _paragraph(rng: np.random.Generator) -> str:
    return f"<p>{'. '.join(_inline(rng) for _ in range(int(rng.integers(4, 10))))}.</p>"


def _figure(rng: np.random.Generator, number: int) -> str:
    nested = "<italic>B. <bold>subtilis</bold></italic> " if rng.random() < 0.14 else ""
    before = 'mimetype="image" position="float" ' if rng.random() < 0.73 else ""
    return (
        f'<fig id="f{number}" position="float"><label>Figure {number}</label><caption><title>'
        f"{_words(rng, 8)}.</title><p>{nested}(<bold>A</bold>) {_inline(rng)}. (<bold>B</bold>) "
        f"{_inline(rng)}. {_inline(rng)}.</p></caption><graphic {before}"
        f'xlink:href="g{number:03}.jpg"/></fig>'
    )


def _reference(rng: np.random.Generator) -> str:
    names = "".join(
        f"<name><surname>{_words(rng, 1).title()}</surname><given-names>A</given-names></name>"
        for _ in range(int(rng.integers(1, 6)))
    )
    year, page = int(rng.integers(1980, 2025)), int(rng.integers(1, 2000))
    return (
        f'<ref id="b{page}"><element-citation publication-type="journal"><person-group '
        f'person-group-type="author">{names}</person-group><article-title>{_words(rng, 12)}'
        f"</article-title><source>{_words(rng, 3)}</source><year>{year}</year><volume>3</volume>"
        f"<fpage>{page}</fpage><lpage>{page + 9}</lpage></element-citation></ref>"
    )


def _table(rng: np.random.Generator) -> str:
    row = "".join(f'<td align="left">{_words(rng, 2)}</td>' for _ in range(5))
    return (
        f"<table-wrap><label>Table</label><caption><p>{_words(rng, 12)}</p></caption><table>"
        f"<tbody>{f'<tr>{row}</tr>' * 12}</tbody></table></table-wrap>"
    )
