"""mmsegmentation's checkpoints: the same logits as the model that mmsegmentation builds, and what a file tells."""

from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from other_programs import mmsegmentation, randomise
from torch import Tensor, nn

from deeplab_recipes.model.importers.base import Imported, build
from deeplab_recipes.model.importers.mmsegmentation import read

CITYSCAPES = """
img_norm_cfg = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(
        type='ResNetV1c', depth=50, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), norm_cfg=norm_cfg,
        style='pytorch', contract_dilation=True),
    decode_head=dict(type='DepthwiseSeparableASPPHead', dilations=(1, 12, 24, 36), dropout_ratio=0.2,
        align_corners=False))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', img_scale=(2048, 1024), flip=False)]
optimizer = open('never-run', 'w')
"""


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return randomise(mmsegmentation(50, "deeplabv3plus", channels=16))


@pytest.fixture(scope="module")
def state(original: nn.Module) -> dict[str, Tensor]:
    return original.state_dict()


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "m.pth")
    return folder / "m.pth"


def imported(folder: Path, state: dict[str, Tensor], **meta: Any) -> Imported:
    return read(saved(folder, {"state_dict": state, "meta": meta}))


@torch.inference_mode()
def differences(original: nn.Module, model: nn.Module, sizes: list[tuple[int, int]]) -> list[float]:
    found = []
    for seed, size in enumerate(sizes):
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))
        theirs = nn.functional.interpolate(original(images, mode="tensor"), size, mode="bilinear", align_corners=False)
        assert theirs.std() > 0.05
        found.append(float((theirs - model(images)).abs().max()))
    return found


def test_logits_are_mmsegmentations(original, state, tmp_path):
    found = imported(tmp_path, state, CLASSES=list("abcde"), PALETTE=[[i, 0, 9] for i in range(5)])
    assert found.model == {
        "num_classes": 5, "backbone": "resnet50_v1c", "head": "deeplabv3plus", "aspp_channels": 16,
        "decoder_channels": 48, "auxiliary_head": True, "output_stride": 8, "aspp_dilations": None, "dropout": 0.1,
    }  # fmt: skip
    assert (found.classes, found.palette[4]) == (tuple("abcde"), (4, 0, 9))
    assert found.unused == {}
    assert found.size == {"protocol": "keep_ratio", "evaluate_sizes": {"square": [512, 512], "keep_ratio": [2048, 512]}}
    model = build(found)
    assert max(differences(original, model, [(64, 64), (65, 97), (70, 51)])) <= 1e-5
    assert len(found.state) == len(state)
    assert torch.equal(model.auxiliary_head.conv_seg.weight, state["auxiliary_head.conv_seg.weight"])


