"""What is cropped first and resized then is what the originals resize first and crop then."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from deeplab_recipes.data.cropping import Box, crop_image, crop_labels, window
from deeplab_recipes.data.pictures import Decoded, Jpeg
from deeplab_recipes.data.shards.tiled_jpeg import Tiled, tile
from deeplab_recipes.data.transforms import TrainingTransform

PIPELINES = ["square", "keep_ratio"]


def whole(image: np.ndarray, labels: np.ndarray, size: tuple[int, int], pipeline: str) -> tuple[np.ndarray, np.ndarray]:
    """The straightforward way: all of it resized, as the pipeline's original does."""
    if pipeline == "square":
        bilinear, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
        image, labels = (
            Image.fromarray(image).resize(size[::-1], bilinear),
            Image.fromarray(labels).resize(size[::-1], nearest),
        )
        return np.asarray(image), np.asarray(labels)
    nearest = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR), nearest


def box_in(size: tuple[int, int], rng: np.random.Generator) -> Box:
    height, width = (int(rng.integers(1, min(side, 256) + 1)) for side in size)
    return Box(int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1)), height, width)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_labels_are_equal(pipeline):
    rng = np.random.default_rng(0)
    for _ in range(150):
        shape, size = (tuple(int(v) for v in rng.integers(20, 700, 2)) for _ in range(2))
        labels, box = rng.integers(0, 150, shape, dtype=np.uint8), box_in(size, rng)
        _, expected = whole(np.zeros((*shape, 3), np.uint8), labels, size, pipeline)
        expected = expected[box.top : box.top + box.height, box.left : box.left + box.width]
        assert np.array_equal(crop_labels(labels, size, box, pipeline), expected)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_real_photographs_are_equal_to_within_the_interpolation(pipeline, real_data):
    rng, means, largest = np.random.default_rng(1), [], []
    for file in sorted((real_data("ade20k_mini") / "images/validation").iterdir())[::16]:
        image = np.asarray(Image.open(file).convert("RGB"))
        for scale in rng.uniform(0.5, 2, 4):
            stretch = rng.uniform(0.8, 1.25) if pipeline == "square" else 1  # square changes the aspect
            size = int(image.shape[0] * scale), int(image.shape[1] * scale * stretch)
            box = box_in(size, rng)
            expected, _ = whole(image, np.zeros(image.shape[:2], np.uint8), size, pipeline)
            expected = expected[box.top : box.top + box.height, box.left : box.left + box.width]
            found = crop_image(Decoded(image), size, box, pipeline)
            assert found.shape == expected.shape
            difference = np.abs(found.astype(int) - expected)
            means.append(difference.mean())
            largest.append(difference.max())
    assert np.mean(means) < 0.3  # of 255 levels
    assert max(largest) <= 24


@pytest.mark.parametrize(("shape", "size"), [((33, 33), (603, 603)), ((30, 59), (495, 974)), ((1, 24), (169, 4049))])
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_end_of_a_small_picture_is_whole(pipeline, shape, size, make_photograph):
    image, labels = make_photograph(0, *shape), np.zeros(shape, np.uint8)
    expected, _ = whole(image, labels, size, pipeline)
    for side in range(20, 513, 4):
        height, width = min(side, size[0]), min(side, size[1])
        box = Box(size[0] - height, size[1] - width, height, width)
        found = crop_image(Decoded(image), size, box, pipeline)
        there = expected[box.top :, box.left :]
        assert found.shape == there.shape
        assert np.abs(found.astype(int) - there).mean() < 2


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_picture_of_nearly_the_same_size_is_resized(pipeline, make_photograph):
    """Also where the window that is cut from it has as many pixels as the crop."""
    image, labels = make_photograph(0, 634, 726), np.zeros((634, 726), np.uint8)
    for size in [(637, 637), (640, 733), (631, 723), (630, 726)]:
        expected, _ = whole(image, labels, size, pipeline)
        for corner in range(100, 118):
            box = Box(corner, corner, 512, 512)
            found = crop_image(Decoded(image), size, box, pipeline)
            there = expected[box.top : box.top + box.height, box.left : box.left + box.width]
            assert np.abs(found.astype(int) - there).mean() < 2


@pytest.mark.parametrize("antialias", [False, True])
def test_window_has_the_phase_of_the_whole(antialias):
    rng = np.random.default_rng(2)
    for _ in range(2000):
        source, resized = (int(v) for v in rng.integers(10, 3000, 2))
        count = int(rng.integers(1, min(resized, 512) + 1))
        first = int(rng.integers(resized - count + 1))
        cut = window(source, resized, first, count, antialias=antialias)
        assert cut.factor == source / resized
        assert abs(cut.start - (first - cut.skip) * cut.factor) <= min(1 / 16, cut.factor / 4)
        assert 0 <= cut.start < cut.end <= source
        reach = max(cut.factor, 1) if antialias else 1
        assert cut.start == 0 or (first + 0.5) * cut.factor - 0.5 - reach >= cut.start - 1
        assert cut.end == source or (first + count - 0.5) * cut.factor - 0.5 + reach <= cut.end


