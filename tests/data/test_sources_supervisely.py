import base64
import io
import json
import pickle
import zlib

import numpy as np
import pytest
from PIL import Image

from deeplab_recipes.data.sources import Supervisely
from deeplab_recipes.data.sources.base import Source, read_pair

SIZE = (30, 40)  # height, width
CLASSES = {"tree": "#00ff00", "car": "#0000ff", "bg": "#101010", "neutral": "#ffffff", "Road": "#ff0000"}
NUMBERS = {"bg": 0, "Road": 1, "car": 2, "tree": 3, "neutral": 255}  # background, then by name


def png(mask: np.ndarray, form: str = "palette") -> bytes:
    """A mask as a PNG: with a transparent palette, as Supervisely writes, or in other ways that it reads."""
    file = io.BytesIO()
    if form == "palette":
        picture = Image.fromarray(mask.astype(np.uint8), "P")
        picture.putpalette([0, 0, 0, 255, 255, 255])
        picture.save(file, format="PNG", transparency=0, optimize=0)
    elif form == "rgba":
        Image.fromarray(np.dstack([np.full((*mask.shape, 3), 7, np.uint8), mask * np.uint8(255)])).save(file, "PNG")
    else:
        Image.fromarray(mask * np.uint8(255) if form == "grey" else mask.astype(bool)).save(file, "PNG")
    return file.getvalue()


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def bitmap(title: str, mask: np.ndarray, x: int, y: int, *, data: str | None = None) -> dict:
    data = encoded(zlib.compress(png(mask))) if data is None else data
    return {"classTitle": title, "geometryType": "bitmap", "bitmap": {"data": data, "origin": [x, y]}}


def polygon(title: str, exterior: list, *interior: list, shape: str = "polygon") -> dict:
    return {
        "classTitle": title,
        "geometryType": shape,
        "points": {"exterior": exterior, "interior": list(interior)},
    }


def annotation(*objects: dict, tags: tuple = ({"name": "train", "value": None},), size=SIZE) -> dict:
    return {
        "description": "",
        "tags": list(tags),
        "size": {"height": size[0], "width": size[1]},
        "objects": list(objects),
    }


VALIDATION = annotation(tags=({"name": "val", "value": None},))


@pytest.fixture
def project(tmp_path, make_photograph):
    """Write a project: meta.json, and images with annotations; gives a function (annotations by name) -> folder."""

    def make(annotations: dict[str, dict], *, meta: dict | None = None, old: bool = False):
        root = tmp_path / "project"
        rows = [{"title": title, "shape": "any", "color": colour, "id": 3} for title, colour in CLASSES.items()]
        root.mkdir(exist_ok=True)
        (root / "meta.json").write_text(json.dumps(meta or {"classes": rows, "tags": [], "projectType": "images"}))
        for name, content in annotations.items():
            folder, _, file = name.rpartition("/")
            for kind in ("img", "ann"):
                (root / (folder or "ds0") / kind).mkdir(parents=True, exist_ok=True)
            image = root / (folder or "ds0") / "img" / file
            Image.fromarray(make_photograph(1, *SIZE)).save(image)
            label = image.parent.parent / "ann" / f"{image.stem if old else image.name}.json"
            label.write_text(json.dumps(content))
        return root

    return make


def labels_of(project, *objects: dict, **options) -> np.ndarray:
    source = Supervisely(project({"a.jpg": annotation(*objects), "v.jpg": VALIDATION}), **options)
    return read_pair(source.pairs("train")[0], source)[1]


