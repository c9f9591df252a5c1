"""mmsegmentation's heads. The only module that imports mmsegmentation, and only when a head is built."""

import warnings
from typing import Any

from torch import nn

from deeplab_recipes.model.heads.settings import HeadSettings


def deeplabv3plus(settings: HeadSettings) -> nn.Module:
    """Build `DepthwiseSeparableASPPHead`.

    Raises:
        ImportError: mmsegmentation cannot be imported.
    """
    head = _mmseg_heads().DepthwiseSeparableASPPHead
    low = settings.feature_channels[0]
    return head(c1_in_channels=low, c1_channels=settings.decoder_channels, **_aspp(settings))


def deeplabv3(settings: HeadSettings) -> nn.Module:
    """Build `ASPPHead`.

    Raises:
        ImportError: mmsegmentation cannot be imported.
    """
    return _mmseg_heads().ASPPHead(**_aspp(settings))


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


def _aspp(settings: HeadSettings) -> dict[str, Any]:
    return {
        **_common(settings.num_classes, settings.dropout),
        "align_corners": bool(settings.align_corners),
        "in_channels": settings.feature_channels[-1],
        "channels": settings.channels,
        "dilations": settings.dilations,
    }


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
