"""The device's half of the input pipeline: colour changes and normalisation, batched."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deeplab_recipes.data.colours import Photometric
from deeplab_recipes.data.transforms import MEAN, STD


def normalize(
    images: Tensor,
    *,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(images - mean) / std for (B, 3, H, W) in levels of 0..255; uint8 becomes `dtype`."""
    images = images if images.is_floating_point() else images.to(dtype)
    return (images - _per_channel(mean, images)) / _per_channel(std, images)


def _per_channel(values: Sequence[float], images: Tensor) -> Tensor:
    """Return (1, 3, 1, 1), filled on the images' device: a GPU would have the host wait for a copy of a list."""
    filled = [torch.full((1, 1), value, dtype=images.dtype, device=images.device) for value in values]
    return torch.stack(filled).unsqueeze(0)


def content_mask(content: Tensor, height: int, width: int) -> Tensor:
    """Return (B, 1, H, W) bool, true inside each image's (top, left, height, width)."""
    top, left, tall, wide = content.long().view(-1, 4, 1).unbind(1)
    rows = torch.arange(height, device=content.device)
    columns = torch.arange(width, device=content.device)
    in_rows = (rows >= top) & (rows < top + tall)
    in_columns = (columns >= left) & (columns < left + wide)
    return (in_rows.unsqueeze(2) & in_columns.unsqueeze(1)).unsqueeze(1)


def prepare(
    images: Tensor,
    *,
    content: Tensor,
    colour: Tensor,
    photometric: Photometric,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Turn a training batch (B, 3, H, W) uint8 into normalised floats; padding becomes exactly 0.

    Args:
        images: uint8 images.
        content: (B, 4) top, left, height and width of what is not padding.
        colour: (B, 5) as `draw_colour` gives them.
        photometric: which original's arithmetic to use, or "none".
        mean, std: of the normalisation, in levels of 0..255.
        dtype: of the result, and of the arithmetic.
    """
    mask = content_mask(content, *images.shape[-2:])
    pixels = images.to(dtype)
    if photometric == "square":
        pixels = blend_colours(pixels, colour, mask)
    elif photometric == "keep_ratio":
        pixels = shift_colours(pixels, colour)
    return normalize(pixels, mean=mean, std=std) * mask


def blend_colours(pixels: Tensor, colour: Tensor, mask: Tensor) -> Tensor:
    """Composer's changes (Pillow's arithmetic): blends with black, the mean grey and with grey, then hue.

    Args:
        pixels: (B, 3, H, W) floats in 0..255.
        colour: (B, 5), see `draw_colour`.
        mask: (B, 1, H, W), pixels that enter the mean grey.
    """
    brightness, before, saturation, hue, after = _columns(colour)
    pixels = (pixels * brightness).clamp(0, 255)
    pixels = _contrast(pixels, before, mask)
    grey = luminance(pixels)
    pixels = torch.lerp(grey, pixels, saturation).clamp(0, 255)
    pixels = turn_hue(pixels, hue, torch.ones_like(hue))
    return _contrast(pixels, after, mask)


def shift_colours(pixels: Tensor, colour: Tensor) -> Tensor:
    """mmsegmentation's changes: an offset, a factor, saturation and hue in HSV, a factor.

    Args:
        pixels: (B, 3, H, W) floats in 0..255.
        colour: (B, 5), see `draw_colour`.
    """
    brightness, before, saturation, hue, after = _columns(colour)
    pixels = (pixels + brightness).clamp(0, 255)
    pixels = (pixels * before).clamp(0, 255)
    pixels = turn_hue(pixels, hue, saturation)
    return (pixels * after).clamp(0, 255)


def luminance(pixels: Tensor) -> Tensor:
    """Return ITU-R 601 grey (B, 1, H, W)."""
    red, green, blue = pixels.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def turn_hue(pixels: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    """Turn the hue by a fraction of the circle and scale HSV's saturation, (B, 1, 1, 1) each.

    Images whose draw is neutral pass untouched; on a CPU they are not even computed.
    """
    active = ((hue != 0) | (saturation != 1)).flatten()
    if pixels.device.type == "cpu":
        chosen = active.nonzero().flatten()
        if len(chosen) == 0:
            return pixels
        turned = pixels.clone()
        turned[chosen] = _hsv(pixels[chosen], hue[chosen], saturation[chosen])
        return turned
    return torch.where(active.view(-1, 1, 1, 1), _hsv(pixels, hue, saturation), pixels)


def _hsv(pixels: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    value, low = pixels.amax(1), pixels.amin(1)
    chroma = value - low
    red, green, blue = pixels.unbind(1)
    safe = chroma.clamp(min=1e-12)
    green_or_blue = torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    sixth = torch.where(value == red, (green - blue) / safe, green_or_blue)
    sixth = sixth + 6 * hue.squeeze(1)
    # New chroma: saturation is chroma / value and cannot pass 1.
    chroma = torch.minimum(chroma * saturation.squeeze(1), value)
    channels = []
    for offset in (5, 3, 1):
        k = (sixth + offset) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=-1).permute(0, 3, 1, 2)  # channels-last memory, as the loader gives it


def _contrast(pixels: Tensor, factor: Tensor, mask: Tensor) -> Tensor:
    grey = luminance(pixels) * mask
    mean = grey.sum(dim=(2, 3), keepdim=True) / mask.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    return torch.lerp(mean, pixels, factor).clamp(0, 255)


def _columns(colour: Tensor) -> tuple[Tensor, ...]:
    return colour.view(-1, 5, 1, 1, 1).unbind(1)
