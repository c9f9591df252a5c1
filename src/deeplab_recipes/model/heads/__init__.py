"""Segmentation heads by name."""

from deeplab_recipes.model.heads.mmsegmentation import (
    DECODER_CHANNELS,
    DILATIONS,
    HEADS,
    build_auxiliary_head,
    build_head,
    init_weights,
)

__all__ = ["DECODER_CHANNELS", "DILATIONS", "HEADS", "build_auxiliary_head", "build_head", "init_weights"]
