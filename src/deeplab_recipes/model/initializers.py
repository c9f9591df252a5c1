"""Weight initialisations by name, as Composer's DeepLabv3+ names them."""

from collections.abc import Callable, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deeplab_recipes.model.choices import choose


def _kaiming_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)


def _bn_ones(module: nn.Module) -> None:
    if isinstance(module, _BatchNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


INITIALIZERS: dict[str, Callable[[nn.Module], None]] = {
    "kaiming_normal": _kaiming_normal,
    "bn_ones": _bn_ones,
}


def apply_initializers(module: nn.Module, names: Sequence[str]) -> None:
    """Initialise ``module`` and everything in it, in place, in the order of ``names``.

    ``kaiming_normal`` draws convolution and linear weights with variance 2 / fan_in (He et al.,
    arXiv:1502.01852) and leaves biases alone; ``bn_ones`` sets batch norm weights to 1 and biases to 0.

    Raises:
        ValueError: an unknown name; nothing is changed then.
    """
    for initialize in [choose("initializer", name, INITIALIZERS) for name in names]:
        module.apply(initialize)
