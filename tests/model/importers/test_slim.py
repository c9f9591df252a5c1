import numpy as np
import pytest
import torch
import torchvision

from deeplab_recipes.model.importers import slim


@pytest.mark.parametrize("width", [0.35, 1.0, 1.4])
def test_width_is_found_from_torchvisions_channels(width):
    network = torchvision.models.mobilenet_v2(width_mult=width)
    blocks = [block.conv[-2].out_channels for block in network.features[1:-1]]
    assert slim.find_width(blocks, slim.BLOCK_CHANNELS, slim.WIDTHS) == (width, 8)
    assert slim.find_width(blocks[:-1], slim.BLOCK_CHANNELS, slim.WIDTHS) is None


@pytest.mark.parametrize("between", ["/", "_"])
def test_every_layer_of_mobilenet_has_its_place(between):
    network = torchvision.models.mobilenet_v2()
    modules = dict(network.named_modules())
    parts = ("expand", "depthwise", "project")
    layers = [f"expanded_conv{f'_{i}' if i else ''}{between}{part}" for i in range(17) for part in parts]
    places = {layer: slim.mobilenet_place(layer) for layer in ("Conv", *layers)}
    assert [layer for layer, place in places.items() if place is None] == [f"expanded_conv{between}expand"]
    found = [key.removeprefix("backbone.") for place in filter(None, places.values()) for key in place]
    assert len(set(found)) == len(found) == 2 * (1 + 17 * 3 - 1)
    assert {type(modules[key]) for key in found[::2]} == {torch.nn.Conv2d}
    assert {type(modules[key]) for key in found[1::2]} == {torch.nn.BatchNorm2d}
    depthwise = [key for layer, key in places.items() if "depthwise" in layer]
    assert all(modules[conv.removeprefix("backbone.")].groups > 1 for conv, _ in depthwise)


@pytest.mark.parametrize("layer", ["expanded_conv_17/expand", "expanded_conv_1/other", "Conv_1", "conv"])
def test_other_layers_have_no_place(layer):
    assert slim.mobilenet_place(layer) is None


def test_kernels_are_turned():
    place = ("a.conv", "a.bn")
    kernel = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    key, value = slim.convert("weights", place, kernel)
    assert (key, value.shape) == ("a.conv.weight", (5, 4, 2, 3))
    assert value[4, 3, 1, 2] == kernel[1, 2, 3, 4]
    key, value = slim.convert("depthwise_weights", place, kernel)  # five outputs for each of four inputs
    assert (key, value.shape) == ("a.conv.weight", (20, 1, 2, 3))
    assert value[3 * 5 + 4, 0, 1, 2] == kernel[1, 2, 3, 4]
    assert slim.convert("moving_variance", place, np.ones(3))[0] == "a.bn.running_var"
