import os
import pickle
import re
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from deeplab_recipes.data import SegmentationDataModule
from deeplab_recipes.data.sources import Folder
from deeplab_recipes.data.sources.base import Source, read_pair

COLOURS = {"background": (0, 0, 0), "road": (128, 64, 128), "car": (0, 0, 142)}
COLOUR_FILE = """
classes:
  - {name: background, color: [0, 0, 0]}
  - {name: road, color: [128, 64, 128]}
  - name: car
    color: "#00008e"
"""
SIZE = (24, 40)


def classes_of(number: int, classes: int = 3) -> np.ndarray:
    return ((np.arange(960).reshape(SIZE) // 11 + number) % classes).astype(np.uint8)


def coloured(labels: np.ndarray) -> np.ndarray:
    return np.array(list(COLOURS.values()), np.uint8)[labels]


def write(root, names, *, mask=classes_of, content="classes: [background, road, car]\n") -> None:
    """A folder with a photograph and a mask for each name; names may have folders."""
    for number, name in enumerate(names):
        for folder, suffix, pixels in (("images", "jpg", coloured(classes_of(number))), ("masks", "png", mask(number))):
            path = root / folder / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (root / "classes.yaml").write_text(content)


def write_parts(root, **options) -> None:
    write(root, ["train/a", "train/b", "validation/c"], **options)


def names(root, split, **options) -> list[str]:
    return [pair.image.relative_to(root / "images").as_posix() for pair in Folder(root, **options).pairs(split)]


def first_labels(root) -> np.ndarray:
    source = Folder(root)
    return read_pair(source.pairs("train")[0], source)[1]


def refused(root, words: str, kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind, match=words) as error:
        first_labels(root)
    return str(error.value)


# -- how masks are read


def test_masks_of_numbers(tmp_path):
    write_parts(tmp_path)
    source = Folder(tmp_path)
    assert isinstance(source, Source)
    assert source.classes == ("background", "road", "car")
    for number, pair in enumerate(source.pairs("train")):
        _, labels = read_pair(pair, source)
        np.testing.assert_array_equal(labels, classes_of(number))
        assert labels.dtype == np.uint8
        assert source.label_size(pair) == SIZE


def test_stored_values_and_ignored_ones(tmp_path):
    def stored(number: int) -> np.ndarray:
        return np.array([10, 255, 3, 99, 0], np.uint8)[classes_of(number, 5)]

    content = "classes: [{name: sky, value: 10}, {name: cat, value: 255}, {name: dog, value: 3}]\nignore: [99, 0]\n"
    write_parts(tmp_path, mask=stored, content=content)
    np.testing.assert_array_equal(first_labels(tmp_path), np.array([0, 1, 2, 255, 255])[classes_of(0, 5)])


def test_colour_masks(tmp_path):
    write_parts(tmp_path, mask=lambda n: coloured(classes_of(n)), content=COLOUR_FILE)
    source = Folder(tmp_path)
    assert source.palette == tuple(COLOURS.values())
    np.testing.assert_array_equal(first_labels(tmp_path), classes_of(0))


def test_ignored_colours_and_opaque_masks(tmp_path):
    palette = np.array([*COLOURS.values(), (224, 224, 192), (1, 2, 3)], np.uint8)

    def mask(number: int) -> np.ndarray:
        return np.concatenate([palette[classes_of(number, 5)], np.full((*SIZE, 1), 255, np.uint8)], axis=-1)

    write_parts(tmp_path, mask=mask, content=f'{COLOUR_FILE}ignore: [[224, 224, 192], "#010203"]\n')
    np.testing.assert_array_equal(first_labels(tmp_path), np.array([0, 1, 2, 255, 255])[classes_of(0, 5)])


@pytest.mark.parametrize("mode", ["P", "L", "1"])
def test_masks_of_one_channel_with_colours(tmp_path, mode):
    """Numbers by default, even if the classes have colours to draw with; colours where classes.yaml says so."""
    colours = [(0, 0, 0), (255, 255, 255)]
    content = "classes: [{name: a, color: [0, 0, 0]}, {name: b, color: [255, 255, 255]}]\n"
    write_parts(tmp_path, content=content)
    numbers = classes_of(0, 2)
    for path in (tmp_path / "masks").rglob("*.png"):
        if mode == "P":
            picture = Image.fromarray(numbers, "P")
            picture.putpalette([v for colour in colours for v in colour])
        else:
            picture = Image.fromarray(numbers * 255 if mode == "L" else numbers.astype(bool))
        picture.save(path)
        assert Image.open(path).mode == mode
    if mode == "L":
        message = refused(
            tmp_path, r"a\.png: label value 255 \(\d+ pixels\) is outside the classes; valid are 0\.\.1\."
        )
        assert "classes.yaml says what is stored: value of a class, or ignore" in message
    else:
        np.testing.assert_array_equal(first_labels(tmp_path), numbers)
    (tmp_path / "classes.yaml").write_text(f"{content}masks: color\n")
    np.testing.assert_array_equal(first_labels(tmp_path), numbers)


def test_masks_of_few_bits(tmp_path, few_bits):
    """Class 3 would be read as 255, which is ignored here."""
    write_parts(tmp_path, content="classes: [a, b, c, d]\nignore: 255\n")
    for path in (tmp_path / "masks").rglob("*.png"):
        few_bits(path, classes_of(0, 4), 2)
    np.testing.assert_array_equal(first_labels(tmp_path), classes_of(0, 4))


def test_palette_that_contradicts_the_numbers(tmp_path):
    """As drawing programs save few colours: numbered in any order."""
    write_parts(tmp_path, content=COLOUR_FILE)
    palette = [*COLOURS.values()][::-1]
    for path in (tmp_path / "masks").rglob("*.png"):
        picture = Image.fromarray(2 - classes_of(0), "P")
        picture.putpalette([v for colour in palette for v in colour])
        picture.save(path)
    refused(tmp_path, r"a\.png stores numbers with a palette.*masks: index, or masks: color")
    for masks, expected in (("color", classes_of(0)), ("index", 2 - classes_of(0))):
        (tmp_path / "classes.yaml").write_text(f"{COLOUR_FILE}masks: {masks}\n")
        np.testing.assert_array_equal(first_labels(tmp_path), expected)


def test_255_is_not_ignored_unless_said(tmp_path):
    """A binary mask of 0 and 255 would else train on background alone."""
    write_parts(tmp_path, mask=lambda n: classes_of(n, 2) * 255)
    refused(tmp_path, "label value 255")
    (tmp_path / "classes.yaml").write_text("classes: [a, {name: b, value: 255}]\n")
    np.testing.assert_array_equal(first_labels(tmp_path), classes_of(0, 2))


def test_unknown_colour_is_named_with_file_and_pixels(tmp_path):
    def mask(number: int) -> np.ndarray:
        pixels = coloured(classes_of(number))
        pixels[3, 4:9] = (12, 34, 56)
        pixels[5, 5] = (9, 9, 9)
        return pixels

    write_parts(tmp_path, mask=mask, content=COLOUR_FILE)
    message = refused(
        tmp_path, r"a\.png: color \[12, 34, 56\] of 5 pixels is no class's \(and 1 other unknown colours\)"
    )
    assert "ignore: [[12, 34, 56]]" in message
    assert str(tmp_path / "classes.yaml") in message


def test_smoothed_mask_is_recognised(tmp_path):
    write_parts(tmp_path, content=COLOUR_FILE)
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "masks" / "train" / "a.png")
    refused(tmp_path, "so many suggest a mask that was saved as JPEG or resized with smoothing")


def test_transparent_pixels_are_refused(tmp_path):
    write_parts(tmp_path, content=COLOUR_FILE)
    pixels = np.zeros((*SIZE, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[0, :7, 3] = 254
    Image.fromarray(pixels).save(tmp_path / "masks" / "train" / "a.png")
    refused(tmp_path, r"a\.png has 7 transparent pixels")


def test_colour_mask_without_colours_in_the_file(tmp_path):
    write_parts(tmp_path, mask=lambda n: coloured(classes_of(n)))
    refused(tmp_path, r"a\.png is a colour picture, but .*classes\.yaml gives 'background' no color")
    write_parts(tmp_path, mask=lambda n: coloured(classes_of(n)), content=f"{COLOUR_FILE}masks: index\n")
    refused(tmp_path, r"one 8-bit channel of class numbers, this one is 24x40x3 uint8")


def test_lossy_masks_are_refused(tmp_path):
    write_parts(tmp_path)
    for path in list((tmp_path / "masks").rglob("*.png")):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    refused(tmp_path, r"masks holds no mask .*; a\.jpg is compressed with loss.*save masks as PNG", FileNotFoundError)


# -- classes.yaml


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("classes: [road, car, road]", r"class 'road' is listed twice; each may occur once"),
        ("classes: [{name: a, color: [1, 2, 3]}, {name: b, color: '#010203'}]", r"color \[1, 2, 3\] is listed twice"),
        ("classes: [{name: a, value: 1}, b]", r"value 1 is listed twice.*a class without a value has its position"),
        ("classes: [a, b]\nignore: 1", r"value 1 is listed twice"),
        ("classes: [a]\ncolors: [1]", r"unknown key 'colors'; valid are classes, ignore, masks"),
        ("classes: [{name: a, colour: [1, 2, 3]}]", r"unknown key 'colour' of class 1; valid are name, color, value"),
        ("classes: [a, {name: no}]", r"name of class 2 is False; it takes text \(in quotes"),
        ("classes: [a, {color: [1, 2, 3]}]", r"name of class 2 is None"),
        ("classes: []", r"classes is \[\]; it takes a list of at least one class, like classes: \[\{name: road"),
        ("ignore: 255", r"classes is None; it takes a list"),
        ("classes: [{name: a, value: 256}]", r"value of 'a' is 256; it takes a whole number 0\.\.255"),
        ("classes: [{name: a, value: true}]", r"value of 'a' is True; it takes a whole number"),
        ("classes: [{name: a, color: [1, 2]}]", r"color of 'a' is \[1, 2\]; a color is \[r, g, b\]"),
        ("classes: [{name: a, color: [1, 2, 256]}]", r"color of 'a' is \[1, 2, 256\]; a color is"),
        ("classes: [{name: a, color: '#12345g'}]", r"color of 'a' is '#12345g'; a color is"),
        ("classes: [a]\nignore: [[1, 2]]", r"ignore is \[1, 2\]; a color is"),
        ("classes: [a]\nmasks: rgb", r"masks is 'rgb'; valid are index, color"),
        ("classes: [a", r"is not valid YAML: .*line 1"),
        ("- a\n- b", r"holds list; expected keys classes, ignore, masks"),
        (f"classes: {list('ab' * 130)}", r"lists 260 classes; there can be at most 254"),
    ],
)
def test_wrong_class_files(tmp_path, content, words):
    write_parts(tmp_path, content=content)
    message = refused(tmp_path, words)
    assert message.startswith(str(tmp_path / "classes.yaml"))


def test_colours_may_repeat_where_they_only_draw(tmp_path):
    content = "classes: [{name: a, color: [1, 2, 3]}, {name: b, color: '#010203'}, c]\nmasks: index\n"
    write_parts(tmp_path, content=content)
    assert Folder(tmp_path).palette[:2] == ((1, 2, 3), (1, 2, 3))
    np.testing.assert_array_equal(first_labels(tmp_path), classes_of(0))


def test_missing_class_file_shows_an_example(tmp_path):
    write_parts(tmp_path)
    (tmp_path / "classes.yaml").unlink()
    refused(tmp_path, r"classes\.yaml is missing.*\n?classes: \[\{name: road, color", FileNotFoundError)


# -- which photographs train and which validate


@pytest.mark.parametrize("folder", ["validation", "val"])
def test_subfolders(tmp_path, folder):
    write(tmp_path, ["train/b", "train/a", f"{folder}/c", "test/d", "train/session 2/e"])
    assert names(tmp_path, "train") == ["train/a.jpg", "train/b.jpg", "train/session 2/e.jpg"]
    assert names(tmp_path, "validation") == [f"{folder}/c.jpg"]
    assert names(tmp_path, "test") == ["test/d.jpg"]


def test_lists(tmp_path):
    write(tmp_path, ["b", "a", "c", "d.e", "night/f"])
    (tmp_path / "train.txt").write_text("\ufeffb\nd.e\r\n\n")  # some editors begin a text with a mark
    (tmp_path / "val.txt").write_text("night/f.jpg\nc\n")
    assert names(tmp_path, "train") == ["b.jpg", "d.e.jpg"]
    assert names(tmp_path, "validation") == ["c.jpg", "night/f.jpg"]


def test_a_share_is_held_out(tmp_path):
    write(tmp_path, [f"p{i}" for i in range(20)])
    parts = {split: names(tmp_path, split) for split in ("train", "validation")}
    assert sorted(parts["train"] + parts["validation"]) == sorted(f"p{i}.jpg" for i in range(20))
    assert len(parts["validation"]) == 4
    assert names(tmp_path, "validation") == parts["validation"]
    assert set(parts["validation"]) < set(names(tmp_path, "validation", validation_share=0.5))
    assert len(names(tmp_path, "validation", validation_share=0.01)) == 1
    write(tmp_path, [f"p{i}" for i in range(25)])
    assert len(set(parts["validation"]) & set(names(tmp_path, "validation"))) >= 3  # most stay where they were


@pytest.mark.parametrize("share", [0, 1, -0.1, 2])
def test_wrong_share(tmp_path, share):
    write(tmp_path, ["a", "b"])
    with pytest.raises(ValueError, match=rf"validation_share is {share}; it must be between 0 and 1"):
        Folder(tmp_path, validation_share=share)


def test_splits_that_are_not_whole(tmp_path):
    write(tmp_path, ["train/a", "train/b"])
    refused(tmp_path, r"images names no photograph for validation; say which.*subfolders.*lists.*validation_share")
    write(tmp_path, ["validation/c", "loose"])
    refused(tmp_path, r"images has subfolders of parts, but loose is in none of them \(train, validation, val, test\)")
    (tmp_path / "train.txt").write_text("train/a\nvalidation/c\n")
    refused(tmp_path, r"names no photograph for validation")
    (tmp_path / "validation.txt").write_text("loose\nnowhere\n")
    refused(tmp_path, r"validation\.txt lists nowhere, which is no photograph in .*images")
    (tmp_path / "validation.txt").write_text("loose\ntrain/a\n")
    refused(tmp_path, r"train/a is listed for both train and validation")
    (tmp_path / "val.txt").write_text("loose\n")
    refused(tmp_path, r"there are both .*validation\.txt and .*val\.txt")


def test_one_photograph_is_too_few(tmp_path):
    write(tmp_path, ["a"])
    refused(tmp_path, "holds one photograph; training and validation need one each")


def test_parts_that_are_not_there(tmp_path):
    write(tmp_path, ["a", "b"])
    with pytest.raises(ValueError, match="has no part 'test'; say which"):
        Folder(tmp_path).pairs("test")
    with pytest.raises(ValueError, match="split is 'val'; valid are train, validation, test"):
        Folder(tmp_path).pairs("val")


# -- files


def test_names_with_spaces_umlauts_and_a_newline(tmp_path):
    every = ["with space", "Übergröße ß", "line\nbreak", "日本", "a.b.c", "100%"]
    write(tmp_path, [*(f"train/{name}" for name in every), "validation/x"])
    assert names(tmp_path, "train") == sorted(f"train/{name}.jpg" for name in every)
    source = Folder(tmp_path)
    for pair in source.pairs("train"):
        number = every.index(pair.image.stem)
        np.testing.assert_array_equal(read_pair(pair, source)[1], classes_of(number))


def test_umlauts_in_both_of_unicodes_ways_are_one_name(tmp_path):
    """A Mac stores them taken apart, other systems whole."""
    write(tmp_path, ["train/grün", "validation/c"])
    mask = tmp_path / "masks" / "train" / "grün.png"
    os.rename(mask, mask.with_name(f"{unicodedata.normalize('NFD', 'grün')}.png"))
    np.testing.assert_array_equal(first_labels(tmp_path), classes_of(0))


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such names")
def test_names_that_are_not_unicode(tmp_path):
    write(tmp_path, ["plain", "other"])
    for folder, suffix in (("images", "jpg"), ("masks", "png")):
        os.rename(
            tmp_path / folder / f"plain.{suffix}",
            os.fsencode(tmp_path / folder) + f"/gr\xfcn.{suffix}".encode("latin1"),
        )
    assert len(names(tmp_path, "train")) == len(names(tmp_path, "validation")) == 1
    sizes = {"crop_size": [40, 40], "base_size": [40, 40], "evaluate_sizes": {"square": [40, 40]}}
    assert SegmentationDataModule(Folder, tmp_path, batch_size=1, **sizes).fingerprint()


def test_suffixes_in_capitals_hidden_and_foreign_files(tmp_path):
    write_parts(tmp_path)
    os.rename(tmp_path / "images" / "train" / "a.jpg", tmp_path / "images" / "train" / "a.JPEG")
    for name in ("images/.DS_Store", "images/train/._a.jpg", "images/train/Thumbs.db", "masks/train/notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "images" / ".thumbnails").mkdir()
    (tmp_path / "images" / ".thumbnails" / "a.jpg").touch()
    assert names(tmp_path, "train") == ["train/a.JPEG", "train/b.jpg"]


def test_missing_partners_are_named(tmp_path):
    write_parts(tmp_path)
    (tmp_path / "masks" / "train" / "b.png").unlink()
    refused(tmp_path, r"1 of 3 images have no label in .*masks: b\.jpg; add the missing files")
    (tmp_path / "images" / "train" / "b.jpg").unlink()
    (tmp_path / "images" / "validation" / "c.jpg").unlink()
    refused(tmp_path, r"1 of 2 labels have no image in .*images: c\.png")


def test_two_photographs_of_one_name(tmp_path):
    write_parts(tmp_path)
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "train" / "a.png")
    refused(tmp_path, r"train holds both a\.jpg and a\.png; keep one")


def test_missing_folders_show_the_layout(tmp_path):
    layout = re.escape("expected images/, masks/ and classes.yaml in it")
    with pytest.raises(FileNotFoundError, match=f"nowhere is not a folder; {layout}"):
        Folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"has no images/ folder; {layout}"):
        Folder(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "classes.yaml").write_text("classes: [a, b]")
    with pytest.raises(FileNotFoundError, match=r"images holds no image \(\.bmp, \.jpeg, \.jpg"):
        Folder(tmp_path).pairs("train")


