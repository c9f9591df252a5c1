import subprocess
import sys

import pytest
import torch
from torch import distributed, nn
from torch.utils.flop_counter import FlopCounterMode

from deeplab_recipes.model import DeepLab, build_deeplab
from deeplab_recipes.model.heads import HEADS

SMALL = {"backbone": "mobilenet_v2", "output_stride": 16, "aspp_channels": 16, "width_multiplier": 0.35}


def small_model(**arguments) -> DeepLab:
    torch.manual_seed(0)
    return build_deeplab(4, **{**SMALL, **arguments})


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("backbone", "expected"), [("resnet101", 60_265_286), ("resnet50", 41_273_158)])
def test_published_parameter_counts(backbone, expected):
    with torch.device("meta"):
        assert parameters(build_deeplab(150, backbone=backbone)) == expected


WITH_DECODER = {"head": "tensorflow", "low_level_features": "depthwise"}


# Trainable parameters, for 7 classes, in graphs that research/deeplab's export script wrote.
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"backbone": "mobilenet_v2", "head": "tensorflow_short"}, 2_109_959),
        (
            {"backbone": "mobilenet_v2", "head": "tensorflow_short", "width_multiplier": 0.35, "width_divisor": 1},
            437_315,
        ),
        ({"backbone": "mobilenet_v2", "head": "tensorflow", "decoder": False}, 2_564_423),
        ({"backbone": "mobilenet_v2", **WITH_DECODER}, 2_721_975),
        ({"backbone": "mobilenet_v2", **WITH_DECODER, "width_multiplier": 1.4, "width_divisor": 1}, 4_587_635),
        ({"backbone": "xception41", "head": "tensorflow", "decoder": False}, 27_942_135),
    ],
)
def test_parameters_of_tensorflows_graphs(arguments, expected):
    with torch.device("meta"):
        assert parameters(build_deeplab(7, output_stride=16, aspp_channels=256, **arguments)) == expected


def test_published_operations():
    with torch.device("meta"):
        model, images = build_deeplab(150).eval(), torch.empty(1, 3, 512, 512)
        with FlopCounterMode(display=False) as counter:
            model(images)
    assert counter.get_total_flops() / 1e9 == pytest.approx(507, abs=0.5)


@pytest.mark.parametrize("size", [(33, 47), (65, 97), (64, 64)])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("head", HEADS)
def test_logits_have_the_size_of_the_images(size, output_stride, head):
    model = small_model(output_stride=output_stride, head=head)
    assert model(torch.randn(2, 3, *size)).shape == (2, 4, *size)
    assert model.eval()(torch.randn(1, 3, *size)).shape == (1, 4, *size)


def test_logits_are_the_heads_resized_with_half_pixel_centres():
    model, images = small_model().eval(), torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        coarse = model.head(model.backbone(images))
        resized = nn.functional.interpolate(coarse, (65, 97), mode="bilinear", align_corners=False)
        assert torch.equal(model(images), resized)


def test_tensorflows_logits_are_resized_corner_to_corner():
    model, images = small_model(head="tensorflow_short").eval(), torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        coarse = model.head(model.backbone(images))
        resized = nn.functional.interpolate(coarse, (65, 97), mode="bilinear", align_corners=True)
        assert torch.equal(model(images), resized)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 32, 64), "at least 33 x 33 pixels, got 32 x 64: .*data.crop_size"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"normalised floats .* torch.uint8 \(1, 3, 64, 64\)"),
        (torch.zeros(1, 4, 64, 64), r"got torch.float32 \(1, 4, 64, 64\)"),
        (torch.zeros(3, 64, 64), r"shape \(B, 3, H, W\)"),
    ],
)
def test_refuses_other_images(images, message):
    with pytest.raises(ValueError, match=message):
        small_model().eval()(images)


def test_training_on_one_image_names_the_fix():
    model = small_model()
    with pytest.raises(ValueError, match=r"at least 2 images .*microbatch_size >= 2.* or freeze batch norm"):
        model(torch.zeros(1, 3, 64, 64))


