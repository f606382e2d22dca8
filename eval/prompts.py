"""Prompts of classes and what they are embedded as: the ensembles of CLIP and of BioViL.

`clip`, as in CLIP and CLIP_benchmark: each prompt's embedding is normalised, the mean of them is
normalised again. `biovil`, as in BioViL's zero-shot classification (Boecking et al. 2022): the mean
of the embeddings as they are is normalised, so that longer ones weigh more.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from eval.config import TaskConfig, template_problem
from eval.readers import Dataset
from eval.tasks import Inputs
from vlp.config import UserError


def class_names(task: TaskConfig, dataset: Dataset) -> dict[str, list[str]]:
    """Label -> names of the class in prompts."""
    return dict(task.classes) or {label: [label] for label in dataset.classes}


def prompts(task: TaskConfig, dataset: Dataset) -> dict[str, list[str]]:
    """Label -> every text that is averaged for it."""
    templates = list(task.templates) or dataset.templates
    return {label: fill(templates, names) for label, names in class_names(task, dataset).items()}


def fill(templates: Sequence[str], names: Sequence[str]) -> list[str]:
    """Every name in every template, name by name."""
    return [template.format(c=name) for name in names for template in templates]


def embed(inputs: Inputs, groups: Sequence[Sequence[str]]) -> Tensor:
    """Unit rows [len(groups), D]: each group of prompts as one embedding."""
    per_text = inputs.embedder.texts(
        [text for group in groups for text in group],
        inputs.name,
        unit=inputs.task.ensemble == "clip",
    )
    return mean_embeddings(per_text, [len(group) for group in groups])


def mean_embeddings(per_text: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of all prompts [P, D] -> unit rows [len(counts), D].

    Args:
        counts: how many consecutive prompts make one mean.
    """
    means = [rows.mean(dim=0) for rows in per_text.split(list(counts))]
    return normalize(torch.stack(means), dim=1)


def class_cosines(images: Tensor, embedded: Tensor, names: Sequence[int]) -> Tensor:
    """Cosine of each image to the nearest name of each class [n, C].

    Args:
        images: unit rows [n, D].
        embedded: unit rows of all names [sum(names), D], class by class.
        names: how many rows each class has.
    """
    cosines = images @ embedded.T  # [n, names]
    return torch.stack([own.amax(dim=1) for own in cosines.split(list(names), dim=1)], dim=1)


def check_own_files(where: str, task: TaskConfig, dataset: Dataset) -> None:
    """What the suite leaves to the dataset's own files has to be there, and right.

    Raises:
        UserError: no classes or templates anywhere, or a template that can't be filled.
    """
    if not task.classes and not dataset.classes:
        raise UserError(f"{where}.classes: is empty, and so is classnames.txt; write the classes")
    classes = set(class_names(task, dataset))
    if not task.templates and not dataset.templates and classes - set(task.multilabel.prompts):
        raise UserError(
            f"{where}.templates: is empty, and so is zeroshot_classification_templates.txt; "
            "write at least one prompt with {c}"
        )
    for template in () if task.templates else dataset.templates:
        if problem := template_problem(template, {"c"}, {"c"}):
            raise UserError(f"{where}: zeroshot_classification_templates.txt: {problem}")