def refused(project, *objects: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        labels_of(project, *objects)
    assert "a.jpg.json" in str(error.value)


def test_classes_by_name_after_the_background(project):
    source = Supervisely(project({"a.jpg": annotation(), "v.jpg": VALIDATION}))
    assert isinstance(source, Source)
    assert source.classes == ("bg", "Road", "car", "tree")
    assert source.palette == ((16, 16, 16), (255, 0, 0), (0, 0, 255), (0, 255, 0))


def test_background_need_not_be_a_class(project):
    meta = {"classes": [{"title": "car", "shape": "bitmap", "color": "#0000FF"}]}
    root = project({"a.jpg": annotation(), "v.jpg": VALIDATION}, meta=meta)
    source = Supervisely(root)
    assert (source.classes, source.palette) == (("bg", "car"), ((34, 34, 34), (0, 0, 255)))
    assert Supervisely(root, background="nothing").classes == ("nothing", "car")


def test_what_no_object_covers_is_background(project):
    np.testing.assert_array_equal(labels_of(project), np.zeros(SIZE, np.uint8))


@pytest.mark.parametrize("title", NUMBERS)
def test_bitmaps_lie_at_their_origin(project, title):
    rng = np.random.default_rng(1)
    mask = rng.random((7, 11)) < 0.5
    expected = np.zeros(SIZE, np.uint8)
    expected[20:27, 5:16][mask] = NUMBERS[title]
    labels = labels_of(project, bitmap(title, mask, 5, 20))
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint8


@pytest.mark.parametrize("form", ["palette", "rgba", "grey", "binary"])
@pytest.mark.parametrize("compressed", [True, False])
def test_forms_of_bitmaps(project, form, compressed):
    mask = np.random.default_rng(2).random((9, 8)) < 0.4
    content = png(mask, form)
    item = bitmap("car", mask, 30, 0, data=encoded(zlib.compress(content) if compressed else content))
    expected = np.zeros(SIZE, np.uint8)
    expected[:9, 30:38][mask] = 2
    np.testing.assert_array_equal(labels_of(project, item), expected)


def test_string_from_supervisely_itself(project):
    """A ring of 3 x 3, as the documentation of their Bitmap gives it."""
    data = (
        "eJzrDPBz5+WS4mJgYOD19HAJAtLMIMwIInOeqf8BUmwBPiGuQPr///9Lb86/C2QxlgT5BTM4PLuRBuTwebo4hlTMSa44sKHhISMDuxpTYrr03F6g"
        "DIOnq5/LOqeEJgDM5ht6"
    )
    expected = np.zeros(SIZE, np.uint8)
    expected[10:13, 20:23] = [[3, 3, 3], [3, 0, 3], [3, 3, 3]]
    np.testing.assert_array_equal(labels_of(project, bitmap("tree", np.ones(1), 20, 10, data=data)), expected)


def test_polygons_with_holes(project):
    """Borders belong to the polygon, and the borders of a hole to the hole."""
    item = polygon("Road", [[2, 3], [20, 3], [20, 18], [2, 18]], [[5, 6], [9, 6], [9, 10], [5, 10]])
    expected = np.zeros(SIZE, np.uint8)
    expected[3:19, 2:21] = 1
    expected[6:11, 5:10] = 0
    np.testing.assert_array_equal(labels_of(project, item), expected)


def test_a_hole_shows_what_was_there_before(project):
    below = polygon("tree", [[0, 0], [39, 0], [39, 29], [0, 29]])
    ring = polygon("Road", [[2, 3], [20, 3], [20, 18], [2, 18]], [[5, 6], [9, 6], [9, 10], [5, 10]])
    labels = labels_of(project, below, ring)
    assert (labels[8, 7], labels[4, 4], labels[0, 0]) == (3, 1, 3)


def test_polygons_beyond_the_image_and_in_fractions(project):
    item = polygon("car", [[-5.4, -3], [10.4, -3], [10.4, 4.6], [-5.4, 4.6]])
    expected = np.zeros(SIZE, np.uint8)
    expected[:6, :11] = 2
    np.testing.assert_array_equal(labels_of(project, item), expected)


def test_rectangles_reach_their_last_pixel(project):
    expected = np.zeros(SIZE, np.uint8)
    expected[4:9, 30:40] = 2
    np.testing.assert_array_equal(labels_of(project, polygon("car", [[30, 4], [39, 8]], shape="rectangle")), expected)


def test_later_objects_cover_earlier_ones(project):
    whole = np.ones((10, 10))
    order = ["tree", "car", "neutral", "bg", "Road"]
    items = [bitmap(title, whole, 3 * i, 2 * i) for i, title in enumerate(order)]
    expected = np.zeros(SIZE, np.uint8)
    for i, title in enumerate(order):
        expected[2 * i : 2 * i + 10, 3 * i : 3 * i + 10] = NUMBERS[title]
    assert set(np.unique(expected)) == {0, 1, 2, 3, 255}
    np.testing.assert_array_equal(labels_of(project, *items), expected)
    assert not np.array_equal(labels_of(project, *items[::-1]), expected)


def test_special_classes_can_be_renamed(project):
    mask = np.ones((4, 4))
    items = [bitmap("tree", mask, 0, 0), bitmap("neutral", mask, 10, 0), bitmap("car", mask, 20, 0)]
    labels = labels_of(project, *items, neutral="tree", background="car")
    assert (labels[0, 0], labels[0, 10], labels[0, 20]) == (255, 3, 0)  # car is 0, then Road, bg, neutral


def test_tags_choose_the_parts(project):
    def tagged(*names: str) -> dict:
        return annotation(tags=tuple({"name": name, "value": None} for name in names))

    root = project({"a.jpg": tagged("night", "train"), "b.png": tagged("val"), "c.jpg": tagged("other"),
                    "ds1/a.jpg": tagged("train"), "ds0/datasets/deep/z.jpg": tagged("val")})  # fmt: skip
    source = Supervisely(root)
    assert [p.image.relative_to(root).as_posix() for p in source.pairs("train")] == ["ds0/img/a.jpg", "ds1/img/a.jpg"]
    assert [p.image.name for p in source.pairs("validation")] == ["b.png", "z.jpg"]
    other = Supervisely(root, train_tag="other", validation_tag="night")
    assert [p.image.name for p in other.pairs("train")] == ["c.jpg"]
    assert [p.image.name for p in other.pairs("validation")] == ["a.jpg"]
    with pytest.raises(ValueError, match="split is 'test'; valid are train, validation"):
        source.pairs("test")


def test_form_of_the_first_years(project):
    """NAME.json, tags as words, no geometryType: the shape is the class's."""
    mask = np.ones((4, 5))
    items = [bitmap("car", mask, 1, 2), polygon("Road", [[20, 20], [25, 20], [25, 25]])]
    for item in items:
        item.pop("geometryType")
    items[1]["bitmap"] = None
    meta = {
        "classes": [
            {"title": "car", "shape": "bitmap", "color": "#0000FF"},
            {"title": "Road", "shape": "polygon", "color": "#FF0000"},
        ],
        "tags": ["train", "val"],
    }
    annotations = {"a.jpg": annotation(*items, tags=("train",)), "v.jpg": annotation(tags=("val",))}
    source = Supervisely(project(annotations, meta=meta, old=True))
    labels = read_pair(source.pairs("train")[0], source)[1]
    expected = np.zeros(SIZE, np.uint8)
    expected[2:6, 1:6] = 2
    for row in range(20, 26):
        expected[row, row:26] = 1
    np.testing.assert_array_equal(labels, expected)


def test_root_may_be_the_folder_above(project):
    root = project({"a.jpg": annotation(), "v.jpg": VALIDATION})
    assert Supervisely(root.parent).pairs("train") == Supervisely(root).pairs("train")
    with pytest.raises(FileNotFoundError, match=r"has no meta\.json; expected meta\.json and DATASET/img/"):
        Supervisely(root / "ds0")


def test_a_dataset_may_be_a_link_to_its_folder(project, tmp_path):
    root = project({"one/a.jpg": annotation(), "two/v.jpg": VALIDATION, "three/b.jpg": annotation()})
    (root / "three").rename(tmp_path / "elsewhere")
    (root / "three").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    images = [pair.image for pair in Supervisely(root).pairs("train")]
    assert images == [root / "one/img/a.jpg", root / "three/img/b.jpg"]


def test_label_size_comes_from_the_annotation(project):
    source = Supervisely(project({"a.jpg": annotation(size=(31, 40)), "v.jpg": VALIDATION}))
    pair = source.pairs("train")[0]
    assert source.label_size(pair) == (31, 40)
    with pytest.raises(ValueError, match=r"a\.jpg is 40 x 30 pixels but .*a\.jpg\.json is 40 x 31"):
        read_pair(pair, source)


def test_a_copy_for_a_loader_process_reads_the_same(project):
    source = Supervisely(project({"a.jpg": annotation(bitmap("car", np.ones((3, 3)), 0, 0)), "v.jpg": VALIDATION}))
    copy = pickle.loads(pickle.dumps(source))
    pair = copy.pairs("train")[0]
    np.testing.assert_array_equal(copy.labels(pair), source.labels(pair))


MASK = np.ones((4, 4))
PACKED = zlib.compress(png(MASK))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (bitmap("car", MASK, 0, 0, data="!not base64!"), r"has a bitmap that is not base64"),
        (bitmap("car", MASK, 0, 0, data="ÄÖ"), r"has a bitmap that is not base64"),
        (bitmap("car", MASK, 0, 0, data=encoded(b"plain text")), r"has a bitmap that zlib cannot unpack"),
        (bitmap("car", MASK, 0, 0, data=encoded(PACKED[:-10])), r"zlib data are cut short, or larger than"),
        (bitmap("car", MASK, 0, 0, data=""), r"zlib data are cut short"),
        (bitmap("car", MASK, 0, 0, data=encoded(zlib.compress(b"no PNG"))), r"has a bitmap that holds no PNG"),
        (bitmap("car", MASK, 0, 0, data=encoded(zlib.compress(png(MASK)[:-30]))), r"bitmap whose PNG is damaged"),
        (bitmap("car", MASK, 0, 0, data=encoded(zlib.compress(bytes(1 << 24)))), r"larger than the image could need"),
        (bitmap("car", MASK, 37, 0), r"has a bitmap of 4 x 4 pixels at \(37, 0\), outside the image of 40 x 30"),
        (bitmap("car", MASK, 0, -1), r"at \(0, -1\), outside the image"),
        (bitmap("bus", MASK, 0, 0), r"object 2 \(bus\) is of a class that meta\.json lacks; it has tree, car"),
        (
            polygon("car", [[1, 2], [3, 4]], shape="line"),
            r"object 2 \(car\) is a line, which covers no area.*valid are",
        ),
        (polygon("car", [[1, 2]], shape="point"), r"is a point, which covers no area"),
        ({"classTitle": "car", "geometryType": "bitmap"}, r"lacks what its shape needs.*KeyError\('bitmap'\)"),
        ({"classTitle": "car", "geometryType": "bitmap", "bitmap": {"data": "", "origin": 3}}, r"lacks what its shape"),
        (polygon("car", [[1, 2]], shape="rectangle"), r"has a rectangle of 1 corners; it takes two"),
        (polygon("car", []), r"has points that are not a list of \[x, y\]"),
        (polygon("car", [[1, 2, 3]]), r"has points that are not a list of \[x, y\]"),
        (polygon("car", [[0, 0], [float("nan"), 1], [1, 1]]), r"has points that are not"),
        (polygon("car", [[0, 0], [1e12, 1], [1, 1]]), r"has points that are not"),
        ("text", r"object 2 \(None\)"),
        ({"classTitle": ["car"]}, r"object 2 \(\['car'\]\) is of a class that meta\.json lacks"),
    ],
)
def test_objects_that_cannot_be_drawn_are_named(project, item, words):
    refused(project, bitmap("tree", MASK, 0, 0), item, words=words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", r"a\.jpg\.json is not valid JSON"),
        ("[]", r"holds a JSON list, not an object"),
        ('{"tags": "train"}', r"tags is 'train'; expected a list of names"),
        ('{"tags": [1]}', r"tags is \[1\]; expected a list of names"),
    ],
)
def test_broken_annotations(project, content, words):
    root = project({"a.jpg": annotation(), "v.jpg": VALIDATION})
    (root / "ds0" / "ann" / "a.jpg.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        Supervisely(root)


@pytest.mark.parametrize("size", [None, {}, {"height": 0, "width": 3}, {"height": "3", "width": 3}])
def test_broken_sizes(project, size):
    source = Supervisely(project({"a.jpg": {**annotation(), "size": size}, "v.jpg": VALIDATION}))
    with pytest.raises(ValueError, match=r"a\.jpg\.json: size is .*; expected height and width"):
        source.labels(source.pairs("train")[0])


def test_objects_that_are_no_list(project):
    source = Supervisely(project({"a.jpg": {**annotation(), "objects": 3}, "v.jpg": VALIDATION}))
    with pytest.raises(ValueError, match=r"a\.jpg\.json: objects is 3; expected a list"):
        source.labels(source.pairs("train")[0])


def test_a_size_that_no_picture_has_takes_no_memory(project):
    source = Supervisely(project({"a.jpg": annotation(size=(1 << 20, 1 << 20)), "v.jpg": VALIDATION}))
    with pytest.raises(ValueError, match=r"size 1048576 x 1048576 is beyond"):
        source.labels(source.pairs("train")[0])


ROW = {"title": "car", "shape": "bitmap", "color": "#0000FF"}


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"classes": [ROW, ROW]}, r"meta\.json: class 'car' is listed twice"),
        ({"tags": []}, r"meta\.json: classes must be a list of objects with a title"),
        ({"classes": [{"name": "car"}]}, r"found \{'name': 'car'\}"),
        ({"classes": [{**ROW, "color": "blue"}]}, r"color of class 'car' is 'blue'; a color is"),
        ({"classes": [{**ROW, "title": "neutral"}]}, r"has 0 classes besides bg and neutral"),
    ],
)
def test_broken_meta(project, meta, words):
    root = project({"a.jpg": annotation(), "v.jpg": VALIDATION}, meta=meta)
    with pytest.raises(ValueError, match=words):
        Supervisely(root)


