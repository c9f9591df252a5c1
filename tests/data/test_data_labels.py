import numpy as np
import pytest
from PIL import Image

from deeplab_recipes.data.labels import INVALID, decode_labels, encoding, plain_encoding, shifted_encoding
from deeplab_recipes.data.reading import read_labels
from deeplab_recipes.data.sources import ADE20k, CamVid


def read(path, picture, table) -> np.ndarray:
    picture.save(path)
    return read_labels(path, table)


def test_ade20k_stores_unlabelled_as_0_and_classes_from_1(make_ade20k):
    table = ADE20k(make_ade20k(1, 1)).table
    stored = np.array([[0, 1, 2, 150, 255]], np.uint8)
    assert decode_labels(stored, table, name="x").tolist() == [[255, 0, 1, 149, 255]]
    every = np.arange(151, dtype=np.uint8).reshape(1, -1)
    assert decode_labels(every, table, name="x").tolist() == [[255, *range(150)]]


def test_camvid_stores_unlabelled_as_11(tmp_path):
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4)
    expected = [*range(11), 255]
    assert decode_labels(stored, CamVid(tmp_path).table, name="x").ravel().tolist() == expected


def test_class_names_and_colours():
    from mmseg.datasets.ade import ADE20KDataset

    published = ADE20KDataset.METAINFO
    assert [list(colour) for colour in ADE20k.palette] == published["palette"]
    assert list(ADE20k.classes) == [name.strip() for name in published["classes"]]
    assert len(CamVid.classes) == len(set(CamVid.palette)) == 11
    assert (CamVid.classes[0], CamVid.classes[3], CamVid.classes[10]) == ("sky", "road", "bicyclist")


@pytest.mark.parametrize(
    ("table", "wrong", "valid"),
    [
        (shifted_encoding(150), 151, "0..150, 255"),
        (plain_encoding(11, ignore=(11, 255)), 12, "0..11, 255"),
        (plain_encoding(1, ignore=(255,)), 254, "0, 255"),
    ],
)
def test_wrong_value_names_file_value_count_and_valid_ranges(tmp_path, table, wrong, valid):
    stored = np.zeros((4, 5), np.uint8)
    stored[1, :3] = wrong
    with pytest.raises(ValueError, match="outside the classes") as error:
        read(tmp_path / "street.png", Image.fromarray(stored), table)
    assert str(tmp_path / "street.png") in str(error.value)
    assert f"label value {wrong} (3 pixels)" in str(error.value)
    assert f"valid are {valid}." in str(error.value)


@pytest.mark.parametrize(
    ("picture", "seen"),
    [
        (Image.new("RGB", (5, 4)), "4x5x3 uint8"),
        (Image.fromarray(np.full((4, 5), 3, np.uint16)), "4x5 uint16"),
        (Image.new("1", (5, 4)), "4x5 bool"),
        (Image.new("LA", (5, 4)), "4x5x2 uint8"),
    ],
)
def test_label_that_is_not_one_8_bit_channel_is_refused(tmp_path, picture, seen):
    with pytest.raises(ValueError, match=f"labels.png: a label picture must have one 8-bit channel.*{seen}"):
        read(tmp_path / "labels.png", picture, plain_encoding(11))


def test_palette_picture_gives_indices(tmp_path, make_patches):
    indices = make_patches(0, 20, 30)
    picture = Image.fromarray(indices)
    picture.putpalette([value for i in range(256) for value in (255 - i, 7, 9)])
    assert picture.mode == "P"
    assert np.array_equal(read(tmp_path / "p.png", picture, plain_encoding(11)), indices)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_gives_what_is_stored(few_bits, tmp_path, make_patches, bits):
    """As optimisers save labels of few classes; Pillow would spread them over 0..255."""
    labels = make_patches(0, 20, 30, values=2**bits)
    assert {0, 2**bits - 1} <= {*labels.ravel().tolist()}
    few_bits(tmp_path / "labels.png", labels, bits)
    assert np.array_equal(read_labels(tmp_path / "labels.png", plain_encoding(16)), labels)


@pytest.mark.parametrize("encode", [plain_encoding, shifted_encoding])
def test_more_classes_than_fit_are_refused(encode):
    assert {*range(254), 255} <= set(encode(254).tolist())
    with pytest.raises(ValueError, match="at most 254 classes"):
        encode(255)


@pytest.mark.parametrize("stored", [-1, 256])
def test_stored_value_that_no_label_picture_holds_is_refused(stored):
    with pytest.raises(ValueError, match=f"label {stored} -> class 0"):
        encoding({stored: 0})


@pytest.mark.parametrize(
    "table",
    [plain_encoding(11), plain_encoding(254), shifted_encoding(150), encoding(dict.fromkeys(range(256), 7)),
     encoding({0: 255, 1: 0, 2: 1, 4: 3}), encoding({v: v for v in range(254)} | {254: 255, 255: 0})],
)  # fmt: skip
def test_every_table_is_looked_up_value_by_value(table):
    """Whatever the largest value in a picture is: where values differ from their classes by one step, no table is
    looked into."""
    for largest in range(256):
        stored = np.array([[largest, 0, largest // 2]], np.uint8)
        if (table[stored] == INVALID).any():
            with pytest.raises(ValueError, match="outside the classes"):
                decode_labels(stored, table, name="x")
        else:
            assert np.array_equal(decode_labels(stored, table, name="x"), table[stored])
