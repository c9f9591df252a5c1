"""The smallest network, batches and trainer on which training can be checked to the last digit."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deeplab_recipes.losses import SegmentationLoss
from deeplab_recipes.module import SegmentationModule

IGNORE = 255
CLASSES = 3
LABELLED = (1.0, 0.02, 0.5, 0.1)  # share of the pixels of image i that are not ignored: very uneven
Batch = dict[str, Tensor]


def network(dtype: torch.dtype = torch.float64, *, seed: int = 0) -> nn.Module:
    """Two convolutions, and no batch norm: each image's logits are its own."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, CLASSES, 1)).to(dtype)


def batches(count: int = 3, *, size: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Batch]:
    """Random training batches."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        image = torch.randn(size, 3, 7, 6, generator=generator, dtype=torch.float64).to(dtype)
        label = torch.randint(0, CLASSES, (size, 7, 6), generator=generator, dtype=torch.uint8)
        for i in range(size):
            label[i][torch.rand(7, 6, generator=generator) > LABELLED[(i + number) % len(LABELLED)]] = IGNORE
        label[0, 0, 0] = 1  # never nothing at all
        made.append({"image": image, "label": label})
    return made


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Momentum and decay, so that every step depends on all before it."""
    return torch.optim.SGD(parameters, lr=0.3, momentum=0.9, weight_decay=1e-3)


def falling(tau: float) -> float:
    """A schedule that tells every step from every other."""
    return 1 - 0.5 * tau


def module(
    loss: SegmentationLoss | None = None, *, dtype: torch.dtype = torch.float64, **options: Any
) -> SegmentationModule:
    """A SegmentationModule around `network`."""
    options = {"optimizer": sgd, "schedule": falling, "num_classes": CLASSES, **options}
    return SegmentationModule(network(dtype), loss=loss or SegmentationLoss(), **options)


def trainer(folder: str | Path, **options: Any) -> pl.Trainer:
    """A trainer on the CPU that prints and saves nothing by itself."""
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "num_sanity_val_steps": 0, **options}
    return pl.Trainer(default_root_dir=folder, **dict.fromkeys(quiet, False), **options)


def loader(items: Sequence[Any]) -> DataLoader:
    """A loader that gives the items as they are."""
    return DataLoader(list(items), batch_size=None, shuffle=False)


def by_hand(loss: Callable[[Tensor, Tensor], Tensor], data: Sequence[Batch], *, epochs: int = 1) -> list[Tensor]:
    """Train `network` in plain PyTorch with `loss` on whole batches; returns its weights."""
    model = network()
    optimizer = sgd(model.parameters())
    total, step = epochs * len(data), 0
    for _ in range(epochs):
        for batch in data:
            optimizer.param_groups[0]["lr"] = 0.3 * falling(step / total)
            optimizer.zero_grad()
            loss(model(batch["image"]), batch["label"].long()).backward()
            optimizer.step()
            step += 1
    return [p.detach() for p in model.parameters()]
