"""A suite's headline scores while a model trains: `zero_shot/TASK/SCORE`."""

import tempfile
from pathlib import Path

from eval.embed import Embedder
from eval.suite import prepare, score
from eval.suite_files import load_suite


class SuiteScorer:
    """Scores model folders on one suite, again and again."""

    def __init__(self, suite: str, data_root: str, device: str) -> None:
        """Read and check the suite and its data, so that mistakes are told before training.

        Raises:
            UserError: a suite or data that don't fit.
        """
        arguments = [suite, "model=none yet", f"data_root={data_root}", f"device={device}"]
        # Intervals are for reports; here they would cost more than the embedding.
        self.config = load_suite([*arguments, "replicates=100"])
        self.tasks, self.datasets = prepare(self.config, suite)

    def __call__(self, folder: Path) -> dict[str, float]:
        """Headline scores of the model in a folder, by name."""
        from eval.model import load_model  # imports open_clip, which takes seconds

        model = load_model(str(folder), self.config.device)
        with tempfile.TemporaryDirectory() as cache:  # no weights come twice
            embedder = Embedder(model, Path(cache), self.config.batch_size, self.config.workers)
            return {
                f"zero_shot/{name}/{key}": result.scores[key].value
                for name, result, _ in score(self.config, self.tasks, self.datasets, embedder)
                for key in result.headline
            }
