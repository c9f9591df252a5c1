"""Arithmetic that both the model and the losses need."""

import torch
from torch import Tensor


def at_least_float32(logits: Tensor) -> Tensor:
    """Return half-precision logits as float32; float32 and float64 as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
