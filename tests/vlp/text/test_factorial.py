"""Arms: their order, what they start from, equal compute, and being taken up again."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.vlp.text.tiny import arguments, make_home
from vlp.config import UserError, load_config
from vlp.curves import read_metrics
from vlp.text import arms_report, factorial
from vlp.text.clip_retrieval import RECALLS
from vlp.text.factorial import Approve, arms_of, run_arms
from vlp.text.settings import TextRunConfig
from vlp.text_pretrain import main


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("factorial"))


ARMS = {
    "general": ["mixture.stages=[{weights: {a: '1'}}]", "train.flops=1.75e8"],
    "scratch": [],
    "further": ["init=continual", "base=@general", "train.flops=1.75e8"],
    "borrowed": ["vocabulary=inherited", "base=@general"],
}


def command(home: Path, arms: dict[str, list[str]], *overrides: str) -> list[str]:
    """A command line with arms, and a budget for those that don't say theirs."""
    file = home / "arms.yaml"
    file.write_text(json.dumps({"arms": arms}))
    budget = ["train.steps=0", "train.flops=3.5e8", "mixture.stages=[{weights: {b: '1'}}]"]
    return arguments(home, str(file), *budget, *overrides)


def read(argv: Sequence[str]) -> TextRunConfig:
    return load_config(TextRunConfig, argv)


def test_arms_are_the_configuration_with_changes(home: Path) -> None:
    argv = command(home, ARMS, "name=f")
    arms = {arm.name: arm for arm in arms_of(read(argv), argv)}
    assert list(arms) == list(ARMS)
    assert [arm.compared for arm in arms.values()] == [False, True, True, True]
    assert [arm.start for arm in arms.values()] == ["", "", "general", ""]
    general = home / "runs" / "f" / "general" / "model"
    assert arms["further"].config.base == arms["borrowed"].config.base == str(general)
    assert arms["scratch"].config.folder == home / "runs" / "f" / "scratch"
    for arm in arms.values():
        alone = load_config(TextRunConfig, [*argv, *arm.changes])
        own = {"name": f"f/{arm.name}", "arms": {}, "clip": "", "base": arm.config.base}
        assert arm.config == dataclasses.replace(alone, **own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["base=@later", "init=continual"], "arms.one: base=@later: arms before it are: none"),
        (["base=@one", "init=continual"], "arms.one: base=@one: arms before it are: none"),
        (["init=continual"], "arms.one: base: name a model's folder, or @ARM"),
        (["name=x"], "arms.one: 'name=x': set another key, as key=value"),
        (["runs"], "arms.one: 'runs': set another key, as key=value"),
        (
            ["train.stepz=2"],
            "arms.one: train.stepz=2: unknown key 'train.stepz'; did you mean 'train.steps'?",
        ),
        (["train.mixout=0.5"], "arms.one: lora and train.mixout need init=continual"),
    ],
)
def test_arms_that_can_not_be(home: Path, changes: list[str], message: str) -> None:
    argv = command(home, {"one": changes, "later": []})
    with pytest.raises(UserError) as caught:
        arms_of(read(argv), argv)
    assert str(caught.value) == message


def test_budgets_are_compared_before_anything_is_run(home: Path) -> None:
    argv = command(home, {**ARMS, "further": [*ARMS["further"][:2], "train.flops=2e8"]})
    with pytest.raises(UserError, match=r"scratch spends 3\.5e\+08 .* further 3\.75e\+08"):
        run_arms(read(argv), argv, refuse, refuse, refuse)


class Runs:
    """Stands for training: notes the order, and stops where it is told to."""

    def __init__(self, spends: dict[str, float], stop: str = "") -> None:
        self.spends, self.stop, self.done = spends, stop, list[str]()

    def __call__(self, config: TextRunConfig, approve: Approve) -> None:
        name = config.name.partition("/")[2]
        approve(self.spends[name])
        if name == self.stop:
            raise SystemExit(75)
        self.done.append(name)
        config.folder.mkdir(parents=True, exist_ok=True)


SPENDS = {"general": 50.0, "scratch": 100.0, "further": 100.5, "borrowed": 99.6}


def refuse(*_: Any) -> Any:
    raise AssertionError("nothing is to be run")


def run(
    home: Path,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    *overrides: str,
    name: str,
    retrieval: factorial.Retrieval = refuse,
) -> list[str]:
    """The arms with `runs` for training; returns what was reported."""
    monkeypatch.setattr(factorial, "arm_record", lambda config, *_: {"name": config.name})
    monkeypatch.setattr(factorial, "write_report", lambda _, records: f"{len(records)} arms")
    argv, told = command(home, ARMS, f"name={name}", *overrides), list[str]()
    run_arms(read(argv), argv, runs, retrieval, told.append)
    return told


def test_finished_arms_are_not_run_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Runs(SPENDS, stop="further")
    with pytest.raises(SystemExit) as caught:
        run(home, first, monkeypatch, name="cut")
    assert caught.value.code == 75
    assert first.done == ["general", "scratch"]
    rest = Runs(SPENDS)
    assert run(home, rest, monkeypatch, name="cut") == ["4 arms"]
    assert rest.done == ["further", "borrowed"]
    # What decides no number may change.
    again = run(home, Runs({}), monkeypatch, "train.workers=1", "train.log_every=9", name="cut")
    assert again == ["4 arms"]


