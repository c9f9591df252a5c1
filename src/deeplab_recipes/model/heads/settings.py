"""What a head is built from."""

from dataclasses import dataclass

from deeplab_recipes.model.dense_prediction_cell import CellSpec


@dataclass(frozen=True)
class HeadSettings:
    """Checked settings; `factory.build_deeplab` explains them.

    Attributes:
        feature_channels: of the backbone's three feature maps.
        output_stride: of the last of them.
        dilations: atrous rates.
        channels: of each branch and of the decoder.
        decoder_channels: 0: no decoder.
        image_pooling: whether a pyramid has that branch.
        cell: a dense prediction cell.
        align_corners: None: as the head's original.
    """

    num_classes: int
    feature_channels: tuple[int, int, int]
    output_stride: int
    dilations: tuple[int, ...]
    channels: int
    dropout: float
    decoder_channels: int
    image_pooling: bool
    cell: CellSpec
    align_corners: bool | None
