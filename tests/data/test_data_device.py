"""The device's half against the originals: torchvision on Pillow images, and mmsegmentation's own class.

The originals store 8 bits after every step, here nothing is rounded. One step of theirs cuts off up to 1
level. A hue step goes through 8-bit HSV: Pillow cuts the hue to 1/256 of the circle, OpenCV rounds it to
1/180. As a sixth of the circle is up to 255 levels, strong colours move by 6 levels (1/256) and 4.3 (half
of 1/180), and the rounding of the saturation adds to that. The tests hold the largest difference to such
bounds, the mean one to much less.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image

from deeplab_recipes.data.colours import COLOUR_RANGES, NEUTRAL_COLOUR, change_colours, draw_colour
from deeplab_recipes.data.device import (
    blend_colours,
    content_mask,
    luminance,
    normalize,
    prepare,
    shift_colours,
)
from deeplab_recipes.data.transforms import MEAN, MEAN_PIXEL, STD

HEIGHT, WIDTH = 40, 56
SHAPE = (HEIGHT, WIDTH)
EVERYWHERE = torch.ones(1, 1, HEIGHT, WIDTH, dtype=torch.bool)


@pytest.fixture(params=["photograph", "noise"])
def image(request, make_photograph) -> np.ndarray:
    """(H, W, 3) uint8; noise has every colour, the strongest included."""
    if request.param == "photograph":
        return make_photograph(1, *SHAPE)
    return np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()


def parameters(brightness, before=1.0, saturation=1.0, hue=0.0, after=1.0) -> torch.Tensor:
    return torch.tensor([[brightness, before, saturation, hue, after]], dtype=torch.float32)


def blended(image: np.ndarray, *values) -> np.ndarray:
    return blend_colours(tensor(image), parameters(*values), EVERYWHERE)[0].permute(1, 2, 0).numpy()


def shifted(image: np.ndarray, *values) -> np.ndarray:
    return shift_colours(tensor(image), parameters(*values))[0].permute(1, 2, 0).numpy()


def assert_close(ours: np.ndarray, original: object, *, largest: float, mean: float) -> None:
    difference = np.abs(ours - np.asarray(original, np.float32))
    assert difference.max() <= largest
    assert difference.mean() <= mean


@pytest.mark.parametrize("factor", [1 - 32 / 255, 0.97, 1.05, 1 + 32 / 255])
def test_blended_brightness(image, factor):
    original = TF.adjust_brightness(Image.fromarray(image), factor)
    assert_close(blended(image, factor), original, largest=1, mean=0.6)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.2, 1.5])
def test_blended_contrast_before_and_after(image, factor):
    original = TF.adjust_contrast(Image.fromarray(image), factor)
    # Pillow also rounds the mean grey: half a level more, times |1 - factor|
    assert_close(blended(image, 1, factor), original, largest=1.25, mean=0.75)
    assert_close(blended(image, 1, 1, 1, 0, factor), original, largest=1.25, mean=0.75)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.2, 1.5])
def test_blended_saturation(image, factor):
    original = TF.adjust_saturation(Image.fromarray(image), factor)
    assert_close(blended(image, 1, 1, factor), original, largest=1.25, mean=0.6)


@pytest.mark.parametrize("steps", [-18, -7, -1, 1, 7, 18])
def test_blended_hue_in_pillows_own_steps(image, steps):
    """torchvision turns by whole 256ths of the circle, cut off towards 0."""
    factor = (steps + np.sign(steps) * 0.01) / 255
    original = TF.adjust_hue(Image.fromarray(image), factor)
    assert_close(blended(image, 1, 1, 1, steps / 256), original, largest=10, mean=1)


@pytest.mark.parametrize("turn", [-18 / 255, -0.033, 0.05, 18 / 255])
def test_blended_hue_of_any_fraction(image, turn):
    """As before, and up to 1/256 of the circle more where torchvision cuts off."""
    original = TF.adjust_hue(Image.fromarray(image), turn)
    assert_close(blended(image, 1, 1, 1, turn), original, largest=16, mean=2)


@pytest.mark.parametrize("contrast_first", [True, False])
def test_blended_chain_in_composers_order(make_photograph, contrast_first):
    """Errors of early steps grow with the factors of later ones."""
    for seed in range(8):
        rng, image = np.random.default_rng(seed), make_photograph(seed, *SHAPE)
        brightness, saturation = rng.uniform(1 - 32 / 255, 1 + 32 / 255), rng.uniform(0.5, 1.5)
        steps, contrast = int(rng.integers(1, 19)), rng.uniform(0.5, 1.5)
        picture = TF.adjust_brightness(Image.fromarray(image), brightness)
        if contrast_first:
            picture = TF.adjust_contrast(picture, contrast)
        picture = TF.adjust_hue(TF.adjust_saturation(picture, saturation), (steps + 0.01) / 255)
        if not contrast_first:
            picture = TF.adjust_contrast(picture, contrast)
        before, after = (contrast, 1) if contrast_first else (1, contrast)
        ours = blended(image, brightness, before, saturation, steps / 256, after)
        assert_close(ours, picture, largest=16, mean=2.5)


class Script:
    """Stands in for numpy.random in mmsegmentation: says yes to every step and gives prepared numbers.

    `mode` is the answer to the one coin of `transform` that decides the place of the contrast.
    """

    def __init__(self, uniforms=(), steps=0, coins=()):
        self.uniforms, self.steps, self.coins = list(uniforms), steps, list(coins)
        self.asked = []

    def randint(self, low, high=None):
        self.asked.append((low, high))
        if high is None:
            return self.coins.pop(0) if self.coins else 1
        return self.steps

    def uniform(self, low, high):
        self.asked.append((low, high))
        return self.uniforms.pop(0)


@pytest.fixture
def mmseg_distort(monkeypatch):
    """Run one method of mmseg's PhotoMetricDistortion on an RGB image with given draws."""
    from mmseg.datasets.transforms import transforms

    def run(method: str, image: np.ndarray, **draws) -> np.ndarray:
        monkeypatch.setattr(transforms, "random", Script(**draws))
        argument = image[..., ::-1].copy()
        distort = getattr(transforms.PhotoMetricDistortion(), method)
        result = distort({"img": argument})["img"] if method == "transform" else distort(argument)
        return result[..., ::-1]

    return run


