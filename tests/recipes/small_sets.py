"""A dozen pictures in the layout of each data set, as small as trains; `write` makes one by the name of its YAML."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from deeplab_recipes.crc32c import masked_crc
from deeplab_recipes.data.sources.ade20k import GREY_TRAINING_IMAGES

HEIGHT, WIDTH = 72, 96
COUNTS = {"train": 8, "validation": 3}
COLOURS = np.array([(0, 0, 0), (200, 40, 40), (40, 200, 40)], np.uint8)


def scenes(split: str, values: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Give number, photograph (H, W, 3) and labels (H, W): on values[0] a block of each other value, which show."""
    rng = np.random.default_rng(len(split))
    for number in range(COUNTS[split]):
        labels = np.full((HEIGHT, WIDTH), values[0], np.uint8)
        shown = rng.integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        for kind, value in enumerate(values[1:]):
            y, x = rng.integers(0, HEIGHT - 30), rng.integers(0, WIDTH - 40)
            labels[y : y + 30, x : x + 40] = value
            shown[y : y + 30, x : x + 40] = COLOURS[(kind + 1) % 3] + 20
        yield number, shown, labels


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def simple(image: str, label: str, parts: dict[str, str], values: tuple[int, ...]) -> Callable[[Path], None]:
    """Sets of picture files: paths with {part} and {n}."""

    def write_to(root: Path) -> None:
        for split, part in parts.items():
            for number, shown, labels in scenes(split, values):
                save(root / image.format(part=part, n=number), shown)
                save(root / label.format(part=part, n=number), labels)

    return write_to


def ade20k(root: Path) -> None:
    parts = {"train": "training", "validation": "validation"}
    simple("images/{part}/ADE_{n:08d}.jpg", "annotations/{part}/ADE_{n:08d}.png", parts, (0, 1, 150))(root)
    for _, (name, (_, shown, labels)) in enumerate(zip(GREY_TRAINING_IMAGES, scenes("train", (0, 1, 2)), strict=False)):
        save(root / "images" / "training" / f"{name}.jpg", shown)
        save(root / "annotations" / "training" / f"{name}.png", labels)


def voc(root: Path) -> None:
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, name in (("train", "train"), ("validation", "val")):
        folder = "SegmentationClass"
        simple("JPEGImages/{part}_{n}.jpg", folder + "/{part}_{n}.png", {split: name}, (0, 7, 255))(root)
        (lists / f"{name}.txt").write_text("".join(f"{name}_{n}\n" for n in range(COUNTS[split])))
    simple("JPEGImages/{part}_{n}.jpg", "SegmentationClassAug/{part}_{n}.png", {"train": "aug"}, (0, 7))(root)
    (lists / "aug.txt").write_text("".join(f"aug_{n}\n" for n in range(COUNTS["train"])))


def folder(root: Path, *, colours: bool = True) -> None:
    for split in COUNTS:
        for number, shown, labels in scenes(split, (0, 1, 2)):
            save(root / "images" / f"{split} {number} grün.jpg", shown)
            save(root / "masks" / f"{split} {number} grün.png", COLOURS[labels] if colours else labels)
    rows = [f"{{name: {n}, color: {c}}}" for n, c in zip(("floor", "box", "door"), COLOURS.tolist(), strict=True)]
    (root / "classes.yaml").write_text(f"classes: [{', '.join(rows)}]\n")


def supervisely(root: Path) -> None:
    rows = [{"title": t, "shape": "any", "color": c} for t, c in (("box", "#C82828"), ("neutral", "#ffffff"))]
    (root / "meta.json").parent.mkdir(parents=True, exist_ok=True)
    (root / "meta.json").write_text(json.dumps({"classes": rows, "tags": []}))
    for split, tag in (("train", "train"), ("validation", "val")):
        for number, shown, labels in scenes(split, (0, 1, 2)):
            save(root / "ds" / "img" / f"{split}{number}.jpg", shown)
            path = root / "ds" / "ann" / f"{split}{number}.jpg.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            objects = [
                {
                    "classTitle": title,
                    "geometryType": "bitmap",
                    "bitmap": {"origin": [0, 0], "data": bitmap(labels == v)},
                }
                for v, title in ((1, "box"), (2, "neutral"))
            ]
            size = {"height": HEIGHT, "width": WIDTH}
            path.write_text(json.dumps({"tags": [{"name": tag}], "size": size, "objects": objects}))


def bitmap(mask: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(encoded(mask * np.uint8(255), "PNG"))).decode()


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def field(number: int, content: bytes) -> bytes:
    """A field with a length of a protocol buffer message."""
    length, digits = len(content), b""
    while length > 127:
        digits, length = digits + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + digits + bytes([length]) + content


def tfrecord(root: Path) -> None:
    """Its contents fail their checksums, which only `verify` looks at."""
    root.mkdir(parents=True)
    for split, name in (("train", "train"), ("validation", "val")):
        content = b""
        for number, shown, labels in scenes(split, (0, 5, 255)):
            values = {"image/encoded": encoded(shown, "JPEG"), "image/filename": b"%d" % number}
            values["image/segmentation/class/encoded"] = encoded(labels, "PNG")
            pairs = [field(1, field(1, k.encode()) + field(2, field(1, field(1, v)))) for k, v in values.items()]
            record = field(1, b"".join(pairs))
            length = struct.pack("<Q", len(record))
            content += length + struct.pack("<I", masked_crc(length)) + record + bytes(4)
        (root / f"{name}.tfrecord").write_bytes(content)


CITY = "{part}/ulm/ulm_{n:06d}_000019_"
COCO_PARTS = {"train": "train2017", "validation": "val2017"}
WRITERS: dict[str, Callable[[Path], None]] = {
    "ade20k": ade20k,
    "camvid": simple("{part}/{n}.png", "{part}annot/{n}.png", {"train": "train", "validation": "val"}, (0, 3, 11)),
    "voc": voc,
    "cityscapes": simple(
        f"leftImg8bit/{CITY}leftImg8bit.png", f"gtFine/{CITY}gtFine_labelIds.png",
        {"train": "train", "validation": "val"}, (7, 26, 0),
    ),
    "coco_stuff": simple("images/{part}/{n:012d}.jpg", "annotations/{part}/{n:012d}.png", COCO_PARTS, (0, 181, 255)),
    "folder": folder,
    "supervisely": supervisely,
    "tfrecord": tfrecord,
}  # fmt: skip


def write(name: str, root: Path) -> Path:
    """Write the set of a YAML, whose name may go on with the name of a pipeline."""
    WRITERS[next(key for key in sorted(WRITERS, key=len, reverse=True) if name.startswith(key))](root)
    return root
