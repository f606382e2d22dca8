"""`python -m eval probe SUITE.yaml ...`: linear probes and few-shot probes of image embeddings.

The embeddings are those that zero-shot scores use (unit rows, in the space shared with text), so
that a probe and a zero-shot score of one table speak of the same numbers. Results are written as
those of any task, into the folder `probe` beside them: `compare` and `table` read them too.
"""

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from eval import metrics
from eval.config import EvalConfig, TaskConfig, chosen_tasks
from eval.console import print_table
from eval.embed import Embedder
from eval.metrics import Floats, Interval, Ints
from eval.probe_data import Items, Splits, hold_out, items_of, open_splits, shared_notes
from eval.probe_kinds import BENCHES, Bench, Statistic
from eval.report import write_report
from eval.results import Record, finished, labels_sha256, run_header, task_header, write_task
from eval.suite import KINDS, Run, TaskRun, default_out, progress_bars
from eval.suite_files import load_suite
from eval.tasks import Inputs, Result, Score, cluster_indices
from eval.team import check_same_model, join
from vlp.config import need, save_config, to_dict

COOP_SHOTS = 4
"""Validation images of a class at most, with probe.validation=shots."""
SHARED_DETAILS = ("classes", "prompts", "negative_prompts", "pool", "ensemble", "score")
"""What the details of the zero-shot score say of that, not of the answers."""


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
    """Fit and score probes on the tasks of a suite that have labels and a training split.

    Args:
        suite: the suite's file, for errors.
        command: how to repeat this, for the results.

    Returns:
        The run; None on ranks other than 0.

    Raises:
        UserError: a suite, data or model that doesn't fit, or no task to probe.
    """
    need("sklearn", "a probe")  # told before images are embedded
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
    bench = BENCHES[test.inputs.task.kind](test, train, val)
    zero_shot = KINDS[test.inputs.task.kind].evaluate(test.inputs)
    scores = {f"zero_shot_{bench.metric}": zero_shot.scores[bench.metric]}
    few_shot = []
    for shots in sorted(config.probe.shots):
        score, about = _few_shot(bench, shots, config)
        scores[f"{bench.metric}_{shots}_shot{'s' * (shots > 1)}"] = score
        few_shot.append(about)
    headline = [list(scores)[-1]]
    details = {key: v for key, v in zero_shot.details.items() if key in SHARED_DETAILS}
    items: list[dict[str, Any]] = []
    if config.probe.full:
        answers = bench.fit(train, val)
        found, more, items = bench.judged(answers.outputs)
        headline = [bench.metric]
        scores |= found
        details |= {**more, "strengths": answers.strengths}
        notes = [*notes, *answers.notes]
    details |= {"train": len(train.labels), "val": len(val.labels), "few_shot": few_shot}
    most = max(config.probe.shots, default=1)
    return Result(
        n=len(test.items),
        scores=scores,
        headline=headline,
        excluded=dict(test.excluded),
        clusters=cluster_indices(test.items, test.inputs.task.cluster)[1],
        details=details,
        notes=[*notes, *bench.scarce(most), *shared_notes(parts["train"], test)],
        items=items,
    )


def _few_shot(bench: Bench, shots: int, config: EvalConfig) -> tuple[Score, dict[str, Any]]:
    """(mean over the draws with its interval, what each draw gave)."""
    statistics, strengths = [], []
    for number in range(config.probe.seeds):
        rng = np.random.default_rng([config.seed, number])
        train, val = bench.draw(bench.train, shots, rng), bench.val
        if config.probe.validation == "shots":
            rng = np.random.default_rng([config.seed, number, 1])
            val = bench.draw(val, min(shots, COOP_SHOTS), rng)
        answers = bench.fit(train, val)
        strengths.append(answers.strengths)
        statistics.append(bench.statistic(answers.outputs))
    values = [each(None) for each in statistics]
    options = {"seed": config.seed, "replicates": config.replicates}
    value = float(np.mean(values))
    interval = over_draws(statistics, bench.clusters, **options).around(bench.metric, value)
    about = {"shots": shots, "values": values, "strengths": strengths}
    return Score(value, *interval, bench.chance()), about


def over_draws(
    statistics: list[Statistic], clusters: Ints, *, seed: int, replicates: int
) -> Interval:
    """Quantiles of the mean over draws of training images, with the test items resampled too.

    A resample holds as many draws, and as many clusters of test items, as there are, with
    replacement.

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
