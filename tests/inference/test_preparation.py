import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from deeplab_recipes.inference import Predictor
from deeplab_recipes.inference.preparation import Padded, _nearest, fitting, preparation, size_in_range

CPU = torch.device("cpu")


def card(crop: tuple[int, int], **other) -> dict:
    sizes = {"protocol": "padded", "evaluate_sizes": {"padded": list(crop)}, "mean": [127.5] * 3, "std": [127.5] * 3}
    return {"classes": ["a", "b"], "palette": [[0, 0, 0], [255, 0, 0]], **sizes, **other}


def photograph(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Brightness(nn.Module):
    """Two classes: dark and light."""

    def forward(self, images: Tensor) -> Tensor:
        light = images.mean(1, keepdim=True)
        return torch.cat([-light, light], dim=1)


def test_an_image_that_fits_is_padded_right_and_below_with_the_mean_pixel():
    image = photograph(3, 4)
    found = Padded(card((5, 6))).input(image, CPU)
    assert found.shape == (1, 3, 5, 6)
    # TensorFlow's arithmetic: x * 2 / 255 - 1, padding 127.5.
    expected = np.full((5, 6, 3), 127.5, np.float32)
    expected[:3, :4] = image
    expected = expected * np.float32(2 / 255) - 1
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), expected, atol=2e-7)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((513, 513), (513, 513)), ((360, 480), (360, 480)), ((600, 800), (384, 513)), ((1025, 2), (513, 1)),
     ((1, 2000), (1, 513)), ((514, 513), (513, 512))],
)  # fmt: skip
def test_a_larger_image_is_shrunk_until_it_fits(size, expected):
    assert fitting(size, (513, 513)) == expected


def test_shrinking_is_pillow_s():
    image = photograph(40, 60)
    found = Padded(card((21, 21))).input(image, CPU)
    expected = np.asarray(Image.fromarray(image).resize((21, 14), Image.Resampling.LANCZOS)).astype(np.float32)
    np.testing.assert_allclose(found[0, :, :14].permute(1, 2, 0).numpy(), expected / 127.5 - 1, atol=2e-7)
    assert not found[0, :, 14:].any()


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [  # research/deeplab's resize_to_range, run with TensorFlow 2.21
        ((770, 584), (513, 513, 16), (513, 401)),
        ((474, 264), (513, 513, 16), (513, 289)),
        ((525, 381), (300, 257, 16), (257, 193)),
        ((897, 202), (300, 257, 16), (257, 65)),
        ((595, 329), (300, 500, None), (500, 276)),
        ((226, 404), (300, 500, None), (279, 500)),
        ((576, 778), (300, None, None), (300, 405)),
        ((896, 245), (300, None, None), (1097, 300)),
        ((468, 189), (480, 1025, 32), (1025, 417)),
        ((252, 867), (480, 1025, 32), (321, 1025)),
    ],
)
def test_sizes_in_a_range_are_tensorflow_s(size, limits, expected):
    smallest, largest, factor = limits
    assert size_in_range(size, min=smallest, max=largest, factor=factor) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [  # tf.image.resize_images(range(before), [after, 1], NEAREST_NEIGHBOR, align_corners=True), TensorFlow 2.21
        (5, 8, [0, 1, 1, 2, 2, 3, 3, 4]),
        (8, 5, [0, 2, 4, 5, 7]),
        (7, 1, [0]),
        (1, 6, [0, 0, 0, 0, 0, 0]),
        (4, 7, [0, 1, 1, 2, 2, 3, 3]),
        (3, 9, [0, 0, 1, 1, 1, 1, 2, 2, 2]),
    ],
)
def test_nearest_labels_are_tensorflow_s(before, after, expected):
    labels = torch.arange(before).view(1, before, 1).expand(1, before, 2)
    found = _nearest(labels, (after, 2))
    assert found[0, :, 0].tolist() == expected
    assert torch.equal(found, _nearest(labels.mT, (2, after)).mT)


@pytest.mark.parametrize("size", [(20, 30), (21, 17), (41, 67), (1, 90)])
def test_logits_and_labels_have_the_size_of_the_image(size):
    predictor = Predictor(Brightness(), card((33, 41)))
    image = photograph(*size)
    logits, labels = predictor.logits(image), predictor(image)
    assert logits.shape == (2, *size)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, logits.argmax(0).numpy())
    if size[0] <= 33 and size[1] <= 41:  # nothing is resized: every pixel for itself
        np.testing.assert_array_equal(labels, image.mean(2) > 127.5)


def test_a_graph_that_resizes_takes_labels_back_as_the_nearest():
    image = photograph(40, 60)
    limits = {"min": 30, "max": 33, "factor": 8}
    predictor = Predictor(Brightness(), card((33, 33), resize_range=limits))
    inner = size_in_range((40, 60), **limits)
    assert inner == (25, 33)
    small = predictor.preparation.input(image, CPU)
    assert small.shape == (1, 3, 33, 33)
    assert not small[0, :, 25:].any()
    # Corners are aligned: the four corner pixels stay as they are.
    corners = torch.from_numpy(image[[0, 0, -1, -1], [0, -1, 0, -1]]).float().T / 127.5 - 1
    torch.testing.assert_close(small[0, :, [0, 0, 24, 24], [0, 32, 0, 32]], corners, atol=1e-5, rtol=0)
    labels = predictor(image)
    assert labels.shape == (40, 60)
    assert predictor.logits(image).shape == (2, 40, 60)
    np.testing.assert_array_equal(labels, _nearest(Brightness()(small[:, :, :25]).argmax(1), (40, 60))[0].numpy())


def test_an_image_that_the_range_leaves_too_large_is_refused():
    predictor = Predictor(Brightness(), card((33, 33), resize_range={"min": 33}))
    with pytest.raises(ValueError, match="an image of 40 x 80 pixels becomes 33 x 66, which does not fit into 33 x 33"):
        predictor(photograph(40, 80))


def test_the_card_names_the_preparation():
    assert isinstance(preparation(card((33, 33))), Padded)
    square = {**card((33, 33)), "protocol": "square", "evaluate_sizes": {"square": [36, 40]}}
    assert preparation(square).input(photograph(40, 40), CPU).shape == (1, 3, 36, 40)
