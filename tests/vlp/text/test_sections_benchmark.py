"""benchmarks/text_sections.py and its pairs: scores that mean what they say."""

import json
from pathlib import Path

import pytest

from benchmarks.section_pairs import write_pairs
from benchmarks.text_sections import SectionsBenchmark, measure
from tests.vlp.text.objectives_data import reports
from vlp.config import UserError

ARTICLE = """<article><front><article-meta/></front><body><sec><title>Results</title>
<p>Bones healed (<xref ref-type="fig" rid="f{n}">Figure 1</xref>) in week {n}.</p>
<fig id="f{n}"><label>Figure 1</label><caption><p>Bone of mouse {n}.</p></caption>
<graphic href="f{n}.jpg"/></fig></sec></body></article>"""


def test_captions_and_mentions_of_articles(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.xml").write_text(ARTICLE.format(n=number))
    (tmp_path / "broken.xml").write_text("no XML")
    assert write_pairs(tmp_path, tmp_path / "pairs.jsonl") == 3
    records = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == ["0.xml#0", "1.xml#0", "2.xml#0"]
    assert records[1]["caption"] == "Bone of mouse 1."
    assert records[1]["mention"] == "Bones healed (Figure 1) in week 1."
    with pytest.raises(UserError, match="none: no such folder"):
        write_pairs(tmp_path / "none", tmp_path / "none.jsonl")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no figure with a caption and a mention"):
        write_pairs(tmp_path / "none", tmp_path / "none.jsonl")


def test_scores_of_all_arms(tmp_path: Path) -> None:
    """TF-IDF finds reports by their number; arms of equal operations are scored beside it."""
    lines = [json.dumps(report) for report in reports()]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    shape = "model={length: 24, max_positions: 24, width: 16, layers: 2, heads: 2, mlp_width: 32}"
    config = SectionsBenchmark(
        pairs=str(tmp_path / "r.jsonl"),
        first="findings",
        second="impression",
        flops=3e7,
        run=[shape, "own_vocabulary.size=250", "objectives.sections.pairs=8"],
    )
    result = measure(config)
    scores = {row.what: row.value for row in result.rows}
    held_out = int(result.facts["pairs"].split()[3])
    assert scores["chance"] == 1 / held_out
    assert scores["TF-IDF: impression of findings"] > 0.5
    assert len(scores) == 1 + 2 * 8
    assert all(0 <= score <= 1 for score in scores.values())