def test_a_copy_for_a_loader_process_reads_the_same(tmp_path):
    write_parts(tmp_path, mask=lambda n: coloured(classes_of(n)), content=COLOUR_FILE)
    source = Folder(tmp_path)
    pair = source.pairs("train")[0]
    source.labels(pair)
    copied = pickle.dumps(source)
    assert len(copied) < 10_000  # without the table of all colours
    np.testing.assert_array_equal(pickle.loads(copied).labels(pair), classes_of(0))


def test_every_colour_is_looked_up_right(tmp_path):
    """The table has a place for each of 2^24 colours: none may stand for another."""
    rng = np.random.default_rng(3)
    colours = rng.choice(1 << 24, 254, replace=False)
    listed = [[int(c) & 255, int(c) >> 8 & 255, int(c) >> 16] for c in colours]
    content = "classes:\n" + "".join(f"  - {{name: c{i}, color: {c}}}\n" for i, c in enumerate(listed))
    labels = rng.integers(0, 254, SIZE).astype(np.uint8)
    write_parts(tmp_path, mask=lambda n: np.array(listed, np.uint8)[labels], content=content)
    np.testing.assert_array_equal(first_labels(tmp_path), labels)
    assert Counter(labels.ravel().tolist())[0] == Counter(first_labels(tmp_path).ravel().tolist())[0]
