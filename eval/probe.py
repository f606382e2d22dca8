"""`python -m eval probe SUITE.yaml ...`: linear probes and few-shot probes of image embeddings.

The embeddings are those that zero-shot scores use (unit rows, in the space shared with text), so
that a probe and a zero-shot score of one table speak of the same numbers. Results are written as
those of any task, into the folder `probe` beside them: `compare` and `table` read them too.
"""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from eval import classification, metrics
from eval.class_scores import ClassScores, class_scores
from eval.config import EvalConfig, TaskConfig, chosen_tasks
from eval.console import print_table
from eval.embed import Embedder
from eval.logistic import Labelled, Probe, draw, fit
from eval.metrics import Floats, Interval, Ints
from eval.probe_data import Items, Splits, hold_out, items_of, open_splits, shared_notes
from eval.prompts import class_names
from eval.report import write_report
from eval.results import Record, finished, labels_sha256, run_header, task_header, write_task
from eval.suite import Run, TaskRun, default_out, progress_bars
from eval.suite_files import load_suite
from eval.tasks import Inputs, Result, Score, cluster_indices, identities
from eval.team import check_same_model, join
from vlp.config import save_config, to_dict

COOP_SHOTS = 4
"""Validation images of a class at most, with probe.validation=shots."""

Statistic = Callable[[Ints | None], float]
"""How often each item counts, or None for once -> a score."""


def main(argv: list[str]) -> None:
    """Fit and score probes; writes TASK.json, TASK.items.parquet and report.html."""
    config = load_suite(argv, "python -m eval probe")
    files = [arg for arg in argv if Path(arg).is_file()]
    command = shlex.join(["python", "-m", "eval", "probe", *argv])
    run = run_probes(config, " + ".join(files) or "command line", command)
    if run is None:  # a helper of rank 0
        return
    records = [done.record for done in run.tasks.values()]
    print_table(f"{config.name}, probes: {run.model.name}", records, write_report(run))


def run_probes(config: EvalConfig, suite: str, command: str) -> Run | None:
    """Fit and score probes on the classification tasks of a suite that have a training split.

    Args:
        suite: the suite's file, for errors.
        command: how to repeat this, for the results.

    Returns:
        The run; None on ranks other than 0.

    Raises:
        UserError: a suite, data or model that doesn't fit, or no task to probe.
    """
    tasks = chosen_tasks(config, suite)
    opened, left_out = open_splits(config, tasks, suite)

    # open_clip takes seconds to import: a mistake in the suite is told before.
    from eval.model import load_model

    team, device = join(config.device)
    model = load_model(config.model, device, config.seed)
    check_same_model(team, model.sha256)
    beside = Path(config.out) if config.out else default_out(model, config.name)
    # The cache is that of the zero-shot scores, which have embedded the test images already.
    out, cache = beside / "probe", Path(config.cache) if config.cache else beside / "cache"
    with progress_bars(disable=not team.is_main) as progress:
        embedder = Embedder(model, cache, config.batch_size, config.workers, progress, team)
        if not team.is_main:
            embedder.help(each for splits in opened.values() for each in splits.sets().values())
            team.leave()
            return None
        for name, reason in left_out.items():
            progress.console.print(f"{name}: left out: {reason}", markup=False, highlight=False)
        out.mkdir(parents=True, exist_ok=True)
        save_config(config, out / "config.yaml")
        header = run_header(config, suite, command, embedder)
        records = {
            name: _record(config, out, header, (name, tasks[name], splits), embedder)
            for name, splits in opened.items()
        }
        team.tell(None)
    team.leave()
    runs = {name: TaskRun(tasks[name], opened[name].test, records[name]) for name in opened}
    return Run(config, model, out, runs)


def _record(
    config: EvalConfig,
    out: Path,
    header: Record,
    named: tuple[str, TaskConfig, Splits],
    embedder: Embedder,
) -> Record:
    """The record of one task, from its file where nothing has changed."""
    name, task, splits = named
    header = task_header(header, name, task, splits.test, labels_sha256(splits.test))
    header["kind"] = "probe"
    header["options"]["probe"] = {
        **to_dict(config.probe),
        "data": {
            split: [dataset.fingerprint, labels_sha256(dataset)]
            for split, dataset in splits.sets().items()
        },
    }
    if not config.overwrite and (record := finished(out, header)):
        return record
    parts = {}
    for split, dataset in splits.sets().items():
        images = embedder.images(dataset, f"{name}, {split}")
        inputs = Inputs(task, dataset, images, embedder, name, config.seed, config.replicates)
        parts[split] = items_of(inputs)
    result = probe_task(config, splits.notes, parts)
    return write_task(out, header, result, splits.test, parts["test"].inputs.images)


