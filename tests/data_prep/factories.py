"""Small sources for tests: image files, tables, articles in PubMed Central's bucket layout."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.__main__ import main
from data_prep.images import ImageRules
from data_prep.shards import INDEX, MANIFEST, REJECTS

RULES = ImageRules(short_side=512, min_side=1, max_pixels=100_000_000)
CC_BY = '<license xmlns:x="http://www.w3.org/1999/xlink" x:href="https://creativecommons.org/licenses/by/4.0/"/>'


def picture(width: int = 64, height: int = 48, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth random image, so that it survives JPEG."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Image.Image:
    """The image in a file's bytes, loaded."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def figure(
    name: str = "F1",
    caption: str = "<p>Section of the liver.</p>",
    graphic: str = '<graphic xlink:href="a"/>',
) -> str:
    """A `<fig>` element."""
    caption = f"<caption>{caption}</caption>" if caption else ""
    return f'<fig id="{name}"><label>Figure 1</label>{caption}{graphic}</fig>'


def article_xml(
    body: str, ids: Mapping[str, str] | None = None, licence: str = CC_BY, head: str = ""
) -> bytes:
    """A JATS article around `body`; `head` goes before the root element."""
    article_ids = "".join(
        f'<article-id pub-id-type="{kind}">{value}</article-id>'
        for kind, value in (ids or {}).items()
    )
    return (
        f'{head}<article xmlns:xlink="http://www.w3.org/1999/xlink" '
        'xmlns:mml="http://www.w3.org/1998/Math/MathML" article-type="research-article"><front>'
        "<journal-meta><journal-title>Journal</journal-title></journal-meta>"
        f"<article-meta>{article_ids}<title-group><article-title>A title</article-title>"
        f"</title-group><permissions>{licence}</permissions></article-meta></front>"
        f"<body>{body}</body></article>"
    ).encode()


def write_pmc_article(
    root: Path, number: int, figures: int = 2, version: int = 1, **record: Any
) -> Path:
    """One article in the bucket's layout; `record` goes into its JSON."""
    name = f"PMC{number}.{version}"
    folder = root / name
    folder.mkdir(parents=True)
    body = ""
    for n in range(1, figures + 1):
        caption = f"<p>Figure {n} of article {number}.</p>"
        body += figure(f"F{n}", caption, f'<graphic xlink:href="g{n}.jpg"/>')
        image = picture(40 + n, 40, seed=number * 10 + n)
        (folder / f"g{n}.jpg").write_bytes(encoded(image))
    ids = {"pmc": str(number), "doi": f"10.1/{number}"}
    (folder / f"{name}.xml").write_bytes(article_xml(body, ids))
    content = {"pmcid": f"PMC{number}", "version": version, "license_code": "CC BY"} | record
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_pmc(root: Path, articles: int = 12, figures: int = 2) -> Path:
    """A bucket of `articles` articles."""
    for number in range(1, articles + 1):
        write_pmc_article(root, number, figures)
    return root


def write_table(root: Path, rows: int = 12, width: int = 64, groups: int = 4) -> Path:
    """A JSON lines table `index.jsonl` and its images."""
    (root / "img").mkdir(parents=True)
    lines = []
    for number in range(rows):
        name = f"img/scan.{number}.jpg"
        (root / name).write_bytes(encoded(picture(width, width, seed=number % 10), quality=95))
        row = {"image": name, "caption": f"Radiograph number {number}.", "n": number}
        lines.append(json.dumps(row | {"patient": f"p{number % groups}"}))
    table = root / "index.jsonl"
    table.write_text("\n".join(lines))
    return table


def prepare(*arguments: str) -> None:
    """`python -m data_prep ...` in this process, with one worker."""
    stage, *rest = arguments
    main([stage, *rest, "workers=1"])


def manifest_of(folder: Path) -> dict[str, Any]:
    """manifest.json of a shard folder."""
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return content


def rows_of(folder: Path, name: str = INDEX) -> list[dict[str, Any]]:
    """Rows of index.parquet."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(folder / name).to_pylist()
    return rows


def rejects_of(folder: Path) -> list[tuple[str, ...]]:
    """Rows of rejects.parquet as tuples (article, figure, image, stage, reason)."""
    return [tuple(row.values()) for row in rows_of(folder, REJECTS)]


def member(folder: Path, row: Mapping[str, Any], kind: str) -> bytes:
    """The `image`, `text` or `json` member of an index row, read by its offset."""
    with (folder / row["shard"]).open("rb") as shard:
        shard.seek(row[f"{kind}_offset"])
        return shard.read(row[f"{kind}_size"])


def tree(folder: Path, skip: Sequence[str] = ()) -> dict[str, bytes]:
    """Every file below `folder` by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in skip
    }
