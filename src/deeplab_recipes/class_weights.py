"""Weights of classes in the cross entropy: given, by name, or by a formula from how often they occur."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor

ClassWeights = Sequence[float] | Mapping[str, float] | str


def median_frequency(pixels: Tensor, in_images: Tensor) -> Tensor:
    """median(f) / f_c, f_c the share of class c in the images that show it (Eigen and Fergus, arXiv 1411.4734; SegNet).

    Args:
        pixels: (C,) labelled pixels of each class.
        in_images: (C,) labelled pixels of all classes in the images in which a class occurs.

    Returns:
        (C,) weights; 0 for a class that never occurs, as in every formula that divides by its share.
    """
    frequency = pixels / in_images.clamp(min=1)
    middle = median(frequency[pixels > 0].tolist())
    return torch.where(pixels > 0, middle / frequency, 0.0)


def inverse_frequency(pixels: Tensor, in_images: Tensor) -> Tensor:
    """n / (C n_c), n_c the pixels of class c and n all: the "balanced" of scikit-learn, mean 1 over all pixels."""
    occurring = (pixels > 0).sum()
    return torch.where(pixels > 0, pixels.sum() / (occurring * pixels), 0.0)


def enet(pixels: Tensor, in_images: Tensor) -> Tensor:
    """1 / ln(1.02 + p_c), p_c the share of class c in all pixels (Paszke et al., ENet, arXiv 1606.02147)."""
    return 1 / torch.log(1.02 + pixels / pixels.sum())


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "median_frequency": median_frequency,
    "inverse_frequency": inverse_frequency,
    "enet": enet,
}


def check_weights(weights: ClassWeights) -> None:
    """Raise ValueError for an unknown formula, or weights of which one is negative or all are 0."""
    if isinstance(weights, str):
        if weights not in FORMULAS:
            raise ValueError(
                f"loss.class_weights is {weights!r}; valid are a list of one weight for each class, {{name: weight}}, "
                f"and as formulas {', '.join(FORMULAS)}"
            )
        return
    values = list(weights.values() if isinstance(weights, Mapping) else weights)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v < float("inf") for v in values)
    if not values or not numbers or (not isinstance(weights, Mapping) and not any(values)):
        raise ValueError(f"loss.class_weights is {weights}; it takes numbers of at least 0, of which one is above 0")


def resolve_weights(
    weights: ClassWeights, classes: Sequence[str], count: Callable[[], tuple[Sequence[int], Sequence[int]]]
) -> Tensor:
    """Return (C,) weights in float64.

    Args:
        weights: one for each class in their order; by name, where a class that is not named has 1; or a formula.
        classes: their names.
        count: gives the arguments of the formulas, see `median_frequency`; called for a formula only.

    Raises:
        ValueError: for another number of weights, a name that is no class, or labels without any class.
    """
    if isinstance(weights, str):
        pixels, in_images = (torch.tensor(list(counts), dtype=torch.float64) for counts in count())
        if not pixels.any():
            raise ValueError(f"loss.class_weights={weights} counts the training labels, which show no class at all")
        return FORMULAS[weights](pixels, in_images)
    if isinstance(weights, Mapping):
        unknown = [name for name in weights if name not in classes]
        if unknown:
            raise ValueError(f"loss.class_weights names {unknown[0]!r}, which is no class; classes are {list(classes)}")
        weights = [weights.get(name, 1.0) for name in classes]
    if len(weights) != len(classes):
        raise ValueError(f"loss.class_weights has {len(weights)} numbers for {len(classes)} classes: {list(classes)}")
    if not any(weights):
        raise ValueError("loss.class_weights is 0 for every class, so that nothing would be learned")
    return torch.tensor(list(weights), dtype=torch.float64)
