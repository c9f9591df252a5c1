"""SGD with momentum and decoupled weight decay."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class DecoupledSGDW(Optimizer):
    """SGD whose weight decay follows the schedule but not the learning rate's size, as in Composer.

    A step with gradient g, momentum m and lr_0 the lr of construction: b = m b + (1 - dampening) g (b = g on
    the first step); d = b, or g + m b with nesterov; p = p (1 - lr / lr_0 * weight_decay); p = p - lr d.
    Decay applies to every parameter that has a gradient; a parameter without one is left alone.
    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, also the reference lr_0 that weight decay is scaled by.
        momentum: 0 <= momentum < 1.
        dampening: 0 <= dampening <= 1; the share of a gradient that does not enter the momentum.
        weight_decay: the share of a parameter taken away per step at lr = lr_0.
        nesterov: look ahead along the momentum.

    Raises:
        ValueError: for a value out of range, or nesterov without momentum or with dampening.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own; their lr is their reference lr_0.

        Raises:
            ValueError: as the constructor.
        """
        group = {**self.defaults, **param_group}
        _check(group)
        super().add_param_group({"initial_lr": group["lr"], **param_group})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; `closure` recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step_group(group, parameters)
        return loss

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = [p.grad for p in parameters]
        direction = self._direction(group, parameters, gradients)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] / group["initial_lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, direction, alpha=-group["lr"])

    def _direction(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        momentum = group["momentum"]
        if not momentum:
            return gradients
        fresh = [p for p in parameters if "momentum_buffer" not in self.state[p]]
        old = [(p, g) for p, g in zip(parameters, gradients, strict=True) if "momentum_buffer" in self.state[p]]
        if old:
            buffers = [self.state[p]["momentum_buffer"] for p, _ in old]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, [g for _, g in old], alpha=1 - group["dampening"])
        for p in fresh:
            self.state[p]["momentum_buffer"] = p.grad.clone()
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        return torch._foreach_add(gradients, buffers, alpha=momentum) if group["nesterov"] else buffers


def _check(group: Mapping[str, Any]) -> None:
    lr, momentum, dampening, weight_decay = (group[k] for k in ("lr", "momentum", "dampening", "weight_decay"))
    if not 0 < lr < math.inf:
        raise ValueError(f"lr is {lr}; decoupled decay divides by it, so it must be above 0")
    if not 0 <= momentum < 1 or not 0 <= dampening <= 1 or not 0 <= weight_decay < 1:
        given = f"momentum={momentum}, dampening={dampening}, weight_decay={weight_decay}"
        raise ValueError(f"{given}: momentum and weight_decay must be in [0, 1), dampening in [0, 1]")
    if group["nesterov"] and (momentum == 0 or dampening != 0):
        raise ValueError("nesterov needs momentum > 0 and dampening 0")
