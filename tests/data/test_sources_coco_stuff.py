import shutil

import numpy as np
import pytest
from PIL import Image

from deeplab_recipes.data.sources import COCOStuff
from deeplab_recipes.data.sources.base import Source, read_pair

UNUSED = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]  # never annotated: street sign, hat, shoe, ...
STORED = [v for v in range(182) if v not in UNUSED]
PARTS = {"train": "train2017", "validation": "val2017"}


def every_value() -> np.ndarray:
    values = [*STORED, 255, 255, 255, 255, 255, 255, 255, 255, 255]
    return np.array(values, np.uint8).reshape(12, 15).repeat(4, 0).repeat(4, 1)


def expected_labels() -> np.ndarray:
    return np.array([*range(171), *[255] * 9], np.uint8).reshape(12, 15).repeat(4, 0).repeat(4, 1)


@pytest.fixture
def root(tmp_path, make_photograph):
    for part, count in (("train2017", 2), ("val2017", 1)):
        for folder in ("images", "annotations"):
            (tmp_path / folder / part).mkdir(parents=True)
        for number in range(count):
            stem = f"{number + 9:012d}"
            Image.fromarray(make_photograph(number, 48, 60)).save(tmp_path / "images" / part / f"{stem}.jpg")
            Image.fromarray(every_value()).save(tmp_path / "annotations" / part / f"{stem}.png")
    (tmp_path / "annotations" / "instances_val2017.json").write_text("{}")
    return tmp_path


def convert(root, part) -> None:
    """What mmsegmentation's converter adds."""
    for path in (root / "annotations" / part).glob("*.png"):
        Image.fromarray(expected_labels()).save(path.with_name(f"{path.stem}_labelTrainIds.png"))


@pytest.mark.parametrize("split", PARTS)
def test_pixel_maps_become_171_classes(root, split):
    source = COCOStuff(root)
    assert isinstance(source, Source)
    pairs = source.pairs(split)
    assert [p.image.stem for p in pairs] == [f"{n:012d}" for n in ((9, 10) if split == "train" else (9,))]
    for pair in pairs:
        _, labels = read_pair(pair, source)
        np.testing.assert_array_equal(labels, expected_labels())
        assert source.label_size(pair) == (48, 60)


def test_classes():
    assert len(COCOStuff.classes) == len(COCOStuff.palette) == len(set(COCOStuff.palette)) == 171
    named = dict(zip(STORED, COCOStuff.classes, strict=True))
    # label numbers of COCO-Stuff's labels.txt, less one
    assert (named[0], named[12], named[91], named[156], named[181]) == (
        "person", "stop sign", "banner", "sky-other", "wood",
    )  # fmt: skip


def test_raw_maps_are_preferred_to_converted_ones(root):
    convert(root, "train2017")
    source = COCOStuff(root)
    pairs = source.pairs("train")
    assert [p.label.name for p in pairs] == ["000000000009.png", "000000000010.png"]
    for pair in pairs:
        pair.label.unlink()
    pairs = source.pairs("train")
    assert pairs[0].label.name == "000000000009_labelTrainIds.png"
    np.testing.assert_array_equal(source.labels(pairs[0]), expected_labels())


def test_other_layouts(root, tmp_path):
    shutil.move(root / "annotations", root / "stuffthingmaps")
    for part in PARTS.values():
        shutil.move(root / "images" / part, root / part)
    (root / "images").rmdir()
    source = COCOStuff(root)
    np.testing.assert_array_equal(source.labels(source.pairs("validation")[0]), expected_labels())


@pytest.mark.parametrize("value", [11, 90, 182, 200])
def test_values_that_do_not_exist(root, value):
    path = root / "annotations" / "val2017" / f"{9:012d}.png"
    Image.fromarray(np.full((48, 60), value, np.uint8)).save(path)
    source = COCOStuff(root)
    with pytest.raises(ValueError, match=rf"{path.name}: label value {value} \(2880 pixels\) is outside the classes"):
        source.labels(source.pairs("validation")[0])


def test_missing_files_are_named(root):
    (root / "annotations" / "train2017" / f"{10:012d}.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 images have no label in .*train2017: 000000000010\.jpg"):
        COCOStuff(root).pairs("train")
    with pytest.raises(FileNotFoundError, match=r"has no folder of labels; expected images/\{train2017,val2017\}/"):
        COCOStuff(root / "images")
    with pytest.raises(ValueError, match="split is 'test'; valid are train, validation"):
        COCOStuff(root).pairs("test")