def test_most_of_a_picture_is_left_alone():
    """At twice the size a crop of 512 x 512 shows 256 x 256 pixels of a photograph."""
    rows = [window(683, 1366, int(first), 512) for first in np.random.default_rng(3).integers(0, 855, 200)]
    assert np.mean([cut.end - cut.start for cut in rows]) < 275


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture that says where its pixels were, and labels of which some crops have one class only."""
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.uint8)
    labels[:, : width // 4], labels[: height // 3] = 1, 2
    return np.stack([x * 2, y * 2, np.zeros_like(x)], -1).astype(np.uint8), labels


def features(image: np.ndarray, height: int, width: int) -> tuple[float, ...]:
    """Scale, place and flip of a crop, read off its pixels."""
    image = image[:height, :width].astype(float)
    x, y = image[height // 2, :, 0], image[:, width // 2, 1]
    scale = (height - 8) / max((y[-4] - y[4]) / 2, 1e-6)
    return scale, min(x[0], x[-1]) / 2, y[0] / 2, float(x[-1] < x[0])


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    both = np.sort(np.concatenate([a, b]))
    shares = [np.searchsorted(np.sort(v), both, side="right") / len(v) for v in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def test_distribution_is_mmsegmentations():
    """Scale, place and flip of 1,500 samples each; the class rule acts on both."""
    from mmcv.transforms import RandomFlip, RandomResize
    from mmseg.datasets.transforms import RandomCrop

    image, labels = coordinates(96, 120)
    steps = [
        RandomResize(scale=(400, 96), ratio_range=(0.5, 2.0), keep_ratio=True),
        RandomCrop((64, 64), cat_max_ratio=0.75),
        RandomFlip(prob=0.5),
    ]
    transform = TrainingTransform("keep_ratio", (64, 64), (400, 96))
    np.random.seed(0)
    ours, theirs = [], []
    for i in range(1500):
        sample = {"img": image, "gt_seg_map": labels, "seg_fields": ["gt_seg_map"]}
        for step in steps:
            sample = step(sample)
        theirs.append(features(sample["img"], *sample["img"].shape[:2]))
        made = transform(Decoded(image), labels, np.random.default_rng([0, i]))
        ours.append(features(made["image"], *made["content"][2:]))
    for a, b in zip(np.array(ours).T, np.array(theirs).T, strict=True):
        assert kolmogorov_smirnov(a, b) < 1.63 * np.sqrt(2 / 1500)  # 1 % of equal distributions are farther apart


@pytest.mark.parametrize("factor", [2, 4])
def test_reduced_decoding_is_nearly_what_smoothing_gives(factor, real_data, tmp_path):
    from deeplab_recipes.data.reading import open_photograph

    file = sorted((real_data("camvid") / "val").iterdir())[0]
    large = tmp_path / "large.jpg"
    Image.open(file).resize((960, 720)).save(large, quality=92)
    photograph, size = open_photograph(large), (720 // factor, 960 // factor)
    transform = TrainingTransform("square", size, size, scale_range=(1, 1), max_class_share=1, flip=0)
    reduced = TrainingTransform(**{**transform.__dict__, "reduced_decoding": True})
    labels = np.zeros((720, 960), np.uint8)
    images = [t(photograph, labels, np.random.default_rng(0))["image"].astype(int) for t in (transform, reduced)]
    assert not np.array_equal(*images)
    assert np.abs(images[0] - images[1]).mean() < 4


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_reduced_decoding_does_not_shift(factor, tiles):
    """The last pixel of a JPEG decoded at a half is half a pixel where the size is odd."""
    steps = np.abs(np.arange(factor * 128 + 1) % (32 * factor) - 16 * factor) * (15 / factor)  # slopes both ways
    pixels = np.repeat(steps[:, None], 3, axis=1).astype(np.uint8)[None].repeat(64 * factor + 1, axis=0)
    content = simplejpeg.encode_jpeg(pixels, quality=98, colorsubsampling="444")
    photograph = Tiled(tile(content), Path("x")) if tiles else Jpeg(content, Path("x"))
    size = 60, 120
    expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))[:, -40:]
    found = crop_image(photograph.reduced(factor), size, Box(0, 80, 60, 40), "square")
    edges = [slice(4, 12), slice(14, 22), slice(24, 32)]
    assert max(abs(float(found[:, e].mean()) - float(expected[:, e].mean())) for e in edges) < 1.5
