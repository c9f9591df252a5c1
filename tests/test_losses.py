import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab_recipes.hard_pixels import OHEM, TopPixels
from deeplab_recipes.losses import SegmentationLoss, count_pixels, cross_entropy, dense_cross_entropy, dice

IGNORE = 255


def published() -> tuple[Tensor, Tensor]:
    """The pixels whose losses the original code was run on (FACTS 3)."""
    classes = [[2.0, 0, 0, 1], [0, 2, 0, 1], [0, 0, 2, 1]]
    return torch.tensor(classes).view(1, 3, 1, 4), torch.tensor([[[0, 1, 1, IGNORE]]])


def random_batch(seed: int, *, classes: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits and labels with ignored pixels and one class (the last) that does not occur."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, 6, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes - 1, (2, 6, 7), generator=generator)
    target[torch.rand(2, 6, 7, generator=generator) < 0.3] = IGNORE
    return logits.to(dtype), target


def dice_by_hand(logits: Tensor, target: Tensor, smooth: float = 1e-5) -> float:
    """The formula of FACTS 3, one pixel at a time in Python's floats."""
    classes = logits.shape[1]
    intersection, union, truth = [0.0] * classes, [0.0] * classes, [0.0] * classes
    for image, labels in zip(logits.double().softmax(1).tolist(), target.tolist(), strict=True):
        for row, labels_row in enumerate(labels):
            for column, label in enumerate(labels_row):
                if label == IGNORE:
                    continue
                truth[label] += 1
                union[label] += 1
                intersection[label] += image[label][row][column]
                for c in range(classes):
                    union[c] += image[c][row][column]
    present = [c for c in range(classes) if truth[c]]
    return sum(1 - (2 * intersection[c] + smooth) / (union[c] + smooth) for c in present) / len(present)


def test_published_values():
    logits, target = published()
    assert cross_entropy(logits, target).item() == pytest.approx(0.906211, abs=1e-6)
    assert dice(logits, target).item() == pytest.approx(0.308675, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type(dtype):
    logits, target = published()
    assert cross_entropy(logits, target.to(dtype)).item() == pytest.approx(0.906211, abs=1e-6)
    assert dice(logits, target.to(dtype)).item() == pytest.approx(0.308675, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_denominators_against_torch(seed):
    logits, target = random_batch(seed)
    mean = F.cross_entropy(logits, target, ignore_index=IGNORE)
    share = (target != IGNORE).double().mean()
    torch.testing.assert_close(cross_entropy(logits, target), mean)
    torch.testing.assert_close(cross_entropy(logits, target, denominator="all"), mean * share)
    assert count_pixels(target) == (target != IGNORE).sum()
    assert count_pixels(target, denominator="all") == target.numel()


@pytest.mark.parametrize(("denominator", "avg_non_ignore"), [("valid", True), ("all", False)])
@pytest.mark.filterwarnings("ignore")
def test_denominators_against_mmsegmentation(denominator, avg_non_ignore):
    from mmseg.models.losses import CrossEntropyLoss

    logits, target = random_batch(7, dtype=torch.float32)
    theirs = CrossEntropyLoss(avg_non_ignore=avg_non_ignore)(logits, target, ignore_index=IGNORE)
    torch.testing.assert_close(cross_entropy(logits, target, denominator=denominator), theirs)


def test_count_replaces_the_denominator_even_below_one():
    # Two devices with one labelled pixel between them: each divides by half a pixel, gradients are averaged.
    logits, target = published()
    target[..., 1:] = IGNORE
    half = cross_entropy(logits, target, count=torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(half, 2 * cross_entropy(logits, target))
    assert half.dtype == logits.dtype


@pytest.mark.parametrize("ignore_index", [0, 255, -100])
def test_another_ignored_label(ignore_index):
    logits, target = random_batch(11)
    moved = target.masked_fill(target == IGNORE, 3).masked_fill(target == 2, ignore_index)
    expected = moved.masked_fill(moved == ignore_index, IGNORE)
    for loss in (cross_entropy, dice):
        ours = loss(logits, moved, ignore_index=ignore_index)
        torch.testing.assert_close(ours, loss(logits, expected))


@pytest.mark.parametrize("seed", range(4))
def test_dice_against_a_loop(seed):
    logits, target = random_batch(seed)
    assert dice(logits, target).item() == pytest.approx(dice_by_hand(logits, target), abs=1e-12)
    assert dice(logits, target, smooth=1.0).item() == pytest.approx(dice_by_hand(logits, target, 1.0), abs=1e-12)


def test_dice_ignores_what_stands_under_ignored_pixels():
    logits, target = random_batch(1)
    changed = torch.where((target == IGNORE).unsqueeze(1), 50 * torch.randn_like(logits), logits)
    torch.testing.assert_close(dice(changed, target), dice(logits, target))


def test_dice_is_near_zero_for_a_perfect_prediction():
    _, target = random_batch(2)
    logits = 100 * F.one_hot(target.masked_fill(target == IGNORE, 0), 5).permute(0, 3, 1, 2).double()
    assert dice(logits, target).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("loss", [cross_entropy, dice])
def test_gradients_against_finite_differences(loss):
    logits, target = random_batch(3)
    logits, target = logits[..., :3, :3].clone().requires_grad_(), target[..., :3, :3]
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)


def test_dense_cross_entropy():
    logits, target = random_batch(5)
    soft = torch.rand_like(logits)
    soft[:, :, 0] = 0  # a row of ignored pixels
    pixels = target.numel()
    expected = (-(soft * logits.log_softmax(1)).sum(1)).mean() * pixels / soft.sum()
    torch.testing.assert_close(dense_cross_entropy(logits, soft), expected)
    hard = F.one_hot(target.masked_fill(target == IGNORE, 0), 5).permute(0, 3, 1, 2) * (target != IGNORE).unsqueeze(1)
    torch.testing.assert_close(dense_cross_entropy(logits, hard.double()), cross_entropy(logits, target))


def test_dense_cross_entropy_in_half_precision():
    logits, _ = random_batch(5)
    soft = torch.rand_like(logits)
    ours = dense_cross_entropy(logits.half(), soft.half())
    torch.testing.assert_close(ours.double(), dense_cross_entropy(logits, soft), rtol=2e-3, atol=0)
    many = torch.ones(1, 2, 256, 512, dtype=torch.float16)  # their sum is beyond float16's 65504
    assert dense_cross_entropy(torch.zeros_like(many), many).item() == pytest.approx(0.693147, abs=1e-5)


LOSSES = {
    "cross_entropy": SegmentationLoss(),
    "cross_entropy_all": SegmentationLoss(denominator="all"),
    "dice": SegmentationLoss(cross_entropy=0, dice=1),
    "sum": SegmentationLoss(cross_entropy=0.375, dice=1.125),
    "weights": SegmentationLoss(class_weights=[1, 2, 0.5, 0.25], denominator="weights"),
    "top_k": SegmentationLoss(hard_pixels=TopPixels()),
    "ohem": SegmentationLoss(hard_pixels=OHEM(min_kept=3)),
    "ohem_by_loss": SegmentationLoss(hard_pixels=OHEM(thresh=None, min_kept=3)),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int64])
def test_all_ignored_is_zero_with_zero_gradients(name, dtype, label_dtype):
    logits = (30 * torch.randn(2, 4, 5, 5)).to(dtype).requires_grad_()
    values = LOSSES[name](logits, torch.full((2, 5, 5), IGNORE, dtype=label_dtype))
    values["loss"].backward()
    assert all(value.item() == 0 for value in values.values())
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_all_zero_soft_targets_are_zero_with_zero_gradients():
    for dtype in (torch.float16, torch.float32, torch.float64):
        logits = torch.randn(1, 3, 4, 4).to(dtype).requires_grad_()
        loss = dense_cross_entropy(logits, torch.zeros_like(logits))
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    # 131,072 pixels: beyond what float16 can count, and far beyond bfloat16's exact integers.
    logits = torch.zeros(1, 2, 256, 512, dtype=dtype)
    logits[:, 0] = 1
    target = torch.zeros(1, 256, 512, dtype=torch.uint8)
    exact = logits.double()
    for loss in (cross_entropy, dice):
        value = loss(logits, target)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(loss(exact, target).item(), rel=5e-5)


def test_dice_counts_beyond_float32():
    # 2^24 + 2^22 pixels of one class: one float32 sum of them stops at 2^24, and rounds long before that.
    logits = torch.zeros(1, 2, 4096, 5120)
    logits[:, 0] = 0.3
    target = torch.zeros(1, 4096, 5120, dtype=torch.uint8)
    probability = torch.tensor([0.3, 0.0], dtype=torch.float64).softmax(0)[0].item()
    assert dice(logits, target).item() == pytest.approx(1 - 2 * probability / (1 + probability), rel=5e-4)


def test_segmentation_loss_is_the_weighted_sum():
    logits, target = random_batch(9)
    values = SegmentationLoss(cross_entropy=0.375, dice=1.125, denominator="all")(logits, target)
    assert list(values) == ["loss", "cross_entropy", "dice"]
    torch.testing.assert_close(values["cross_entropy"], cross_entropy(logits, target, denominator="all"))
    torch.testing.assert_close(values["dice"], dice(logits, target))
    torch.testing.assert_close(values["loss"], 0.375 * values["cross_entropy"] + 1.125 * values["dice"])
    assert list(SegmentationLoss()(logits, target)) == ["loss", "cross_entropy"]
    assert list(SegmentationLoss(cross_entropy=0, dice=2)(logits, target)) == ["loss", "dice"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cross_entropy": -1}, "weights"),
        ({"cross_entropy": 0}, "weights"),
        ({"cross_entropy": float("nan")}, "weights"),
        ({"dice": float("inf")}, "weights"),
        ({"denominator": "mean"}, "'mean'; valid are 'valid', 'all', 'weights'"),
        ({"denominator": "weights"}, "give loss.class_weights"),
        ({"class_weights": [1, 2], "cross_entropy": 0, "dice": 1}, "act on the cross entropy, whose weight is 0"),
        ({"hard_pixels": OHEM(), "cross_entropy": 0, "dice": 1}, "act on the cross entropy, whose weight is 0"),
        ({"hard_pixels": TopPixels(), "denominator": "all"}, "denominator=all has no effect"),
        ({"class_weights": "balanced"}, "'balanced'; valid are .*median_frequency, inverse_frequency, enet"),
        ({"normalize": "batch"}, "'batch'; valid are 'device' and 'global'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegmentationLoss(**arguments)


def test_unknown_denominator_is_refused_by_the_functions():
    logits, target = published()
    with pytest.raises(ValueError, match="valid are 'valid', 'all', 'weights'"):
        cross_entropy(logits, target, denominator="mean")


def test_a_label_outside_the_classes_is_never_dropped():
    logits, target = published()
    target[..., 0] = 3
    for loss in (cross_entropy, dice):
        with pytest.raises((IndexError, RuntimeError)):
            loss(logits, target)


def test_speed():
    """21 classes at 128 x 128 take some milliseconds; a Python loop over pixels or rows would show."""
    logits = torch.randn(4, 21, 128, 128, requires_grad=True)
    target = torch.randint(0, 21, (4, 128, 128), dtype=torch.uint8)
    module = SegmentationLoss(dice=1)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        module(logits, target)["loss"].backward()
        best = min(best, time.perf_counter() - start)
    assert best < 0.5