@pytest.mark.parametrize("offset", [-32, -10.3, 0.4, 31.9])
def test_shifted_brightness(image, mmseg_distort, offset):
    original = mmseg_distort("brightness", image, uniforms=[offset])
    assert_close(shifted(image, offset), original, largest=1, mean=0.9)


@pytest.mark.parametrize("factor", [0.5, 0.83, 1.17, 1.5])
def test_shifted_contrast_before_and_after(image, mmseg_distort, factor):
    original = mmseg_distort("contrast", image, uniforms=[factor])
    assert_close(shifted(image, 0, factor), original, largest=1, mean=0.6)
    assert_close(shifted(image, 0, 1, 1, 0, factor), original, largest=1, mean=0.6)


@pytest.mark.parametrize("factor", [0.5, 0.83, 1.17, 1.5])
def test_shifted_saturation(image, mmseg_distort, factor):
    original = mmseg_distort("saturation", image, uniforms=[factor])
    assert_close(shifted(image, 0, 1, factor), original, largest=6, mean=0.8)


@pytest.mark.parametrize("steps", [-18, -1, 0, 9, 17])
def test_shifted_hue(image, mmseg_distort, steps):
    original = mmseg_distort("hue", image, steps=steps)
    assert_close(shifted(image, 0, 1, 1, steps / 180), original, largest=6, mean=0.8)


