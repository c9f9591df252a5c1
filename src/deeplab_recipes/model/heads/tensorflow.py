"""Heads of TensorFlow's research/deeplab: an encoder, perhaps a decoder, and the last convolution."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from deeplab_recipes.model.backbones import Features
from deeplab_recipes.model.dense_prediction_cell import DensePredictionCell, parse_cell
from deeplab_recipes.model.heads.settings import HeadSettings
from deeplab_recipes.model.layers import ConvBatchNorm, resize, separable


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling: image pooling and one branch a rate, projected to (B, channels, H, W).

    Args:
        before: channels that come in.
        channels: of each branch and of what goes out.
        dilations: atrous rates; 1 is a 1x1 convolution, the others are separable.
        image_pooling: whether there is that branch.
        dropout: probability of dropping a value at the end.
    """

    def __init__(
        self, before: int, channels: int, dilations: tuple[int, ...], *, image_pooling: bool, dropout: float
    ) -> None:
        super().__init__()
        self.image_pool = ConvBatchNorm(before, channels) if image_pooling else None
        self.branches = nn.ModuleList(
            ConvBatchNorm(before, channels) if rate == 1 else separable(before, channels, rate=rate)
            for rate in dilations
        )
        self.concat_projection = ConvBatchNorm((image_pooling + len(dilations)) * channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, channels, H, W)."""
        branches = [branch(features) for branch in self.branches]
        if self.image_pool is not None:
            pooled = self.image_pool(features.mean((2, 3), keepdim=True))
            branches.insert(0, pooled.expand(-1, -1, *features.shape[-2:]))
        return self.dropout(self.concat_projection(torch.cat(branches, dim=1)))


class Decoder(nn.Module):
    """Low-level features beside the encoder's, both at the size of the former, and two separable convolutions.

    Args:
        low: channels of the low-level features.
        projected: to which they are reduced.
        channels: of the encoder's features, and of what goes out.
    """

    def __init__(self, low: int, projected: int, channels: int, *, align_corners: bool) -> None:
        super().__init__()
        self.feature_projection = ConvBatchNorm(low, projected)
        self.conv0 = separable(channels + projected, channels)
        self.conv1 = separable(channels, channels)
        self.align_corners = align_corners

    def forward(self, features: Tensor, low: Tensor) -> Tensor:
        """Return (B, channels, H / 4, W / 4)."""
        projected = self.feature_projection(low)
        features = resize(features, low.shape[-2:], align_corners=self.align_corners)
        return self.conv1(self.conv0(torch.cat([features, projected], dim=1)))


class TensorFlowHead(nn.Module):
    """An encoder on the last features, perhaps a decoder, and a 1x1 convolution to the classes.

    Args:
        encoder: an `AtrousPyramid` or `DensePredictionCell`.
        channels: that it gives.
        settings: of the head.
    """

    def __init__(self, encoder: nn.Module, channels: int, settings: HeadSettings) -> None:
        super().__init__()
        self.align_corners = settings.align_corners is not False
        low, projected = settings.feature_channels[0], settings.decoder_channels
        self.encoder = encoder
        self.decoder = Decoder(low, projected, channels, align_corners=self.align_corners) if projected else None
        self.conv_seg = nn.Conv2d(channels, settings.num_classes, 1)

    @property
    def image_pool(self) -> nn.Module:
        """What normalises pooled 1 x 1 maps."""
        return self.encoder.image_pool or nn.Identity()

    def forward(self, features: Features) -> Tensor:
        """Return logits (B, classes, H, W) at stride 4, without a decoder at the output stride."""
        encoded = self.encoder(features.high)
        return self.conv_seg(encoded if self.decoder is None else self.decoder(encoded, features.low))


def aspp_head(settings: HeadSettings) -> nn.Module:
    """Build the head of Xception-65: a pyramid and a decoder."""
    high = settings.feature_channels[-1]
    options = {"image_pooling": settings.image_pooling, "dropout": settings.dropout}
    encoder = AtrousPyramid(high, settings.channels, settings.dilations, **options)
    return TensorFlowHead(encoder, settings.channels, settings)


def short_head(settings: HeadSettings) -> nn.Module:
    """Build the head of MobileNetV2: image pooling and a 1x1 convolution, no decoder."""
    return aspp_head(replace(settings, dilations=(1,), decoder_channels=0))


def cell_head(settings: HeadSettings) -> nn.Module:
    """Build a dense prediction cell and a decoder.

    Raises:
        ValueError: a cell that cannot be built; names the branch.
    """
    cell = parse_cell(settings.cell).filled(settings.channels, settings.output_stride)
    encoder = DensePredictionCell(
        settings.feature_channels[-1], cell, dropout=settings.dropout, align_corners=settings.align_corners is not False
    )
    return TensorFlowHead(encoder, cell.concat_channels, settings)
