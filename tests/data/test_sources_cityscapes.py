import shutil

import numpy as np
import pytest
from PIL import Image

from deeplab_recipes.data.sources import Cityscapes
from deeplab_recipes.data.sources.base import Source, read_pair

# What labelIds 0..33 become, written out from the table of Cityscapes' scripts; 255 is ignored.
TRAIN_IDS = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
TRAIN_IDS += [255, 255, 16, 17, 18]
CITIES = {"train": {"aachen": 2, "ulm": 1}, "val": {"lindau": 1}, "test": {"bonn": 1}}


def every_id() -> np.ndarray:
    return np.array([*range(34), 255, 255], np.uint8).reshape(4, 9).repeat(9, 0).repeat(6, 1)


def frame(root, part, city, number, kind):
    folder, ending = ("leftImg8bit", "leftImg8bit") if kind == "image" else ("gtFine", f"gtFine_{kind}")
    return root / folder / part / city / f"{city}_{number:06d}_000019_{ending}.png"


@pytest.fixture
def root(tmp_path, make_photograph):
    """Cityscapes as its archives unpack, with the colour, instance and polygon files that come along."""
    for part, cities in CITIES.items():
        for city, count in cities.items():
            for number in range(count):
                pictures = {"image": make_photograph(number, 36, 54), "labelIds": every_id()}
                pictures |= {"color": make_photograph(1, 36, 54), "instanceIds": every_id()}
                for kind, pixels in pictures.items():
                    path = frame(tmp_path, part, city, number, kind)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(path)
                (path.parent / f"{city}_{number:06d}_000019_gtFine_polygons.json").write_text("{}")
    return tmp_path


def test_label_ids_become_train_ids(root):
    source = Cityscapes(root)
    assert isinstance(source, Source)
    assert len(TRAIN_IDS) == 34
    pair = source.pairs("train")[0]
    image, labels = read_pair(pair, source)
    expected = np.array([*TRAIN_IDS, 255])[np.minimum(every_id(), 34)]
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {*range(19), 255}
    assert image.shape == (36, 54, 3)
    assert source.label_size(pair) == (36, 54)


def test_classes_and_colours():
    known = dict(zip(Cityscapes.classes, Cityscapes.palette, strict=True))
    assert len(known) == 19
    assert list(known)[:3] == ["road", "sidewalk", "building"]
    assert (known["road"], known["car"], known["bicycle"]) == ((128, 64, 128), (0, 0, 142), (119, 11, 32))


@pytest.mark.parametrize(("split", "part"), [("train", "train"), ("validation", "val"), ("test", "test")])
def test_pairs_city_by_city(root, split, part):
    pairs = Cityscapes(root).pairs(split)
    expected = [(city, n) for city, count in CITIES[part].items() for n in range(count)]
    assert [p.image for p in pairs] == [frame(root, part, c, n, "image") for c, n in expected]
    assert [p.label for p in pairs] == [frame(root, part, c, n, "labelIds") for c, n in expected]


def test_train_ids_are_read_where_there_are_no_label_ids(root):
    stored = np.array([*range(19), 255], np.uint8).repeat(2).reshape(4, 10)
    path = frame(root, "val", "lindau", 0, "labelTrainIds")
    Image.fromarray(stored).save(path)
    assert Cityscapes(root).pairs("validation")[0].label.stem.endswith("_labelIds")
    frame(root, "val", "lindau", 0, "labelIds").unlink()
    source = Cityscapes(root)
    pair = source.pairs("validation")[0]
    assert pair.label == path
    np.testing.assert_array_equal(source.labels(pair), stored)


def test_value_that_cityscapes_does_not_know(root):
    path = frame(root, "val", "lindau", 0, "labelIds")
    Image.fromarray(np.full((36, 54), 34, np.uint8)).save(path)
    source = Cityscapes(root)
    with pytest.raises(ValueError, match=r"labelIds\.png: label value 34 \(1944 pixels\).*0\.\.33, 255"):
        source.labels(source.pairs("validation")[0])


def test_missing_files_are_named(root):
    frame(root, "train", "aachen", 1, "labelIds").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 images have no label in .*aachen: aachen_000001_000019_leftImg8bit"):
        Cityscapes(root).pairs("train")
    with pytest.raises(FileNotFoundError, match=r"has no leftImg8bit/ folder; expected leftImg8bit/ and gtFine/ in it"):
        Cityscapes(root / "gtFine")
    with pytest.raises(ValueError, match="split is 'val'; valid are train, validation, test"):
        Cityscapes(root).pairs("val")


def test_city_without_images_is_named(root):
    shutil.rmtree(root / "leftImg8bit" / "train" / "ulm")
    with pytest.raises(FileNotFoundError, match=r"leftImg8bit/train/ulm is not a folder"):
        Cityscapes(root).pairs("train")


def test_part_without_images(root):
    frame(root, "test", "bonn", 0, "image").unlink()
    frame(root, "test", "bonn", 0, "labelIds").unlink()
    with pytest.raises(FileNotFoundError, match=r"test holds no image \(CITY/\*_leftImg8bit\.png\)"):
        Cityscapes(root).pairs("test")
