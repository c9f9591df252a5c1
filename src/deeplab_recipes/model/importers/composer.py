"""Composer's DeepLabv3 and DeepLabv3+: a checkpoint of its trainer.

Its model is torchvision's ResNet at output stride 8 under ``model.backbone`` and mmsegmentation's head under
``model.classifier``, which are this package's too: only the prefixes differ.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deeplab_recipes.model.importers.base import Imported
from deeplab_recipes.model.importers.torch_file import count_tensors, read_file, state_dict

# As levels of 255, torchvision's constants.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SIZE = {"protocol": "square", "evaluate_sizes": {"square": [512, 512], "keep_ratio": [2048, 512]}}
PREFIXES = {"backbone.": "backbone.", "classifier.": "head."}
BOTTLENECKS = {6: "resnet50", 23: "resnet101"}  # blocks of the third stage
STATES = {
    "optimizers": "the optimizer's state; training begins anew",
    "algorithms": "the algorithms' state; of EMA's two copies of the weights the averaged one is saved as the model",
}


def read(file: Path, *, head: str | None = None) -> Imported:
    """Read a checkpoint of Composer.

    Args:
        file: what its trainer saved (``state`` with ``model`` in it), or a state dict alone.
        head: deeplabv3plus or deeplabv3, to be sure; None: as the tensors tell.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, or is not of this model.
    """
    content = read_file(file)
    training = content.get("state") if isinstance(content.get("state"), Mapping) else {}
    state = state_dict(file, training.get("model", content), "state/model")
    model = {_inner(key): value for key, value in state.items() if _inner(key).startswith(tuple(PREFIXES))}
    found = _architecture(file, model)
    if head not in (None, found["head"]):
        raise ValueError(f"head={head}, but {file} holds a {found['head']}; valid are deeplabv3plus, deeplabv3")
    unused = {key: _reason(key) for key in state if _inner(key) not in model}
    aside = {key: value for key, value in training.items() if key != "model"}
    aside |= {key: value for key, value in content.items() if training and key != "state"}
    for key, value in aside.items():
        if tensors := count_tensors(value):
            unused[f"{key} ({tensors} tensors)"] = STATES.get(key, "the training's own state")
    renamed = {PREFIXES[start] + key.removeprefix(start): value for key, value in model.items() for start in PREFIXES
               if key.startswith(start)}  # fmt: skip
    return Imported(found, renamed, MEAN, STD, None, SIZE, unused)


def _inner(key: str) -> str:
    """Return a name below the module that Composer wraps; `torch.compile` and several devices add to its prefix."""
    return re.sub(r"^((module|model|_orig_mod)\.)+", "", key)


def _reason(key: str) -> str:
    if re.search(r"metric|miou|_ce\.|crossentropy", key, re.IGNORECASE):
        return "a metric's running sums"
    return "no part of the network"


def _architecture(file: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `build_deeplab` that the tensors tell."""
    blocks = len({match[1] for key in state if (match := re.match(r"backbone\.layer3\.(\d+)\.", key))})
    needed = {"backbone.layer1.0.conv3.weight", "classifier.conv_seg.weight", "classifier.aspp_modules.0.conv.weight"}
    if blocks not in BOTTLENECKS or not needed <= state.keys():
        raise ValueError(
            f"{file} is no checkpoint of Composer's DeepLabv3 on a resnet50 or resnet101: no tensors "
            "state/model/model.backbone.* and model.classifier.* of that model are in it"
        )
    plus = "classifier.c1_bottleneck.conv.weight" in state
    classes, channels = state["classifier.conv_seg.weight"].shape[:2]
    return {
        "num_classes": classes,
        "backbone": BOTTLENECKS[blocks],
        "head": "deeplabv3plus" if plus else "deeplabv3",
        "output_stride": 8,
        "aspp_channels": channels,
    }
