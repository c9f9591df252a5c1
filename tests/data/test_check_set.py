"""The full check as a library: what is a problem, what is a remark, and what it writes."""

import json
import os
from dataclasses import dataclass

import numpy as np
import pytest
from labelled_set import NAMES, LabelledSet, bands, photograph, relabel, write_pair, write_set
from PIL import Image

from deeplab_recipes.data.checking.check import check_pairs, check_set
from deeplab_recipes.data.checking.report import as_text
from deeplab_recipes.data.sources import ADE20k, CamVid


@dataclass
class Answer:
    problems: dict
    remarks: dict
    text: str
    json: dict


def check(source, folder, **options) -> Answer:
    """Check a set; its entries by kind and part, its text, and what the file holds."""
    options = {"where": str(source.root), "output": folder / "report", "workers": 0, "sheet_pairs": 0, **options}
    report = check_set(source, **options)
    entries = ({(e.kind, e.part): e for e in found} for found in (report.problems, report.remarks))
    return Answer(*entries, as_text(report), json.loads((folder / "report" / "report.json").read_text()))


@pytest.fixture
def source(tmp_path):
    return write_set(tmp_path / "set")


def test_sound_set(source, tmp_path):
    answer = check(source, tmp_path, sheet_pairs=4)
    assert (answer.problems, answer.remarks) == ({}, {})
    assert answer.text.endswith("sound: no problems, 0 remarks")
    assert answer.json["sound"] is True
    assert sorted(os.listdir(tmp_path / "report")) == ["contact_sheet.png", "report.json", "report.txt"]
    assert (tmp_path / "report" / "report.txt").read_text() == answer.text + "\n"


def test_table_counts_pixels_and_images(source, tmp_path):
    answer = check(source, tmp_path)
    labels = [np.array(Image.open(pair.label)) for pair in source.pairs("train")]
    counts = [sum(int((label == c).sum()) for label in labels) for c in range(256)]
    rows = answer.json["parts"]["train"]["classes"]
    assert rows == [{"name": name, "pixels": counts[c], "images": 6} for c, name in enumerate(NAMES)]
    assert answer.json["parts"]["train"]["ignored_pixels"] == counts[255]
    line = next(line for line in answer.text.splitlines() if "2 sky" in line)
    assert line.split()[2:5] == [f"{counts[2]:,}", f"{counts[2] / sum(counts[:6]):.2%}", "6"]


def test_all_missing_partners_are_named(source, tmp_path):
    pairs = source.pairs("train")
    for pair in pairs[:2]:
        pair.label.unlink()
    pairs[3].image.unlink()
    write_pair(source.root, "validation", "more", photograph(77), bands())
    (source.root / "validation" / "more.jpg").unlink()
    answer = check(source, tmp_path)
    missing = {key: [os.path.basename(file) for file, _ in entry.files] for key, entry in answer.problems.items()}
    assert missing == {
        ("no label", "train"): ["train_000.jpg", "train_001.jpg"],
        ("no image", "train"): ["train_003.png"],
        ("no image", "validation"): ["more.png"],
    }
    assert answer.problems["no label", "train"].text == "2 images without a label"
    assert answer.json["parts"]["train"]["usable"] == 3


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        (lambda stem: f"{stem}_mask", "an ending '_mask' that the images' lack"),
        (str.upper, "differ only in capitals"),
        (lambda stem: f"{stem}0", "an ending '0'"),
        (lambda stem: stem[::-1], None),
    ],
)
def test_names_that_nearly_match(source, tmp_path, rename, words):
    for pair in source.pairs("train")[1:]:
        pair.label.rename(pair.label.with_stem(rename(pair.label.stem)))
    cause = check(source, tmp_path).problems["no label", "train"].guess
    assert cause is None if words is None else words in cause
    with pytest.raises(ValueError, match=r"5 of 6 images have no label .*5 of 6 labels have no image") as error:
        source.pairs("train")
    assert ("Guess" in str(error.value)) == bool(words)


def test_a_part_that_is_not_there_does_not_hide_the_other(source, tmp_path, truncate):
    (source.root / "validation").rename(source.root / "val")
    truncate(source.pairs("train")[0].image)
    answer = check(source, tmp_path)
    assert set(answer.problems) == {("no part", "validation"), ("unreadable", "train")}
    assert "validation is not a folder" in answer.text


def test_no_part_at_all_is_a_wrong_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="train is not a folder"):
        check(LabelledSet(tmp_path), tmp_path)
    assert not (tmp_path / "report").exists()


def test_labels_of_another_set_get_one_guess(tmp_path):
    source = write_set(tmp_path / "set", train=5)
    relabel(source, lambda labels: np.resize(np.arange(151, dtype=np.uint8), labels.shape))
    entry = check(source, tmp_path).problems["labels", "train"]
    assert entry.text == "5 pairs with labels that do not fit the 6 classes"
    assert entry.guess.startswith("values up to 150, as ADE20k's (0 = unlabelled, 1..150): did you mean data=ade20k?")
    assert len(entry.files) == 5
    assert "label value 6 " in entry.files[0][1]


def test_rgb_masks(source, tmp_path):
    relabel(source, lambda labels: np.array(source.palette, np.uint8)[np.minimum(labels, 5)])
    entry = check(source, tmp_path).problems["labels", "train"]
    assert entry.guess.startswith("an RGB mask of 6 colours: give a palette (data=folder with classes.yaml)")


