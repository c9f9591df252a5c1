"""Segmentation heads. The only module that imports mmsegmentation, and only when a head is built.

A head is called with the backbone's `Features` and returns logits at its own resolution. A head that normalises a
pooled 1 x 1 map calls that branch ``image_pool``.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from deeplab_recipes.model.choices import choose

DILATIONS = {8: (1, 12, 24, 36), 16: (1, 6, 12, 18), 32: (1, 3, 6, 9)}
DECODER_CHANNELS = 48


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
) -> nn.Module:
    """Build a head with the weights that its constructor draws; see `init_weights`.

    ``feature_channels`` are the backbone's; ``factory.build_deeplab`` explains the rest.

    Raises:
        ValueError: an unknown name, or a number that no head can have or that this head would ignore.
        ImportError: mmsegmentation cannot be imported.
    """
    build = choose("head", name, HEADS)
    dilations = tuple(DILATIONS[output_stride] if aspp_dilations is None else aspp_dilations)
    _check(num_classes, dilations, aspp_channels, dropout, decoder_channels)
    settings = {
        **_common(num_classes, dropout),
        "in_channels": feature_channels[-1],
        "channels": aspp_channels,
        "dilations": dilations,
    }
    return build(settings, feature_channels[0], decoder_channels)


def build_auxiliary_head(
    num_classes: int, *, feature_channels: tuple[int, int, int], dropout: float = 0.1
) -> nn.Module:
    """Build mmsegmentation's FCN head on the middle features, with which its models train: one 3x3 convolution.

    Raises:
        ImportError: mmsegmentation cannot be imported.
    """
    middle = feature_channels[1]
    return _mmseg_heads().FCNHead(
        **_common(num_classes, dropout),
        in_channels=middle,
        in_index=1,
        channels=middle // 4,
        num_convs=1,
        concat_input=False,
    )


def init_weights(head: nn.Module) -> None:
    """Draw the last convolution anew, in place, as mmsegmentation's method of that name does: N(0, 0.01), bias 0.

    That method draws two more layers from the distribution that they have already, and logs a line for each parameter.
    """
    nn.init.normal_(head.conv_seg.weight, std=0.01)
    nn.init.zeros_(head.conv_seg.bias)


def _common(num_classes: int, dropout: float) -> dict[str, Any]:
    return {
        "num_classes": num_classes,
        "out_channels": num_classes,  # said outright, mmseg gives no advice about two classes
        "dropout_ratio": dropout,
        "norm_cfg": {"type": "BN"},
        "align_corners": False,
        # Never called (losses.py is), but mmseg builds one, and warns about the default.
        "loss_decode": {"type": "CrossEntropyLoss", "avg_non_ignore": True},
    }


def _deeplabv3plus(settings: dict[str, Any], low_channels: int, decoder_channels: int) -> nn.Module:
    head = _mmseg_heads().DepthwiseSeparableASPPHead
    return head(c1_in_channels=low_channels, c1_channels=decoder_channels, **settings)


def _deeplabv3(settings: dict[str, Any], low_channels: int, decoder_channels: int) -> nn.Module:
    if decoder_channels != DECODER_CHANNELS:
        raise ValueError(
            f"decoder_channels={decoder_channels} acts on head 'deeplabv3plus' only: 'deeplabv3' has no "
            f"decoder; leave it at {DECODER_CHANNELS}"
        )
    return _mmseg_heads().ASPPHead(**settings)


HEADS: dict[str, Callable[..., nn.Module]] = {"deeplabv3plus": _deeplabv3plus, "deeplabv3": _deeplabv3}


def _check(
    num_classes: int, dilations: tuple[int, ...], aspp_channels: int, dropout: float, decoder_channels: int
) -> None:
    if not _is_positive(num_classes) or num_classes < 2:
        raise ValueError(f"num_classes must be an integer >= 2 (background counts), got {num_classes!r}")
    if not dilations or not all(map(_is_positive, dilations)):
        raise ValueError(f"aspp_dilations must be positive integers, as [1, 6, 12], got {list(dilations)}")
    for name, value in {"aspp_channels": aspp_channels, "decoder_channels": decoder_channels}.items():
        if not _is_positive(value):
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _mmseg_heads() -> Any:
    try:
        with warnings.catch_warnings():
            # A compiled operator that no head here uses.
            warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDeformableAttention``")
            from mmseg.models import decode_heads
    except (ImportError, AssertionError) as error:  # mmseg asserts the version of mmcv
        reason = " ".join(str(error).split())
        raise ImportError(f"{_remedy(reason)} (importing mmseg failed: {reason})") from error
    return decode_heads


def _remedy(failure: str) -> str:
    if any(library in failure for library in ("libGL", "libgthread", "libglib")):
        return "install opencv-python-headless in place of opencv-python, which needs a desktop's libraries"
    return "install the packages onedl-mmsegmentation onedl-mmcv onedl-mmengine ftfy regex"