def test_training_on_one_image_with_frozen_batch_norm():
    model = small_model(freeze_batchnorm=True)
    before = {key: value.clone() for key, value in model.named_buffers()}
    assert model.train()(torch.zeros(1, 3, 64, 64)).requires_grad
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(layer.training for layer in layers)
    assert all(layer.weight.requires_grad for layer in layers)
    assert model.training
    assert model.head.dropout.training


def test_auxiliary_logits_come_beside_the_same_logits():
    model, images = small_model(auxiliary_head=True).eval(), torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        logits, auxiliary = model.forward_with_auxiliary(images)
        assert torch.equal(logits, model(images))
    assert auxiliary.shape == logits.shape
    assert not torch.equal(auxiliary, logits)
    assert model.auxiliary_head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.5)
    with pytest.raises(ValueError, match="no auxiliary head: build it with auxiliary_head=True"):
        small_model().forward_with_auxiliary(images)


@pytest.mark.parametrize(("world_size", "message"), [(1, "one image per device"), (2, "to be on GPU")])
def test_training_on_one_image_each_on_synchronised_devices(world_size, message, monkeypatch):
    # torch's SyncBatchNorm refuses the CPU; that it is reached at all shows that two devices pass our check.
    model = nn.SyncBatchNorm.convert_sync_batchnorm(small_model())
    model.backbone.eval()
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda group: world_size)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 3, 64, 64))


def test_channels_last_goes_through():
    model, images = small_model().eval(), torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        expected = model(images)
        logits = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    assert logits.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def builtins_only(value: object) -> bool:
    if isinstance(value, dict | list):
        return all(map(builtins_only, value.values() if isinstance(value, dict) else value))
    return value is None or type(value) in (int, float, str, bool)


def test_arguments_rebuild_the_architecture(tmp_path):
    torch.save(small_model().backbone.state_dict(), tmp_path / "f.pth")
    changes = {"head": "deeplabv3plus", "aspp_dilations": (1, 4), "dropout": 0.2, "decoder_channels": 8}
    model = small_model(**changes, backbone_weights=str(tmp_path / "f.pth"), initializers=["bn_ones"])
    (tmp_path / "f.pth").unlink()
    assert builtins_only(model.arguments)
    assert (model.arguments["backbone_weights"], model.arguments["initializers"]) == (None, [])
    rebuilt = build_deeplab(**model.arguments)
    assert rebuilt.arguments == model.arguments
    assert str(rebuilt) == str(model)
    rebuilt.load_state_dict(model.state_dict())


EVERY_SETTING = {
    "backbone": "mobilenet_v2",
    "head": "dense_prediction_cell",
    "dense_prediction_cell": [{"op": "conv", "kernel": 3, "rate": [1, 2], "input": -1}],
    "align_corners": False,
    "batchnorm_epsilon": {"backbone": 1e-3},
    "batchnorm_momentum": {"backbone": 0.003, "head": 0.0003},
    "batchnorm_scale": False,
    "width_divisor": 1,
    "padding": "same",
    "low_level_features": "depthwise",
}


@pytest.mark.parametrize("changes", [EVERY_SETTING, {"head": "tensorflow", "image_pooling": False}])
def test_arguments_of_tensorflows_family_rebuild_it(changes):
    model = small_model(**changes)
    assert builtins_only(model.arguments)
    rebuilt = build_deeplab(**model.arguments)
    assert (rebuilt.arguments, str(rebuilt)) == (model.arguments, str(model))
    rebuilt.load_state_dict(model.state_dict())


def norms(part: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in part.modules() if isinstance(module, nn.BatchNorm2d)]


def test_batch_norms_take_a_number_or_one_a_part():
    model = small_model(**EVERY_SETTING)
    assert {(norm.eps, norm.momentum) for norm in norms(model.backbone)} == {(1e-3, 0.003)}
    assert {(norm.eps, norm.momentum) for norm in norms(model.head)} == {(1e-5, 0.0003)}
    model = small_model(batchnorm_epsilon=1e-3, batchnorm_momentum=0.9, auxiliary_head=True)
    assert {(norm.eps, norm.momentum) for norm in norms(model)} == {(1e-3, 0.9)}
    assert {(norm.eps, norm.momentum) for norm in norms(small_model())} == {(1e-5, 0.1)}


