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
from torchvision.models._utils import _make_divisible

from deeplab_recipes.config import missing_extra
from deeplab_recipes.model.importers.base import Imported

LEVEL = (127.5, 127.5, 127.5)  # inputs are pixel / 127.5 - 1
SIZE = {"protocol": "padded", "evaluate_sizes": {"padded": [512, 512]}}
EPSILON = {"backbone": 1e-3, "head": 1e-5}
MOMENTUM = {"mobilenet_v2": {"backbone": 0.001, "head": 0.01}, "xception65": 0.01}  # 1 - Keras's
XCEPTION_UNITS = 16  # of the middle flow
CHANNELS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)  # MobileNetV2's blocks
WIDTHS = (1.0, 0.35, 0.5, 0.75, 1.3, 1.4, 0.25)
NORM = "_BN"  # how a batch norm's layer is called: as the convolution before it, with this
LAST = ("logits_semantic", "custom_logits_semantic")
KINDS = ("kernel", "depthwise_kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
NORM_PARTS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
HEAD = {
    "image_pooling": "encoder.image_pool",
    "concat_projection": "encoder.concat_projection",
    "aspp0": "encoder.branches.0",
    "feature_projection0": "decoder.feature_projection",
    **{f"aspp{i}_{part}": f"encoder.branches.{i}.{part}" for i in (1, 2, 3) for part in ("depthwise", "pointwise")},
    **{f"decoder_conv{i}_{part}": f"decoder.conv{i}.{part}" for i in (0, 1) for part in ("depthwise", "pointwise")},
}
Arrays = dict[tuple[str, str], np.ndarray]  # (layer, kind) -> weights
Keys = dict[str, tuple[str, str]]  # layer -> keys of the convolution, and of the batch norm behind it


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
    last = next((name for name in LAST if name in layers), None)
    mobile = "expanded_conv_depthwise" in layers
    if last is None or "concat_projection" not in layers or not (mobile or "entry_flow_conv1_1" in layers):
        raise ValueError(
            f"{file} is not of bonlime's Deeplabv3: it has {', '.join(sorted(layers)[:4])}, and not those of "
            "MobileNetV2 or Xception with concat_projection and logits_semantic or custom_logits_semantic"
        )
    keys = _mobilenet_keys() if mobile else _xception_keys({layer.removesuffix(NORM) for layer in layers})
    keys |= {**{layer: _pair(f"head.{key}") for layer, key in HEAD.items()}, last: ("head.conv_seg", "")}
    backbone = _mobilenet(file, arrays, width_multiplier) if mobile else _xception(file, layers, width_multiplier)
    if mobile and output_stride not in (None, 8):
        raise ValueError(f"output_stride={output_stride}, but bonlime's MobileNetV2 is always built at 8; leave it out")
    model = {
        "num_classes": arrays[last, "kernel"].shape[-1],
        **backbone,
        "output_stride": 8 if mobile else output_stride or 16,
        "head": "tensorflow_short" if mobile else "tensorflow",
        "aspp_channels": arrays["concat_projection", "kernel"].shape[-1],
        "align_corners": bool(align_corners),
        "padding": "same",
        "batchnorm_epsilon": EPSILON,
        "batchnorm_momentum": MOMENTUM[backbone["backbone"]],
    }
    state, astray = _state(arrays, keys, last)
    return Imported(model, state, LEVEL, LEVEL, None, SIZE, unused | astray, used=len(arrays) - len(astray))


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


def _mobilenet(file: Path, arrays: Arrays, width: float | None) -> dict[str, Any]:
    """Return the backbone's arguments, with the width at which MobileNetV2 has these channels."""
    layers = ["expanded_conv_project", *(f"expanded_conv_{i}_project" for i in range(1, len(CHANNELS)))]
    found = [arrays[layer, "kernel"].shape[-1] for layer in layers if (layer, "kernel") in arrays]
    for candidate in WIDTHS if width is None else (width,):
        if found == [_make_divisible(channels * candidate, 8) for channels in CHANNELS]:
            return {"backbone": "mobilenet_v2", "width_multiplier": candidate}
    wanted = "none that is known has; give it: width_multiplier=" if width is None else f"{width} has others; it has"
    raise ValueError(f"{file}: MobileNetV2's blocks have {found} channels, which a width multiplier of {wanted}")


def _xception(file: Path, layers: set[str], width: float | None) -> dict[str, Any]:
    if width is not None:
        raise ValueError(f"width_multiplier={width} is for MobileNetV2, {file} holds an Xception; leave it out")
    units = len({match[1] for layer in layers if (match := re.match(r"middle_flow_unit_(\d+)_", layer))})
    if units != XCEPTION_UNITS:
        raise ValueError(f"{file}: its middle flow has {units} units, that of bonlime's Xception {XCEPTION_UNITS}")
    return {"backbone": "xception65"}


def _mobilenet_keys() -> Keys:
    """Return the keys by torchvision's names: in the first block, nothing is expanded."""
    keys = {"Conv": ("backbone.features.0.0", "backbone.features.0.1")}
    for i in range(len(CHANNELS)):
        prefix, block = f"expanded_conv_{i}_" if i else "expanded_conv_", f"backbone.features.{i + 1}.conv"
        inner = ("expand", "depthwise")[i == 0 :]
        keys |= {f"{prefix}{part}": (f"{block}.{place}.0", f"{block}.{place}.1") for place, part in enumerate(inner)}
        keys[f"{prefix}project"] = (f"{block}.{len(inner)}", f"{block}.{len(inner) + 1}")
    return keys


def _xception_keys(layers: set[str]) -> Keys:
    """Return the keys of an Xception's layers, which are called after TensorFlow's scopes in both."""
    keys: Keys = {}
    for layer in layers:
        match = re.fullmatch(r"(entry|exit)_flow_block(\d)_(\w+)", layer) or re.fullmatch(
            r"(middle)_flow_unit_(\d+)_(\w+)", layer
        )
        if match:
            flow, number, part = match.groups()
            place = f"block1.unit_{number}" if flow == "middle" else f"block{number}.unit_1"
            keys[layer] = _pair(f"backbone.{flow}_flow.{place}.{part}")
    return {**keys, **{f"entry_flow_{name}": _pair(f"backbone.entry_flow.{name}") for name in ("conv1_1", "conv1_2")}}


def _pair(path: str) -> tuple[str, str]:
    return f"{path}.conv", f"{path}.bn"


def _state(arrays: Arrays, keys: Keys, last: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state dict, and the weights that have no place in it."""
    state: dict[str, Tensor] = {}
    astray: dict[str, str] = {}
    for (layer, kind), array in arrays.items():
        convolution, norm = keys.get(layer.removesuffix(NORM), ("", ""))
        if not convolution or kind not in KINDS or (kind in NORM_PARTS) != layer.endswith(NORM):
            astray[f"{layer}/{kind}"] = f"no layer of bonlime's Deeplabv3 up to {last}"
            continue
        tensor = torch.from_numpy(np.array(array, np.float32))
        if kind in NORM_PARTS:
            state[f"{norm}.{NORM_PARTS[kind]}"] = tensor
            state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
        elif kind == "bias":
            state[f"{convolution}.bias"] = tensor
        else:  # (height, width, in, out), a depthwise one's (height, width, in, 1)
            order = (3, 2, 0, 1) if kind == "kernel" else (2, 3, 0, 1)
            state[f"{convolution}.weight"] = tensor.permute(*order).contiguous()
    return state, astray
