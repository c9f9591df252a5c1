"""What an importer gives, and the model and the report that come of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deeplab_recipes.model.factory import DeepLab, build_deeplab
from deeplab_recipes.model.fitting import misfit

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Imported:
    """A model of another program, in the terms of this one.

    An importer is a function ``read(file: Path, **hints) -> Imported``. Its hints are keyword arguments with a default
    of None, for what the file does not say (or says otherwise); it raises ValueError for a file or hint that cannot be.

    Attributes:
        model: arguments of `build_deeplab`.
        state: the whole state dict of that model, under this package's names.
        mean, std: of the input's normalisation, in levels of 0..255.
        classes: names in the order of the logits, or None where the file names none.
        size: how the original program prepares an image, as a checkpoint's card has it: ``protocol``, and
            ``evaluate_sizes`` (protocol -> two sides).
        unused: tensors of the file (or groups of them) that are not in `state` -> why.
        palette: a colour for each class, or None.
        used: how many of the file's tensors went into `state`; None: as many as that has.
    """

    model: dict[str, Any]
    state: dict[str, Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: tuple[str, ...] | None
    size: dict[str, Any]
    unused: dict[str, str]
    palette: tuple[Colour, ...] | None = None
    used: int | None = None


def build(imported: Imported) -> DeepLab:
    """Build the model and load its whole state.

    Raises:
        ValueError: a tensor is missing, has no place or has another shape; names the first ones.
    """
    with torch.device("meta"):  # without weights: those to come are used as they are, not copied
        model = build_deeplab(**imported.model)
    require_fit(model.state_dict(), imported.state)
    # Weights that were saved in half precision are computed with in single.
    state = {key: value.float() if value.is_floating_point() else value for key, value in imported.state.items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def require_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Compare the tensors that a model has with those that it is to get.

    Raises:
        ValueError: they differ in names or shapes; names the first ones.
    """
    problem = misfit(expected, state, stray="without a place")
    if problem:
        raise ValueError(
            f"the file does not fit the model that its tensors tell of: {problem}. Say what the file does not "
            "(output_stride=, head=, width_multiplier=), or take the source that it is of"
        )
