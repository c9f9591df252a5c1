"""What stays as it is in training: stages of the backbone, and batch norms.

A frozen parameter has no gradient, so no optimizer updates or decays it; nothing is kept for the backward pass of a
stage before which everything is frozen, since autograd records no operation whose inputs and weights have no gradient.
"""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deeplab_recipes.model.backbones import Backbone
from deeplab_recipes.model.choices import did_you_mean

CHOICES = ("none", "statistics", "affine", "both")


def batchnorm_choice(given: bool | str) -> str:
    """Return one of `CHOICES`; false is "none", true "statistics".

    Raises:
        ValueError: for another word.
    """
    if isinstance(given, bool):
        return "statistics" if given else "none"
    if given not in CHOICES:
        hint = did_you_mean(given, CHOICES)
        raise ValueError(
            f"freeze_batchnorm is {given!r}; valid are {', '.join(CHOICES)}, true (statistics), false{hint}"
        )
    return given


def keeps_statistics(given: bool | str) -> bool:
    """Whether batch norms normalise with running statistics in training, so that no batch matters to them."""
    return batchnorm_choice(given) in ("statistics", "both")


def frozen_stages(given: bool | int, backbone: Backbone) -> int:
    """Return how many of a backbone's stages are frozen; true is all of them.

    Raises:
        ValueError: for a number that it does not have.
    """
    if not given:
        return 0
    count = len(backbone.stages())
    if given is True:
        return count
    if not isinstance(given, int) or not 0 < given <= count:
        raise ValueError(f"freeze_backbone is {given!r}; valid are true, false, or its first 1 to {count} stages")
    return given


def stop_learning(model: nn.Module, batchnorm: str, stages: int) -> None:
    """Take the gradient from every frozen parameter of a model with a `backbone`, in place.

    Args:
        model: the model.
        batchnorm: one of `CHOICES`.
        stages: of the backbone that are frozen.
    """
    for module in _stage_modules(model, stages):
        module.requires_grad_(False)
    if batchnorm in ("affine", "both"):
        for module in _batchnorms(model):
            module.requires_grad_(False)


def hold_statistics(model: nn.Module, batchnorm: str, stages: int) -> None:
    """Put batch norms with frozen statistics into evaluation, in place; arguments as `stop_learning`."""
    held = [model] if keeps_statistics(batchnorm) else _stage_modules(model, stages)
    for part in held:
        for module in _batchnorms(part):
            module.eval()


def _stage_modules(model: nn.Module, stages: int) -> Iterator[nn.Module]:
    for stage in model.backbone.stages()[:stages] if stages else ():
        yield from stage


def _batchnorms(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(module, _BatchNorm))
