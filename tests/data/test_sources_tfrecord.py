"""Record files are built here by protobuf's own encoder; checksums come from TensorBoard's reader of such files."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c as reference_crc
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from deeplab_recipes.crc32c import crc32c
from deeplab_recipes.data.files import Piece
from deeplab_recipes.data.sources import ADE20k, Cityscapes, PascalVOC, TFRecords
from deeplab_recipes.data.sources.base import Source, read_pair

SIZE = (24, 32)


def message_classes() -> dict[str, type]:
    """tf.train.Example and its parts, as tensorflow/core/example/{example,feature}.proto define them."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto

    def add(parent, name, *fields) -> None:
        message = parent.add(name=name)
        for number, (field, kind, label, type_name) in enumerate(fields, 1):
            message.field.add(name=field, number=number, type=kind, label=label, type_name=type_name)

    repeated, single = kinds.LABEL_REPEATED, kinds.LABEL_OPTIONAL
    add(file.message_type, "BytesList", ("value", kinds.TYPE_BYTES, repeated, None))
    add(file.message_type, "FloatList", ("value", kinds.TYPE_FLOAT, repeated, None))
    add(file.message_type, "Int64List", ("value", kinds.TYPE_INT64, repeated, None))
    lists = [(f"{n}_list", kinds.TYPE_MESSAGE, single, f".t.{n.title()}List") for n in ("bytes", "float", "int64")]
    add(file.message_type, "Feature", *lists)
    add(file.message_type, "Features", ("feature", kinds.TYPE_MESSAGE, repeated, ".t.Features.FeatureEntry"))
    entry = [("key", kinds.TYPE_STRING, single, None), ("value", kinds.TYPE_MESSAGE, single, ".t.Feature")]
    add(file.message_type[-1].nested_type, "FeatureEntry", *entry)
    file.message_type[-1].nested_type[0].options.map_entry = True
    add(file.message_type, "Example", ("features", kinds.TYPE_MESSAGE, single, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {"Example": message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))}


Example = message_classes()["Example"]


def example(**values: bytes | int | list[float]) -> bytes:
    """A serialised Example; keys are given with __ for /."""
    message = Example()
    for key, value in values.items():
        feature = message.features.feature[key.replace("__", "/")]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            feature.float_list.value.extend(value)
    return message.SerializeToString()


