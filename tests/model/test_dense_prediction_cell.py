import json

import pytest
import torch
from torch import nn

from deeplab_recipes.model.dense_prediction_cell import PUBLISHED, DensePredictionCell, parse_cell

CONV = {"op": "conv", "kernel": 3, "rate": [1, 6], "input": -1}
POOL = {"op": "pyramid_pooling", "grid_size": [1, 2], "input": -1}
# As tonandr/deeplabv3plus_keras writes it.
LEGACY = {
    "depth_multiplier": 1,
    "conv_rate_multiplier": 2,
    "reduction_size": 24,
    "concat_channels": 40,
    "encoder_middle_conf": list(PUBLISHED),
}


def cell(spec=None, *, before: int = 6, output_stride: int = 16, channels: int = 8) -> DensePredictionCell:
    torch.manual_seed(0)
    filled = parse_cell(spec).filled(channels, output_stride)
    return DensePredictionCell(before, filled, dropout=0.1, align_corners=True)


def rates(module: DensePredictionCell) -> list[tuple[int, int]]:
    return [branch.depthwise.conv.dilation for branch in module.branches]


def test_published_cell():
    module = cell()
    assert rates(module) == [(1, 6), (18, 15), (6, 3), (1, 1), (6, 21)]
    assert [branch.input for branch in module.cell.branches] == [-1, 0, 1, 0, 0]
    assert rates(cell(output_stride=8)) == [(2, 12), (36, 30), (12, 6), (2, 2), (12, 42)]
    assert rates(cell(output_stride=32)) == rates(module)
    assert parse_cell("published") == parse_cell(None) == parse_cell(list(PUBLISHED))


def test_published_parameter_count():
    with torch.device("meta"):
        module = cell(before=2048, channels=256)
    first = 2048 * 9 + 2 * 2048 + 2048 * 256 + 2 * 256
    others = 256 * 9 + 2 * 256 + 256 * 256 + 2 * 256
    projection = 5 * 256 * 256 + 2 * 256
    assert sum(p.numel() for p in module.parameters()) == first + 4 * others + projection


def test_each_branch_reads_the_one_it_names():
    module, features = cell().eval(), torch.randn(2, 6, 7, 9)
    with torch.no_grad():
        first = module.branches[0](features)
        second = module.branches[1](first)
        results = [first, second, module.branches[2](second), module.branches[3](first), module.branches[4](first)]
        assert torch.equal(module(features), module.concat_projection(torch.cat(results, dim=1)))


def test_legacy_spelling(tmp_path):
    file = tmp_path / "cell.json"
    file.write_text(json.dumps(LEGACY))
    module = cell(str(file))
    assert rates(module) == [(2, 12), (36, 30), (12, 6), (2, 2), (12, 42)]  # the given factor, at any output stride
    assert module.concat_projection.conv.weight.shape == (40, 5 * 24, 1, 1)
    file.write_text(json.dumps(LEGACY["encoder_middle_conf"]))
    assert parse_cell(str(file)) == parse_cell(None)
    assert parse_cell({**LEGACY, "encoder_middle_conf": str(file)}) == parse_cell(LEGACY)


def test_depth_multiplier_widens_the_depthwise_convolution():
    module = cell({"branches": [CONV], "depth_multiplier": 3})
    assert module.branches[0].depthwise.conv.weight.shape == (18, 1, 3, 3)
    assert module.branches[0].pointwise.conv.weight.shape == (8, 18, 1, 1)
    assert module(torch.randn(2, 6, 5, 5)).shape == (2, 8, 5, 5)


def test_kernels():
    module = cell([{"op": "conv", "kernel": 1, "input": -1}, {**CONV, "kernel": [3, 5], "rate": 2, "input": 0}])
    assert module.branches[0].conv.kernel_size == (1, 1)
    depthwise = module.branches[1].depthwise.conv
    assert (depthwise.kernel_size, depthwise.dilation, depthwise.padding) == ((3, 5), (2, 2), (2, 4))


