"""What a run would cost, without its data: `python -m vlp.text.cost CONFIG.yaml [key=value ...]`.

Every row is taken for one full sequence, which is the most that a row can cost; of the objectives,
masked tokens alone are counted. Hours are those of an H200 that reaches 40% of 790 TFLOP/s.
"""

from typing import NamedTuple

from vlp.config import UserError, load_config, run_program
from vlp.text.compute import costs_of
from vlp.text.factorial import arms_of
from vlp.text.settings import TextRunConfig

SPEED = 0.4 * 790e12
"""Operations a second."""


class Cost(NamedTuple):
    """Of a whole run at most."""

    steps: int
    tokens: float
    flops: float

    def __str__(self) -> str:
        hours = self.flops / SPEED / 3600
        return (
            f"{self.steps:,} steps, {self.tokens / 1e9:.3g} billion tokens, {self.flops:.2e} "
            f"operations, {hours:,.1f} hours of an H200"
        )


def cost_of(config: TextRunConfig) -> Cost:
    """What a run costs if all of its rows are full.

    Raises:
        UserError: its steps depend on the corpora.
    """
    length, train = config.model.length, config.train
    costs = costs_of(config.model.bert(config.own_vocabulary.size), config.lora)
    step = train.batch_size * costs.of([length], round(config.masking.share * (length - 2)))
    if train.flops:
        steps = max(1, round(train.flops / step))
    elif train.steps:
        steps = train.steps
    else:
        raise UserError("train.epochs: their length depends on the corpora; set train.steps=...")
    return Cost(steps, steps * train.batch_size * length, steps * step)


def main(argv: list[str]) -> None:
    """Print what each arm, or the only run, costs."""
    config = load_config(TextRunConfig, argv, "python -m vlp.text.cost")
    arms = arms_of(config, argv)
    for name, each in [(arm.name, arm.config) for arm in arms] or [(config.name, config)]:
        print(f"{name}: {cost_of(each)}")  # noqa: T201  the program's output


if __name__ == "__main__":
    run_program(main)
