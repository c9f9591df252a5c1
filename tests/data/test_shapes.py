"""The drawn scenes: what is on them, what is on disk, and that colour alone does not solve them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab_recipes.data.sources import shapes

SIZE = {"height": 96, "width": 128}
SMALL = {"training": 3, "validation": 2, "height": 48, "width": 64, "seed": 7}
COUNT = len(shapes.CLASSES)


def scenes(part: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a part, the images as they come back from a JPEG file."""
    drawn = [shapes.draw_scene(np.random.default_rng([0, part, i]), **SIZE) for i in range(1, count + 1)]
    files = [cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1] for image, _ in drawn]
    return np.stack([cv2.imdecode(file, cv2.IMREAD_COLOR) for file in files]), np.stack([y for _, y in drawn])


@pytest.fixture(scope="module")
def training() -> tuple[np.ndarray, np.ndarray]:
    return scenes(0, 400)


@pytest.fixture(scope="module")
def validation() -> tuple[np.ndarray, np.ndarray]:
    return scenes(1, 100)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_names_and_colours_belong_together():
    assert COUNT >= 6
    assert len(set(shapes.PALETTE)) == len(set(shapes.CLASSES)) == COUNT


def test_every_paint_serves_several_classes():
    for paint in shapes.PAINTS:
        assert sum(paint in choices.split() for choices in shapes.CHOICES.values()) >= 2, paint


def test_a_scene_is_a_function_of_its_generator():
    first, again, other = (shapes.draw_scene(np.random.default_rng(seed), **SIZE) for seed in (3, 3, 4))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(("height", "width"), [(96, 128), (65, 97), (128, 64), (64, 192)])
def test_shapes_types_and_values(height, width):
    image, label = shapes.draw_scene(np.random.default_rng(5), height=height, width=width)
    assert (image.shape, image.dtype) == ((height, width, 3), np.uint8)
    assert (label.shape, label.dtype) == ((height, width), np.uint8)
    assert set(np.unique(label)) <= {*range(COUNT), 255}


def test_a_few_pixels_are_unlabelled(validation):
    assert 0.01 < (validation[1] == 255).mean() < 0.05


def test_every_class_is_in_many_scenes(validation):
    present = [(validation[1] == index).any(axis=(1, 2)).mean() for index in range(COUNT)]
    assert min(present) >= 0.2, dict(zip(shapes.CLASSES, present, strict=True))


def smooth(histogram: np.ndarray) -> np.ndarray:
    """A Gaussian blur with a standard deviation of half a bin along the three colour axes."""
    weights = np.exp(-0.5 * (np.arange(-2, 3) / 0.5) ** 2)
    for axis in range(3):
        shifted = [np.roll(histogram, shift, axis) for shift in range(-2, 3)]
        histogram = sum(w * h for w, h in zip(weights / weights.sum(), shifted, strict=True))
    return histogram


def colour_miou(training, validation, power: float) -> float:
    """mIoU in per cent of argmax p(class | colour) / p(class)**power, from 32 bins a colour channel."""
    cell = np.array([1024, 32, 1])
    bins = [(images // 8).astype(np.int64) @ cell for images, _ in (training, validation)]
    known = [labels != 255 for _, labels in (training, validation)]
    pairs = bins[0][known[0]] * COUNT + training[1][known[0]]
    histogram = smooth(np.bincount(pairs, minlength=32**3 * COUNT).reshape(32, 32, 32, COUNT).astype(float))
    best = (histogram / histogram.sum(axis=(0, 1, 2)) ** power).reshape(-1, COUNT).argmax(axis=1)
    pairs = validation[1][known[1]] * COUNT + best[bins[1][known[1]]]
    confusion = np.bincount(pairs, minlength=COUNT**2).reshape(COUNT, COUNT)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - confusion.diagonal()
    return 100 * float(np.mean(confusion.diagonal()[union > 0] / union[union > 0]))


def test_colour_alone_does_not_solve_it(training, validation):
    # The second and third figures favour rare classes, which mIoU rewards.
    figures = [colour_miou(training, validation, power) for power in (0.0, 0.5, 1.0)]
    print("mIoU of the colour classifiers:", [f"{figure:.1f}" for figure in figures])
    assert 15 < max(figures) < 45  # under 15 the classifier itself would be suspect


def test_layout_and_encoding_on_disk(tmp_path):
    root = tmp_path / "scenes"
    shapes.write_scenes(root, **SMALL)
    for part, (folder, short, count) in enumerate([("training", "train", 3), ("validation", "val", 2)]):
        names = [f"ADE_{short}_{index:08d}" for index in range(1, count + 1)]
        images = sorted((root / "images" / folder).iterdir())
        stored = sorted((root / "annotations" / folder).iterdir())
        assert [path.name for path in images] == [f"{name}.jpg" for name in names]
        assert [path.name for path in stored] == [f"{name}.png" for name in names]
        rng = np.random.default_rng([7, part, 1])
        image, label = shapes.draw_scene(rng, height=48, width=64)
        assert np.array_equal(np.asarray(Image.open(stored[0])), np.where(label == 255, 0, label + 1))
        assert np.abs(np.asarray(Image.open(images[0])).astype(int) - image).mean() < 8
    assert json.loads((root / "scenes.json").read_text()) == {"version": shapes.VERSION, **SMALL}


def test_more_scenes_leave_the_first_ones_as_they_were(tmp_path):
    shapes.write_scenes(tmp_path / "few", **SMALL)
    shapes.write_scenes(tmp_path / "many", **SMALL | {"training": 5})
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    assert all(many[name] == few[name] for name in few if name != "scenes.json")


def test_a_second_call_does_nothing(tmp_path, monkeypatch):
    shapes.write_scenes(tmp_path / "scenes", **SMALL)
    monkeypatch.setattr(shapes, "draw_scene", None)
    shapes.write_scenes(tmp_path / "scenes", **SMALL)


def test_other_arguments_are_refused(tmp_path):
    shapes.write_scenes(tmp_path / "scenes", **SMALL)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"'seed': 7.*'seed': 8.*data\.root"):
        shapes.write_scenes(tmp_path / "scenes", **SMALL | {"seed": 8})
    assert contents(tmp_path) == before


def test_a_write_that_is_cut_off_starts_over(tmp_path, monkeypatch):
    root = tmp_path / "scenes"
    saved, save = [], shapes.save_scene

    def fail_at_the_third(*arguments) -> None:
        saved.append(save(*arguments))
        if len(saved) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "save_scene", fail_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            shapes.write_scenes(root, **SMALL)
    assert not list(tmp_path.iterdir())
    shapes.write_scenes(root, **SMALL)
    assert len(contents(root)) == 2 * 5 + 1


def test_what_others_wrote_is_never_touched(tmp_path):
    picture = tmp_path / "images" / "training" / "holiday.jpg"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"no scenes\.json"):
        shapes.write_scenes(tmp_path, **SMALL)
    assert contents(tmp_path) == {"images/training/holiday.jpg": b"mine"}


def test_an_empty_folder_will_do(tmp_path):
    shapes.write_scenes(tmp_path, **SMALL)
    assert (tmp_path / "scenes.json").is_file()


def test_two_writers_at_once_agree(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(shapes.write_scenes, tmp_path / "both", **SMALL) for _ in range(2)]
    assert [call.result() for call in calls] == [None, None]
    shapes.write_scenes(tmp_path / "alone", **SMALL)
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "both"]
