"""Small conversions, and what they leave."""

import hashlib
import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_recipes.data.shards.convert import Summary, convert
from deeplab_recipes.data.sources import ADE20k
from deeplab_recipes.data.sources.base import Source


def converted(root: Path, output: Any, **settings: Any) -> Summary:
    """Convert a small set in ADE20k's layout into many chunks, in this process."""
    small = {"chunk_mb": 0.01, "workers": 0, "progress": False, "tiles": False}
    return convert(settings.pop("source", ADE20k), root, output, **{**small, **settings})


def in_another_process(action: Callable[[], Any]) -> Any:
    """Fork a process that does it; the caller has to join or kill it."""
    process = get_context("fork").Process(target=action)
    process.start()
    return process


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def content(folder: Path) -> dict[str, str]:
    """Name and checksum of everything below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_same_samples(shards: Source, source: Source, split: str) -> None:
    """Images byte for byte, labels value for value, names and order."""
    ours, theirs = shards.pairs(split), source.pairs(split)
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert (one.image.name, one.image.stem) == (other.image.name, other.image.stem)
        assert one.label.name == other.label.name
        assert one.image.read_bytes() == other.image.read_bytes()
        labels = shards.labels(one)
        assert np.array_equal(labels, source.labels(other))
        assert shards.label_size(one) == labels.shape
