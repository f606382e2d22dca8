"""Presets and small experiments: they load, say what they cost, and run on a little text."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.vlp.text.test_vocabulary import TEXTS
from tests.vlp.text.tiny import make_home, settings
from vlp.config import UserError, load_config
from vlp.curves import read_metrics
from vlp.interrupt import Interrupt
from vlp.settings import Config
from vlp.text.cost import cost_of, main
from vlp.text.factorial import arms_of, check_budgets
from vlp.text.settings import TextRunConfig
from vlp.text.trainer import TextTrainer
from vlp.text_pretrain import train

CONFIGS = Path(__file__).parents[3] / "configs" / "text"
PRESETS = sorted(CONFIGS.glob("*.yaml"))
SMALL = sorted(path for path in CONFIGS.glob("small/*.yaml") if not path.stem.startswith("clip"))


def runs(path: Path) -> dict[str, TextRunConfig]:
    """The arms of a configuration, or the only run of it."""
    config = load_config(TextRunConfig, [str(path)])
    arms = arms_of(config, [str(path)])
    check_budgets(arms)
    return {arm.name: arm.config for arm in arms} or {config.name: config}


def test_presets_of_the_papers_are_there() -> None:
    wanted = "biobert cxr_bert italian_medical openmed_dapt oubiobert pubmedbert spanish_clinical"
    assert [path.stem for path in PRESETS] == wanted.split()


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_says_source_what_is_not_known_and_what_it_costs(path: Path) -> None:
    """The computed cost in the header is that of the settings below it."""
    header = path.read_text().partition("name:")[0]
    assert load_config(TextRunConfig, [str(path)]).name == path.stem
    assert re.search(r"arXiv:\d{4}\.\d{5}", header)
    for needed in ("Source:", "Known:", "Not known to us:", "[own]", "computed", "not measured"):
        assert needed in " ".join(header.replace("#", " ").split()), needed
    assert f"configs/text/{path.name}" in header
    for name, config in runs(path).items():
        assert f"#   {name}: {cost_of(config)}\n" in header
    docs = (CONFIGS.parents[1] / "docs" / "text_pretraining.md").read_text()
    flops = sum(cost_of(config).flops for config in runs(path).values())
    assert re.search(rf"\| `{path.stem}` \|.*\| {flops:.1e} \|".replace("e+", "e"), docs)


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_a_small_experiment_has_arms_of_one_budget(path: Path) -> None:
    config = load_config(TextRunConfig, [str(path)])
    assert config.name.endswith("-0")  # the first of several seeds
    assert f"configs/text/small/{path.name}" in path.read_text().partition("name:")[0]
    assert len(runs(path)) >= 2
    if config.clip:
        assert load_config(Config, [str(CONFIGS.parents[1] / config.clip)]).data.sources


def test_known_numbers_of_the_papers() -> None:
    """What the configurations make of the published settings agrees with the published totals."""
    (pubmedbert,) = runs(CONFIGS / "pubmedbert.yaml").values()
    assert (pubmedbert.train.steps, pubmedbert.train.batch_size) == (62_500, 8_192)
    (biobert,) = runs(CONFIGS / "biobert.yaml").values()
    assert biobert.train.batch_size * biobert.model.length == 98_304
    assert [stage.steps for stage in biobert.mixture.stages] == [200_000, 0]
    oubiobert = runs(CONFIGS / "oubiobert.yaml").values()
    assert sum(cost_of(phase).tokens for phase in oubiobert) == pytest.approx(85e9, rel=0.01)


def test_a_cost_needs_steps(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(CONFIGS / "openmed_dapt.yaml"), "train.steps=0"]
    with pytest.raises(UserError, match=r"set train\.steps"):
        main(arguments)
    main([str(CONFIGS / "oubiobert.yaml")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["short", "long"]


# -- each preset runs --------------------------------------------------------------------------

LITTLE = {
    "model": {"length": 24, "max_positions": 32, "width": 32, "layers": 2, "heads": 4}
    | {"mlp_width": 48},
    "own_vocabulary": {"size": 330},
    "split": {"val_fraction": 0.2},
}
STEPS = {"steps": 2, "flops": 0, "batch_size": 4, "precision": "fp32", "workers": 0}
RARELY = {"eval_every": 0, "checkpoint_every": 2, "log_every": 1, "device": "cpu"}
SIZES = re.compile(r"train\.(steps|batch_size|flops)=|model\.length=|objectives\.sections\.pairs=")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora, a base, and files of the kinds that presets read."""
    home = make_home(tmp_path_factory.mktemp("presets"))
    train(settings(home, "name=base", "train.steps=1", "train.eval_every=0"), Interrupt())
    for number, text in enumerate(TEXTS * 6):
        article = f"<article><body><p>{_xml(text)} {number}</p></body></article>"
        (home / "jats").mkdir(exist_ok=True)
        (home / "jats" / f"{number}.xml").write_text(article)
    citations = "".join(
        f"<PubmedArticle><MedlineCitation><PMID>{number}</PMID><Article><ArticleTitle>A</ArticleTitle>"
        f"<Abstract><AbstractText>{_xml(text)} {number}</AbstractText></Abstract></Article>"
        "</MedlineCitation></PubmedArticle>"
        for number, text in enumerate(TEXTS * 6)
    )
    pubmed = f"<PubmedArticleSet>{citations}</PubmedArticleSet>"
    (home / "pubmed.xml").write_text(pubmed)
    return home


