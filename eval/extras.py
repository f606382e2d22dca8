"""What a suite asks of every task besides its score: leakage and robustness."""

from collections.abc import Callable, Iterable

from eval.config import EvalConfig
from eval.embed import Embedder
from eval.leakage import Hasher, find_overlaps, read_training, with_overlap
from eval.readers import Dataset
from eval.robustness import with_curves
from eval.tasks import Inputs, Result


class Extras:
    """Adds to results what `leakage` and `robustness` of a suite ask for; often nothing."""

    def __init__(self, config: EvalConfig, datasets: Iterable[Dataset], embedder: Embedder) -> None:
        """Look all images up in the training data, all data sets in one search.

        Raises:
            UserError: training data that don't fit.
        """
        self.config = config
        self.training, self.overlaps = None, {}
        datasets = list(datasets)  # none where all tasks are finished
        if config.leakage.train and datasets:
            hasher = Hasher(embedder.cache, config.workers, embedder.progress)
            self.training = read_training(config.leakage, hasher)
            self.overlaps = find_overlaps(datasets, self.training, config.leakage, hasher)

    def added_to(
        self, result: Result, inputs: Inputs, evaluate: Callable[[Inputs], Result]
    ) -> Result:
        """A task's result with all that was asked for.

        Args:
            evaluate: the task's kind.
        """
        if self.training is not None:
            overlap = self.overlaps[inputs.dataset.fingerprint]
            options = self.config.leakage
            result = with_overlap(result, inputs, evaluate, overlap, self.training, options)
        return with_curves(result, inputs, evaluate, self.config.robustness)
