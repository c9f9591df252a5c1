from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab_recipes.hard_pixels import OHEM, TopPixels
from deeplab_recipes.losses import SegmentationLoss, cross_entropy

IGNORE = 255


def batch(seed: int = 0, *, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, 5, 9, 8, generator=generator)
    target = torch.randint(0, 5, (3, 9, 8), generator=generator)
    target[torch.rand(3, 9, 8, generator=generator) < ignored] = IGNORE
    return logits, target


def losses(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")


def tensorflow(logits: Tensor, target: Tensor, weights: list[float], share: float, start: int, step: int) -> float:
    """The loss of research/deeplab, one pixel at a time."""
    values = []
    for scores, label in zip(
        logits.movedim(1, 3).reshape(-1, 5).double().tolist(), target.flatten().tolist(), strict=True
    ):
        log_sum = np.log(np.exp(scores).sum())
        values.append(0.0 if label == IGNORE else weights[label] * (log_sum - scores[label]))
    ratio = min(1.0, step / start) if start else 1.0
    if share == 1:  # mines nothing
        return sum(values) / int((target != IGNORE).sum())
    chosen = sorted(values, reverse=True)[: int((ratio * share + 1 - ratio) * len(values))]
    present = sum(value != 0 for value in chosen)
    return sum(chosen) / present if present else 0.0


@pytest.mark.parametrize(("start", "step"), [(0, 0), (0, 7), (10, 0), (10, 4), (10, 10), (10, 25)])
@pytest.mark.parametrize("share", [0.25, 0.9, 1.0])
def test_top_pixels_give_tensorflows_loss(share, start, step):
    logits, target = batch()
    weights = [1.0, 2.0, 0.5, 0.0, 3.0]
    loss = SegmentationLoss(class_weights=weights, hard_pixels=TopPixels(share, start))
    expected = tensorflow(logits, target, weights, share, start, step)
    assert loss(logits, target, step=step)["loss"].item() == pytest.approx(expected, rel=1e-6)


def test_all_pixels_are_the_plain_mean():
    logits, target = batch()
    mined = SegmentationLoss(hard_pixels=TopPixels(1.0))(logits, target)["loss"]
    torch.testing.assert_close(mined, cross_entropy(logits, target))


def test_only_chosen_pixels_have_gradients():
    logits, target = batch()
    logits.requires_grad_()
    SegmentationLoss(hard_pixels=TopPixels(0.25))(logits, target)["loss"].backward()
    values = losses(logits.detach(), target)
    hardest = values >= values.flatten().sort(descending=True).values[3 * 9 * 8 // 4 - 1]
    assert torch.equal(logits.grad.abs().sum(1) > 0, hardest)


def mmseg_sampler(thresh: float | None, min_kept: int, weights: list[float] | None):
    from mmseg.models.losses import CrossEntropyLoss
    from mmseg.structures.sampler import OHEMPixelSampler

    decode = CrossEntropyLoss(class_weight=weights, avg_non_ignore=True)
    return OHEMPixelSampler(SimpleNamespace(ignore_index=IGNORE, loss_decode=decode), thresh=thresh, min_kept=min_kept)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("min_kept", [2, 20, 100_000])
@pytest.mark.parametrize("thresh", [None, 0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("weights", [None, [1.0, 4.0, 0.5, 1.0, 2.0]])
def test_ohem_chooses_mmsegmentations_pixels(thresh, min_kept, seed, weights):
    logits, target = batch(seed)
    theirs = mmseg_sampler(thresh, min_kept, weights).sample(logits, target.unsqueeze(1)).bool()
    weighted = F.cross_entropy(
        logits, target, ignore_index=IGNORE, reduction="none", weight=None if weights is None else torch.tensor(weights)
    )
    chosen, count = OHEM(thresh, min_kept).choose(weighted, logits, target)
    assert torch.equal(chosen, theirs)
    assert count is None
    assert 0 < chosen.sum() < target.numel()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("denominator", "avg_non_ignore"), [("valid", True), ("all", False)])
def test_ohem_gives_mmsegmentations_loss(denominator, avg_non_ignore):
    from mmseg.models.losses import CrossEntropyLoss

    logits, target = batch(4)
    weight = mmseg_sampler(0.3, 5, None).sample(logits, target.unsqueeze(1))
    theirs = CrossEntropyLoss(avg_non_ignore=avg_non_ignore)(logits, target, weight=weight, ignore_index=IGNORE)
    ours = SegmentationLoss(hard_pixels=OHEM(0.3, 5), denominator=denominator)(logits, target.byte())["loss"]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("choice", [TopPixels(0.5), OHEM(0.7, 4), OHEM(None, 4)])
def test_nothing_is_chosen_where_nothing_is_labelled(choice):
    logits, target = batch(ignored=1.1)
    chosen, _ = choice.choose(torch.zeros(3, 9, 8), logits, target)
    assert not chosen.any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TopPixels(0), r"top_k_percent_pixels is 0; it is a share in \(0, 1\]"),
        (lambda: TopPixels(25), "top_k_percent_pixels is 25"),
        (lambda: TopPixels(0.5, -1), "hard_example_mining_step is -1"),
        (lambda: OHEM(1.5), "thresh is 1.5"),
        (lambda: OHEM(0.7, 0), "min_kept is 0"),
    ],
)
def test_wrong_choices_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_what_chooses_every_pixel_is_refused_or_noted():
    OHEM(min_kept=99).require_acting((10, 10))
    with pytest.raises(ValueError, match=r"min_kept=100 chooses every pixel: .*\[10, 10\] has 100; .* to 25"):
        OHEM(min_kept=100).require_acting((10, 10))
    assert TopPixels(1.0).notes(5) == ["loss.hard_pixels.top_k_percent_pixels=1 chooses every pixel"]
    assert TopPixels(0.25, 8).notes(9) == OHEM().notes(9) == []
    assert TopPixels(0.25, 8).notes(4)[0].endswith("at step 8, and this run ends at step 4, with a share of 0.625")
