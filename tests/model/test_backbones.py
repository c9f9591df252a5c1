import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter

from deeplab_recipes.model.backbones import BACKBONES, build_backbone
from deeplab_recipes.model.backbones.base import dilate
from deeplab_recipes.model.layers import SameConv2d, pad_as_tensorflow

CHANNELS = {
    "resnet18": (64, 256, 512),
    "resnet34": (64, 256, 512),
    "resnet50": (256, 1024, 2048),
    "resnet101": (256, 1024, 2048),
    "resnet50_v1c": (256, 1024, 2048),
    "resnet101_v1c": (256, 1024, 2048),
    "mobilenet_v2": (24, 96, 320),
    "xception41": (256, 728, 2048),
    "xception65": (256, 728, 2048),
    "xception71": (256, 728, 2048),
}


def with_random_statistics(network: nn.Module) -> nn.Module:
    """Batch norm as after training: nothing that is 0 or 1 by default may hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(generator=generator)
    return network.double().eval()


def images(height: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(1, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(2))


def assert_dilating_keeps_features(strided: nn.Module, dilated: nn.Module, batch: torch.Tensor, step: int) -> None:
    """Compare at the strided network's positions, which are every ``step``-th of the dilated one.

    Row i of a strided convolution (odd kernel, padding half of it) is centred on row 2i of its input, whether
    that has an odd or an even number of rows, and beyond the border both networks read zeros. So the grids
    coincide for every input size.
    """
    with torch.no_grad():
        expected, features = strided(batch), dilated(batch)
    for name, every in {"low": 1, "middle": max(1, step // 2), "high": step}.items():
        theirs, ours = getattr(expected, name), getattr(features, name)[..., ::every, ::every]
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max().item())
        assert theirs.std() > 0


# The other Xceptions are rows of the same blocks.
@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in ("xception65", "xception71")])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_keeps_the_strided_features(name, output_stride):
    strided = with_random_statistics(build_backbone(name, output_stride=32))
    dilated = with_random_statistics(build_backbone(name, output_stride=output_stride))
    dilated.load_state_dict(strided.state_dict())
    for size in [(33, 48)] if name.startswith("xception") else [(65, 65), (64, 97)]:
        assert_dilating_keeps_features(strided, dilated, images(*size), step=32 // output_stride)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_keeps_trained_features(output_stride, mobilenet_weights):
    state = torch.load(mobilenet_weights, weights_only=True)
    networks = [build_backbone("mobilenet_v2", output_stride=stride) for stride in (32, output_stride)]
    for network in networks:
        network.load_state_dict({key: state[key] for key in network.state_dict()})
        network.double().eval()
    assert_dilating_keeps_features(*networks, images(65, 97), step=32 // output_stride)


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
@pytest.mark.parametrize(("output_stride", "replaced"), [(8, [0, 1, 1]), (16, [0, 0, 1])])
def test_resnet_equals_torchvision(name, output_stride, replaced):
    reference = torchvision.models.get_model(name, replace_stride_with_dilation=replaced)
    backbone = build_backbone(name, output_stride=output_stride)
    del reference.avgpool, reference.fc
    backbone.load_state_dict(reference.state_dict())
    taps = IntermediateLayerGetter(reference, {"layer1": "low", "layer3": "middle", "layer4": "high"}).eval()
    batch = images(65, 65, torch.float32)
    with torch.no_grad():
        expected, features = taps(batch), backbone.eval()(batch)
    for name in features._fields:
        assert torch.equal(getattr(features, name), expected[name])


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize(("output_stride", "strides", "dilations"), [(8, (1, 1), (2, 4)), (16, (2, 1), (1, 2))])
def test_v1c_equals_mmsegmentation(depth, output_stride, strides, dilations):
    from mmseg.models.backbones import ResNetV1c

    reference = ResNetV1c(depth=depth, strides=(1, 2, *strides), dilations=(1, 1, *dilations), contract_dilation=True)
    backbone = build_backbone(f"resnet{depth}_v1c", output_stride=output_stride)
    with_random_statistics(reference)
    backbone.double().load_state_dict(reference.state_dict())
    batch = images(65, 97)
    with torch.no_grad():
        expected, features = reference(batch), backbone.eval()(batch)
    for theirs, ours in zip((expected[0], expected[2], expected[3]), features, strict=True):
        assert torch.equal(ours, theirs)


def test_mobilenet_equals_torchvision_at_output_stride_32():
    reference = torchvision.models.mobilenet_v2().eval()
    backbone = build_backbone("mobilenet_v2", output_stride=32).eval()
    backbone.load_state_dict({key: reference.state_dict()[key] for key in backbone.state_dict()})
    batch = images(65, 65, torch.float32)
    with torch.no_grad():
        low, middle, high = backbone(batch)
        assert torch.equal(low, reference.features[:4](batch))
        assert torch.equal(middle, reference.features[:14](batch))
        assert torch.equal(high, reference.features[:18](batch))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_channels_and_strides(name, output_stride):
    with torch.device("meta"):
        backbone = build_backbone(name, output_stride=output_stride)
        low, middle, high = backbone(torch.empty(2, 3, 97, 65))
    assert backbone.channels == CHANNELS[name]
    assert low.shape == (2, CHANNELS[name][0], 25, 17)
    middle_stride = min(output_stride, 16)
    assert middle.shape == (2, CHANNELS[name][1], -(-97 // middle_stride), -(-65 // middle_stride))
    assert high.shape == (2, CHANNELS[name][2], -(-97 // output_stride), -(-65 // output_stride))


def test_dilation_rates_of_a_basic_block_network():
    # The convolution that had the stride keeps its neighbours 1 apart; those behind it read a denser map.
    with torch.device("meta"):
        backbone = build_backbone("resnet18", output_stride=16)
    convolutions = [module for module in backbone.layer4.modules() if isinstance(module, nn.Conv2d)]
    assert all(module.stride == (1, 1) for module in convolutions)
    rates = [module.dilation[0] for module in convolutions if module.kernel_size == (3, 3)]
    assert rates == [1, 2, 2, 2]
    assert backbone.layer3[0].conv1.stride == (2, 2)


def test_dilate_pads_by_the_kernel():
    stage = nn.Sequential(nn.Conv2d(1, 1, 5, stride=2, padding=2), nn.Conv2d(1, 1, 5, padding=2))
    dilate([nn.Identity(), stage], output_stride=16)
    assert [m.padding for m in stage] == [(2, 2), (4, 4)]


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Trainable parameters of research/deeplab's feature extractor, counted in the graphs that it builds.
@pytest.mark.parametrize(
    ("name", "expected"), [("xception41", 24_920_560), ("xception65", 37_867_312), ("xception71", 40_289_736)]
)
def test_parameters_of_tensorflows_xceptions(name, expected):
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert parameters(backbone) == expected
    assert {norm.eps for norm in backbone.modules() if isinstance(norm, nn.BatchNorm2d)} == {1e-3}


# The same up to layer_18, with the channels of its layers 4, 14 and 18. slim rounds channels to multiples of 8,
# research/deeplab does not, but for width 1.0.
@pytest.mark.parametrize(
    ("width", "divisor", "channels", "expected"),
    [
        (0.35, 8, (8, 32, 112), 250_208),
        (0.5, 8, (16, 48, 160), 480_320),
        (0.75, 8, (24, 72, 240), 1_045_664),
        (1.0, 8, (24, 96, 320), 1_811_712),
        (1.4, 8, (32, 136, 448), 3_509_376),
        (0.35, 1, (8, 34, 112), 245_564),
        (0.5, 1, (12, 48, 160), 477_088),
        (0.75, 1, (18, 72, 240), 1_037_624),
        (1.4, 1, (34, 134, 448), 3_506_236),
    ],
)
def test_mobilenet_widths_are_tensorflows(width, divisor, channels, expected):
    with torch.device("meta"):
        backbone = build_backbone("mobilenet_v2", width_multiplier=width, width_divisor=divisor)
        features = backbone(torch.empty(1, 3, 64, 64))
    assert tuple(feature.shape[1] for feature in features) == backbone.channels == channels
    assert parameters(backbone) == expected


def test_same_padding_is_tensorflows():
    # On an even size TensorFlow pads behind the last row only: the windows begin at row 0, on an odd size at row -1.
    layer = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3))
    pad_as_tensorflow(layer)
    weight, bias = layer[0].weight, layer[0].bias
    for height, width in [(8, 8), (9, 8), (8, 9), (9, 9)]:
        batch = torch.randn(2, 3, height, width)
        top, left = height % 2, width % 2
        padded = nn.functional.pad(batch, (left, 1, top, 1))
        expected = nn.functional.conv2d(padded, weight, bias, stride=2, groups=3)
        torch.testing.assert_close(layer(batch), expected)
        assert expected.shape[-2:] == (-(-height // 2), -(-width // 2))


def test_same_padding_changes_the_layers_that_halve():
    symmetric, same = (build_backbone("mobilenet_v2", output_stride=16, padding=p) for p in ("symmetric", "same"))
    same.load_state_dict(with_random_statistics(symmetric).state_dict())
    same.double().eval()
    assert sum(isinstance(module, SameConv2d) for module in same.modules()) == 4
    with torch.no_grad():
        assert torch.equal(symmetric(images(65, 97)).high, same(images(65, 97)).high)
        assert (symmetric(images(64, 96)).low - same(images(64, 96)).low).abs().max() > 0.1


def test_same_padding_dilates_where_tensorflow_does():
    strided, dilated = (
        with_random_statistics(build_backbone("mobilenet_v2", output_stride=s, padding="same")) for s in (32, 8)
    )
    dilated.load_state_dict(strided.state_dict())
    assert_dilating_keeps_features(strided, dilated, images(65, 97), step=4)


def test_low_level_features_from_inside_the_block():
    block, inside = (
        build_backbone("mobilenet_v2", output_stride=16, low_level_features=kind).eval()
        for kind in ("block", "depthwise")
    )
    inside.load_state_dict(block.state_dict())
    batch = images(65, 97, torch.float32)
    with torch.no_grad():
        expected, features = block(batch), inside(batch)
        before = block.features[:3](batch)
        assert torch.equal(features.low, block.features[3].conv[:2](before))
    assert features.low.shape[1] == inside.channels[0] == 144
    assert torch.equal(features.high, expected.high)


def rates(backbone: nn.Module) -> dict[str, list[int]]:
    """The atrous rates of each block's units, where not all are 1."""
    found: dict[str, list[int]] = {}
    for name, module in backbone.named_modules():
        if name.endswith("depthwise"):
            found.setdefault(name.rsplit(".", 2)[0], []).append(module.conv.dilation[0])
    return {block: values for block, values in found.items() if set(values) != {1}}


