"""Captions of figures and the paragraphs that mention them, of JATS files, as JSON lines.

    python -m benchmarks.section_pairs articles=FOLDER out=data/pairs.jsonl

For benchmarks/text_sections.py and configs/text/small/sections.yaml. Ids name the file and the
figure, with a # between them, so that articles can be kept in one split.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.jats import JatsError, parse_article
from vlp.config import UserError, load_config, run_program, write_text


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Write the pairs of a folder."""

    articles: str = ""
    """Folder of JATS files."""
    out: str = ""
    """File of JSON lines with `id`, `caption` and `mention`."""

    def __post_init__(self) -> None:
        if not (self.articles and self.out):
            raise ValueError("set articles and out")


def write_pairs(articles: Path, file: Path) -> int:
    """Caption and mentions of each figure that has both, as JSON lines; returns how many.

    Raises:
        UserError: there are none, or no such folder.
    """
    if not articles.is_dir():
        raise UserError(f"articles={articles}: no such folder")
    lines = [json.dumps(record) for record in _figures(articles)]
    if not lines:
        raise UserError(f"{articles}: no figure with a caption and a mention in its JATS files")
    write_text(file, "\n".join(lines) + "\n")
    return len(lines)


def _figures(articles: Path) -> Iterator[dict[str, str]]:
    for path in sorted([*articles.rglob("*.xml"), *articles.rglob("*.nxml")]):
        try:
            found = parse_article(path.read_bytes())
        except JatsError as error:
            print(f"{path}: {error}; left out")
            continue
        for number, figure in enumerate(found.figures):
            if figure.caption and figure.mentions:
                name = f"{path.relative_to(articles)}#{number}"
                yield {"id": name, "caption": figure.caption, "mention": "\n".join(figure.mentions)}


def main(argv: list[str]) -> None:
    """Write the file."""
    config = load_config(PairsConfig, argv, "python -m benchmarks.section_pairs")
    print(f"{write_pairs(Path(config.articles), Path(config.out))} pairs: {config.out}")


if __name__ == "__main__":
    run_program(main)
