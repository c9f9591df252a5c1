"""bonlime/keras-deeplab-v3-plus: an .h5 of its weights by layer name, or of a whole saved model; needs h5py.

Xception-65 with ASPP and decoder, and MobileNetV2 of any width with image pooling and a 1x1 convolution. The file says
neither the output stride (16 unless told otherwise; MobileNetV2 is always built at 8) nor how maps are resized: as its
model.py does since it uses Keras's Resizing, with the corners not aligned; older versions aligned them.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deeplab_recipes.config import missing_extra
from deeplab_recipes.model.importers.base import Imported
from deeplab_recipes.model.importers.slim import (
    BLOCK_CHANNELS,
    EPSILON,
    LEVEL,
    NORM_PARTS,
    WIDTHS,
    Keys,
    Place,
    convert,
    find_width,
    head_keys,
    mobilenet_place,
    named,
)

SIZE = {"protocol": "padded", "evaluate_sizes": {"padded": [512, 512]}}
MOMENTUM = {"mobilenet_v2": {"backbone": 0.001, "head": 0.01}, "xception65": 0.01}  # 1 - Keras's
XCEPTION_UNITS = 16  # of the middle flow
NORM = "_BN"  # how a batch norm's layer is called: as the convolution before it, with this
LAST = ("logits_semantic", "custom_logits_semantic")
KINDS = {"kernel": "weights", "depthwise_kernel": "depthwise_weights", "bias": "biases"}  # but those of batch norms
MOBILENET, XCEPTION = "expanded_conv_depthwise", "entry_flow_conv1_1"  # layers by which they are told
BRANCHES = ("aspp0", "aspp1", "aspp2", "aspp3")
XCEPTION_LAYER = re.compile(r"(?P<flow>entry|middle|exit)_flow_(?:block(?P<block>\d)|unit_(?P<unit>\d+))_(?P<part>\w+)")
Arrays = dict[tuple[str, str], np.ndarray]  # (layer, kind) -> weights


def read(
    file: Path,
    *,
    output_stride: int | None = None,
    width_multiplier: float | None = None,
    align_corners: bool | None = None,
) -> Imported:
    """Read weights of bonlime's model.

    Args:
        file: an .h5 that Keras wrote, with save_weights or save.
        output_stride: that an Xception was trained with, 16 or 8; None: 16.
        width_multiplier: MobileNetV2's alpha, where the channels allow several.
        align_corners: how its model.py resizes maps; None: corners not aligned, as it does today.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, or is of another model.
        ImportError: h5py is not installed.
    """
    arrays, unused = _arrays(file)
    layers = {layer for layer, _ in arrays}
    last = _last_layer(file, layers)
    build = _mobilenet if MOBILENET in layers else _xception
    backbone = build(file, arrays, width_multiplier, output_stride)
    model = {
        "num_classes": arrays[last, "kernel"].shape[-1],
        **backbone,
        "aspp_channels": arrays["concat_projection", "kernel"].shape[-1],
        "align_corners": bool(align_corners),
        "padding": "same",
        "batchnorm_epsilon": EPSILON,
        "batchnorm_momentum": MOMENTUM[backbone["backbone"]],
    }
    keys = {**_backbone_keys({layer.removesuffix(NORM) for layer in layers}), **head_keys(BRANCHES, last)}
    state, astray = _state(arrays, keys, last)
    return Imported(
        model, state, (LEVEL,) * 3, (LEVEL,) * 3, None, SIZE, unused | astray, used=len(arrays) - len(astray)
    )


def _arrays(file: Path) -> tuple[Arrays, dict[str, str]]:
    """Return the weights by layer and kind, and what else the file holds."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(missing_extra("h5py", "keras")) from error
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        with h5py.File(file, "r") as content:
            arrays = dict(_weights(file, content.get("model_weights", content)))
            unused = {}
            if "optimizer_weights" in content:
                unused["optimizer_weights"] = "the optimizer's state; training begins anew"
            return arrays, unused
    except (OSError, KeyError) as error:  # h5py's for foreign bytes and for damage, and for a part that is missing
        raise ValueError(f"{file} is no HDF5 file, or is damaged ({error})") from error


