"""Which parameters learn faster, slower or without weight decay: the rules of fine-tuning, for any optimizer."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
KINDS = ("norms", "biases", "depthwise")
LAST_LAYER = "conv_seg"  # the name of every head's last convolution
MULTIPLIER = "lr_multiplier"  # key of a group's factor beside its lr


@dataclass(frozen=True)
class ParameterRules:
    """Factors on the learning rate, and what has no weight decay.

    A parameter's factor is the product of those that apply to it. TensorFlow DeepLab multiplies gradients instead, and
    its gradients include that of the L2 penalty: with SGD, whose weight decay is such a penalty, a factor on the
    learning rate takes exactly the same steps. `DecoupledSGDW` decays a parameter alike whatever its factor, AdamW's
    decay grows with it. (Source: research/deeplab, `train_utils.get_model_gradient_multipliers`.)

    Args:
        backbone_lr: of the backbone.
        last_layers_lr: of the last layers.
        last_layers: which these are: "logits", each head's last convolution (`last_layers_contain_logits_only`), or
            "head", everything behind the backbone.
        bias_lr: of the biases of convolutions, 2 in TensorFlow; a norm's bias is none of these.
        no_weight_decay: kinds of parameters without weight decay: "norms" (their weights and biases), "biases" (of
            convolutions), "depthwise" (weights of depthwise convolutions). TensorFlow's DeepLabs decay none of these.

    Raises:
        ValueError: for a factor that is not above 0, or an unknown kind.
    """

    backbone_lr: float = 1.0
    last_layers_lr: float = 1.0
    last_layers: Literal["logits", "head"] = "logits"
    bias_lr: float = 1.0
    no_weight_decay: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("backbone_lr", "last_layers_lr", "bias_lr"):
            if not 0 < getattr(self, name) < math.inf:
                advice = "; model.freeze_backbone=true keeps it as it is" if name == "backbone_lr" else ""
                raise ValueError(f"parameters.{name} is {getattr(self, name)}; it must be a number above 0{advice}")
        if self.last_layers not in ("logits", "head"):
            raise ValueError(f"parameters.last_layers is {self.last_layers!r}; valid are logits, head")
        for kind in self.no_weight_decay:
            if kind not in KINDS:
                raise ValueError(f"parameters.no_weight_decay holds {kind!r}; valid are {', '.join(KINDS)}")

    def build(self, optimizer: Callable[[list[dict[str, Any]]], Any], model: nn.Module) -> Any:
        """Return the optimizer over all parameters of `model` that learn, in one group for each rule that occurs.

        Args:
            optimizer: called with the groups.
            model: its backbone is `backbone`, and the last convolution of each head `conv_seg`; one without these
                has no parameters under those rules.
        """
        groups = self.groups(model)
        built = optimizer([{k: v for k, v in group.items() if k != MULTIPLIER} for group in groups])
        for group, rule in zip(built.param_groups, groups, strict=True):
            group[MULTIPLIER] = rule[MULTIPLIER]
            for key in ("lr", "initial_lr"):  # the second is what decoupled decay and schedules refer to
                if key in group:
                    group[key] = group[key] * rule[MULTIPLIER]
        return built

    def require_acting(self, model: nn.Module) -> None:
        """Raise ValueError for a factor on a backbone that is frozen as a whole; the heads always learn."""
        learns = any(name.startswith("backbone.") for name, _, _ in _parameters(model))
        if self.backbone_lr != 1 and not learns:
            raise ValueError(
                f"parameters.backbone_lr={self.backbone_lr} has no effect: model.freeze_backbone leaves nothing of the "
                "backbone to learn; leave it at 1.0, or freeze fewer stages"
            )

    def notes(self) -> list[str]:
        """List settings without effect."""
        if self.last_layers == "head" and self.last_layers_lr == 1:
            return ["parameters.last_layers=head has no effect while parameters.last_layers_lr is 1"]
        return []

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return parameter groups {"params", "lr_multiplier", perhaps "weight_decay": 0} of what learns in `model`."""
        groups: dict[tuple[float, bool], dict[str, Any]] = {}
        for name, kind, parameter in _parameters(model):
            factor, decays = self._factor(name, kind), kind not in self.no_weight_decay
            new = {"params": [], MULTIPLIER: factor, **({} if decays else {"weight_decay": 0.0})}
            groups.setdefault((factor, decays), new)["params"].append(parameter)
        return list(groups.values())

    def _factor(self, name: str, kind: str) -> float:
        words = name.split(".")
        backbone = words[0] == "backbone"
        last = LAST_LAYER in words if self.last_layers == "logits" else not backbone
        rules = ((backbone, self.backbone_lr), (last, self.last_layers_lr), (kind == "biases", self.bias_lr))
        return math.prod(factor for applies, factor in rules if applies)


def _parameters(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Give name, kind and value of every parameter that learns, once, in the order of `model.parameters()`."""
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner, _, own_name = name.rpartition(".")
            yield name, _kind(modules[owner], own_name), parameter


def _kind(module: nn.Module, name: str) -> str:
    if isinstance(module, NORMS):
        return "norms"
    if name == "bias":
        return "biases"
    depthwise = isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels
    return "depthwise" if depthwise else "weights"