def chains(make_photograph, mmseg_distort, *, contrast_first: bool) -> Iterator[tuple[np.ndarray, np.ndarray, list]]:
    """Give images, what mmseg's whole chain makes of them, and its draws as `draw_colour` gives them."""
    for seed in range(8):
        rng, image = np.random.default_rng(seed), make_photograph(seed, *SHAPE)
        brightness, contrast, saturation = rng.uniform(-32, 32), rng.uniform(0.5, 1.5), rng.uniform(0.5, 1.5)
        steps = int(rng.integers(-18, 18))
        order = [brightness, contrast, saturation] if contrast_first else [brightness, saturation, contrast]
        # the coins: brightness yes, then the place of the contrast, then yes to all
        coins = [1, int(contrast_first)]
        original = mmseg_distort("transform", image, uniforms=order, steps=steps, coins=coins)
        before, after = (contrast, 1) if contrast_first else (1, contrast)
        yield image, original, [brightness, before, saturation, steps / 180, after]


@pytest.mark.parametrize("contrast_first", [True, False])
def test_shifted_chain_in_mmsegs_order(make_photograph, mmseg_distort, contrast_first):
    for image, original, colour in chains(make_photograph, mmseg_distort, contrast_first=contrast_first):
        assert_close(shifted(image, *colour), original, largest=14, mean=2.5)


def test_keep_ratio_ranges_are_those_that_mmseg_asks_for(monkeypatch):
    from mmseg.datasets.transforms import transforms

    script = Script(uniforms=[0, 1, 1])
    monkeypatch.setattr(transforms, "random", script)
    transforms.PhotoMetricDistortion().transform({"img": np.zeros((2, 2, 3), np.uint8)})
    asked = [question for question in script.asked if question[1] is not None]
    ranges = COLOUR_RANGES["keep_ratio"]
    assert asked == [
        (-ranges.brightness, ranges.brightness),
        (1 - ranges.contrast, 1 + ranges.contrast),
        (1 - ranges.saturation, 1 + ranges.saturation),
        (-18, 18),
    ]
    assert ranges.hue * 180 == 18


def drawn(kind: str, count: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([draw_colour(kind, rng) for _ in range(count)]).astype(np.float64)


@pytest.mark.parametrize("kind", ["square", "keep_ratio"])
def test_each_change_comes_half_the_time(kind):
    changed = drawn(kind) != NEUTRAL_COLOUR[kind]
    assert not (changed[:, 1] & changed[:, 4]).any()  # contrast first or last
    brightness, first, saturation, hue, last = changed.mean(axis=0)
    # of 18 hue steps up or down mmseg's range holds the 0 once: 1/36 of the hue changes change nothing
    hue *= 36 / 35 if kind == "keep_ratio" else 1
    assert np.allclose([brightness, first + last, saturation, hue], 0.5, atol=0.03)
    assert np.allclose([first, last], 0.25, atol=0.03)
    contrast = changed[:, 1] | changed[:, 4]
    together = np.corrcoef(np.stack([changed[:, 0], contrast, changed[:, 2], changed[:, 3]]))
    assert np.abs(together - np.eye(4)).max() < 0.06


@pytest.mark.parametrize(
    ("kind", "column", "low", "high"),
    [
        ("square", 0, 1 - 32 / 255, 1 + 32 / 255),
        ("square", 1, 0.5, 1.5),
        ("square", 2, 0.5, 1.5),
        ("square", 3, -18 / 255, 18 / 255),
        ("square", 4, 0.5, 1.5),
        ("keep_ratio", 0, -32, 32),
        ("keep_ratio", 1, 0.5, 1.5),
        ("keep_ratio", 2, 0.5, 1.5),
        ("keep_ratio", 4, 0.5, 1.5),
    ],
)
def test_draws_are_uniform_in_the_originals_ranges(kind, column, low, high):
    values = drawn(kind)[:, column]
    values = values[values != NEUTRAL_COLOUR[kind][column]]
    place = (values - low) / (high - low)
    assert place.min() >= -1e-6
    assert place.max() <= 1 + 1e-6
    assert np.allclose(np.quantile(place, np.linspace(0, 1, 11)), np.linspace(0, 1, 11), atol=0.05)


def test_keep_ratio_hue_steps_are_minus_18_to_17():
    """mmseg's randint(-18, 18) leaves the upper end out."""
    steps = drawn("keep_ratio")[:, 3] * 180
    assert np.allclose(steps, steps.round(), atol=1e-5)
    values, counts = np.unique(steps.round().astype(int), return_counts=True)
    assert values.tolist() == list(range(-18, 18))
    counts = np.delete(counts, 18)  # 0 is also "not applied"
    assert np.abs(counts - 4000 / 72).max() < 4 * np.sqrt(4000 / 72)


def test_none_draws_nothing():
    assert np.array_equal(drawn("none", 5), np.tile(NEUTRAL_COLOUR["square"], (5, 1)))


def test_neutral_draws_change_nothing(image):
    assert np.array_equal(blended(image, *NEUTRAL_COLOUR["square"].tolist()), image)
    assert np.array_equal(shifted(image, *NEUTRAL_COLOUR["keep_ratio"].tolist()), image)


@pytest.mark.parametrize("value", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0)])
def test_greys_and_extremes_stay_in_range(value):
    flat = np.full((*SHAPE, 3), value, np.uint8)
    strong = [1.12, 1.5, 1.5, 0.07, 1.0]
    for result in (blended(flat, *strong), shifted(flat, 32, *strong[1:])):
        assert np.isfinite(result).all()
        assert (result.min(), result.max()) >= (0, 0)
        assert result.max() <= 255
        if len(set(value)) == 1:
            assert np.ptp(result) < 1e-3  # grey stays grey