def _weights(file: Path, root: Any) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    names = _listed(root, "layer_names")
    if not names:
        raise ValueError(
            f"{file} has no layer names, by which weights are found; save them in Keras's older form: "
            "model.save_weights('FILE.h5', save_format='h5')"
        )
    for group in names:
        for name in _listed(root[group], "weight_names"):
            path, _, kind = name.removesuffix(":0").rpartition("/")
            # The layers of a model within a model (as of several GPUs) are named by the path alone.
            layer = path.rpartition("/")[2] if "/" in path or group not in path else group
            yield (layer, kind), np.asarray(root[group][name])


def _listed(group: Any, attribute: str) -> list[str]:
    """Return an attribute that lists names; Keras splits one that is too long for HDF5."""
    parts = [attribute] if attribute in group.attrs else []
    parts = parts or [key for i in range(len(group.attrs)) if (key := f"{attribute}{i}") in group.attrs]
    names = [name for part in parts for name in group.attrs[part]]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _last_layer(file: Path, layers: set[str]) -> str:
    last = next((name for name in LAST if name in layers), None)
    if last is None or "concat_projection" not in layers or not layers & {MOBILENET, XCEPTION}:
        raise ValueError(
            f"{file} is not of bonlime's Deeplabv3: it has {', '.join(sorted(layers)[:4])}, and not those of "
            "MobileNetV2 or Xception with concat_projection and logits_semantic or custom_logits_semantic"
        )
    return last


def _mobilenet(file: Path, arrays: Arrays, width: float | None, stride: int | None) -> dict[str, Any]:
    """Return what is MobileNetV2's alone, with the width at which it has these channels."""
    layers = ["expanded_conv_project", *(f"expanded_conv_{i}_project" for i in range(1, len(BLOCK_CHANNELS)))]
    found = [arrays[layer, "kernel"].shape[-1] for layer in layers if (layer, "kernel") in arrays]
    fitting = find_width(found, BLOCK_CHANNELS, WIDTHS if width is None else (width,))
    if fitting is None:
        known = (
            "no known width_multiplier gives; name it" if width is None else f"width_multiplier={width} does not give"
        )
        raise ValueError(f"{file}: MobileNetV2's blocks have {found} channels, which {known}")
    if stride not in (None, 8):
        raise ValueError(f"output_stride={stride}, but bonlime's MobileNetV2 is always built at 8; leave it out")
    built = {"backbone": "mobilenet_v2", "width_multiplier": fitting[0]}
    return {**built, "output_stride": 8, "head": "tensorflow_short"}


def _xception(file: Path, arrays: Arrays, width: float | None, stride: int | None) -> dict[str, Any]:
    """Return what is the Xception's alone."""
    if width is not None:
        raise ValueError(f"width_multiplier={width} is for MobileNetV2, {file} holds an Xception; leave it out")
    units = len({match[1] for layer, _ in arrays if (match := re.match(r"middle_flow_unit_(\d+)_", layer))})
    if units != XCEPTION_UNITS:
        raise ValueError(f"{file}: its middle flow has {units} units, that of bonlime's Xception {XCEPTION_UNITS}")
    return {"backbone": "xception65", "output_stride": stride or 16, "head": "tensorflow"}


def _backbone_keys(layers: set[str]) -> Keys:
    places = {layer: mobilenet_place(layer) or _xception_place(layer) for layer in layers}
    return {layer: place for layer, place in places.items() if place}


def _xception_place(layer: str) -> Place | None:
    """Return the place of an Xception's layer, which is called after TensorFlow's scopes here and there."""
    if layer in ("entry_flow_conv1_1", "entry_flow_conv1_2"):
        return named(f"backbone.entry_flow.{layer.removeprefix('entry_flow_')}")
    match = XCEPTION_LAYER.fullmatch(layer)
    if not match:
        return None
    block, unit = (1, match["unit"]) if match["unit"] else (match["block"], 1)
    return named(f"backbone.{match['flow']}_flow.block{block}.unit_{unit}.{match['part']}")


def _state(arrays: Arrays, keys: Keys, last: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state dict, and the weights that have no place in it."""
    state: dict[str, Tensor] = {}
    astray: dict[str, str] = {}
    for (layer, kind), array in arrays.items():
        place = keys.get(layer.removesuffix(NORM))
        normalises = kind in NORM_PARTS
        if place is None or (not normalises and kind not in KINDS) or normalises != layer.endswith(NORM):
            astray[f"{layer}/{kind}"] = f"no layer of bonlime's Deeplabv3 up to {last}"
            continue
        key, value = convert(KINDS.get(kind, kind), place, array)
        state[key] = value
        if normalises:
            state[f"{place[1]}.num_batches_tracked"] = torch.tensor(0)
    return state, astray