def test_xception_rates_follow_the_output_stride():
    with torch.device("meta"):
        backbones = {stride: build_backbone("xception41", output_stride=stride) for stride in (8, 16, 32)}
        grid = build_backbone("xception41", output_stride=16, multi_grid=[1, 2, 4])
    assert rates(backbones[32]) == {}
    assert rates(backbones[16]) == {"exit_flow.block2": [2, 2, 2]}
    assert rates(backbones[8]) == {
        "middle_flow.block1": [2] * 24,
        "exit_flow.block1": [2, 2, 2],
        "exit_flow.block2": [4, 4, 4],
    }
    assert rates(grid) == {"exit_flow.block2": [2, 4, 8]}


def test_first_convolution_of_an_xception_pads_as_keras():
    network = build_backbone("xception41", output_stride=16, padding="same")
    convolution = network.entry_flow.conv1_1.conv
    images = torch.randn(1, 3, 34, 47)
    padded = torch.nn.functional.pad(images, (1, 1, 0, 1))  # behind the even side; around the odd one
    expected = torch.nn.functional.conv2d(padded, convolution.weight, stride=2)
    torch.testing.assert_close(convolution(images), expected, rtol=0, atol=1e-6)
    assert type(network.entry_flow.block1.unit_1.separable_conv3_depthwise.conv) is nn.Conv2d