def test_luminance_is_pillows_grey(image):
    grey = luminance(tensor(image))[0, 0].numpy()
    assert_close(grey, Image.fromarray(image).convert("L"), largest=0.51, mean=0.3)


def test_normalize_equals_torchvision(image):
    expected = TF.normalize(tensor(image) / 255, [m / 255 for m in MEAN], [s / 255 for s in STD])
    assert torch.allclose(normalize(tensor(image).byte()), expected, atol=1e-5)
    assert torch.allclose(normalize(tensor(image)), expected, atol=1e-5)
    assert np.allclose(np.array(MEAN) / 255, (0.485, 0.456, 0.406))
    assert np.allclose(np.array(STD) / 255, (0.229, 0.224, 0.225))
    other = normalize(tensor(image), mean=(127.5,) * 3, std=(127.5,) * 3)
    assert torch.allclose(other, tensor(image) * 2 / 255 - 1, atol=1e-6)


def padded_batch(make_photograph, kind: str) -> dict:
    """Four images, each with padding of its own, and strong colour changes of every sort."""
    windows = [[0, 0, HEIGHT, WIDTH], [3, 5, 20, 30], [0, 0, 7, WIDTH], [10, 0, 30, 50]]
    content = torch.tensor(windows, dtype=torch.int32)
    images = torch.empty(4, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    images[:] = torch.tensor(MEAN_PIXEL, dtype=torch.uint8)
    for i, (top, left, tall, wide) in enumerate(content.tolist()):
        images[i, top : top + tall, left : left + wide] = torch.from_numpy(make_photograph(i, tall, wide))
    strong = torch.tensor([[1.1, 1.4, 1.3, 0.05, 1], [0.9, 1, 0.5, -0.07, 1.5], [1, 0.5, 1, 0, 1], [1, 1, 1, 0.07, 1]])
    if kind == "keep_ratio":
        strong[:, 0] = torch.tensor([30, -20, 10, 0])
    return {"images": images.permute(0, 3, 1, 2), "content": content, "colour": strong, "photometric": kind}


KINDS = pytest.mark.parametrize("kind", ["square", "keep_ratio", "none"])


@KINDS
def test_padding_becomes_exactly_zero(make_photograph, kind):
    batch = padded_batch(make_photograph, kind)
    mask = content_mask(batch["content"], HEIGHT, WIDTH)
    result = prepare(**batch)
    assert mask.shape == (4, 1, HEIGHT, WIDTH)
    assert mask.flatten(1).sum(1).tolist() == [HEIGHT * WIDTH, 600, 7 * WIDTH, 1500]
    assert (result.masked_select(~mask) == 0).all()
    assert result.masked_select(mask).abs().mean() > 0.1


@KINDS
def test_padding_does_not_enter_the_changes(make_photograph, kind):
    """An image in padding comes out as it does alone: its mean grey is that of its own pixels."""
    batch = padded_batch(make_photograph, kind)
    result = prepare(**batch)
    for i, (top, left, tall, wide) in enumerate(batch["content"].tolist()):
        window = slice(top, top + tall), slice(left, left + wide)
        alone = prepare(
            batch["images"][i : i + 1, :, *window],
            content=torch.tensor([[0, 0, tall, wide]]),
            colour=batch["colour"][i : i + 1],
            photometric=kind,
        )
        assert torch.allclose(result[i : i + 1, :, *window], alone, atol=1e-4)


@KINDS
def test_batched_equals_image_by_image(make_photograph, kind):
    batch = padded_batch(make_photograph, kind)
    single = [
        prepare(
            batch["images"][i : i + 1],
            content=batch["content"][i : i + 1],
            colour=batch["colour"][i : i + 1],
            photometric=kind,
        )
        for i in range(4)
    ]
    assert torch.allclose(prepare(**batch), torch.cat(single), atol=1e-5)


@KINDS
def test_prepare_keeps_channels_last_and_its_input(make_photograph, kind):
    batch = padded_batch(make_photograph, kind)
    before = batch["images"].clone()
    result = prepare(**batch)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch["images"], before)


