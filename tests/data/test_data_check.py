import numpy as np
import pytest
from PIL import Image

from deeplab_recipes.data.checking.check import check_pairs
from deeplab_recipes.data.labels import plain_encoding
from deeplab_recipes.data.sources import ADE20k


@pytest.fixture
def source(make_ade20k):
    return ADE20k(make_ade20k(9, 1))


def check(source, **options) -> None:
    check_pairs(source.pairs("train"), source, **options)


def spoil_labels(pair) -> None:
    labels = np.array(Image.open(pair.label))
    labels[3, 4:6] = 200
    Image.fromarray(labels).save(pair.label)


def shrink(path) -> None:
    picture = Image.open(path)
    picture.resize((picture.width - 1, picture.height)).save(path)


@pytest.mark.parametrize("samples", [0, 1, 4, 9, 64])
def test_sound_data_pass(source, samples):
    check(source, samples=samples)


@pytest.mark.parametrize("kind", ["image", "label"])
def test_truncated_picture_is_found(source, truncate, kind):
    path = truncate(getattr(source.pairs("train")[0], kind))
    with pytest.raises(ValueError, match=f"{path.name}: cannot be read as a picture .*replace it or remove"):
        check(source, samples=3)


def test_empty_file_is_found_anywhere(source):
    """Its header cannot be read, and headers are read of all."""
    path = source.pairs("train")[5].image
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{path.name}: cannot be read as a picture"):
        check(source, samples=1)


@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize("index", range(9))
def test_size_mismatch_is_found_anywhere(source, index, kind):
    pair = source.pairs("train")[index]
    shrink(getattr(pair, kind))
    sizes = ("51 x 40", "52 x 40") if kind == "image" else ("52 x 40", "51 x 40")
    with pytest.raises(ValueError, match="must have the same size") as error:
        check(source, samples=1)
    assert f"{pair.image} is {sizes[0]} pixels but {pair.label} is {sizes[1]}" in str(error.value)


def test_size_that_fits_after_a_turn_is_called_so(source):
    path = source.pairs("train")[5].image
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    with pytest.raises(ValueError, match=r"must have the same size\. Guess: one of them is turned by 90 degrees"):
        check(source, samples=1)


@pytest.mark.parametrize("index", [0, 4, 8])
def test_wrong_label_value_in_the_sample_is_found(source, index):
    """A sample of three is spread over the part: its first, middle and last pair."""
    pair = source.pairs("train")[index]
    spoil_labels(pair)
    with pytest.raises(ValueError, match=r"label value 200 \(2 pixels\).*valid are 0\.\.150, 255") as error:
        check(source, samples=3)
    assert str(pair.label) in str(error.value)


def test_first_bad_file_is_the_one_named(source):
    pairs = source.pairs("train")
    for i in (6, 2, 7):
        spoil_labels(pairs[i])
    with pytest.raises(ValueError, match=pairs[2].label.name):
        check(source, samples=64)


def test_no_samples_looks_at_nothing(source):
    shrink(source.pairs("train")[0].image)
    check(source, samples=0)


def test_skip_leaves_bad_files_to_training(source, truncate):
    pairs = source.pairs("train")
    truncate(pairs[0].image)
    shrink(pairs[1].label)
    spoil_labels(pairs[2])
    check(source, samples=64, on_corrupt="skip")


def test_skip_still_refuses_a_set_of_which_nothing_can_be_used(source):
    """Otherwise a run with the wrong label encoding would train on ignored pixels only."""
    for pair in source.pairs("train"):
        spoil_labels(pair)
    with pytest.raises(ValueError, match=r"none of the 4 pairs .* can be used.*label value 200"):
        check(source, samples=4, on_corrupt="skip")


def test_rgb_mask_gets_a_guess(source):
    path = source.pairs("train")[0].label
    Image.open(path).convert("RGB").point(lambda v: 40 * v).save(path)
    with pytest.raises(ValueError, match=r"this one is 40x52x3 uint8\. Guess: all channels hold the same number"):
        check(source, samples=4)


def test_guess_is_about_all_labels_of_the_sample_that_do_not_fit(make_ade20k):
    """One picture seldom holds every class; together they tell what was numbered how."""
    source = ADE20k(make_ade20k(9, 1))
    for i, pair in enumerate(source.pairs("train")):
        picture = np.resize(np.arange(17 * i, 17 * i + 17, dtype=np.uint8).clip(0, 150), (40, 52))
        Image.fromarray(picture).save(pair.label)
    source.table, source.classes, source.palette = plain_encoding(11), source.classes[:11], source.palette[:11]
    with pytest.raises(ValueError, match=r"ADE_train_00000001\.png.*Guess: values up to 150, as ADE20k's"):
        check(source, samples=9)


def test_labels_of_one_class_give_a_warning(source):
    for pair in source.pairs("train"):
        Image.fromarray(np.where(np.array(Image.open(pair.label)) > 2, 1, 0).astype(np.uint8)).save(pair.label)
    with pytest.warns(UserWarning, match=r"in the 4 pairs looked at, like .*every labelled pixel is wall"):
        check(source, samples=4)


def test_binary_masks_are_called_so(source):
    for pair in source.pairs("train"):
        Image.fromarray(np.where(np.array(Image.open(pair.label)) > 2, 255, 0).astype(np.uint8)).save(pair.label)
    with pytest.warns(UserWarning, match=r"no pixel is labelled\. Guess: only 0 and 255: a binary mask"):
        check(source, samples=4)
