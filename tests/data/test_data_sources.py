import os

import numpy as np
import pytest
from PIL import Image

from deeplab_recipes.data.sources import ADE20k, CamVid
from deeplab_recipes.data.sources.ade20k import GREY_TRAINING_IMAGES
from deeplab_recipes.data.sources.base import Source, pair_by_stem, read_pair


@pytest.fixture
def camvid_root(tmp_path):
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        (tmp_path / f"{folder}annot").mkdir()
        for stem in ("b", "a", "c.d"):
            Image.new("RGB", (40, 36)).save(tmp_path / folder / f"{stem}.jpg")
            Image.new("L", (40, 36)).save(tmp_path / f"{folder}annot" / f"{stem}.png")
    return tmp_path


def test_pairs_in_the_order_of_their_names(make_ade20k, camvid_root):
    pairs = ADE20k(make_ade20k(12, 2)).pairs("train")
    assert [pair.image.name for pair in pairs] == [f"ADE_train_{i:08d}.jpg" for i in range(1, 13)]
    names = [pair.image.name for pair in CamVid(camvid_root).pairs("validation")]
    assert names == ["a.jpg", "b.jpg", "c.d.jpg"]
    for pair in (*pairs, *CamVid(camvid_root).pairs("train")):
        assert pair.image.stem == pair.label.stem
        assert pair.image.is_file()
        assert pair.label.is_file()


def test_sources_fit_the_protocol(make_ade20k, camvid_root):
    assert isinstance(ADE20k(make_ade20k(1, 1)), Source)
    assert isinstance(CamVid(camvid_root), Source)


def test_ade20k_root_may_be_the_folder_above(make_ade20k):
    root = make_ade20k(2, 1)
    pairs = ADE20k(root).pairs("train")
    assert ADE20k(root.parent).pairs("train") == ADE20k(str(root)).pairs("train") == pairs


def test_grey_training_images_are_left_out_as_in_composer(make_ade20k):
    root = make_ade20k(2, 1)
    for kind, ending in (("images", "jpg"), ("annotations", "png")):
        folder = root / kind / "training"
        for name in GREY_TRAINING_IMAGES:
            (folder / f"{name}.{ending}").write_bytes((folder / f"ADE_train_00000001.{ending}").read_bytes())
    assert len(GREY_TRAINING_IMAGES) == 4
    assert len(ADE20k(root, drop_grey=False).pairs("train")) == 6
    assert [p.image.stem for p in ADE20k(root).pairs("train")] == ["ADE_train_00000001", "ADE_train_00000002"]


def test_unknown_split_names_the_valid_ones(make_ade20k, camvid_root):
    with pytest.raises(ValueError, match=r"split is 'val'; valid are train, validation$"):
        ADE20k(make_ade20k(1, 1)).pairs("val")
    with pytest.raises(ValueError, match=r"split is 'training'; valid are train, validation, test$"):
        CamVid(camvid_root).pairs("training")


def test_missing_root_shows_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.root=.*nowhere is not a folder; expected images/"):
        ADE20k(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"data\.root=.*nowhere is not a folder; expected train"):
        CamVid(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no images/ folder; expected images/ and annotations/"):
        ADE20k(tmp_path)


def test_missing_part_is_named(camvid_root):
    with pytest.raises(FileNotFoundError, match=r"test is not a folder; check data\.root"):
        CamVid(camvid_root).pairs("test")
    (camvid_root / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"testannot is not a folder"):
        CamVid(camvid_root).pairs("test")


def test_folder_without_images(make_ade20k):
    root = make_ade20k(0, 1)
    (root / "images" / "training" / "readme.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"training holds no image \(\.jpg\); check data\.root"):
        ADE20k(root).pairs("train")


def test_images_without_labels_are_counted_and_named(make_ade20k):
    root = make_ade20k(6, 1)
    labels = root / "annotations" / "training"
    for i in (2, 3, 5, 6):
        os.remove(labels / f"ADE_train_{i:08d}.png")
    with pytest.raises(ValueError, match="4 of 6 images have no label") as error:
        ADE20k(root).pairs("train")
    assert "ADE_train_00000002.jpg, ADE_train_00000003.jpg, ADE_train_00000005.jpg, ...;" in str(error.value)
    assert str(labels) in str(error.value)


def test_labels_without_images_are_counted_and_named(make_ade20k):
    root = make_ade20k(3, 1)
    os.remove(root / "images" / "training" / "ADE_train_00000002.jpg")
    with pytest.raises(ValueError, match=r"1 of 3 labels have no image in .*: ADE_train_00000002\.png; add"):
        ADE20k(root).pairs("train")


def test_two_images_of_one_stem_are_refused(camvid_root):
    """One would silently stand in for the other."""
    Image.new("RGB", (40, 36)).save(camvid_root / "train" / "a.png")
    with pytest.raises(ValueError, match=r"train holds both a\.jpg and a\.png; keep one"):
        CamVid(camvid_root).pairs("train")


def test_hidden_and_foreign_files_do_not_disturb(camvid_root):
    for name in (".DS_Store", "._a.jpg", "Thumbs.db", "notes.txt"):
        (camvid_root / "train" / name).touch()
        (camvid_root / "trainannot" / name.replace(".jpg", ".png")).touch()
    (camvid_root / "train" / "folder.jpg").mkdir()
    assert len(CamVid(camvid_root).pairs("train")) == 3


def test_links_that_lead_nowhere_are_not_left_out(camvid_root):
    """As git-annex leaves them, or a disk that is not there."""
    for folder, name in (("train", "a.jpg"), ("trainannot", "a.png")):
        (camvid_root / folder / name).unlink()
        (camvid_root / folder / name).symlink_to(camvid_root / "nowhere")
    source = CamVid(camvid_root)
    assert [pair.image.stem for pair in source.pairs("train")] == ["a", "b", "c.d"]
    with pytest.raises(ValueError, match=r"train/a\.jpg: cannot be read as a picture .*No such file"):
        read_pair(source.pairs("train")[0], source)


def test_endings_in_capitals(camvid_root):
    os.rename(camvid_root / "train" / "a.jpg", camvid_root / "train" / "a.JPG")
    os.rename(camvid_root / "trainannot" / "a.png", camvid_root / "trainannot" / "a.PNG")
    assert len(pair_by_stem(camvid_root / "train", camvid_root / "trainannot")) == 3


@pytest.mark.parametrize(
    ("name", "source", "counts"),
    [
        ("camvid", CamVid, {"train": 367, "validation": 101}),
        ("ade20k_mini", ADE20k, {"train": 1312, "validation": 188}),
    ],
)
def test_real_data(real_data, name, source, counts):
    data = source(real_data(name))
    seen = set()
    for split, count in counts.items():
        pairs = data.pairs(split)
        assert len(pairs) == count
        for i in np.linspace(0, count - 1, 10).astype(int):
            image, labels = read_pair(pairs[i], data)
            assert image.shape == (*labels.shape, 3)
            assert image.dtype == labels.dtype == np.uint8
            seen |= set(np.unique(labels).tolist())
    assert seen <= {*range(len(data.classes)), 255}
    assert {0, 255} <= seen
