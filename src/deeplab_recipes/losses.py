"""Segmentation losses on logits (B, C, H, W) and integer labels (B, H, W), with one label that is ignored.

Each loss is 0 with zero gradients where every pixel is ignored (the originals give NaN there).
`group_sum` is how a loss sees beyond this device: a function that sums a tensor over all devices and back-propagates
through the sum. With it, the value is exactly the loss of the whole global batch.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GroupSum = Callable[[Tensor], Tensor]
Denominator = Literal["valid", "all"]
Normalize = Literal["device", "global"]


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
        denominator: "valid" divides by the number of pixels that are not ignored (Composer, PyTorch); "all" by the
            number of all pixels (mmsegmentation's default, `avg_non_ignore=False`).
        count: divide by this number of pixels instead; the share of a larger batch of which this is a part.

    Raises:
        ValueError: for an unknown denominator.
    """
    total = F.cross_entropy(_full(logits), target.long(), ignore_index=ignore_index, reduction="sum")
    if count is None:
        count = count_pixels(target, ignore_index=ignore_index, denominator=denominator)
    return total / count.clamp(min=1)


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
    per_pixel = -(target * _full(logits).log_softmax(dim=1)).sum(dim=1)
    return per_pixel.sum() / target.sum().clamp(min=torch.finfo(torch.float32).tiny)


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
    probability = _full(logits).softmax(dim=1) * valid
    at_target = probability.gather(1, index)
    shape = (logits.shape[1],)
    flat = index.flatten()
    intersection = at_target.new_zeros(shape).index_add(0, flat, at_target.flatten())
    truth = at_target.new_zeros(shape).index_add(0, flat, valid.flatten().to(at_target.dtype))
    mass = probability.sum(dim=(0, 2, 3))
    if group_sum is not None:
        intersection, truth, mass = group_sum(torch.stack([intersection, truth, mass])).unbind()
    per_class = 1 - (2 * intersection + smooth) / (truth + mass + smooth)
    present = truth > 0
    return (per_class * present).sum() / present.sum().clamp(min=1)


def _full(logits: Tensor) -> Tensor:
    """Half-precision logits as float32; float32 and float64 as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


class SegmentationLoss(nn.Module):
    """A weighted sum of cross entropy and Dice.

    Args:
        cross_entropy: weight of the cross entropy; 0 leaves it out.
        dice: weight of the Dice loss; 0 leaves it out.
        denominator: what cross entropy divides by, see `cross_entropy`.
        normalize: "device": each device takes the mean over its own batch and gradients are averaged over devices
            (what everything published here did); "global": exactly the loss of the whole global batch.
        ignore_index: the label that is ignored.

    Raises:
        ValueError: for a negative weight, two zero weights, an unknown denominator or normalize.
    """

    def __init__(
        self,
        *,
        cross_entropy: float = 1.0,
        dice: float = 0.0,
        denominator: Denominator = "valid",
        normalize: Normalize = "device",
        ignore_index: int = 255,
    ):
        super().__init__()
        weights = {"cross_entropy": float(cross_entropy), "dice": float(dice)}
        if min(weights.values()) < 0 or sum(weights.values()) == 0:
            raise ValueError(f"loss weights are {weights}; valid are numbers >= 0 of which one is above 0")
        if denominator not in ("valid", "all"):
            raise ValueError(f"loss.denominator is {denominator!r}; valid are 'valid' and 'all'")
        if normalize not in ("device", "global"):
            raise ValueError(f"loss.normalize is {normalize!r}; valid are 'device' and 'global'")
        self.weights, self.denominator, self.normalize = weights, denominator, normalize
        self.ignore_index = ignore_index

    def count(self, target: Tensor) -> Tensor:
        """Return the number of pixels by which the cross entropy of these labels is divided."""
        return count_pixels(target, ignore_index=self.ignore_index, denominator=self.denominator)

    def forward(
        self, logits: Tensor, target: Tensor, *, count: Tensor | None = None, group_sum: GroupSum | None = None
    ) -> Mapping[str, Tensor]:
        """Return {"loss": the weighted sum, and each part by its name}; arguments as in the functions above."""
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
