"""From a checkpoint to labels: photograph in, classes out, all sizes and constants from the checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deeplab_recipes.checkpoints import load_checkpoint
from deeplab_recipes.inference.preparation import preparation
from deeplab_recipes.model import build_deeplab
from deeplab_recipes.model.arguments import at_output_stride


class Predictor:
    """Labels photographs with a trained model.

    Args:
        model: the network, logits (B, C, H, W) from normalised images.
        card: the checkpoint's card: classes, palette, protocol, evaluate_sizes, mean, std. The protocol is one of
            evaluation, or ``padded``, see `preparation.Padded`.
        device: where to run.
    """

    def __init__(self, model: nn.Module, card: dict[str, Any], *, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.card, self.preparation = card, preparation(card)
        self.classes: tuple[str, ...] = tuple(card["classes"])
        self.palette: tuple[tuple[int, int, int], ...] = tuple(tuple(colour) for colour in card["palette"])

    @torch.inference_mode()
    def logits(self, image: np.ndarray) -> Tensor:
        """Return logits (C, H, W) at the size of the image (H, W, 3) uint8 RGB.

        Raises:
            ValueError: for an image of another shape or type.
        """
        image = np.asarray(image)
        return self.preparation.logits(self._output(image), image.shape[:2])[0]

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return labels (H, W) uint8 of an image (H, W, 3) uint8 RGB.

        Raises:
            ValueError: for an image of another shape or type.
        """
        image = np.asarray(image)
        return self.preparation.labels(self._output(image), image.shape[:2])[0].to(torch.uint8).cpu().numpy()

    def _output(self, image: np.ndarray) -> Tensor:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ValueError(f"an image must be (H, W, 3) uint8 RGB; this one is {image.shape} {image.dtype}")
        return self.model(self.preparation.input(image, self.device))


def load_predictor(
    checkpoint: str | Path, *, device: str | torch.device = "cpu", output_stride: int | None = None
) -> Predictor:
    """Load a checkpoint of this package for prediction.

    Args:
        checkpoint: the file.
        device: where to run.
        output_stride: another one than the model was trained with, see `at_output_stride`; None keeps it.

    Raises:
        FileNotFoundError, ValueError: if it cannot be read, see `load_checkpoint`, or not be had at that output stride.
    """
    content = load_checkpoint(checkpoint)
    card = dict(content["deeplab"])
    arguments = card["model"] if output_stride is None else at_output_stride(card["model"], output_stride)
    with torch.random.fork_rng(devices=[]):  # the random weights are replaced at once
        model = build_deeplab(**arguments)
    weights = {k.removeprefix("model."): v for k, v in content["state_dict"].items() if k.startswith("model.")}
    model.load_state_dict(weights)
    return Predictor(model, card, device=device)