def probe_task(config: EvalConfig, notes: list[str], parts: dict[str, Items]) -> Result:
    """Fit and score all probes of one task.

    Args:
        notes: on the splits.
        parts: the items of train, val and test; without val a part of train is held out.

    Raises:
        UserError: training or validation items of one class only.
    """
    test = parts["test"]
    if "val" in parts:
        train, val = parts["train"].data, parts["val"].data
    else:
        train, val = hold_out(parts["train"], config.seed)
    bench = _Bench(test, train, val, config)
    zero_shot = classification.evaluate(test.inputs)
    scores = {f"zero_shot_{bench.metric}": zero_shot.scores[bench.metric]}
    few_shot = []
    for shots in sorted(config.probe.shots):
        score, about = bench.few_shot(shots)
        scores[f"{bench.metric}_{shots}_shot{'s' * (shots > 1)}"] = score
        few_shot.append(about)
    headline = [list(scores)[-1]]
    details = {key: zero_shot.details[key] for key in ("classes", "prompts", "pool", "ensemble")}
    items: list[dict[str, Any]] = []
    if config.probe.full:
        probe = fit(train, val, len(bench.labels), bench.value)
        log_probabilities = probe.log_probabilities(test.data.features)
        headline = [bench.metric]
        found, more = _judged(bench.scores(test.data.labels, log_probabilities), bench.labels, test)
        scores |= found
        details |= {**more, "strength": probe.strength, "converged": probe.converged}
        items = _rows(log_probabilities, bench.labels, test)
        if not probe.converged:
            notes = [*notes, "the probe of the whole training split didn't converge"]
    details |= {"train": len(train.labels), "val": len(val.labels), "few_shot": few_shot}
    clusters = cluster_indices(test.items, test.inputs.task.cluster)[1]
    return Result(
        n=len(test.items),
        scores=scores,
        headline=headline,
        excluded=dict(test.excluded),
        clusters=clusters,
        details=details,
        notes=[*notes, *_class_notes(bench, config), *shared_notes(parts["train"], test)],
        items=items,
    )


class _Bench:
    """The items of one task, and what is fitted to them."""

    def __init__(self, test: Items, train: Labelled, val: Labelled, config: EvalConfig) -> None:
        task = test.inputs.task
        self.test, self.train, self.val, self.config = test, train, val, config
        self.labels = list(class_names(task, test.inputs.dataset))
        self.metric = task.metric
        self.positive = self.labels.index(task.positive) if task.positive else None
        self.clusters, _ = cluster_indices(test.items, task.cluster)

    def few_shot(self, shots: int) -> tuple[Score, dict[str, Any]]:
        """(mean over the draws, what each draw gave)."""
        statistics, strengths = [], []
        for draw_number in range(self.config.probe.seeds):
            probe = self._few_shot_probe(shots, draw_number)
            strengths.append(probe.strength)
            found = probe.log_probabilities(self.test.data.features)
            statistics.append(statistic(self.scores(self.test.data.labels, found), self.metric))
        values = [each(None) for each in statistics]
        interval = over_draws(
            statistics,
            self.clusters,
            seed=self.config.seed,
            replicates=self.config.replicates,
        )
        chance = self._chance()
        about = {"shots": shots, "values": values, "strengths": strengths}
        return Score(float(np.mean(values)), *interval, chance), about

    def _few_shot_probe(self, shots: int, draw_number: int) -> Probe:
        seed = self.config.seed
        taken = draw(self.train.labels, shots, np.random.default_rng([seed, draw_number]))
        val = self.val
        if self.config.probe.validation == "shots":
            rng = np.random.default_rng([seed, draw_number, 1])
            val = val.take(draw(val.labels, min(shots, COOP_SHOTS), rng))
        return fit(self.train.take(taken), val, len(self.labels), self.value)

    def scores(self, true: Ints, log_probabilities: Floats) -> ClassScores:
        """All scores of some items."""
        predicted = log_probabilities.argmax(axis=1)
        return class_scores(true, log_probabilities, predicted, self.positive)

    def value(self, true: Ints, log_probabilities: Floats) -> float:
        """The task's score of some items."""
        return statistic(self.scores(true, log_probabilities), self.metric)(None)

    def _chance(self) -> float:
        uniform = np.zeros((len(self.test.data.labels), len(self.labels)))
        return self.scores(self.test.data.labels, uniform).chance()[self.metric]


