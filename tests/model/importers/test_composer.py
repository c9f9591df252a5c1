"""Composer's checkpoints: the same logits as the model that Composer builds of torchvision's and mmseg's parts."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from other_programs import Composer, randomise
from torch import Tensor, nn

from deeplab_recipes.model.importers.base import build
from deeplab_recipes.model.importers.composer import read


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return randomise(Composer())


def checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    """What its trainer saves, with objects of Python and numpy among it."""
    training = {
        "model": state,
        "optimizers": {"DecoupledSGDW": {"state": {0: {"momentum_buffer": torch.zeros(1)}}, "param_groups": []}},
        "algorithms": [("EMA", {"ema_model": {"named_parameters_dict": {"a": torch.zeros(1)}}})],
        "timestamp": {"Timestamp": {"total_wct": timedelta(1)}},
        "train_metrics": {"MIoU": {"_computed": torch.tensor(0.5)}},
        "run_name": "ade20k",
    }
    return {"state": training, "rng": [{"numpy": ("MT19937", np.zeros(624, np.uint32)), "torch": torch.zeros(8)}]}


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "ep1.pt")
    return folder / "ep1.pt"


def test_logits_are_composers(original, tmp_path):
    state = original.state_dict()
    found = read(saved(tmp_path, checkpoint({**state, "train_miou.total_union": torch.zeros(5)})))
    assert found.model == {
        "num_classes": 5, "backbone": "resnet50", "head": "deeplabv3plus", "output_stride": 8, "aspp_channels": 512,
    }  # fmt: skip
    model = build(found)
    for seed, size in enumerate([(64, 64), (65, 97), (70, 51)]):
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            theirs, ours = original(images), model(images)
        assert theirs.std() > 0.05
        assert (theirs - ours).abs().max() <= 1e-5
    assert found.size["protocol"] == "square"
    assert {name: reason.split(",")[0].split(";")[0] for name, reason in found.unused.items()} == {
        "train_miou.total_union": "a metric's running sums",
        "optimizers (1 tensors)": "the optimizer's state",
        "algorithms (1 tensors)": "the algorithms' state",
        "train_metrics (1 tensors)": "the training's own state",
        "rng (1 tensors)": "the training's own state",
    }


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: checkpoint({f"module.{key}": value for key, value in state.items()}),
        lambda state: {"state": {"model": {key.replace("model.", "model._orig_mod."): v for key, v in state.items()}}},
        lambda state: {key.removeprefix("model."): value for key, value in state.items()},
    ],
    ids=["several devices", "compiled", "bare"],
)
def test_prefixes(wrap: Callable[[dict[str, Tensor]], dict[str, Any]], original, tmp_path):
    state = original.state_dict()
    found = read(saved(tmp_path, wrap(state)))
    assert len(found.state) == len(state)
    assert torch.equal(found.state["backbone.layer4.2.conv3.weight"], state["model.backbone.layer4.2.conv3.weight"])
    assert torch.equal(found.state["head.conv_seg.bias"], state["model.classifier.conv_seg.bias"])


def test_without_plus(tmp_path):
    original = randomise(Composer(plus=False))
    path = saved(tmp_path, checkpoint(original.state_dict()))
    model = build(read(path))
    images = torch.randn(1, 3, 65, 49, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert (original(images) - model(images)).abs().max() <= 1e-5
    with pytest.raises(ValueError, match=r"head=deeplabv3plus, but .* holds a deeplabv3; valid are"):
        read(path, head="deeplabv3plus")


def test_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint of Composer's DeepLabv3 .* no tensors state/model/model"):
        read(saved(tmp_path, checkpoint({"module.conv.weight": torch.zeros(1)})))
    with pytest.raises(ValueError, match="holds no state dict under state/model, but a list"):
        read(saved(tmp_path, {"state": {"model": [1]}}))
