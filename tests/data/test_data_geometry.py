"""The host's half of both pipelines against the originals: torchvision for Composer's, mmcv for mmseg's."""

from math import ceil

import mmcv
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch.nn.functional import pad as pad_tensor

from deeplab_recipes.data.labels import decode_labels, shifted_encoding
from deeplab_recipes.data.pictures import Decoded
from deeplab_recipes.data.transforms import (
    MEAN_PIXEL,
    EvaluationTransform,
    TrainingTransform,
    draw_crop,
    draw_scale,
    is_varied,
    resized_size,
)

BILINEAR, NEAREST = TF.InterpolationMode.BILINEAR, TF.InterpolationMode.NEAREST
TABLE = shifted_encoding(150)


def decoded(stored: np.ndarray) -> np.ndarray:
    return decode_labels(stored, TABLE, name="x")


def composer(image, stored, *, base, crop, scale, corner, flipped) -> tuple[np.ndarray, np.ndarray]:
    """Composer's RandomResizePair, RandomCropPair, RandomHFlipPair and PadToSize, once all is drawn."""
    size = [int(base[0] * scale), int(base[1] * scale)]
    pictures = [TF.resize(Image.fromarray(image), size, BILINEAR)]
    pictures += [TF.resize(Image.fromarray(stored), size, NEAREST)]
    if size[0] > crop[0] or size[1] > crop[1]:
        window = (*corner, min(crop[0], size[0]), min(crop[1], size[1]))
        pictures = [TF.crop(picture, *window) for picture in pictures]
    if flipped:
        pictures = [TF.hflip(picture) for picture in pictures]
    free = [max(crop[1] - pictures[0].width, 0), max(crop[0] - pictures[0].height, 0)]
    padding = [free[0] // 2, free[1] // 2, ceil(free[0] / 2), ceil(free[1] / 2)]
    image = TF.pad(pictures[0], padding, fill=(123, 116, 103))
    return np.asarray(image), np.asarray(TF.pad(pictures[1], padding))


def mmsegmentation(image, labels, *, base, crop, scale, corner, flipped) -> tuple[np.ndarray, np.ndarray]:
    """mmcv's RandomResize and RandomFlip, mmseg's RandomCrop and final padding, once all is drawn."""
    target = int(base[0] * scale), int(base[1] * scale)
    image = mmcv.imrescale(image, target)
    labels = mmcv.imrescale(labels, target, interpolation="nearest")
    window = slice(corner[0], corner[0] + crop[0]), slice(corner[1], corner[1] + crop[1])
    image, labels = image[window], labels[window]
    if flipped:
        image, labels = mmcv.imflip(image), mmcv.imflip(labels)
    padding = (0, crop[1] - labels.shape[1], 0, crop[0] - labels.shape[0])

    def padded(plane: np.ndarray, value: int) -> np.ndarray:
        return pad_tensor(torch.tensor(plane.copy()), padding, value=value).numpy()

    planes = [padded(image[..., channel], MEAN_PIXEL[channel]) for channel in range(3)]
    return np.stack(planes, axis=-1), padded(labels, 255)


def drawn(draws) -> dict:
    return {"scale": draws.uniforms[0], "corner": draws.integer[-2:], "flipped": draws.randoms[0] < 0.5}


def assert_near(image: np.ndarray, expected: np.ndarray) -> None:
    """Labels are the original's; an image may be resized from 1/16 of a pixel beside it, and by other arithmetic."""
    difference = np.abs(image.astype(int) - expected)
    assert image.shape == expected.shape
    assert difference.mean() < 1
    assert difference.max() <= 12


@pytest.mark.parametrize(
    ("base", "crop"),
    [((64, 64), (64, 64)), ((65, 65), (64, 64)), ((48, 80), (50, 61)), ((90, 40), (64, 64))],
)
def test_square_equals_composer(draws, make_photograph, make_patches, base, crop):
    transform = TrainingTransform("square", crop, base)
    for seed in range(12):
        image, stored = make_photograph(seed, 53, 77), make_patches(seed, 53, 77)
        rng = draws(seed)
        sample = transform(Decoded(image), decoded(stored), rng)
        expected, expected_stored = composer(image, stored, base=base, crop=crop, **drawn(rng))
        assert_near(sample["image"], expected)
        assert np.array_equal(sample["label"], decoded(expected_stored))


@pytest.mark.parametrize(
    ("base", "crop"),
    [((200, 64), (64, 64)), ((64, 200), (50, 71)), ((80, 80), (64, 64)), ((77, 53), (40, 90))],
)
def test_keep_ratio_equals_mmsegmentation(draws, make_photograph, make_patches, base, crop):
    transform = TrainingTransform("keep_ratio", crop, base)
    for seed in range(12):
        height, width = (53, 77) if seed % 2 else (77, 53)
        image, stored = make_photograph(seed, height, width), make_patches(seed, height, width)
        rng = draws(seed)
        sample = transform(Decoded(image), decoded(stored), rng)
        expected, expected_labels = mmsegmentation(image, decoded(stored), base=base, crop=crop, **drawn(rng))
        assert_near(sample["image"], expected)
        assert np.array_equal(sample["label"], expected_labels)


def test_keep_ratio_sizes_equal_mmcv_rescale_size():
    rng = np.random.default_rng(0)
    for _ in range(500):
        height, width = (int(v) for v in rng.integers(40, 3000, 2))
        scale = rng.uniform(0.5, 2)
        target = int(2048 * scale), int(512 * scale)
        expected = mmcv.rescale_size((width, height), target)
        assert resized_size("keep_ratio", (height, width), (2048, 512), scale) == expected[::-1]


@pytest.mark.parametrize("pipeline", ["square", "keep_ratio"])
@pytest.mark.parametrize("shape", [(1, 900), (900, 1), (3, 2)])
def test_extreme_shapes_pass(pipeline, shape):
    """mmcv itself fails on these: the short side would have no pixel."""
    transform = TrainingTransform(pipeline, (33, 33), (60, 40), scale_range=(0.01, 0.02))
    sample = transform(Decoded(np.zeros((*shape, 3), np.uint8)), np.zeros(shape, np.uint8), np.random.default_rng(0))
    assert sample["image"].shape == (33, 33, 3)
    assert sample["content"][2:].min() >= 1


@pytest.mark.parametrize(
    ("labels", "varied"),
    [
        ([0, 0, 0, 1], False),  # exactly the share
        ([0, 0, 1, 1], True),
        ([0, 0, 0, 0], False),
        ([255, 255, 255, 255], False),
        ([255, 255, 255, 1], False),  # one class
        ([255, 255, 0, 1], True),  # ignored pixels do not count
        ([0, 1, 2, 253], True),
    ],
)
def test_varied_crops(labels, varied):
    assert is_varied(np.array([labels], np.uint8), 0.75) == varied


def scripted(corners):
    """A generator whose `integers` gives prepared corners one number at a time."""
    numbers = [number for corner in corners for number in corner]

    class Script:
        left = numbers

        def integers(self, high):
            assert 0 <= numbers[0] < high
            return numbers.pop(0)

    return Script()


def crop_of(labels: np.ndarray, crop: tuple[int, int], share: float, rng) -> tuple:
    def look(box) -> np.ndarray:
        return labels[box.top : box.top + box.height, box.left : box.left + box.width]

    return draw_crop(labels.shape, crop, share, rng, look)


def test_crop_is_redrawn_as_in_mmsegmentation(monkeypatch):
    """Same positions on offer, same choice, and as many of them taken, from the first only to all 11."""
    from mmseg.datasets.transforms import RandomCrop

    taken = set()
    for seed in range(120):
        rng = np.random.default_rng(seed)
        labels = np.zeros((30, 40), np.uint8)
        labels[: rng.integers(0, 20), : rng.integers(0, 30)] = rng.choice([1, 255])
        corners = [(int(rng.integers(15)), int(rng.integers(21))) for _ in range(11)]
        ours = scripted(corners)
        (top, left, height, width), _ = crop_of(labels, (16, 20), 0.75, ours)
        numbers = [number for corner in corners for number in corner]
        monkeypatch.setattr(np.random, "randint", lambda low, high, numbers=numbers: numbers.pop(0))
        original = RandomCrop((16, 20), cat_max_ratio=0.75)
        bounds = original.crop_bbox({"img": np.zeros((30, 40, 3), np.uint8), "gt_seg_map": labels})
        assert (top, top + height, left, left + width) == bounds
        assert len(ours.left) == len(numbers)
        taken.add(11 - len(numbers) // 2)
    assert {1, 2, 11} <= taken


def test_eleventh_draw_stands():
    corners = [(0, i) for i in range(11)]
    assert crop_of(np.zeros((4, 20), np.uint8), (4, 4), 0.75, scripted(corners))[0] == (0, 10, 4, 4)


def test_share_of_1_switches_the_rule_off():
    assert crop_of(np.zeros((4, 20), np.uint8), (4, 4), 1.0, scripted([(0, 5)]))[0] == (0, 5, 4, 4)


def test_crop_positions_are_uniform():
    rng = np.random.default_rng(0)
    counts = np.zeros((3, 5))
    for _ in range(6000):
        (top, left, _, _), _ = crop_of(np.zeros((12, 14), np.uint8), (10, 10), 1.0, rng)
        counts[top, left] += 1
    # 400 expected in each cell, standard deviation 19.3
    assert np.abs(counts - 400).max() < 4 * 19.3


def test_scale_and_flip_statistics(draws):
    transform = TrainingTransform("square", (33, 33), (33, 33))
    rng, sizes, flips = draws(0), [], 0
    labels = np.zeros((20, 20), np.uint8)
    labels[:, :10] = 1
    for _ in range(3000):
        sample = transform(Decoded(np.zeros((20, 20, 3), np.uint8)), labels, rng)
        size = int(33 * rng.uniforms[-1])
        assert sample["content"].tolist()[2:] == [min(size, 33)] * 2
        sizes.append(rng.uniforms[-1])
    flips = np.mean(np.array(rng.randoms) < 0.5)
    deciles = np.quantile(sizes, np.linspace(0, 1, 11))
    assert np.allclose(deciles, np.linspace(0.5, 2, 11), atol=0.05)
    assert abs(flips - 0.5) < 0.03


def test_flips_half_of_the_samples():
    labels = np.repeat(np.arange(40, dtype=np.uint8)[None], 33, axis=0)
    image = np.repeat(labels[:, :, None], 3, axis=2)
    rng = np.random.default_rng(0)
    for probability, low, high in ((0.0, 0, 0), (0.5, 0.44, 0.56), (1.0, 1, 1)):
        transform = TrainingTransform("square", (33, 40), (33, 40), scale_range=(1, 1), flip=probability)
        samples = [transform(Decoded(image), labels, rng) for _ in range(600)]
        flipped = [sample["label"][0, 0] == 39 for sample in samples]
        assert low <= np.mean(flipped) <= high
        assert all(np.array_equal(sample["image"][..., 0], sample["label"]) for sample in samples)


@pytest.mark.parametrize("pipeline", ["square", "keep_ratio"])
def test_padding_is_the_mean_pixel_and_ignored(make_photograph, make_patches, pipeline):
    transform = TrainingTransform(pipeline, (64, 70), (64, 70), scale_range=(0.5, 0.9))
    for seed in range(5):
        image, labels = make_photograph(seed, 40, 50), make_patches(seed, 40, 50)
        sample = transform(Decoded(image), labels, np.random.default_rng(seed))
        top, left, height, width = sample["content"]
        padding = np.ones((64, 70), bool)
        padding[top : top + height, left : left + width] = False
        assert padding.any()
        assert (sample["image"][padding] == MEAN_PIXEL).all()
        assert (sample["label"][padding] == 255).all()
        assert (sample["label"][~padding] < 6).all()
        assert (top, left) == (((64 - height) // 2, (70 - width) // 2) if pipeline == "square" else (0, 0))


def test_square_evaluation_squashes_labels_too(make_photograph, make_patches):
    image, labels = make_photograph(0, 53, 77), make_patches(0, 53, 77)
    sample = EvaluationTransform("square", (64, 48))(image, labels)
    assert np.array_equal(sample["image"], np.asarray(TF.resize(Image.fromarray(image), [64, 48], BILINEAR)))
    assert np.array_equal(sample["label"], np.asarray(TF.resize(Image.fromarray(labels), [64, 48], NEAREST)))


@pytest.mark.parametrize("shape", [(53, 77), (77, 53), (50, 290)])
def test_keep_ratio_evaluation_leaves_labels_alone(make_photograph, make_patches, shape):
    image, labels = make_photograph(0, *shape), make_patches(0, *shape)
    sample = EvaluationTransform("keep_ratio", (200, 64))(image, labels)
    assert np.array_equal(sample["image"], mmcv.imrescale(image, (200, 64)))
    assert np.array_equal(sample["label"], labels)


@pytest.mark.parametrize(
    ("source", "target"), [((10, 200), (33, 64)), ((200, 10), (64, 33)), ((96, 128), (48, 64)), ((20, 30), (43, 64))]
)
def test_no_image_is_too_flat_to_be_evaluated(source, target):
    """(64, 48) keeps the aspect unless a side would be smaller than what the models take."""
    image, labels = np.zeros((*source, 3), np.uint8), np.zeros(source, np.uint8)
    sample = EvaluationTransform("keep_ratio", (64, 48))(image, labels)
    assert sample["image"].shape[:2] == target
    assert sample["label"].shape == source


def test_scales_in_steps_are_tensorflows_and_equally_likely():
    rng = np.random.default_rng(0)
    drawn = [draw_scale((0.5, 2.0), 0.25, rng) for _ in range(7000)]
    scales, counts = np.unique(drawn, return_counts=True)
    assert scales.tolist() == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert counts.min() > 900


def test_without_a_step_the_draws_are_what_they_were():
    assert draw_scale((0.5, 2.0), 0.0, np.random.default_rng(3)) == np.random.default_rng(3).uniform(0.5, 2.0)


@pytest.mark.parametrize("pipeline", ["square", "keep_ratio"])
def test_without_a_base_size_an_image_is_scaled_from_its_own(pipeline, make_photograph, make_patches):
    assert resized_size(pipeline, (375, 500), None, 0.75) == (281, 375)
    assert resized_size(pipeline, (375, 500), None) == (375, 500)
    transform = TrainingTransform(pipeline, (513, 513), None, scale_range=(1, 1), flip=0, max_class_share=1)
    image, labels = make_photograph(0, 375, 500), make_patches(0, 375, 500)
    sample = transform(Decoded(image), labels, np.random.default_rng(0))
    top, left, height, width = sample["content"]
    assert (height, width) == (375, 500)
    assert np.array_equal(sample["image"][top : top + height, left : left + width], image)
    assert np.array_equal(sample["label"][top : top + height, left : left + width], labels)
