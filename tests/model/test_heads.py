import subprocess
import sys

import pytest
import torch
from torch import nn

from deeplab_recipes.model.backbones import Features
from deeplab_recipes.model.heads import DILATIONS, build_auxiliary_head, build_head, init_weights

FEATURES = (24, 96, 320)
PUBLISHED = {
    "num_classes": 21,
    "in_channels": 2048,
    "channels": 512,
    "dilations": (1, 12, 24, 36),
    "dropout_ratio": 0.1,
    "norm_cfg": {"type": "BN"},
    "align_corners": False,
}


def small_head(name: str = "deeplabv3plus", num_classes: int = 5, **settings) -> nn.Module:
    return build_head(name, num_classes, feature_channels=FEATURES, aspp_channels=16, **settings)


@pytest.mark.parametrize(("num_classes", "parameters"), [(150, 17_765_126), (21, 17_698_949)])
def test_published_parameter_counts(num_classes, parameters):
    with torch.device("meta"):
        head = build_head("deeplabv3plus", num_classes, feature_channels=(256, 1024, 2048))
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters


@pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore`` is False")
@pytest.mark.parametrize("name", ["deeplabv3plus", "deeplabv3"])
def test_equals_mmseg_built_by_hand(name):
    head = build_head(name, 21, feature_channels=(256, 1024, 2048)).eval()
    from mmseg.models.decode_heads import ASPPHead, DepthwiseSeparableASPPHead

    if name == "deeplabv3plus":
        reference = DepthwiseSeparableASPPHead(c1_in_channels=256, c1_channels=48, **PUBLISHED)
    else:
        reference = ASPPHead(**PUBLISHED)
    reference.load_state_dict(head.state_dict())
    features = [torch.randn(2, 256, 16, 16), torch.randn(2, 1024, 8, 8), torch.randn(2, 2048, 8, 8)]
    with torch.no_grad():
        assert torch.equal(head(features), reference.eval()(features))
    assert (head.dropout.p, head.align_corners) == (0.1, False)


@pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore`` is False")
def test_auxiliary_head_equals_mmseg_built_by_hand():
    head = build_auxiliary_head(21, feature_channels=(256, 1024, 2048)).eval()
    from mmseg.models.decode_heads import FCNHead

    settings = {key: PUBLISHED[key] for key in ("num_classes", "dropout_ratio", "norm_cfg", "align_corners")}
    reference = FCNHead(in_channels=1024, in_index=2, channels=256, num_convs=1, concat_input=False, **settings)
    reference.load_state_dict(head.state_dict())
    features = [torch.randn(2, channels, 8, 8) for channels in (256, 1024, 2048)]
    with torch.no_grad():
        expected = reference.eval()([features[0], features[0], features[1], features[2]])
        assert torch.equal(head(features), expected)
    assert head.dropout.p == 0.1


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_default_dilations_follow_the_output_stride(output_stride):
    assert tuple(small_head(output_stride=output_stride).aspp_modules.dilations) == DILATIONS[output_stride]
    assert DILATIONS[16] == (1, 6, 12, 18)


def test_settings_reach_the_layers():
    head = small_head(aspp_dilations=[1, 4], dropout=0.25, decoder_channels=8)
    assert len(head.aspp_modules) == 2
    assert head.aspp_modules[1].depthwise_conv.conv.dilation == (4, 4)
    assert head.c1_bottleneck.conv.out_channels == 8
    assert head.dropout.p == 0.25


def test_align_corners_reaches_mmsegs_resizing():
    assert small_head(align_corners=True).align_corners is True
    assert small_head("deeplabv3").align_corners is False


