import numpy as np
import pytest
from labelled_set import bands, photograph, write_pair, write_set

from deeplab_recipes.data.counting import count_classes

AREA = 40 * 52


def test_pixels_of_each_class_and_of_the_images_that_show_it(tmp_path):
    source = write_set(tmp_path, train=0)
    first = np.zeros((40, 52), np.uint8)
    first[:10], first[10:12] = 4, 255
    write_pair(tmp_path, "train", "a", photograph(0), first)
    write_pair(tmp_path, "train", "b", photograph(1), np.full((40, 52), 4, np.uint8))
    pixels, in_images = count_classes(source, source.pairs("train"))
    assert pixels == [28 * 52, 0, 0, 0, 10 * 52 + AREA, 0]
    assert in_images == [38 * 52, 0, 0, 0, 38 * 52 + AREA, 0]


def test_labels_that_cannot_be_read(tmp_path):
    source = write_set(tmp_path, train=2)
    write_pair(tmp_path, "train", "wrong", photograph(9), bands(0, (0, 77)))
    counts = count_classes(source, source.pairs("train"), skip_unreadable=True)
    assert counts == count_classes(source, source.pairs("train")[:2])
    with pytest.raises(ValueError, match=r"wrong\.png"):
        count_classes(source, source.pairs("train"))