def test_deeplabv3_at_another_stride_without_auxiliary_head_on_the_plain_stem(tmp_path):
    built = {"backbone": "ResNet", "strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2), "rates": (1, 6, 12, 18)}
    original = randomise(mmsegmentation(50, "deeplabv3", channels=8, auxiliary=False, **built))
    path = saved(tmp_path, OrderedDict(original.state_dict()))
    model = build(read(path, output_stride=16, head="deeplabv3"))
    assert (model.arguments["backbone"], model.arguments["head"], model.output_stride) == ("resnet50", "deeplabv3", 16)
    assert model.auxiliary_head is None
    assert max(differences(original, model, [(65, 97)])) <= 1e-5
    with pytest.raises(ValueError, match=r"head=deeplabv3plus, but .* holds a deeplabv3"):
        read(path, head="deeplabv3plus")


def test_configuration_in_the_file_is_read_and_not_run(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = imported(tmp_path, state, config=CITYSCAPES)
    assert (found.mean, found.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert found.size["evaluate_sizes"]["keep_ratio"] == [2048, 1024]
    assert found.model["dropout"] == 0.2
    assert not Path("never-run").exists()


def test_configuration_that_aligns_corners(original, state, tmp_path):
    """As those of mmsegmentation's 769 x 769 Cityscapes models."""
    model = build(imported(tmp_path, state, cfg=CITYSCAPES.replace("align_corners=False", "align_corners=True")))
    images = torch.randn(1, 3, 65, 49, generator=torch.Generator().manual_seed(0))
    try:
        original.align_corners = original.decode_head.align_corners = True
        with torch.inference_mode():
            theirs = original(images, mode="tensor")
            theirs = nn.functional.interpolate(theirs, (65, 49), mode="bilinear", align_corners=True)
            assert (theirs - model(images)).abs().max() <= 1e-5
            original.align_corners = original.decode_head.align_corners = False
            assert (original(images, mode="tensor") - model.head(model.backbone(images))).abs().max() > 1e-4
    finally:
        original.align_corners = original.decode_head.align_corners = False


@pytest.mark.parametrize(
    ("then", "now", "model"),
    [
        ("strides=(1, 2, 1, 1)", "strides=(1, 2, 2, 1)", {"output_stride": 16, "aspp_dilations": [1, 12, 24, 36]}),
        ("(1, 12, 24, 36)", "(1, 3, 5, 7)", {"output_stride": 8, "aspp_dilations": [1, 3, 5, 7]}),
    ],
)
def test_configuration_tells_strides_and_rates(then, now, model, state, tmp_path):
    text = CITYSCAPES.replace(then, now)
    text = text.replace("dilations=(1, 1, 2, 4)", "dilations=(1, 1, 1, 2)") if "strides" in then else text
    found = imported(tmp_path, state, cfg=text).model
    assert {key: found[key] for key in model} == model


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        ("contract_dilation=True", "contract_dilation=False", "contract_dilation=False"),
        ("style='pytorch'", "style='caffe'", "style='caffe'"),
        ("dilations=(1, 1, 2, 4)", "dilations=(1, 1, 2, 2)", r"dilations=\[1, 1, 2, 2\]"),
        ("style='pytorch'", "multi_grid=(1, 2, 4)", "multi_grid"),
        ("strides=(1, 2, 1, 1)", "strides=(1, 1, 1, 1)", r"unknown backbone strides '\(1, 1, 1, 1\)'"),
        ("DepthwiseSeparableASPPHead", "SomeHead", "decode_head type SomeHead"),
    ],
)
def test_configuration_of_another_model_is_refused(then, now, words, state, tmp_path):
    with pytest.raises(ValueError, match=words):
        imported(tmp_path, state, cfg=CITYSCAPES.replace(then, now))


def test_names_of_the_later_versions(state, tmp_path):
    later = {"classes": ("road", "sidewalk", "c", "d", "e"), "palette": [[1, 2, 3]] * 5}
    found = imported(tmp_path, state, dataset_meta=later)
    assert (found.classes, found.palette) == (later["classes"], ((1, 2, 3),) * 5)
    assert imported(tmp_path, state, dataset_meta={"classes": ("a", "b")}).classes is None


def test_training_file_is_read_without_its_objects(state, tmp_path):
    """A file of the runner holds its log: objects of mmengine and of numpy, whose making would run code."""
    from mmengine.logging import HistoryBuffer

    history = HistoryBuffer([1.0], [1])
    content = {
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "message_hub": {"log_scalars": {"loss": history}, "more": defaultdict(list, {"a": [1]})},
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}},
        "meta": {"CLASSES": list("abcde")},
    }
    found = read(saved(tmp_path, content))
    assert found.classes == tuple("abcde")
    assert len(found.state) == len(state)
    assert found.unused == {
        "message_hub (0 tensors)": "the training's own state",
        "optimizer (1 tensors)": "the optimizer's state; training begins anew",
    }


def test_file_in_the_format_of_before_torch_1_6(state, tmp_path):
    """As mmsegmentation's of 2020 are."""
    content = {"meta": {"CLASSES": tuple("abcde")}, "state_dict": OrderedDict(state)}
    torch.save(content, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    found = read(tmp_path / "m.pth")
    assert (found.classes, len(found.state)) == (tuple("abcde"), len(state))


def test_every_tensor_is_used_or_named(state, tmp_path):
    more = {"data_preprocessor.mean": torch.zeros(3), "ema_backbone.conv1.weight": torch.zeros(1)}
    found = imported(tmp_path, {**state, **more})
    assert set(found.unused) == set(more)
    assert found.unused["data_preprocessor.mean"] == "the input's normalisation, which the card holds"
    with pytest.raises(ValueError, match=r"1 without a place \(backbone.extra\)"):
        build(imported(tmp_path, {**state, "backbone.extra": torch.zeros(1)}))
    fewer = {key: value for key, value in state.items() if key != "backbone.layer2.0.bn1.bias"}
    with pytest.raises(ValueError, match=r"1 missing \(backbone.layer2.0.bn1.bias\)"):
        build(imported(tmp_path, fewer))


class RunsCode:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("content", [RunsCode(), {"state_dict": RunsCode()}, {"state_dict": {"a": RunsCode()}}])
def test_objects_in_place_of_tensors_are_refused_and_not_run(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, content)
    with pytest.raises(ValueError, match=r"m\.pth.*(objects|no state dict|other things than tensors)"):
        read(path)
    assert not Path("ran").exists()


def test_files_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.pth"):
        read(tmp_path / "none.pth")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>Not found")
    with pytest.raises(ValueError, match=r"page\.pth is no PyTorch checkpoint, .* damaged \(Unsupported operand 60\)"):
        read(tmp_path / "page.pth")
    with pytest.raises(ValueError, match=r"m\.pth holds a list, not the dict that a checkpoint is"):
        read(saved(tmp_path, [torch.zeros(1)]))
    with pytest.raises(ValueError, match=r"is no DeepLab on a ResNet-50 or -101 .* its tensors begin with conv, its"):
        read(saved(tmp_path, {"conv.weight": torch.zeros(1)}))
