import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter

from deeplab_recipes.model.backbones import BACKBONES, build_backbone
from deeplab_recipes.model.backbones.base import dilate

CHANNELS = {
    "resnet18": (64, 256, 512),
    "resnet34": (64, 256, 512),
    "resnet50": (256, 1024, 2048),
    "resnet101": (256, 1024, 2048),
    "resnet50_v1c": (256, 1024, 2048),
    "resnet101_v1c": (256, 1024, 2048),
    "mobilenet_v2": (24, 96, 320),
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


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_keeps_the_strided_features(name, output_stride):
    strided = with_random_statistics(build_backbone(name, output_stride=32))
    dilated = with_random_statistics(build_backbone(name, output_stride=output_stride))
    dilated.load_state_dict(strided.state_dict())
    for size in [(65, 65), (64, 97)]:
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


@pytest.mark.parametrize("width", [0.5, 0.35])
def test_mobilenet_width(width):
    with torch.device("meta"):
        backbone = build_backbone("mobilenet_v2", width_multiplier=width)
        features = backbone(torch.empty(1, 3, 64, 64))
    assert tuple(feature.shape[1] for feature in features) == backbone.channels
    assert backbone.channels == {0.5: (16, 48, 160), 0.35: (8, 32, 112)}[width]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet110"}, r"unknown backbone 'resnet110'; valid: resnet18, .* mean 'resnet101'\?"),
        ({"name": "resnet18", "output_stride": 4}, r"output_stride must be one of \(8, 16, 32\), got 4"),
        ({"name": "resnet18", "width_multiplier": 0.5}, "width_multiplier=0.5 is for mobilenet_v2"),
        ({"name": "mobilenet_v2", "width_multiplier": 0.0}, "width_multiplier must be positive"),
    ],
)
def test_errors_name_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(**arguments)