@KINDS
def test_prepare_normalises_with_the_given_numbers(make_photograph, kind):
    batch = padded_batch(make_photograph, kind)
    batch["colour"] = torch.from_numpy(np.tile(NEUTRAL_COLOUR["square" if kind == "none" else kind], (4, 1)))
    mean, std = (127.5, 100.0, 50.0), (127.5, 10.0, 20.0)
    mask = content_mask(batch["content"], HEIGHT, WIDTH)
    expected = normalize(batch["images"], mean=mean, std=std) * mask
    assert torch.equal(prepare(**batch, mean=mean, std=std), expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@KINDS
def test_cuda_equals_cpu(make_photograph, kind):
    batch = padded_batch(make_photograph, kind)
    moved = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    result = prepare(**moved)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(result.cpu(), prepare(**batch), atol=1e-3)


# The same changes in the workers, on whole levels


@pytest.mark.parametrize("kind", ["square", "keep_ratio"])
def test_workers_change_colours_as_the_device_does(make_photograph, kind):
    chain = blended if kind == "square" else shifted
    rng = np.random.default_rng(0)
    for seed in range(20):
        image, colour = make_photograph(seed, *SHAPE), draw_colour(kind, rng)
        ours = change_colours(image, colour, kind)
        assert ours.dtype == np.uint8
        assert_close(ours.astype(np.float64), chain(image, *colour.tolist()), largest=16, mean=2.5)


@pytest.mark.parametrize("kind", ["square", "keep_ratio", "none"])
def test_workers_leave_neutral_draws_alone(make_photograph, kind):
    image = make_photograph(0, *SHAPE)
    neutral = NEUTRAL_COLOUR["square" if kind == "none" else kind]
    assert np.array_equal(change_colours(image, neutral, kind), image)


@pytest.mark.parametrize("contrast_first", [True, False])
def test_workers_chain_is_mmsegs(make_photograph, mmseg_distort, contrast_first):
    """To within what OpenCV's HSV of whole numbers loses: both go through it."""
    for image, original, colour in chains(make_photograph, mmseg_distort, contrast_first=contrast_first):
        ours = change_colours(image, np.array(colour, np.float32), "keep_ratio")
        assert_close(ours.astype(np.float64), original, largest=14, mean=2)
