"""Segmentation heads by name.

A head is called with the backbone's `Features` and returns logits at its own resolution. It calls its last convolution
``conv_seg``, and a branch that normalises a pooled 1 x 1 map ``image_pool``; ``align_corners`` says how its logits are
to be resized.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from deeplab_recipes.model.choices import acting, choose, is_positive
from deeplab_recipes.model.dense_prediction_cell import CellSpec
from deeplab_recipes.model.heads import mmsegmentation, tensorflow
from deeplab_recipes.model.heads.mmsegmentation import build_auxiliary_head
from deeplab_recipes.model.heads.settings import HeadSettings

__all__ = ["DECODER_CHANNELS", "DILATIONS", "HEADS", "build_auxiliary_head", "build_head", "init_weights"]

DILATIONS = {8: (1, 12, 24, 36), 16: (1, 6, 12, 18), 32: (1, 3, 6, 9)}
DECODER_CHANNELS = 48
HEADS: dict[str, Callable[[HeadSettings], nn.Module]] = {
    "deeplabv3plus": mmsegmentation.deeplabv3plus,
    "deeplabv3": mmsegmentation.deeplabv3,
    "tensorflow": tensorflow.aspp_head,
    "tensorflow_short": tensorflow.short_head,
    "dense_prediction_cell": tensorflow.cell_head,
}
# What only some heads have: the value that stands for none, and which have it.
OPTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "aspp_dilations": (None, ("deeplabv3plus", "deeplabv3", "tensorflow")),
    "decoder_channels": (DECODER_CHANNELS, ("deeplabv3plus", "tensorflow", "dense_prediction_cell")),
    "decoder": (None, ("tensorflow", "dense_prediction_cell")),
    "image_pooling": (True, ("tensorflow", "tensorflow_short")),
    "dense_prediction_cell": (None, ("dense_prediction_cell",)),
}


def build_head(
    name: str,
    num_classes: int,
    *,
    feature_channels: tuple[int, int, int],
    output_stride: int = 8,
    aspp_dilations: Sequence[int] | None = None,
    aspp_channels: int = 512,
    dropout: float = 0.1,
    decoder_channels: int = DECODER_CHANNELS,
    decoder: bool | None = None,
    image_pooling: bool = True,
    dense_prediction_cell: CellSpec = None,
    align_corners: bool | None = None,
) -> nn.Module:
    """Build a head with the weights that its constructor draws; see `init_weights`.

    ``feature_channels`` are the backbone's; ``factory.build_deeplab`` explains the rest.

    Raises:
        ValueError: an unknown name, or a number that no head can have or that this head would ignore.
        ImportError: mmsegmentation cannot be imported.
    """
    build = choose("head", name, HEADS)
    some = {"aspp_dilations": aspp_dilations, "decoder_channels": decoder_channels, "decoder": decoder}
    some |= {"image_pooling": image_pooling, "dense_prediction_cell": dense_prediction_cell}
    acting("head", name, some, OPTIONS)
    dilations = tuple(DILATIONS[output_stride] if aspp_dilations is None else aspp_dilations)
    _check(num_classes, dilations, aspp_channels, dropout, decoder_channels)
    _check_switches({"decoder": decoder, "align_corners": align_corners}, {"image_pooling": image_pooling})
    if decoder is False and decoder_channels != DECODER_CHANNELS:
        raise ValueError(f"decoder_channels={decoder_channels} acts with decoder=true only: leave it at 48")
    settings = HeadSettings(
        num_classes=num_classes,
        feature_channels=feature_channels,
        output_stride=output_stride,
        dilations=dilations,
        channels=aspp_channels,
        dropout=dropout,
        decoder_channels=0 if decoder is False else decoder_channels,
        image_pooling=image_pooling,
        cell=dense_prediction_cell,
        align_corners=align_corners,
    )
    return build(settings)


def init_weights(head: nn.Module) -> None:
    """Draw the last convolution anew, in place: N(0, 0.01), bias 0, as mmsegmentation's begin.

    TensorFlow's differ in that nothing is further than 0.02 from 0.
    mmsegmentation's method of that name draws two more layers from the distribution that they have already, and logs
    a line for each parameter.
    """
    nn.init.normal_(head.conv_seg.weight, std=0.01)
    nn.init.zeros_(head.conv_seg.bias)


def _check(
    num_classes: int, dilations: tuple[int, ...], aspp_channels: int, dropout: float, decoder_channels: int
) -> None:
    if not is_positive(num_classes) or num_classes < 2:
        raise ValueError(f"num_classes must be an integer >= 2 (background counts), got {num_classes!r}")
    if not dilations or not all(map(is_positive, dilations)):
        raise ValueError(f"aspp_dilations must be positive integers, as [1, 6, 12], got {list(dilations)}")
    for name, value in {"aspp_channels": aspp_channels, "decoder_channels": decoder_channels}.items():
        if not is_positive(value):
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")


def _check_switches(optional: Mapping[str, bool | None], switches: Mapping[str, bool]) -> None:
    for name, value in {**optional, **switches}.items():
        if not isinstance(value, bool) and not (value is None and name in optional):
            null = ", or null (as the head's original)" if name in optional else ""
            raise ValueError(f"{name} must be true or false{null}, got {value!r}")
