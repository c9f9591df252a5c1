"""Training methods: each a pure function and a thin callback."""

from deeplab_recipes.methods.channels_last import ChannelsLast, apply_channels_last

__all__ = ["ChannelsLast", "apply_channels_last"]