def test_low_level_features_of_an_xception_are_before_the_relu():
    backbone = with_random_statistics(build_backbone("xception71", output_stride=16))
    batch = images(65, 65)
    with torch.no_grad():
        features = backbone(batch)
        unit = backbone.entry_flow.block3.unit_1
        before = backbone.entry_flow[:4](batch)
        assert torch.equal(features.low, unit.begin(before))
        assert features.low.min() < 0
        # with no skip, ReLUs end the layers, so that nothing is negative
        assert features.high.min() >= 0 > features.middle.min()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet110"}, r"unknown backbone 'resnet110'; valid: resnet18, .* mean 'resnet101'\?"),
        ({"name": "resnet18", "output_stride": 4}, r"output_stride must be one of \(8, 16, 32\), got 4"),
        (
            {"name": "resnet18", "width_multiplier": 0.5},
            r"width_multiplier=0.5 acts on backbone mobilenet_v2 only, not on resnet18: leave it at 1.0",
        ),
        ({"name": "resnet18", "padding": "same"}, "padding=same acts on backbone mobilenet_v2, xception41, .* only"),
        ({"name": "mobilenet_v2", "padding": "sane"}, r"unknown padding 'sane'; valid: symmetric, same. Did you mean"),
        ({"name": "mobilenet_v2", "low_level_features": "all"}, "unknown low_level_features 'all'; valid: block, dep"),
        ({"name": "mobilenet_v2", "width_divisor": 0}, "width_divisor must be a positive integer, such as 8, got 0"),
        ({"name": "mobilenet_v2", "multi_grid": [1, 2, 4]}, "acts on backbone xception41, xception65, xception71 only"),
        ({"name": "xception41", "multi_grid": [1, 2]}, r"multi_grid must be three positive integers.* got \[1, 2\]"),
        ({"name": "xception41", "multi_grid": "bogus"}, "multi_grid must be three positive integers"),
        ({"name": "mobilenet_v2", "width_multiplier": 0.0}, "width_multiplier must be positive"),
    ],
)
def test_errors_name_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(**arguments)
