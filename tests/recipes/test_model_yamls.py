"""Every file of the group `model` builds, at every output stride, and each of its leaves acts."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deeplab_recipes import config
from deeplab_recipes.model import DeepLab, build_deeplab

YAMLS = sorted(path.stem for path in (config.yamls_folder() / "model").glob("*.yaml"))
BUILT = {
    "deeplabv3plus_mobilenet_v2": ("mobilenet_v2", "deeplabv3plus", 16),
    "deeplabv3plus_resnet101": ("resnet101", "deeplabv3plus", 8),
    "deeplabv3plus_resnet18": ("resnet18", "deeplabv3plus", 16),
    "dense_prediction_cell_mobilenet_v2": ("mobilenet_v2", "dense_prediction_cell", 16),
    "dense_prediction_cell_xception71": ("xception71", "dense_prediction_cell", 16),
    "tensorflow_mobilenet_v2": ("mobilenet_v2", "tensorflow_short", 16),
    "tensorflow_xception41_minimal": ("xception41", "tensorflow", 16),
    "tensorflow_xception65": ("xception65", "tensorflow", 16),
}
# Other changes than to the next number or to a wrong word.
CHANGES: dict[str, Any] = {"output_stride": 32, "initializers": ["ones"]}


def build(settings: dict[str, Any]) -> DeepLab:
    with torch.device("meta"):
        return config.build(settings, "model")(num_classes=3)


def changed(leaf: str, value: Any) -> Any:
    if leaf in CHANGES:
        return CHANGES[leaf]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return value / 2 if isinstance(value, float) else "bogus"


def described(settings: dict[str, Any]) -> list[Any]:
    model = build(settings)
    learns = [parameter.requires_grad for parameter in model.parameters()]
    return [str(model), model.head.align_corners, model.backbone.channels, model.freeze_batchnorm, learns]


def outcome(settings: dict[str, Any]) -> list[Any] | str:
    try:
        return described(settings)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", YAMLS)
def test_builds_what_its_name_says(name: str, compose_settings: Callable[..., dict[str, Any]]) -> None:
    model = build(compose_settings(f"model={name}")["model"])
    arguments = model.arguments
    assert (arguments["backbone"], arguments["head"], arguments["output_stride"]) == BUILT[name]
    for output_stride in (8, 16, 32):
        with torch.device("meta"):
            other = build_deeplab(**{**arguments, "output_stride": output_stride}).eval()
            assert other(torch.empty(1, 3, 65, 98)).shape == (1, 3, 65, 98)
        assert {k: v.shape for k, v in other.state_dict().items()} == {
            k: v.shape for k, v in model.state_dict().items()
        }


@pytest.mark.parametrize("name", YAMLS)
def test_every_leaf_acts(name: str, compose_settings: Callable[..., dict[str, Any]]) -> None:
    settings = compose_settings(f"model={name}")["model"]
    before = described(settings)
    for leaf, value in config.leaves(settings).items():
        if leaf.startswith("_"):
            continue
        *path, last = leaf.split(".")
        altered = copy.deepcopy(settings)
        section = altered
        for key in path:
            section = section[key]
        section[last] = changed(leaf, value)
        assert outcome(altered) != before, leaf


def test_cell_in_a_file_or_in_yaml(tmp_path, compose_settings: Callable[..., dict[str, Any]]) -> None:
    (tmp_path / "cell.json").write_text('[{"op": "conv", "kernel": 3, "rate": [2, 3], "input": -1}]')
    written = "[{op: conv, kernel: 3, rate: [2, 3], input: -1}]"
    for word in (f"branches={tmp_path / 'cell.json'}", f"branches={written}"):
        words = ("model=dense_prediction_cell_mobilenet_v2", f"model.dense_prediction_cell.{word}")
        model = build(compose_settings(*words)["model"])
        assert [branch.depthwise.conv.dilation for branch in model.head.encoder.branches] == [(2, 3)]