def statistic(scores: ClassScores, metric: str) -> Statistic:
    """One score of a task as a function of the items' weights.

    A class that a resample misses keeps its own score, as in ClassScores.intervals.
    """
    whole = _per_class(scores, metric, None)
    positive = None if metric in ("mean_per_class_recall", "macro_f1") else scores.positive

    def value(weights: Ints | None) -> float:
        if metric == "accuracy":
            return float(np.average(scores.true == scores.predicted, weights=weights))
        found = _per_class(scores, metric, weights)
        kept = np.where(np.isnan(found), whole, found)
        return float(np.nanmean(kept) if positive is None else kept[positive])

    return value


def over_draws(
    statistics: list[Statistic], clusters: Ints, *, seed: int, replicates: int
) -> Interval:
    """Interval of the mean over draws of training images, of which test items are a sample too.

    Both are resampled: a resample holds as many draws, and as many clusters of test items, as there
    are, with replacement.

    Args:
        statistics: one score of the probe of each draw.
        clusters: int [n] from 0; test items of one cluster are drawn together.
    """
    count = len(statistics)
    rng = np.random.default_rng([seed, count])

    def resampled(weights: Ints) -> Floats:
        drawn = np.bincount(rng.integers(count, size=count), minlength=count)
        values = [times * statistics[i](weights) for i, times in enumerate(drawn) if times]
        return np.array([sum(values) / count])

    return metrics.bootstrap(resampled, clusters, seed=seed, replicates=replicates)[0]


def _per_class(scores: ClassScores, metric: str, weights: Ints | None) -> Floats:
    """[classes]: what `metric` is the mean of; NaN where it is undefined."""
    if metric in ("auroc", "average_precision"):
        return metrics.areas(scores.ranking, weights)[int(metric == "average_precision")]
    confusion = metrics.confusion_matrix(scores.true, scores.predicted, scores.classes, weights)
    if metric in ("accuracy", "mean_per_class_recall"):
        return metrics.per_class_recall(confusion)
    return metrics.per_class_f1(confusion)


def _judged(
    scored: ClassScores, labels: list[str], test: Items
) -> tuple[dict[str, Score], dict[str, Any]]:
    """(scores, details) of the probe of the whole training split."""
    clusters, _ = cluster_indices(test.items, test.inputs.task.cluster)
    values, chance = scored.overall(), scored.chance()
    intervals, bounds = scored.intervals(lambda f: test.inputs.intervals(f, clusters))
    scores = {key: Score(v, *intervals[key], chance[key]) for key, v in values.items()}
    confusion = metrics.confusion_matrix(scored.true, scored.predicted, len(labels))
    return scores, {
        "confusion": confusion.tolist(),
        "per_class": classification.per_class_table(scored, labels, bounds),
        "majority_share": metrics.majority_share(scored.true),
    }


def _rows(log_probabilities: Floats, labels: list[str], test: Items) -> list[dict[str, Any]]:
    """What the probe made of each item, in the columns of classification."""
    return [
        {
            **identity,
            "value": float(row.argmax() == label),
            "label": labels[label],
            "predicted": labels[row.argmax()],
            "scores": row.tolist(),
        }
        for identity, label, row in zip(
            identities(test.items, test.inputs), test.data.labels, log_probabilities, strict=True
        )
    ]


def _class_notes(bench: _Bench, config: EvalConfig) -> list[str]:
    """Classes with fewer training images than asked for."""
    counts = np.bincount(bench.train.labels, minlength=len(bench.labels))
    most = max(config.probe.shots, default=1)
    return [
        f"class '{label}' has only {count} training images"
        for label, count in zip(bench.labels, counts, strict=True)
        if count < most
    ]
