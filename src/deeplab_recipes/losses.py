"""Segmentation losses on logits (B, C, H, W) and integer labels (B, H, W), with one label that is ignored.

Each loss is 0 with zero gradients where every pixel is ignored (the originals give NaN there).
`group_sum` is how a loss sees beyond this device: a function that sums a tensor over all devices and
back-propagates through the sum. With it, the value is exactly the loss of the whole global batch.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab_recipes.numerics import at_least_float32

GroupSum = Callable[[Tensor], Tensor]
Denominator = Literal["valid", "all"]
Normalize = Literal["device", "global"]
TINY = torch.finfo(torch.float32).tiny  # as a denominator it leaves a sum over no pixels at 0


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    denominator: Denominator = "valid",
    count: Tensor | None = None,
) -> Tensor:
    """Mean cross entropy.

    Args:
        logits: (B, C, H, W), floats.
        target: (B, H, W), integers 0..C-1 or `ignore_index`.
        ignore_index: the label whose pixels add nothing to the sum.
        denominator: "valid" divides by the number of pixels that are not ignored (Composer, PyTorch); "all"
            by the number of all pixels (mmsegmentation's default, `avg_non_ignore=False`).
        count: divide by this number of pixels instead; the share of a larger batch of which this is a part.

    Raises:
        ValueError: for an unknown denominator.
    """
    # Summed here and not by torch, whose own sum is not deterministic on a GPU.
    total = F.cross_entropy(at_least_float32(logits), target.long(), ignore_index=ignore_index, reduction="none").sum()
    if count is None:
        count = count_pixels(target, ignore_index=ignore_index, denominator=denominator)
    return total / count.to(total.dtype).clamp(min=TINY)


def count_pixels(target: Tensor, *, ignore_index: int = 255, denominator: Denominator = "valid") -> Tensor:
    """Return the number of pixels that `cross_entropy` divides by, as a 0-d tensor on the labels' device."""
    if denominator == "valid":
        return (target != ignore_index).sum()
    if denominator == "all":
        return torch.full((), target.numel(), device=target.device)
    raise ValueError(f"denominator is {denominator!r}; valid are 'valid' and 'all'")


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
        ignore_index: the label that is ignored.

    Raises:
        ValueError: for a negative weight, two zero weights, an unknown denominator or normalize.
    """

    def __init__(
        self,
        *,
        cross_entropy: float = 1.0,
        dice: float = 0.0,
        auxiliary: float = 0.0,
        denominator: Denominator = "valid",
        normalize: Normalize = "device",
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        weights = {"cross_entropy": float(cross_entropy), "dice": float(dice)}
        if min(weights.values()) < 0 or not 0 < sum(weights.values()) < math.inf:
            raise ValueError(f"loss weights are {weights}; valid are finite numbers >= 0 of which one is above 0")
        if not 0 <= auxiliary < math.inf:
            raise ValueError(f"loss.auxiliary is {auxiliary}; it must be a finite number >= 0")
        if denominator not in ("valid", "all"):
            raise ValueError(f"loss.denominator is {denominator!r}; valid are 'valid' and 'all'")
        if normalize not in ("device", "global"):
            raise ValueError(f"loss.normalize is {normalize!r}; valid are 'device' and 'global'")
        self.weights, self.denominator, self.normalize = weights, denominator, normalize
        self.ignore_index = ignore_index
        self.auxiliary = float(auxiliary)

    def require_exact(self, microbatches: int) -> None:
        """Raise ValueError for Dice normalised globally over microbatches, which has no exact form."""
        if microbatches > 1 and self.normalize == "global" and self.weights["dice"]:
            raise ValueError("Dice over a global batch has no exact form over microbatches: leave microbatch_size out")

    def count(self, target: Tensor) -> Tensor:
        """Return the number of pixels by which the cross entropy of these labels is divided."""
        return count_pixels(target, ignore_index=self.ignore_index, denominator=self.denominator)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        count: Tensor | None = None,
        group_sum: GroupSum | None = None,
    ) -> Mapping[str, Tensor]:
        """Return {"loss": the weighted sum, and each part by name}; arguments as in the functions above."""
        parts: dict[str, Tensor] = {}
        ignore = self.ignore_index
        if self.weights["cross_entropy"]:
            parts["cross_entropy"] = cross_entropy(
                logits, target, ignore_index=ignore, denominator=self.denominator, count=count
            )
        if self.weights["dice"]:
            parts["dice"] = dice(logits, target, ignore_index=ignore, group_sum=group_sum)
        loss = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        return {"loss": loss, **parts}
