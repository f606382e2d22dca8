"""The report of gain and loss, from the metrics of a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlp.config import UserError
from vlp.text.forgetting import Forgetting, Role, compared, main, measured, report, roles
from vlp.text.mixture import MixtureConfig, StageConfig

ROLES: dict[str, Role] = {"general": "base", "papers": "target", "notes": "target"}


def row(step: int, prefix: str = "val", **scores: float) -> dict[str, Any]:
    found: dict[str, Any] = {"step": step}
    return found | {f"{prefix}/bits_per_character/{name}": v for name, v in scores.items()}


METRICS = [
    row(0, general=2.0, papers=3.0, notes=4.0),
    {"step": 5, "train/loss": 9.0},
    row(5, general=2.1, papers=2.9, notes=3.5),
    row(10, general=2.25, papers=2.5, notes=3.0),
]


def test_gain_and_loss_are_means_over_corpora() -> None:
    found = measured(METRICS, ROLES)
    assert found.gain == pytest.approx((0.5 + 1.0) / 2)
    assert found.loss == pytest.approx(0.25)
    assert found.steps == 10
    assert [(r.corpus, r.role, r.before, r.after) for r in found.rows] == [
        ("papers", "target", 3.0, 2.5),
        ("notes", "target", 4.0, 3.0),
        ("general", "base", 2.0, 2.25),
    ]
    assert found.notes == []


def test_both_are_printed_side_by_side() -> None:
    lines = str(measured(METRICS, ROLES)).splitlines()
    assert lines == [
        "bits per character before and after 10 steps (fewer are better)",
        "  corpus   role    before   after   change",
        "  papers   target   3.000   2.500   -0.500",
        "  notes    target   4.000   3.000   -1.000",
        "  general  base     2.000   2.250   +0.250",
        "gain on the target +0.750, loss on the base +0.250",
    ]


def test_without_a_base_corpus_it_says_so() -> None:
    found = measured([row(0, papers=3.0), row(4, papers=2.0)], {"papers": "target"})
    assert found.loss is None
    assert "loss on the base not measured" in str(found)
    assert "forgetting was not measured: " in str(found)
    assert "base_corpora" in str(found)


def test_the_base_itself_counts_where_it_has_another_vocabulary() -> None:
    """A transferred vocabulary spoils a model before the first step: that is loss, too."""
    base = row(0, prefix="base", general=1.5, papers=2.9)
    for metrics in ([base, *METRICS], [METRICS[0], base, *METRICS[1:]]):
        found = measured(metrics, ROLES)
        assert found.loss == pytest.approx(0.75)
        assert {r.corpus: r.before for r in found.rows}["notes"] == 4.0


def test_the_file_holds_what_is_printed(tmp_path: Path) -> None:
    lines = "".join(json.dumps(one) + "\n" for one in METRICS)
    (tmp_path / "metrics.jsonl").write_text(lines)
    assert report(tmp_path, ROLES) == str(measured(METRICS, ROLES))
    content = json.loads((tmp_path / "forgetting.json").read_text())
    assert content["gain_on_target"] == pytest.approx(0.75)
    assert content["loss_on_base"] == pytest.approx(0.25)
    assert content["corpora"][2] == {
        "corpus": "general",
        "role": "base",
        "before": 2.0,
        "after": 2.25,
        "change": 0.25,
    }


def stages(*weights: dict[str, str]) -> MixtureConfig:
    last = len(weights) - 1
    return MixtureConfig(
        stages=[StageConfig(weights=w, steps=0 if i == last else 5) for i, w in enumerate(weights)]
    )


@pytest.mark.parametrize(
    ("mixture", "base", "expected"),
    [
        (stages({"b": "1"}), [], {"a": "base", "b": "target", "c": "base"}),
        (stages({"b": "1"}), ["a"], {"a": "base", "b": "target", "c": "other"}),
        (stages({"a": "1"}, {"b": "1"}), [], {"a": "other", "b": "target", "c": "base"}),
        # Replay: trained on, and still the base's.
        (stages({"a": "0.1", "b": "1"}), ["a"], {"a": "base", "b": "target", "c": "other"}),
        (stages({}), [], dict.fromkeys("abc", "target")),
        (stages({}), ["c"], {"a": "target", "b": "target", "c": "base"}),
    ],
)
def test_roles(mixture: MixtureConfig, base: list[str], expected: dict[str, Role]) -> None:
    assert roles("abc", mixture, base) == expected


def test_a_run_without_scores_has_no_rows() -> None:
    assert measured([{"step": 3, "train/loss": 1.0}], ROLES) == Forgetting((), 0)


def write(folder: Path, **numbers: float | None) -> None:
    folder.mkdir(parents=True)
    (folder / "forgetting.json").write_text(json.dumps(numbers))


def test_runs_and_arms_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "one", gain_on_target=0.5, loss_on_base=0.25)
    write(tmp_path / "arms" / "lora", gain_on_target=0.125, loss_on_base=None)
    write(tmp_path / "arms" / "decay", gain_on_target=1.5, loss_on_base=-0.5)
    main([str(tmp_path / "one"), str(tmp_path / "arms")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines == [
        [str(tmp_path / "one"), "+0.500", "+0.250"],
        [str(tmp_path / "arms" / "decay"), "+1.500", "-0.500"],
        [str(tmp_path / "arms" / "lora"), "+0.125", "-"],
    ]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"gain_on_target": "much"}'])
def test_broken_reports_are_named(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "forgetting.json").write_text(content)
    with pytest.raises(UserError, match=r"forgetting.json: (missing|not a report)"):
        compared([tmp_path])