def features(size: tuple[int, int] = (9, 13), channels: tuple[int, ...] = FEATURES) -> Features:
    low, high = size, tuple(-(-side // 4) for side in size)
    return Features(*(torch.randn(2, c, *s) for c, s in zip(channels, (low, high, high), strict=True)))


def test_tensorflow_branches_are_one_a_rate_and_image_pooling():
    head = small_head("tensorflow", output_stride=16)
    rates = [getattr(branch, "depthwise", branch).conv.dilation for branch in head.encoder.branches]
    assert rates == [(1, 1), (6, 6), (12, 12), (18, 18)]
    assert head.encoder.concat_projection.conv.in_channels == 5 * 16
    assert head.encoder.dropout.p == 0.1
    assert small_head("tensorflow", output_stride=8).encoder.branches[3].depthwise.conv.dilation == (36, 36)
    assert small_head("tensorflow", image_pooling=False).encoder.concat_projection.conv.in_channels == 4 * 16
    short = small_head("tensorflow_short")
    assert (len(short.encoder.branches), short.decoder) == (1, None)


@pytest.mark.parametrize("align_corners", [None, True, False])
def test_decoder_resizes_the_encoders_features(align_corners):
    head, maps = small_head("tensorflow", output_stride=16, align_corners=align_corners).eval(), features()
    assert head.align_corners is (align_corners is not False)
    with torch.no_grad():
        encoded, low = head.encoder(maps.high), head.decoder.feature_projection(maps.low)
        corners = align_corners is not False
        resized = nn.functional.interpolate(encoded, (9, 13), mode="bilinear", align_corners=corners)
        expected = head.conv_seg(head.decoder.conv1(head.decoder.conv0(torch.cat([resized, low], dim=1))))
        assert torch.equal(head(maps), expected)


def test_tensorflow_heads_start_from_truncated_normal_distributions():
    head = build_head("tensorflow", 5, feature_channels=(24, 96, 2048), aspp_channels=64)
    for layer, std in ((head.encoder.branches[1].depthwise, 0.33), (head.encoder.branches[1].pointwise, 0.06)):
        weight = layer.conv.weight
        assert weight.abs().max() <= 2 * std
        assert weight.std().item() == pytest.approx(0.8796 * std, rel=0.02)  # cut at 2 standard deviations
    bound = (6 / (2048 + 64)) ** 0.5  # Glorot
    weight = head.encoder.image_pool.conv.weight
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_image_pooling_is_the_same_everywhere():
    head, maps = small_head("tensorflow_short").eval(), features()
    weight = head.encoder.concat_projection.conv.weight
    with torch.no_grad():
        weight[:, 16:] = 0  # what the 1x1 branch gives
        logits = head(maps)
        alone = head(maps._replace(high=maps.high.mean((2, 3), keepdim=True)))
    assert logits.shape == (2, 5, 3, 4)
    torch.testing.assert_close(logits, alone.expand_as(logits))


def test_without_decoder_logits_stay_at_the_output_stride():
    assert small_head("tensorflow", decoder=False)(features()).shape == (2, 5, 3, 4)
    assert small_head("dense_prediction_cell", decoder=False)(features()).shape == (2, 5, 3, 4)
    assert small_head("dense_prediction_cell")(features()).shape == (2, 5, 9, 13)


def test_tensorflow_heads_need_no_mmseg():
    program = (
        "import sys; from deeplab_recipes.model.heads import build_head\n"
        "for name in ('tensorflow', 'tensorflow_short', 'dense_prediction_cell'):\n"
        f"    build_head(name, 5, feature_channels={FEATURES})\n"
        "sys.exit('mmseg' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_last_convolution_starts_as_after_init_weights():
    head = build_head("deeplabv3plus", 150, feature_channels=FEATURES)
    init_weights(head)
    assert head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert torch.count_nonzero(head.conv_seg.bias) == 0
    # mmcv draws its convolutions at construction: He initialisation over the outgoing connections.
    bottleneck = head.bottleneck.conv.weight
    assert bottleneck.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)


def test_weights_follow_from_the_seed():
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(small_head().state_dict())
    same, other = states[1], states[2]
    assert all(torch.equal(value, same[key]) for key, value in states[0].items())
    assert not torch.equal(states[0]["conv_seg.weight"], other["conv_seg.weight"])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("deeplabv3+", {}, r"head 'deeplabv3\+'; valid: deeplabv3plus, deeplabv3, tensor.* Did you mean 'deeplabv3'"),
        ("deeplabv3plus", {"aspp_dilations": []}, r"aspp_dilations must be positive integers, .* got \[\]"),
        ("deeplabv3plus", {"aspp_dilations": [1, 0]}, r"got \[1, 0\]"),
        ("deeplabv3plus", {"decoder_channels": 0}, "decoder_channels must be a positive integer, got 0"),
        (
            "deeplabv3",
            {"decoder_channels": 64},
            "decoder_channels=64 acts on head deeplabv3plus, tensorflow, dense_prediction_cell only, not on deeplabv3: "
            "leave it at 48",
        ),
        ("deeplabv3plus", {"decoder": False}, "decoder=False acts on head tensorflow, dense_prediction_cell only"),
        ("tensorflow_short", {"aspp_dilations": [1, 6]}, r"aspp_dilations=\[1, 6\] acts on head deeplabv3plus, "),
        ("dense_prediction_cell", {"image_pooling": False}, "image_pooling=False acts on head tensorflow, tensorf"),
        ("tensorflow", {"dense_prediction_cell": "published"}, "acts on head dense_prediction_cell only, not on tens"),
        ("tensorflow", {"decoder": False, "decoder_channels": 32}, "decoder_channels=32 acts with decoder=true only"),
        ("tensorflow", {"decoder": 1}, "decoder must be true or false, or null .*, got 1"),
        ("tensorflow", {"image_pooling": None}, "image_pooling must be true or false, got None"),
        ("deeplabv3", {"align_corners": "yes"}, "align_corners must be true or false, or null .*, got 'yes'"),
        ("deeplabv3plus", {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ("deeplabv3plus", {"num_classes": 1}, "num_classes must be an integer >= 2"),
    ],
)
def test_errors_name_the_value(name, settings, message):
    with pytest.raises(ValueError, match=message):
        small_head(name, **settings)


def test_importing_the_model_imports_no_mmseg():
    program = "import sys, deeplab_recipes.model; sys.exit('mmseg' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        ("ModuleNotFoundError('ftfy')", "onedl-mmsegmentation onedl-mmcv onedl-mmengine ftfy regex"),
        ("AssertionError('MMCV==2.2.0 is used but incompatible')", "onedl-mmsegmentation"),
        ("ImportError('libGL.so.1: cannot open shared object file')", "install opencv-python-headless"),
    ],
)
def test_failing_import_names_the_remedy(failure, advice, tmp_path, monkeypatch):
    (tmp_path / "mmseg").mkdir()
    (tmp_path / "mmseg" / "__init__.py").write_text(f"raise {failure}")
    for name in [name for name in sys.modules if name.split(".")[0] == "mmseg"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=advice) as caught:
        small_head()
    assert "\n" not in str(caught.value)
