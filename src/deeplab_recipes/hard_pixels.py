"""Hard pixel mining: which pixels of a batch the cross entropy is taken over."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


class HardPixels(ABC):
    """A choice of pixels.

    Attributes:
        counts_chosen: whether the sum over the chosen pixels is divided by a number of its own.
    """

    counts_chosen: ClassVar[bool]

    def notes(self, steps: int) -> list[str]:
        """List what a user may not expect of the choice in a run of so many optimizer steps."""
        return []

    @abstractmethod
    def choose(
        self, losses: Tensor, logits: Tensor, target: Tensor, *, ignore_index: int = 255, step: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Choose pixels.

        Args:
            losses: (B, H, W), each pixel's loss with its class's weight; 0 where it is ignored. Without a graph.
            logits: (B, C, H, W), without a graph.
            target: (B, H, W), labels.
            ignore_index: the label of pixels that are never chosen.
            step: optimizer steps done.

        Returns:
            (B, H, W) bool, true where chosen; and what the sum over them is divided by, where `counts_chosen`.
        """


@dataclass(frozen=True)
class TopPixels(HardPixels):
    """The pixels with the highest losses, as TensorFlow DeepLab mines them; the mean is over those above 0.

    k = int(share * B * H * W), ignored pixels counted. The share falls linearly from 1 at the first step to
    `top_k_percent_pixels` at `hard_example_mining_step`, and stays there. At 1.0 nothing is mined: the mean is over all
    pixels that are not ignored, also those whose class has weight 0.
    (Source: research/deeplab, `add_softmax_cross_entropy_loss_for_each_scale`, whose names these are.)

    Args:
        top_k_percent_pixels: the share, in (0, 1]: 0.25 are a quarter of all pixels.
        hard_example_mining_step: optimizer steps until the share is reached; 0: from the first on.

    Raises:
        ValueError: for a value out of range.
    """

    counts_chosen = True
    top_k_percent_pixels: float = 0.25
    hard_example_mining_step: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.top_k_percent_pixels <= 1:
            raise ValueError(
                f"loss.hard_pixels.top_k_percent_pixels is {self.top_k_percent_pixels}; it is a share in (0, 1], "
                "as 0.25 for a quarter of the pixels"
            )
        if self.hard_example_mining_step < 0:
            raise ValueError(
                f"loss.hard_pixels.hard_example_mining_step is {self.hard_example_mining_step}; it must be at least 0"
            )

    def notes(self, steps: int) -> list[str]:
        """Say where all pixels count, or where the run ends before the share is reached."""
        share, ramp = self.top_k_percent_pixels, self.hard_example_mining_step
        if share == 1:
            return ["loss.hard_pixels.top_k_percent_pixels=1 chooses every pixel"]
        if ramp >= steps:
            return [
                f"loss.hard_pixels.top_k_percent_pixels={share} is reached at step {ramp}, and this run ends at step "
                f"{steps}, with a share of {self.share(steps):.3g}"
            ]
        return []

    def share(self, step: int) -> float:
        """Return the share of all pixels that is chosen after `step` steps."""
        ramp = self.hard_example_mining_step
        done = min(1.0, step / ramp) if ramp else 1.0
        return done * self.top_k_percent_pixels + (1 - done)

    def choose(
        self, losses: Tensor, logits: Tensor, target: Tensor, *, ignore_index: int = 255, step: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Return the k pixels of the highest losses, less those whose loss is 0, and their number."""
        if self.top_k_percent_pixels == 1:
            valid = target != ignore_index
            return valid, valid.sum()
        flat = losses.flatten()
        # A product of floats may just miss a whole number.
        k = max(1, int(self.share(step) * flat.numel() + 1e-6))
        chosen = torch.zeros_like(flat, dtype=torch.bool)
        chosen[flat.topk(k, sorted=False).indices] = True
        chosen &= flat != 0
        return chosen.view_as(losses), chosen.sum()


@dataclass(frozen=True)
class OHEM(HardPixels):
    """Online hard example mining as mmsegmentation's `OHEMPixelSampler`: pixels whose class has a low probability.

    Chosen are the pixels whose true class has a probability below `thresh`, and more of the next lowest where these
    are fewer than `min_kept` for each image of the batch. The sum is divided as without mining (`loss.denominator`).
    (Shrivastava et al., arXiv 1604.03540.)

    Args:
        thresh: of the probability, in (0, 1]; None: the `min_kept` pixels of the highest losses for each image.
        min_kept: pixels, at least 1; for each image, but chosen over all of them together.

    Raises:
        ValueError: for a value out of range.
    """

    counts_chosen = False
    thresh: float | None = 0.7
    min_kept: int = 100_000

    def __post_init__(self) -> None:
        if self.thresh is not None and not 0 < self.thresh <= 1:
            raise ValueError(f"loss.hard_pixels.thresh is {self.thresh}; it is a probability in (0, 1], or null")
        if self.min_kept < 1:
            raise ValueError(f"loss.hard_pixels.min_kept is {self.min_kept}; it must be at least 1")

    def require_acting(self, crop: tuple[int, int]) -> None:
        """Raise ValueError where `min_kept` is as many pixels as a crop (height, width) has."""
        pixels = crop[0] * crop[1]
        if self.min_kept >= pixels:
            raise ValueError(
                f"loss.hard_pixels.min_kept={self.min_kept} chooses every pixel: data.crop_size={list(crop)} has "
                f"{pixels}; lower it, for a quarter of them to {pixels // 4}"
            )

    def choose(
        self, losses: Tensor, logits: Tensor, target: Tensor, *, ignore_index: int = 255, step: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Return the chosen pixels."""
        valid = target != ignore_index
        kept = self.min_kept * len(target)
        chosen = torch.zeros_like(valid)
        if self.thresh is None:
            chosen[valid] = _highest(losses[valid], kept)
        else:
            index = target.long().masked_fill(~valid, 0).unsqueeze(1)
            chosen[valid] = _lowest(logits.softmax(dim=1).gather(1, index).squeeze(1)[valid], kept, self.thresh)
        return chosen, None


def _highest(losses: Tensor, kept: int) -> Tensor:
    chosen = torch.zeros_like(losses, dtype=torch.bool)
    chosen[losses.sort(descending=True).indices[:kept]] = True
    return chosen


def _lowest(probability: Tensor, kept: int, thresh: float) -> Tensor:
    """Those below the threshold, or below the value that `kept` pixels are below, if that is higher."""
    if probability.numel() == 0:
        return torch.zeros_like(probability, dtype=torch.bool)
    place = min(kept, probability.numel() - 1)
    # Sorted, since torch counts its choice of a single place among the algorithms that are not deterministic.
    return probability < probability.sort().values[place].clamp(min=thresh)
