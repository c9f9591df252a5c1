from itertools import pairwise
from pathlib import PurePath

import numpy as np
import pytest
from PIL import Image, ImageDraw

from deeplab_recipes.drawing import font
from deeplab_recipes.evaluation.pictures import IGNORE_COLOUR, LINE, MARGIN, colourise, comparison, picture_names, stack

IGNORE = 255
CLASSES = ["road", "a rather long name, with its synonyms and more of them", "sky", "tree"]
PALETTE = [(128, 64, 128), (220, 20, 60), (70, 130, 180), (107, 142, 35)]


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, truth (road left of sky, first row ignored) and prediction (road, a pixel of another)."""
    image = np.arange(height * width * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3)
    truth = np.zeros((height, width), np.uint8)
    truth[:, width // 2 :] = 2
    truth[0] = IGNORE
    prediction = np.zeros((height, width), np.uint8)
    prediction[-1, -1] = 1
    return image, truth, prediction


def drawn(height: int, width: int, **options: object) -> Image.Image:
    return comparison(*scene(height, width), classes=CLASSES, palette=PALETTE, **options)


def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[float, float], int]]:
    """Note each text, its place and the width of what it is drawn on."""
    texts = []
    real = ImageDraw.ImageDraw.text

    def note(self, place, text, *args, **options):
        texts.append((text, place, self.im.size[0]))
        return real(self, place, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    return texts


def test_colourise():
    coloured = colourise(np.array([[0, 3, IGNORE, 77]], np.uint8), PALETTE)
    assert coloured.dtype == np.uint8
    assert coloured.tolist() == [[list(PALETTE[0]), list(PALETTE[3]), list(IGNORE_COLOUR), list(IGNORE_COLOUR)]]


@pytest.mark.parametrize(("height", "width"), [(120, 161), (241, 321), (90, 301)])
@pytest.mark.parametrize("scale", [1, 2])
def test_panels_are_where_they_belong(height, width, scale):
    image, truth, prediction = scene(height, width)
    picture = np.asarray(drawn(height, width, scale=scale))
    top = LINE + MARGIN // 2
    shown = np.where(truth == IGNORE, IGNORE, prediction)
    for i, expected in enumerate((image, colourise(truth, PALETTE), colourise(shown, PALETTE))):
        left = MARGIN + i * (width * scale + MARGIN)
        panel = picture[top : top + height * scale : scale, left : left + width * scale : scale]
        np.testing.assert_array_equal(panel, expected)
    assert picture.shape[1] == 3 * width * scale + 4 * MARGIN
    assert tuple(picture[-1, -1]) == (255, 255, 255)


def test_the_legend_has_the_classes_that_occur_and_no_other(monkeypatch):
    texts = written(monkeypatch)
    drawn(120, 161)
    assert [text for text, _, _ in texts] == [
        "road",
        CLASSES[1],
        "sky",
        "not labelled",
        "image",
        "truth",
        "prediction",
    ]


def test_a_wrong_prediction_under_ignored_pixels_is_not_shown(monkeypatch):
    texts = written(monkeypatch)
    image, truth, prediction = scene(60, 80)
    prediction[0] = 3
    truth[1:] = 0
    prediction[1:] = 0
    comparison(image, truth, prediction, classes=CLASSES, palette=PALETTE)
    assert [text for text, _, _ in texts[:-3]] == ["road", "not labelled"]


def test_without_ignored_pixels_the_legend_names_none(monkeypatch):
    texts = written(monkeypatch)
    image, _, prediction = scene(60, 80)
    comparison(image, np.zeros_like(prediction), np.zeros_like(prediction), classes=CLASSES, palette=PALETTE)
    assert [text for text, _, _ in texts[:-3]] == ["road"]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 35), (40, 64), (100, 100), (300, 11)])
def test_no_text_is_cut_or_covered(height, width, monkeypatch):
    texts = written(monkeypatch)
    picture = drawn(height, width)
    length = font().getlength
    for text, (left, _), available in texts:
        assert left + length(text) <= available
    names, titles = texts[:-3], texts[-3:]
    for (text, (left, _), _), (_, (following, _), _) in pairwise(titles):
        assert left + length(text) < following
    rows = {}
    for text, (left, top), _ in names:
        assert left - 18 >= rows.get(top, 0)
        rows[top] = left + length(text)
    assert picture.height >= height + 2 * LINE


def test_stack():
    first, second = drawn(40, 64), drawn(121, 161)
    both = stack([first, second])
    assert both.size == (max(first.width, second.width), first.height + second.height)
    assert both.crop((0, 0, *first.size)).tobytes() == first.tobytes()
    assert both.crop((0, first.height, second.width, both.height)).tobytes() == second.tobytes()
    assert stack([first]).tobytes() == first.tobytes()


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/set/val/one.v2.jpg", "/set/val/two.jpg"], ["one.v2", "two"]),
        (["/set/bonn/0001.png", "/set/ulm/0001.png"], ["bonn_0001", "ulm_0001"]),
        (["/a/b/0001.png", "/c/b/0001.png", "/c/b/2.png"], ["a_b_0001", "c_b_0001", "c_b_2"]),
        (["/b/0001.png", "/a/b/0001.png"], ["b_0001", "a_b_0001"]),
        (["0001.png", "0001.png"], ["0001_0", "0001_1"]),
        ([], []),
    ],
)
def test_pictures_of_images_with_the_same_name_are_kept_apart(paths, names):
    assert picture_names([PurePath(path) for path in paths]) == names