def test_binary_masks_are_read_without_an_error_and_yet_found(source, tmp_path):
    relabel(source, lambda labels: np.where(labels > 2, 255, 0).astype(np.uint8))
    answer = check(source, tmp_path)
    entry = answer.problems["one class", "train"]
    assert entry.text == "every labelled pixel is wall, in all of 6 pairs"
    assert entry.guess.startswith("only 0 and 255: a binary mask?")
    assert ("untrained classes", None) in answer.remarks


def test_nothing_labelled(source, tmp_path):
    relabel(source, lambda labels: np.full_like(labels, 255))
    answer = check(source, tmp_path)
    assert answer.problems["one class", "train"].text == "no pixel is labelled, in all of 6 pairs"
    assert len(answer.remarks["empty", "train"].files) == 6
    assert "100.0% of all pixels" in answer.remarks["mostly ignored", "train"].text


def test_classes_that_never_occur_and_what_that_may_mean(source, tmp_path):
    for part in ("train", "validation"):
        relabel(source, lambda labels: np.where(labels == 0, 1, labels), part)
    entry = check(source, tmp_path).remarks["absent classes", None]
    assert entry.text == "1 class occurs nowhere: wall"
    assert "the classes from 1" in entry.guess


def test_copies_within_and_across_parts(source, tmp_path):
    train, validation = source.pairs("train"), source.pairs("validation")
    train[1].image.write_bytes(train[0].image.read_bytes())
    train[1].label.write_bytes(train[0].label.read_bytes())
    validation[2].image.write_bytes(train[5].image.read_bytes())
    answer = check(source, tmp_path)
    assert answer.problems.keys() == {("in both parts", None)}
    assert f"{train[5].image} = {validation[2].image}" in answer.text
    assert answer.remarks["twice", "train"].text.startswith("1 image there more than once (the same decoded pixels)")
    assert "different labels" not in answer.remarks["twice", "train"].text


def test_what_training_skips_is_a_remark(source, tmp_path, truncate):
    truncate(source.pairs("train")[0].image)
    answer = check(source, tmp_path, on_corrupt="skip")
    assert answer.problems == {}
    assert answer.remarks["unreadable", "train"].text.endswith("data.on_corrupt=skip leaves them out")


def test_skipping_everything_is_a_problem(source, tmp_path):
    relabel(source, lambda labels: np.full_like(labels, 99))
    assert ("labels", "train") in check(source, tmp_path, on_corrupt="skip").problems


@pytest.mark.parametrize("name", ["with  spaces", "Gänsefüßchen „ß“", "two\nlines", "tab\there", "bell\a\x1b[31m"])
def test_odd_file_names(source, tmp_path, name):
    write_pair(source.root, "train", name, photograph(55), bands(values=(0, 99)))
    answer = check(source, tmp_path, sheet_pairs=9)
    (file,) = answer.problems["labels", "train"].files
    assert os.path.basename(file[0]) == f"{name}.png"
    shown = next(line for line in answer.text.splitlines() if "label value 99" in line)
    assert shown.isprintable()
    assert answer.json["problems"][0]["files"][0]["file"] == file[0]


def test_file_name_that_is_no_text(source, tmp_path):
    for folder, suffix in (("train", ".jpg"), ("trainlabels", ".png")):
        path = min((source.root / folder).iterdir())
        os.rename(path, os.fsencode(source.root / folder) + b"/\xff\xfe" + suffix.encode())
    (source.root / "validation" / "validation_000.jpg").write_bytes(b"")
    answer = check(source, tmp_path, sheet_pairs=9)
    assert answer.problems.keys() == {("unreadable", "validation")}
    answer.text.encode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ("a", "b", "a", "c", "d", "e")}, "class 'a' is listed twice (numbers 0, 2)"),
        ({"palette": LabelledSet.palette[:4]}, "there are 6 classes but 4 colours in the palette"),
        (
            {"palette": (*LabelledSet.palette[:5], (0, 0, 256))},
            "the palette holds (0, 0, 256), which is no colour; each class takes three numbers 0..255",
        ),
    ],
)
def test_classes_and_colours(source, tmp_path, change, words):
    """Found by both forms."""
    for key, value in change.items():
        setattr(source, key, value)
    answer = check(source, tmp_path, sheet_pairs=2)
    assert [words in entry.text for entry in answer.problems.values()] == [True]
    with pytest.raises(ValueError, match="class") as error:
        check_pairs(source.pairs("train"), source, samples=1)
    assert words in str(error.value)


def test_a_report_is_not_overwritten(source, tmp_path):
    check(source, tmp_path)
    with pytest.raises(FileExistsError, match=r"holds a report already; choose another folder: output=DIR"):
        check(source, tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "expected", "remarks"),
    [
        ("camvid", CamVid, {"train": 367, "validation": 101}, set()),
        ("ade20k_mini", ADE20k, {"train": 1312, "validation": 188}, set()),
    ],
)
def test_real_data_are_sound(real_data, tmp_path, name, kind, expected, remarks):
    source = kind(real_data(name))
    answer = check(source, tmp_path, workers="auto")
    assert answer.problems == {}
    assert {kind for kind, _ in answer.remarks} == remarks
    for part, count in expected.items():
        assert answer.json["parts"][part]["usable"] == count
