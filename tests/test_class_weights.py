import math

import pytest
import torch
import torch.nn.functional as F

from deeplab_recipes.class_weights import FORMULAS, resolve_weights
from deeplab_recipes.losses import SegmentationLoss, count_pixels, cross_entropy

IGNORE = 255
CLASSES = ("road", "car", "sky", "unseen")
# Two images: 60 road and 20 car; 20 road and 100 sky.
PIXELS, IN_IMAGES = [80, 20, 100, 0], [200, 80, 120, 0]


def resolved(weights):
    return resolve_weights(weights, CLASSES, lambda: (PIXELS, IN_IMAGES)).tolist()


def test_formulas_by_hand():
    # Shares in the images that show them: 0.4, 0.25 and 0.8333; their median is 0.4.
    assert resolved("median_frequency") == pytest.approx([1, 0.4 / 0.25, 0.4 / (100 / 120), 0])
    assert resolved("inverse_frequency") == pytest.approx([200 / (3 * 80), 200 / (3 * 20), 200 / (3 * 100), 0])
    assert resolved("enet") == pytest.approx([1 / math.log(1.02 + n / 200) for n in PIXELS])


def test_inverse_frequency_weighs_the_whole_set_as_if_all_had_one():
    assert sum(n * w for n, w in zip(PIXELS, resolved("inverse_frequency"), strict=True)) == pytest.approx(200)


def test_given_weights_are_not_counted():
    def count():
        raise AssertionError

    assert resolve_weights([1, 2, 0.5, 0], CLASSES, count).tolist() == [1, 2, 0.5, 0]
    assert resolve_weights({"car": 3}, CLASSES, count).tolist() == [1, 3, 1, 1]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "2 numbers for 4 classes"),
        ({"cra": 2}, "names 'cra', which is no class; classes are"),
    ],
)
def test_weights_of_other_classes_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        resolved(weights)


@pytest.mark.parametrize("weights", [[], [0, 0], [-1, 2], [True, 1], ["a"], [float("nan")], {"car": -1}, {}])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"class_weights is .*numbers of at least 0"):
        SegmentationLoss(class_weights=weights)


@pytest.mark.parametrize("formula", FORMULAS)
def test_labels_without_a_class_are_refused(formula):
    with pytest.raises(ValueError, match="show no class at all"):
        resolve_weights(formula, ("a", "b"), lambda: ([0, 0], [0, 0]))


def batch():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randint(0, 4, (2, 5, 6))
    target[:, 0] = IGNORE
    return logits, target


WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 0.0], dtype=torch.float64)


def test_denominators():
    """By the weights as torch, by the labelled pixels as TensorFlow, by all pixels as mmsegmentation."""
    logits, target = batch()
    mean = F.cross_entropy(logits, target, weight=WEIGHTS, ignore_index=IGNORE)
    valid = target != IGNORE
    total = mean * WEIGHTS[target[valid]].sum()
    found = {
        name: cross_entropy(logits, target, denominator=name, class_weights=WEIGHTS)
        for name in ("weights", "valid", "all")
    }
    torch.testing.assert_close(found["weights"], mean)
    torch.testing.assert_close(found["valid"], total / valid.sum())
    torch.testing.assert_close(found["all"], total / target.numel())
    assert count_pixels(target.byte(), denominator="weights", class_weights=WEIGHTS) == WEIGHTS[target[valid]].sum()


def test_the_loss_takes_them_once_it_knows_the_classes():
    logits, target = batch()
    loss = SegmentationLoss(class_weights="median_frequency")
    with pytest.raises(ValueError, match="needs the classes"):
        loss(logits, target)
    loss.set_classes(CLASSES, lambda: (PIXELS, IN_IMAGES))
    expected = cross_entropy(logits, target, class_weights=torch.tensor([1, 1.6, 0.48, 0], dtype=torch.float64))
    torch.testing.assert_close(loss(logits, target)["loss"], expected)
    assert not loss.state_dict()


def test_dice_has_no_class_weights():
    logits, target = batch()
    one, other = (
        SegmentationLoss(dice=1, class_weights=w)(logits, target)["dice"] for w in ([1, 2, 3, 4], [4, 3, 2, 1])
    )
    assert one == other


def test_weights_by_name_that_are_all_0_are_refused():
    with pytest.raises(ValueError, match="is 0 for every class, so that nothing would be learned"):
        resolve_weights({"road": 0, "car": 0}, ["road", "car"], lambda: ((), ()))
    assert resolve_weights({"road": 0}, ["road", "car"], lambda: ((), ())).tolist() == [0, 1]