def test_missing_tags_are_explained(project):
    root = project({"a.jpg": annotation(), "b.jpg": annotation(tags=({"name": "night"},))})
    with pytest.raises(
        ValueError, match=r"has the tag 'val'; tags found: night, train.*data\.source\.validation_tag=NAME"
    ):
        Supervisely(root)
    both = annotation(tags=({"name": "train"}, {"name": "val"}))
    with pytest.raises(ValueError, match=r"b\.jpg\.json has both tags, train and val"):
        Supervisely(project({"a.jpg": annotation(), "b.jpg": both}))


def test_image_without_annotation(project):
    root = project({"a.jpg": annotation(), "v.jpg": VALIDATION})
    (root / "ds0" / "ann" / "a.jpg.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"img/a\.jpg has no annotation .*ann/a\.jpg\.json; export"):
        Supervisely(root)
    (root / "ds0" / "img" / "a.jpg").unlink()
    (root / "ds0" / "ann" / "b.jpg.json").write_text(json.dumps(annotation()))
    with pytest.raises(FileNotFoundError, match=r"ann/b\.jpg\.json has no image in .*img; export"):
        Supervisely(root)


def test_names_that_must_differ(project):
    root = project({"a.jpg": annotation(), "v.jpg": VALIDATION})
    with pytest.raises(ValueError, match="must differ"):
        Supervisely(root, neutral="bg")
    with pytest.raises(ValueError, match="must differ"):
        Supervisely(root, train_tag="val")
