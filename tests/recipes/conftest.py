"""A tiny ADE20k-layout set on disk, and recipes composed as the command line composes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from small_sets import write

from deeplab_recipes import config

TINY = ("data.crop_size=[65,65]", "data.workers=0", "trainer.progress=false", "pictures=0")


@pytest.fixture(scope="session")
def compose_settings() -> Callable[..., dict[str, Any]]:
    """Compose a verb's settings from overrides, as plain containers."""

    def make(*overrides: str, verb: str = "train") -> dict[str, Any]:
        with initialize_config_dir(str(config.yamls_folder()), version_base="1.3"):
            return OmegaConf.to_container(compose(verb, list(overrides)), resolve=True)

    return make


@pytest.fixture(scope="session")
def tiny_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make a dozen random pictures in the layout of every source, by the source's name."""
    root = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    layouts = {
        "ADE20k": (
            "images/{}/ADE_{}_{:08d}.jpg",
            "annotations/{}/ADE_{}_{:08d}.png",
            ("training", "validation"),
            1,
            151,
        ),
        "CamVid": ("{}/{}_{:04d}.jpg", "{}annot/{}_{:04d}.png", ("train", "val"), 0, 12),
    }
    for name, (image, label, parts, low, high) in layouts.items():
        for part in parts:
            # Number 1701 is one of the grey photographs of ADE20k.
            for i in [*range(12), 1701] if part.startswith("train") else range(3):
                blocks = rng.integers(low, high, (8, 10), dtype=np.uint8).repeat(12, 0).repeat(12, 1)
                noise = rng.integers(0, 255, (96, 120, 3), dtype=np.uint8)
                for template, pixels in ((image, noise), (label, blocks)):
                    path = root / name / template.format(part, part[:3] if part != "training" else "train", i)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(path)
    others = {"PascalVOC": "voc", "Cityscapes": "cityscapes", "Supervisely": "supervisely"}
    return {
        **{name: root / name for name in layouts},
        **{source: write(name, root / source) for source, name in others.items()},
    }
