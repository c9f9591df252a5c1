import pytest
import torch

from deeplab_recipes.model import build_deeplab
from deeplab_recipes.model.arguments import at_output_stride, resolved

CELL = [{"op": "conv", "kernel": 3, "rate": [1, 6], "input": -1}]


@pytest.mark.parametrize(
    ("before", "rates", "after", "expected"),
    [
        (16, [1, 8, 12, 18], 8, [1, 16, 24, 36]),
        (8, [1, 12, 24, 36], 16, [1, 6, 12, 18]),
        (32, [1, 2], 8, [1, 8]),
        (16, None, 8, None),
        (16, [1, 5], 16, [1, 5]),
    ],
)
def test_given_rates_reach_as_far_as_before(before, rates, after, expected):
    model = build_deeplab(
        3, backbone="resnet18", head="tensorflow", output_stride=before, aspp_dilations=rates, aspp_channels=8
    )
    arguments = at_output_stride(model.arguments, after)
    assert (arguments["output_stride"], arguments["aspp_dilations"]) == (after, expected)
    other = build_deeplab(**arguments)
    other.load_state_dict(model.state_dict())
    reach = [[after * b.depthwise.conv.dilation[0] for b in other.head.encoder.branches if hasattr(b, "depthwise")]]
    reach += [[before * b.depthwise.conv.dilation[0] for b in model.head.encoder.branches if hasattr(b, "depthwise")]]
    assert reach[0] == reach[1]


@pytest.mark.parametrize(("factor", "expected"), [(2, 1), (None, None)])
def test_a_given_factor_of_a_cell_is_scaled(factor, expected):
    cell = {"branches": CELL, "conv_rate_multiplier": factor}
    settings = {"backbone": "mobilenet_v2", "width_multiplier": 0.35, "aspp_channels": 8, "output_stride": 8}
    model = build_deeplab(3, head="dense_prediction_cell", dense_prediction_cell=cell, **settings)
    arguments = at_output_stride(model.arguments, 16)
    assert arguments["dense_prediction_cell"]["conv_rate_multiplier"] == expected
    rates = [build_deeplab(**a).head.encoder.branches[0].depthwise.conv.dilation for a in (model.arguments, arguments)]
    assert rates == [(2, 12), (1, 6)]


@pytest.mark.parametrize(
    ("rates", "after", "words"),
    [
        ([1, 5], 32, r"output_stride=32: the atrous rate 5 .* at output stride 16 would be 2.5 there"),
        ([1, 2], 32, r"the atrous rate 2 .* would be 1 there; take one at which it is a whole number above 1"),
        ([1, 2], 4, r"output_stride must be one of \(8, 16, 32\), got 4"),
    ],
)
def test_what_cannot_be_had_is_refused(rates, after, words):
    with torch.device("meta"):
        model = build_deeplab(3, backbone="resnet18", output_stride=16, aspp_dilations=rates, aspp_channels=8)
    with pytest.raises(ValueError, match=words):
        at_output_stride(model.arguments, after)


CELL_HEAD = {"head": "dense_prediction_cell", "aspp_channels": 8, "dense_prediction_cell": CELL}


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ({"backbone": "xception41"}, {"batchnorm_epsilon": {"backbone": 1e-3, "head": 1e-5}}, True),
        ({"backbone": "xception41"}, {"batchnorm_epsilon": {"backbone": 1e-3}}, True),
        ({"backbone": "xception41"}, {"batchnorm_epsilon": 1e-3}, False),
        ({"backbone": "resnet18"}, {"batchnorm_epsilon": 1e-5}, True),
        ({"head": "tensorflow"}, {"decoder": True, "align_corners": True}, True),
        ({"head": "tensorflow"}, {"decoder": False}, False),
        ({"head": "tensorflow_short"}, {"align_corners": True}, True),
        ({"head": "deeplabv3plus"}, {"align_corners": False}, True),
        ({"head": "deeplabv3plus"}, {"align_corners": True}, False),
        (CELL_HEAD, {"dense_prediction_cell": {"branches": CELL, "reduction_size": 8, "concat_channels": 8}}, True),
        (CELL_HEAD, {"dense_prediction_cell": {"branches": CELL, "concat_channels": 16}}, False),
        (CELL_HEAD, {"dense_prediction_cell": {"branches": CELL, "conv_rate_multiplier": 2}}, True),
        (CELL_HEAD, {"dense_prediction_cell": {"branches": CELL, "conv_rate_multiplier": 1}}, False),
    ],
)
def test_one_network_written_in_two_ways(one, other, alike):
    with torch.device("meta"):
        models = [
            build_deeplab(3, **{"backbone": "mobilenet_v2", "output_stride": 8, **settings})
            for settings in (one, {**one, **other})
        ]
    first, second = (resolved(model.arguments) for model in models)
    assert (first == second) is alike
    assert models[0].arguments != models[1].arguments