def test_pyramid_pooling_averages_windows_and_resizes():
    module, features = cell([{**POOL, "grid_size": [2, 1]}]).eval(), torch.randn(1, 6, 6, 5)
    with torch.no_grad():
        # Six rows in two parts: windows of three, at every place; five columns in one part.
        rows = torch.stack([features[:, :, i : i + 3].mean((2, 3)) for i in range(4)], dim=2)[..., None]
        pooled = module.branches[0](rows)
        resized = nn.functional.interpolate(pooled, (6, 5), mode="bilinear", align_corners=True)
        torch.testing.assert_close(module(features), module.concat_projection(resized))


def test_only_global_pooling_normalises_single_values():
    assert len(cell([CONV, POOL, {**POOL, "grid_size": 1}]).image_pool) == 1
    assert len(cell().image_pool) == 0


@pytest.mark.parametrize("spec", [None, LEGACY, [CONV, POOL], [{"op": "conv", "kernel": 1, "input": -1}]])
def test_description_is_builtins_that_make_the_same_cell(spec):
    described = parse_cell(spec).described()
    assert parse_cell(json.loads(json.dumps(described))) == parse_cell(spec)


def without(entry: dict, key: str) -> dict:
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([CONV, {**CONV, "input": 1}], r"branch 1: input is 1; valid: -1 \(the .*\) or an earlier branch, 0 to 0"),
        ([{**CONV, "input": 0}], r"branch 0: input is 0; valid: -1 \(the backbone's features\)$"),
        ([{**CONV, "input": -2}], "branch 0: input is -2"),
        ([{**CONV, "input": "0"}], "branch 0: input is '0'"),
        (
            [{**CONV, "op": "convolution"}],
            "op in dense_prediction_cell, branch 0: 'convolution'; valid: conv, ",
        ),
        ([{**CONV, "op": ["conv"]}], r"op in dense_prediction_cell, branch 0: \['conv'\]; valid: conv, "),
        ([without(CONV, "input")], "branch 0 lacks 'input'"),
        ([without(CONV, "op")], "branch 0 lacks 'op'"),
        ([without(CONV, "kernel")], "branch 0 lacks 'kernel'"),
        ([without(CONV, "rate")], "branch 0 lacks 'rate'"),
        ([without(POOL, "grid_size")], "branch 0 lacks 'grid_size'"),
        ([{**CONV, "rate": [-1, 6]}], r"branch 0: rate must be a positive integer or two, .* got \[-1, 6\]"),
        ([{**CONV, "rate": [1, 6, 3]}], "branch 0: rate must be"),
        ([{**CONV, "kernel": 4}], "branch 0: kernel must be odd, such as 3, got 4"),
        ([{**CONV, "kernel": 1}], "no meaning for a 1x1 kernel"),
        ([{**CONV, "stride": 2}], "branch 0: conv has no 'stride'; valid: op, input, kernel, rate"),
        ([{**POOL, "target_size": [9, 9]}], "pyramid_pooling has no 'target_size'; valid: op, input, grid_size"),
        ([3], "branch 0 must be a mapping with op, input and so on, got 3"),
        ([], "branches must be a list"),
        ({"branches": [CONV], "reduction": 8}, r"unknown key 'reduction'; valid: .* Did you mean 'reduction_size'"),
        ({"branches": [CONV], "concat_channels": 0}, "concat_channels must be a positive integer, got 0"),
        ({"branches": [CONV], "conv_rate_multiplier": 0.5}, "conv_rate_multiplier must be a positive integer, got 0.5"),
        ({"branches": [CONV], "encoder_middle_conf": [CONV]}, "mean the same; give one of them"),
        ("publishd", "dense_prediction_cell=publishd is no file; valid: published, a JSON file, a list of branches"),
    ],
)
def test_errors_name_the_entry(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_cell(spec)


def test_file_that_is_no_json(tmp_path):
    (tmp_path / "cell.json").write_text("[{op: conv}]")
    with pytest.raises(ValueError, match=r"cell\.json is no JSON"):
        parse_cell(str(tmp_path / "cell.json"))
