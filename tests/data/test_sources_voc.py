import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from deeplab_recipes.data.sources import PascalVOC
from deeplab_recipes.data.sources.base import Source, read_pair

LISTS = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"], "trainval": None}
ADDED = ["2008_000002", "2008_000003"]  # images that only SBD labels


def stored_labels(number: int, *, borders: bool = True) -> np.ndarray:
    """Labels (20, 30) with all 21 classes and, as VOC draws them, borders of 255."""
    labels = (np.arange(600).reshape(20, 30) // 7 + number) % 21
    if borders:
        labels[:, 10] = 255
    return labels.astype(np.uint8)


def save_palette(path, labels) -> None:
    picture = Image.fromarray(labels, "P")
    picture.putpalette([int(v) for colour in PascalVOC.palette for v in colour] + [0] * 702 + [224, 224, 192])
    picture.save(path)


@pytest.fixture
def voc(tmp_path, make_photograph):
    """VOC2012 as its archive unpacks; SBD's images are in JPEGImages too, without labels."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    lists = {**LISTS, "trainval": sorted(LISTS["train"] + LISTS["val"])}
    for name, names in lists.items():
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("".join(f"{n}\n" for n in names))
    for number, name in enumerate([*lists["trainval"], *ADDED]):
        Image.fromarray(make_photograph(number, 20, 30)).save(root / "JPEGImages" / f"{name}.jpg")
        if name not in ADDED:
            save_palette(root / "SegmentationClass" / f"{name}.png", stored_labels(number))
    return root


def add_aug(root, *, names: tuple[str, ...] = (*ADDED, "2007_000032")) -> None:
    """SegmentationClassAug as mmsegmentation makes it: grey PNGs, SBD's version of VOC's images among them."""
    (root / "SegmentationClassAug").mkdir()
    for name in names:
        labels = stored_labels(7, borders=False)
        Image.fromarray(labels).save(root / "SegmentationClassAug" / f"{name}.png")


def add_sbd(folder) -> None:
    """benchmark_RELEASE as published: cls/*.mat, and lists that hold some of VOC's images too."""
    (folder / "dataset" / "cls").mkdir(parents=True)
    for name in (*ADDED, "2007_000033", "2007_000032"):
        content = {"Segmentation": stored_labels(9, borders=False), "Boundaries": np.zeros(3)}
        savemat(folder / "dataset" / "cls" / f"{name}.mat", {"GTcls": content}, do_compression=True)
    (folder / "dataset" / "train.txt").write_text("2008_000002\n2007_000033\n")
    (folder / "dataset" / "val.txt").write_text("2008_000003\n2007_000032\n")


def names(pairs) -> list[str]:
    return [pair.image.stem for pair in pairs]


def test_palette_pictures_hold_class_numbers(voc):
    source = PascalVOC(voc, training_list="train")
    assert isinstance(source, Source)
    pairs = source.pairs("train")
    assert names(pairs) == LISTS["train"]
    for number, pair in zip((0, 2), pairs, strict=True):
        image, labels = read_pair(pair, source)
        np.testing.assert_array_equal(labels, stored_labels(number))
        assert image.shape == (20, 30, 3)
        assert source.label_size(pair) == (20, 30)


def test_colours_and_names_are_vocs():
    assert len(PascalVOC.classes) == len(PascalVOC.palette) == 21
    assert PascalVOC.classes[15] == "person"
    assert PascalVOC.palette[15] == (192, 128, 128)
    assert PascalVOC.palette[20] == (0, 64, 128)


def test_root_may_be_any_of_the_three_folders(voc):
    expected = PascalVOC(voc, training_list="train").pairs("train")
    for root in (voc.parent, voc.parent.parent):
        assert PascalVOC(root, training_list="train").pairs("train") == expected


@pytest.mark.parametrize("split_list", [("train", "train"), ("train", "trainval"), ("validation", "train")])
def test_lists(voc, split_list):
    split, chosen = split_list
    expected = {"train": LISTS["train"], "trainval": sorted(LISTS["train"] + LISTS["val"])}[chosen]
    expected = LISTS["val"] if split == "validation" else expected
    assert names(PascalVOC(voc, training_list=chosen).pairs(split)) == expected


@pytest.mark.parametrize("form", ["trainaug", "train_aug", "aug", "paths"])
def test_augmented_list_as_mmsegmentation_and_others_write_it(voc, form):
    add_aug(voc)
    folder = voc / "ImageSets" / "Segmentation"
    every = sorted(LISTS["train"] + ADDED)
    if form == "paths":
        lines = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in every]
        (folder / "trainaug.txt").write_text("\n".join(lines))
    else:
        (folder / f"{form}.txt").write_text("\n".join(ADDED if form == "aug" else every[::-1]) + "\n")
    source = PascalVOC(voc)
    pairs = source.pairs("train")
    assert names(pairs) == every
    labels = {pair.image.stem: source.labels(pair) for pair in pairs}
    np.testing.assert_array_equal(labels["2008_000002"], stored_labels(7, borders=False))
    np.testing.assert_array_equal(labels["2007_000032"], stored_labels(0))  # VOC's own, with its borders
    assert names(source.pairs("validation")) == LISTS["val"]


@pytest.mark.parametrize("place", ["benchmark_RELEASE", "VOCaug"])
@pytest.mark.parametrize("beside", [True, False])
def test_augmented_list_from_sbds_own_layout(voc, place, beside):
    add_sbd((voc.parent if beside else voc) / place)
    source = PascalVOC(voc.parent)
    pairs = source.pairs("train")
    assert names(pairs) == sorted(LISTS["train"] + ADDED)  # without VOC's validation image
    assert [pair.label.suffix for pair in pairs] == [".png", ".png", ".mat", ".mat"]
    _, labels = read_pair(pairs[2], source)
    np.testing.assert_array_equal(labels, stored_labels(9, borders=False))
    assert labels.dtype == np.uint8
    assert source.label_size(pairs[2]) == (20, 30)
    np.testing.assert_array_equal(source.labels(pairs[0]), stored_labels(0))


def test_without_sbd_the_fix_is_named(voc):
    with pytest.raises(FileNotFoundError, match=r"trainaug\.txt.*benchmark_RELEASE.*training_list=train does"):
        PascalVOC(voc).pairs("train")


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file" + bytes(200), "other"])
def test_damaged_mat_is_named(voc, content):
    add_sbd(voc / "benchmark_RELEASE")
    path = voc / "benchmark_RELEASE" / "dataset" / "cls" / "2008_000002.mat"
    if content == "other":
        savemat(path, {"something": np.zeros(3)})
    else:
        path.write_bytes(content)
    source = PascalVOC(voc)
    with pytest.raises(ValueError, match=r"2008_000002\.mat holds no GTcls\.Segmentation"):
        source.labels(source.pairs("train")[2])


def test_listed_images_that_are_missing_are_counted(voc):
    (voc / "JPEGImages" / "2007_000039.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 listed names are not in .*JPEGImages: 2007_000039; is the download"):
        PascalVOC(voc, training_list="train").pairs("train")
    (voc / "SegmentationClass" / "2007_000033.png").unlink()
    with pytest.raises(ValueError, match=r"1 listed names are not in .*SegmentationClass: 2007_000033"):
        PascalVOC(voc, training_list="train").pairs("validation")


def test_wrong_settings(voc, tmp_path):
    with pytest.raises(ValueError, match="training_list is 'aug'; valid are train, trainaug, trainval"):
        PascalVOC(voc, training_list="aug")
    with pytest.raises(ValueError, match="split is 'test'; valid are train, validation"):
        PascalVOC(voc).pairs("test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no JPEGImages/ folder; expected"):
        PascalVOC(tmp_path / "empty")
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val\.txt is missing"):
        PascalVOC(voc).pairs("validation")


def test_an_empty_list_is_refused(voc):
    """A run without validation images would end, after all its steps, without its best checkpoint."""
    (voc / "ImageSets/Segmentation/val.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"val\.txt lists no image; is the download complete\?"):
        PascalVOC(voc, training_list="train").pairs("validation")


def test_value_outside_the_classes(voc):
    Image.fromarray(np.full((20, 30), 21, np.uint8)).save(voc / "SegmentationClass" / "2007_000032.png")
    source = PascalVOC(voc, training_list="train")
    with pytest.raises(ValueError, match=r"2007_000032\.png: label value 21 \(600 pixels\).*valid are 0\.\.20, 255"):
        source.labels(source.pairs("train")[0])
