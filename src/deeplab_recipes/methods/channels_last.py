"""Channels-last memory: pixels lie together, which convolutions on tensor cores and on CPUs prefer."""

import pytorch_lightning as pl
import torch
from torch import nn


def apply_channels_last(model: nn.Module) -> nn.Module:
    """Put all 4-d weights of a model into channels-last memory, in place; results stay the same but for rounding."""
    return model.to(memory_format=torch.channels_last)


class ChannelsLast(pl.Callback):
    """Applies `apply_channels_last` before training (images leave the loader in that layout already)."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Convert the model."""
        apply_channels_last(pl_module)
