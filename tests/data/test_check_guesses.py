import numpy as np
import pytest
from labelled_set import NAMES, LabelledSet, bands
from PIL import Image

from deeplab_recipes.data.checking.guesses import guess, guess_numbering, look_at_all, look_at_labels
from deeplab_recipes.data.sources import Folder
from deeplab_recipes.data.sources.base import Pair

COLOURS = np.random.default_rng(0).integers(0, 256, (400, 3), dtype=np.uint8)


def classes(count: int) -> tuple[str, ...]:
    return tuple(f"class {i}" for i in range(count))


def upwards(values, size: int = 60) -> np.ndarray:
    """A picture in which every value occurs often."""
    return np.resize(np.array(list(values), np.uint8), (size, size))


def palette_picture(values) -> Image.Image:
    picture = Image.fromarray(upwards(values))
    picture.putpalette(COLOURS[:256].ravel().tolist())
    return picture


PICTURES = {
    "rgb mask": (Image.fromarray(COLOURS[:5][upwards(range(5))]), 6, "an RGB mask of 5 colours: give a palette"),
    "own colours": (
        Image.fromarray(np.array(LabelledSet(None).palette, np.uint8)[upwards(range(6))]),
        6,
        "classes.yaml); the colours are this data set's own",
    ),
    "a colour too many": (
        Image.fromarray(np.array([*LabelledSet.palette, (1, 2, 3)], np.uint8)[upwards(range(7))]),
        6,
        "an RGB mask, and 1 of its 7 colours is not in the palette, like (1, 2, 3); data=folder with classes.yaml",
    ),
    "blurred": (
        Image.fromarray(np.array([*LabelledSet.palette, *COLOURS[:50]], np.uint8)[upwards(range(56))]),
        6,
        ": masks that were resized smoothly or saved as JPEG?",
    ),
    "photograph": (Image.fromarray(COLOURS[np.arange(160000).reshape(400, 400) % 399]), 6, "more than 256 colours"),
    "grey as rgb": (Image.fromarray(upwards(range(5))).convert("RGB"), 6, "save the labels with one channel"),
    "rgba mask": (Image.fromarray(COLOURS[:3][upwards(range(3))]).convert("RGBA"), 6, "an RGB mask of 3 colours"),
    "16 bits": (Image.fromarray(np.full((9, 9), 1234, np.uint16)), 6, "more than 8 bits a pixel, numbers up to 1234"),
    "one bit": (Image.fromarray(upwards([0, 1]) > 0), 2, "a binary mask of one bit a pixel"),
    "0 and 255": (Image.fromarray(upwards([0, 255])), 2, "only 0 and 255: a binary mask? Store its two classes"),
    "0 and 128": (Image.fromarray(upwards([0, 128])), 2, "only 0 and 128: a binary mask"),
    "1..C": (Image.fromarray(upwards(range(1, 7))), 6, "values 1..6: numbered from 1? Did you mean reduce_zero_label"),
    "1..150": (Image.fromarray(upwards(range(1, 151))), 150, "values 1..150: numbered from 1? Did you mean reduce_"),
    "0..150": (Image.fromarray(upwards(range(151))), 150, "values 0..150 are ADE20k's (0 = unlabelled, 1..150): did"),
    "0..C": (Image.fromarray(upwards([*range(7), 255])), 6, "values 0..6 are one more than the 6 classes, off by one"),
    "ADE20k": (Image.fromarray(upwards(range(151))), 11, "values up to 150, as ADE20k's"),
    "ADE20k in part": (Image.fromarray(upwards(range(3, 140))), 21, "values up to 139: perhaps ADE20k's"),
    "Cityscapes": (Image.fromarray(upwards(range(34))), 19, "values up to 33, as Cityscapes' labelIds"),
    "VOC": (Image.fromarray(upwards([*range(21), 255])), 11, "values up to 20, as Pascal VOC's"),
    "shades": (Image.fromarray(upwards([0, 50, 100, 150, 200])), 5, "multiples of 50 (0, 50, 100, 150, ...): classes"),
    "smooth": (Image.fromarray(upwards(range(0, 200, 2))), 6, "100 different values: masks that were resized smooth"),
    "palette picture": (palette_picture([0, 1, 17, 40]), 6, "palette pictures whose indices are 0, 1, 17, 40: the in"),
    "beyond": (Image.fromarray(upwards([0, 1, 17, 40])), 6, "hold values 0, 1, 17, 40, this data set has 6 classes"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_guess(tmp_path, name):
    picture, count, words = PICTURES[name]
    picture.save(tmp_path / "labels.png")
    stored = look_at_labels(tmp_path / "labels.png")
    assert words in guess(stored, LabelledSet(tmp_path, classes=classes(count) if count != 6 else NAMES))


def test_renumbering_is_a_setting_that_there_is(tmp_path):
    """reduce_zero_label is mmsegmentation's word; here a set of one's own says it in classes.yaml."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    entries = ", ".join(f"{{name: {name}, value: {number}}}" for number, name in enumerate(NAMES, 1))
    (tmp_path / "classes.yaml").write_text(f"classes: [{entries}]\nignore: [0]\n")
    Image.fromarray(upwards(range(7))).save(tmp_path / "masks" / "a.png")
    Image.fromarray(upwards(range(1, 7))).save(tmp_path / "labels.png")
    text = guess(look_at_labels(tmp_path / "labels.png"), LabelledSet(tmp_path))
    assert "data=folder with ignore: [0] and value: 1, 2, ... for the classes of classes.yaml" in text
    labels = Folder(tmp_path).labels(Pair(tmp_path / "a.jpg", tmp_path / "masks" / "a.png"))
    assert np.array_equal(labels, (upwards(range(7)) - 1).astype(np.uint8))


def test_a_few_wrong_pixels_are_strays(tmp_path):
    labels = bands()
    labels[3, 4:6] = 200
    Image.fromarray(labels).save(tmp_path / "labels.png")
    text = guess(look_at_labels(tmp_path / "labels.png"), LabelledSet(tmp_path))
    assert text.startswith("2 stray pixels (0.096 % of these pictures): set them to 255")


def test_no_guess_about_what_is_no_picture(tmp_path):
    (tmp_path / "labels.json").write_text("{}")
    assert look_at_labels(tmp_path / "labels.json") is None
    assert guess(look_at_all([tmp_path / "labels.json"]), LabelledSet(tmp_path)) is None


def test_counts_of_several_pictures_come_together(tmp_path):
    for i, values in enumerate(([0, 1], [1, 2])):
        Image.fromarray(upwards(values)).save(tmp_path / f"{i}.png")
    Image.fromarray(COLOURS[:2][upwards([0, 1])]).save(tmp_path / "colours.png")
    stored = look_at_all(sorted(tmp_path.iterdir()))
    assert stored.values[:4].tolist() == [1800, 3600, 1800, 0]
    assert stored.colours == {tuple(colour) for colour in COLOURS[:2].tolist()}
    assert stored.modes == {"L": 2, "RGB": 1}


@pytest.mark.parametrize(
    ("shifted", "absent", "words"),
    [
        (True, [5], "the last class (lamp) never occurs and stored 0 is read as not labelled"),
        (False, [0], "the first class (wall) never occurs: if the pictures number the classes from 1"),
        (True, [0], None),
        (False, [5], None),
        (False, [0, 2, 3], None),
    ],
)
def test_numbering_that_may_be_off_by_one(tmp_path, shifted, absent, words):
    occurs = np.ones(6, bool)
    occurs[absent] = False
    text = guess_numbering(occurs, LabelledSet(tmp_path, shifted=shifted))
    assert text is None if words is None else words in text