def test_controls_may_spend_less_and_are_scored(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the arms one is a base alone: not scored, unless it is named as a control."""
    spends = {**SPENDS, "borrowed": 3.0}
    with pytest.raises(UserError, match="borrowed spends 3 operations"):
        run(home, Runs(spends), monkeypatch, name="few")
    scored = list[str]()

    def retrieval(config: TextRunConfig) -> dict[str, Any]:
        scored.append(config.name.partition("/")[2])
        return {}

    for controls, names in (("borrowed", [*ARMS][1:]), ("borrowed,general", [*ARMS])):
        changes = [f"controls=[{controls}]", "clip=clip.yaml"]
        told = run(home, Runs(spends), monkeypatch, *changes, name="c", retrieval=retrieval)
        assert told == ["4 arms"]
        assert scored == names
        scored.clear()
    with pytest.raises(UserError, match="controls: no such arm x; see arms"):
        run(home, Runs(spends), monkeypatch, "controls=[x]", name="c")


def test_a_finished_arm_of_other_settings_stops(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(home, Runs(SPENDS), monkeypatch, name="changed")
    with pytest.raises(UserError, match=r"general: this arm has run with another seed; choose"):
        run(home, Runs(SPENDS), monkeypatch, "seed=3", name="changed")
    note = home / "runs" / "changed" / "general" / factorial.RECORD
    note.write_text("{}")
    with pytest.raises(UserError, match=r"arm\.json: not readable .*delete it"):
        run(home, Runs(SPENDS), monkeypatch, name="changed")


def test_unequal_compute_stops_before_the_arm_is_trained(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs({**SPENDS, "further": 101.5})
    with pytest.raises(UserError, match=r"scratch spends 100 operations and further 101\.5"):
        run(home, runs, monkeypatch, name="unequal")
    assert runs.done == ["general", "scratch"]


def test_a_factorial_from_text_to_report(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything real but the size; a second start runs nothing and reports the same."""
    rarely = [f"train.{key}_every=1000" for key in ("eval", "log", "checkpoint")]
    argv = command(home, ARMS, "name=whole", "train.batch_size=1", *rarely)
    main(argv)
    printed = capfd.readouterr().out
    folder = home / "runs" / "whole"
    report = (folder / arms_report.MARKDOWN).read_text()
    assert report in printed
    arms = {arm["name"]: arm for arm in arms_report.read_report(folder)}
    assert list(arms) == list(ARMS)
    totals = [arm["flops"]["all"] for arm in arms.values() if arm["compared"]]
    assert max(totals) - min(totals) < 0.01 * max(totals)
    assert arms["further"]["flops"]["base"] == arms["general"]["flops"]["run"]
    assert arms["borrowed"]["flops"]["base"] == 0  # of `general` it has the vocabulary alone
    for name, arm in arms.items():
        rows = read_metrics(folder / name / "metrics.jsonl")
        for corpus in ("a", "b"):
            found = arm["corpora"][corpus]
            key = f"val/bits_per_character/{corpus}"
            assert found["bits_per_character"] == [row[key] for row in rows if key in row][-1]
            assert f"{found['bits_per_character']:.3f} | {found['unigram_floor']:.3f}" in report
            assert found["trained_on_last"] == ((name == "general") == (corpus == "a"))
    general, borrowed = (
        Tokenizer.from_file(str(folder / name / "model" / "tokenizer.json")).to_str()
        for name in ("general", "borrowed")
    )
    assert general == borrowed
    pieces = {name: arm["corpora"]["b"]["pieces_per_word"] for name, arm in arms.items()}
    assert pieces["borrowed"] == pieces["general"] != pieces["scratch"]

    monkeypatch.setattr("vlp.text_pretrain.TextTrainer", refuse)
    main(argv)
    assert report in capfd.readouterr().out


def record(value: float, seed: int) -> dict[str, Any]:
    scores = {"value": value, "low": value - 0.02, "high": value + 0.02, "chance": 0.01}
    corpus = {
        "trained_on_last": True,
        "bits_per_character": 2 * value,
        "unigram_floor": 2.5,
        "nats_per_piece": 5.0,
        "pieces_per_word": 1.25,
    }
    return {
        "name": "one",
        "compared": True,
        "changes": ["seed=1"],
        "seed": seed,
        "steps": 10,
        "tokens": 1000,
        "flops": {"run": 1e9, "base": 0.0, "all": 1e9},
        "corpora": {"a": corpus},
        "other": {},
        "retrieval": {"shards": {"split": "test", "n": 100} | dict.fromkeys(RECALLS, scores)},
    }


def test_one_run_shows_intervals_several_their_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, value in enumerate((0.1, 0.4)):
        (tmp_path / str(number)).mkdir()
        arms_report.write_report(tmp_path / str(number), [record(value, number)])
    one = (tmp_path / "0" / arms_report.MARKDOWN).read_text()
    assert "| **a** | one | 0.200 | 2.500 | 1.250 |" in one
    assert "| shards (test, n = 100) | one | 10.0% (8.0% - 12.0%) |" in one
    arms_report.main([str(tmp_path / "0"), str(tmp_path / "1")])
    both = capsys.readouterr().out
    assert "| **a** | one | 0.500 [0.200, 0.800] | 2.500 | 1.250 |" in both
    assert "| image to text R@1 | text to image R@1 | image to text R@10 |" in both
    assert f"| one |{' 25.0% [10.0%, 40.0%] |' * 4} 1.0% |" in both


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory; run the arms to their end"),
        ("{", "no report of arms"),
        ('{"arms": [1]}', "no report of arms"),
        ('{"arms": [{"name": "other"}]}', "its arms are other, those of"),
    ],
)
def test_reports_that_can_not_be_put_together(
    tmp_path: Path, content: str | None, message: str
) -> None:
    (tmp_path / "good").mkdir()
    arms_report.write_report(tmp_path / "good", [record(0.1, 0)])
    if content is not None:
        (tmp_path / arms_report.JSON).write_text(content)
    with pytest.raises(UserError, match=message):
        arms_report.main([str(tmp_path / "good"), str(tmp_path)])
