import pytest
import torch
from torch import nn

from deeplab_recipes.model.initializers import apply_initializers


def network() -> nn.Module:
    layers = nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.Linear(512, 256))
    for parameter in layers.parameters():
        nn.init.constant_(parameter, 7.0)
    return layers


def test_kaiming_normal_leaves_biases_and_norms():
    convolution, norm, linear = module = network()
    apply_initializers(module, ["kaiming_normal"])
    assert convolution.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert linear.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.05)
    assert all((p == 7).all() for p in (convolution.bias, linear.bias, norm.weight, norm.bias))


def test_bn_ones_touches_norms_only():
    convolution, norm, linear = module = network()
    apply_initializers(module, ["bn_ones"])
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()
    assert all((p == 7).all() for p in (*convolution.parameters(), *linear.parameters()))


def test_unknown_name_changes_nothing():
    module = network()
    message = r"unknown initializer 'kaiming_norm'; valid: kaiming_normal, bn_ones\. Did you mean 'kaiming_normal'"
    with pytest.raises(ValueError, match=message):
        apply_initializers(module, ["bn_ones", "kaiming_norm"])
    assert all(torch.equal(p, torch.full_like(p, 7)) for p in module.parameters())
