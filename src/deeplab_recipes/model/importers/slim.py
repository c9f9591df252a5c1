"""What research/deeplab's files and bonlime's have in common, since the second names its layers after the first's.

Layers are called as TensorFlow slim calls their scopes; between a block and its part there is a slash in the one and an
underscore in the other.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.models._utils import _make_divisible

LEVEL = 127.5  # inputs are pixel / 127.5 - 1, and padding is this pixel
EPSILON = {"backbone": 1e-3, "head": 1e-5}
STEM_CHANNELS = 32  # MobileNetV2's first convolution, and its blocks
BLOCK_CHANNELS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
WIDTHS = (1.0, 0.5, 0.35, 0.75, 1.3, 1.4, 0.25)
NORM_PARTS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
MOBILENET_LAYER = re.compile(r"expanded_conv(?:_(\d+))?[/_](expand|depthwise|project)")
SEPARABLE = ("depthwise", "pointwise")
Place = tuple[str, str]  # keys of a convolution, and of the batch norm behind it
Keys = dict[str, Place]  # layer -> its place


def find_width(
    found: Sequence[int], plain: Sequence[int], widths: Iterable[float], divisors: Sequence[int] = (8,)
) -> tuple[float, int] | None:
    """Return the width multiplier and divisor that make the channels `found` of `plain` ones, or None."""
    for width in widths:
        for divisor in divisors:
            if list(found) == [_make_divisible(channels * width, divisor) for channels in plain]:
                return width, divisor
    return None


def named(path: str) -> Place:
    """Return the place of a `layers.ConvBatchNorm`."""
    return f"{path}.conv", f"{path}.bn"


def mobilenet_place(layer: str) -> Place | None:
    """Return the place of MobileNetV2's layer by torchvision's names, where it has one; block 0 expands nothing."""
    if layer == "Conv":
        return "backbone.features.0.0", "backbone.features.0.1"
    match = MOBILENET_LAYER.fullmatch(layer)
    number = int(match[1] or 0) if match else len(BLOCK_CHANNELS)
    parts = ("expand", "depthwise", "project")[number == 0 :]
    if number >= len(BLOCK_CHANNELS) or match[2] not in parts:
        return None
    block, place = f"backbone.features.{number + 1}.conv", parts.index(match[2])
    if match[2] == "project":
        return f"{block}.{place}", f"{block}.{place + 1}"
    return f"{block}.{place}.0", f"{block}.{place}.1"


def head_keys(branches: Sequence[str], last: str, *, encoder: str = "", decoder: str = "") -> Keys:
    """Return the places of a head's layers.

    Args:
        branches: names of the encoder's branches in their order, which are convolutions or separable ones.
        last: name of the last layer.
        encoder, decoder: how the names of the encoder's projection and of the decoder's layers begin.
    """
    plain = {name: f"encoder.branches.{i}" for i, name in enumerate(branches)}
    separable = {**plain, **{f"{decoder}decoder_conv{i}": f"decoder.conv{i}" for i in (0, 1)}}
    plain |= {"image_pooling": "encoder.image_pool", f"{encoder}concat_projection": "encoder.concat_projection"}
    plain[f"{decoder}feature_projection0"] = "decoder.feature_projection"
    plain |= {f"{name}_{part}": f"{path}.{part}" for name, path in separable.items() for part in SEPARABLE}
    return {**{name: named(f"head.{path}") for name, path in plain.items()}, last: ("head.conv_seg", "")}


def convert(kind: str, place: Place, value: np.ndarray) -> tuple[str, Tensor]:
    """Return key and value of a tensor.

    Kernels are (height, width, in, out) in TensorFlow; a depthwise one's are (height, width, in, times), and output
    in * times + t is the t-th of input ``in``.

    Args:
        kind: weights, depthwise_weights, biases, or a key of `NORM_PARTS`.
        place: of the layer.
        value: as TensorFlow has it.
    """
    convolution, norm = place
    tensor = torch.from_numpy(np.array(value, np.float32))
    if kind == "weights":
        return f"{convolution}.weight", tensor.permute(3, 2, 0, 1).contiguous()
    if kind == "depthwise_weights":
        return f"{convolution}.weight", tensor.permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(1).contiguous()
    if kind == "biases":
        return f"{convolution}.bias", tensor
    return f"{norm}.{NORM_PARTS[kind]}", tensor