def test_without_scale_the_heads_factors_stay_one():
    model = small_model(batchnorm_scale=False)
    assert not any(norm.weight.requires_grad for norm in norms(model.head))
    assert all(norm.bias.requires_grad for norm in norms(model.head))
    assert all(norm.weight.requires_grad for norm in norms(model.backbone))


def test_a_cells_file_is_not_needed_again(tmp_path):
    file = tmp_path / "cell.json"
    file.write_text('[{"op": "conv", "kernel": 1, "input": -1}]')
    model = small_model(head="dense_prediction_cell", dense_prediction_cell=str(file))
    file.unlink()
    assert str(build_deeplab(**model.arguments)) == str(model)


def test_cells_rates_follow_another_output_stride():
    dense = build_deeplab(**{**small_model(head="dense_prediction_cell").arguments, "output_stride": 8})
    assert dense.head.encoder.branches[0].depthwise.conv.dilation == (2, 12)


def test_default_dilations_follow_another_output_stride():
    dense = build_deeplab(**{**small_model().arguments, "output_stride": 8})
    assert tuple(dense.head.aspp_modules.dilations) == (1, 12, 24, 36)


def test_initializers_touch_only_the_head_of_a_pretrained_model(tmp_path):
    trained = {key: value + 1 for key, value in small_model().backbone.state_dict().items()}
    torch.save(trained, tmp_path / "f.pth")
    initializers = ["kaiming_normal", "bn_ones"]
    pretrained = small_model(backbone_weights=str(tmp_path / "f.pth"), initializers=initializers)
    assert all(torch.equal(value, trained[key]) for key, value in pretrained.backbone.state_dict().items())
    # conv_seg too: N(0, 2 / fan_in), no longer N(0, 0.01); its bias stays as it was drawn, as in Composer.
    assert pretrained.head.conv_seg.weight.std() > 0.2
    assert pretrained.head.conv_seg.bias.abs().min() > 0

    untrained = small_model(initializers=initializers)
    pointwise = untrained.backbone.features[17].conv[2].weight
    assert pointwise.std().item() == pytest.approx((2 / pointwise.shape[1]) ** 0.5, rel=0.05)


def test_weights_follow_from_the_seed():
    first, second = small_model(initializers=["kaiming_normal"]), small_model(initializers=["kaiming_normal"])
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet110"}, "unknown backbone 'resnet110'"),
        ({"head": "deeplab"}, "unknown head 'deeplab'"),
        ({"output_stride": 64}, "output_stride must be one of"),
        ({"multi_grid": [1, 2, 4]}, "multi_grid=.* acts on backbone xception41, xception65, xception71 only"),
        (
            {"head": "tensorflow_short", "low_level_features": "depthwise"},
            "low_level_features=depthwise acts with a decoder only: leave it at block",
        ),
        ({"batchnorm_epsilon": 0}, "batchnorm_epsilon must be above 0 and at most 1 in the backbone, .* got 0"),
        ({"batchnorm_epsilon": {"head": "x"}}, "batchnorm_epsilon must be .* in the head, .* got 'x'"),
        ({"batchnorm_momentum": {"neck": 0.1}}, "batchnorm_momentum has 'neck'; valid: a number, or {backbone"),
        ({"batchnorm_scale": 2}, "batchnorm_scale must be true or false, got 2"),
        ({"initializers": ["ones"]}, "unknown initializer 'ones'"),
        ({"backbone_weights": "nowhere.pth"}, "backbone_weights=nowhere.pth is neither a file nor weights"),
    ],
)
def test_errors_name_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_model(**arguments)


def test_building_says_nothing():
    program = (
        "import torch; from deeplab_recipes.model import build_deeplab\n"
        "for head in ('deeplabv3plus', 'deeplabv3'):\n"
        f"    build_deeplab(2, head=head, **{SMALL})(torch.randn(2, 3, 65, 65))"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
