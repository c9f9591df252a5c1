"""Several processes compute what one does: training on the same global batch, and evaluation of every image once."""

import json
from pathlib import Path

import forked
import many_devices
import numpy as np
import pytest
import torch
from PIL import Image


def on(function: str, root: Path, folder: Path, world_size: int) -> list[dict]:
    """What each rank found."""
    folder.mkdir(exist_ok=True)
    forked.run("many_devices", function, world_size, root, folder, world_size)
    return [torch.load(folder / f"{world_size}_{rank}.pt", weights_only=True) for rank in range(world_size)]


def test_two_processes_train_as_one(tiny_sets, tmp_path):
    (alone,) = on("train", tiny_sets["ADE20k"], tmp_path / "one", 1)
    ranks = on("train", tiny_sets["ADE20k"], tmp_path / "two", 2)
    together = [[*first, *second] for first, second in zip(*(rank["samples"] for rank in ranks), strict=True)]
    assert together == alone["samples"]
    assert len(together) == many_devices.STEPS
    for rank in ranks:
        for ours, theirs in zip(rank["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(*(rank["weights"] for rank in ranks), strict=True))


@pytest.fixture(scope="module")
def counted_sets(tmp_path_factory) -> Path:
    """Sets with 1, 2, 5 and 7 validation images of different sizes."""
    root, rng = tmp_path_factory.mktemp("counted"), np.random.default_rng(0)
    for images in many_devices.COUNTS:
        for part, prefix, count in (("training", "train", 8), ("validation", "val", images)):
            for i in range(count):
                size = (40 + 4 * (i % 3), 48)
                pictures = {"images": rng.integers(0, 255, (*size, 3), dtype=np.uint8)}
                pictures["annotations"] = rng.integers(0, 151, size, dtype=np.uint8)
                for kind, end in (("images", "jpg"), ("annotations", "png")):
                    path = root / str(images) / kind / part / f"ADE_{prefix}_{i:08d}.{end}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pictures[kind]).save(path)
    return root


@pytest.fixture(scope="module")
def alone(counted_sets, tmp_path_factory) -> dict:
    return on("evaluate", counted_sets, tmp_path_factory.mktemp("alone"), 1)[0]


@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_counts_every_image_once(world_size, alone, counted_sets, tmp_path):
    ranks = on("evaluate", counted_sets, tmp_path, world_size)
    for images in many_devices.COUNTS:
        assert torch.equal(sum(rank[images]["pixels"] for rank in ranks), alone[images]["pixels"])
        for rank in ranks:  # as text, because classes that do not occur are nan
            assert json.dumps(rank[images]["evaluation"]) == json.dumps(alone[images]["evaluation"])
    pixels = [int(alone[images]["pixels"].sum()) for images in many_devices.COUNTS]
    assert pixels == sorted(set(pixels))