def framed(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    checksums = struct.pack("<I", masked_crc32c(length)), struct.pack("<I", masked_crc32c(content))
    return length + checksums[0] + content + checksums[1]


def picture(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def labels_of(number: int, low: int, high: int) -> np.ndarray:
    return (np.arange(768).reshape(SIZE) // 5 % (high - low) + low + 0 * number).astype(np.uint8)


@pytest.fixture
def photograph(make_photograph) -> bytes:
    return picture(make_photograph(1, *SIZE), "JPEG", quality=95)


def tensorflow_example(image: bytes, labels: np.ndarray, name: bytes) -> bytes:
    """All that research/deeplab's build_data.py writes."""
    return example(
        image__encoded=image,
        image__filename=name,
        image__format=b"jpeg",
        image__height=labels.shape[0],
        image__width=labels.shape[1],
        image__channels=3,
        image__segmentation__class__encoded=picture(labels),
        image__segmentation__class__format=b"png",
    )


def asahi417_example(image: bytes, labels: np.ndarray, name: bytes) -> bytes:
    """The three keys of asahi417's tfrecorder.py, whose names are whole paths."""
    return example(
        image__encoded=image, image__filename=b"/home/me/" + name, image__segmentation__encoded=picture(labels)
    )


def write(folder: Path, name: str, *examples: bytes) -> Path:
    path = folder / f"{name}.tfrecord"
    path.write_bytes(b"".join(map(framed, examples)))
    return path


def shards(folder: Path, name: str, examples: list[bytes], count: int) -> None:
    share = -(-len(examples) // count)
    for i in range(count):
        write(folder, f"{name}-{i:05d}-of-{count:05d}", *examples[i * share : (i + 1) * share])


@pytest.fixture
def voc(tmp_path, photograph):
    """Pascal VOC as build_voc2012_data.py leaves it: four files a list."""
    for name, count in (("train", 6), ("val", 3), ("trainval", 5), ("train_aug", 8)):
        examples = [tensorflow_example(photograph, voc_labels(i), f"2007_{i:06d}".encode()) for i in range(count)]
        shards(tmp_path, name, examples, 4)
    return tmp_path


def voc_labels(number: int) -> np.ndarray:
    labels = labels_of(0, 0, 21)
    labels[number % SIZE[0]] = 255
    return labels


# -- checksums


def test_checksum_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value of CRC-32C
    assert crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize("size", [0, 1, 7, 511, 512, 513, 639, 640, 4097, 70_001])
def test_checksum_is_tensorboards(size):
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == reference_crc(data)


# -- what is read


def test_research_deeplab_records(voc, photograph):
    source = TFRecords(voc)
    assert isinstance(source, Source)
    assert (source.classes, source.palette) == (PascalVOC.classes, PascalVOC.palette)
    pairs = source.pairs("train")
    assert [pair.image.stem for pair in pairs] == [f"2007_{i:06d}" for i in range(6)]
    decoded = np.asarray(Image.open(io.BytesIO(photograph)))
    for number, pair in enumerate(pairs):
        assert isinstance(pair.image, Piece)
        assert pair.image.read_bytes() == photograph
        image, labels = read_pair(pair, source)
        np.testing.assert_array_equal(image, decoded)
        np.testing.assert_array_equal(labels, voc_labels(number))
        assert source.label_size(pair) == SIZE
    assert len(source.pairs("validation")) == 3


def test_other_lists(voc):
    source = TFRecords(voc, training="train_aug", validation="trainval")
    assert (len(source.pairs("train")), len(source.pairs("validation"))) == (8, 5)


def test_cityscapes_records(tmp_path, photograph):
    labels = labels_of(0, 0, 20)
    labels[labels == 19] = 255
    for name in ("train_fine", "val_fine"):
        shards(tmp_path, name, [tensorflow_example(photograph, labels, b"aachen_000000_000019")] * 3, 2)
    source = TFRecords(tmp_path, classes="cityscapes")
    assert source.classes == Cityscapes.classes
    for split in ("train", "validation"):
        pairs = source.pairs(split)
        assert len(pairs) == 3
        np.testing.assert_array_equal(source.labels(pairs[2]), labels)


def test_ade20k_records_ignore_zero(tmp_path, photograph):
    stored = labels_of(0, 0, 151)
    for name in ("train", "val"):
        write(
            tmp_path, name, tensorflow_example(photograph, stored, b"./ADE20K/images/training/ADE_train_00000001.jpg")
        )
    source = TFRecords(tmp_path, classes="ade20k")
    assert source.classes == ("unlabelled", *ADE20k.classes)
    assert len(source.palette) == 151
    pair = source.pairs("train")[0]
    np.testing.assert_array_equal(source.labels(pair), np.where(stored == 0, 255, stored))
    assert pair.image.name == "ADE_train_00000001.jpg"
    write(tmp_path, "val", tensorflow_example(photograph, np.full(SIZE, 255, np.uint8), b"x"))
    with pytest.raises(ValueError, match="label value 255"):
        source.labels(source.pairs("validation")[0])
    kept = TFRecords(tmp_path, classes="ade20k", ignore=255)
    np.testing.assert_array_equal(kept.labels(pair), stored)


def test_asahi417_records(tmp_path, photograph):
    """training.tfrecord and validation.tfrecord; its labels are VOC's numbers as grey PNGs."""
    for name in ("training", "validation"):
        examples = [asahi417_example(photograph, voc_labels(i), f"2007_{i:06d}.jpg".encode()) for i in range(3)]
        write(tmp_path, name, *examples)
    source = TFRecords(tmp_path)
    for split in ("train", "validation"):
        pairs = source.pairs(split)
        assert [pair.image.name for pair in pairs] == [f"2007_{i:06d}.jpg" for i in range(3)]
        for number, pair in enumerate(pairs):
            np.testing.assert_array_equal(read_pair(pair, source)[1], voc_labels(number))


def test_own_classes_and_other_fields(tmp_path, photograph, make_photograph):
    labels = labels_of(0, 0, 3)
    content = example(
        image__segmentation__class__encoded=picture(labels),
        weights=[0.5, 1.5, -2.0],
        image__encoded=picture(make_photograph(1, *SIZE)),
        a=-1,
        image__filename="grün".encode(),
        another=b"",
    )
    nameless = example(image__encoded=photograph, image__segmentation__class__encoded=picture(labels))
    write(tmp_path, "train", content, nameless)
    write(tmp_path, "val", content)
    source = TFRecords(tmp_path, classes=["a", "b", "c"], ignore=2)
    pairs = source.pairs("train")
    assert [pair.image.name for pair in pairs] == ["grün.png", "record_000002.jpg"]
    np.testing.assert_array_equal(source.labels(pairs[0]), np.where(labels == 2, 255, labels))
    assert source.classes == ("a", "b", "c")


def test_palette_labels_are_read_as_numbers(tmp_path, photograph):
    """As from SegmentationClass itself, when the colour map was not removed before."""
    indexed = Image.fromarray(voc_labels(0), "P")
    indexed.putpalette([v for colour in PascalVOC.palette for v in colour])
    file = io.BytesIO()
    indexed.save(file, "PNG")
    content = example(image__encoded=photograph, image__segmentation__class__encoded=file.getvalue())
    write(tmp_path, "train", content)
    source = TFRecords(tmp_path)
    np.testing.assert_array_equal(source.labels(source.pairs("train")[0]), voc_labels(0))


# -- what is wrong


def test_files_that_are_missing(voc):
    (voc / "val-00002-of-00004.tfrecord").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds 3 of 4 files val-\*\.tfrecord"):
        TFRecords(voc).pairs("validation")
    with pytest.raises(FileNotFoundError, match=r"holds no test-\*-of-\*\.tfrecord and no test\.tfrecord"):
        TFRecords(voc, validation="test").pairs("validation")
    for path in voc.glob("val-*"):
        path.unlink()
    words = (
        r"holds no records of val, validation, val_fine; there are train, train_aug, trainval\. Say which: data\.source"
    )
    with pytest.raises(FileNotFoundError, match=words):
        TFRecords(voc).pairs("validation")


def test_parts_of_two_names(voc, photograph):
    write(voc, "training", tensorflow_example(photograph, voc_labels(0), b"a"))
    with pytest.raises(ValueError, match=r"records of train and training; say which: data\.source\.training=NAME"):
        TFRecords(voc).pairs("train")


def test_wrong_settings(voc):
    with pytest.raises(ValueError, match="classes is 'coco'; valid are voc, cityscapes, ade20k, or a list of names"):
        TFRecords(voc, classes="coco")
    with pytest.raises(ValueError, match=r"classes is \['a', 'a'\]; it takes names, each once"):
        TFRecords(voc, classes=["a", "a"])
    with pytest.raises(ValueError, match="split is 'val'; valid are train, validation"):
        TFRecords(voc).pairs("val")
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder; expected NAME-00000"):
        TFRecords(voc / "nowhere")


def pairs_of(folder: Path, content: bytes, **options) -> list:
    (folder / "train.tfrecord").write_bytes(content)
    return TFRecords(folder, **options).pairs("train")


@pytest.fixture
def two_records(photograph) -> bytes:
    first, second = (tensorflow_example(photograph, voc_labels(i), b"a") for i in range(2))
    return framed(first) + framed(second)


def start_of_second(content: bytes) -> int:
    return 16 + struct.unpack("<Q", content[:8])[0]


@pytest.mark.parametrize(("number", "bytes_left"), [(1, 3), (1, 12), (1, 1000), (2, 1), (2, 12), (2, 900), (2, -1)])
def test_truncated_file(tmp_path, two_records, number, bytes_left):
    place = start_of_second(two_records) if number == 2 else 0
    cut = place + bytes_left if bytes_left > 0 else len(two_records) + bytes_left
    words = f"record {number} at byte {place} goes beyond the end of the file at byte {cut}: cut short"
    with pytest.raises(ValueError, match=rf"train\.tfrecord: {words}"):
        pairs_of(tmp_path, two_records[:cut])


def test_an_end_between_records_cannot_be_noticed(tmp_path, two_records):
    assert len(pairs_of(tmp_path, two_records[: start_of_second(two_records)])) == 1


def test_damaged_length(tmp_path, two_records):
    second = start_of_second(two_records)
    content = bytearray(two_records)
    content[second + 3] ^= 1
    words = rf"train\.tfrecord: record 2 at byte {second} has a length that fails its checksum"
    with pytest.raises(ValueError, match=words):
        pairs_of(tmp_path, bytes(content))


def test_compressed_file(tmp_path, two_records):
    with pytest.raises(ValueError, match=r"record 1 at byte 0 .*it is compressed: unpack it with gunzip"):
        pairs_of(tmp_path, gzip.compress(two_records))


@pytest.mark.parametrize("place", [200, -400])
def test_one_changed_byte_is_found_by_verify(tmp_path, two_records, place):
    assert len(pairs_of(tmp_path, two_records, verify=True)) == 2
    content = bytearray(two_records)
    content[place] ^= 4
    number = 1 if place > 0 else 2
    with pytest.raises(ValueError, match=rf"train\.tfrecord: record {number} at byte \d+ fails its checksum; copy"):
        pairs_of(tmp_path, bytes(content), verify=True)


@pytest.mark.parametrize(
    "content", [b"\x0a\x05abc", b"\xff" * 30, b"\x0a\x04\x0a\x02\x0a\x05", b"\x0b", b"\x0a\x04\x0a\x02\x0a\x00"]
)
def test_records_that_hold_no_example(tmp_path, content):
    with pytest.raises(ValueError, match=r"record 1 at byte 12 holds no tf\.train\.Example"):
        pairs_of(tmp_path, framed(content))


def test_records_without_the_keys(tmp_path, photograph):
    with pytest.raises(ValueError, match=r"has no image/encoded; it has label"):
        pairs_of(tmp_path, framed(example(label=b"x")))
    words = r"has no image/segmentation/class/encoded or image/segmentation/encoded; it has image/encoded"
    with pytest.raises(ValueError, match=words):
        pairs_of(tmp_path, framed(example(image__encoded=photograph)))
    with pytest.raises(ValueError, match=r"it has nothing"):
        pairs_of(tmp_path, framed(b""))


def test_empty_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.tfrecord holds no record"):
        pairs_of(tmp_path, b"")


def test_broken_pictures_are_named_within_their_file(tmp_path, photograph):
    broken = example(image__encoded=photograph[:300], image__filename=b"x/cat.jpg", image__segmentation__encoded=b"no")
    source = TFRecords(tmp_path)
    pair = pairs_of(tmp_path, framed(broken))[0]
    with pytest.raises(ValueError, match=r"train\.tfrecord:cat\.jpg: cannot be read as a picture"):
        read_pair(pair, source)
    with pytest.raises(ValueError, match=r"train\.tfrecord:cat\.label\.png: cannot be read as a picture"):
        source.labels(pair)


def test_a_file_that_shrinks_later(tmp_path, two_records):
    pair = pairs_of(tmp_path, two_records)[1]
    (tmp_path / "train.tfrecord").write_bytes(two_records[: pair.label.offset + 10])
    with pytest.raises(ValueError, match=r"train\.tfrecord is cut short: a\.label\.png was to end at byte"):
        TFRecords(tmp_path).labels(pair)
