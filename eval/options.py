"""What can be asked of every task of a suite, besides its score: options of EvalConfig."""

from dataclasses import dataclass, field
from typing import Literal

from eval.corruptions import CORRUPTIONS


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig:
    """Score every task again on corrupted images; see docs/robustness.md."""

    corruptions: list[str] = field(default_factory=list)
    """jpeg_compression, pixelate, gaussian_noise, speckle_noise, gaussian_blur, brightness_up,
    brightness_down, contrast_up, contrast_down; [all] takes all of them, [] none."""
    severities: list[int] = field(default_factory=lambda: [1, 3, 5])
    """Which of the five severities of MedMNIST-C; each costs one embedding pass a corruption."""
    side: int = 224
    """Images are reduced to this shorter side, in pixels, before; the clean score beside the
    corrupted ones is that of images so reduced."""

    def __post_init__(self) -> None:
        for name in self.corruptions:
            if name != "all" and name not in CORRUPTIONS:
                known = ", ".join(CORRUPTIONS)
                raise ValueError(f"robustness.corruptions: no '{name}'; there are {known}, all")
        if not self.severities or not set(self.severities) <= {1, 2, 3, 4, 5}:
            raise ValueError(f"robustness.severities={list(self.severities)}: write some of 1 to 5")
        if self.side < 1:
            raise ValueError(f"robustness.side={self.side}: set it to 1 or more")

    @property
    def names(self) -> list[str]:
        """The corruptions, `all` written out."""
        return list(CORRUPTIONS) if "all" in self.corruptions else list(self.corruptions)


@dataclass(frozen=True, kw_only=True)
class LeakageConfig:
    """Look for the images of every task in the data that the model was trained on; see
    docs/leakage.md."""

    train: list[str] = field(default_factory=list)
    """Shard folders or URLs of the training data; [] looks for nothing. Only their index is read,
    and the few images that seem to be the same."""
    splits: list[str] = field(default_factory=lambda: ["train"])
    """The splits of these folders that count as training data."""
    bits: int = 4
    """Images whose perceptual hashes differ in at most this many of 64 bits count as the same."""

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= 16:
            raise ValueError(f"leakage.bits={self.bits}: set 0 to 16")
        if not self.splits:
            raise ValueError("leakage.splits is empty: write at least one, such as train")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """`python -m eval probe`: logistic regression on image embeddings; see docs/probe.md."""

    shots: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    """Training images of each class in the few-shot probes; [] leaves them out."""
    full: bool = True
    """Also fit one probe to the whole training split."""
    seeds: int = 5
    """Draws of training images for each number of shots."""
    validation: Literal["whole", "shots"] = "whole"
    """What the strength of the regularisation is chosen on: the `whole` validation split, as in
    CLIP, or as many of its images a class as there are `shots`, at most 4, as in CoOp."""

    def __post_init__(self) -> None:
        if any(shots < 1 for shots in self.shots) or len(set(self.shots)) != len(self.shots):
            raise ValueError(f"probe.shots={list(self.shots)}: write different numbers from 1")
        if not self.shots and not self.full:
            raise ValueError("probe.shots is empty and probe.full false: nothing to fit")
        if self.seeds < 1:
            raise ValueError(f"probe.seeds={self.seeds}: set it to 1 or more")


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """The scores on Weights & Biases, besides the files."""

    mode: Literal["disabled", "offline", "online"] = "disabled"
    """No run, a run written into `out`/wandb, or one that is sent: with the report, and so with the
    examples in it."""
    project: str = "biovlp"
    """Project on Weights & Biases."""
    entity: str = ""
    """User or team on Weights & Biases; empty: the account's default."""