def _xml(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def little(home: Path, path: Path) -> dict[str, Any]:
    """A preset's own content with little data, a little model and two steps."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    for corpus in content["corpora"].values():
        files = {"pubmed": "pubmed.xml", "jats": "jats"}
        corpus["path"] = str(home / files.get(corpus.get("kind", ""), "b.jsonl"))
        if "fields" in corpus:
            corpus["fields"] = ["text", "summary"]
        corpus["cleaning"] = {**corpus.get("cleaning", {}), "min_words": 0, "languages": []}
        corpus["cleaning"]["duplicates"] = "none"
    for stage in content.get("mixture", {}).get("stages", []):
        stage["steps"] = 1 if stage.get("steps") else 0
    content["train"] = {**content["train"], **STEPS, **RARELY}
    content["own_vocabulary"] = {**content.get("own_vocabulary", {}), **LITTLE["own_vocabulary"]}
    objectives = content.get("objectives", {})
    if "next_sentence_pairs" in objectives:
        objectives["next_sentence_pairs"] = 4
    arms = content.get("arms", {})
    for name, changes in arms.items():
        kept = [change for change in changes if not SIZES.match(change)]
        kept = [re.sub(r"sections\.(first|second)=\w+", _section, change) for change in kept]
        sections = any(change.startswith("objectives.sections") for change in kept)
        arms[name] = [*kept, *(["objectives.sections.pairs=4"] if sections else [])]
    content |= {"model": LITTLE["model"], "split": LITTLE["split"]}
    if "base" in content:
        content["base"] = str(home / "runs" / "base" / "model")
    return content | {"runs": str(home / "runs"), "cache": str(home / "cache")}


def _section(match: re.Match[str]) -> str:
    return f"sections.{match[1]}={'text' if match[1] == 'first' else 'summary'}"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_takes_two_steps(home: Path, path: Path) -> None:
    """All of its arms, with all of its other settings; the loss is finite, a folder is written."""
    file = home / path.name
    file.write_text(yaml.safe_dump(little(home, path), sort_keys=False))
    for name, config in runs(file).items():
        trainer = TextTrainer(config)
        assert trainer.fit(), name
        assert trainer.step == 2
        assert (config.folder / "model" / "model.safetensors").is_file()
        rows = read_metrics(config.folder / "metrics.jsonl")
        last = {key: value for row in rows for key, value in row.items()}
        for corpus in trainer.data.trained:
            assert 0 < last[f"val/bits_per_character/{corpus}"] < 20
