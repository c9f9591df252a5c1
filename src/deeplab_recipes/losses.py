"""Segmentation losses on logits (B, C, H, W) and integer labels (B, H, W), with one label that is ignored.

Each loss is 0 with zero gradients where every pixel is ignored (the originals give NaN there).
`group_sum` is how a loss sees beyond this device: a function that sums a tensor over all devices and
back-propagates through the sum. With it, the value is exactly the loss of the whole global batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab_recipes.class_weights import ClassWeights, check_weights, resolve_weights
from deeplab_recipes.hard_pixels import HardPixels
from deeplab_recipes.numerics import at_least_float32

GroupSum = Callable[[Tensor], Tensor]
Denominator = Literal["valid", "all", "weights"]
DENOMINATORS = ("valid", "all", "weights")
Normalize = Literal["device", "global"]
TINY = torch.finfo(torch.float32).tiny  # as a denominator it leaves a sum over no pixels at 0


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    denominator: Denominator = "valid",
    count: Tensor | None = None,
    class_weights: Tensor | None = None,
    hard_pixels: HardPixels | None = None,
    step: int = 0,
) -> Tensor:
    """Mean cross entropy.

    Args:
        logits: (B, C, H, W), floats.
        target: (B, H, W), integers 0..C-1 or `ignore_index`.
        ignore_index: the label whose pixels add nothing to the sum.
        denominator: "valid" divides by the number of pixels that are not ignored (Composer, PyTorch); "all"
            by the number of all pixels (mmsegmentation's default, `avg_non_ignore=False`); "weights" by the sum of
            the weights of the pixels that are not ignored (PyTorch's mean, where there are class weights).
        count: divide by this number of pixels instead; the share of a larger batch of which this is a part.
        class_weights: (C,), factors on the losses of the classes' pixels.
        hard_pixels: the choice of pixels that the sum is over.
        step: optimizer steps done, for that choice.

    Raises:
        ValueError: for an unknown denominator.
    """
    logits = at_least_float32(logits)
    weights = None if class_weights is None else class_weights.to(logits.dtype)
    # Summed here and not by torch, whose own sum is not deterministic on a GPU.
    losses = F.cross_entropy(logits, target.long(), weight=weights, ignore_index=ignore_index, reduction="none")
    if count is None:
        count = count_pixels(target, ignore_index=ignore_index, denominator=denominator, class_weights=class_weights)
    if hard_pixels is not None:
        chosen, number = hard_pixels.choose(
            losses.detach(), logits.detach(), target, ignore_index=ignore_index, step=step
        )
        losses, count = losses * chosen, count if number is None else number
    total = losses.sum()
    return total / count.to(total.dtype).clamp(min=TINY)


def count_pixels(
    target: Tensor,
    *,
    ignore_index: int = 255,
    denominator: Denominator = "valid",
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return what `cross_entropy` divides by, as a 0-d tensor on the labels' device; arguments as there."""
    valid = target != ignore_index
    if denominator == "valid" or (denominator == "weights" and class_weights is None):
        return valid.sum()
    if denominator == "all":
        return torch.full((), target.numel(), device=target.device)
    if denominator == "weights":
        return (class_weights.double()[target.long().masked_fill(~valid, 0)] * valid).sum()
    raise ValueError(f"denominator is {denominator!r}; valid are {', '.join(map(repr, DENOMINATORS))}")


def dense_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy for soft targets (B, C, H, W), as Composer: mean(-sum_c t log p) * pixels / sum(t).

    A pixel whose target is zero in every class is thereby ignored.
    """
    target = at_least_float32(target)
    per_pixel = -(target * at_least_float32(logits).log_softmax(dim=1)).sum(dim=1)
    return per_pixel.sum() / target.sum().clamp(min=TINY)


def dice(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    smooth: float = 1e-5,
    group_sum: GroupSum | None = None,
) -> Tensor:
    """Soft Dice loss over the whole batch; classes absent from it are left out of the mean.

    With p the softmax, t the one-hot target and m = 1 where a pixel is not ignored:
    I_c = sum t p, U_c = sum t + sum m p, loss = mean over present classes of 1 - (2 I_c + s) / (U_c + s).

    Args:
        logits: (B, C, H, W), floats.
        target: (B, H, W), integers 0..C-1 or `ignore_index`.
        ignore_index: the label of pixels that count in no sum.
        smooth: s above.
        group_sum: sums I and U over devices, so that the batch is the global one.
    """
    valid = (target != ignore_index).unsqueeze(1)
    index = target.long().unsqueeze(1).masked_fill(~valid, 0)
    probability = at_least_float32(logits).softmax(dim=1) * valid
    intersection = _sum_by_class(probability.gather(1, index), index, logits.shape[1])
    truth = _sum_by_class(valid.to(probability.dtype), index, logits.shape[1])
    mass = probability.sum(dim=(0, 2, 3))
    if group_sum is not None:
        intersection, truth, mass = group_sum(torch.stack([intersection, truth, mass])).unbind()
    per_class = 1 - (2 * intersection + smooth) / (truth + mass + smooth)
    present = truth > 0
    return (per_class * present).sum() / present.sum().clamp(min=1)


def _sum_by_class(values: Tensor, index: Tensor, num_classes: int) -> Tensor:
    """Sum values (B, 1, H, W) by class index; by rows first: one float32 sum of millions rounds too much."""
    rows, classes = values.flatten(0, 2), index.flatten(0, 2)
    return values.new_zeros(len(rows), num_classes).scatter_add(1, classes, rows).sum(0)


class SegmentationLoss(nn.Module):
    """A weighted sum of cross entropy and Dice.

    Args:
        cross_entropy: weight of the cross entropy; 0 leaves it out.
        dice: weight of the Dice loss; 0 leaves it out.
        denominator: what cross entropy divides by, see `cross_entropy`.
        auxiliary: weight of the same loss on the auxiliary head's logits; 0 where the model has none.
        normalize: "device": each device takes the mean over its own batch and gradients are averaged over
            devices (what everything published here did); "global": exactly the loss of the global batch.
        class_weights: factors on the cross entropy of the classes' pixels: a list, {name: weight} (others have 1), or
            one of `class_weights.FORMULAS`; the last two need `set_classes` before the first batch. None: all 1.
        hard_pixels: the choice of pixels that the cross entropy is over; each forward pass on each device chooses among
            its own, and the auxiliary head's loss by its own logits. None: all.
        ignore_index: the label that is ignored.

    Raises:
        ValueError: for a negative weight, two zero weights, an unknown denominator or normalize, or settings of which
            one leaves the other without effect.
    """

    def __init__(
        self,
        *,
        cross_entropy: float = 1.0,
        dice: float = 0.0,
        auxiliary: float = 0.0,
        denominator: Denominator = "valid",
        normalize: Normalize = "device",
        class_weights: ClassWeights | None = None,
        hard_pixels: HardPixels | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        weights = {"cross_entropy": float(cross_entropy), "dice": float(dice)}
        if min(weights.values()) < 0 or not 0 < sum(weights.values()) < math.inf:
            raise ValueError(f"loss weights are {weights}; valid are finite numbers >= 0 of which one is above 0")
        if not 0 <= auxiliary < math.inf:
            raise ValueError(f"loss.auxiliary is {auxiliary}; it must be a finite number >= 0")
        if denominator not in DENOMINATORS:
            raise ValueError(f"loss.denominator is {denominator!r}; valid are {', '.join(map(repr, DENOMINATORS))}")
        if normalize not in ("device", "global"):
            raise ValueError(f"loss.normalize is {normalize!r}; valid are 'device' and 'global'")
        self.weights, self.denominator, self.normalize = weights, denominator, normalize
        self.ignore_index = ignore_index
        self.auxiliary = float(auxiliary)
        self.class_weights, self.hard_pixels = class_weights, hard_pixels
        self._check_choices()
        given = isinstance(class_weights, Sequence) and not isinstance(class_weights, str)
        # No part of the state: a checkpoint's weights are the network's alone.
        self.register_buffer("weight_of_class", torch.tensor(class_weights) if given else None, persistent=False)

    def _check_choices(self) -> None:
        if self.class_weights is not None:
            check_weights(self.class_weights)
        weighted, mined = self.class_weights is not None, self.hard_pixels is not None
        if (weighted or mined) and not self.weights["cross_entropy"]:
            raise ValueError("loss.class_weights and loss.hard_pixels act on the cross entropy, whose weight is 0")
        if self.denominator == "weights" and not weighted:
            raise ValueError("loss.denominator=weights divides by the sum of class weights: give loss.class_weights")
        if mined and self.hard_pixels.counts_chosen and self.denominator != "valid":
            raise ValueError(
                f"loss.denominator={self.denominator} has no effect: this loss.hard_pixels divides by the number of "
                "pixels that it chooses; leave it at valid"
            )

    def set_classes(self, classes: Sequence[str], count: Callable[[], tuple[Sequence[int], Sequence[int]]]) -> None:
        """Work out the class weights; arguments and errors as in `class_weights.resolve_weights`."""
        if self.class_weights is not None:
            self.weight_of_class = resolve_weights(self.class_weights, classes, count)

    def require_head(self, auxiliary_head: nn.Module | None) -> None:
        """Raise ValueError where `auxiliary` weights a head that is not there, or leaves one without a weight."""
        if (auxiliary_head is None) != (self.auxiliary == 0):
            raise ValueError(
                f"loss.auxiliary={self.auxiliary} and model.auxiliary_head={str(auxiliary_head is not None).lower()} "
                "go together: the head needs a weight above 0, as 0.4, and the weight a head"
            )

    @property
    def per_pass(self) -> tuple[str, ...]:
        """Names of the parts that are means over their own forward pass; the others are divided by `count`."""
        chosen = self.hard_pixels is not None and self.hard_pixels.counts_chosen
        return ("dice", "cross_entropy") if chosen else ("dice",)

    def require_exact(self, microbatches: int, devices: int = 1) -> None:
        """Raise ValueError for what has no exact form over a global batch that is split: Dice, hard pixels."""
        if self.normalize == "device":
            return
        if microbatches > 1 and self.weights["dice"]:
            raise ValueError("Dice over a global batch has no exact form over microbatches: leave microbatch_size out")
        if max(microbatches, devices) > 1 and self.hard_pixels is not None:
            raise ValueError(
                "the hard pixels of a global batch cannot be chosen exactly where each device and microbatch sees its "
                "own images: loss.normalize=device, or one device without microbatch_size"
            )

    def count(self, target: Tensor) -> Tensor:
        """Return what the cross entropy of these labels is divided by."""
        settings = {"ignore_index": self.ignore_index, "denominator": self.denominator}
        return count_pixels(target, class_weights=self.weight_of_class, **settings)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        count: Tensor | None = None,
        group_sum: GroupSum | None = None,
        step: int = 0,
    ) -> Mapping[str, Tensor]:
        """Return {"loss": the weighted sum, and each part by name}; arguments as in the functions above.

        Raises:
            ValueError: where the class weights still wait for `set_classes`.
        """
        if self.class_weights is not None and self.weight_of_class is None:
            raise ValueError(f"loss.class_weights={self.class_weights} needs the classes: call set_classes first")
        parts: dict[str, Tensor] = {}
        ignore = self.ignore_index
        if self.weights["cross_entropy"]:
            parts["cross_entropy"] = cross_entropy(
                logits,
                target,
                ignore_index=ignore,
                denominator=self.denominator,
                count=count,
                class_weights=self.weight_of_class,
                hard_pixels=self.hard_pixels,
                step=step,
            )
        if self.weights["dice"]:
            parts["dice"] = dice(logits, target, ignore_index=ignore, group_sum=group_sum)
        loss = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        return {"loss": loss, **parts}
