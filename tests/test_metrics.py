import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from deeplab_recipes.metrics import MeanIoU, confusion_matrix

IGNORE = 255


def random_labels(seed: int, classes: int = 6) -> tuple[Tensor, Tensor]:
    """Prediction and truth (uint8) with ignored pixels; the last class occurs in neither."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, classes - 1, (3, 9, 11), generator=generator)
    prediction = torch.where(
        torch.rand(truth.shape, generator=generator) < 0.6,
        truth,
        torch.randint(0, classes - 1, truth.shape, generator=generator),
    )
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = IGNORE
    return prediction.byte(), truth.byte()


def iou_by_hand(prediction: Tensor, truth: Tensor, classes: int) -> np.ndarray:
    found, true = prediction.numpy(), truth.numpy()
    found, true = found[true != IGNORE], true[true != IGNORE]
    iou = np.full(classes, np.nan)
    for c in range(classes):
        union = np.count_nonzero((found == c) | (true == c))
        if union:
            iou[c] = 100 * np.count_nonzero((found == c) & (true == c)) / union
    return iou


def measured(prediction: Tensor, truth: Tensor, classes: int) -> MeanIoU:
    metric = MeanIoU(classes)
    metric.update(prediction, truth)
    return metric


def test_published_value():
    prediction, truth = torch.tensor([[[0, 1, 1, 2, 0]]]), torch.tensor([[[0, 1, 2, IGNORE, 0]]])
    metric = measured(prediction, truth, 4)
    assert metric.compute() == 50
    torch.testing.assert_close(
        metric.per_class(), torch.tensor([100, 50, 0, torch.nan], dtype=torch.float64), equal_nan=True
    )


@pytest.mark.parametrize("seed", range(3))
def test_against_a_loop(seed):
    prediction, truth = random_labels(seed)
    metric = measured(prediction, truth, 6)
    expected = iou_by_hand(prediction, truth, 6)
    np.testing.assert_allclose(metric.per_class().numpy(), expected, rtol=1e-14)
    assert metric.compute().item() == pytest.approx(np.nanmean(expected), rel=1e-14)


def test_against_torchmetrics():
    prediction, truth = random_labels(4)
    theirs = MulticlassJaccardIndex(6, ignore_index=IGNORE, average=None)
    expected = theirs(prediction.long(), truth.long())[:5].double() * 100  # it gives 0 for the absent sixth class
    torch.testing.assert_close(measured(prediction, truth, 6).per_class()[:5], expected, rtol=1e-6, atol=0)


def test_logits_are_read_by_their_largest_class():
    prediction, truth = random_labels(5)
    logits = torch.nn.functional.one_hot(prediction.long(), 6).permute(0, 3, 1, 2)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert measured(logits.to(dtype), truth, 6).compute() == measured(prediction, truth, 6).compute()


@pytest.mark.parametrize("ignore_index", [0, 3, 255])
def test_another_ignored_label(ignore_index):
    prediction, truth = random_labels(6)
    moved = truth.masked_fill(truth == IGNORE, 4)
    metric = MeanIoU(6, ignore_index=ignore_index)
    metric.update(prediction, moved)
    expected = iou_by_hand(prediction, moved.masked_fill(moved == ignore_index, IGNORE), 6)
    np.testing.assert_allclose(metric.per_class().numpy(), expected, rtol=1e-14)


def test_a_class_that_is_only_predicted_counts_as_zero():
    metric = measured(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]), 3)
    torch.testing.assert_close(metric.per_class()[:2], torch.tensor([50.0, 0.0], dtype=torch.float64))
    assert metric.compute() == 25


def test_exact_beyond_float32():
    # 2^24 + 1 pixels of which one is wrong: float32 cannot tell the counts apart.
    metric = MeanIoU(2)
    metric.confusion[0, 0] = 2**24
    metric.update(torch.tensor([[[1]]]), torch.tensor([[[0]]]))
    assert metric.confusion.sum() == 2**24 + 1
    assert metric.per_class()[0].item() == 100 * 2**24 / (2**24 + 1)
    metric.confusion += 2**40
    metric.update(torch.tensor([[[1]]]), torch.tensor([[[0]]]))
    assert metric.confusion[0, 1] == 2**40 + 2


def test_batches_add_up_in_any_order_and_over_devices():
    parts = [random_labels(seed) for seed in range(4)]
    whole = measured(torch.cat([p for p, _ in parts]), torch.cat([t for _, t in parts]), 6)
    devices = [MeanIoU(6), MeanIoU(6)]
    for i, (prediction, truth) in enumerate(reversed(parts)):
        devices[i % 2].update(prediction, truth)
    merged = MeanIoU(6)
    merged.confusion += devices[0].confusion + devices[1].confusion  # the metric's own reduction is a sum
    assert merged._reductions["confusion"] is not None
    assert torch.equal(merged.confusion, whole.confusion)
    assert merged.per_class()[:5].mean() == whole.compute()


def test_computing_and_going_on_and_reset():
    (a, true_a), (b, true_b) = random_labels(1), random_labels(2)
    metric = measured(a, true_a, 6)
    metric.compute()
    metric.update(b, true_b)
    assert metric.compute() == measured(torch.cat([a, b]), torch.cat([true_a, true_b]), 6).compute()
    metric.reset()
    metric.update(b, true_b)
    assert metric.compute() == measured(b, true_b, 6).compute()


def test_nothing_counted_is_zero():
    blank = torch.full((1, 4, 4), IGNORE)
    metric = measured(torch.zeros_like(blank), blank, 3)
    assert metric.compute() == 0
    assert metric.per_class().isnan().all()


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="resize the logits"):
        measured(torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8), 3)


@pytest.mark.parametrize("wrong", [3, 254, 255, -1])
def test_a_prediction_outside_the_classes_is_refused(wrong):
    # 255 too: a prediction has no "ignored" label, and dropping the pixel would flatter the result.
    with pytest.raises(ValueError, match="0 to 2"):
        measured(torch.tensor([[[1, wrong]]]), torch.tensor([[[1, 1]]]), 3)


@pytest.mark.parametrize("wrong", [3, 4, 254, -1])
def test_a_true_label_outside_the_classes_is_refused(wrong):
    with pytest.raises(ValueError, match="0 to 2"):
        measured(torch.tensor([[[1, 1]]]), torch.tensor([[[1, wrong]]]), 3)


def test_under_ignored_pixels_anything_may_be_predicted():
    metric = measured(torch.tensor([[[1, 255, 77]]]), torch.tensor([[[1, IGNORE, IGNORE]]]), 3)
    assert metric.confusion.sum() == 1


def test_confusion_matrix_has_the_truth_in_rows():
    matrix = confusion_matrix(torch.tensor([[2, 2, 0]]), torch.tensor([[0, 1, IGNORE]]), 3)
    assert matrix.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
